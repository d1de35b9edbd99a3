package s3store

import (
	"context"

	"imageroot/shared/store"
)

// CopyInParts is Copy for a server that refuses to copy in one request.
func (r *Root) CopyInParts(ctx context.Context, dst, src store.Key, size, partSize int64) error {
	return r.copyParts(ctx, dst, r.source(src), size, partSize)
}
