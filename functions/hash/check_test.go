package hash

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
)

var middling = noise(5, 2*mib)

// packed returns data in gzip.
func packed(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// checking returns a process that checks, and its queue of check jobs.
func (w *world) checking(owner string, catalog store.Root) (*process, *sender) {
	p, checks := w.process(owner, catalog), new(sender)
	p.Jobs.Queues[job.Check] = checks
	return p, checks
}

// known returns the content record of bytes, or nil if there is none.
func (w *world) known(sha256 layout.SHA256) *content.Record {
	w.t.Helper()
	rec, _, err := record.Read[content.Record](context.Background(), w.catalog, layout.ContentKey(sha256))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &rec
}

func (w *world) checkJob(sha256 layout.SHA256) job.Job {
	w.t.Helper()
	j, _, err := record.Read[job.Job](context.Background(), w.catalog, layout.CheckJobKey(sha256))
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

// hashAndInspect hashes and inspects an image. Its check is queued.
func (w *world) hashAndInspect(p *process, data []byte) (sha256 layout.SHA256) {
	w.t.Helper()
	w.put(imageName, data)
	w.inspect(p, imageName)
	w.run(p)
	return sum256(data)
}

func TestCheck(t *testing.T) {
	bubble(t, func(w *world) {
		p, checks := w.checking("a", w.catalog)
		sha := w.hashAndInspect(p, packed(t, middling))
		if rec := w.known(sha); rec == nil || rec.Kind != content.Gzip || rec.Check != nil || rec.SHA256 != sha {
			t.Fatalf("after hashing: %+v", rec)
		}
		if sent := checks.take(); len(sent) != 1 || sent[0] != string(`{"check":"`+sha)+`"}` {
			t.Errorf("queued: %v", sent)
		}
		// A second inspection neither reads it nor queues it again.
		w.inspect(p, imageName)
		if sent := checks.take(); len(sent) != 0 {
			t.Errorf("queued again: %v", sent)
		}
		w.until(p, job.Check.Task(string(sha)))
		rec, j := w.known(sha), w.checkJob(sha)
		if c := rec.Check; c == nil || c.Verdict != content.Good || c.RawSHA256 != sum256(middling) || *c.RawSizeBytes != int64(len(middling)) {
			t.Errorf("verdict: %+v", c)
		}
		if j.Status != job.Completed || j.Stage != job.Check.Name || j.Name != imageName || j.BytesDone != *j.BytesTotal || j.Checkpoint != nil {
			t.Errorf("job: %+v", j)
		}
		w.hashed(packed(t, middling))
		w.until(p, job.Check.Task(string(sha))) // delivered twice
		w.events(activity.ImageHashed)
	})
}

// A check finds that there is no disk in a compressed image.
func TestCheckFindsNoDisk(t *testing.T) {
	tar := slices.Concat(make([]byte, 257), []byte("ustar"), make([]byte, 2*mib))
	for what, inside := range map[string][]byte{
		"": middling, "a tar archive": tar, "a gzip file": packed(t, middling), "a qcow2 image": append([]byte("QFI\xfb\x00\x00\x00\x03"), middling...),
		"empty": nil, "text": bytes.Repeat([]byte("404 Not Found\n"), 200),
	} {
		bubble(t, func(w *world) {
			p, _ := w.checking("a", w.catalog)
			sha := w.hashAndInspect(p, packed(t, inside))
			w.until(p, job.Check.Task(string(sha)))
			if no := w.known(sha).NoDisk(); (no == "") != (what == "") || !strings.Contains(no, what) {
				t.Errorf("%q: no disk gets it since %q", what, no)
			}
		})
	}
}

// A fault of the image fails the check and nothing else.
func TestCheckFails(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		data := packed(t, middling)[:1_000_000]
		sha := w.hashAndInspect(p, data)
		time.Sleep(time.Second) // events of the same time have no order
		w.until(p, job.Check.Task(string(sha)))
		if c := w.known(sha).Check; c.Verdict != content.Truncated || c.Offset != 1_000_000 || c.RawSizeBytes != nil {
			t.Errorf("verdict: %+v", c)
		}
		if j := w.checkJob(sha); j.Status != job.Failed || !strings.Contains(j.Error, "byte 1000000") {
			t.Errorf("job: %+v", j)
		}
		w.events(activity.ImageCheckFailed, activity.ImageHashed)
		w.hashed(data)
		// It is not retried automatically.
		q, checks := w.checking("b", w.catalog)
		w.until(q, queue.Reconcile{})
		if sent := checks.take(); len(sent) != 0 {
			t.Errorf("after a verdict: %v", sent)
		}
	})
}

