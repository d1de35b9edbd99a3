package upload

import (
	"context"
	"errors"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// keep is how long an upload is kept after its last part, how long its assembly is
// retried, and how long after its beginning the record of one that has ended is
// kept for its client.
const keep = 7 * 24 * time.Hour

// Reconcile resumes rename jobs and assemblies that were interrupted, and removes uploads
// that have been idle for a week.
func (f *Function) Reconcile(ctx context.Context) error {
	all, left, err := f.pending(ctx)
	if err != nil {
		return err
	}
	// An error of one upload must not stop the others.
	errs := []error{f.Runners().Resume(ctx, f.Inventory.Jobs)}
	newer := false
	for _, u := range left {
		key := u.info.Key
		f.Log.Warn("record of an upload left out", "key", key, "error", u.err, "remedy", record.Remedy(key, u.err))
		if errors.Is(u.err, record.ErrNewer) {
			newer = true
		} else if f.Now().Sub(u.info.LastModified) > keep {
			errs = append(errs, record.Delete[pending](ctx, f.Catalog, key))
		}
	}
	inUse := map[string]bool{}
	for _, p := range all {
		var err error
		idle := false
		switch p.Status {
		case completing:
			err = f.Assemblies.Send(ctx, queue.Assemble(p.ID).Encode(), 0)
		case uploading:
			idle, err = f.giveUp(ctx, layout.ImageKey(p.Name), p.UploadID, p.CreatedAt)
		default:
			idle = f.Now().Sub(p.CreatedAt) > keep
		}
		if idle && err == nil {
			err = record.Delete[pending](ctx, f.Catalog, layout.UploadKey(p.ID))
		}
		errs = append(errs, err)
		inUse[p.UploadID] = p.Status == uploading || p.Status == completing
	}
	if newer {
		return errors.Join(errs...) // only that version knows which parts are in use
	}
	// S3 clients abandon multipart uploads, too.
	for u, err := range f.Images.PendingUploads(ctx, "") {
		if err == nil && !inUse[u.ID] {
			_, err = f.giveUp(ctx, u.Key, u.ID, u.Initiated)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// giveUp aborts a multipart upload of the store if it has received no part for
// keep, and reports whether it did.
func (f *Function) giveUp(ctx context.Context, key store.Key, id string, began time.Time) (bool, error) {
	old := func(t time.Time) bool { return f.Now().Sub(t) > keep }
	if !old(began) {
		return false, nil
	}
	parts, err := f.Images.ListParts(ctx, key, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	for _, p := range parts {
		if !old(p.LastModified) {
			return false, nil
		}
	}
	return true, f.Images.AbortUpload(ctx, key, id)
}
