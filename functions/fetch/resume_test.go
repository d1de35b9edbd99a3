package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/web"
)

// Images of three parts.
var (
	longA = content(3, 2*testPart+testSegment+12345)
	longB = content(4, 2*testPart+testSegment+12345)
)

// checkpoint reads the job's checkpoint into cp, which stays unchanged if there is
// none.
func (w *world) checkpoint(cp *checkpoint) {
	if err := w.readCheckpoint(cp); err != nil {
		w.t.Error(err)
	}
}

func (w *world) readCheckpoint(cp *checkpoint) error {
	j, _, err := record.Read[job.Job](context.Background(), w.root, layout.FetchJobKey(w.ref))
	if err == nil && j.Checkpoint != nil {
		err = json.Unmarshal(j.Checkpoint, cp)
	}
	return err
}

// edit changes the job's checkpoint.
func (w *world) edit(change func(json.RawMessage) any) {
	w.t.Helper()
	_, _, err := record.Change(context.Background(), w.root, layout.FetchJobKey(w.ref), func(j *job.Job, _ bool) error {
		data, err := json.Marshal(change(j.Checkpoint))
		j.Checkpoint = data
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// interrupted runs the fetch in a process that is shut down within the second part.
func (w *world) interrupted(o *origin, b behavior) {
	w.t.Helper()
	ctx, shutdown := context.WithCancel(w.t.Context())
	defer shutdown()
	o.become(func(o *origin, n int, rw http.ResponseWriter, r *http.Request) {
		var cp checkpoint
		err := w.readCheckpoint(&cp)
		// A request from before the shutdown may arrive after the test has damaged
		// the checkpoint.
		if err != nil && ctx.Err() == nil {
			w.t.Error(err)
		}
		if cp.Parts == 1 {
			shutdown()
		}
		b(o, n, rw, r)
	})
	err := w.process("a", w.root).Handle(ctx, w.task())
	if !errors.Is(err, context.Canceled) {
		w.t.Errorf("shut down: %v", err)
	}
	if j := w.job(); j.Status != job.Queued || j.BytesDone < testPart || j.Owner != "" {
		w.t.Fatalf("after a shutdown the job is %s by %q, %d bytes: %s", j.Status, j.Owner, j.BytesDone, j.Error)
	}
}

// TestResume interrupts a fetch and resumes it in another process, which requests
// only the missing bytes.
func TestResume(t *testing.T) {
	t.Parallel()
	size := int64(len(longA))
	for _, tt := range []struct {
		name  string
		known entry.Entry
		then  behavior // of the origin, after the interruption
		begin func(w *world)
		want  []byte
		asked int64 // at most
	}{
		{"unchanged", entry.Entry{}, good(longA), nil, longA, size - testPart},
		{"unchanged, of a known digest", knows(longA), good(longA), nil, longA, size - testPart},
		{"unchanged, of a known SHA-512", entry.Entry{SHA512: sum512(longA)}, good(longA), nil, longA, size - testPart},
		{"without ranges by now", entry.Entry{}, unranged(good(longA)), nil, longA, size},
		{"changed", entry.Entry{}, good(longB), nil, longB, size - testPart + size},
		{"changed to something shorter", entry.Entry{}, good(longB[:testPart]), nil, longB[:testPart], size + testPart},
		{"without validators by now, of another size", entry.Entry{}, serving(longB[:2*testPart], ""), nil, longB[:2*testPart], 4 * size},
		{"refreshed meanwhile", entry.Entry{}, good(longB), func(w *world) { w.entry(knows(longB)) }, longB, size},
		{"to be verified by SHA-512 meanwhile", entry.Entry{}, good(longA), func(w *world) { w.entry(entry.Entry{SHA512: sum512(longA)}) }, longA, size},
		{"parts given up", entry.Entry{}, good(longA), func(w *world) {
			u := w.pending()[0]
			if err := w.root.AbortUpload(w.t.Context(), u.Key, u.ID); err != nil {
				w.t.Fatal(err)
			}
		}, longA, size},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, nil)
			w := newWorld(t, o.url(), tt.known)
			w.enqueue()
			w.interrupted(o, good(longA))
			if tt.begin != nil {
				tt.begin(w)
			}
			o.become(tt.then)
			j := w.finish(w.process("b", w.root))
			w.has(tt.want)
			w.clean()
			if asked := o.askedBytes("b", int64(len(tt.want))); asked > tt.asked {
				t.Errorf("asked for %d bytes, want %d at most: %v", asked, tt.asked, o.requests())
			}
			if j.Attempt != 2 {
				t.Errorf("attempt %d", j.Attempt)
			}
		})
	}
}

