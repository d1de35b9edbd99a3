package job

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Jobs are the jobs of one process over the catalog root. They are safe for
// concurrent use. What a method has changed is durable when it returns.
type Jobs struct {
	Records store.Records
	Owner   string // differs between processes
	Now     func() time.Time

	// A [Runner] needs the fields below, too.

	// Queues carry the tasks of each kind of jobs. A kind without one is turned off.
	Queues   Queues
	Activity *activity.Log
	Metric   *metric.Set
	Log      *slog.Logger
}

// Queues has the queues of kinds of jobs. Several kinds may share one.
type Queues map[*Kind]queue.Sender

// Enqueue makes the job at key queued, with the fields that set fills in, unless
// it is active or keep accepts the job that has ended. It returns the job as it
// stands and whether it was queued.
func (j *Jobs) Enqueue(ctx context.Context, key store.Key, keep func(Job) bool, set func(*Job)) (Job, bool, error) {
	queued := false
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		queued = false
		if exists && (job.Status.Active() || keep(*job)) {
			return record.ErrKeep
		}
		queued = true
		*job = Job{Meta: job.Meta, Generation: job.Generation + 1, Status: Queued, QueuedAt: j.Now().UTC(), Checkpoint: job.Checkpoint}
		set(job)
		return nil
	})
	return job, queued, err
}

// end ends an active job that change, which sets its other fields, accepts. It
// returns the job as it stands, with before if it was ended here. The error is
// store.ErrNotFound if there is none.
func (j *Jobs) end(ctx context.Context, key store.Key, status Status, change func(job *Job, now time.Time) bool) (Job, error) {
	var before *Job
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		now, was := j.Now().UTC(), *job
		before = nil
		switch {
		case !exists:
			return store.ErrNotFound
		case !job.Status.Active() || !change(job, now):
			return record.ErrKeep
		}
		before = &was
		job.Status, job.FinishedAt = status, &now
		job.Generation++
		job.Owner, job.Checkpoint = "", nil
		return nil
	})
	if err == nil {
		job.before = before
	}
	return job, err
}

// Cancel ends an active job. A job that has ended is not changed. The error is
// store.ErrNotFound if there is no job.
func (j *Jobs) Cancel(ctx context.Context, key store.Key) (Job, error) {
	return j.end(ctx, key, Cancelled, func(*Job, time.Time) bool { return true })
}

// Complete ends an active job whose outcome was found elsewhere, if there is one.
func (j *Jobs) Complete(ctx context.Context, key store.Key, set func(*Job)) error {
	_, err := j.end(ctx, key, Completed, func(job *Job, _ time.Time) bool {
		job.Error = ""
		set(job)
		return true
	})
	return ignoreMissing(err)
}

// Fail ends an active job that no process holds as failed, if there is one. The
// reason follows the error of the last run. It reports whether it did.
func (j *Jobs) Fail(ctx context.Context, key store.Key, reason string) (Job, bool, error) {
	job, err := j.end(ctx, key, Failed, func(job *Job, now time.Time) bool {
		switch {
		case job.Held(now) > 0:
			return false
		case job.Error == "":
			job.Error = reason
		default:
			job.Error += " (" + reason + ")"
		}
		if job.FailingSince.IsZero() {
			job.FailingSince = now
		}
		return true
	})
	return job, job.before != nil, ignoreMissing(err)
}

// sweep removes the job at key if it is old.
func (j *Jobs) sweep(ctx context.Context, key store.Key) error {
	job, _, err := record.Read[Job](ctx, j.Records, key)
	if err != nil || !job.Old(j.Now()) {
		return ignoreMissing(err)
	}
	return j.Records.Delete(ctx, key)
}

func ignoreMissing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
