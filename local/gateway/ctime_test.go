package gateway_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"imageroot/local/gateway"
)

// edit writes into a file in place and restores its modification time.
func edit(t *testing.T, path, data string) {
	t.Helper()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		t.Fatalf("the edit is to be seen: %+v, %v", after, err)
	}
}

// An edit in place that keeps size and modification time makes another version and
// is reported: of a dropped file, and of an object written through S3, whole or in
// parts.
func TestEditedWithItsTimePutBack(t *testing.T) {
	dir := t.TempDir()
	var rec recorder
	g := start(t, dir, rec.watch("images"))
	r := root(t, g.Endpoint(), "images")
	write(t, filepath.Join(dir, "images", "dropped.img"), "content 1")
	put(t, r, "put.img", []byte("content 1"))
	id, parts := begin(t, r, "parts.img", pattern(1, 6*mib), []byte("tail"))
	if _, err := r.CompleteUpload(t.Context(), "parts.img", id, parts); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"dropped.img", "put.img", "parts.img"} {
		changed := gateway.Event{Bucket: "images", Key: key}
		rec.await(t, 1, changed)
		reported := rec.count(changed)
		_, before := get(t, r, key)
		// An edit directly after the gateway's own change counts as the gateway's.
		n := 1
		eventually(t, func() bool {
			n++
			edit(t, filepath.Join(dir, "images", key), fmt.Sprintf("content %d", n%10))
			_, after := get(t, r, key)
			return !after.Equal(before)
		})
		rec.await(t, reported+1, changed)
		tag(t, g, key)
		if _, after := get(t, r, key); after.Equal(before) {
			t.Errorf("with a tag, %s is the version that it was before it was edited", key)
		}
	}
}

// Changes by the gateway itself do not change the version of a file, nor do a start
// and the first start of a program that compares change times.
func TestVersionsStay(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(mkdir(t, dir, "images"), "old.img")
	write(t, old, "of an older version")
	var st syscall.Stat_t
	if err := syscall.Stat(old, &st); err != nil {
		t.Fatal(err)
	}
	watch := func(cfg *gateway.Config) { cfg.Watch = []string{"images"} }
	g := start(t, dir, watch)
	r := root(t, g.Endpoint(), "images")
	_, v := get(t, r, "old.img")
	sum := sha256.Sum256(fmt.Appendf(nil, "\x00%x.%x.%x", st.Mtim.Nano(), st.Size, st.Ino))
	if want := fmt.Sprintf("%x-1", sum[:16]); v.ETag != want {
		t.Errorf("the ETag of an older file is %s, was %s", v.ETag, want)
	}

	written := put(t, r, "put.img", []byte("data"))
	tag(t, g, "put.img")
	tag(t, g, "old.img")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = start(t, dir, watch)
	r = root(t, g.Endpoint(), "images")
	if _, after := get(t, r, "put.img"); !after.Equal(written) {
		t.Errorf("an object went from %+v to %+v", written, after)
	}
	if _, after := get(t, r, "old.img"); !after.Equal(v) {
		t.Errorf("an older file went from %+v to %+v", v, after)
	}
}

func tag(t *testing.T, g *gateway.Gateway, key string) {
	t.Helper()
	_, err := raw(g.Endpoint()).PutObjectTagging(t.Context(), &s3.PutObjectTaggingInput{
		Bucket: aws.String("images"), Key: &key,
		Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
}