// TestCheckFrozen stops a process at each of its writes. Another one runs the
// check, and then the first resumes. TestCheckFaults fails each write.
func TestCheckFrozen(t *testing.T) {
	reached := 0
	const most = 10
	for at := 1; at <= most; at++ {
		for _, late := range []bool{false, true} {
			bubble(t, func(w *world) {
				p, _ := w.checking("inspector", w.catalog)
				sha := w.hashAndInspect(p, packed(t, smallA))
				z := &freezer{Root: w.catalog, at: at, after: late, hit: make(chan struct{}), thaw: make(chan struct{})}
				first, _ := w.checking("first", z)
				done := make(chan error, 1)
				go func() { done <- first.Handle(w.t.Context(), job.Check.Task(string(sha)).Encode()) }()
				synctest.Wait()
				select {
				case <-z.hit:
					reached = max(reached, at)
				default:
					return // the check has ended
				}
				time.Sleep(time.Minute) // the lease lapses
				second, _ := w.checking("second", w.catalog)
				w.until(second, job.Check.Task(string(sha)))
				close(z.thaw)
				<-done
				if c, j := w.known(sha).Check, w.checkJob(sha); c == nil || c.Verdict != content.Good || j.Status != job.Completed {
					t.Fatalf("at write %d, after %v: %+v, %+v", at, late, c, j)
				}
				w.hashed(packed(t, smallA))
			})
		}
	}
	if reached < 3 || reached == most {
		t.Errorf("a check of %d writes", reached)
	}
}

func TestCheckFaults(t *testing.T) {
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; ; n++ {
			done := false
			bubble(t, func(w *world) {
				s := faultstore.New(w.catalog, faultstore.NthWrite(n, fault))
				p, _ := w.checking("a", s)
				sha := w.hashAndInspect(p, packed(t, smallA))
				w.inspect(p, imageName) // as reconciling would
				for range 20 {
					w.until(p, job.Check.Task(string(sha)))
					if !w.checkJob(sha).Status.Active() {
						break
					}
				}
				if c, j := w.known(sha).Check, w.checkJob(sha); c == nil || c.Verdict != content.Good || j.Status != job.Completed {
					t.Fatalf("write %d, %v: %+v, %+v", n, fault, c, j)
				}
				w.hashed(packed(t, smallA))
				done = s.Writes() < n
			})
			if done || t.Failed() {
				break
			}
		}
	}
}

