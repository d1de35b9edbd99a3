package entry

import (
	"context"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// DeleteBytes deletes fetched bytes, and the publisher's block map that was fetched with them,
// from the catalog root. It returns nil if there are none.
func DeleteBytes(ctx context.Context, catalog store.Objects, sha256 layout.SHA256) error {
	if err := catalog.Delete(ctx, layout.PublishedKey(sha256)); err != nil {
		return err
	}
	return catalog.Delete(ctx, layout.BlobKey(sha256))
}
