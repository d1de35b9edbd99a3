package fetch

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// The block map beside a source is kept as long as the bytes are, and a fetch does not depend on
// it.
func TestBmap(t *testing.T) {
	t.Parallel()
	sends := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<bmap>")) }
	breaks := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	refuses := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	// atFirst answers n requests by a handler, and then with a map.
	atFirst := func(n int32, by http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if atomic.AddInt32(&n, -1) >= 0 {
				by(w, r)
				return
			}
			sends(w, r)
		}
	}
	for what, tt := range map[string]struct {
		answer http.HandlerFunc
		kept   bool
	}{
		"there is one":                      {sends, true},
		"there is none":                     {http.NotFound, false},
		"it fails":                          {refuses(http.StatusBadGateway), false},
		"it ends early":                     {breaks, false},
		"it is refused, while bytes come":   {atFirst(1, refuses(http.StatusServiceUnavailable)), true},
		"it is forbidden, while bytes come": {atFirst(2, refuses(http.StatusForbidden)), true},
		"it is forbidden":                   {atFirst(4, refuses(http.StatusForbidden)), false},
		"it ends early, while bytes come":   {atFirst(1, breaks), true},
	} {
		o := newOrigin(t, good(imageA))
		o.bmap = tt.answer
		w := newWorld(t, o.url(), knows(imageA))
		w.enqueue()
		f := w.process("a", w.root)
		w.finish(f)
		w.has(imageA)
		want := []store.Key{layout.PublishedKey(sum256(imageA))}
		if !tt.kept {
			want = nil
		}
		if keys := w.keys(layout.PublishedPrefix); !slices.Equal(keys, want) {
			t.Errorf("%s: kept is %v", what, keys)
		}
		if err := f.Uncache(t.Context(), sum256(imageA)); err != nil || len(w.keys(layout.PublishedPrefix)) > 0 {
			t.Errorf("%s: without the bytes, it is still there (%v)", what, err)
		}
	}
}

// The source is asked for the block map before its last bytes have come, so that these do not
// wait for a slow link once more.
func TestBmapMeanwhile(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	end := fmt.Sprintf("-%d", len(imageA)-1)
	o := newOrigin(t, func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("Range"), end) {
			select {
			case <-asked:
			case <-time.After(time.Minute):
				t.Error("no block map was asked for")
			}
		}
		good(imageA)(o, n, w, r)
	})
	o.bmap = func(w http.ResponseWriter, _ *http.Request) {
		close(asked) // once
		_, _ = w.Write([]byte("<bmap>"))
	}
	w := newWorld(t, o.url(), knows(imageA))
	w.enqueue()
	w.finish(w.process("a", w.root))
	if keys := w.keys(layout.PublishedPrefix); !slices.Equal(keys, []store.Key{layout.PublishedKey(sum256(imageA))}) {
		t.Errorf("kept is %v", keys)
	}
}