// A check begins again after a shutdown. A deadline after a long run ends it.
func TestCheckStopped(t *testing.T) {
	for _, c := range []struct {
		name     string
		patience time.Duration
		deadline bool
		status   job.Status
	}{
		{"shutdown", time.Minute, false, job.Queued},
		{"a late shutdown", 10 * time.Minute, false, job.Queued},
		{"an early deadline", time.Minute, true, job.Queued},
		{"a deadline", 10 * time.Minute, true, job.Failed},
	} {
		bubble(t, func(w *world) {
			p, _ := w.checking("a", w.catalog)
			sha := w.hashAndInspect(p, packed(t, middling))
			p.tap.read = func(ctx context.Context, _ int64) error {
				select {
				case <-time.After(100 * time.Second):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			ctx, cancel := context.WithCancel(w.t.Context())
			if c.deadline {
				ctx, cancel = context.WithTimeout(w.t.Context(), c.patience)
			} else {
				time.AfterFunc(c.patience, cancel)
			}
			defer cancel()
			_ = p.Handle(ctx, job.Check.Task(string(sha)).Encode()) // the job has the outcome
			rec, j := w.known(sha), w.checkJob(sha)
			if j.Status != c.status || (rec.Check != nil) != (c.status == job.Failed) {
				t.Errorf("%s: %+v, %+v", c.name, j, rec.Check)
			}
			if rec.Check != nil && (rec.Check.Verdict != content.Unchecked || !strings.Contains(rec.Check.Reason, "longer than a function")) {
				t.Errorf("%s: %+v", c.name, rec.Check)
			}
			w.hashed(packed(t, middling))
			if c.status == job.Failed {
				return
			}
			p.tap.read = nil
			w.until(p, job.Check.Task(string(sha)))
			if rec := w.known(sha); rec.Check == nil || rec.Check.Verdict != content.Good {
				t.Errorf("%s, once more: %+v", c.name, rec.Check)
			}
		})
	}
}

// TestCheckReplaced replaces an image while it is checked. The bytes read may be of
// both versions, so there is no verdict.
func TestCheckReplaced(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		old := packed(t, middling)
		sha := w.hashAndInspect(p, old)
		p.tap.read = func(context.Context, int64) error {
			p.tap.read = nil
			w.put(imageName, []byte("another image"))
			return nil
		}
		err := p.Handle(w.t.Context(), job.Check.Task(string(sha)).Encode())
		if _, again := errors.AsType[*queue.Retry](err); !again || w.known(sha).Check != nil {
			t.Errorf("%v, verdict %+v", err, w.known(sha).Check)
		}
		// The same bytes are stored again, and checked.
		w.put("copy.img.gz", old)
		w.inspect(p, "copy.img.gz")
		w.until(p, job.Hash.Task("copy.img.gz"))
		w.until(p, job.Check.Task(string(sha)))
		if c := w.known(sha).Check; c == nil || c.Verdict != content.Good || c.RawSHA256 != sum256(middling) {
			t.Errorf("of the copy: %+v", c)
		}
	})
}

// A check that is stopped in order any number of times is not given up.
func TestCheckStoppedOften(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		sha := w.hashAndInspect(p, packed(t, middling))
		for range 2 * maxCrashes {
			ctx, cancel := context.WithCancel(w.t.Context())
			p.tap.read = func(ctx context.Context, _ int64) error {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			}
			if err := p.Handle(ctx, job.Check.Task(string(sha)).Encode()); !errors.Is(err, context.Canceled) {
				t.Fatalf("stopped: %v", err)
			}
		}
		p.tap.read = nil
		w.until(p, job.Check.Task(string(sha)))
		if c := w.known(sha).Check; c == nil || c.Verdict != content.Good {
			t.Errorf("%+v", c)
		}
	})
}

// A check that kills the process each time is given up.
func TestCheckGivenUp(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		sha := w.hashAndInspect(p, packed(t, smallA))
		_, _, err := record.Change(w.t.Context(), w.catalog, layout.CheckJobKey(sha), func(j *job.Job, _ bool) error {
			j.Checkpoint = fmt.Appendf(nil, `{"begun":%d}`, maxCrashes)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w.until(p, job.Check.Task(string(sha)))
		if c, j := w.known(sha).Check, w.checkJob(sha); c.Verdict != content.Unchecked || j.Status != job.Failed {
			t.Errorf("%+v, %+v", c, j)
		}
	})
	// So is one whose message is received too often.
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		sha := w.hashAndInspect(p, packed(t, smallA))
		for range 2 {
			if err := p.Runners().GiveUp(w.t.Context(), job.Check.Task(string(sha)).Encode()); err != nil {
				t.Fatal(err)
			}
		}
		if c, j := w.known(sha).Check, w.checkJob(sha); c.Verdict != content.Unchecked || j.Status != job.Failed {
			t.Errorf("%+v, %+v", c, j)
		}
	})
}

// ask sends a request to the routes of p.
func (w *world) ask(p *process, method, target, body string) int {
	w.t.Helper()
	code, err := w.send(p, method, target, body)
	if err != nil {
		w.t.Errorf("%s %s: %v", method, target, err)
	}
	return code
}

func (w *world) send(p *process, method, target, body string) (code int, err error) {
	mux := http.NewServeMux()
	for _, r := range p.Routes() {
		mux.HandleFunc(r.Pattern, func(rw http.ResponseWriter, req *http.Request) { err = r.Handle(rw, req) })
	}
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, req)
	return answer.Code, err
}

