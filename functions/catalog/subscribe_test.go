package catalog

import (
	"context"
	"errors"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store/memstore"
)

// The manifest is read again and again, and what cannot be used changes nothing.
func TestSubscribe(t *testing.T) {
	images := memstore.New()
	f, _ := newCatalog(t, images)
	const first, second = "version = 1 # 1\n", "version = 1 # 2\n"
	answers := []string{first, "", "version = 2\n", first, second}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	f.Subscribe(ctx, time.Millisecond, func(context.Context) ([]byte, error) {
		want := ""
		if n > 0 {
			want = first
		}
		if got, err := f.storedManifest(ctx); err != nil || string(got) != want && n <= len(answers)-1 {
			t.Errorf("before read %d: %q, %v", n, got, err)
		}
		if n == len(answers) {
			cancel()
			return nil, context.Canceled
		}
		n++
		if answers[n-1] == "" {
			return nil, errors.New("the publisher does not answer")
		}
		return []byte(answers[n-1]), nil
	})
	if got, err := f.storedManifest(t.Context()); err != nil || string(got) != second {
		t.Errorf("%q, %v", got, err)
	}
	if v, err := images.Head(t.Context(), layout.ManifestKey); err != nil || v.Size != int64(len(second)) {
		t.Errorf("%+v, %v", v, err)
	}
}
