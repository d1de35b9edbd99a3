package fetch

import (
	"errors"
	"strings"
	"testing"
	"time"

	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/source"
)

// A download that a process's settings forbid is left to processes with the
// settings of the one that queued it. It fails if the process's own settings are
// the same.
func TestForbiddenHere(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, good(smallA))
	w := newWorld(t, o.url(), knows(smallA))
	allowed := w.process("allowed", w.root)
	forbidden := w.process("forbidden", w.root)
	forbidden.Sources = source.New(source.Config{})
	queuedBy := func(f *Function) {
		t.Helper()
		_, _, err := record.Change(t.Context(), w.root, layout.FetchJobKey(w.ref), func(j *job.Job, _ bool) error {
			j.Reach = f.Sources.Reach()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	w.enqueue()
	queuedBy(allowed)
	_, again := errors.AsType[*queue.Retry](forbidden.Handle(t.Context(), w.task()))
	if j := w.job(); !again || j.Status != job.Queued || !strings.Contains(j.Error, "IMAGEROOT_ALLOW_NET") {
		t.Errorf("after the process that may not: retried %v, %s, %q", again, j.Status, j.Error)
	}
	if err := allowed.Handle(t.Context(), w.task()); err != nil || w.job().Status != job.Completed {
		t.Errorf("after the process that may: %+v, %v", w.job(), err)
	}
	w.has(smallA)

	w = newWorld(t, o.url(), entry.Entry{})
	forbidden = w.process("forbidden", w.root)
	forbidden.Sources = source.New(source.Config{})
	w.enqueue()
	queuedBy(forbidden)
	if err := forbidden.Handle(t.Context(), w.task()); err != nil || w.job().Status != job.Failed {
		t.Errorf("queued by the process that may not: %+v, %v", w.job(), err)
	}
	w.enqueue()
	queuedBy(allowed)
	w.clock.advance(25 * time.Hour)
	if err := forbidden.Handle(t.Context(), w.task()); err != nil || w.job().Status != job.Failed {
		t.Errorf("a day later, with no process that may: %+v, %v", w.job(), err)
	}
}
