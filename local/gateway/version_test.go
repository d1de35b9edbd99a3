package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

func createBucket(name string) *s3.CreateBucketInput { return &s3.CreateBucketInput{Bucket: &name} }

// version returns the version of a key. HEAD, GET and both listings must agree on
// it.
func version(t *testing.T, endpoint, bucket, key string) store.Version {
	t.Helper()
	r := client(t, endpoint).Root(bucket, "")
	head, err := r.Head(t.Context(), store.Key(key))
	if err != nil {
		t.Fatal(err)
	}
	if head.ETag == "" {
		t.Errorf("%s has no ETag", key)
	}
	body, got, err := r.Get(t.Context(), store.Key(key), store.All, "")
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	if !got.Version.Equal(head.Version) {
		t.Errorf("%s: GET has %+v, HEAD %+v", key, got.Version, head.Version)
	}
	found := false
	for info, err := range r.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Key == store.Key(key) {
			found = true
			if !info.Version.Equal(head.Version) {
				t.Errorf("%s: the listing has %+v, HEAD %+v", key, info.Version, head.Version)
			}
		}
	}
	if !found {
		t.Errorf("%s is not listed", key)
	}
	v1, err := raw(endpoint).ListObjects(t.Context(), &s3.ListObjectsInput{Bucket: &bucket, Prefix: &key})
	if err != nil {
		t.Fatal(err)
	}
	if len(v1.Contents) != 1 || *v1.Contents[0].ETag != *quoted(head.ETag) || *v1.Contents[0].Size != head.Size {
		t.Errorf("%s: the old listing has %+v, HEAD %+v", key, v1.Contents, head.Version)
	}
	return head.Version
}

func TestVersions(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	seen := map[string]string{}
	check := func(what, key string) store.Version {
		t.Helper()
		v := version(t, g.Endpoint(), "images", key)
		if before, again := seen[key+v.ETag]; again {
			t.Errorf("%s: the ETag is that of %s", what, before)
		}
		seen[key+v.ETag] = what
		if again := version(t, g.Endpoint(), "images", key); !again.Equal(v) {
			t.Errorf("%s: the version went from %+v to %+v by itself", what, v, again)
		}
		return v
	}
	path := filepath.Join(dir, "images", "a.img")

	put(t, r, "a.img", []byte("1111"))
	written := check("the upload", "a.img")
	put(t, r, "a.img", []byte("1111"))
	check("the same upload again", "a.img")

	// An edit in place that keeps size and attributes.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("22"), 1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	check("the edit", "a.img")
	if _, _, err := r.Get(t.Context(), "a.img", store.All, written.ETag); !errors.Is(err, store.ErrChanged) {
		t.Errorf("GET of the version before: %v", err)
	}
	sums, err := raw(g.Endpoint()).HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img"), ChecksumMode: "ENABLED"})
	if err != nil {
		t.Fatal(err)
	}
	if sums.ChecksumCRC64NVME != nil {
		t.Error("an edited file has the checksum of the bytes before")
	}

	// Dropped files, each over the last one, within one second.
	for i := range 5 {
		tmp := filepath.Join(dir, "dropped")
		write(t, tmp, fmt.Sprint("drop", i))
		if err := os.Rename(tmp, path); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprint("drop ", i), "a.img")
	}
	// A file with an older modification time.
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, past, past); err != nil {
		t.Fatal(err)
	}
	v := check("the touched file", "a.img")
	if v.LastModified.Unix() != past.Unix() {
		t.Errorf("last modified %v, want %v", v.LastModified, past)
	}

	// Conditional requests of a file without attributes.
	c := raw(g.Endpoint())
	in := func() *s3.PutObjectInput {
		return &s3.PutObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img")}
	}
	create := in()
	create.IfNoneMatch = aws.String("*")
	if _, err := c.PutObject(t.Context(), create); code(err) != "PreconditionFailed" {
		t.Errorf("PUT If-None-Match over a dropped file: %v", err)
	}
	replace := in()
	replace.IfMatch = quoted(written.ETag)
	if _, err := c.PutObject(t.Context(), replace); code(err) != "PreconditionFailed" {
		t.Errorf("PUT If-Match of another version: %v", err)
	}
	if _, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img"), IfNoneMatch: quoted(v.ETag)}); err == nil {
		t.Error("GET If-None-Match of this version was answered")
	}
	replace.IfMatch = quoted(v.ETag)
	out, err := c.PutObject(t.Context(), replace)
	if err != nil {
		t.Fatalf("PUT If-Match of this version: %v", err)
	}
	if v := check("the replacement", "a.img"); *quoted(v.ETag) != *out.ETag {
		t.Errorf("PUT answered %s, HEAD has %s", *out.ETag, v.ETag)
	}
	gone := in()
	gone.Key, gone.IfMatch = aws.String("none.img"), quoted(v.ETag)
	if _, err := c.PutObject(t.Context(), gone); code(err) != "NoSuchKey" {
		t.Errorf("PUT If-Match of nothing: %v", err)
	}
}

