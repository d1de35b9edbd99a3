package source

import (
	"errors"
	"fmt"
	"io"
	"time"
)

var (
	// ErrChanged is what [Client.Open] returns where the source is not what
	// it was when the validators were taken. Bytes of before and after must
	// not be mixed: begin again without validators.
	ErrChanged = errors.New("the source has changed since")

	// ErrRange is what [Client.Open] returns where a server serves other
	// bytes than the range it was asked for. Asking for the whole may work.
	ErrRange = errors.New("the server does not keep to the range it was asked for")
)

// A Malformed says why what was given as a URL can never be a source. Reason
// is a sentence for the person who gave it.
type Malformed struct{ Reason string }

func (e *Malformed) Error() string { return e.Reason }

func malformed(format string, args ...any) error {
	return &Malformed{fmt.Sprintf(format, args...)}
}

// An Unresolvable says why a source does not give what it should: it is not
// there, not allowed, not an image. Reason is a sentence for the operator.
// Trying again does not help, unless Err holds a [*Retryable].
type Unresolvable struct {
	Reason string
	Status int   // of the HTTP answer that says so, or 0
	Err    error // may be nil
}

func (e *Unresolvable) Error() string { return e.Reason }

func (e *Unresolvable) Unwrap() error { return e.Err }

func unresolvable(err error, format string, args ...any) error {
	return &Unresolvable{Reason: fmt.Sprintf(format, args...), Err: err}
}

// A Retryable is a failure that may pass: a connection lost, a server that is
// overloaded. Reason is a sentence for the operator.
type Retryable struct {
	Reason string
	After  time.Duration // what the server asked to wait (Retry-After), or 0
	Err    error         // may be nil
}

func (e *Retryable) Error() string { return e.Reason }

func (e *Retryable) Unwrap() error { return e.Err }

func retryable(err error, format string, args ...any) error {
	return &Retryable{Reason: fmt.Sprintf(format, args...), Err: err}
}

// A ShortBody is a source that ended before it had sent what it had promised.
// It is an [io.ErrUnexpectedEOF].
type ShortBody struct {
	Host string
	Want int64 // bytes promised, or -1 if the source promised an end only
	Got  int64 // bytes that came
}

func (e *ShortBody) Error() string {
	if e.Want < 0 {
		return fmt.Sprintf("%s closed the connection after %d bytes, before the end", e.Host, e.Got)
	}
	return fmt.Sprintf("%s closed the connection after %d of %d bytes", e.Host, e.Got, e.Want)
}

// Unwrap returns [io.ErrUnexpectedEOF].
func (e *ShortBody) Unwrap() error { return io.ErrUnexpectedEOF }

// MayRetry reports whether what failed with err may work later, and how long
// the server asked to wait before.
func MayRetry(err error) (after time.Duration, ok bool) {
	var r *Retryable
	if errors.As(err, &r) {
		return r.After, true
	}
	var s *ShortBody
	return 0, errors.As(err, &s)
}
