package gateway_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"

	"imageroot/shared/store"
)

// TestOnlyPlainFiles puts entries into a bucket that must not be served, and reads,
// lists, overwrites and deletes them.
func TestOnlyPlainFiles(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "secret")
	dir := t.TempDir()
	images := mkdir(t, dir, "images")
	write(t, filepath.Join(images, "good.img"), "good")
	mkdir(t, images, "dir")
	mkdir(t, images, ".dir")
	write(t, filepath.Join(images, "dir", ".hidden"), "hidden")
	write(t, filepath.Join(images, ".dir", "a.img"), "hidden")
	write(t, filepath.Join(images, ".hidden.img"), "hidden")
	for link, target := range map[string]string{
		"file.img": filepath.Join(outside, "secret"), "dirlink": outside, "dangling.img": filepath.Join(outside, "none"),
		"inside.img": "good.img", "dir/up.img": "../good.img", "loop.img": "loop.img",
	} {
		if err := os.Symlink(target, filepath.Join(images, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(images, "fifo.img"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	t.Chdir(images) // the path of a socket must be short
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "socket.img"}); err != nil {
		t.Fatal(err)
	}

	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	if got := keys(t, r); !slices.Equal(got, []string{"good.img"}) {
		t.Errorf("listed %q", got)
	}
	all, err := raw(g.Endpoint()).ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("images")})
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Contents) != 1 || *all.Contents[0].Key != "good.img" {
		t.Errorf("without a delimiter %d are listed", len(all.Contents))
	}
	for _, prefix := range []string{"dirlink/", "dirlink/s", ".dir/", ".", "dir/.", "fifo.img/", "../", "dir/../"} {
		got, err := raw(g.Endpoint()).ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("images"), Prefix: &prefix})
		if err != nil {
			t.Errorf("listing %q: %v", prefix, err)
		} else if len(got.Contents)+len(got.CommonPrefixes) > 0 {
			t.Errorf("listing %q has %d", prefix, len(got.Contents))
		}
	}
	for _, key := range []string{
		"file.img", "dirlink/secret", "dangling.img", "inside.img", "dir/up.img", "loop.img", "fifo.img", "socket.img",
		".hidden.img", "dir/.hidden", ".dir/a.img", ".sgwtmp/x", "dir",
	} {
		if _, err := r.Head(t.Context(), store.Key(key)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("HEAD %s: %v", key, err)
		}
		if _, _, err := r.Get(t.Context(), store.Key(key), store.All, ""); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("GET %s: %v", key, err)
		}
		if _, err := r.Move(t.Context(), "copy.img", store.Key(key), store.Version{ETag: "0", Size: 6}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("copy of %s: %v", key, err)
		}
		if _, err := r.Put(t.Context(), store.Key(key), strings.NewReader("mine"), 4); err == nil {
			t.Errorf("PUT %s succeeded", key)
		}
		if key != "dir" { // which Complete refuses
			if _, err := r.CreateUpload(t.Context(), store.Key(key)); err == nil {
				t.Errorf("an upload of %s was begun", key)
			}
		}
		if err := r.Delete(t.Context(), store.Key(key)); err != nil {
			t.Errorf("DELETE %s: %v", key, err)
		}
		if _, err := os.Lstat(filepath.Join(images, key)); err != nil && key != ".sgwtmp/x" {
			t.Errorf("%s is gone: %v", key, err)
		}
	}
	if _, err := r.Put(t.Context(), "dirlink/new.img", strings.NewReader("mine"), 4); err == nil {
		t.Error("PUT through a link to a directory succeeded")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside there are %v (%v)", entries, err)
	}
	if data, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(data) != "secret" {
		t.Errorf("the file outside holds %q (%v)", data, err)
	}
	if got := keys(t, r); !slices.Equal(got, []string{"good.img"}) {
		t.Errorf("in the end %q are listed", got)
	}
}

