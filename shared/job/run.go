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

const (
	// lease is the duration of a lease.
	lease = 30 * time.Second
	// beat is the minimum time between two writes of progress.
	beat = time.Second
	// renew is the interval of renewals without progress.
	renew = lease / 3
	// again is the wait before a retry of writing a run's end.
	again = 200 * time.Millisecond
)

var errHeld = errors.New("another process runs the job")

// A Run is a job that this process holds. It is safe for concurrent use.
type Run struct {
	jobs    *Jobs
	key     store.Key
	claimed Job
	job     Job // the job that the next write stores
	tag     string

	saves chan chan error // each receives the error of the next write

	mu       sync.Mutex
	progress *progress // not yet in job; nil: none
}

type progress struct {
	done, total int64
	checkpoint  json.RawMessage
}

// Job returns the job at the time of the claim.
func (r *Run) Job() Job { return r.claimed }

// Report sets the progress of the run in bytes. A negative total means unknown. A
// checkpoint that is not nil replaces the last one. Report does not block. The progress
// is written about a second later.
func (r *Run) Report(done, total int64, checkpoint json.RawMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if checkpoint == nil && r.progress != nil {
		checkpoint = r.progress.checkpoint
	}
	r.progress = &progress{done, total, checkpoint}
}

// Save is [Run.Report], but when it returns nil, the progress is durable and the lease
// renewed. Its errors are [ErrLost], [ErrCancelled], the cause of ctx, or a
// [queue.Retry] for an error of the store. Work must return them unchanged.
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
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrLost) || errors.Is(err, ErrCancelled) {
			return err
		}
		return StoreFailed(err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Publish writes the result of a run to the record at key. change edits the existing
// record, or a zero one. size is the number of bytes that work has read. Publish is
// fenced: it reads the tag, renews the lease, then swaps on that tag. A worker whose
// lease has lapsed fails at one of the last two. Errors are those of [Run.Save] and of
// change.
func Publish[T any, P record.Pointer[T]](ctx context.Context, r *Run, key store.Key, size int64, change func(v P) error) error {
	v, tag, err := record.Read[T](ctx, r.jobs.Records, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return StoreFailed(err)
	}
	if err := r.Save(ctx, size, size, nil); err != nil {
		return err
	}
	if err := change(&v); err != nil {
		return err
	}
	if _, err := record.Swap[T, P](ctx, r.jobs.Records, key, &v, tag); err != nil {
		return StoreFailed(err)
	}
	return nil
}

// Work claims the job at key and runs work, whose context ends when the job is
// cancelled or lost. The result of work decides the status of the job:
//
//   - nil: completed, and the function that work returned edits the job;
//   - any error after the end of ctx: queued again, with the last checkpoint;
//   - a [queue.Retry]: queued again, or failed after a day of such runs that were not
//     Free and left the checkpoint unchanged;
//   - any other error: failed with the error's text, and without the checkpoint unless
//     the error is a [Kept].
//
// It returns the job after the run. A failed job is not an error. The error is
// [ErrIdle], a [queue.Retry], or an error of the store. The Retry is Held if another
// process holds the job. Otherwise it is that of work, or says that ctx has ended, and
// is Free if the run has changed the checkpoint.
func (j *Jobs) Work(ctx context.Context, key store.Key, work func(context.Context, *Run) (func(*Job), error)) (Job, error) {
	r := &Run{jobs: j, key: key, saves: make(chan chan error)}
	// The store may carry out a claim that the end of ctx interrupts. No process could then
	// run the job until the lease ends.
	if err := r.claim(context.WithoutCancel(ctx)); err != nil {
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
		case job.Held(now) > 0: // possibly by another goroutine of this process
			return &queue.Retry{After: max(job.Held(now), time.Second), Held: true, Err: errHeld}
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

// mine reports whether this run still holds cur. Every change of owner or status by
// another run changes the generation.
func (r *Run) mine(cur Job) bool {
	return cur.Status == Running && cur.Owner == r.jobs.Owner && cur.Generation == r.claimed.Generation
}

// beat writes progress and renews the lease until ctx ends. It stops the run if the job
// is lost or cancelled, or the lease has lapsed.
func (r *Run) beat(ctx context.Context, stop context.CancelCauseFunc) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	held := r.job.LeaseUntil // of the last write known to have succeeded
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
			err = r.reload(ctx) // nothing to write, but the job may be cancelled
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
			// The lease has lapsed, so another process may have the job.
			stop(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
	}
}

// renew writes the job. It gives up at the end of the lease, since work continues
// meanwhile.
func (r *Run) renew(ctx context.Context, left time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, max(left, beat))
	defer cancel()
	tag, err := record.Swap(ctx, r.jobs.Records, r.key, &r.job, r.tag)
	if err == nil {
		r.tag = tag
		return nil
	}
	if errors.Is(err, store.ErrConflict) {
		// Another process has written, or this run has and the response was lost.
		err = errors.Join(r.reload(ctx), err)
	}
	return err
}

// reload reads the tag of the job. The error is ErrCancelled or ErrLost if this run no
// longer holds the job.
func (r *Run) reload(ctx context.Context) error {
	cur, tag, err := record.Read[Job](ctx, r.jobs.Records, r.key)
	switch {
	case errors.Is(err, store.ErrNotFound): // or damaged
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

// take moves the latest report into the job and reports whether there was one.
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

// end writes the outcome of the run. It takes up to 3 s, even after the end of parent.
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
	retry, retries := errors.AsType[*queue.Retry](err)
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
		result = &queue.Retry{Free: r.moved(), Err: fmt.Errorf("the run was stopped: %w", shutdown)}
	case retries && r.retries(retry, failing, now):
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
			return cur, nil // another process has it
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

// retries reports whether to queue the job again after retry, and sets Free if the run
// made progress. failing is the job's FailingSince before this run.
func (r *Run) retries(retry *queue.Retry, failing, now time.Time) bool {
	retry.Free = retry.Free || r.moved()
	if retry.Free {
		return true
	}
	if failing.IsZero() {
		failing = now
	}
	r.job.FailingSince = failing
	return now.Sub(failing) <= maxFailing
}

// moved reports whether the run has changed the checkpoint.
func (r *Run) moved() bool { return !bytes.Equal(r.job.Checkpoint, r.claimed.Checkpoint) }

// write replaces the job if this run still holds it, and returns the current job.
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
