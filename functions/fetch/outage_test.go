package fetch

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/queue"
)

// TestOutage has a source that fails for longer than a run retries it, after the
// first part of an image.
func TestOutage(t *testing.T) {
	down := func(*origin, int, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	busy := status(http.StatusServiceUnavailable)
	size := int64(len(longA))
	// begin runs the fetch until the source fails, and checks that the first part is
	// kept.
	begin := func(t *testing.T, o *origin, w *world, away behavior) {
		t.Helper()
		w.enqueue()
		o.become(func(o *origin, n int, rw http.ResponseWriter, r *http.Request) {
			b := good(longA)
			if from, _ := parseRange(t, r.Header.Get("Range"), size); from >= testPart {
				b = away
			}
			b(o, n, rw, r)
		})
		err := w.process("a", w.root).Handle(t.Context(), w.task())
		if retry, ok := errors.AsType[*queue.Retry](err); !ok || !retry.Free || retry.After < minOutageWait || retry.After > maxOutageWait {
			t.Fatalf("the source is away: %v: %+v, %v", err, w.job(), o.requests())
		}
		j := w.job()
		if j.Status != job.Queued || !strings.Contains(j.Error, fmt.Sprintf("first %d bytes are kept", testPart)) || len(w.pending()) != 1 {
			t.Fatalf("the source is away: %s: %s, %d uploads", j.Status, j.Error, len(w.pending()))
		}
	}
	for name, away := range map[string]behavior{"cut off": down, "overloaded": busy} {
		t.Run(name+", comes back", func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, nil)
			w := newWorld(t, o.url(), knows(longA))
			begin(t, o, w, away)
			w.clock.advance(6 * time.Hour)
			_ = w.process("b", w.root).Handle(t.Context(), w.task()) // the outage continues
			if j := w.job(); j.Status != job.Queued {
				t.Fatalf("after six hours: %s: %s", j.Status, j.Error)
			}
			o.become(good(longA))
			w.finish(w.process("c", w.root))
			w.has(longA)
			w.clean()
			if asked := o.askedBytes("c", size); asked > size-testPart {
				t.Errorf("asked for %d bytes although %d were kept", asked, testPart)
			}
		})
		t.Run(name+", for good", func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, nil)
			w := newWorld(t, o.url(), knows(longA))
			begin(t, o, w, away)
			w.clock.advance(maxOutage + time.Minute)
			w.finish(w.process("b", w.root))
			w.failed("tried")
		})
	}
	// A job does not wait for the source if the fetch could not be resumed.
	t.Run("without validators or a digest", func(t *testing.T) {
		t.Parallel()
		o := newOrigin(t, when(first(1), cut(serving(longA, ""), testPart+1000, true), down))
		w := newWorld(t, o.url(), entry.Entry{})
		w.enqueue()
		_ = w.process("a", w.root).Handle(t.Context(), w.task())
		w.failed("without an answer", "tried")
	})
}
