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
	for what, tt := range map[string]struct {
		answer http.HandlerFunc
		kept   bool
	}{
		"there is one":                      {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<bmap>")) }, true},
		"there is none":                     {http.NotFound, false},
		"it fails":                          {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, false},
		"it ends early":                     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
		"it is refused, while bytes come":   {once(func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }), true},
		"it is forbidden, while bytes come": {refused(2, http.StatusForbidden), true},
		"it is forbidden":                   {refused(4, http.StatusForbidden), false},
		"it ends early, while bytes come":   {once(func(http.ResponseWriter) { panic(http.ErrAbortHandler) }), true},
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

// once answers the first request by fail, and then with a map.
func once(fail func(http.ResponseWriter)) http.HandlerFunc {
	var n atomic.Int32
	return func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 1 {
			fail(w)
		}
		_, _ = w.Write([]byte("<bmap>"))
	}
}

// refused answers the first n requests by a status, and then with a map.
func refused(n int32, status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if atomic.AddInt32(&n, -1) >= 0 {
			w.WriteHeader(status)
		}
		_, _ = w.Write([]byte("<bmap>"))
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
