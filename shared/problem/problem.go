// Package problem has the error type that clients see, and the only table from error to
// HTTP status. Handlers return errors, and [From] finds their status. Its table has the
// errors of the store, of image names and of oversized bodies. A handler wraps other
// errors that a client may see with [Wrap].
package problem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// A Code is a kind of problem. Codes and their statuses are part of the API.
type Code string

// The codes. See [Code.Status] for what each means in HTTP.
const (
	Invalid        Code = "invalid"         // the request is understood, but cannot be done
	Unauthorized   Code = "unauthorized"    // credentials are missing or wrong
	Forbidden      Code = "forbidden"       // not allowed, whatever the credentials
	NotFound       Code = "not_found"       //
	Method         Code = "method"          // the resource has no such method
	Timeout        Code = "timeout"         // the client was too slow
	Conflict       Code = "conflict"        // the resource's state does not allow it
	Precondition   Code = "precondition"    // an If-... field does not hold
	TooLarge       Code = "too_large"       // the body is larger than the limit
	Unsupported    Code = "unsupported"     // the body is of another media type
	Range          Code = "range"           // outside the representation
	Malformed      Code = "malformed"       // the request does not parse
	TooMany        Code = "too_many"        // the client sends too many requests
	Internal       Code = "internal"        // the cause is logged, never shown
	NotImplemented Code = "not_implemented" //
	BadGateway     Code = "bad_gateway"     // another server failed
	Unavailable    Code = "unavailable"     // temporary: try again
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

// Status returns the HTTP status of c, and 500 for an unknown code.
func (c Code) Status() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// retryAfter has the defaults of [Error.RetryAfter]. Codes without one send no
// Retry-After.
var retryAfter = map[Code]time.Duration{
	TooMany:     10 * time.Second,
	Unavailable: 5 * time.Second,
	Full:        time.Minute,
}

// An Error is a problem with a sentence for the client.
type Error struct {
	Code   Code
	Detail string // says what to do; never holds a secret
	// RetryAfter is the time after which the client should try again. 0 means the
	// code's default.
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

// New returns an error with a detail for clients.
func New(code Code, detail string) *Error { return &Error{Code: code, Detail: detail} }

// Newf is [New] with a format.
func Newf(code Code, format string, args ...any) *Error {
	return New(code, fmt.Sprintf(format, args...))
}

// Wrap returns an error with a detail for clients and a cause for the log.
func Wrap(code Code, detail string, err error) *Error {
	return &Error{Code: code, Detail: detail, Err: err}
}

// internalDetail is the only detail that internal errors show.
const internalDetail = "something went wrong inside the server; its log says what, under the request ID of this answer"

// A rule returns the problem for an error, or nil if it does not apply.
type rule func(error) *Error

// is returns the rule for a sentinel. The detail is fixed, since the text of such an
// error may name keys and servers.
func is(sentinel error, code Code, detail string) rule {
	return func(err error) *Error {
		if !errors.Is(err, sentinel) {
			return nil
		}
		return Wrap(code, detail, err)
	}
}

// as returns the rule for a type of errors whose fields give the detail.
func as[T error](code Code, detail func(T) string) rule {
	return func(err error) *Error {
		e, ok := errors.AsType[T](err)
		if !ok {
			return nil
		}
		return Wrap(code, detail(e), err)
	}
}

// rules is the table of errors of other packages. The first matching rule applies.
var rules = []rule{
	as(Malformed, (*image.NameError).Error),
	as(Conflict, (*record.NewerError).Error),
	as(TooLarge, func(e *http.MaxBytesError) string {
		return fmt.Sprintf("the body is larger than %d bytes, the limit of this route", e.Limit)
	}),
	is(store.ErrFull, Full, "the store has no room for these bytes: delete images that are not needed, or give it more space"),
	is(store.ErrTooLarge, TooLarge, "this is larger than the store takes"),
	is(store.ErrOccupied, Conflict, "on the store's disk a directory, or something else that is no image, has this name: remove it there, or choose another name"),
	is(store.ErrDisk, Unavailable, "the store's disk is read-only, damaged, or not the server's to use: the server's log says which"),
	is(store.ErrRefused, BadGateway, "the store refuses this: the server's log says why"),
	is(store.ErrDenied, BadGateway, "the store denies access: check the server's S3 credentials and what they may do"),
	is(store.ErrBadDigest, BadGateway, "the bytes were damaged on the way to the store: send them again"),
	is(store.ErrUnknown, Unavailable, "the store did not say whether the change took effect: check, and try again"),
	is(store.ErrUnavailable, Unavailable, "the store cannot be reached, or cannot do this at the moment: try again"),
	is(store.ErrChanged, Conflict, "it was replaced meanwhile: try again"),
	is(store.ErrConflict, Conflict, "it was changed meanwhile: read it again and retry"),
	is(store.ErrNoBucket, Unavailable, "the bucket that holds this is missing: the server makes it again within a minute if it may"),
	is(store.ErrNotFound, NotFound, "there is no such thing here"),
	is(os.ErrDeadlineExceeded, Timeout, "the connection stalled for too long: try again"),
	is(context.DeadlineExceeded, Unavailable, "it took too long: try again"),
	is(context.Canceled, Unavailable, "the request was cancelled before it was done"),
}

// From returns err as a problem: the [*Error] in its chain, or the result of the first
// matching rule, or an internal error that hides err but keeps it as its cause.
// From(nil) is nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return shown(e)
	}
	for _, rule := range rules {
		if e := rule(err); e != nil {
			return e
		}
	}
	return Wrap(Internal, internalDetail, err)
}

// shown returns e, with a fixed detail if it is an internal error.
func shown(e *Error) *Error {
	if e.Code.Status() != http.StatusInternalServerError || e.Detail == internalDetail {
		return e
	}
	return Wrap(Internal, internalDetail, e)
}
