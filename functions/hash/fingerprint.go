package hash

import (
	"context"
	"errors"

	"imageroot/shared/content"
	"imageroot/shared/incus"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// fingerprint computes the fingerprint of a good image for Incus, if it is missing: the SHA-256
// of its tarball of metadata, followed by the bytes of the image. It needs no fence: two runs
// that differ in the tarball record which one they have read.
func (f *Function) fingerprint(ctx context.Context, sha256 layout.SHA256, r *job.Run, turn *turn) error {
	rec, _, err := record.Read[content.Record](ctx, f.Catalog, layout.ContentKey(sha256))
	if err != nil {
		return job.StoreFailed(err)
	}
	at, err := f.find(ctx, sha256)
	if errors.Is(err, store.ErrNotFound) {
		return errDeleted
	}
	if err != nil {
		return job.StoreFailed(err)
	}
	tarball := incus.Missing(&rec, at.architecture)
	if tarball == nil {
		return nil
	}
	h := resume(r, at.Info.Version, tarball, false)
	if err := f.read(ctx, at.Place, h, tarball, r, turn); err != nil {
		f.Inventory.Touch(at.Place) // the other root may have the same bytes
		return err
	}
	if err := at.Unchanged(ctx); errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
		f.Inventory.Touch(at.Place)
		return replaced()
	} else if err != nil {
		return job.StoreFailed(err)
	}
	_, _, err = record.Change(ctx, f.Catalog, layout.ContentKey(sha256), func(rec *content.Record, exists bool) error {
		if !exists {
			return record.ErrKeep
		}
		rec.Fingerprint = &content.Fingerprint{Metadata: tarball.SHA256, SHA256: h.Sum256()}
		return nil
	})
	if err != nil {
		return job.StoreFailed(err)
	}
	return nil
}
