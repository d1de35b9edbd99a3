// Package job keeps the record of a piece of work that takes long: one hash
// or one fetch. The record is the only state, so any process can see a job,
// cancel it, and go on with it when its owner is gone.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"imageroot/shared/record"
	"imageroot/shared/store"
)

// A Status says where a job is.
type Status string

// The statuses. The last three are final until the job is queued again.
const (
	Queued    Status = "queued"
	Running   Status = "running"
	Completed Status = "completed"
	Cancelled Status = "cancelled"
	Failed    Status = "failed"
)

// Active reports whether the job is yet to end.
func (s Status) Active() bool { return s == Queued || s == Running }

// A Job is the record. Times are UTC; sizes are bytes.
type Job struct {
	record.Meta
	Name       string     `json:"name"`
	Ref        string     `json:"ref,omitempty"`
	Src        string     `json:"src,omitempty"`
	Status     Status     `json:"status"`
	BytesTotal *int64     `json:"bytes_total"`
	BytesDone  int64      `json:"bytes_done"`
	SHA256     string     `json:"sha256,omitempty"`
	QueuedAt   time.Time  `json:"queued_at"`
	StartedAt  *time.Time `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at"`
	Error      string     `json:"error,omitempty"`
	Attempt    int        `json:"attempt"`
	// Actor and SourceIP are who asked for it, for the activity log.
	Actor    string `json:"actor,omitempty"`
	SourceIP string `json:"source_ip,omitempty"`

	// Generation grows with every change of owner and never resets, so that
	// an owner that slept can tell that the job is no longer its own.
	Generation int64     `json:"generation"`
	Owner      string    `json:"owner,omitempty"`
	LeaseUntil time.Time `json:"lease_until,omitzero"`
	// Version is the version of the object that a hash job reads.
	Version *store.Version `json:"version,omitempty"`
	// Checkpoint is what the worker needs to go on where it was.
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`
}

// Errors that end or prevent a run.
var (
	// ErrCancelled is the cause of the context of a run that was cancelled.
	ErrCancelled = errors.New("cancelled")
	// ErrLost is the cause of the context of a run whose lease another
	// process has taken over.
	ErrLost = errors.New("another process has taken the job over")
	// ErrIdle: there is nothing to run.
	ErrIdle = errors.New("the job is not queued")
)

// A BusyError says that another process holds the job, and for how long.
type BusyError struct{ Until time.Time }

func (e *BusyError) Error() string { return "another process runs the job" }

const (
	// lease is how long a job stays its owner's without a sign of life.
	lease = 30 * time.Second
	// beat is how often progress is written, at the most.
	beat = time.Second
	// renew is how often the lease is written when nothing moves.
	renew = lease / 3
)

// Jobs are the jobs of one process over the catalog root.
type Jobs struct {
	Records store.Records
	Owner   string // tells processes apart
	Now     func() time.Time
}

// Enqueue makes the job at key queued, with what set fills in, unless it is
// queued or running already or keep says that the finished one will do. It
// reports whether it did.
func (j *Jobs) Enqueue(ctx context.Context, key string, keep func(Job) bool, set func(*Job)) (Job, bool, error) {
	queued := false
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		queued = false
		if exists && (job.Status.Active() || keep(*job)) {
			return record.ErrKeep
		}
		queued = true
		*job = Job{Meta: job.Meta, Generation: job.Generation + 1, Status: Queued, QueuedAt: j.Now().UTC()}
		set(job)
		return nil
	})
	return job, queued, err
}

// Cancel ends a job that is queued or running. It returns store.ErrNotFound
// where there is none. A job that has ended stays as it is.
func (j *Jobs) Cancel(ctx context.Context, key string) (Job, error) {
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		if !exists {
			return store.ErrNotFound
		}
		if !job.Status.Active() {
			return record.ErrKeep
		}
		now := j.Now().UTC()
		job.Status, job.FinishedAt = Cancelled, &now
		job.Generation++
		job.Owner, job.Checkpoint = "", nil
		return nil
	})
	return job, err
}

// A Run is a job while this process holds it.
type Run struct {
	jobs *Jobs
	key  string
	job  Job
	tag  string

	progress chan progress // holds the newest only
}

type progress struct {
	done, total int64
	checkpoint  json.RawMessage
}

// Job is the job as it was claimed.
func (r *Run) Job() Job { return r.job }

// Report says how far the run is. Total is negative where it is not known.
// Checkpoint, where not nil, is what a later run can go on from; it is written
// within about a second.
func (r *Run) Report(done, total int64, checkpoint json.RawMessage) {
	p := progress{done: done, total: total, checkpoint: checkpoint}
	select {
	case <-r.progress:
	default:
	}
	select {
	case r.progress <- p:
	default: // another goroutine reported meanwhile; its report will do
	}
}

// Work claims the job at key and runs work, whose context ends when the job
// is cancelled or lost. It writes how the job ended:
//
//   - nil: completed, with what work's last changes to the job are;
//   - the parent's context ended: queued again, with the last checkpoint;
//   - a [Retry]: queued again;
//   - any other error: failed, with its text.
//
// It returns the job as it stands afterwards. The error is [ErrIdle], a
// [*BusyError], work's [Retry], or one of the store's; a job that failed is
// no error.
func (j *Jobs) Work(ctx context.Context, key string, work func(context.Context, *Run) (func(*Job), error)) (Job, error) {
	r := &Run{jobs: j, key: key, progress: make(chan progress, 1)}
	if err := r.claim(ctx); err != nil {
		return r.job, err
	}
	wctx, stop := context.WithCancelCause(ctx)
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		r.beat(wctx, stop)
	}()
	finish, err := work(wctx, r)
	stop(nil)
	<-beating
	return r.end(ctx, context.Cause(wctx), finish, err)
}

func (r *Run) claim(ctx context.Context) error {
	var err error
	r.job, r.tag, err = record.Change(ctx, r.jobs.Records, r.key, func(job *Job, exists bool) error {
		now := r.jobs.Now().UTC()
		switch {
		case !exists || !job.Status.Active():
			return ErrIdle
		case job.Status == Running && job.Owner != r.jobs.Owner && now.Before(job.LeaseUntil):
			return &BusyError{job.LeaseUntil}
		case job.Status == Running && job.Owner == r.jobs.Owner && now.Before(job.LeaseUntil):
			return &BusyError{job.LeaseUntil} // this process, in another goroutine
		}
		job.Status, job.Owner, job.LeaseUntil = Running, r.jobs.Owner, now.Add(lease)
		job.Generation++
		job.Attempt++
		job.Error = ""
		if job.StartedAt == nil {
			job.StartedAt = &now
		}
		return nil
	})
	return err
}

// beat writes progress and renews the lease until ctx ends, and stops the run
// when a swap is refused because somebody else has changed the job.
func (r *Run) beat(ctx context.Context, stop context.CancelCauseFunc) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	written := r.jobs.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := r.jobs.Now()
		moved := r.take()
		if !moved && now.Sub(written) < renew {
			// Nothing to write; still learn of a cancel.
			cur, tag, err := record.Read[Job](ctx, r.jobs.Records, r.key)
			if err == nil && tag != r.tag {
				stop(r.lostTo(cur))
				return
			}
			continue
		}
		r.job.LeaseUntil = now.UTC().Add(lease)
		tag, err := record.Swap(ctx, r.jobs.Records, r.key, &r.job, r.tag)
		switch {
		case err == nil:
			r.tag, written = tag, now
		case errors.Is(err, store.ErrConflict):
			cur, _, err := record.Read[Job](ctx, r.jobs.Records, r.key)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				continue
			}
			stop(r.lostTo(cur))
			return
		case now.After(written.Add(lease)):
			// The store has been out of reach for so long that somebody else
			// may have the job by now.
			stop(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
	}
}

func (r *Run) lostTo(cur Job) error {
	if cur.Status == Cancelled {
		return ErrCancelled
	}
	return ErrLost
}

// take moves the newest report into the job and says whether there was one.
func (r *Run) take() bool {
	select {
	case p := <-r.progress:
		r.job.BytesDone = p.done
		r.job.BytesTotal = nil
		if p.total >= 0 {
			r.job.BytesTotal = &p.total
		}
		if p.checkpoint != nil {
			r.job.Checkpoint = p.checkpoint
		}
		return true
	default:
		return false
	}
}

// A Retry is an error of a run that is to be tried again after a while.
type Retry struct {
	After time.Duration
	Err   error
}

func (e *Retry) Error() string { return e.Err.Error() }
func (e *Retry) Unwrap() error { return e.Err }

// end writes how the run ended. It gets a few seconds even where ctx is over.
func (r *Run) end(ctx context.Context, cause error, finish func(*Job), err error) (Job, error) {
	if errors.Is(cause, ErrCancelled) || errors.Is(cause, ErrLost) {
		cur, _, rerr := record.Read[Job](context.WithoutCancel(ctx), r.jobs.Records, r.key)
		return cur, rerr
	}
	shutdown := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	r.take()
	now := r.jobs.Now().UTC()
	r.job.Owner, r.job.LeaseUntil = "", time.Time{}
	var retry *Retry
	var result error
	switch {
	case err == nil:
		r.job.Status, r.job.FinishedAt, r.job.Checkpoint = Completed, &now, nil
		finish(&r.job)
	case shutdown:
		r.job.Status = Queued
		result = ctx.Err()
	case errors.As(err, &retry):
		r.job.Status, r.job.Error = Queued, err.Error()
		result = err
	default:
		r.job.Status, r.job.FinishedAt, r.job.Error, r.job.Checkpoint = Failed, &now, err.Error(), nil
	}
	if _, serr := record.Swap(ctx, r.jobs.Records, r.key, &r.job, r.tag); serr != nil {
		if errors.Is(serr, store.ErrConflict) {
			cur, _, rerr := record.Read[Job](ctx, r.jobs.Records, r.key)
			return cur, rerr
		}
		return r.job, serr
	}
	return r.job, result
}
