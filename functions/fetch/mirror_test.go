package fetch

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/record/recordtest"
)

// mirror serves data as the nth of several servers, with its own ETag and date.
func mirror(data []byte) behavior {
	return func(_ *origin, n int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", fmt.Sprintf(`"mirror-%d"`, n%3))
		http.ServeContent(w, r, "x.img", time.Unix(1_700_000_000+int64(n%3), 0), bytes.NewReader(data))
	}
}

// ranges answers requests for a range by refused, and others by whole.
func ranges(refused, whole behavior) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		b := whole
		if field := r.Header.Get("Range"); field != "" && !strings.HasSuffix(field, "-") {
			b = refused
		}
		b(o, n, w, r)
	}
}

// crowded refuses requests while it serves the maximum number of others.
func crowded(most int64, b behavior) behavior {
	var now atomic.Int64
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		defer now.Add(-1)
		if now.Add(1) > most {
			status(http.StatusForbidden)(o, n, w, r)
			return
		}
		b(o, n, w, r)
	}
}

// A source is fetched if one of its servers can send the whole, even if others
// refuse.
func TestUnevenSources(t *testing.T) {
	t.Parallel()
	a, b := imageA, imageB
	is := func(k, of int) func(int) bool { return func(n int) bool { return n%of == k } }
	one := func(k int) func(int) bool { return func(n int) bool { return n == k } }
	gone, expired := status(http.StatusNotFound), status(http.StatusForbidden)
	for _, tt := range []struct {
		name   string
		known  entry.Entry
		source behavior
	}{
		{"mirrors with other validators", knows(a), mirror(a)},
		{"mirrors with other validators, by SHA-512", entry.Entry{SHA512: sum512(a)}, mirror(a)},
		{"mirrors that drop connections", knows(a), when(is(0, 3), cut(mirror(a), 20_000, true), mirror(a))},
		{"a mirror with another image of that size, once", knows(a), when(one(4), serving(b, `"b"`), mirror(a))},
		{"a mirror with an image of another size", knows(a), when(is(0, 4), serving(b[:testPart], `"b"`), mirror(a))},
		{"one answer in five is 404", entry.Entry{}, when(is(0, 5), gone, good(a))},
		{"one answer in five is 403, after a digest", knows(a), when(is(0, 5), expired, mirror(a))},
		{"the first answer is 404", entry.Entry{}, when(first(1), gone, good(a))},
		{"no ranges but for a while", entry.Entry{}, when(first(4), good(a), ranges(expired, good(a)))},
		{"no ranges, by 503", entry.Entry{}, when(first(4), good(a), ranges(status(http.StatusServiceUnavailable), good(a)))},
		{"no ranges, by hanging up", entry.Entry{}, when(first(4), good(a), ranges(cut(status(0), 0, false), good(a)))},
		{"one connection at once", entry.Entry{}, crowded(1, good(a))},
		{"two connections at once", entry.Entry{}, crowded(2, good(a))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, tt.source)
			w := newWorld(t, o.url(), tt.known)
			w.enqueue()
			w.finish(w.process("a", w.root))
			w.has(a)
			w.clean()
			e, _, err := record.Read[entry.Entry](t.Context(), w.root, layout.EntryKey(w.ref))
			if err != nil || e.Changed != "" {
				t.Errorf("the entry of an image that was fetched says %q, %v", e.Changed, err)
			}
		})
	}
}

// With a digest, mirrors are one source: no byte is requested twice, in one run or
// in several.
func TestMirrorsAreOneSource(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, mirror(longA))
	known := knows(longA)
	known.Source = entry.Source{ETag: `"when it was added"`}
	w := newWorld(t, o.url(), known)
	w.enqueue()
	w.interrupted(o, mirror(longA))
	o.become(mirror(longA))
	w.finish(w.process("b", w.root))
	w.has(longA)
	if asked, want := o.askedBytes("b", int64(len(longA))), int64(len(longA)-testPart); asked > want {
		t.Errorf("asked for %d bytes, want %d at most", asked, want)
	}
}

// expires serves the first part of an image, and refuses the rest.
func expires(t *testing.T, data []byte) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		b := good(data)
		if from, _ := parseRange(t, r.Header.Get("Range"), int64(len(data))); from >= testPart {
			b = status(http.StatusForbidden)
		}
		b(o, n, w, r)
	}
}

