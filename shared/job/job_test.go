package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/job"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

const key = "jobs/hash/x.img"

// The tests run on the fake clock of a synctest bubble, so waits take no time.

func newJobs(s store.Records, owner string) *job.Jobs {
	return &job.Jobs{Records: s, Owner: owner, Now: time.Now}
}

func read(t *testing.T, s store.Records) job.Job {
	t.Helper()
	j, _, err := record.Read[job.Job](context.Background(), s, key)
	if err != nil {
		t.Fatalf("read the job: %v", err)
	}
	legal(t, j)
	return j
}

// legal checks the invariants of a stored job.
func legal(t *testing.T, j job.Job) {
	t.Helper()
	running, ended := j.Status == job.Running, !j.Status.Active()
	switch {
	case (j.Owner != "") != running:
		t.Errorf("a job that is %s has the owner %q", j.Status, j.Owner)
	case (j.FinishedAt != nil) != ended:
		t.Errorf("a job that is %s finished at %v", j.Status, j.FinishedAt)
	case ended && j.Status != job.Failed && j.Checkpoint != nil:
		t.Errorf("a job that is %s has the checkpoint %s", j.Status, j.Checkpoint)
	case j.Status == job.Failed && j.Error == "", j.Status == job.Completed && j.Error != "":
		t.Errorf("a job that is %s has the error %q", j.Status, j.Error)
	case running && (j.StartedAt == nil || j.LeaseUntil.IsZero() || j.Attempt == 0):
		t.Errorf("a job that is running has not started: %+v", j)
	case j.Generation == 0:
		t.Errorf("a job has no generation: %+v", j)
	}
}

func never(job.Job) bool { return false }

func enqueue(t *testing.T, jobs *job.Jobs) job.Job {
	t.Helper()
	j, queued, err := jobs.Enqueue(context.Background(), key, never, func(j *job.Job) { j.Name = "x.img" })
	if err != nil || !queued {
		t.Fatalf("enqueue: %v, %v", queued, err)
	}
	return j
}

type (
	finish = func(*job.Job)
	work   = func(context.Context, *job.Run) (finish, error)
)

// nothing is work that completes at once.
func nothing(context.Context, *job.Run) (finish, error) {
	return func(j *job.Job) { j.SHA256 = "done" }, nil
}

// until is work that runs until its context ends, and returns the cause.
func until(ctx context.Context, _ *job.Run) (finish, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func TestEnqueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, s := t.Context(), memstore.New()
		jobs := newJobs(s, "a")
		one := enqueue(t, jobs)
		if one.Status != job.Queued || one.Name != "x.img" || !one.QueuedAt.Equal(time.Now()) || one.Generation != 1 {
			t.Errorf("queued: %+v", one)
		}
		legal(t, one)
		// Queued and running jobs stay unchanged, whatever keep returns.
		again := func(want job.Status) {
			t.Helper()
			j, queued, err := jobs.Enqueue(context.Background(), key, never, func(j *job.Job) { j.Name = "other" })
			if err != nil || queued || j.Status != want || j.Name != "x.img" {
				t.Errorf("enqueue what is %s: %+v, %v, %v", want, j, queued, err)
			}
		}
		again(job.Queued)
		if _, err := jobs.Work(ctx, key, func(context.Context, *job.Run) (finish, error) {
			again(job.Running)
			return func(*job.Job) {}, nil
		}); err != nil {
			t.Error(err)
		}
		// An ended job stays if keep returns true.
		j, queued, err := jobs.Enqueue(ctx, key, func(j job.Job) bool { return j.Status == job.Completed }, nil)
		if err != nil || queued || j.Status != job.Completed {
			t.Errorf("enqueue what will do: %+v, %v, %v", j, queued, err)
		}
		before := read(t, s)
		after := enqueue(t, jobs)
		if after.Generation <= before.Generation || after.Attempt != 0 || after.StartedAt != nil || after.FinishedAt != nil {
			t.Errorf("queued again: %+v after %+v", after, before)
		}
	})
}

