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
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// sent is a queue that records the messages sent.
type sent []string

func (s *sent) Send(_ context.Context, body []byte, delay time.Duration) error {
	*s = append(*s, fmt.Sprintf("%s in %v", body, delay))
	return nil
}

const name = "x.img" // of the image whose job is at key

// runner returns a runner of hash jobs and its queue.
func runner(s store.Root, owner string, work work) (*job.Runner, *sent) {
	q := new(sent)
	log := slog.New(slog.DiscardHandler)
	return &job.Runner{
		Kind: job.Hash,
		Jobs: &job.Jobs{
			Records: s, Owner: owner, Now: time.Now, Queues: job.Queues{job.Hash: q},
			Activity: &activity.Log{Root: s, Now: time.Now, Log: log}, Metric: metric.New(job.Names()...), Log: log,
		},
		Work: func(ctx context.Context, id string, r *job.Run) (finish, error) {
			if id != name || work == nil {
				return nil, fmt.Errorf("work for %s", id)
			}
			return work(ctx, r)
		},
	}, q
}

// handle handles the task of the job.
func handle(ctx context.Context, r *job.Runner) error {
	return job.Runners{r}.Handle(ctx, job.Hash.Task(name))
}

func giveUp(t *testing.T, r *job.Runner) {
	t.Helper()
	if err := (job.Runners{r}).GiveUp(t.Context(), job.Hash.Task(name).Encode()); err != nil {
		t.Fatal(err)
	}
}

// resume resumes jobs, as if the store listed them.
func resume(t *testing.T, r *job.Runner, jobs ...job.Job) {
	t.Helper()
	err := job.Runners{r}.Resume(t.Context(), func(context.Context, ...*job.Kind) ([]job.Job, error) { return jobs, nil })
	if err != nil {
		t.Fatal(err)
	}
}

func queued(t *testing.T, r *job.Runner) {
	t.Helper()
	j, err := r.Enqueue(t.Context(), name, never, func(j *job.Job) { j.Name = name })
	if err != nil || j.Status != job.Queued {
		t.Fatalf("%+v, %v", j, err)
	}
}

// ended returns the nonzero counters of ended jobs, and the events.
func ended(t *testing.T, r *job.Runner) (counters, events []string) {
	t.Helper()
	answer := httptest.NewRecorder()
	r.Jobs.Metric.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(answer.Body.String()) {
		if rest, ok := strings.CutPrefix(line, "imageroot_jobs_ended_total"); ok && !strings.HasSuffix(line, " 0\n") {
			counters = append(counters, strings.TrimSpace(rest))
		}
	}
	all, _, err := r.Jobs.Activity.List(t.Context(), activity.Filter{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		events = append(events, e.Kind+" "+e.SubjectKind+" "+e.SubjectID+" "+e.Actor)
	}
	return counters, events
}

// TestOutcome checks the outcome of the message for each end of a run.
func TestOutcome(t *testing.T) {
	for what, tt := range map[string]struct {
		work work
		want queue.Retry
	}{
		"a retry": {func(context.Context, *job.Run) (finish, error) {
			return nil, &queue.Retry{After: 5 * time.Second, Err: errBusy}
		}, queue.Retry{After: 5 * time.Second}},
		"a free retry": {func(context.Context, *job.Run) (finish, error) {
			return nil, &queue.Retry{After: 5 * time.Second, Free: true, Err: errBusy}
		}, queue.Retry{After: 5 * time.Second, Free: true}},
		"a retry that moved": {func(_ context.Context, r *job.Run) (finish, error) {
			r.Report(1, 2, json.RawMessage(`"on"`))
			return nil, fmt.Errorf("wrapped: %w", &queue.Retry{After: time.Second, Err: errBusy})
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
			err := handle(ctx, r)
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
		if err := handle(t.Context(), b); err != nil {
			t.Errorf("without a job: %v", err)
		}
		queued(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- handle(ctx, a) }()
		synctest.Wait()
		out := queue.Outcome(handle(t.Context(), b))
		if !out.Held || out.Free || out.After < time.Second || out.After > 30*time.Second {
			t.Errorf("held by another: %+v", out)
		}
		cancel()
		<-done
	})
}

// The end of a job is reported once, by the process that ended it.
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
			go func() { done <- handle(t.Context(), r) }()
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
			if err := handle(t.Context(), r); err != nil {
				t.Errorf("%s, redelivered: %v", what, err)
			}
			counters, events := ended(t, r)
			if j := read(t, s); j.Status != tt.status || !slices.Equal(counters, tt.counters) || !slices.Equal(events, tt.events) || !slices.Equal(then, []string{name + " " + string(tt.status)}) {
				t.Errorf("%s: %s, %q, %q, then %q", what, j.Status, counters, events, then)
			}
		})
	}
	// A queued job has no run that could report its end.
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
			giveUp(t, r)
		}
		if counters, events := ended(t, r); !slices.Equal(counters, []string{`{kind="hash",status="failed"} 1`}) || !slices.Equal(events, []string{"image.hash_failed image x.img system"}) {
			t.Errorf("given up: %q, %q", counters, events)
		}
	})
}