// The parts from a URL that has expired are resumed by a fetch of the same content,
// from the same URL or another.
func TestExpiredURL(t *testing.T) {
	t.Parallel()
	size := int64(len(longA))
	for name, path := range map[string]string{"a fresh URL": "/x.img?signature=2", "the same URL": "/x.img?signature=1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, expires(t, longA))
			w := newWorld(t, o.Server.URL+"/x.img?signature=1", knows(longA))
			w.enqueue()
			j := w.finish(w.process("a", w.root))
			if want := fmt.Sprintf("first %d bytes are kept", testPart); j.Status != job.Failed || !strings.Contains(j.Error, "403") || !strings.Contains(j.Error, want) {
				t.Fatalf("the URL expired: %s: %s", j.Status, j.Error)
			}
			f := w.process("b", w.root)
			w.clock.advance(20 * time.Hour)
			if err := f.Reconcile(t.Context()); err != nil || len(w.pending()) != 1 {
				t.Fatalf("20 hours later there are %d uploads, %v", len(w.pending()), err)
			}
			o.become(good(longA))
			w.src = o.Server.URL + path
			w.ref = layout.RefOf(w.src)
			w.entry(knows(longA))
			w.enqueue()
			w.finish(f)
			w.has(longA)
			w.clean()
			if asked := o.askedBytes("b", size); asked != size-testPart {
				t.Errorf("asked for %d bytes, want %d", asked, size-testPart)
			}
		})
	}
}

// The parts from a URL that has expired are swept a day later.
func TestExpiredURLIsSwept(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, expires(t, longA))
	w := newWorld(t, o.url(), knows(longA))
	w.enqueue()
	w.finish(w.process("a", w.root))
	w.failed("403", "kept for a day")
}

// The parts of a job of a newer version are not swept.
func TestNewerJobKeepsParts(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, expires(t, longA))
	w := newWorld(t, o.url(), knows(longA))
	w.enqueue()
	w.finish(w.process("a", w.root))
	data, tag, err := w.root.ReadRecord(t.Context(), layout.FetchJobKey(w.ref))
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(data), `"schema":1`, `"schema":2`, 1)
	if _, err := w.root.ReplaceRecord(t.Context(), layout.FetchJobKey(w.ref), []byte(newer), tag); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(30 * 24 * time.Hour)
	f := w.process("b", w.root)
	for _, task := range []queue.Task{queue.Reconcile{}, queue.Resume{}, job.Fetch.Task(string(w.ref))} {
		if err := f.Handle(t.Context(), task.Encode()); err != nil {
			t.Error(err)
		}
	}
	if now, _, err := w.root.ReadRecord(t.Context(), layout.FetchJobKey(w.ref)); err != nil || string(now) != newer || len(w.pending()) != 1 {
		t.Errorf("%d uploads and the record %s are left (%v)", len(w.pending()), now, err)
	}
}

// A source with a fetched record of a newer version is not fetched.
func TestNewerFetched(t *testing.T) {
	t.Parallel()
	for _, queued := range []bool{false, true} {
		o := newOrigin(t, good(imageA))
		w := newWorld(t, o.url(), entry.Entry{})
		f := w.process("a", w.root)
		key := layout.FetchedKey(w.ref)
		if !queued {
			recordtest.Refused(t, w.root, key, func() {
				rec := httptest.NewRecorder()
				req := httptest.NewRequest(http.MethodPost, "/catalog/downloads", strings.NewReader(`{"src": "`+w.src+`"}`))
				req.Header.Set("Content-Type", "application/json")
				if w.routes(f).ServeHTTP(rec, req); rec.Code != http.StatusConflict {
					t.Errorf("asked for: %d %s", rec.Code, rec.Body)
				}
			})
			continue
		}
		w.enqueue()
		if _, err := w.root.CreateRecord(t.Context(), key, []byte(`{"schema": 99}`)); err != nil {
			t.Fatal(err)
		}
		if j := w.finish(f); j.Status != job.Failed || !strings.Contains(j.Error, string(key)) {
			t.Errorf("the job is %s: %s", j.Status, j.Error)
		}
		if asked := o.requests(); asked != nil || len(w.keys(layout.BlobPrefix)) > 0 {
			t.Errorf("the source was asked %v", asked)
		}
	}
}
