// Package queue carries tasks to the functions that handle them. A task is a few bytes
// of JSON that name an object, a job or an upload. It is delivered at least once,
// perhaps late and out of order, so its handler reads the current state.
package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// A Sender puts messages on a queue. When Send returns nil, the queue has the message,
// durably if the queue is durable. The message is not delivered before delay has
// passed, which a queue may cap at 15 minutes. Send is safe for concurrent use.
type Sender interface {
	Send(ctx context.Context, body []byte, delay time.Duration) error
}

// A Handler handles one message. Returning nil acknowledges the message. For an error,
// see [Retry]. A panic counts as a failure. If ctx has ended, a message whose try
// counts as a failure is redelivered at once.
type Handler func(ctx context.Context, body []byte) error

// Safely calls h. If h panics, it returns an error with the stack, so that no message
// can crash the process on each delivery.
func (h Handler) Safely(ctx context.Context, body []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return h(ctx, body)
}

// A Retry is the error of a [Handler] that controls the redelivery of its message.
// After any other error, the try counts as a failure and the queue chooses the delay.
type Retry struct {
	// After is the minimum delay of the redelivery. If the try counts as a failure, the
	// queue may wait longer.
	After time.Duration
	// Free says that the try does not count as a failure. A queue may give up a message
	// after too many failures.
	Free bool
	// Held says that another process does the work. The try does not count as a
	// failure. A durable queue drops the message: if the other process dies, its own
	// message is redelivered.
	Held bool
	// Err is the cause. It must not be nil.
	Err error
}

func (e *Retry) Error() string { return e.Err.Error() }
func (e *Retry) Unwrap() error { return e.Err }

// RetryAfter returns a free [Retry].
func RetryAfter(delay time.Duration, err error) error {
	return &Retry{After: delay, Free: true, Err: err}
}

// Outcome returns the [Retry] that err wraps, or one that counts as a failure. err must
// not be nil.
func Outcome(err error) *Retry {
	if r, ok := errors.AsType[*Retry](err); ok {
		return r
	}
	return &Retry{Err: err}
}
