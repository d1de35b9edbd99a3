// Package queuetest tests implementations of package queue against its contract.
package queuetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"imageroot/shared/queue"
)

// A Queue is both ends of a queue.
type Queue interface {
	queue.Sender
	// Receive delivers messages, up to workers at once, until ctx ends. It then waits
	// for the running handlers and returns ctx's error.
	Receive(ctx context.Context, workers int, handle queue.Handler) error
}

// Run tests the queues that open returns, which must be empty. They must redeliver a
// failed message within a few seconds.
func Run(t *testing.T, open func(t *testing.T) Queue) {
	tests := []struct {
		name string
		test func(*suite)
	}{
		{"Bodies", (*suite).bodies},
		{"Delay", (*suite).delay},
		{"Failure", (*suite).failure},
		{"OneFails", (*suite).oneFails},
		{"Panic", (*suite).panics},
		{"RetryAfter", (*suite).retryAfter},
		{"FailureAfter", (*suite).failureAfter},
		{"Held", (*suite).held},
		{"Workers", (*suite).workers},
		{"EndOfContext", (*suite).endOfContext},
		{"ManySenders", (*suite).manySenders},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(&suite{T: t, Queue: open(t)})
		})
	}
}

// patience bounds every wait.
const patience = time.Minute

type suite struct {
	*testing.T
	Queue
}

func (s *suite) send(body string, delay time.Duration) {
	s.Helper()
	if err := s.Send(s.Context(), []byte(body), delay); err != nil {
		s.Fatalf("send %.40q: %v", body, err)
	}
}

// handled counts the handled messages by body.
type handled struct {
	mu   sync.Mutex
	seen map[string]int
}

func (h *handled) add(body []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seen == nil {
		h.seen = map[string]int{}
	}
	h.seen[string(body)]++
}

func (h *handled) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen)
}

// until runs handle until it returns true, and waits for Receive to return.
func (s *suite) until(workers int, handle func(ctx context.Context, body []byte) (enough bool, err error)) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	stop := sync.OnceFunc(cancel)
	enough := false
	var mu sync.Mutex
	err := s.Receive(ctx, workers, func(ctx context.Context, body []byte) error {
		ok, err := handle(ctx, body)
		if ok {
			mu.Lock()
			enough = true
			mu.Unlock()
			stop()
		}
		return err
	})
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		s.Errorf("Receive returned %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !enough {
		s.Fatal("the expected messages did not come")
	}
}

// bodies arrive unchanged.
func (s *suite) bodies() {
	want := []string{"a", `{"image":"a b+ü%41#?.img"}`, `"<&>'` + "\n\t", fmt.Sprintf("%010000d", 7)}
	for _, b := range want {
		s.send(b, 0)
	}
	var h handled
	s.until(1, func(_ context.Context, body []byte) (bool, error) {
		h.add(body)
		return h.count() == len(want), nil
	})
	got := slices.Sorted(maps.Keys(h.seen))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.Errorf("got %.200q, want %.200q", got, want)
	}
}

// delay postpones a message.
func (s *suite) delay() {
	const wait = 2 * time.Second
	began := time.Now()
	s.send("late", wait)
	s.send("now", 0)
	var order []string
	s.until(1, func(_ context.Context, body []byte) (bool, error) {
		order = append(order, string(body))
		return string(body) == "late", nil
	})
	if took := time.Since(began); took < wait {
		s.Errorf("a message that was to wait %v came after %v", wait, took)
	}
	if order[0] != "now" {
		s.Errorf("the order is %q", order)
	}
}

// failure redelivers a message, and success does not.
func (s *suite) failure() {
	s.send("a", 0)
	tries := 0
	s.until(1, func(context.Context, []byte) (bool, error) {
		if tries++; tries < 3 {
			return false, errors.New("broken")
		}
		return true, nil
	})
	// A later message shows that the first is gone.
	s.send("b", 3*time.Second)
	s.until(1, func(_ context.Context, body []byte) (bool, error) {
		if string(body) == "a" {
			s.Error("a message came back that was handled")
		}
		return string(body) == "b", nil
	})
}

// oneFails, and the others are still handled.
func (s *suite) oneFails() {
	s.send("bad", 0)
	for i := range 5 {
		s.send(fmt.Sprint(i), 0)
	}
	var h handled
	s.until(1, func(_ context.Context, body []byte) (bool, error) {
		if string(body) == "bad" {
			return false, errors.New("broken")
		}
		h.add(body)
		return h.count() == 5, nil
	})
}

