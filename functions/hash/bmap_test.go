package hash

import (
	"bytes"
	"slices"
	"testing"

	"imageroot/shared/bmap"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/store"
)

// The block map that was fetched with the bytes is compared with them and served, unless there
// is one beside the image. The same map under another key is not compared again.
func TestFetchedMap(t *testing.T) {
	data := slices.Concat(noise(1, mib), make([]byte, mib))
	m := bmap.New(int64(len(data)))
	m.Add(0, mib)
	_, _ = m.Sums().Write(data)
	good := m.Encode()
	m.Ranges[0].Sum = string(sum256(nil))
	wrong := m.Encode()
	bubble(t, func(w *world) {
		p, checks := w.checking("a", w.catalog)
		sha := w.hashAndInspect(p, data)
		checks.take()
		for _, step := range []struct {
			what   string
			root   store.Root
			key    store.Key
			text   []byte // nil: it is deleted
			checks int
			served []byte // nil: all blocks are written
			warned bool
		}{
			{"a map was fetched", w.catalog, layout.PublishedKey(sha), good, 1, good, false},
			{"it was fetched again", w.catalog, layout.PublishedKey(sha), good, 0, good, false},
			{"the same is beside the image", w.images, imageName + ".bmap", good, 0, good, false},
			{"another one was fetched", w.catalog, layout.PublishedKey(sha), wrong, 0, good, false},
			{"the one beside the image is gone", w.images, imageName + ".bmap", nil, 1, nil, true},
			{"a good one was fetched", w.catalog, layout.PublishedKey(sha), good, 1, good, false},
			{"it is gone", w.catalog, layout.PublishedKey(sha), nil, 1, nil, false},
		} {
			var err error
			if step.text == nil {
				err = step.root.Delete(w.t.Context(), step.key)
			} else {
				_, err = step.root.Put(w.t.Context(), step.key, bytes.NewReader(step.text), int64(len(step.text)))
			}
			if err != nil {
				t.Fatal(err)
			}
			w.until(p, queue.InspectContent(sha))
			if step.root == w.images {
				w.inspect(p, imageName+".bmap")
			}
			if n := len(checks.take()); n != step.checks {
				t.Errorf("%s: %d checks are queued, want %d", step.what, n, step.checks)
			}
			w.until(p, job.Check.Task(string(sha)))
			rec := w.known(sha)
			if got := w.object(layout.BmapKey(sha)); !bytes.Equal(got, step.served) || rec.Bmap.Pending {
				t.Errorf("%s: %+v, and served is\n%s", step.what, rec.Bmap, got)
			}
			if (len(rec.AllWarnings()) > 0) != step.warned {
				t.Errorf("%s: %q", step.what, rec.AllWarnings())
			}
		}
	})
}
