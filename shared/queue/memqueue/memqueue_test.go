package memqueue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/queue"
	"imageroot/shared/queue/memqueue"
)

// The tests run on the fake clock of a synctest bubble, so waits take no time and are
// exact.

// A bench is a queue that records handled messages with their time.
type bench struct {
	*memqueue.Queue
	t     *testing.T
	began time.Time

	mu  sync.Mutex
	log []string
}

func newBench(t *testing.T) *bench {
	return &bench{Queue: memqueue.New(slog.New(slog.DiscardHandler)), t: t, began: time.Now()}
}

func (b *bench) send(body string, delay time.Duration) {
	b.t.Helper()
	if err := b.Send(b.t.Context(), []byte(body), delay); err != nil {
		b.t.Errorf("send %s: %v", body, err)
	}
}

// handled records a message.
func (b *bench) handled(body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, fmt.Sprintf("%s at %v", body, time.Since(b.began)))
}

// receive runs handle for the given time and returns what was recorded.
func (b *bench) receive(d time.Duration, workers int, handle queue.Handler) []string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), d)
	defer cancel()
	if err := b.Receive(ctx, workers, handle); !errors.Is(err, context.DeadlineExceeded) {
		b.t.Errorf("Receive returned %v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log
}

func (b *bench) note(_ context.Context, body []byte) error { b.handled(body); return nil }

func (b *bench) got(what string, got []string, want ...string) {
	b.t.Helper()
	if !slices.Equal(got, want) {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestOrderAndDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.send("a", 0)
		b.send("late", 10*time.Second)
		b.send("b", 0)
		b.send("soon", time.Second)
		go func() {
			time.Sleep(5 * time.Second)
			b.send("c", 0) // wakes a receiver that waits for later messages
			b.send("never", time.Hour)
		}()
		b.got("handled", b.receive(time.Minute, 1, b.note), "a at 0s", "b at 0s", "soon at 1s", "c at 5s", "late at 10s")
		if b.Len() != 1 {
			t.Errorf("%d messages wait, want 1", b.Len())
		}
	})
}

func TestMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for range 5 {
			b.send("a", 0)
		}
		b.send("b", 20*time.Second)
		b.send("b", 5*time.Second) // the earlier time counts
		b.send("b", 30*time.Second)
		if b.Len() != 2 {
			t.Errorf("%d messages wait, want 2", b.Len())
		}
		b.got("handled", b.receive(time.Minute, 1, b.note), "a at 0s", "b at 5s")

		// A message is not merged with one that is being handled, which may have read
		// the state before the change.
		b = newBench(t)
		b.send("a", 0)
		go func() {
			time.Sleep(time.Second)
			b.send("a", 0)
		}()
		b.got("handled", b.receive(time.Minute, 1, func(_ context.Context, body []byte) error {
			b.handled(body)
			time.Sleep(3 * time.Second)
			return nil
		}), "a at 0s", "a at 3s")
	})
}

func TestBodyIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		body := []byte("abc")
		if err := b.Send(t.Context(), body, 0); err != nil {
			t.Fatal(err)
		}
		copy(body, "xyz")
		b.got("handled", b.receive(time.Second, 1, b.note), "abc at 0s")
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.send("a", 0)
		broken := errors.New("broken")
		got := b.receive(5*time.Minute, 1, func(_ context.Context, body []byte) error {
			b.handled(body)
			return broken
		})
		// 1, 2, 4, 8, 16, 32 seconds, then a minute each.
		b.got("handled", got, "a at 0s", "a at 1s", "a at 3s", "a at 7s", "a at 15s", "a at 31s", "a at 1m3s", "a at 2m3s", "a at 3m3s", "a at 4m3s")
		// The message stays in the queue, and another receiver gets it.
		if b.Len() != 1 {
			t.Errorf("%d messages wait, want 1", b.Len())
		}
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.send("a", 0)
		n := 0
		got := b.receive(time.Minute, 1, func(_ context.Context, body []byte) error {
			b.handled(body)
			switch n++; n {
			case 1, 2:
				return queue.RetryAfter(7*time.Second, errors.New("fresh"))
			case 3:
				return errors.New("broken") // the first failure that counts
			}
			return nil
		})
		b.got("handled", got, "a at 0s", "a at 7s", "a at 14s", "a at 15s")

		// Sending it meanwhile redelivers it at once.
		b = newBench(t)
		b.send("a", 0)
		go func() {
			time.Sleep(time.Second)
			b.send("a", 0)
		}()
		n = 0
		got = b.receive(time.Minute, 1, func(_ context.Context, body []byte) error {
			b.handled(body)
			if n++; n == 1 {
				return queue.RetryAfter(30*time.Second, errors.New("busy"))
			}
			return nil
		})
		b.got("handled", got, "a at 0s", "a at 1s")
	})
}

func TestWorkers(t *testing.T) {
	for workers := 1; workers <= 3; workers++ {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			for i := range 6 {
				b.send(fmt.Sprint(i), 0)
			}
			running, most := 0, 0
			var mu sync.Mutex
			got := b.receive(time.Minute, workers, func(_ context.Context, body []byte) error {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				running--
				mu.Unlock()
				b.handled(body)
				return nil
			})
			if most != workers || len(got) != 6 {
				t.Errorf("%d workers: %d at once, handled %q", workers, most, got)
			}
			if want := fmt.Sprintf(" at %v", time.Duration(6/workers)*time.Second); !slices.ContainsFunc(got, func(s string) bool { return s[1:] == want }) {
				t.Errorf("%d workers took until %q, want%s", workers, got[len(got)-1], want)
			}
		})
	}
}

func TestEndOfContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.send("a", 0)
		b.send("b", 0)
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		err := b.Receive(ctx, 1, func(ctx context.Context, body []byte) error {
			b.handled(body)
			<-ctx.Done()
			time.Sleep(2 * time.Second) // Receive waits for it
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || time.Since(began) != 3*time.Second {
			t.Errorf("Receive returned %v after %v", err, time.Since(began))
		}
		b.got("handled", b.log, "a at 0s")
		// Messages not yet handled, and those interrupted, wait for the next receiver.
		b.got("handled", b.receive(time.Minute, 1, b.note), "a at 0s", "b at 3s", "a at 3s")
	})
}

// Messages sent concurrently while others are handled arrive at least once each.
func TestManySenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for s := range 8 {
			go func() {
				for i := range 50 {
					b.send(fmt.Sprintf("%d/%d", s, i), time.Duration(i%5)*time.Second)
					time.Sleep(100 * time.Millisecond)
				}
			}()
		}
		seen := map[string]int{}
		b.receive(time.Minute, 4, func(_ context.Context, body []byte) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			seen[string(body)]++
			return nil
		})
		if len(seen) != 8*50 || b.Len() != 0 {
			t.Errorf("%d of %d messages came, %d wait", len(seen), 8*50, b.Len())
		}
		for m, n := range seen {
			if n != 1 {
				t.Errorf("%s came %d times", m, n)
			}
		}
	})
}