func TestWork(t *testing.T) {
	total := int64(100)
	for _, tt := range []struct {
		name string
		work work
		want job.Job
		err  error
	}{
		{
			"completed",
			func(_ context.Context, r *job.Run) (finish, error) {
				r.Report(50, 100, json.RawMessage(`"half"`))
				return func(j *job.Job) { j.SHA256, j.BytesDone = "abc", 100 }, nil
			},
			job.Job{Status: job.Completed, SHA256: "abc", BytesDone: 100, BytesTotal: &total},
			nil,
		},
		{
			"failed",
			func(_ context.Context, r *job.Run) (finish, error) {
				r.Report(50, 100, json.RawMessage(`"half"`))
				return nil, errors.New("the bytes are wrong")
			},
			job.Job{Status: job.Failed, Error: "the bytes are wrong", BytesDone: 50, BytesTotal: &total},
			nil,
		},
		{
			"retry",
			func(_ context.Context, r *job.Run) (finish, error) {
				r.Report(50, -1, json.RawMessage(`"half"`))
				r.Report(60, -1, nil)
				return nil, fmt.Errorf("wrapped: %w", &queue.Retry{After: time.Minute, Err: errBusy})
			},
			job.Job{Status: job.Queued, Error: "wrapped: busy", BytesDone: 60, Checkpoint: json.RawMessage(`"half"`)},
			errBusy,
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := memstore.New()
			jobs := newJobs(s, "a")
			enqueue(t, jobs)
			got, err := jobs.Work(t.Context(), key, tt.work)
			if !errors.Is(err, tt.err) {
				t.Errorf("%s: the error is %v, want %v", tt.name, err, tt.err)
			}
			j := read(t, s)
			if got.Nonce != j.Nonce || got.Status != j.Status || got.Generation != j.Generation {
				t.Errorf("%s: Work returned %+v, and the record is %+v", tt.name, got, j)
			}
			if j.Status != tt.want.Status || j.Error != tt.want.Error || j.SHA256 != tt.want.SHA256 || j.BytesDone != tt.want.BytesDone ||
				string(j.Checkpoint) != string(tt.want.Checkpoint) || (j.BytesTotal == nil) != (tt.want.BytesTotal == nil) {
				t.Errorf("%s: the job is %+v, want %+v", tt.name, j, tt.want)
			}
			if j.Attempt != 1 || j.Name != "x.img" {
				t.Errorf("%s: the job is %+v", tt.name, j)
			}
		})
	}
}

var errBusy = errors.New("busy")

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		jobs := newJobs(s, "a")
		called := func(context.Context, *job.Run) (finish, error) {
			t.Error("work was done without a job")
			return nil, errBusy
		}
		if _, err := jobs.Work(t.Context(), key, called); !errors.Is(err, job.ErrIdle) {
			t.Errorf("work on no job: %v", err)
		}
		if _, _, err := s.ReadRecord(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("work on no job made one: %v", err)
		}
		enqueue(t, jobs)
		if _, err := jobs.Work(t.Context(), key, nothing); err != nil {
			t.Fatal(err)
		}
		if _, err := jobs.Work(t.Context(), key, called); !errors.Is(err, job.ErrIdle) {
			t.Errorf("work on a job that is completed: %v", err)
		}
		enqueue(t, jobs)
		if _, err := jobs.Cancel(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if _, err := jobs.Work(t.Context(), key, called); !errors.Is(err, job.ErrIdle) {
			t.Errorf("work on a job that is cancelled: %v", err)
		}
	})
}

