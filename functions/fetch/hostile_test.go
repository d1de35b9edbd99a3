package fetch

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/queue"
)

// For any behavior of the source, a fetch stores exactly the right bytes, or fails
// with the reason and leaves nothing.
func TestHostileSources(t *testing.T) {
	a, b := imageA, imageB
	unknown := entry.Entry{}
	half := fmt.Sprint(imageBytes / 2)
	size := fmt.Sprint(imageBytes)
	noRange := unranged(good(a))
	bare := serving(a, "") // no validators at all
	ranges := func(total int64, shift int) behavior {
		return func(o *origin, _ int, w http.ResponseWriter, r *http.Request) {
			from, to := parseRange(o.t, r.Header.Get("Range"), min(total, imageBytes))
			w.Header().Set("ETag", `"lies"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+int64(shift), to+int64(shift)-1, total))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(a[from:to])
		}
	}
	gz := func() []byte {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		_, _ = z.Write(a[:100_000])
		_ = z.Close()
		return buf.Bytes()
	}()
	for _, tt := range []struct {
		name   string
		source behavior
		known  entry.Entry
		want   []byte   // the stored bytes, or
		words  []string // in the reason of the failure
	}{
		{"good", good(a), unknown, a, nil},
		{"good, of a known digest", good(a), knows(a), a, nil},
		{"good, of a known SHA-512", good(a), entry.Entry{SHA512: sum512(a)}, a, nil},
		{"of another SHA-256", good(b), entry.Entry{SHA256: sum256(a)}, nil, []string{string("expected SHA-256 " + sum256(a)), string("got " + sum256(b))}},
		{"of another SHA-512", good(b), entry.Entry{SHA512: sum512(a)}, nil, []string{"expected SHA-512 " + sum512(a), "got " + sum512(b)}},

		{"resets now and then", when(func(n int) bool { return n%2 == 1 }, cut(good(a), 20_000, true), good(a)), unknown, a, nil},
		{"closes now and then", when(func(n int) bool { return n%2 == 1 }, cut(good(a), 20_000, false), good(a)), unknown, a, nil},
		{"resets without ranges", when(first(3), cut(noRange, 3*testSegment, true), noRange), unknown, a, nil},
		{"closes without ranges, a bit later each time", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			cut(noRange, n*testSegment, false)(o, n, w, r)
		}, unknown, a, nil},
		{"always closes at the same place", cut(noRange, imageBytes/2, false), unknown, nil, []string{half + " of " + size, "tried"}},
		{"always resets at the same place", cut(noRange, imageBytes/2, true), unknown, nil, []string{"lost after", "tried"}},
		{"always closes within a range", when(after(3), cut(good(a), 6_000, false), good(a)), unknown, a, nil},
		{"closes before any byte", when(after(3), cut(good(a), 0, false), good(a)), unknown, nil, []string{"after 0 of", "tried"}},
		{"hangs up without an answer", when(first(2), cut(status(0), 0, false), good(a)), unknown, a, nil},
		{"stalls now and then", when(func(n int) bool { return n == 2 || n == 5 }, stall(good(a), 25_000), good(a)), unknown, a, nil},
		{"stalls without ranges", when(first(1), stall(noRange, 4*testSegment), noRange), unknown, a, nil},
		{"always stalls", stall(noRange, 4*testSegment), unknown, nil, []string{"sent nothing for 200ms", "tried"}},

		{"sends more than it says", raw("200 OK\r\nContent-Length: "+half, a), knows(a), nil, []string{"has " + half + " bytes", "says " + size}},
		{"sends less than it says", raw("200 OK\r\nContent-Length: "+size, a[:imageBytes/2]), unknown, nil, []string{half + " of " + size}},
		{"is shorter than the catalog says", good(a[:imageBytes/2]), sized(imageBytes), nil, []string{half, size}},
		{"is longer than the catalog says", good(a), sized(imageBytes / 2), nil, []string{half, size}},
		{"overstates the total", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			if from, _ := parseRange(o.t, r.Header.Get("Range"), 3*imageBytes); from >= imageBytes {
				status(http.StatusRequestedRangeNotSatisfiable, "Content-Range", "bytes */"+size)(o, n, w, r)
				return
			}
			ranges(3*imageBytes, 0)(o, n, w, r)
		}, unknown, nil, []string{"changed"}},
		{"understates the total", ranges(imageBytes/2, 0), entry.Entry{SHA256: sum256(a)}, nil, []string{string("wrong digest: expected SHA-256 " + sum256(a))}},
		{"changes the total", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			ranges(imageBytes+int64(n), 0)(o, n, w, r)
		}, unknown, nil, []string{"changed while it was fetched: it had 4"}},
		{"has a body of another length than its range", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			if from, to := parseRange(o.t, r.Header.Get("Range"), imageBytes); r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, imageBytes))
				w.Header().Set("Content-Length", "5")
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(a[from : from+5])
				return
			}
			good(a)(o, n, w, r)
		}, unknown, a, nil},

		{"knows no ranges", noRange, unknown, a, nil},
		{"has 416 for each range, and the whole", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				status(http.StatusRequestedRangeNotSatisfiable, "Content-Range", "bytes */"+size)(o, n, w, r)
				return
			}
			good(a)(o, n, w, r)
		}, unknown, a, nil},
		{"knows no ranges in the middle", when(after(4), noRange, good(a)), unknown, a, nil},
		{"knows no ranges at one time", when(func(n int) bool { return n == 6 }, noRange, good(a)), knows(a), a, nil},
		{"serves ranges from elsewhere", when(always, func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				good(a)(o, n, w, r)
				return
			}
			ranges(imageBytes+100, 7)(o, n, w, r)
		}, nil), unknown, a, nil},
		{"serves ranges from elsewhere and never the whole", ranges(imageBytes+100, 7), unknown, nil, []string{"range"}},
		{"serves more than the range", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=0-")
			}
			good(a)(o, n, w, r)
		}, unknown, a, nil},
		{"serves ranges without saying which", when(always, func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(a[:1000])
				return
			}
			good(a)(o, n, w, r)
		}, nil), unknown, a, nil},
		{"serves half of each range", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			from, to := parseRange(o.t, r.Header.Get("Range"), imageBytes)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, from+max((to-from)/2, min(to-from, 6_000))-1))
			good(a)(o, n, w, r)
		}, unknown, a, nil},
		{"serves other bytes than the range says", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			from, to := parseRange(o.t, r.Header.Get("Range"), imageBytes)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, imageBytes))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(b[from:to])
		}, knows(a), nil, []string{string("wrong digest: expected SHA-256 " + sum256(a)), string("got " + sum256(b))}},

		{"changes", when(first(6), good(a), good(b)), unknown, b, nil},
		{"changes without ranges", when(first(1), cut(noRange, 4*testSegment, true), unranged(good(b))), unknown, b, nil},
		{"changes to something shorter", when(first(6), good(a), good(b[:testPart])), unknown, b[:testPart], nil},
		{"changes to what it should not be", when(first(6), good(a), good(b)), knows(a), nil, []string{string("expected SHA-256 " + sum256(a)), string("got " + sum256(b))}},
		{"changes all the time", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			serving(a, strconv.Quote(fmt.Sprint(n)))(o, n, w, r)
		}, unknown, nil, []string{"changed while it was fetched"}},
		{"changes by its date only", func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			data, at := a, time.Unix(1_700_000_000, 0)
			if n > 6 {
				data, at = b, at.Add(time.Hour)
			}
			http.ServeContent(w, r, "x.img", at, bytes.NewReader(data))
		}, unknown, b, nil},
		{"has weak ETags", when(func(n int) bool { return n%3 == 1 }, cut(serving(a, `W/"a"`), 20_000, true), serving(a, `W/"a"`)), unknown, a, nil},
		{"changes its weak ETag", when(first(6), serving(a, `W/"a"`), serving(b, `W/"b"`)), unknown, b, nil},
		{"has no validators", bare, unknown, a, nil},
		{"has no validators and a known digest", bare, knows(a), a, nil},
		{"has no validators and closes once", when(first(2), cut(bare, 4*testSegment, false), bare), unknown, a, nil},
		{"has no validators and closes always", cut(bare, imageBytes/2, false), unknown, nil, []string{half + " of " + size}},
		{"has no validators, a known digest and closes", when(func(n int) bool { return n%3 == 0 }, cut(bare, 20_000, false), bare), knows(a), a, nil},
		{"has no validators, no ranges and closes", when(first(1), cut(unranged(bare), 4*testSegment, false), unranged(bare)), knows(a), a, nil},
		{"has no validators and changes", when(first(1), cut(bare, 4*testSegment, false), serving(b, "")), unknown, b, nil},

		{"does not say how long it is", chunked(a), unknown, a, nil},
		{"does not say how long it is, which is known", chunked(a), knows(a), a, nil},
		{"does not say how long it is, and is cut", when(first(2), cut(chunked(a), 4*testSegment, true), chunked(a)), unknown, a, nil},
		{"does not say that it is shorter", chunked(a[:imageBytes/2]), sized(imageBytes), nil, []string{"expected " + size + " bytes, got " + half}},
		{"does not say that it is longer", chunked(a), sized(imageBytes / 2), nil, []string{"more than the " + half + " bytes"}},
		{"ends without saying so", raw("200 OK\r\nETag: \"x\"", a), unknown, a, nil},
		{"is small", good(a[:1000]), unknown, a[:1000], nil},
		{"is of whole parts", good(a[:testPart]), unknown, a[:testPart], nil},
		{"is empty", good(nil), unknown, nil, []string{"empty"}},
		{"is empty, and does not say so", chunked(nil), unknown, nil, []string{"empty"}},

		{"is gone in the middle", when(after(6), status(http.StatusNotFound), good(a)), unknown, nil, []string{"404", "no image at this URL"}},
		{"wants a login in the middle", when(after(6), status(http.StatusForbidden), good(a)), unknown, nil, []string{"403", "expired"}},
		{"is overloaded for a while", when(func(n int) bool { return n >= 4 && n < 8 }, status(http.StatusServiceUnavailable), good(a)), unknown, a, nil},
		{"is overloaded for a second", when(func(n int) bool { return n == 4 }, status(http.StatusServiceUnavailable, "Retry-After", "1"), good(a)), unknown, a, nil},
		{"is overloaded for an hour", when(after(3), status(http.StatusServiceUnavailable, "Retry-After", "3600"), good(a)), unknown, nil, []string{"503", "1h0m0s"}},
		{"is overloaded for good", when(after(3), status(http.StatusServiceUnavailable), good(a)), unknown, nil, []string{"503", "tried"}},
		{"sends gzip", func(_ *origin, _ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(gz)
		}, unknown, nil, []string{"Content-Encoding gzip"}},
		{"sends gzip in the middle", when(after(5), status(http.StatusPartialContent, "Content-Encoding", "gzip"), good(a)), unknown, nil, []string{"Content-Encoding gzip"}},
		{"sends a page", status(http.StatusOK, "Content-Type", "text/html"), unknown, nil, []string{"web page"}},
		{"redirects in a loop", status(http.StatusFound, "Location", "/x.img"), unknown, nil, []string{"redirects"}},
		{"redirects inside", status(http.StatusFound, "Location", "http://169.254.169.254/latest/x.img"), unknown, nil, []string{"169.254.169.254"}},
	} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, whole parts %v", tt.name, whole), func(t *testing.T) {
				t.Parallel()
				o := newOrigin(t, tt.source)
				w := newWorld(t, o.url(), tt.known)
				w.enqueue()
				f := w.process("a", w.root)
				f.Whole = whole
				if strings.Contains(tt.name, "stall") { // on a busy machine, the others may seem to
					f.Sources = w.sourcesOf("a", 200*time.Millisecond)
				}
				w.finish(f)
				if tt.want == nil {
					w.failed(tt.words...)
					return
				}
				w.has(tt.want)
				w.clean()
			})
		}
	}
}

// TestSlowSources has sources that keep sending, but below the minimum rate. They
// do not occupy a worker.
func TestSlowSources(t *testing.T) {
	const slow = "too slow"
	onlyByte := func(end func(behavior, int) behavior) behavior {
		return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			end(good(imageA), 1)(o, n, w, r)
		}
	}
	closing := func(b behavior, n int) behavior { return cut(b, n, false) }
	for name, away := range map[string]behavior{
		"drips": drip(good(imageA)), "drips without ranges": drip(unranged(good(imageA))), "drips without a length": drip(chunked(imageA)),
		"closes after each byte": onlyByte(closing), "stalls after each byte": onlyByte(stall),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, away)
			w := newWorld(t, o.url(), knows(imageA))
			f := w.process("a", w.root)
			f.Sources = w.sourcesOf("a", 200*time.Millisecond)
			f.Limits.LeastBytes, f.Limits.LeastWithin = 50_000, time.Second
			w.enqueue()
			w.finish(f)
			w.failed(slow)
		})
	}
	// The parts before that are kept, and the next run completes the fetch.
	t.Run("after a part", func(t *testing.T) {
		t.Parallel()
		o := newOrigin(t, nil)
		o.become(func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			b := good(longA)
			if from, _ := parseRange(t, r.Header.Get("Range"), int64(len(longA))); from >= testPart {
				b = drip(b)
			}
			b(o, n, w, r)
		})
		w := newWorld(t, o.url(), knows(longA))
		f := w.process("a", w.root)
		f.Limits.LeastBytes, f.Limits.LeastWithin = 50_000, time.Second
		w.enqueue()
		err := f.Handle(t.Context(), w.task())
		if _, ok := errors.AsType[*queue.Retry](err); !ok || w.job().Status != job.Queued || !strings.Contains(w.job().Error, slow) {
			t.Fatalf("%v: the job is %s: %s", err, w.job().Status, w.job().Error)
		}
		o.become(good(longA))
		w.finish(f)
		w.has(longA)
		w.clean()
	})
}

// drip answers by b, a byte at a time.
func drip(b behavior) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		b(o, n, &dripWriter{w, r}, r)
	}
}

type dripWriter struct {
	http.ResponseWriter
	r *http.Request
}

func (d *dripWriter) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := d.ResponseWriter.Write(p[i : i+1]); err != nil {
			return i, err
		}
		_ = http.NewResponseController(d.ResponseWriter).Flush()
		select {
		case <-d.r.Context().Done():
			panic(http.ErrAbortHandler)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return len(p), nil
}

// If a signed URL that a source redirects to expires, the source redirects to a new
// one.
func TestExpiringRedirect(t *testing.T) {
	t.Parallel()
	served := map[string]int{}
	o := newOrigin(t, nil)
	o.become(func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/x.img" {
			http.Redirect(w, r, fmt.Sprintf("/signed?n=%d", n), http.StatusFound)
			return
		}
		o.mu.Lock()
		served[r.URL.RawQuery]++
		expired := served[r.URL.RawQuery] > 1
		o.mu.Unlock()
		if expired {
			t.Errorf("%s was asked for twice", r.URL)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		when(func(n int) bool { return n%3 == 0 }, cut(good(imageA), 20_000, true), good(imageA))(o, n, w, r)
	})
	w := newWorld(t, o.url(), entry.Entry{})
	w.enqueue()
	w.finish(w.process("a", w.root))
	w.has(imageA)
	w.clean()
}

// A fetch requests several ranges at once if the source serves ranges, and none
// beyond a part that is not stored yet.
func TestParallelRanges(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, nil)
	w := newWorld(t, o.url(), entry.Entry{})
	var now, most int
	o.become(func(o *origin, n int, rw http.ResponseWriter, r *http.Request) {
		var cp checkpoint
		w.checkpoint(&cp)
		_, to := parseRange(t, r.Header.Get("Range"), imageBytes)
		if safe := int64(cp.Parts) * testPart; to > safe+testPart {
			t.Errorf("asked for bytes up to %d while %d are safe", to, safe)
		}
		if from, _ := parseRange(t, r.Header.Get("Range"), imageBytes); to-from > testSegment {
			t.Errorf("asked for %d bytes at once", to-from)
		}
		o.mu.Lock()
		now++
		most = max(most, now)
		o.mu.Unlock()
		// The first range of a part waits for the others, so that they are in flight
		// together.
		if n > 1 {
			deadline := time.Now().Add(5 * time.Second)
			for together := false; !together && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				o.mu.Lock()
				together = most > 1
				o.mu.Unlock()
			}
		}
		good(imageA)(o, n, rw, r)
		o.mu.Lock()
		now--
		o.mu.Unlock()
	})
	w.enqueue()
	w.finish(w.process("a", w.root))
	w.has(imageA)
	if most < 2 || most > connections {
		t.Errorf("%d connections at once, want 2 to %d", most, connections)
	}
	if asked := o.askedBytes("a", imageBytes); asked != imageBytes {
		t.Errorf("asked for %d bytes of an image of %d", asked, imageBytes)
	}
}
