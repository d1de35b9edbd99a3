// Package queue carries tasks from what notices work to what does it. A task
// is a few bytes of JSON that name an object or a source; it is delivered at
// least once, perhaps late and out of order, so whoever handles one looks at
// what is there now.
package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"imageroot/shared/objectevent"
)

// A Sender puts messages on a queue. Delay is how long a message stays
// hidden; SQS allows at most 15 minutes.
type Sender interface {
	Send(ctx context.Context, body []byte, delay time.Duration) error
}

// A Handler does the work of one message. If it returns nil the message is done
// and does not come back; for an error see [Retry]. A panic counts as a failure.
// If ctx has ended, a try that counts as a failure comes back at once.
type Handler func(ctx context.Context, body []byte) error

// A Receiver hands messages to a handler, at most workers at once, until ctx
// ends; then it waits for the handlers that run.
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

// A Task says what to look at.
type Task struct {
	// Image is an object in the image root: an image, a checksum file beside
	// one, or the manifest.
	Image string `json:"image,omitempty"`
	// Hash is an image whose hash job is queued.
	Hash string `json:"hash,omitempty"`
	// Content is the SHA-256 of bytes to look into.
	Content string `json:"content,omitempty"`
	// Check is the SHA-256 of bytes whose check job is queued.
	Check string `json:"check,omitempty"`
	// Ref is the source to fetch (layout.Ref of its URL).
	Ref string `json:"ref,omitempty"`
	// Upload is the resumable upload to assemble.
	Upload string `json:"upload,omitempty"`
	// Resume asks for a look at the jobs there are, for those that nobody
	// works on.
	Resume bool `json:"resume,omitempty"`
	// Poll asks for a look at the listing, for what no event told of.
	Poll bool `json:"poll,omitempty"`
	// Reconcile asks for a comparison of the whole image root with the records.
	Reconcile bool `json:"reconcile,omitempty"`
}

// Encode returns the task's message.
func (t Task) Encode() []byte {
	data, err := json.Marshal(t)
	if err != nil {
		panic(err) // a struct of strings always encodes
	}
	return data
}

// Tasks decodes a message: a [Task], or an object event as S3 itself sends it
// to a queue, which names an image for each object in bucket whose key starts
// with prefix and has no slash after it.
func Tasks(body []byte, bucket, prefix string) ([]Task, error) {
	var t Task
	if err := json.Unmarshal(body, &t); err == nil && t != (Task{}) {
		return []Task{t}, nil
	}
	events, err := objectevent.Parse(body)
	if err != nil {
		return nil, fmt.Errorf("message is neither a task nor an object event: %w", err)
	}
	var tasks []Task
	for _, e := range events {
		if e.Bucket != bucket {
			continue
		}
		if name, ok := TopLevel(e.Key, prefix); ok {
			tasks = append(tasks, Task{Image: name})
		}
	}
	return tasks, nil
}

// TopLevel returns what follows prefix in key where that is one path segment.
func TopLevel(key, prefix string) (string, bool) {
	name, ok := strings.CutPrefix(key, prefix)
	return name, ok && name != "" && !strings.Contains(name, "/")
}
