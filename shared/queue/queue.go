// Package queue carries tasks to the functions that do them. A task is a few bytes
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

// A Sender puts messages on a queue. Send returns once the queue has the message:
// it is durable if the queue is. A message is not delivered before delay, of which
// a queue may cut off what is over 15 minutes. Send is safe for concurrent use.
type Sender interface {
	Send(ctx context.Context, body []byte, delay time.Duration) error
}

// A Handler does the work of one message. If it returns nil the message is done
// and does not come back; for an error see [Retry]. A panic counts as a failure.
// If ctx has ended, a try that counts as a failure comes back at once.
type Handler func(ctx context.Context, body []byte) error

// Safely calls h. If h panics, it returns an error with the stack: one message must
// not end the process again and again.
func (h Handler) Safely(ctx context.Context, body []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return h(ctx, body)
}

// A Receiver delivers messages to a handler, at most workers at once, until ctx
// ends. Receive then waits for the handlers that run, and returns ctx's error.
type Receiver interface {
	Receive(ctx context.Context, workers int, handle Handler) error
}

// A Retry is the error of a [Handler] that says what becomes of its message. For
// any other error, the message comes back when the queue sees fit and the try
// counts as a failure.
type Retry struct {
	// After is the time before which the message does not come back. If the try
	// counts as a failure the queue may wait for longer, as after any failure.
	After time.Duration
	// Free says that the try does not count as a failure. A queue may give up a
	// message that has failed too often.
	Free bool
	// Held says that another process has the work in hand. The try does not count
	// as a failure either, and a queue that outlives its processes drops the
	// message: the message of the other process comes back if that one dies.
	Held bool
	Err  error
}

func (e *Retry) Error() string { return e.Err.Error() }
func (e *Retry) Unwrap() error { return e.Err }

// RetryAfter returns a free [Retry].
func RetryAfter(delay time.Duration, err error) error {
	return &Retry{After: delay, Free: true, Err: err}
}

// Outcome returns the [Retry] that an error of a handler stands for. err is not nil.
func Outcome(err error) *Retry {
	if r, ok := errors.AsType[*Retry](err); ok {
		return r
	}
	return &Retry{Err: err}
}
