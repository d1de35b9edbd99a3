package hash

import (
	"context"
	"errors"
	"fmt"

	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Reconcile compares the image root with the records and queues what events
// did not tell: images without a digest of their version, digests without an
// image, jobs whose owner is gone.
func (f *Function) Reconcile(ctx context.Context) error {
	digests := map[string]store.Info{}
	for info, err := range f.Catalog.List(ctx, layout.DigestPrefix, "") {
		if err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
		if name, ok := layout.DigestName(info.Key); ok {
			digests[name] = info
		}
	}
	images := map[string]bool{}
	for info, err := range f.Images.List(ctx, "", "") {
		if err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
		if !image.IsName(info.Key) {
			continue
		}
		images[info.Key] = true
		if _, ok := digests[info.Key]; ok {
			rec, _, err := record.Read[digest.Record](ctx, f.Catalog, layout.DigestKey(info.Key))
			if err == nil && rec.Version.Equal(info.Version) {
				continue
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("reconcile: %w", err)
			}
		}
		if err := f.notice(ctx, info.Key); err != nil {
			return err
		}
	}
	for name := range digests {
		if !images[name] {
			if err := f.notice(ctx, name); err != nil {
				return err
			}
		}
	}
	return f.resume(ctx)
}

// notice queues a look at an object.
func (f *Function) notice(ctx context.Context, name string) error {
	return f.Queue.Send(ctx, queue.Task{Image: name}.Encode(), 0)
}

// resume queues the jobs that nobody works on.
func (f *Function) resume(ctx context.Context) error {
	jobs, err := f.Inventory.HashJobs(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, j := range jobs {
		if j.Status == job.Queued || j.Status == job.Running && f.Now().After(j.LeaseUntil) {
			if err := f.Work.Send(ctx, queue.Task{Hash: j.Name}.Encode(), 0); err != nil {
				return err
			}
		}
	}
	return nil
}
