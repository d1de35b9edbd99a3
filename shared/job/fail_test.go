package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/job"
	"imageroot/shared/queue"
	"imageroot/shared/store/memstore"
)

// TestFail calls Fail on jobs in every state.
func TestFail(t *testing.T) {
	const reason = "given up"
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a, b := newJobs(s, "a"), newJobs(s, "b")
		fail := func(failed bool, status job.Status, text string) {
			t.Helper()
			j, did, err := b.Fail(context.Background(), key, reason)
			if err != nil || did != failed || j.Status != status || j.Error != text {
				t.Errorf("%v, %v: %+v", did, err, j)
			}
		}
		fail(false, "", "") // there is no job

		enqueue(t, a)
		fail(true, job.Failed, reason)
		read(t, s) // checks that it is legal
		fail(false, job.Failed, reason)

		// The error of the last run comes before the reason.
		enqueue(t, a)
		if _, err := a.Work(t.Context(), key, func(context.Context, *job.Run) (finish, error) {
			return nil, &queue.Retry{Err: errors.New("no room")}
		}); err == nil {
			t.Error("a run that is to be tried again was none")
		}
		fail(true, job.Failed, "no room ("+reason+")")

		// A job that a process holds is not failed, and completes.
		enqueue(t, a)
		if _, err := a.Work(t.Context(), key, func(ctx context.Context, r *job.Run) (finish, error) {
			fail(false, job.Running, "")
			return nothing(ctx, r)
		}); err != nil {
			t.Error(err)
		}
		fail(false, job.Completed, "")

		// A job whose lease has lapsed is failed, and its owner detects it.
		enqueue(t, a)
		late := &clock{}
		sleeper := &job.Jobs{Records: s, Owner: "sleeper", Now: late.now}
		j, err := sleeper.Work(t.Context(), key, func(ctx context.Context, r *job.Run) (finish, error) {
			late.offset = -time.Minute // its clock stops here
			ahead := &job.Jobs{Records: s, Owner: "b", Now: func() time.Time { return time.Now().Add(time.Minute) }}
			if _, did, err := ahead.Fail(context.Background(), key, reason); err != nil || !did {
				t.Errorf("an abandoned job: %v, %v", did, err)
			}
			return nothing(ctx, r)
		})
		if err != nil || j.Status != job.Failed || read(t, s).SHA256 != "" {
			t.Errorf("the owner that woke up: %+v, %v", j, err)
		}
	})
}

// A run that a shutdown stops is Free if it made progress.
func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		for i, tt := range []struct {
			checkpoint string
			moved      bool
		}{
			{"", false},
			{`"one"`, true},
			{"", false},
			{`"one"`, false}, // unchanged
			{`"two"`, true},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := a.Work(ctx, key, func(_ context.Context, r *job.Run) (finish, error) {
				r.Report(int64(i), 100, nil)
				if tt.checkpoint != "" {
					r.Report(int64(i), 100, json.RawMessage(tt.checkpoint))
				}
				cancel()
				return nil, ctx.Err()
			})
			stopped, ok := errors.AsType[*queue.Retry](err)
			if !ok || stopped.Free != tt.moved || !errors.Is(err, context.Canceled) {
				t.Errorf("run %d, with the checkpoint %s: %v, %+v", i, tt.checkpoint, err, stopped)
			}
			if j := read(t, s); j.Status != job.Queued || j.Attempt != i+1 {
				t.Errorf("run %d leaves %+v", i, j)
			}
		}
	})
}

// A Retry is free if the run made progress, or if work says so.
func TestRetryIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newJobs(memstore.New(), "a")
		enqueue(t, a)
		for _, tt := range []struct{ moves, says, free bool }{{}, {moves: true, free: true}, {}, {says: true, free: true}} {
			_, err := a.Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
				if tt.moves {
					r.Report(1, 2, json.RawMessage(`"on"`))
				}
				return nil, &queue.Retry{Free: tt.says, Err: errBusy}
			})
			if retry, ok := errors.AsType[*queue.Retry](err); !ok || retry.Free != tt.free {
				t.Errorf("%+v: %+v", tt, err)
			}
		}
	})
}

// A job fails after a day of runs without progress. Free tries and progress postpone
// that.
func TestRetriedForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		a := newJobs(s, "a")
		enqueue(t, a)
		run := func(retry *queue.Retry, checkpoint string) job.Job {
			t.Helper()
			j, err := a.Work(t.Context(), key, func(_ context.Context, r *job.Run) (finish, error) {
				if checkpoint != "" {
					r.Report(1, 2, json.RawMessage(checkpoint))
				}
				return nil, retry
			})
			if (err != nil) != j.Status.Active() {
				t.Errorf("%v leaves %+v", err, j)
			}
			read(t, s)
			time.Sleep(23 * time.Hour)
			return j
		}
		for i, status := range []job.Status{
			run(&queue.Retry{Err: errBusy}, "").Status,
			run(&queue.Retry{Err: errBusy}, `"on"`).Status,
			run(&queue.Retry{Err: errBusy}, "").Status,
			run(&queue.Retry{Err: errBusy, Free: true}, "").Status,
			run(&queue.Retry{Err: errBusy}, "").Status,
			run(&queue.Retry{Err: errBusy}, "").Status,
		} {
			if status != job.Queued {
				t.Errorf("run %d leaves the job %s", i, status)
			}
		}
		j := run(&queue.Retry{Err: errBusy}, "")
		if j.Status != job.Failed || j.Error != errBusy.Error() || j.Checkpoint != nil {
			t.Errorf("after a day: %+v", j)
		}
		if j.Recovers(time.Now()) || !j.Recovers(time.Now().Add(2*time.Hour)) {
			t.Errorf("%+v recovers 23 hours after its end: %v, 25 hours: %v", j, j.Recovers(time.Now()), j.Recovers(time.Now().Add(2*time.Hour)))
		}
		enqueue(t, a)
		if _, err := a.Work(t.Context(), key, func(context.Context, *job.Run) (finish, error) { return nil, errBusy }); err != nil {
			t.Error(err)
		}
		if j := read(t, s); j.Status != job.Failed || j.Recovers(time.Now().Add(48*time.Hour)) {
			t.Errorf("over an error of the work: %+v", j)
		}
	})
}
