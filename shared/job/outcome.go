package job

import (
	"errors"
	"fmt"
	"time"

	"imageroot/shared/queue"
	"imageroot/shared/record"
)

// Errors that end or prevent a run.
var (
	// ErrCancelled is the cause of the context of a run that was cancelled.
	ErrCancelled = errors.New("cancelled")
	// ErrLost is the cause of the context of a run whose lease has lapsed, or
	// whose job has another owner.
	ErrLost = errors.New("another process has taken the job over")
	// ErrIdle says that the job is not active, so there is nothing to run.
	ErrIdle = errors.New("the job is not queued")
)

// A BusyError says that another process holds the job, and until when.
type BusyError struct{ Until time.Time }

func (e *BusyError) Error() string { return "another process runs the job" }

// A StoppedError says that the parent's context ended before the work did. The
// job is queued again. Moved reports whether the run has left another checkpoint
// than it found.
type StoppedError struct {
	Moved bool
	Err   error // of the context
}

func (e *StoppedError) Error() string { return "the run was stopped: " + e.Err.Error() }
func (e *StoppedError) Unwrap() error { return e.Err }

// A Kept is an error of work that fails the job and leaves its checkpoint, for
// the next time that it is queued or for another job.
type Kept struct{ Err error }

func (e *Kept) Error() string { return e.Err.Error() }
func (e *Kept) Unwrap() error { return e.Err }

// A Retry is an error of work that is to be tried again after a while.
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

// StoreFailed returns the [Retry] for an error of the store. A record of a newer
// version ([record.ErrNewer]) is not retried.
func StoreFailed(err error) error {
	if errors.Is(err, record.ErrNewer) {
		return err
	}
	return &Retry{After: 5 * time.Second, Err: fmt.Errorf("the store failed, will try again: %w", err)}
}

// outcome translates an error of [Jobs.Work] into one of a queue's handler.
func outcome(err error, now time.Time) error {
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
