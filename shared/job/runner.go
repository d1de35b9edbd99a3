package job

import (
	"context"
	"log/slog"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
)

// A Runner runs the jobs of one kind. It is safe for concurrent use.
type Runner struct {
	*Kind
	Jobs *Jobs
	// Queue carries the tasks of the jobs. Nil: jobs of this kind are turned
	// off, and [Runner.Resume] cancels those there are.
	Queue    queue.Sender
	Activity *activity.Log
	Metric   *metric.Set
	Log      *slog.Logger
	// Work does a job: see [Jobs.Work].
	Work func(ctx context.Context, id string, r *Run) (func(*Job), error)
	// Then, if not nil, is called for each job that has ended in this process,
	// but for those that were cancelled while they were queued. Its error is one
	// of a queue's handler. A redelivery of the job's task does not call it again.
	Then func(ctx context.Context, id string, j Job) error
}

// Enqueue is [Jobs.Enqueue], and sends the task of a job that it has queued. If
// sending fails, [Runner.Resume] sends it.
func (r *Runner) Enqueue(ctx context.Context, id string, keep func(Job) bool, set func(*Job)) (Job, error) {
	j, queued, err := r.Jobs.Enqueue(ctx, r.Key(id), keep, set)
	if err != nil || !queued {
		return j, err
	}
	return j, r.Send(ctx, id, 0)
}

// Send sends the task of a job.
func (r *Runner) Send(ctx context.Context, id string, delay time.Duration) error {
	return r.Queue.Send(ctx, r.Task(id).Encode(), delay)
}

// Handle claims and runs the job of a task. It implements the outcome of the
// task's message (see [queue.Retry]).
func (r *Runner) Handle(ctx context.Context, id string) error {
	started := r.Jobs.Now()
	var claimed int64
	j, err := r.Jobs.Work(ctx, r.Key(id), func(ctx context.Context, run *Run) (func(*Job), error) {
		claimed = run.Job().Generation
		return r.Work(ctx, id, run)
	})
	if err != nil {
		return outcome(err, r.Jobs.Now())
	}
	if j.Status.Active() || j.Status != Cancelled && j.Generation != claimed {
		return nil // another process holds it, or has ended it
	}
	r.Log.Info(r.Name+" job", "name", j.Name, "src", j.Src, "status", j.Status, "bytes", j.BytesDone, "sha256", j.SHA256,
		"seconds", r.Jobs.Now().Sub(started).Seconds(), "attempt", j.Attempt, "error", j.Error)
	return r.ended(ctx, id, j)
}

// ended reports the end of a job.
func (r *Runner) ended(ctx context.Context, id string, j Job) error {
	r.Metric.JobEnded(r.Name, string(j.Status))
	if e := r.Event(j); e.Kind != "" {
		e.SubjectKind, e.Actor = activity.SubjectImage, activity.System
		r.Activity.Add(ctx, e)
	}
	if r.Then == nil {
		return nil
	}
	return r.Then(ctx, id, j)
}

// GiveUp fails a job whose task has failed too often, unless it has ended or a
// process holds it. It reports whether it did.
func (r *Runner) GiveUp(ctx context.Context, id string) (failed bool, err error) {
	j, failed, err := r.Jobs.Fail(ctx, r.Key(id), "given up after several tries")
	if err != nil || !failed {
		return false, err
	}
	return true, r.ended(ctx, id, j)
}

// Cancel is [Jobs.Cancel].
func (r *Runner) Cancel(ctx context.Context, id string) (Job, error) {
	j, err := r.Jobs.Cancel(ctx, r.Key(id))
	if j.Idle {
		r.Metric.JobEnded(r.Name, string(j.Status))
	}
	return j, err
}

// Resume sends the tasks of the active jobs among jobs, those that a process
// holds for when its lease ends, and removes old ones.
func (r *Runner) Resume(ctx context.Context, jobs []Job) error {
	now := r.Jobs.Now()
	for _, j := range jobs {
		var err error
		switch id := r.ID(j); {
		case j.Status.Active() && r.Queue == nil:
			_, err = r.Cancel(ctx, id)
		case j.Status.Active():
			err = r.Send(ctx, id, j.Held(now))
		case j.Old(now):
			err = r.Jobs.Sweep(ctx, r.Key(id))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
