package hash

import (
	"context"
	"fmt"

	"imageroot/shared/image"
	"imageroot/shared/queue"
)

// Reconcile compares the image root with the records and queues the work of lost
// events: images without a digest of their version, digests without an image, bytes
// without a content record. It sends the tasks of active jobs again.
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
	if err := f.reconcileDisks(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	return f.Runners().Resume(ctx, f.Inventory.Jobs)
}

// Poll lists the image root and queues inspections of new objects, for stores
// without events. It is cheap enough to run every few seconds. What it misses,
// [Function.Reconcile] finds.
func (f *Function) Poll(ctx context.Context) error {
	names, err := f.Inventory.Changed(ctx)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	return f.enqueueInspections(ctx, names)
}

func (f *Function) enqueueInspections(ctx context.Context, names []image.Name) error {
	for _, name := range names {
		if err := f.enqueueInspection(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// enqueueInspection queues an inspection of an object.
func (f *Function) enqueueInspection(ctx context.Context, name image.Name) error {
	return f.Inspections.Send(ctx, queue.InspectImage(name).Encode(), 0)
}