// An ETag may have bytes that a record cannot hold (obs-text, RFC 9110 §8.8.3). The
// date still shows that the source has not changed.
func TestResumeOddETag(t *testing.T) {
	t.Parallel()
	size := int64(len(longA))
	o := newOrigin(t, nil)
	w := newWorld(t, o.url(), entry.Entry{})
	w.enqueue()
	odd := serving(longA, "\"caf\xe9\"")
	w.interrupted(o, odd)
	o.become(odd)
	w.finish(w.process("b", w.root))
	w.has(longA)
	w.clean()
	if asked := o.askedBytes("b", size); asked > size-testPart {
		t.Errorf("asked for %d bytes, want %d at most", asked, size-testPart)
	}
}

// Without validators and without a digest, a fetch begins again after an
// interruption: the rest could be of another image.
func TestNoValidatorsNoResume(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, nil)
	w := newWorld(t, o.url(), entry.Entry{})
	w.enqueue()
	ctx, shutdown := context.WithCancel(t.Context())
	defer shutdown()
	o.become(when(first(1), serving(longA, ""), func(o *origin, n int, rw http.ResponseWriter, r *http.Request) {
		stall(serving(longA, ""), testPart+1000)(o, n, rw, r)
	}))
	f := w.process("a", w.root)
	done := make(chan error, 1)
	go func() { done <- f.Handle(ctx, w.task()) }()
	eventually(t, "the first part is safe", func() bool {
		var cp checkpoint
		w.checkpoint(&cp)
		return cp.Parts == 1
	})
	shutdown()
	<-done
	o.become(serving(longB, ""))
	w.finish(w.process("b", w.root))
	w.has(longB)
	w.clean()
}

// TestDamagedCheckpoint resumes from checkpoints that were changed.
func TestDamagedCheckpoint(t *testing.T) {
	t.Parallel()
	edit := func(change func(*checkpoint)) func(json.RawMessage) any {
		return func(data json.RawMessage) any {
			var cp checkpoint
			_ = json.Unmarshal(data, &cp) // the test would fail
			change(&cp)
			return cp
		}
	}
	for name, change := range map[string]func(json.RawMessage) any{
		"nothing":           func(json.RawMessage) any { return nil },
		"a string":          func(json.RawMessage) any { return "nonsense" },
		"empty":             func(json.RawMessage) any { return struct{}{} },
		"parts below zero":  edit(func(cp *checkpoint) { cp.Parts = -1 }),
		"parts too many":    edit(func(cp *checkpoint) { cp.Parts = 1000 }),
		"parts too few":     edit(func(cp *checkpoint) { cp.Parts = 0 }),
		"another part size": edit(func(cp *checkpoint) { cp.PartSize++ }),
		"no part size":      edit(func(cp *checkpoint) { cp.PartSize = 0 }),
		"a damaged hash":    edit(func(cp *checkpoint) { cp.Hashed.SHA256[40] ^= 1 }),
		"another offset":    edit(func(cp *checkpoint) { cp.Hashed.Offset += testSegment }),
		"no hash":           edit(func(cp *checkpoint) { cp.Hashed.SHA256 = nil }),
		"another upload":    edit(func(cp *checkpoint) { cp.UploadID = "of somebody else" }),
		"another key":       edit(func(cp *checkpoint) { cp.Key = layout.BlobKey(sum256(longB)) }),
		"a key of no kind":  edit(func(cp *checkpoint) { cp.Key = "auth/password" }),
		"said to be whole":  edit(func(cp *checkpoint) { cp.Whole = true }),
		"whole and lost":    edit(func(cp *checkpoint) { cp.Whole, cp.UploadID = true, "lost" }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, nil)
			w := newWorld(t, o.url(), knows(longA))
			w.enqueue()
			w.interrupted(o, good(longA))
			w.edit(change)
			o.become(good(longA))
			f := w.process("b", w.root)
			w.finish(f)
			w.has(longA)
			// Parts of an upload that no record names are swept a day later.
			w.swept(f)
		})
	}
}

