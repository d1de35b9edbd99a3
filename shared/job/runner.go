package job

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/queue"
)

// Work does the job with this ID: see [Jobs.Work].
type Work func(ctx context.Context, id string, r *Run) (func(*Job), error)

// A Runner runs the jobs of one kind. It is safe for concurrent use.
type Runner struct {
	*Kind
	Jobs *Jobs
	Work Work
	// Begin, if not nil, is called before a job is claimed, and may block. It returns
	// the work to do instead of Work, and a function to call afterwards.
	Begin func(ctx context.Context) (work Work, end func(), err error)
	// Then, if not nil, is called once for each job that ends during a run in this
	// process, or that this process gives up. Its error is that of a [queue.Handler],
	// but a redelivery does not call it again.
	Then func(ctx context.Context, id string, j Job) error
	// Drop, if not nil, frees what the checkpoint of a cancelled or given-up job holds.
	// A run that still has the job may take seconds to stop.
	Drop func(ctx context.Context, j Job, checkpoint json.RawMessage)
}

// Off reports whether jobs of this kind are turned off.
func (r *Runner) Off() bool { return r.Jobs.Queues[r.Kind] == nil }

// Enqueue is [Jobs.Enqueue], and sends the task if it has queued the job. If sending
// fails, it returns the error, and [Runners.Resume] sends the task later.
func (r *Runner) Enqueue(ctx context.Context, id string, keep func(Job) bool, set func(*Job)) (Job, error) {
	j, queued, err := r.Jobs.Enqueue(ctx, r.Key(id), keep, set)
	if err != nil || !queued {
		return j, err
	}
	return j, r.Send(ctx, id, 0)
}

// Send sends the task of a job to its queue: see [queue.Sender].
func (r *Runner) Send(ctx context.Context, id string, delay time.Duration) error {
	return r.Jobs.Queues[r.Kind].Send(ctx, r.Task(id).Encode(), delay)
}

// run claims and runs the job of a task. Its error is that of a [queue.Handler].
func (r *Runner) run(ctx context.Context, id string) error {
	if r.Off() {
		return nil
	}
	work := r.Work
	if r.Begin != nil {
		begun, end, err := r.Begin(ctx)
		if err != nil {
			return err
		}
		defer end()
		work = begun
	}
	started := r.Jobs.Now()
	var claimed int64
	j, err := r.Jobs.Work(ctx, r.Key(id), func(ctx context.Context, run *Run) (func(*Job), error) {
		claimed = run.Job().Generation
		return work(ctx, id, run)
	})
	switch {
	case errors.Is(err, ErrIdle):
		return nil
	case err != nil:
		return err
	case j.Status.Active() || j.Status != Cancelled && j.Generation != claimed:
		return nil // another process holds it or has ended it
	}
	r.Jobs.Log.Info(r.Name+" job", "name", j.Name, "src", j.Src, "status", j.Status, "bytes", j.BytesDone, "sha256", j.SHA256,
		"seconds", r.Jobs.Now().Sub(started).Seconds(), "attempt", j.Attempt, "error", j.Error)
	return r.ended(ctx, id, j)
}

// ended reports the end of a job.
func (r *Runner) ended(ctx context.Context, id string, j Job) error {
	r.Jobs.Metric.JobEnded(r.Name, string(j.Status))
	if e := r.Event(j); e.Kind != "" {
		e.SubjectKind, e.Actor = activity.SubjectImage, cmp.Or(e.Actor, activity.System)
		r.Jobs.Activity.Add(ctx, e)
	}
	if r.Then == nil {
		return nil
	}
	return r.Then(ctx, id, j)
}

// giveUp fails a job whose task has failed too often, unless the job has ended or a
// process holds it.
func (r *Runner) giveUp(ctx context.Context, id string) error {
	j, failed, err := r.Jobs.Fail(ctx, r.Key(id), "given up after several tries")
	if err != nil || !failed {
		return err
	}
	r.drop(ctx, j)
	return r.ended(ctx, id, j)
}

// Cancel is [Jobs.Cancel], and frees what the job's checkpoint holds.
func (r *Runner) Cancel(ctx context.Context, id string) (Job, error) {
	j, err := r.Jobs.Cancel(ctx, r.Key(id))
	if j.before != nil {
		if j.before.Status == Queued { // no run reports its end
			r.Jobs.Metric.JobEnded(r.Name, string(j.Status))
		}
		r.drop(ctx, j)
	}
	return j, err
}

func (r *Runner) drop(ctx context.Context, j Job) {
	if r.Drop != nil && j.before.Checkpoint != nil {
		r.Drop(ctx, j, j.before.Checkpoint)
	}
}

// Runners has the runners of a function, one for each kind of its jobs.
type Runners []*Runner

// Of returns the runner of jobs of kind k. It panics if the function has none.
func (rs Runners) Of(k *Kind) *Runner {
	for _, r := range rs {
		if r.Kind == k {
			return r
		}
	}
	panic("no runner of " + k.Name + " jobs")
}

// Kinds returns the kinds of the function's jobs.
func (rs Runners) Kinds() []*Kind {
	kinds := make([]*Kind, len(rs))
	for i, r := range rs {
		kinds[i] = r.Kind
	}
	return kinds
}

// of returns the runner and the ID of a task's job, or nil if the task is not for a job
// of this function.
func (rs Runners) of(task queue.Task) (*Runner, string) {
	if t, ok := task.(queue.RunJob); ok {
		for _, r := range rs {
			if r.Member == t.Member {
				return r, t.ID
			}
		}
	}
	return nil, ""
}

// Handle runs the job of a task. Its error is that of a [queue.Handler].
func (rs Runners) Handle(ctx context.Context, task queue.Task) error {
	r, id := rs.of(task)
	if r == nil {
		return fmt.Errorf("not a task of this function: %s", task.Encode())
	}
	return r.run(ctx, id)
}

// GiveUp fails the job of a message that has failed too often, unless the job has ended
// or a process holds it: see sqsqueue.Config.
func (rs Runners) GiveUp(ctx context.Context, body []byte) error {
	task, _ := queue.Decode(body)
	r, id := rs.of(task)
	if r == nil {
		return nil // not a task of a job
	}
	return r.giveUp(ctx, id)
}

// Resume sends the tasks of active jobs again, delayed until the end of the lease if a
// process holds the job. It cancels active jobs of kinds that are turned off, and
// removes old jobs.
func (rs Runners) Resume(ctx context.Context, list func(context.Context, ...*Kind) ([]Job, error)) error {
	for _, r := range rs {
		jobs, err := list(ctx, r.Kind)
		if err == nil {
			err = r.resume(ctx, jobs)
		}
		if err != nil {
			return fmt.Errorf("resume %s jobs: %w", r.Name, err)
		}
	}
	return nil
}

func (r *Runner) resume(ctx context.Context, jobs []Job) error {
	now := r.Jobs.Now()
	for _, j := range jobs {
		var err error
		switch id := r.ID(j); {
		case j.Status.Active() && r.Off():
			_, err = r.Cancel(ctx, id)
		case j.Status.Active():
			err = r.Send(ctx, id, j.Held(now))
		case j.Old(now):
			err = r.Jobs.sweep(ctx, r.Key(id))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