func TestLongNames(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	for _, name := range []string{strings.Repeat("a", 251) + ".img", strings.Repeat("ü", 125) + "1.img"} {
		if len(name) != 255 {
			t.Fatalf("%q has %d bytes", name, len(name))
		}
		put(t, r, name, []byte("1"))
		put(t, r, name, []byte("22"))
		id, err := r.CreateUpload(t.Context(), store.Key(name))
		if err != nil {
			t.Fatal(err)
		}
		part, err := r.UploadPart(t.Context(), store.Key(name), id, 1, strings.NewReader("333"), 3)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.CompleteUpload(t.Context(), store.Key(name), id, []store.Part{part}); err != nil {
			t.Fatal(err)
		}
		if data, _ := get(t, r, name); string(data) != "333" {
			t.Errorf("%q holds %q", name, data)
		}
		if got := keys(t, r); !slices.Contains(got, name) {
			t.Errorf("%q is not listed", name)
		}
		if v, err := r.Head(t.Context(), store.Key(name)); err != nil {
			t.Error(err)
		} else if _, err := r.Move(t.Context(), store.Key("records/"+name), store.Key(name), v.Version); err != nil {
			t.Error(err)
		}
		if err := r.Delete(t.Context(), store.Key(name)); err != nil {
			t.Error(err)
		}
	}
	c := raw(g.Endpoint())
	for _, key := range []string{strings.Repeat("a", 256), "dir/" + strings.Repeat("a", 300), strings.Repeat("a/", 513)} {
		_, putErr := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("images"), Key: &key, Body: strings.NewReader("x")})
		_, getErr := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("images"), Key: &key})
		_, createErr := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: aws.String("images"), Key: &key})
		for _, err := range []error{putErr, getErr, createErr} {
			if code(err) != "KeyTooLongError" {
				t.Errorf("%d bytes: %v", len(key), err)
			}
		}
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestForbiddenKeys(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	root(t, g.Endpoint(), "images")
	root(t, g.Endpoint(), "other")
	c := raw(g.Endpoint())
	for _, key := range []string{"a//b.img", "../other/x.img", "a/../../other/x.img", "./x.img", "a/./x.img", "line\nbreak.img", "nul\x00.img", "bad\xffutf8.img", ".hidden"} {
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("images"), Key: &key, Body: strings.NewReader("x")})
		if code(err) == "" || code(err) == "InternalError" {
			t.Errorf("PUT %q: %v", key, err)
		}
	}
	for _, bucket := range []string{"images", "other"} {
		entries, err := os.ReadDir(filepath.Join(dir, bucket))
		if err != nil || len(entries) > 0 {
			t.Errorf("%s has %v (%v)", bucket, entries, err)
		}
	}
}

// TestCutUpload cuts uploads off. The old object stays, and no temporary file.
func TestCutUpload(t *testing.T) {
	dir := t.TempDir()
	var events recorder
	g := start(t, dir, events.watch("images"))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "old.img", []byte("old"))
	v := version(t, g.Endpoint(), "images", "old.img")
	before := len(events.all())
	for _, key := range []string{"old.img", "new.img"} {
		for _, sent := range []int{0, 1000, 100_000, 1<<20 - 1} {
			cutUpload(t, g.Endpoint(), key, 1<<20, sent)
		}
	}
	if now := version(t, g.Endpoint(), "images", "old.img"); !now.Equal(v) {
		t.Errorf("the old object went from %+v to %+v", v, now)
	}
	if got := keys(t, r); !slices.Equal(got, []string{"old.img"}) {
		t.Errorf("listed %q", got)
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if got := events.all()[before:]; len(got) > 0 {
		t.Errorf("the events are %+v", got)
	}

	id, err := r.CreateUpload(t.Context(), "mp.img")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.UploadPart(t.Context(), "mp.img", id, 1, bytes.NewReader(make([]byte, 1000)), 100_000); err == nil {
		t.Error("a cut part was taken")
	}
	if parts, err := r.ListParts(t.Context(), "mp.img", id); err != nil || len(parts) > 0 {
		t.Errorf("after a cut part there are %+v (%v)", parts, err)
	}
	eventually(t, func() bool { return len(debris(t, filepath.Join(dir, "images"))) == 0 }) // the gateway may detect the cut last
}

func TestMetadataTooLarge(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	c := raw(g.Endpoint())
	_, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("images"), Key: aws.String("a.img"), Body: strings.NewReader("x"),
		Metadata: map[string]string{"note": strings.Repeat("x", 1900)}, ContentDisposition: aws.String(strings.Repeat("y", 2500)),
	})
	if err != nil && code(err) != "MetadataTooLarge" {
		t.Errorf("more attributes than the file system may have: %v", err)
	}
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("images"), Key: aws.String("b.img"), Body: strings.NewReader("x"),
		Metadata: map[string]string{"note": strings.Repeat("x", 1900)},
	}); err != nil {
		t.Fatal(err)
	}
	out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("images"), Key: aws.String("b.img")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if len(out.Metadata["note"]) != 1900 {
		t.Errorf("metadata is %d bytes", len(out.Metadata["note"]))
	}
}