// swept checks that no incomplete upload is left after a day.
func (w *world) swept(f *Function) {
	w.t.Helper()
	w.clock.advance(25 * time.Hour)
	if err := f.Reconcile(context.Background()); err != nil {
		w.t.Error(err)
	}
	w.clean()
}

// A fetch that waits for a stalled source ends soon after it is cancelled, in any
// process.
func TestCancelInAStall(t *testing.T) {
	t.Parallel()
	for _, b := range []behavior{
		stall(good(longA), 25_000), stall(unranged(good(longA)), testPart+1000), stall(chunked(longA), 25_000),
		func(_ *origin, _ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		var gone atomic.Int64
		o := newOrigin(t, func(o *origin, n int, rw http.ResponseWriter, r *http.Request) {
			defer gone.Add(1)
			b(o, n, rw, r)
		})
		w := newWorld(t, o.url(), entry.Entry{})
		w.enqueue()
		f := w.process("a", w.root)
		done := make(chan error, 1)
		go func() { done <- f.Handle(t.Context(), w.task()) }()
		eventually(t, "the source is asked", func() bool { return len(o.requests()) > 0 })
		rec := httptest.NewRecorder()
		h := w.routes(w.process("page", w.root))
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodDelete, "/catalog/downloads/x.img", nil))
		if rec.Code != http.StatusNoContent {
			t.Errorf("cancel: %d %s", rec.Code, rec.Body)
		}
		if err := <-done; err != nil {
			t.Errorf("a cancelled fetch: %v", err)
		}
		if j := w.job(); j.Status != job.Cancelled || len(w.keys(layout.BlobPrefix)) > 0 {
			t.Errorf("the job is %s", j.Status)
		}
		w.clean()
		eventually(t, "the source's connections are closed", func() bool { return int(gone.Load()) == len(o.requests()) })
	}
}

// routes serves the function's routes without authentication.
func (w *world) routes(f *Function) http.Handler {
	return web.Handler(web.Config{Auth: allowAll{}, Metric: metric.New(), Log: discard()}, f.Routes())
}

type allowAll struct{}

func (allowAll) Authenticate(*http.Request) (web.Caller, error) {
	return web.Caller{Access: web.Admin}, nil
}

// A job that waits for its next run is cancelled with its parts.
func TestCancelBetweenRuns(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, nil)
	w := newWorld(t, o.url(), entry.Entry{})
	w.enqueue()
	w.interrupted(o, good(longA))
	if len(w.pending()) != 1 {
		t.Fatalf("parts are kept for the next run: %+v", w.pending())
	}
	rec := httptest.NewRecorder()
	w.routes(w.process("page", w.root)).ServeHTTP(rec, httptest.NewRequest(http.MethodDelete, "/catalog/downloads/x.img", nil))
	if j := w.job(); rec.Code != http.StatusNoContent || j.Status != job.Cancelled {
		t.Errorf("cancel: %d, the job is %s", rec.Code, j.Status)
	}
	w.clean()
}

