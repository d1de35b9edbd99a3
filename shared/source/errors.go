package source

import (
	"errors"
	"fmt"
	"io"
	"time"

	"imageroot/shared/problem"
)

var (
	// ErrChanged is the error of [Client.Open] if the source no longer has the
	// validators. To avoid mixing old and new bytes, begin again without validators.
	ErrChanged = errors.New("the source has changed since")

	// ErrRange is the error of [Client.Open] if a server sends other bytes than the
	// requested range. A request for the whole source may work.
	ErrRange = errors.New("the server does not keep to the range it was asked for")
)

// A Malformed is the error of a URL that can never be a source. Reason is a sentence
// for users.
type Malformed struct{ Reason string }

func (e *Malformed) Error() string { return e.Reason }

// Unwrap returns a [*problem.Error]: the reason is for the client.
func (e *Malformed) Unwrap() error { return problem.New(problem.Malformed, e.Reason) }

func malformed(format string, args ...any) error {
	return &Malformed{fmt.Sprintf(format, args...)}
}

// An Unresolvable is the error of a source that gives no image: it does not exist, is
// not allowed, or is something else. Reason is a sentence for users. A retry is useless
// unless Err wraps a [*Retryable].
type Unresolvable struct {
	Reason string
	Status int   // of the refusing HTTP answer, or 0
	Err    error // may be nil
}

func (e *Unresolvable) Error() string { return e.Reason }

// Unwrap returns a [*problem.Error] that wraps Err: the reason is for the client.
func (e *Unresolvable) Unwrap() error { return problem.Wrap(problem.Invalid, e.Reason, e.Err) }

func unresolvable(err error, format string, args ...any) error {
	return &Unresolvable{Reason: fmt.Sprintf(format, args...), Err: err}
}

// A Retryable is a failure that may be temporary: a lost connection, an overloaded
// server. Reason is a sentence for users.
type Retryable struct {
	Reason string
	After  time.Duration // the delay that the server requests (Retry-After), or 0
	Err    error         // may be nil
}

func (e *Retryable) Error() string { return e.Reason }

func (e *Retryable) Unwrap() error { return e.Err }

func retryable(err error, format string, args ...any) error {
	return &Retryable{Reason: fmt.Sprintf(format, args...), Err: err}
}

// A ShortBody is the error of a source that ended before it had sent all promised
// bytes. It is an [io.ErrUnexpectedEOF].
type ShortBody struct {
	Host string
	Want int64 // bytes promised, or -1 if the number was unknown
	Got  int64 // bytes received
}

func (e *ShortBody) Error() string {
	if e.Want < 0 {
		return fmt.Sprintf("%s closed the connection after %d bytes, before the end", e.Host, e.Got)
	}
	return fmt.Sprintf("%s closed the connection after %d of %d bytes", e.Host, e.Got, e.Want)
}

func (e *ShortBody) Unwrap() error { return io.ErrUnexpectedEOF }

// MayRetry reports whether err is a [*Retryable] or [*ShortBody], and the delay that
// the server requests before a retry.
func MayRetry(err error) (after time.Duration, ok bool) {
	if r, ok := errors.AsType[*Retryable](err); ok {
		return r.After, true
	}
	_, short := errors.AsType[*ShortBody](err)
	return 0, short
}
