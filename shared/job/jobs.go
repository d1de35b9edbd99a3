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

// Jobs gives one process access to the jobs in the catalog root. It is safe for
// concurrent use. Changes are durable when a method returns nil.
type Jobs struct {
	Records store.Records
	Owner   string // unique among processes
	Now     func() time.Time

	// Only a [Runner] needs the fields below.

	// Queues carry the tasks of the kinds of jobs. A kind without a queue is turned
	// off.
	Queues   Queues
	Activity *activity.Log
	Metric   *metric.Set
	Log      *slog.Logger
}

// Queues has the queues of the kinds of jobs. Kinds may share a queue.
type Queues map[*Kind]queue.Sender

// Enqueue queues the job at key, with the fields that set fills in and the last
// checkpoint. It does nothing if the job is active, or has ended and keep returns true.
// It returns the current job and whether it was queued.
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

// end ends an active job with status, unless change returns false. It ends a failed one
// as [Cancelled], too. change sets the
// other fields. It returns the current job, with before set if this call ended it. The
// error matches store.ErrNotFound if there is no job.
func (j *Jobs) end(ctx context.Context, key store.Key, status Status, change func(job *Job, now time.Time) bool) (Job, error) {
	var before *Job
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		now, was := j.Now().UTC(), *job
		before = nil
		switch {
		case !exists:
			return store.ErrNotFound
		case !job.Status.Active() && (status != Cancelled || job.Status != Failed), !change(job, now):
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

// Cancel cancels an active job, or dismisses the failure of a failed one, and returns the
// current job. It does not change a job that has ended otherwise. The error matches store.ErrNotFound if there is no job.
func (j *Jobs) Cancel(ctx context.Context, key store.Key) (Job, error) {
	return j.end(ctx, key, Cancelled, func(*Job, time.Time) bool { return true })
}

// Complete marks an active job as completed, because its result was found elsewhere. It
// does nothing if no job is active.
func (j *Jobs) Complete(ctx context.Context, key store.Key, set func(*Job)) error {
	_, err := j.end(ctx, key, Completed, func(job *Job, _ time.Time) bool {
		job.Error = ""
		set(job)
		return true
	})
	return ignoreMissing(err)
}

// Fail marks an active job as failed if no process holds it. It appends reason to the
// error of the last run. It returns the current job and whether it failed the job.
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
