// Package memqueue is a queue in memory, for one process that sends and receives. Its
// messages are lost with the process. Reconciling finds the work again.
package memqueue

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"imageroot/shared/queue"
)

// A Queue implements queue.Sender, and delivers what was sent. It merges a message with
// an equal one that waits, and keeps the earlier time. So it holds at most one message
// for each task. It is safe for concurrent use.
type Queue struct {
	log *slog.Logger

	mu      sync.Mutex
	waiting map[string]*message
	order   []*message    // by arrival
	changed chan struct{} // closed and replaced when a message arrives
}

type message struct {
	body     string
	due      time.Time
	failures int
}

var _ queue.Sender = (*Queue)(nil)

// New returns an empty queue.
func New(log *slog.Logger) *Queue {
	return &Queue{log: log, waiting: map[string]*message{}, changed: make(chan struct{})}
}

// Send implements queue.Sender. It never blocks and never fails.
func (q *Queue) Send(_ context.Context, body []byte, delay time.Duration) error {
	q.add(&message{body: string(body), due: time.Now().Add(delay)})
	return nil
}

func (q *Queue) add(m *message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if old, ok := q.waiting[m.body]; ok {
		if m.due.Before(old.due) {
			old.due = m.due
		}
	} else {
		q.waiting[m.body] = m
		q.order = append(q.order, m)
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// take removes and returns the first message that is due. If none is due, it returns
// the time to wait (negative if the queue is empty), and a channel that is closed when
// a message arrives.
func (q *Queue) take(now time.Time) (*message, time.Duration, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait := time.Duration(-1)
	for i, m := range q.order {
		if d := m.due.Sub(now); d > 0 {
			if wait < 0 || d < wait {
				wait = d
			}
			continue
		}
		q.order = slices.Delete(q.order, i, i+1)
		delete(q.waiting, m.body)
		return m, 0, nil
	}
	return nil, wait, q.changed
}

const (
	firstBackoff = time.Second
	maxBackoff   = time.Minute
)

// Receive delivers messages to a handler, up to workers at once, until ctx ends. It then
// waits for the running handlers and returns ctx's error. A message whose handler fails
// is redelivered after 1 s, 2 s and so on, up to a minute, forever.
func (q *Queue) Receive(ctx context.Context, workers int, handle queue.Handler) error {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				m, wait, changed := q.take(time.Now())
				if m != nil {
					q.deliver(ctx, m, handle)
				} else {
					pause(ctx, wait, changed)
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// pause waits for d (forever if it is negative), for changed, or for the end of ctx.
func pause(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	var timeout <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-ctx.Done():
	case <-timeout:
	case <-changed:
	}
}

func (q *Queue) deliver(ctx context.Context, m *message, handle queue.Handler) {
	err := handle.Safely(ctx, []byte(m.body))
	if err == nil {
		return
	}
	out := queue.Outcome(err)
	delay := out.After
	if !out.Free && !out.Held {
		delay = max(delay, min(firstBackoff<<min(m.failures, 10), maxBackoff))
		m.failures++
		if ctx.Err() != nil {
			delay = 0
		} else {
			q.log.Warn("task failed, will try again", "task", m.body, "failures", m.failures, "in", delay, "error", err)
		}
	}
	m.due = time.Now().Add(delay)
	q.add(m)
}
