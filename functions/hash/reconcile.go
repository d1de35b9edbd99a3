package hash

import (
	"context"
	"fmt"

	"imageroot/shared/job"
	"imageroot/shared/queue"
)

// Reconcile compares the image root with the records and queues the work of lost
// events: images without a digest of their version, digests without an image,
// bytes without a content record, jobs whose owner is gone.
func (f *Function) Reconcile(ctx context.Context) error {
	names, err := f.Inventory.Unsettled(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := f.enqueueInspections(ctx, names); err != nil {
		return err
	}
	if err := f.reconcileContents(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	return f.resume(ctx)
}

// Poll lists the image root and queues inspections of new objects, for stores
// without events. It is cheap enough for every few seconds; what it does not
// find, [Function.Reconcile] does.
func (f *Function) Poll(ctx context.Context) error {
	names, err := f.Inventory.Changed(ctx)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	return f.enqueueInspections(ctx, names)
}

func (f *Function) enqueueInspections(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := f.enqueueInspection(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// enqueueInspection queues an inspection of an object.
func (f *Function) enqueueInspection(ctx context.Context, name string) error {
	return f.Inspections.Send(ctx, queue.InspectImage(name).Encode(), 0)
}

// resume sends the tasks of active jobs again and removes old jobs.
func (f *Function) resume(ctx context.Context) error {
	for _, r := range []*job.Runner{f.hashes(), f.checks(nil)} {
		jobs, err := f.Inventory.Jobs(ctx, r.Kind)
		if err == nil {
			err = r.Resume(ctx, jobs)
		}
		if err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
	}
	return nil
}
