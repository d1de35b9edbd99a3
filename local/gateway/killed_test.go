package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pkg/xattr"

	"imageroot/local/gateway"
	"imageroot/shared/store"
)

// A process that is killed while it removes a completed upload may leave any of its
// files. Completing it again, after a start or while another process has the bucket
// open, gets the first answer if the object is still the upload's. No upload stays
// that cannot be completed. Each case has its own bucket.
func TestKilledWhileRemoving(t *testing.T) {
	first, tail := pattern(1, 6*mib), pattern(2, 1*mib)
	data := append(bytes.Clone(first), tail...)
	type removal struct {
		bucket string
		gone   []string // of the upload's files
		since  string   // what happened to the object
		starts bool
		id     string
		parts  []store.Part
		v      store.Version
	}
	var all []*removal
	for _, gone := range [][]string{nil, {"object"}, {"1"}, {"2"}, {"1", "object"}, {"1", "2"}, {"1", "2", "object"}} {
		for _, since := range []string{"", "replaced", "deleted"} {
			for _, starts := range []bool{false, true} {
				all = append(all, &removal{bucket: fmt.Sprintf("images-%d", len(all)), gone: gone, since: since, starts: starts})
			}
		}
	}
	each := func(phase string, starts bool, test func(*testing.T, *removal)) {
		t.Run(phase, func(t *testing.T) {
			for _, c := range all {
				if c.starts != starts {
					continue
				}
				t.Run(fmt.Sprintf("without %v, object %s", c.gone, c.since), func(t *testing.T) {
					t.Parallel()
					test(t, c)
				})
			}
		})
	}
	dir := t.TempDir()
	var g *gateway.Gateway
	killed := func(t *testing.T, c *removal) {
		r := root(t, g.Endpoint(), c.bucket)
		c.id, c.parts = begin(t, r, "a.img", first, tail)
		path := filepath.Join(uploadDir(dir, c.bucket, "a.img"), c.id)
		saved := t.TempDir()
		for _, name := range []string{"1", "2", "object"} {
			if err := os.Link(filepath.Join(path, name), filepath.Join(saved, name)); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if c.v, err = r.CompleteUpload(t.Context(), "a.img", c.id, c.parts); err != nil {
			t.Fatal(err)
		}
		for _, name := range c.gone {
			if err := os.Remove(filepath.Join(saved, name)); err != nil {
				t.Fatal(err)
			}
		}
		mkdir(t, filepath.Dir(path))
		err = errors.Join(
			xattr.Set(filepath.Dir(path), "user.objname", []byte("a.img")),
			xattr.Set(saved, "user.imageroot-parts", []byte("2")))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(saved, path+".0123456789abcdef-2.inprogress"); err != nil {
			t.Fatal(err)
		}
		switch c.since {
		case "replaced":
			put(t, r, "a.img", []byte("another"))
		case "deleted":
			if err := r.Delete(t.Context(), "a.img"); err != nil {
				t.Fatal(err)
			}
		}
	}
	again := func(t *testing.T, c *removal) {
		r := root(t, g.Endpoint(), c.bucket)
		again, err := r.CompleteUpload(t.Context(), "a.img", c.id, c.parts)
		switch {
		case c.since == "" && (err != nil || !again.Equal(c.v)):
			t.Errorf("%+v (%v), want %+v", again, err, c.v)
		case c.since != "" && len(c.gone) == 0 && err != nil: // there is no record of its completion
			t.Error(err)
		case c.since != "" && len(c.gone) > 0 && !errors.Is(err, store.ErrNotFound):
			t.Errorf("%v, want no such upload", err)
		}
		if err == nil {
			if got, _ := get(t, r, "a.img"); !bytes.Equal(got, data) {
				t.Error("the object holds other bytes")
			}
		}
		for u := range r.PendingUploads(t.Context(), "") {
			t.Errorf("%+v is listed", u)
		}
		if left := debris(t, filepath.Join(dir, c.bucket)); len(left) > 0 {
			t.Errorf("left %q", left)
		}
	}

	g = start(t, dir)
	each("Killed before the start", true, killed)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = start(t, dir)
	each("After the start", true, again)
	each("Killed beside it", false, killed)
	each("Beside it", false, again)
}