// A cancelled check is not queued again until an operator requests it.
func TestCheckCancelled(t *testing.T) {
	for _, running := range []bool{false, true} {
		bubble(t, func(w *world) {
			p, checks := w.checking("a", w.catalog)
			sha := w.hashAndInspect(p, packed(t, middling))
			done := make(chan error, 1)
			if running {
				p.tap.read = slowly
				go func() { done <- p.Handle(w.t.Context(), job.Check.Task(string(sha)).Encode()) }()
				time.Sleep(3 * time.Second)
			} else {
				close(done)
			}
			p.Inventory.TouchCatalog(layout.CheckJobKey(sha))
			if code := w.ask(p, "DELETE", "/catalog/hashes/"+imageName, ""); code != http.StatusNoContent {
				t.Fatal(code)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if c, j := w.known(sha).Check, w.checkJob(sha); c == nil || c.Verdict != content.Cancelled || j.Status != job.Cancelled {
				t.Errorf("running %v: %+v, %+v", running, c, j)
			}
			checks.take()
			w.until(p, queue.Reconcile{})
			w.inspect(p, imageName)
			if sent := checks.take(); len(sent) != 0 {
				t.Errorf("it came back: %v", sent)
			}
			p.tap.read = nil
			if code := w.ask(p, "POST", "/catalog/hashes", `{"name": "`+imageName+`"}`); code != http.StatusAccepted {
				t.Fatal(code)
			}
			if sent := checks.take(); len(sent) != 1 {
				t.Errorf("asked for: %v", sent)
			}
			w.until(p, job.Check.Task(string(sha)))
			if c := w.known(sha).Check; c == nil || c.Verdict != content.Good {
				t.Errorf("asked for: %+v", c)
			}
		})
	}
}

// Images from before there were checks are checked a few at a time, and not if
// checks are turned off.
func TestChecksByAndBy(t *testing.T) {
	const images = maxChecks + 15
	for _, known := range []bool{true, false} {
		bubble(t, func(w *world) {
			off := w.process("off", w.catalog)
			for i := range images {
				name := image.Name(fmt.Sprintf("%02d.img.gz", i))
				data := packed(t, []byte(name))
				w.put(name, data)
				w.inspect(off, name)
				w.until(off, job.Hash.Task(string(name)))
				if !known { // like a catalog from before there were checks
					if err := w.catalog.Delete(w.t.Context(), layout.ContentKey(sum256(data))); err != nil {
						t.Fatal(err)
					}
				}
			}
			on, checks := w.checking("on", w.catalog)
			for range 3 {
				w.until(on, queue.Reconcile{})
				for _, s := range on.inspections.take() {
					if err := on.Handle(w.t.Context(), []byte(s)); err != nil {
						t.Fatal(err)
					}
				}
			}
			names := map[string]bool{}
			for _, s := range checks.take() {
				names[s] = true
			}
			if len(names) != maxChecks {
				t.Fatalf("%d checks are queued: %v", len(names), names)
			}
			// Each check that ends queues the next.
			ended := 0
			for ; len(names) > 0 && ended <= images; ended++ {
				for s := range names {
					delete(names, s)
					if err := on.Handle(w.t.Context(), []byte(s)); err != nil {
						t.Fatal(err)
					}
					break
				}
				for _, s := range checks.take() {
					names[s] = true
				}
			}
			if ended != images {
				t.Errorf("%d checks of %d", ended, images)
			}
		})
	}
	// If they share a queue with hashes, few are queued at once.
	bubble(t, func(w *world) {
		off := w.process("off", w.catalog)
		for i := range maxTurns + 3 {
			name := image.Name(fmt.Sprintf("%02d.img.gz", i))
			w.put(name, packed(t, []byte(name)))
			w.inspect(off, name)
			w.until(off, job.Hash.Task(string(name)))
		}
		on := w.process("on", w.catalog)
		on.Jobs.Queues[job.Check] = on.work
		w.until(on, queue.Reconcile{})
		if sent := slices.Compact(on.work.take()); len(sent) != maxTurns {
			t.Errorf("%d checks are queued: %v", len(sent), sent)
		}
	})
	bubble(t, func(w *world) {
		on, _ := w.checking("on", w.catalog)
		sha := w.hashAndInspect(on, packed(t, smallA))
		off := w.process("off", w.catalog)
		w.until(off, queue.Resume{})
		if j := w.checkJob(sha); j.Status != job.Cancelled {
			t.Errorf("turned off: %+v", j)
		}
		on, checks := w.checking("on", w.catalog)
		w.until(on, queue.Reconcile{})
		if sent := checks.take(); len(slices.Compact(sent)) != 1 {
			t.Errorf("turned on again: %v", sent)
		}
	})
}

// The content record of deleted bytes is kept for a day.
func TestForgetContents(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.process("a", w.catalog)
		sha := w.hashAndInspect(p, smallA)
		if rec := w.known(sha); rec == nil || rec.Kind != content.Unknown {
			t.Fatalf("%+v", rec)
		}
		if err := w.images.Delete(w.t.Context(), imageName); err != nil {
			t.Fatal(err)
		}
		w.inspect(p, imageName)
		w.until(p, queue.Reconcile{})
		if w.known(sha) == nil {
			t.Error("it was forgotten at once")
		}
		time.Sleep(forgetAfter + time.Hour)
		w.until(p, queue.Reconcile{})
		if rec := w.known(sha); rec != nil {
			t.Errorf("it is kept for ever: %+v", rec)
		}
	})
}

