package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"imageroot/client/api"
	"imageroot/client/progress"
)

const (
	firstWait, longestWait = time.Second, 15 * time.Second
	// longestTry is how long a request is tried again without success.
	longestTry = 10 * time.Minute
	// stallTime is the longest time without a byte, or without the answer to all bytes,
	// which a slow store keeps waiting while it writes them.
	stallTime = 2 * time.Minute
)

// errStalled is the error of a transfer that moved no byte for stallTime.
var errStalled = errors.New("no byte moved for two minutes")

// temporary reports whether a request that failed with err may succeed later.
func temporary(err error) bool {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Temporary()
	}
	_, unreachable := errors.AsType[*api.Unreachable](err)
	return unreachable || errors.Is(err, errStalled)
}

// trying calls f until it succeeds, fails for good, or has failed for longestTry. Progress
// that f reports by calling moved begins that time anew. Each failure is shown at bar.
func trying(ctx context.Context, bar *progress.Bar, f func(moved func()) error) error {
	began, wait := time.Now(), firstWait
	moved := func() { began, wait = time.Now(), firstWait }
	for {
		err := f(moved)
		if err == nil || ctx.Err() != nil || !temporary(err) {
			return err
		}
		if time.Since(began) > longestTry {
			return fmt.Errorf("%w; it was tried again for %v", err, longestTry)
		}
		pause := wait
		if p, ok := errors.AsType[*api.Problem](err); ok {
			pause = max(pause, p.RetryAfter)
		}
		bar.Say(fmt.Sprintf("%v: trying again in %s", err, progress.Duration(pause)))
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		bar.Say("")
		wait = min(2*wait, longestWait)
	}
}

// sleep waits, and returns an error if ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watch returns a context that ends if alive is not called for stallTime, and the functions
// alive and stop. The caller calls stop.
func watch(ctx context.Context) (watched context.Context, alive, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(stallTime, func() { cancel(errStalled) })
	return watched, func() { t.Reset(stallTime) }, func() { t.Stop(); cancel(nil) }
}
