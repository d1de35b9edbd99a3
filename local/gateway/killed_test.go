package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pkg/xattr"

	"imageroot/shared/store"
)

// A process that is killed while it removes a completed upload may leave any of its
// files. Completing it again, after a start or while another process has the bucket
// open, gets the first answer if the object is still the upload's. No upload stays
// that cannot be completed.
func TestKilledWhileRemoving(t *testing.T) {
	first, tail := pattern(1, 6*mib), pattern(2, 1*mib)
	data := append(bytes.Clone(first), tail...)
	for _, gone := range [][]string{nil, {"object"}, {"1"}, {"2"}, {"1", "object"}, {"1", "2"}, {"1", "2", "object"}} {
		for _, since := range []string{"", "replaced", "deleted"} {
			for _, starts := range []bool{false, true} {
				what := fmt.Sprintf("without %v, object %s, start %v", gone, since, starts)
				dir := t.TempDir()
				g := start(t, dir)
				r := root(t, g.Endpoint(), "images")
				id, parts := begin(t, r, "a.img", first, tail)
				path := filepath.Join(uploadDir(dir, "images", "a.img"), id)
				saved := mkdir(t, dir, "saved")
				for _, name := range []string{"1", "2", "object"} {
					if err := os.Link(filepath.Join(path, name), filepath.Join(saved, name)); err != nil {
						t.Fatal(err)
					}
				}
				v, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range gone {
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
				switch since {
				case "replaced":
					put(t, r, "a.img", []byte("another"))
				case "deleted":
					if err := r.Delete(t.Context(), "a.img"); err != nil {
						t.Fatal(err)
					}
				}
				if starts {
					if err := g.Close(); err != nil {
						t.Fatal(err)
					}
					g = start(t, dir)
					r = root(t, g.Endpoint(), "images")
				}

				again, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
				switch {
				case since == "" && (err != nil || !again.Equal(v)):
					t.Errorf("%s: %+v (%v), want %+v", what, again, err, v)
				case since != "" && len(gone) == 0 && err != nil: // there is no record of its completion
					t.Errorf("%s: %v", what, err)
				case since != "" && len(gone) > 0 && !errors.Is(err, store.ErrNotFound):
					t.Errorf("%s: %v, want no such upload", what, err)
				}
				if err == nil {
					if got, _ := get(t, r, "a.img"); !bytes.Equal(got, data) {
						t.Errorf("%s: the object holds other bytes", what)
					}
				}
				for u := range r.PendingUploads(t.Context(), "") {
					t.Errorf("%s: %+v is listed", what, u)
				}
				if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
					t.Errorf("%s: left %q", what, left)
				}
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