// A long check delays only other long checks.
func TestCheckBesideLong(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		long := w.hashAndInspect(p, packed(t, middling))
		w.put("short.img", packed(t, smallA))
		w.until(p, queue.InspectImage("short.img"))
		w.until(p, job.Hash.Task("short.img"))
		short := sum256(packed(t, smallA))
		ctx, cancel := context.WithCancel(w.t.Context())
		p.tap.read = func(ctx context.Context, _ int64) error {
			select {
			case <-time.After(10 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var running sync.WaitGroup
		running.Go(func() { _ = p.Handle(ctx, job.Check.Task(string(long)).Encode()) })
		synctest.Wait()
		before := time.Now()
		w.until(p, job.Check.Task(string(short)))
		if c := w.known(short).Check; c == nil || c.Verdict != content.Good || w.known(long).Check != nil {
			t.Errorf("beside a long check: %+v", c)
		}
		if waited := time.Since(before); waited > longTime+20*time.Second {
			t.Errorf("a check waited %s for a long one", waited)
		}
		// A check that is known to be long is delayed without reading the image again.
		second, err := p.turns.begin(ctx, p.Now)
		if err != nil || second.lengthen() {
			t.Errorf("two long checks at once (%v)", err)
		}
		time.Sleep(longTime - time.Second)
		if !second.keep() {
			t.Error("a short check is put off")
		}
		time.Sleep(time.Second)
		if second.keep() {
			t.Error("two long checks at once")
		}
		third, cancelThird := context.WithTimeout(ctx, time.Second)
		if _, err := p.turns.begin(third, p.Now); err == nil {
			t.Error("two short checks at once")
		}
		cancelThird()
		second.end()
		cancel()
		running.Wait()
		if turn, err := p.turns.begin(w.t.Context(), p.Now); err != nil || !turn.lengthen() {
			t.Errorf("the turn of a check is not given back (%v)", err)
		}
	})
}

// An image whose metadata has a size above the limit is not read.
func TestCheckBeyond(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		// One frame of 1 TiB (RFC 8878, section 3.1.1.1), by its header.
		frame := append([]byte("\x28\xb5\x2f\xfd\xe0"), 0, 0, 0, 0, 0, 1, 0, 0)
		sha := w.hashAndInspect(p, append(frame, 0x03, 0x00, 0x00, 0)) // the last block, of one zero
		w.until(p, job.Check.Task(string(sha)))
		if c := w.known(sha).Check; c == nil || c.Verdict != content.Unchecked || !strings.Contains(c.Reason, "more than 32 GiB") {
			t.Errorf("verdict: %+v", c)
		}
	})
}
