// Package problem is the one error type that people see, and the one table
// from error to HTTP status. Handlers return errors; [From] places them.
package problem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/store"
)

// A Code says what kind of problem it is. It is part of the API: clients may
// rely on it, as on the status that goes with it.
type Code string

// The codes. See [Code.Status] for what each means in HTTP.
const (
	Invalid        Code = "invalid"         // understood, but cannot be done as asked
	Unauthorized   Code = "unauthorized"    // credentials are missing or wrong
	Forbidden      Code = "forbidden"       // credentials do not help
	NotFound       Code = "not_found"       //
	Method         Code = "method"          // the resource has no such method
	Timeout        Code = "timeout"         // the client was too slow
	Conflict       Code = "conflict"        // against the state of the resource
	Precondition   Code = "precondition"    // an If-... field does not hold
	TooLarge       Code = "too_large"       // the body is larger than is taken
	Unsupported    Code = "unsupported"     // of this media type
	Range          Code = "range"           // outside the bytes there are
	Malformed      Code = "malformed"       // what was sent does not parse
	TooMany        Code = "too_many"        // too often
	Internal       Code = "internal"        // ours; the inside is logged, never shown
	NotImplemented Code = "not_implemented" //
	BadGateway     Code = "bad_gateway"     // a server that we asked failed
	Unavailable    Code = "unavailable"     // for now; try again
	Full           Code = "full"            // no room for the bytes
)

var statuses = map[Code]int{
	Invalid:        http.StatusBadRequest,
	Unauthorized:   http.StatusUnauthorized,
	Forbidden:      http.StatusForbidden,
	NotFound:       http.StatusNotFound,
	Method:         http.StatusMethodNotAllowed,
	Timeout:        http.StatusRequestTimeout,
	Conflict:       http.StatusConflict,
	Precondition:   http.StatusPreconditionFailed,
	TooLarge:       http.StatusRequestEntityTooLarge,
	Unsupported:    http.StatusUnsupportedMediaType,
	Range:          http.StatusRequestedRangeNotSatisfiable,
	Malformed:      http.StatusUnprocessableEntity,
	TooMany:        http.StatusTooManyRequests,
	Internal:       http.StatusInternalServerError,
	NotImplemented: http.StatusNotImplemented,
	BadGateway:     http.StatusBadGateway,
	Unavailable:    http.StatusServiceUnavailable,
	Full:           http.StatusInsufficientStorage,
}

// Status returns the HTTP status of c; 500 for a code that is none.
func (c Code) Status() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// retryAfter is what an answer that invites to try again says if the error
// does not.
var retryAfter = map[Code]time.Duration{
	TooMany:     10 * time.Second,
	Unavailable: 5 * time.Second,
	Full:        time.Minute,
}

// An Error is a problem with a sentence for whoever made the request.
type Error struct {
	Code   Code
	Detail string // says what to do; never holds a secret
	// Extra are members that a program can read beside the standard ones.
	Extra map[string]any
	// RetryAfter is when trying again makes sense; 0 means the code's usual.
	RetryAfter time.Duration
	// Err is the cause, for the log.
	Err error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Detail
	}
	if e.Detail == "" {
		return e.Err.Error()
	}
	return e.Detail + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error with a detail for people.
func New(code Code, detail string) *Error { return &Error{Code: code, Detail: detail} }

// Newf is [New] with a format. The detail is the whole text.
func Newf(code Code, format string, args ...any) *Error {
	return New(code, fmt.Sprintf(format, args...))
}

// Wrap returns an error with a detail for people and a cause for the log.
func Wrap(code Code, detail string, err error) *Error {
	return &Error{Code: code, Detail: detail, Err: err}
}

// A Problem is an error of another package that knows its place here.
type Problem interface {
	error
	Problem() *Error
}

// internalDetail is all that an internal error shows.
const internalDetail = "something went wrong inside the server; its log says what, under the request ID of this answer"

// places is the table for errors of packages that know nothing of problems.
// The first that matches counts. The details are fixed: the text of such an
// error names keys and servers.
var places = []struct {
	err    error
	code   Code
	detail string
}{
	{store.ErrFull, Full, "the store has no room for these bytes: delete images that are not needed, or give it more space"},
	{store.ErrTooLarge, TooLarge, "this is larger than the store takes"},
	{store.ErrOccupied, Conflict, "on the store's disk a directory, or something else that is no image, has this name: remove it there, or choose another name"},
	{store.ErrDisk, Unavailable, "the store's disk is read-only, damaged, or not the server's to use: the server's log says which"},
	{store.ErrRefused, BadGateway, "the store refuses this: the server's log says why"},
	{store.ErrDenied, BadGateway, "the store denies access: check the server's S3 credentials and what they may do"},
	{store.ErrBadDigest, BadGateway, "the bytes were damaged on the way to the store: send them again"},
	{store.ErrUnknown, Unavailable, "the store did not say whether the change took effect: look, and try again"},
	{store.ErrUnavailable, Unavailable, "the store cannot be reached, or cannot do this at the moment: try again"},
	{store.ErrChanged, Conflict, "it was replaced by somebody else meanwhile: try again"},
	{store.ErrConflict, Conflict, "it was changed by somebody else meanwhile: look at it again and retry"},
	{store.ErrNoBucket, Unavailable, "the bucket that holds this is missing: the server makes it again within a minute if it may"},
	{store.ErrNotFound, NotFound, "there is no such thing here"},
	{os.ErrDeadlineExceeded, Timeout, "the connection stalled for too long: try again"},
	{context.DeadlineExceeded, Unavailable, "it took too long: try again"},
	{context.Canceled, Unavailable, "the request was cancelled before it was done"},
}

// From returns err as a problem: an [*Error] or a [Problem] in its chain, or
// what the table says, or else an internal error that keeps err as its cause
// and shows nothing of it. From(nil) is nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return shown(e)
	}
	if p, ok := errors.AsType[Problem](err); ok {
		return shown(p.Problem())
	}
	if e, ok := errors.AsType[*image.NameError](err); ok {
		return Wrap(Malformed, e.Error(), err)
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return Wrap(TooLarge, fmt.Sprintf("the body is larger than %d bytes, the most that is taken here", e.Limit), err)
	}
	for _, p := range places {
		if errors.Is(err, p.err) {
			return Wrap(p.code, p.detail, err)
		}
	}
	return Wrap(Internal, internalDetail, err)
}

// shown makes sure that an internal error shows nothing of its inside.
func shown(e *Error) *Error {
	if e.Code.Status() != http.StatusInternalServerError || e.Detail == internalDetail {
		return e
	}
	return Wrap(Internal, internalDetail, e)
}