// A download is cancelled by any spelling of its name. The exact spelling has
// precedence.
func TestCancelBySpelling(t *testing.T) {
	t.Parallel()
	const composed, decomposed = "\u00fc.img", "u\u0308.img"
	for _, c := range []struct {
		names []image.Name
		want  []job.Status
	}{
		{[]image.Name{decomposed}, []job.Status{job.Cancelled}},
		{[]image.Name{decomposed, composed}, []job.Status{job.Queued, job.Cancelled}},
		{[]image.Name{"u.img"}, []job.Status{job.Queued}},
	} {
		w := newWorld(t, "https://images.example.org/x.img", entry.Entry{})
		f := w.process("page", w.root)
		for _, name := range c.names {
			_, _, err := f.Jobs.Enqueue(t.Context(), layout.FetchJobKey(layout.RefOf(string(name))), nil, func(j *job.Job) {
				j.Name, j.Ref, j.Src = name, layout.RefOf(string(name)), string(name)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		w.routes(f).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, "/catalog/downloads/"+url.PathEscape(composed), nil))
		for i, name := range c.names {
			j, _, err := record.Read[job.Job](t.Context(), w.root, layout.FetchJobKey(layout.RefOf(string(name))))
			if err != nil || j.Status != c.want[i] {
				t.Errorf("the download of %+q among %+q is %s, %v", name, c.names, j.Status, err)
			}
		}
	}
}

// If two processes receive the task of one job, one of them runs it, once.
func TestRace(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, good(imageA))
	w := newWorld(t, o.url(), entry.Entry{})
	w.enqueue()
	errs := make(chan error)
	const runners = 4
	for i := range runners {
		f := w.process(fmt.Sprint(i), w.root)
		go func() { errs <- f.Handle(t.Context(), w.task()) }()
	}
	for range runners {
		err := <-errs
		if _, ok := errors.AsType[*queue.Retry](err); err != nil && !ok {
			t.Errorf("a runner failed: %v", err)
		}
	}
	w.has(imageA)
	w.clean()
	var asked int64
	for i := range runners {
		asked += o.askedBytes(fmt.Sprint(i), imageBytes)
	}
	if asked != imageBytes {
		t.Errorf("asked for %d bytes of an image of %d", asked, imageBytes)
	}
	w.events(activity.ImageFetched)
}

// events checks that the activity is exactly this.
func (w *world) events(kinds ...string) {
	w.t.Helper()
	events, _, err := (&activity.Log{Root: w.root, Now: time.Now, Log: discard()}).List(context.Background(), activity.Filter{Limit: 10})
	if err != nil {
		w.t.Fatal(err)
	}
	got := make([]string, len(events))
	for i, e := range events {
		got[i] = e.Kind
	}
	if fmt.Sprint(got) != fmt.Sprint(kinds) {
		w.t.Errorf("activity: %v, want %v", got, kinds)
	}
}

// A fetch of bytes that another source has provided requests nothing, and removes
// its own parts.
func TestBroughtByAnother(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, nil)
	w := newWorld(t, o.url(), knows(longA))
	w.enqueue()
	w.interrupted(o, good(longA))
	if _, err := w.root.Put(t.Context(), layout.BlobKey(sum256(longA)), readerOf(longA), int64(len(longA))); err != nil {
		t.Fatal(err)
	}
	o.become(good(longA))
	w.finish(w.process("b", w.root))
	w.has(longA)
	w.clean()
	if n := o.askedBytes("b", int64(len(longA))); n > 0 {
		t.Errorf("the source was asked for %d bytes that are here", n)
	}
}

// A fetch that resumes needs no room for the parts that are stored already.
func TestFreeSpace(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, nil)
	w := newWorld(t, o.url(), knows(longA))
	w.enqueue()
	w.interrupted(o, good(longA))
	o.become(good(longA))
	f := w.process("b", w.root)
	f.Free = func() int64 { return int64(len(longA)) - testPart }
	w.finish(f)
	w.has(longA)

	w = newWorld(t, o.url(), knows(longA))
	w.enqueue()
	f = w.process("c", w.root)
	f.Free = func() int64 { return 1000 }
	o.become(good(longA))
	w.finish(f)
	w.failed(fmt.Sprint(len(longA)), "room for 1000")
	if n := o.askedBytes("c", int64(len(longA))); n > 0 {
		t.Errorf("the source was asked for %d bytes that do not fit", n)
	}
}