// retryAfter redelivers a message after its delay, any number of times.
func (s *suite) retryAfter() {
	const wait, times = time.Second, 6 // more than the failures after which a queue gives a message up
	s.send("a", 0)
	tries := 0
	began := time.Now()
	s.until(1, func(context.Context, []byte) (bool, error) {
		if tries++; tries <= times {
			return false, queue.RetryAfter(wait, errors.New("fresh"))
		}
		return true, nil
	})
	if took := time.Since(began); took < times*wait {
		s.Errorf("%d times %v took %v", times, wait, took)
	}
}

// failureAfter redelivers a message no sooner than its delay.
func (s *suite) failureAfter() {
	const wait = 2 * time.Second
	s.send("a", 0)
	var tries []time.Time
	s.until(1, func(context.Context, []byte) (bool, error) {
		if tries = append(tries, time.Now()); len(tries) < 3 {
			return false, fmt.Errorf("wrapped: %w", &queue.Retry{After: wait, Err: errors.New("broken")})
		}
		return true, nil
	})
	for i := range tries[1:] {
		if waited := tries[i+1].Sub(tries[i]); waited < wait {
			s.Errorf("a message that was to wait %v came back after %v", wait, waited)
		}
	}
}

// held drops a message, or redelivers it no sooner than its delay.
func (s *suite) held() {
	const wait = 2 * time.Second
	s.send("a", 0)
	s.send("b", 2*wait)
	var tries []time.Time
	s.until(1, func(_ context.Context, body []byte) (bool, error) {
		if string(body) == "b" {
			return true, nil
		}
		if tries = append(tries, time.Now()); len(tries) == 1 {
			return false, &queue.Retry{After: wait, Held: true, Err: errors.New("another process has it")}
		}
		return false, nil
	})
	switch {
	case len(tries) > 2:
		s.Errorf("a message came %d times", len(tries))
	case len(tries) == 2 && tries[1].Sub(tries[0]) < wait:
		s.Errorf("a message that was to wait %v came back after %v", wait, tries[1].Sub(tries[0]))
	}
}

// panics are failures.
func (s *suite) panics() {
	s.send("a", 0)
	tries := 0
	s.until(1, func(context.Context, []byte) (bool, error) {
		if tries++; tries == 1 {
			panic("broken")
		}
		return true, nil
	})
}

// workers run as many handlers at once as given.
func (s *suite) workers() {
	const workers, messages = 3, 9
	for i := range messages {
		s.send(fmt.Sprint(i), 0)
	}
	var h handled
	var mu sync.Mutex
	running, most := 0, 0
	all := make(chan struct{})
	s.until(workers, func(ctx context.Context, body []byte) (bool, error) {
		mu.Lock()
		running++
		most = max(most, running)
		if running == workers {
			select {
			case <-all:
			default:
				close(all)
			}
		}
		mu.Unlock()
		// No handler ends before all run at once.
		select {
		case <-all:
		case <-ctx.Done():
		}
		mu.Lock()
		running--
		mu.Unlock()
		h.add(body)
		return h.count() == messages, nil
	})
	if most != workers {
		s.Errorf("%d handlers at once, want %d", most, workers)
	}
}

// After endOfContext, Receive waits for the handlers, and interrupted messages are
// redelivered at once, whether the try counts as a failure or not.
func (s *suite) endOfContext() {
	s.endsWith(func(ctx context.Context) error { return ctx.Err() })
	s.endsWith(func(ctx context.Context) error { return queue.RetryAfter(0, ctx.Err()) })
}

func (s *suite) endsWith(outcome func(context.Context) error) {
	s.send("a", 0)
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	ended := false
	_ = s.Receive(ctx, 1, func(ctx context.Context, _ []byte) error {
		cancel()
		<-ctx.Done()
		// Receive must wait for this.
		<-time.After(100 * time.Millisecond)
		ended = true
		return outcome(ctx)
	})
	if !ended {
		s.Error("Receive returned before its handler")
	}
	s.until(1, func(_ context.Context, body []byte) (bool, error) { return string(body) == "a", nil })
}

// manySenders lose no message.
func (s *suite) manySenders() {
	const senders, each = 8, 10
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				if err := s.Send(s.Context(), fmt.Appendf(nil, "%d/%d", i, j), 0); err != nil {
					s.Errorf("send: %v", err)
				}
			}
		})
	}
	var h handled
	s.until(4, func(_ context.Context, body []byte) (bool, error) {
		h.add(body)
		return h.count() == senders*each, nil
	})
	wg.Wait()
}
