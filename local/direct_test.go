package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/s3store"
	"imageroot/shared/store/storetest"
)

// startGateway starts a gateway that ends with the test, and returns a client of it.
func startGateway(t *testing.T, dir string) (*gateway.Gateway, *s3store.Client) {
	t.Helper()
	g, err := gateway.Start(t.Context(), gateway.Config{Listen: "127.0.0.1:0", Dir: dir, AccessKey: "ACCESSKEY", SecretKey: "a-secret-key"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	client, err := s3store.Open(t.Context(), s3store.Config{Endpoint: "http://" + g.Addr(), Region: "us-east-1", AccessKey: "ACCESSKEY", SecretKey: "a-secret-key", Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	return g, client
}

// Reads from the disk and writes to it do the same as those through S3.
func TestDirect(t *testing.T) {
	g, client := startGateway(t, t.TempDir())
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Root {
		at := config.Location{Bucket: fmt.Sprintf("bucket-%d", n.Add(1)), Prefix: "some/"}
		if err := client.EnsureBucket(t.Context(), at.Bucket); err != nil {
			t.Fatal(err)
		}
		s := &server{gateway: g}
		return s.root(client, at)
	})
	// ReadObjectAt reads from the whole object, for any range.
	at := config.Location{Bucket: "direct"}
	if err := client.EnsureBucket(t.Context(), at.Bucket); err != nil {
		t.Fatal(err)
	}
	root := (&server{gateway: g}).root(client, at)
	if _, err := root.Put(t.Context(), "key", strings.NewReader("0123456789"), 10); err != nil {
		t.Fatal(err)
	}
	body, _, err := root.Get(t.Context(), "key", store.Range{Offset: 4, Length: 2}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	p := make([]byte, 8)
	if n, err := body.(store.Direct).ReadObjectAt(p, 1); n != 8 || err != nil || string(p) != "12345678" {
		t.Errorf("%d, %v, %q", n, err, p)
	}
	if n, err := body.(store.Direct).ReadObjectAt(p, 7); n != 3 || !errors.Is(err, io.EOF) || string(p[:n]) != "789" {
		t.Errorf("at the end: %d, %v, %q", n, err, p)
	}
	if direct := body.(store.Direct); !direct.ObjectSame() {
		t.Error("an object that nobody has touched has changed")
	} else if err := root.Delete(t.Context(), "key"); err != nil || direct.ObjectSame() {
		t.Errorf("an object that is removed has not changed (%v)", err)
	}
}

// An upload whose writes fail, before or after they took effect, is completed by retries
// and leaves nothing.
func TestDirectFaults(t *testing.T) {
	dir := t.TempDir()
	g, client := startGateway(t, dir)
	at := config.Location{Bucket: "bucket"}
	if err := client.EnsureBucket(t.Context(), at.Bucket); err != nil {
		t.Fatal(err)
	}
	direct := (&server{gateway: g}).root(client, at)
	first, last := bytes.Repeat([]byte("0123456789abcdef"), store.MinPartBytes/16), []byte("end")
	const key = "a.img"
	for n := range 5 {
		for _, f := range []faultstore.Fault{faultstore.Before, faultstore.After} {
			root := faultstore.New(direct, faultstore.NthWrite(n, f))
			again := func(write func() error) {
				t.Helper()
				err := write()
				if errors.Is(err, faultstore.ErrInjected) {
					err = write()
				}
				if err != nil {
					t.Fatalf("write %d fails %v: %v", n, f, err)
				}
			}
			var id string
			again(func() (err error) {
				id, err = root.CreateUpload(t.Context(), key)
				return err
			})
			var parts []store.Part
			for i, data := range [][]byte{first, last} {
				again(func() error {
					p, err := root.UploadPart(t.Context(), key, id, int32(i+1), bytes.NewReader(data), int64(len(data)))
					if err == nil {
						parts = append(parts, p)
					}
					return err
				})
			}
			again(func() error {
				_, err := root.CompleteUpload(t.Context(), key, id, parts)
				return err
			})
			if got, err := os.ReadFile(filepath.Join(dir, at.Bucket, key)); err != nil || !bytes.Equal(got, slices.Concat(first, last)) {
				t.Errorf("write %d fails %v: the object has %d bytes, %v", n, f, len(got), err)
			}
			for u, err := range direct.PendingUploads(t.Context(), "") {
				// The answer of the first write was lost, and with it the ID.
				if err != nil || n != 1 || f != faultstore.After {
					t.Errorf("write %d fails %v: %+v is left (%v)", n, f, u, err)
				}
				if err := direct.AbortUpload(t.Context(), u.Key, u.ID); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// A listing from the disk is that of S3, whatever files there are.
func TestDirectList(t *testing.T) {
	dir := t.TempDir()
	g, client := startGateway(t, dir)
	if err := client.EnsureBucket(t.Context(), "bucket"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"b", "a b", "a+b", "Z", "ä", ".hidden", "new\nline", "\xff", "folder/in", "folder/also in", "folder/.hidden", "folder/deeper/down", "folder.img", "folder-", ".hidden-folder/in",
	} {
		path := filepath.Join(dir, "bucket", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("b", filepath.Join(dir, "bucket", "link")), os.Symlink("folder", filepath.Join(dir, "bucket", "linked")),
		os.Mkdir(filepath.Join(dir, "bucket", "empty"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, root := range []config.Location{{Bucket: "bucket"}, {Bucket: "bucket", Prefix: "folder/"}, {Bucket: "missing"}} {
		through := client.Root(root.Bucket, root.Prefix)
		direct := (&server{gateway: g}).root(client, root)
		for _, prefix := range []string{"", "a", "f", "folder", "folder/", "folder/d", "folder/in", "empty/", "link/", "linked/", ".hidden", "deeper/", "missing/", "b/", "../", "//", "ä"} {
			for _, after := range []store.Key{"", "a", "a b", "folder/also in", "folder/in", "zz"} {
				list := func(r store.Root) (all []string) {
					for info, err := range r.List(t.Context(), prefix, after) {
						all = append(all, fmt.Sprint(info.Key, info.ETag, info.Size, info.LastModified.Unix(), errors.Is(err, store.ErrNotFound), err == nil)) // S3 has whole seconds
					}
					return all
				}
				if got, want := list(direct), list(through); !slices.Equal(got, want) {
					t.Errorf("%v, prefix %q, after %q:\n%q, and through S3\n%q", root, prefix, after, got, want)
				}
			}
		}
	}
}