func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		release := make(chan struct{})
		ended := make(chan error)
		go func() {
			_, err := a.Work(t.Context(), key, func(ctx context.Context, r *job.Run) (finish, error) {
				select {
				case <-release:
					return func(*job.Job) {}, nil
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
			})
			ended <- err
		}()
		synctest.Wait()
		// No other process can claim it while its owner lives, which is longer than a
		// lease.
		for range 10 {
			for _, owner := range []string{"a", "b"} {
				_, err := newJobs(s, owner).Work(t.Context(), key, func(context.Context, *job.Run) (finish, error) {
					t.Errorf("%s works on what a works on", owner)
					return nil, errBusy
				})
				if held, ok := errors.AsType[*queue.Retry](err); !ok || !held.Held || held.After <= 0 || held.After > time.Minute {
					t.Errorf("%s, while a works on it: %v (%+v)", owner, err, held)
				}
			}
			time.Sleep(29 * time.Second)
		}
		close(release)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if j := read(t, s); j.Status != job.Completed || j.Attempt != 1 {
			t.Errorf("the job is %+v", j)
		}
	})
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		jobs := newJobs(s, "a")
		enqueue(t, jobs)
		if _, err := jobs.Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
			r.Report(10, -1, nil)
			time.Sleep(1100 * time.Millisecond)
			if j := read(t, s); j.BytesDone != 10 || j.BytesTotal != nil || j.Checkpoint != nil {
				t.Errorf("a second after the first report the job is %+v", j)
			}
			// Reports without a checkpoint must not lose the last one.
			r.Report(20, 100, json.RawMessage(`"twenty"`))
			for n := range int64(100) {
				r.Report(21+n, 1000, nil)
			}
			time.Sleep(1100 * time.Millisecond)
			if j := read(t, s); j.BytesDone != 120 || *j.BytesTotal != 1000 || string(j.Checkpoint) != `"twenty"` {
				t.Errorf("a second after the checkpoint the job is %+v", j)
			}
			r.Report(130, 1000, nil)
			time.Sleep(1100 * time.Millisecond)
			if j := read(t, s); j.BytesDone != 130 || string(j.Checkpoint) != `"twenty"` {
				t.Errorf("the next report made the job %+v", j)
			}
			if r.Job().BytesDone != 0 || r.Job().Status != job.Running {
				t.Errorf("Job, as it was claimed, is %+v", r.Job())
			}
			return func(*job.Job) {}, nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// A run without progress writes only to renew its lease.
func TestQuietRunWritesLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultstore.New(memstore.New(), nil)
		jobs := newJobs(s, "a")
		enqueue(t, jobs)
		s.Reset(nil)
		if _, err := jobs.Work(t.Context(), key, func(context.Context, *job.Run) (finish, error) {
			time.Sleep(10 * time.Minute)
			return func(*job.Job) {}, nil
		}); err != nil {
			t.Error(err)
		}
		if n := s.Writes(); n < 20 || n > 70 {
			t.Errorf("ten quiet minutes took %d writes", n)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, s := t.Context(), memstore.New()
		a, b := newJobs(s, "a"), newJobs(s, "b")
		if _, err := a.Cancel(ctx, key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("cancel of no job: %v", err)
		}
		enqueue(t, a)
		j, err := b.Cancel(ctx, key)
		if err != nil || j.Status != job.Cancelled {
			t.Errorf("cancel of what is queued: %+v, %v", j, err)
		}
		legal(t, j)

		for _, reports := range []bool{false, true} {
			enqueue(t, a)
			go func() {
				time.Sleep(10 * time.Second)
				if j, err := b.Cancel(ctx, key); err != nil || j.Status != job.Cancelled {
					t.Errorf("cancel of what is running: %+v, %v", j, err)
				}
			}()
			began := time.Now()
			j, err = a.Work(ctx, key, func(ctx context.Context, r *job.Run) (finish, error) {
				for n := int64(1); ctx.Err() == nil; n++ {
					if reports {
						r.Report(n, 1000, json.RawMessage(`"cp"`))
					}
					time.Sleep(100 * time.Millisecond)
				}
				if !errors.Is(context.Cause(ctx), job.ErrCancelled) {
					t.Errorf("the cause of the end is %v", context.Cause(ctx))
				}
				return nil, context.Cause(ctx)
			})
			if err != nil || j.Status != job.Cancelled {
				t.Errorf("the work returned %+v, %v", j, err)
			}
			if took := time.Since(began); took > 12*time.Second {
				t.Errorf("a cancel after 10 s stopped the work after %v", took)
			}
			if got := read(t, s); got.Status != job.Cancelled || got.Nonce != j.Nonce {
				t.Errorf("the job is %+v, want %+v", got, j)
			}
		}

		// An ended job stays unchanged.
		enqueue(t, a)
		if _, err := a.Work(ctx, key, nothing); err != nil {
			t.Fatal(err)
		}
		before := read(t, s)
		if j, err := a.Cancel(ctx, key); err != nil || j.Status != job.Completed || read(t, s).Nonce != before.Nonce {
			t.Errorf("cancel of what is completed: %+v, %v", j, err)
		}
	})
}

// TestCancelAtTheEnd cancels a job whose work is done but whose end is not yet written.
func TestCancelAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		j, err := a.Work(t.Context(), key, func(context.Context, *job.Run) (finish, error) {
			if _, err := newJobs(s, "b").Cancel(t.Context(), key); err != nil {
				t.Error(err)
			}
			return func(*job.Job) {}, nil
		})
		if err != nil || j.Status != job.Cancelled || read(t, s).Status != job.Cancelled {
			t.Errorf("the work returned %+v, %v; the job is %s", j, err, read(t, s).Status)
		}
	})
}

func TestDeletedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		go func() {
			time.Sleep(5 * time.Second)
			if err := s.Delete(t.Context(), key); err != nil {
				t.Error(err)
			}
		}()
		if _, err := a.Work(t.Context(), key, until); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("work on a job whose record went: %v", err)
		}
		enqueue(t, a)
		if _, err := a.Work(t.Context(), key, func(context.Context, *job.Run) (finish, error) {
			return func(*job.Job) {}, s.Delete(t.Context(), key)
		}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the end of a job whose record went: %v", err)
		}
		if _, _, err := s.ReadRecord(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the record came back: %v", err)
		}
	})
}

func TestShutdownHandsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(10 * time.Second)
			cancel()
		}()
		j, err := a.Work(ctx, key, func(ctx context.Context, r *job.Run) (finish, error) {
			<-ctx.Done()
			r.Report(70, 100, json.RawMessage(`"seventy"`))
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || j.Status != job.Queued {
			t.Errorf("shutdown: %+v, %v", j, err)
		}
		if j := read(t, s); j.Status != job.Queued || string(j.Checkpoint) != `"seventy"` || j.BytesDone != 70 || j.Error != "" {
			t.Errorf("after a shutdown the job is %+v", j)
		}
		// Another process resumes at once, from the checkpoint.
		if _, err := newJobs(s, "b").Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
			if string(r.Job().Checkpoint) != `"seventy"` || r.Job().Attempt != 2 {
				t.Errorf("the next run begins with %+v", r.Job())
			}
			return func(*job.Job) {}, nil
		}); err != nil {
			t.Error(err)
		}
		// Work that is complete at the shutdown is recorded as completed.
		enqueue(t, a)
		ctx, cancel = context.WithCancel(t.Context())
		j, err = a.Work(ctx, key, func(context.Context, *job.Run) (finish, error) {
			cancel()
			return func(j *job.Job) { j.SHA256 = "done" }, nil
		})
		if err != nil || j.Status != job.Completed || read(t, s).SHA256 != "done" {
			t.Errorf("work that was done at the shutdown: %+v, %v", j, err)
		}
	})
}

// A lastWrite is a store over which a write takes effect, but is answered only after
// ended.
type lastWrite struct {
	store.Records
	ended func()
}

func (s *lastWrite) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	tag, err := s.Records.ReplaceRecord(ctx, key, data, tag)
	s.ended()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%w: %w", store.ErrUnknown, ctx.Err())
	}
	return tag, err
}

// A shutdown in the middle of a claim leaves the job to others at once, too.
func TestShutdownInAClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		enqueue(t, newJobs(s, "a"))
		ctx, cancel := context.WithCancel(t.Context())
		_, err := newJobs(&lastWrite{s, cancel}, "a").Work(ctx, key, until)
		if j := read(t, s); j.Status != job.Queued {
			t.Errorf("the job is %s (%v)", j.Status, err)
		}
	})
}

func TestRetryKeepsCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		for attempt := 1; attempt <= 3; attempt++ {
			_, err := a.Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
				want := ""
				if attempt > 1 {
					want = `"one"`
				}
				if got := r.Job(); string(got.Checkpoint) != want || got.Attempt != attempt || got.Error != "" {
					t.Errorf("attempt %d begins with %+v", attempt, got)
				}
				if attempt == 1 {
					r.Report(1, 2, json.RawMessage(`"one"`))
				}
				return nil, &queue.Retry{Err: errBusy}
			})
			if !errors.Is(err, errBusy) {
				t.Error(err)
			}
		}
	})
}

// A clock can be set back, like that of a process that slept.
type clock struct{ offset time.Duration }

func (c *clock) now() time.Time { return time.Now().Add(c.offset) }

