// Package exit has the exit statuses of the commands.
package exit

import (
	"context"
	"errors"
)

// The exit statuses. They are documented in docs/command-line.md.
const (
	Failure     = 1   // anything else
	Usage       = 2   // the command line or the settings are wrong
	NotFound    = 3   // the server has no such image
	Refused     = 4   // the server refuses the credentials, or needs some
	Mismatch    = 5   // bytes do not have the digest that they should have
	Interrupted = 130 // by Ctrl-C
)

type status struct {
	error
	code int
}

func (s *status) Unwrap() error { return s.error }
func (s *status) ExitCode() int { return s.code }

// With returns err with an exit status, or nil if err is nil.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &status{err, code}
}

// Code returns the exit status for err: that of the first error in its tree with a method
// ExitCode, or Interrupted for context.Canceled, else Failure. It is 0 for nil.
func Code(err error) int {
	if err == nil {
		return 0
	}
	var c interface {
		error
		ExitCode() int
	}
	switch {
	case errors.As(err, &c):
		return c.ExitCode()
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	return Failure
}
