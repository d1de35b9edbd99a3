package fetch

import (
	"bytes"
	"context"
	"errors"

	"imageroot/shared/layout"
	"imageroot/shared/source"
	"imageroot/shared/store"
)

// requestMap requests the block map of the source, while that sends its last bytes. If it
// refuses, it is asked once more when nothing else is requested: see findMap.
func (tr *transfer) requestMap(ctx context.Context) {
	var err error
	tr.bmap, err = tr.f.Sources.FindBmap(ctx, tr.t.loc)
	tr.mapKnown = err == nil
}

// findMap returns the block map that the publisher has beside a source, or nil. A publisher
// without one, or that does not send it, is no error.
func (f *Function) findMap(ctx context.Context, t *target) []byte {
	text, err := f.Sources.FindBmap(ctx, t.loc)
	if refused, ok := errors.AsType[*source.Unresolvable](err); err != nil && (!ok || refused.Status == 0) {
		f.Log.Info("the block map beside a source could not be read", "src", t.loc.URL, "error", err)
	}
	return text
}

// keepMap stores the block map of fetched bytes, unless it is nil. Hash compares it with them.
// A map exists only as long as its blob does.
func (f *Function) keepMap(ctx context.Context, sha256 layout.SHA256, text []byte) error {
	if text == nil {
		return nil
	}
	_, err := f.Catalog.Put(ctx, layout.PublishedKey(sha256), bytes.NewReader(text), int64(len(text)))
	if err != nil && !errors.Is(err, store.ErrChanged) { // by another fetch
		return retryLater(err)
	}
	return nil
}
