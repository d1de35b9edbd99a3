package gateway

import (
	"log/slog"
	"time"

	"github.com/versity/versitygw/s3err"
)

// SetPoll makes the watcher poll every d until the function returned is
// called. No gateway may be running.
func SetPoll(d time.Duration) (restore func()) {
	before := poll
	poll = d
	return func() { poll = before }
}

// SetFree makes every file system look as if it had n bytes free until the
// function returned is called.
func SetFree(n uint64) (restore func()) {
	free.Store(&n)
	return func() { free.Store(nil) }
}

// SetDeaf lets the watcher hear no notifications until the function returned
// is called. No gateway may be running.
func SetDeaf() (restore func()) {
	deaf = true
	return func() { deaf = false }
}

// Answer is what a client gets for err.
func Answer(err error) s3err.S3Error {
	return (&backend{log: slog.New(slog.DiscardHandler)}).answer("test", place{}, err).(s3err.S3Error)
}
