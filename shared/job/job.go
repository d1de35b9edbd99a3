// Package job keeps the record of a piece of work that takes long: one hash
// or one fetch. The record is the only state, so any process can see a job,
// cancel it, and go on with it when its owner is gone.
package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"imageroot/shared/queue"
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

// Check is the stage of a job that looks whether an image is whole, after
// another one has hashed it.
const Check = "check"

// A Job is the record. Times are UTC; sizes are bytes.
type Job struct {
	record.Meta
	Name       string     `json:"name"`
	Stage      string     `json:"stage,omitempty"` // [Check], or empty
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

	// Reach names the settings for sources of the process that queued a fetch
	// job (see source.Client.Reach); empty: not known.
	Reach string `json:"reach,omitempty"`

	// FailingSince is when the first of the runs failed that ended in a [Retry]
	// and got no further; zero if the last run did not.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Generation grows with every change of owner and never resets, so that
	// an owner that slept can tell that the job is no longer its own.
	Generation int64     `json:"generation"`
	Owner      string    `json:"owner,omitempty"`
	LeaseUntil time.Time `json:"lease_until,omitzero"`
	// Idle is no part of the record: see [Jobs.Cancel].
	Idle bool `json:"-"`
	// Version is the version of the object that a hash job reads.
	Version *store.Version `json:"version,omitempty"`
	// Checkpoint is what the worker needs to go on where it was. A job that
	// failed with [Kept] has one too.
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`
}

// Validate implements record.Validator.
func (j *Job) Validate() error {
	if !j.Status.Active() && j.Status != Completed && j.Status != Cancelled && j.Status != Failed {
		return fmt.Errorf("%q is not the status of a job", j.Status)
	}
	return nil
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

// A StoppedError says that the parent's context ended before the work did. The
// job is queued again. Where Moved is false there is no newer checkpoint than
// before: the run was for nothing.
type StoppedError struct {
	Moved bool
	Err   error // of the context
}

func (e *StoppedError) Error() string { return "the run was stopped: " + e.Err.Error() }
func (e *StoppedError) Unwrap() error { return e.Err }

const (
	// lease is how long a job stays its owner's without a sign of life.
	lease = 30 * time.Second
	// beat is how often progress is written, at the most.
	beat = time.Second
	// renew is how often the lease is written when nothing moves.
	renew = lease / 3
	// maxFailing is how long a job is retried that gets no further, and how long
	// it then rests.
	maxFailing = 24 * time.Hour
	// again is how long to wait before the end of a run is written again.
	again = 200 * time.Millisecond
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
		*job = Job{Meta: job.Meta, Generation: job.Generation + 1, Status: Queued, QueuedAt: j.Now().UTC(), Checkpoint: job.Checkpoint}
		set(job)
		return nil
	})
	return job, queued, err
}

// Cancel ends a job that is queued or running. It returns store.ErrNotFound
// where there is none. A job that has ended stays as it is. Idle is set in
// the job that is returned where it was queued: nobody else will tell of its
// end then.
func (j *Jobs) Cancel(ctx context.Context, key string) (Job, error) {
	idle := false
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		idle = false
		if !exists {
			return store.ErrNotFound
		}
		if !job.Status.Active() {
			return record.ErrKeep
		}
		now := j.Now().UTC()
		idle = job.Status == Queued
		job.Status, job.FinishedAt = Cancelled, &now
		job.Generation++
		job.Owner, job.Checkpoint = "", nil
		return nil
	})
	job.Idle = idle
	return job, err
}

// Complete ends a job that is queued or running because what it was for is
// done, by somebody else. A job that has ended stays as it is.
func (j *Jobs) Complete(ctx context.Context, key string, set func(*Job)) error {
	_, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		if !exists || !job.Status.Active() {
			return record.ErrKeep
		}
		now := j.Now().UTC()
		job.Status, job.FinishedAt = Completed, &now
		job.Generation++
		job.Owner, job.Checkpoint, job.Error = "", nil, ""
		set(job)
		return nil
	})
	return err
}

// Fail ends a job as failed that nobody will run any more. One that another
// process holds, and one that has ended, stays as it is. The reason follows
// what the last run left as the job's error. It reports whether it did.
func (j *Jobs) Fail(ctx context.Context, key, reason string) (Job, bool, error) {
	failed := false
	job, _, err := record.Change(ctx, j.Records, key, func(job *Job, exists bool) error {
		failed = false
		now := j.Now().UTC()
		if !exists || !job.Status.Active() || job.Held(now) > 0 {
			return record.ErrKeep
		}
		failed = true
		if job.Error == "" {
			job.Error = reason
		} else {
			job.Error += " (" + reason + ")"
		}
		job.Status, job.FinishedAt = Failed, &now
		job.Generation++
		job.Owner, job.Checkpoint = "", nil
		return nil
	})
	return job, failed, err
}

// Recovers reports whether the job failed at least a day ago because its runs
// ended in a [Retry] each: what they failed over, such as the store, may work by
// now, so the job is to be queued again.
func (j Job) Recovers(now time.Time) bool {
	return j.Status == Failed && !j.FailingSince.IsZero() && j.FinishedAt != nil && now.Sub(*j.FinishedAt) > maxFailing
}

// keepEnded is how long a job that has ended is shown.
const keepEnded = 7 * 24 * time.Hour

// Old reports whether the job ended so long ago that it is no longer shown.
func (j Job) Old(now time.Time) bool {
	return !j.Status.Active() && j.FinishedAt != nil && now.Sub(*j.FinishedAt) > keepEnded
}

// Held is how long the job stays its owner's if no sign of life comes any
// more; 0 where anybody may run it. Who finds an active job, without knowing
// whether its owner lives, is to try it then: after a kill and a new start at
// once, nobody else will.
func (j Job) Held(now time.Time) time.Duration {
	if j.Status != Running {
		return 0
	}
	return max(0, j.LeaseUntil.Sub(now))
}

// Sweep removes the job at key if it is old.
func (j *Jobs) Sweep(ctx context.Context, key string) error {
	job, _, err := record.Read[Job](ctx, j.Records, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	case !job.Old(j.Now()):
		return nil
	}
	return j.Records.DeleteRecord(ctx, key)
}

// A Run is a job while this process holds it.
type Run struct {
	jobs    *Jobs
	key     string
	claimed Job
	job     Job // as it is to be written next
	tag     string

	saves chan chan error // who waits for the next write, to be told of it

	mu       sync.Mutex
	progress *progress // not yet in job; nil: none
}

type progress struct {
	done, total int64
	checkpoint  json.RawMessage
}

// Job is the job as it was claimed.
func (r *Run) Job() Job { return r.claimed }

// Report says how far the run is. Total is negative where it is not known.
// Checkpoint, where not nil, is what a later run can go on from; it is written
// within about a second.
func (r *Run) Report(done, total int64, checkpoint json.RawMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if checkpoint == nil && r.progress != nil {
		checkpoint = r.progress.checkpoint
	}
	r.progress = &progress{done, total, checkpoint}
}

// Save is [Run.Report] for a checkpoint that must be written before the work
// goes on. It returns an error where it was not.
func (r *Run) Save(ctx context.Context, done, total int64, checkpoint json.RawMessage) error {
	r.Report(done, total, checkpoint)
	written := make(chan error, 1)
	select {
	case r.saves <- written:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Work claims the job at key and runs work, whose context ends when the job
// is cancelled or lost. It writes how the job ended:
//
//   - nil: completed, with what work's last changes to the job are;
//   - the parent's context ended: queued again, with the last checkpoint;
//   - a [Retry]: queued again, or failed after a day of runs that ended in one,
//     were not free and got no further;
//   - any other error: failed, with its text, and without the checkpoint unless
//     it is a [Kept].
//
// It returns the job as it stands afterwards. The error is [ErrIdle], a
// [*BusyError], work's [Retry], a [*StoppedError], or one of the store's; a job
// that failed is no error.
func (j *Jobs) Work(ctx context.Context, key string, work func(context.Context, *Run) (func(*Job), error)) (Job, error) {
	r := &Run{jobs: j, key: key, saves: make(chan chan error)}
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
		case job.Held(now) > 0: // perhaps by this process, in another goroutine
			return &BusyError{job.LeaseUntil}
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
	r.claimed = r.job
	return err
}

// mine reports whether cur is still what this run has claimed. Everybody else
// who changes the owner or the status of a job changes its generation.
func (r *Run) mine(cur Job) bool {
	return cur.Status == Running && cur.Owner == r.jobs.Owner && cur.Generation == r.claimed.Generation
}

// beat writes progress and renews the lease until ctx ends, and stops the run
// when somebody else has changed the job, or may have by now.
func (r *Run) beat(ctx context.Context, stop context.CancelCauseFunc) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	held := r.job.LeaseUntil // as the record has it for sure
	unwritten := false
	for {
		var saved chan error
		select {
		case <-ctx.Done():
			return
		case saved = <-r.saves:
		case <-tick.C:
		}
		unwritten = r.take() || unwritten || saved != nil
		now := r.jobs.Now().UTC()
		var err error
		if !unwritten && held.Sub(now) > lease-renew {
			// Nothing to write; still learn of a cancel.
			err = r.look(ctx)
		} else {
			r.job.LeaseUntil = now.Add(lease)
			err = r.renew(ctx, held.Sub(now))
			if err == nil {
				held, unwritten = r.job.LeaseUntil, false
			}
		}
		if saved != nil {
			saved <- err
		}
		switch {
		case errors.Is(err, ErrCancelled), errors.Is(err, ErrLost):
			stop(err)
			return
		case err != nil && !r.jobs.Now().Before(held):
			// The store has been out of reach for so long that somebody else
			// may have the job by now.
			stop(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
	}
}

// renew writes the job as it is now. It gives up when the lease ends, since
// work goes on meanwhile.
func (r *Run) renew(ctx context.Context, left time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, max(left, beat))
	defer cancel()
	tag, err := record.Swap(ctx, r.jobs.Records, r.key, &r.job, r.tag)
	if err == nil {
		r.tag = tag
		return nil
	}
	if errors.Is(err, store.ErrConflict) {
		// By somebody else, or by a write of ours whose answer was lost.
		err = errors.Join(r.look(ctx), err)
	}
	return err
}

// look reads the job. The error is ErrCancelled or ErrLost where it is no
// longer this run's.
func (r *Run) look(ctx context.Context) error {
	cur, tag, err := record.Read[Job](ctx, r.jobs.Records, r.key)
	switch {
	case errors.Is(err, store.ErrNotFound): // or it is damaged
		return ErrLost
	case err != nil:
		return err
	case !r.mine(cur):
		return r.lostTo(cur)
	}
	r.tag = tag
	return nil
}

func (r *Run) lostTo(cur Job) error {
	if cur.Status == Cancelled {
		return ErrCancelled
	}
	return ErrLost
}

// take moves the newest report into the job and says whether there was one.
func (r *Run) take() bool {
	r.mu.Lock()
	p := r.progress
	r.progress = nil
	r.mu.Unlock()
	if p == nil {
		return false
	}
	r.job.BytesDone, r.job.BytesTotal = p.done, nil
	if p.total >= 0 {
		r.job.BytesTotal = &p.total
	}
	if p.checkpoint != nil {
		r.job.Checkpoint = p.checkpoint
	}
	return true
}

// A Kept is an error that fails the job and leaves its checkpoint, for the
// next time that it is queued or for another job.
type Kept struct{ Err error }

func (e *Kept) Error() string { return e.Err.Error() }
func (e *Kept) Unwrap() error { return e.Err }

// A Retry is an error of a run that is to be tried again after a while.
type Retry struct {
	After time.Duration
	Err   error
	// Free says that the try is no failure (see [queue.Retry]). Work that has a
	// limit of its own sets it, and so does [Jobs.Work] if the run has left
	// another checkpoint.
	Free bool
}

func (e *Retry) Error() string { return e.Err.Error() }
func (e *Retry) Unwrap() error { return e.Err }

// Redeliver returns what the handler of a queue's message returns for an error
// of [Jobs.Work]: nil if there is nothing to run, else a [queue.Retry].
func Redeliver(err error, now time.Time) error {
	if errors.Is(err, ErrIdle) {
		return nil
	}
	if busy, ok := errors.AsType[*BusyError](err); ok {
		return &queue.Retry{After: max(busy.Until.Sub(now), time.Second), Held: true, Err: err}
	}
	if stopped, ok := errors.AsType[*StoppedError](err); ok {
		return &queue.Retry{Free: stopped.Moved, Err: err}
	}
	if retry, ok := errors.AsType[*Retry](err); ok {
		return &queue.Retry{After: retry.After, Free: retry.Free, Err: err}
	}
	return err
}

// end writes how the run ended. It gets a few seconds even where parent is over.
func (r *Run) end(parent context.Context, cause error, finish func(*Job), err error) (Job, error) {
	if errors.Is(cause, ErrCancelled) || errors.Is(cause, ErrLost) {
		cur, _, rerr := record.Read[Job](context.WithoutCancel(parent), r.jobs.Records, r.key)
		return cur, rerr
	}
	shutdown := parent.Err()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), 3*time.Second)
	defer cancel()
	r.take()
	now := r.jobs.Now().UTC()
	failing := r.job.FailingSince
	r.job.Owner, r.job.LeaseUntil, r.job.FailingSince = "", time.Time{}, time.Time{}
	var retry *Retry
	var result error
	switch {
	case err == nil:
		r.job.Status, r.job.FinishedAt, r.job.Checkpoint = Completed, &now, nil
		finish(&r.job)
	case shutdown != nil:
		r.job.Status = Queued
		if !r.moved() {
			r.job.FailingSince = failing
		}
		result = &StoppedError{r.moved(), shutdown}
	case errors.As(err, &retry):
		retry.Free = retry.Free || r.moved()
		if !retry.Free {
			r.job.FailingSince = failing
			if failing.IsZero() {
				r.job.FailingSince = now
			}
			if now.Sub(r.job.FailingSince) > maxFailing {
				r.job.Status, r.job.FinishedAt, r.job.Error, r.job.Checkpoint = Failed, &now, err.Error(), nil
				break
			}
		}
		r.job.Status, r.job.Error = Queued, err.Error()
		result = err
	default:
		r.job.Status, r.job.FinishedAt, r.job.Error = Failed, &now, err.Error()
		if _, kept := errors.AsType[*Kept](err); !kept {
			r.job.Checkpoint = nil
		}
	}
	for {
		cur, serr := r.write(ctx)
		switch {
		case errors.Is(serr, store.ErrNotFound):
			return r.job, serr
		case serr == nil && cur.Generation != r.claimed.Generation:
			return cur, nil // somebody else has it by now
		case serr == nil:
			return cur, result
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return r.job, serr
		}
	}
}

// moved reports whether there is a newer checkpoint than when the run began.
func (r *Run) moved() bool { return !bytes.Equal(r.job.Checkpoint, r.claimed.Checkpoint) }

// write puts the job in place of what this run has claimed, if that is still
// there, and returns what is there then.
func (r *Run) write(ctx context.Context) (Job, error) {
	cur, _, err := record.Change(ctx, r.jobs.Records, r.key, func(job *Job, exists bool) error {
		if !exists {
			return store.ErrNotFound
		}
		if !r.mine(*job) {
			return record.ErrKeep
		}
		meta := job.Meta
		*job = r.job
		job.Meta = meta
		return nil
	})
	return cur, err
}