// In TestTakeover, an owner sleeps past its lease and another process takes the job
// over. The first owner changes nothing when it wakes.
func TestTakeover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func() (finish, error)
		other func(*testing.T, *memstore.Root) job.Status
	}{
		{"wakes to publish, while the other works", func() (finish, error) {
			return func(j *job.Job) { j.SHA256 = "stale" }, nil
		}, takeOver},
		{"wakes to fail, while the other works", func() (finish, error) { return nil, errBusy }, takeOver},
		{"wakes to retry, while the other works", func() (finish, error) { return nil, &queue.Retry{Err: errBusy} }, takeOver},
		{"wakes to publish, and the other is done", func() (finish, error) {
			return func(j *job.Job) { j.SHA256 = "stale" }, nil
		}, complete},
		{"wakes to publish, and the job is queued again", func() (finish, error) {
			return func(j *job.Job) { j.SHA256 = "stale" }, nil
		}, func(t *testing.T, s *memstore.Root) job.Status {
			complete(t, s)
			enqueue(t, newJobs(s, "b"))
			return job.Queued
		}},
		{"wakes to publish, and its own process has it again", func() (finish, error) {
			return func(j *job.Job) { j.SHA256 = "stale" }, nil
		}, func(t *testing.T, s *memstore.Root) job.Status { return takeOverAs(t, s, "a") }},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := memstore.New()
			// The sleeping process sends no request, like a stopped one.
			asleep := faultstore.New(s, nil)
			a := newJobs(asleep, "a")
			enqueue(t, a)
			_, err := a.Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
				asleep.Reset(func(faultstore.Call) faultstore.Fault { return faultstore.Before })
				time.Sleep(45 * time.Second)
				want := tt.other(t, s)
				before := read(t, s)
				if before.Status != want {
					t.Fatalf("%s: the other left the job %s, want %s", tt.name, before.Status, want)
				}
				asleep.Reset(nil)
				return tt.end()
			})
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			if j := read(t, s); j.SHA256 == "stale" || j.Error != "" || j.Status == job.Failed {
				t.Errorf("%s: the one that slept made the job %+v", tt.name, j)
			}
		})
	}
}

func takeOver(t *testing.T, s *memstore.Root) job.Status { return takeOverAs(t, s, "b") }

// takeOverAs makes owner run the job until the test ends.
func takeOverAs(t *testing.T, s *memstore.Root, owner string) job.Status {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := newJobs(s, owner).Work(ctx, key, until); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that took over: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	synctest.Wait()
	return job.Running
}

func complete(t *testing.T, s *memstore.Root) job.Status {
	if _, err := newJobs(s, "b").Work(t.Context(), key, nothing); err != nil {
		t.Errorf("the one that took over: %v", err)
	}
	return job.Completed
}

// TestLeaseIsByTheClock moves the injected clock instead of waiting.
func TestLeaseIsByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		jobs := newJobs(s, "a")
		enqueue(t, jobs)
		// A killed process leaves the job claimed.
		if _, _, err := record.Change(t.Context(), s, key, func(j *job.Job, _ bool) error {
			now := time.Now().UTC()
			j.Status, j.Owner, j.StartedAt, j.LeaseUntil = job.Running, "dead", &now, now.Add(30*time.Second)
			j.Generation++
			j.Attempt++
			j.Checkpoint = json.RawMessage(`"half"`)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var c clock
		late := &job.Jobs{Records: s, Owner: "b", Now: c.now}
		c.offset = 29 * time.Second
		_, err := late.Work(t.Context(), key, nothing)
		if held, ok := errors.AsType[*queue.Retry](err); !ok || !held.Held {
			t.Errorf("a second before the lease ends: %v", err)
		}
		c.offset = 30 * time.Second
		if _, err := late.Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
			if j := r.Job(); j.Attempt != 2 || j.Generation != 3 || string(j.Checkpoint) != `"half"` || j.Owner != "b" {
				t.Errorf("taken over as %+v", j)
			}
			return func(*job.Job) {}, nil
		}); err != nil {
			t.Errorf("when the lease ends: %v", err)
		}
	})
}

