package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/job"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// sent is a queue that keeps what is sent.
type sent []string

func (s *sent) Send(_ context.Context, body []byte, delay time.Duration) error {
	*s = append(*s, fmt.Sprintf("%s in %v", body, delay))
	return nil
}

const name = "x.img" // of the image with the job at key

// runner returns a runner of hash jobs and its queue.
func runner(s store.Root, owner string, work work) (*job.Runner, *sent) {
	q := new(sent)
	log := slog.New(slog.DiscardHandler)
	return &job.Runner{
		Kind: job.Hash, Jobs: newJobs(s, owner), Queue: q, Activity: &activity.Log{Root: s, Now: time.Now, Log: log},
		Metric: metric.New(job.Names()...), Log: log,
		Work: func(ctx context.Context, id string, r *job.Run) (finish, error) {
			if id != name || work == nil {
				return nil, fmt.Errorf("work for %s", id)
			}
			return work(ctx, r)
		},
	}, q
}

func queued(t *testing.T, r *job.Runner) {
	t.Helper()
	j, err := r.Enqueue(t.Context(), name, never, func(j *job.Job) { j.Name = name })
	if err != nil || j.Status != job.Queued {
		t.Fatalf("%+v, %v", j, err)
	}
}

// ended returns the counters of ended jobs above zero, and the events.
func ended(t *testing.T, r *job.Runner) (counters, events []string) {
	t.Helper()
	answer := httptest.NewRecorder()
	r.Metric.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(answer.Body.String()) {
		if rest, ok := strings.CutPrefix(line, "imageroot_jobs_ended_total"); ok && !strings.HasSuffix(line, " 0\n") {
			counters = append(counters, strings.TrimSpace(rest))
		}
	}
	all, _, err := r.Activity.List(t.Context(), activity.Filter{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		events = append(events, e.Kind+" "+e.SubjectKind+" "+e.SubjectID+" "+e.Actor)
	}
	return counters, events
}

// TestOutcome translates how a run ended into the outcome of its message.
func TestOutcome(t *testing.T) {
	for what, tt := range map[string]struct {
		work work
		want queue.Retry
	}{
		"a retry": {func(context.Context, *job.Run) (finish, error) {
			return nil, &job.Retry{After: 5 * time.Second, Err: errBusy}
		}, queue.Retry{After: 5 * time.Second}},
		"a free retry": {func(context.Context, *job.Run) (finish, error) {
			return nil, &job.Retry{After: 5 * time.Second, Free: true, Err: errBusy}
		}, queue.Retry{After: 5 * time.Second, Free: true}},
		"a retry that moved": {func(_ context.Context, r *job.Run) (finish, error) {
			r.Report(1, 2, json.RawMessage(`"on"`))
			return nil, fmt.Errorf("wrapped: %w", &job.Retry{After: time.Second, Err: errBusy})
		}, queue.Retry{After: time.Second, Free: true}},
		"stopped": {until, queue.Retry{}},
		"stopped after it moved": {func(ctx context.Context, r *job.Run) (finish, error) {
			r.Report(1, 2, json.RawMessage(`"on"`))
			return until(ctx, r)
		}, queue.Retry{Free: true}},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, _ := runner(memstore.New(), "a", tt.work)
			queued(t, r)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			err := r.Handle(ctx, name)
			if err == nil {
				t.Fatalf("%s: no error", what)
			}
			got := *queue.Outcome(err)
			if got.Err = nil; got != tt.want {
				t.Errorf("%s: %+v, want %+v", what, got, tt.want)
			}
			if counters, events := ended(t, r); counters != nil || events != nil {
				t.Errorf("%s: %q, %q", what, counters, events)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a, _ := runner(s, "a", until)
		b, _ := runner(s, "b", nil)
		if err := b.Handle(t.Context(), name); err != nil {
			t.Errorf("without a job: %v", err)
		}
		queued(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.Handle(ctx, name) }()
		synctest.Wait()
		out := queue.Outcome(b.Handle(t.Context(), name))
		if !out.Held || out.Free || out.After < time.Second || out.After > 30*time.Second {
			t.Errorf("held by another: %+v", out)
		}
		cancel()
		<-done
	})
}

// TestEnd reports the end of a job once, in the process that ended it.
func TestEnd(t *testing.T) {
	for what, tt := range map[string]struct {
		work             work
		status           job.Status
		counters, events []string
	}{
		"completed": {nothing, job.Completed, []string{`{kind="hash",status="completed"} 1`}, []string{"image.hashed image x.img system"}},
		"failed": {
			func(context.Context, *job.Run) (finish, error) { return nil, errBusy }, job.Failed,
			[]string{`{kind="hash",status="failed"} 1`},
			[]string{"image.hash_failed image x.img system"},
		},
		"cancelled": {until, job.Cancelled, []string{`{kind="hash",status="cancelled"} 1`}, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := memstore.New()
			r, q := runner(s, "a", tt.work)
			var then []string
			r.Then = func(_ context.Context, id string, j job.Job) error {
				then = append(then, id+" "+string(j.Status))
				return nil
			}
			queued(t, r)
			queued(t, r)
			if want := []string{`{"hash":"x.img"} in 0s`}; !slices.Equal(*q, want) {
				t.Errorf("%s: sent %q, want %q", what, *q, want)
			}
			done := make(chan error)
			go func() { done <- r.Handle(t.Context(), name) }()
			if tt.status == job.Cancelled {
				synctest.Wait()
				other, _ := runner(s, "b", nil)
				if _, err := other.Cancel(t.Context(), name); err != nil {
					t.Fatal(err)
				}
				if counters, _ := ended(t, other); counters != nil {
					t.Errorf("%s: the other process counts %q", what, counters)
				}
			}
			if err := <-done; err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if err := r.Handle(t.Context(), name); err != nil {
				t.Errorf("%s, redelivered: %v", what, err)
			}
			counters, events := ended(t, r)
			if j := read(t, s); j.Status != tt.status || !slices.Equal(counters, tt.counters) || !slices.Equal(events, tt.events) || !slices.Equal(then, []string{name + " " + string(tt.status)}) {
				t.Errorf("%s: %s, %q, %q, then %q", what, j.Status, counters, events, then)
			}
		})
	}
	// One that is queued has no run that could report it.
	synctest.Test(t, func(t *testing.T) {
		r, _ := runner(memstore.New(), "a", nil)
		queued(t, r)
		if _, err := r.Cancel(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if counters, events := ended(t, r); !slices.Equal(counters, []string{`{kind="hash",status="cancelled"} 1`}) || events != nil {
			t.Errorf("%q, %q", counters, events)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r, _ := runner(memstore.New(), "a", nil)
		queued(t, r)
		for range 2 {
			if _, err := r.GiveUp(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if counters, events := ended(t, r); !slices.Equal(counters, []string{`{kind="hash",status="failed"} 1`}) || !slices.Equal(events, []string{"image.hash_failed image x.img system"}) {
			t.Errorf("given up: %q, %q", counters, events)
		}
	})
}

// TestResume sends the tasks of active jobs, and cancels those that are turned off.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		r, q := runner(s, "a", nil)
		queued(t, r)
		*q = nil
		held := job.Job{Name: "y.img", Status: job.Running, LeaseUntil: time.Now().Add(20 * time.Second)}
		if err := r.Resume(t.Context(), []job.Job{read(t, s), held, {Name: "z.img", Status: job.Failed}}); err != nil {
			t.Fatal(err)
		}
		if want := []string{`{"hash":"x.img"} in 0s`, `{"hash":"y.img"} in 20s`}; !slices.Equal(*q, want) {
			t.Errorf("sent %q, want %q", *q, want)
		}
		r.Queue = nil
		if err := r.Resume(t.Context(), []job.Job{read(t, s)}); err != nil {
			t.Fatal(err)
		}
		if j := read(t, s); j.Status != job.Cancelled {
			t.Errorf("turned off: %+v", j)
		}
		time.Sleep(8 * 24 * time.Hour)
		if err := r.Resume(t.Context(), []job.Job{read(t, s)}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.ReadRecord(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an old job: %v", err)
		}
	})
}
