package fetch

import (
	"bytes"
	"context"
	"errors"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// keepMap stores the block map that the publisher has beside fetched bytes. Hash compares it
// with them. A publisher without one, or that does not send it, is no error. A map exists only
// as long as its blob does.
func (f *Function) keepMap(ctx context.Context, t *target, sha256 layout.SHA256) error {
	text, err := f.Sources.FindBmap(ctx, t.loc)
	if err != nil {
		f.Log.Info("the block map beside a source could not be read", "src", t.loc.URL, "error", err)
	}
	if text == nil {
		return nil
	}
	_, err = f.Catalog.Put(ctx, layout.PublishedKey(sha256), bytes.NewReader(text), int64(len(text)))
	if err != nil && !errors.Is(err, store.ErrChanged) { // by another fetch
		return retryLater(err)
	}
	return nil
}
