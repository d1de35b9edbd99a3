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
	// ErrCancelled is the context's cause in a run that was cancelled.
	ErrCancelled = errors.New("cancelled")
	// ErrLost is the context's cause in a run whose lease has lapsed or whose job has
	// another owner.
	ErrLost = errors.New("another process has taken the job over")
	// ErrIdle says that there is no active job to run.
	ErrIdle = errors.New("the job is not queued")
)

// A Kept is an error of work that fails the job but keeps its checkpoint, for its next
// run or for another job.
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