// Resume sends the tasks of active jobs, and cancels those of kinds that are turned
// off.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		r, q := runner(s, "a", nil)
		queued(t, r)
		*q = nil
		held := job.Job{Name: "y.img", Status: job.Running, LeaseUntil: time.Now().Add(20 * time.Second)}
		resume(t, r, read(t, s), held, job.Job{Name: "z.img", Status: job.Failed})
		if want := []string{`{"hash":"x.img"} in 0s`, `{"hash":"y.img"} in 20s`}; !slices.Equal(*q, want) {
			t.Errorf("sent %q, want %q", *q, want)
		}
		delete(r.Jobs.Queues, job.Hash)
		resume(t, r, read(t, s))
		if j := read(t, s); j.Status != job.Cancelled {
			t.Errorf("turned off: %+v", j)
		}
		time.Sleep(8 * 24 * time.Hour)
		resume(t, r, read(t, s))
		if _, _, err := s.ReadRecord(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an old job: %v", err)
		}
	})
}

// Each task goes to the runner of its kind.
func TestDispatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran []string
		s := memstore.New()
		hash, _ := runner(s, "a", nil)
		hash.Work = func(_ context.Context, id string, _ *job.Run) (finish, error) {
			ran = append(ran, "hash "+id)
			return func(*job.Job) {}, nil
		}
		waiting := 0
		check := &job.Runner{Kind: job.Check, Jobs: hash.Jobs, Begin: func(context.Context) (job.Work, func(), error) {
			if j, _, err := record.Read[job.Job](t.Context(), s, job.Check.Key("ab")); err != nil || j.Status.Active() && j.Status != job.Queued {
				t.Errorf("before its turn: %+v, %v", j, err)
			}
			waiting++
			return func(_ context.Context, id string, _ *job.Run) (finish, error) {
				ran = append(ran, "check "+id)
				return func(*job.Job) {}, nil
			}, func() { waiting-- }, nil
		}}
		hash.Jobs.Queues[job.Check] = hash.Jobs.Queues[job.Hash]
		rs := job.Runners{hash, check}
		queued(t, hash)
		if _, err := rs.Of(job.Check).Enqueue(t.Context(), "ab", never, func(j *job.Job) { j.SHA256 = "ab" }); err != nil {
			t.Fatal(err)
		}
		for _, task := range []queue.Task{job.Check.Task("ab"), job.Hash.Task(name)} {
			if err := rs.Handle(t.Context(), task); err != nil {
				t.Errorf("%s: %v", task.Encode(), err)
			}
		}
		if want := []string{"check ab", "hash x.img"}; !slices.Equal(ran, want) || waiting != 0 {
			t.Errorf("ran %q, want %q; turns taken and not given back: %d", ran, want, waiting)
		}
		for _, task := range []queue.Task{job.Fetch.Task("ab"), queue.Assemble("ab"), queue.Poll{}} {
			if err := rs.Handle(t.Context(), task); err == nil {
				t.Errorf("%s is taken for a job's", task.Encode())
			}
			if err := rs.GiveUp(t.Context(), task.Encode()); err != nil {
				t.Errorf("%s given up: %v", task.Encode(), err)
			}
		}
		if err := rs.GiveUp(t.Context(), []byte("no task")); err != nil {
			t.Error(err)
		}
		// The kind was turned off after the task was sent.
		delete(hash.Jobs.Queues, job.Hash)
		if err := rs.Handle(t.Context(), job.Hash.Task(name)); err != nil || len(ran) != 2 {
			t.Errorf("turned off: %v, ran %q", err, ran)
		}
	})
}

// A job that is cancelled or given up between runs frees what its checkpoint holds.
func TestEndBetweenRuns(t *testing.T) {
	for what, end := range map[string]func(*testing.T, *job.Runner){
		"cancelled": func(t *testing.T, r *job.Runner) {
			if _, err := r.Cancel(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		},
		"given up": giveUp,
		"turned off": func(t *testing.T, r *job.Runner) {
			delete(r.Jobs.Queues, job.Hash)
			resume(t, r, job.Job{Name: name, Status: job.Queued})
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := memstore.New()
			r, _ := runner(s, "a", func(_ context.Context, r *job.Run) (finish, error) {
				r.Report(1, 2, json.RawMessage(`"half"`))
				return nil, &queue.Retry{Err: errBusy}
			})
			var dropped []string
			r.Drop = func(_ context.Context, j job.Job, checkpoint json.RawMessage) {
				dropped = append(dropped, string(j.Name)+" "+string(checkpoint))
			}
			queued(t, r)
			end(t, r)
			if dropped != nil {
				t.Errorf("%s before its first run, it drops %q", what, dropped)
			}
			r.Jobs.Queues[job.Hash] = new(sent)
			queued(t, r)
			if err := handle(t.Context(), r); err == nil || dropped != nil {
				t.Fatalf("%s: the run ends with %v and drops %q", what, err, dropped)
			}
			end(t, r)
			end(t, r)
			if want := []string{`x.img "half"`}; !slices.Equal(dropped, want) || read(t, s).Checkpoint != nil {
				t.Errorf("%s: drops %q, want %q", what, dropped, want)
			}
		})
	}
}
