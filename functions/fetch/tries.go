package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"imageroot/shared/source"
)

const (
	// shortTries is the number of tries at one offset if the source refuses or
	// closes before its end, and lostTries if the connection fails.
	shortTries = 4
	lostTries  = 8

	maxWait = 30 * time.Second
	// maxOutage is how long after its last part a fetch retries a source that is
	// out of reach. Each wait is as long as the outage so far, within the bounds
	// below.
	maxOutage     = 24 * time.Hour
	minOutageWait = 30 * time.Second
	maxOutageWait = 10 * time.Minute

	// maxAsked is the longest Retry-After of a source that a run waits for.
	maxAsked = 5 * time.Minute
)

// tries decides whether and when to retry. A failure after new bytes counts as the
// first.
type tries struct {
	// first is the wait after the first failure. It doubles with each further
	// one, up to maxWait.
	first    time.Duration
	most     int // number of failures that ends it; 0 means shortTries or lostTries, by the error
	failures int
	best     int64
}

// progress records that the source was read up to to.
func (t *tries) progress(to int64) {
	if to > t.best {
		t.best, t.failures = to, 0
	}
}

// give counts a failure that needs no wait, and reports whether to retry.
func (t *tries) give() bool {
	t.failures++
	return t.failures < shortTries
}

// wait returns nil when it is time to retry after err. It returns an error if a retry
// is useless or ctx ends.
func (t *tries) wait(ctx context.Context, err error) error {
	after, ok := source.MayRetry(err)
	refused := mayPass(err)
	if ctx.Err() != nil || !ok && !refused {
		return err
	}
	most := cmp.Or(t.most, lostTries)
	if _, short := errors.AsType[*source.ShortBody](err); short || refused {
		most = shortTries
	}
	if t.failures++; t.failures >= most {
		return fmt.Errorf("%w (tried %d times)", err, t.failures)
	}
	if after > maxAsked {
		return fmt.Errorf("%w: that is too long, try then", err)
	}
	wait := max(after, min(t.first<<(t.failures-1), maxWait))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A pace calls slow if a source sends less than least bytes in a window of waiting
// for it. Only time between begin and pause counts.
type pace struct {
	least  int64
	window time.Duration

	mu    sync.Mutex
	timer *time.Timer
	left  time.Duration // of the window, at start
	start time.Time     // of the wait, or zero while paused
	got   int64         // bytes in the window
}

func newPace(least int64, window time.Duration, slow func()) *pace {
	p := &pace{least: least, window: window, left: window, timer: time.AfterFunc(window, slow)}
	p.timer.Stop()
	return p
}

func (p *pace) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start = time.Now()
	p.timer.Reset(p.left)
}

func (p *pace) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	p.left -= time.Since(p.start)
	p.start = time.Time{}
}

// add counts n bytes. It is safe for concurrent use.
func (p *pace) add(n int) {
	p.mu.Lock()
	p.got += int64(n)
	enough := p.got >= p.least
	p.mu.Unlock()
	if enough {
		p.renew()
	}
}

// renew begins another window.
func (p *pace) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got, p.left = 0, p.window
	if !p.start.IsZero() {
		p.start = time.Now()
		p.timer.Reset(p.window)
	}
}

// mayPass reports whether the next request to the source may have another answer: its
// URL may redirect to another server, or to a fresh signed URL.
func mayPass(err error) bool {
	u, ok := errors.AsType[*source.Unresolvable](err)
	return ok && u.Status != 0 || errors.Is(err, source.ErrChanged)
}

// refusal reports whether err may mean that the source gets too many requests, and the
// delay that it requests.
func refusal(err error) (after time.Duration, ok bool) {
	after, ok = source.MayRetry(err)
	return after, ok || mayPass(err) && !errors.Is(err, source.ErrChanged)
}
