package hash

import (
	"context"
	"fmt"

	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
)

// Reconcile compares the image root with the records and queues what events
// did not tell: images without a digest of their version, digests without an
// image, bytes that nobody has looked into, jobs whose owner is gone.
func (f *Function) Reconcile(ctx context.Context) error {
	names, err := f.Inventory.Unsettled(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := f.noticeAll(ctx, names); err != nil {
		return err
	}
	if err := f.reconcileContents(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	return f.resume(ctx)
}

// Poll queues what one listing of the image root shows to be new, for where
// no events come. It is cheap enough to be made every few seconds; what it
// does not find, [Function.Reconcile] does.
func (f *Function) Poll(ctx context.Context) error {
	names, err := f.Inventory.Changed(ctx)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	return f.noticeAll(ctx, names)
}

func (f *Function) noticeAll(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := f.notice(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// notice queues a look at an object.
func (f *Function) notice(ctx context.Context, name string) error {
	return f.Queue.Send(ctx, queue.Task{Image: name}.Encode(), 0)
}

// resume queues the jobs that have not ended, those of another owner for when
// its lease is over, and removes those that ended long ago.
func (f *Function) resume(ctx context.Context) error {
	jobs, err := f.Inventory.HashJobs(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, j := range jobs {
		key, work, task := layout.HashJobKey(j.Name), f.Work, queue.Task{Hash: j.Name}
		if j.Stage == job.Check {
			key, work, task = layout.CheckJobKey(j.SHA256), f.Checks, queue.Task{Check: j.SHA256}
		}
		switch {
		case j.Status.Active() && work == nil: // checks were turned off
			if _, err := f.Jobs.Cancel(ctx, key); err != nil {
				return err
			}
		case j.Status.Active():
			if err := work.Send(ctx, task.Encode(), j.Held(f.Now())); err != nil {
				return err
			}
		}
		if j.Old(f.Now()) {
			if err := f.Jobs.Sweep(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}
