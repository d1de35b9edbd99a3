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

// A Kept is an error of work that fails the job and leaves its checkpoint, for
// the next time that it is queued or for another job.
type Kept struct{ Err error }

func (e *Kept) Error() string { return e.Err.Error() }
func (e *Kept) Unwrap() error { return e.Err }

// StoreFailed returns the [queue.Retry] for an error of the store. A record of a
// newer version ([record.ErrNewer]) is not retried.
func StoreFailed(err error) error {
	if errors.Is(err, record.ErrNewer) {
		return err
	}
	return &queue.Retry{After: 5 * time.Second, Err: fmt.Errorf("the store failed, will try again: %w", err)}
}