// TestRangesOfOneVersion reads ranges under If-Match while the object is
// replaced: no range may come from another version.
func TestRangesOfOneVersion(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	stop := make(chan struct{})
	var writer sync.WaitGroup
	put(t, r, "a.img", pattern(0, 100_000))
	writer.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
				put(t, r, "a.img", pattern(i, 100_000))
			}
		}
	})
	whole := 0
	for n := 0; n < 200 || whole == 0; n++ {
		head, err := r.Head(t.Context(), "a.img")
		if err != nil {
			t.Fatal(err)
		}
		var first [2]byte
		for i := range first {
			body, info, err := r.Get(t.Context(), "a.img", store.Range{Offset: int64(i), Length: 1}, head.ETag)
			if errors.Is(err, store.ErrChanged) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if info.ETag != head.ETag {
				t.Fatalf("asked for %s, got %s", head.ETag, info.ETag)
			}
			if _, err := io.ReadFull(body, first[i:i+1]); err != nil {
				t.Fatal(err)
			}
			body.Close()
			if i == 1 {
				whole++
				if first[1] != first[0]+7 {
					t.Fatalf("bytes %d and %d are of two versions", first[0], first[1])
				}
			}
		}
	}
	close(stop)
	writer.Wait()
}

// TestRacesBetweenProcesses races creations and replacements through two
// gateways over one directory, which see it under different paths.
func TestRacesBetweenProcesses(t *testing.T) {
	dir := t.TempDir()
	alias := filepath.Join(t.TempDir(), "alias")
	if err := os.Symlink(dir, alias); err != nil {
		t.Fatal(err)
	}
	g := start(t, dir)
	endpoints := []string{g.Endpoint(), startChild(t, alias).endpoint}
	roots := make([]*s3store.Root, 32)
	for i := range roots {
		roots[i] = root(t, endpoints[i%2], "catalog")
	}
	race := func(key string, attempt func(r *s3store.Root, data []byte) error) {
		t.Helper()
		var wg sync.WaitGroup
		var won atomic.Int32
		var winner atomic.Value
		begin := make(chan struct{})
		for i, r := range roots {
			wg.Go(func() {
				<-begin
				data := fmt.Sprintf("writer %d of %s", i, key)
				switch err := attempt(r, []byte(data)); {
				case err == nil:
					won.Add(1)
					winner.Store(data)
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("%s: %v", key, err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%s: %d won", key, won.Load())
			return
		}
		if data, _, err := roots[0].ReadRecord(context.Background(), store.Key(key)); err != nil || string(data) != winner.Load() {
			t.Errorf("%s: the record holds %q (%v), the winner wrote %q", key, data, err, winner.Load())
		}
	}
	for i := range 10 {
		key := store.Key("races/" + strconv.Itoa(i))
		race(string(key), func(r *s3store.Root, data []byte) error {
			_, err := r.CreateRecord(context.Background(), key, data)
			return err
		})
		_, tag, err := roots[0].ReadRecord(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		race(string(key), func(r *s3store.Root, data []byte) error {
			_, err := r.ReplaceRecord(context.Background(), key, data, tag)
			return err
		})
	}

	// A counter loses no increment.
	if _, err := roots[0].CreateRecord(t.Context(), "counter", []byte("0")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const each = 5
	for _, r := range roots[:8] {
		wg.Go(func() {
			for done := 0; done < each; {
				data, tag, err := r.ReadRecord(context.Background(), "counter")
				if err != nil {
					t.Error(err)
					return
				}
				n, err := strconv.Atoi(string(data))
				if err != nil {
					t.Error(err)
					return
				}
				switch _, err = r.ReplaceRecord(context.Background(), "counter", []byte(strconv.Itoa(n+1)), tag); {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if data, _, err := roots[1].ReadRecord(t.Context(), "counter"); err != nil || string(data) != strconv.Itoa(8*each) {
		t.Errorf("the counter is %q (%v), want %d", data, err, 8*each)
	}
}

func TestUnauthenticated(t *testing.T) {
	g := start(t, t.TempDir())
	put(t, root(t, g.Endpoint(), "images"), "a.img", []byte("a"))
	for _, path := range []string{"/", "/images", "/images/a.img"} {
		req, err := http.NewRequest(http.MethodGet, g.Endpoint()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := status(t, req); got != http.StatusForbidden {
			t.Errorf("GET %s without a signature is %d", path, got)
		}
	}
}
