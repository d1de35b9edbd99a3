package gateway_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imageroot/local/gateway"
	"imageroot/shared/store"
)

// rename renames an object and returns its new version.
func rename(t *testing.T, g *gateway.Gateway, from, to, etag string) store.Version {
	t.Helper()
	f, err := g.Rename("images", from, to, etag)
	if err != nil {
		t.Fatalf("rename %s: %v", from, err)
	}
	defer f.Close()
	return store.Version{ETag: f.ETag, Size: f.Size, LastModified: f.LastModified}
}

// A renamed object is the same file. If only the gateway has changed it, it is the same
// version, so that its digest still applies, and it stays that version. An edit afterwards
// makes another version.
func TestRename(t *testing.T) {
	dir := t.TempDir()
	var rec recorder
	g := start(t, dir, rec.watch("images"))
	r := root(t, g.Endpoint(), "images")
	path := func(key string) string { return filepath.Join(dir, "images", key) }
	old := put(t, r, "put.img", []byte("content 1"))
	write(t, path("dropped.img"), "content 1")
	_, dropped := get(t, r, "dropped.img")
	inode := func(key string) os.FileInfo {
		info, err := os.Stat(path(key))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	for key, before := range map[string]store.Version{"put.img": old, "dropped.img": dropped} {
		file := inode(key)
		to := "as a " + key
		now := rename(t, g, key, to, before.ETag)
		if key == "put.img" && !now.Equal(before) {
			t.Errorf("%s is %+v, was %+v", key, now, before)
		}
		if !os.SameFile(inode(to), file) {
			t.Errorf("%s is another file", to)
		}
		if data, v := get(t, r, to); string(data) != "content 1" || !v.Equal(now) {
			t.Errorf("%s has %q and is %+v, was renamed as %+v", to, data, v, now)
		}
		if _, err := r.Head(t.Context(), store.Key(key)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s is still there: %v", key, err)
		}
		n := 1
		eventually(t, func() bool {
			n++
			edit(t, path(to), fmt.Sprintf("content %d", n%10))
			_, after := get(t, r, to)
			return !after.Equal(now)
		})
	}
}

// A rename replaces nothing, and moves nothing but what it was asked to.
func TestRenameRefused(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir, func(cfg *gateway.Config) { cfg.Watch = []string{"images"} })
	r := root(t, g.Endpoint(), "images")
	a, b := put(t, r, "a.img", []byte("a")), put(t, r, "b.img", []byte("b"))
	mkdir(t, dir, "images", "dir.img")
	if err := os.Symlink("a.img", filepath.Join(dir, "images", "link.img")); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		from, to, etag string
		want           error
	}{
		{"a.img", "b.img", a.ETag, store.ErrConflict},
		{"a.img", "a.img", a.ETag, store.ErrConflict},
		{"a.img", "c.img", b.ETag, store.ErrChanged},
		{"none.img", "c.img", a.ETag, nil},
		{"link.img", "c.img", a.ETag, nil},
		{"a.img", "link.img", a.ETag, nil},
		{"a.img", "dir.img", a.ETag, nil},
		{"dir.img", "c.img", a.ETag, nil},
		{"a.img", ".hidden.img", a.ETag, nil},
		{"a.img", "../c.img", a.ETag, nil},
		{"a.img", "b.img/c.img", a.ETag, nil},
	} {
		if f, err := g.Rename("images", x.from, x.to, x.etag); err == nil || x.want != nil && !errors.Is(err, x.want) {
			t.Errorf("%s to %s: %v, %v", x.from, x.to, f, err)
		}
	}
	for key, v := range map[string]store.Version{"a.img": a, "b.img": b} {
		if data, now := get(t, r, key); string(data) != key[:1] || !now.Equal(v) {
			t.Errorf("%s has %q", key, data)
		}
	}
}

// While an object is renamed to and fro and uploads replace it, no reader sees a part of
// one, and what was stored last is under one of the two names.
func TestRenameWhileReplaced(t *testing.T) {
	g := start(t, t.TempDir(), func(cfg *gateway.Config) { cfg.Watch = []string{"images"} })
	r := root(t, g.Endpoint(), "images")
	const a, b = "a.img", "b.img"
	put(t, r, a, []byte("start"))
	var wg sync.WaitGroup
	last := ""
	wg.Go(func() {
		for i := range 100 {
			last = fmt.Sprint("upload ", i)
			// It may be renamed before Put has read its version.
			if _, err := r.Put(t.Context(), a, strings.NewReader(last), int64(len(last))); err != nil && !errors.Is(err, store.ErrChanged) {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for range 300 {
			for _, x := range [][2]string{{a, b}, {b, a}} {
				info, err := r.Head(t.Context(), store.Key(x[0]))
				if err != nil {
					continue
				}
				f, err := g.Rename("images", x[0], x[1], info.ETag)
				if err != nil {
					continue
				}
				f.Close()
			}
		}
	})
	wg.Wait()
	found := false
	for _, key := range []store.Key{a, b} {
		if _, err := r.Head(t.Context(), key); err == nil {
			data, _ := get(t, r, string(key))
			found = found || string(data) == last
		}
	}
	if !found {
		t.Errorf("%q is lost", last)
	}
}
