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

// A Handler does the work of one message. An error brings the message back
// later; [RetryAfter] says when.
type Handler func(ctx context.Context, body []byte) error

// A Receiver hands messages to a handler, at most workers at once, until ctx
// ends; then it waits for the handlers that run.
type Receiver interface {
	Receive(ctx context.Context, workers int, handle Handler) error
}

type retryAfter struct {
	error
	delay time.Duration
}

func (e retryAfter) Unwrap() error { return e.error }

// RetryAfter wraps an error of a handler: the message is to come back after
// delay and the try does not count as failed.
func RetryAfter(delay time.Duration, err error) error { return retryAfter{err, delay} }

// Delay returns the delay of a [RetryAfter] error.
func Delay(err error) (time.Duration, bool) {
	var r retryAfter
	if errors.As(err, &r) {
		return r.delay, true
	}
	return 0, false
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
