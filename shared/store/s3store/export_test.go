package s3store

import (
	"context"

	"imageroot/shared/store"
)

// CopyInParts is Move for a server that refuses to copy in one request.
func (r *Root) CopyInParts(ctx context.Context, dst, src store.Key, v store.Version, partSize int64) error {
	_, err := r.copyParts(ctx, dst, src, v, partSize)
	return err
}
