package fetch

import (
	"net/http"
	"slices"
	"testing"

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
		"there is one":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<bmap>")) }, true},
		"there is none": {http.NotFound, false},
		"it fails":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, false},
		"it ends early": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
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