// A run whose store is out of reach stops once its lease may have ended, and not
// before.
func TestStoreOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultstore.New(memstore.New(), nil)
		a := newJobs(s, "a")
		enqueue(t, a)
		unreachable := func(faultstore.Call) faultstore.Fault { return faultstore.Before }
		if _, err := a.Work(t.Context(), key, func(ctx context.Context, r *job.Run) (finish, error) {
			// An outage shorter than the lease is survived.
			time.Sleep(5 * time.Second)
			r.Report(1, 2, nil)
			s.Reset(unreachable)
			time.Sleep(15 * time.Second)
			s.Reset(nil)
			time.Sleep(15 * time.Second)
			if ctx.Err() != nil {
				t.Errorf("a store that was away for 15 s ended the work: %v", context.Cause(ctx))
			}
			if j := read(t, s); j.BytesDone != 1 {
				t.Errorf("what was reported while the store was away is not written: %+v", j)
			}
			s.Reset(unreachable)
			gone := time.Now()
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), job.ErrLost) {
				t.Errorf("the cause of the end is %v", context.Cause(ctx))
			}
			if took := time.Since(gone); took < 15*time.Second || took > 32*time.Second {
				t.Errorf("the work ended %v after the store went", took)
			}
			s.Reset(nil)
			return nil, context.Cause(ctx)
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestEveryWriteFails fails each write in the life of a job once. The job must still
// end, and its work be done once.
func TestEveryWriteFails(t *testing.T) {
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for _, alsoNextRead := range []bool{false, true} {
			writes := 100
			for n := 1; n <= writes; n++ {
				synctest.Test(t, func(t *testing.T) {
					failed := false
					failRead := false
					s := faultstore.New(memstore.New(), func(c faultstore.Call) faultstore.Fault {
						if c.Write == n && !failed {
							failed, failRead = true, alsoNextRead
							return fault
						}
						if c.Write == 0 && failRead {
							failRead = false
							return faultstore.Before
						}
						return faultstore.None
					})
					name := fmt.Sprintf("write %d failed %v (and the read after it: %v)", n, fault, alsoNextRead)
					done, queuedOnce := 0, 0
					jobs := newJobs(s, "a")
					// As a queue does, redeliver a failed message.
					for range 5 {
						_, queued, err := jobs.Enqueue(t.Context(), key, func(j job.Job) bool { return j.Status == job.Completed }, func(*job.Job) {})
						if queued {
							queuedOnce++
						}
						if err != nil {
							continue
						}
						_, err = jobs.Work(t.Context(), key, func(ctx context.Context, r *job.Run) (finish, error) {
							// Between two beats, so that each has one to write.
							time.Sleep(500 * time.Millisecond)
							for i := range int64(12) {
								r.Report(i, 12, json.RawMessage(fmt.Sprint(i)))
								time.Sleep(time.Second)
								if ctx.Err() != nil {
									return nil, context.Cause(ctx)
								}
							}
							done++
							return func(j *job.Job) { j.SHA256 = "done" }, nil
						})
						if err == nil {
							break
						}
						if held, ok := errors.AsType[*queue.Retry](err); ok && held.Held {
							time.Sleep(held.After)
						}
					}
					if j := read(t, s); j.Status != job.Completed || j.SHA256 != "done" {
						t.Errorf("%s: the job ended as %+v", name, j)
					}
					if done != 1 || queuedOnce > 1 {
						t.Errorf("%s: the work was done %d times, queued %d times", name, done, queuedOnce)
					}
					writes = min(writes, s.Writes())
					if !failed {
						writes = n
					}
				})
			}
			if writes < 10 {
				t.Errorf("the life of a job is %d writes", writes)
			}
		}
	}
}

// In TestRandomFaults, two processes run one job over a server that loses a tenth of
// all requests, reads included.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			under := memstore.New()
			enqueue(t, newJobs(under, "setup"))
			ended := make(chan struct{})
			for _, owner := range []string{"a", "b"} {
				s := faultstore.New(under, faultstore.Random(seed*2+uint64(owner[0]), 0.1, faultstore.Before, faultstore.After, faultstore.Late))
				jobs := newJobs(s, owner)
				go func() {
					defer func() { ended <- struct{}{} }()
					for range 100 {
						_, err := jobs.Work(t.Context(), key, func(ctx context.Context, r *job.Run) (finish, error) {
							for i := range int64(20) {
								r.Report(i, 20, nil)
								time.Sleep(700 * time.Millisecond)
								if ctx.Err() != nil {
									return nil, context.Cause(ctx)
								}
							}
							return func(j *job.Job) { j.SHA256 = "done" }, nil
						})
						if errors.Is(err, job.ErrIdle) {
							return
						}
						time.Sleep(time.Second)
					}
					t.Errorf("seed %d: %s has not seen the job end", seed, owner)
				}()
			}
			<-ended
			<-ended
			if j := read(t, under); j.Status != job.Completed || j.SHA256 != "done" {
				t.Errorf("seed %d: the job ended as %+v", seed, j)
			}
		})
	}
}
