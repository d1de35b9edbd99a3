package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/netpolicy"
	"imageroot/shared/queue/memqueue"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// The images of these tests have two parts of several segments each.
const (
	testSegment = 64 << 10
	testPart    = 5 * testSegment
	imageBytes  = testPart + testSegment + 12345
)

var testLimits = Limits{SegmentBytes: testSegment, PartBytes: testPart, UnknownPartBytes: testPart, FirstWait: time.Millisecond}

// content returns an image that depends on the seed.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	var s [32]byte
	s[0] = byte(seed)
	_, _ = rand.NewChaCha8(s).Read(b) // never fails
	return b
}

var (
	imageA = content(1, imageBytes)
	imageB = content(2, imageBytes)
)

func sum256(b []byte) layout.SHA256 {
	s := sha256.Sum256(b)
	return layout.SHA256(hex.EncodeToString(s[:]))
}
func sum512(b []byte) string { s := sha512.Sum512(b); return hex.EncodeToString(s[:]) }

// An origin is a web server that may behave badly.
type origin struct {
	*httptest.Server
	t *testing.T

	mu     sync.Mutex
	handle func(o *origin, n int, w http.ResponseWriter, r *http.Request)
	asked  []request

	bmap http.HandlerFunc // answers requests for block maps
}

// A request is a GET.
type request struct {
	by    string // the process
	field string // Range, "" for the whole
}

// A behavior answers the nth GET, from 1.
type behavior = func(o *origin, n int, w http.ResponseWriter, r *http.Request)

func newOrigin(t *testing.T, b behavior) *origin {
	o := &origin{t: t, handle: b, bmap: http.NotFound}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(o.serve))
	o.Server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	o.Server.Start()
	t.Cleanup(func() {
		o.CloseClientConnections()
		o.Close()
	})
	return o
}

func (o *origin) serve(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, ".bmap") {
		o.bmap(w, r)
		return
	}
	o.mu.Lock()
	o.asked = append(o.asked, request{r.UserAgent(), r.Header.Get("Range")})
	n, b := len(o.asked), o.handle
	o.mu.Unlock()
	b(o, n, w, r)
}

// become changes the origin's behavior, and clears its requests.
func (o *origin) become(b behavior) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handle, o.asked = b, nil
}

func (o *origin) requests() []request {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

// askedBytes returns the number of bytes that a process requested of an image of size
// bytes.
func (o *origin) askedBytes(by string, size int64) int64 {
	o.t.Helper()
	var total int64
	for _, r := range o.requests() {
		if r.by == by {
			from, to := parseRange(o.t, r.field, size)
			total += to - from
		}
	}
	return total
}

// parseRange returns the offset of a Range field's first byte and the one after its
// last.
func parseRange(t *testing.T, field string, size int64) (from, to int64) {
	t.Helper()
	if field == "" {
		return 0, size
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(field, "bytes="), "-")
	from, err := strconv.ParseInt(first, 10, 64)
	to = size - 1
	if last != "" {
		var lerr error
		to, lerr = strconv.ParseInt(last, 10, 64)
		err = errors.Join(err, lerr)
	}
	if !ok || err != nil {
		t.Errorf("the request has Range: %q", field)
	}
	return from, min(to+1, size)
}

func (o *origin) url() string { return o.Server.URL + "/x.img" }

// good serves ranges of data, with both validators.
func good(data []byte) behavior { return serving(data, string(`"`+sum256(data)[:8]+`"`)) }

func serving(data []byte, etag string) behavior {
	return func(_ *origin, _ int, w http.ResponseWriter, r *http.Request) {
		modified := time.Unix(1_700_000_000, 0)
		if etag != "" {
			w.Header().Set("ETag", etag)
		} else {
			modified = time.Time{}
		}
		http.ServeContent(w, r, "x.img", modified, bytes.NewReader(data))
	}
}

// unranged ignores ranges.
func unranged(b behavior) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		b(o, n, w, r)
	}
}

// when answers by odd if is returns true for the request's number, and by even
// otherwise.
func when(is func(n int) bool, odd, even behavior) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		if is(n) {
			odd(o, n, w, r)
		} else {
			even(o, n, w, r)
		}
	}
}

func first(k int) func(int) bool { return func(n int) bool { return n <= k } }
func after(k int) func(int) bool { return func(n int) bool { return n > k } }
func always(int) bool            { return true }

// cut answers by b and ends the connection after that many bytes of the body, with
// a reset or a close.
func cut(b behavior, bytes int, reset bool) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		c := &cutWriter{ResponseWriter: w, left: bytes}
		if b(o, n, c, r); c.left >= 0 && bytes > 0 {
			return // the body was not longer
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the body ended before
		}
		if tcp, ok := conn.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// stall answers by b and sends nothing after that many bytes of the body, until the
// client disconnects.
func stall(b behavior, bytes int) behavior {
	return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
		c := &cutWriter{ResponseWriter: w, left: bytes}
		b(o, n, c, r)
		if c.left < 0 {
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
	}
}

// A cutWriter fails once more than left bytes are written; left is negative
// from then on.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if c.left < 0 {
		return 0, errors.New("cut")
	}
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= len(p); c.left >= 0 {
		return n, err
	}
	c.left = -1
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	return n, errors.New("cut")
}

// raw sends a head and a body unchanged, and closes the connection.
func raw(head string, body []byte) behavior {
	return func(_ *origin, _ int, w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = buf.WriteString("HTTP/1.1 " + head + "\r\nConnection: close\r\n\r\n")
		_, _ = buf.Write(body)
		_ = buf.Flush()
	}
}

// chunked sends data without a length.
func chunked(data []byte) behavior {
	return func(_ *origin, _ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"chunked"`)
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(data)
	}
}

func status(code int, fields ...string) behavior {
	return func(_ *origin, _ int, w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(fields); i += 2 {
			w.Header().Set(fields[i], fields[i+1])
		}
		w.WriteHeader(code)
	}
}

// A clock runs, and tests can also advance it.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }
func discard() *slog.Logger              { return slog.New(slog.DiscardHandler) }

// sourcesOf returns a process's client of sources, which waits for a stalled one
// for patience.
func (w *world) sourcesOf(owner string, patience time.Duration) *source.Client {
	c := source.New(source.Config{
		Policy: netpolicy.Policy{Loopback: true}, UserAgent: owner, StallTimeout: patience, HeaderTimeout: time.Minute,
	})
	w.t.Cleanup(c.Close)
	return c
}

// smallParts is a store that accepts parts of any size: with parts of some
// megabytes these tests would take minutes.
type smallParts struct {
	*memstore.Root
	mu    sync.Mutex
	parts map[string][]byte // by upload, number and ETag
}

func partKey(id string, p store.Part) string { return fmt.Sprint(id, p.Number, p.ETag) }

func (s *smallParts) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error) {
	var data bytes.Buffer
	part, err := s.Root.UploadPart(ctx, key, id, n, io.TeeReader(body, &data), size)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.parts[partKey(id, part)] = data.Bytes()
	}
	return part, err
}

func (s *smallParts) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	there, err := s.Root.ListParts(ctx, key, id)
	if err != nil {
		return store.Version{}, err
	}
	var whole []byte
	for _, p := range parts {
		if !slices.ContainsFunc(there, p.Equal) {
			return store.Version{}, fmt.Errorf("there is no part %+v", p)
		}
		whole = append(whole, s.parts[partKey(id, p)]...)
	}
	v, err := s.Root.Put(ctx, key, bytes.NewReader(whole), int64(len(whole)))
	return v, errors.Join(err, s.Root.AbortUpload(ctx, key, id))
}

// A world is a catalog root that processes work on.
type world struct {
	t     *testing.T
	root  *smallParts
	clock clock
	ref   layout.Ref
	src   string
}

// newWorld returns a catalog whose only entry is the origin's image, with the
// fields of known.
func newWorld(t *testing.T, src string, known entry.Entry) *world {
	t.Helper()
	w := &world{t: t, root: &smallParts{Root: memstore.New(), parts: map[string][]byte{}}, src: src, ref: layout.RefOf(src)}
	w.entry(known)
	return w
}

func (w *world) entry(known entry.Entry) {
	w.t.Helper()
	_, _, err := record.Change(w.t.Context(), w.root, layout.EntryKey(w.ref), func(e *entry.Entry, _ bool) error {
		meta := e.Meta
		*e = known
		e.Meta, e.URL, e.Name, e.Format = meta, w.src, "x.img", "img"
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// process returns the function of another process, with its own root.
func (w *world) process(owner string, root store.Root) *Function {
	log, m := discard(), metric.New()
	inv := inventory.New(inventory.Config{Images: memstore.New(), Catalog: root, Now: w.clock.now, Log: log})
	root = inv.ObserveCatalog(root)
	events := &activity.Log{Root: root, Now: w.clock.now, Log: log}
	return &Function{
		Catalog: root, Sources: w.sourcesOf(owner, time.Minute),
		Jobs: &job.Jobs{
			Records: root, Owner: owner, Now: w.clock.now,
			Queues: job.Queues{job.Fetch: memqueue.New(log)}, Activity: events, Metric: m, Log: log,
		},
		Inspections: memqueue.New(log),
		Inventory:   inv,
		Activity:    events, Metric: m, Free: func() int64 { return -1 }, Workers: 2, Limits: testLimits, Now: w.clock.now, Log: log,
	}
}

func (w *world) enqueue() {
	w.t.Helper()
	jobs := &job.Jobs{Records: w.root, Owner: "page", Now: w.clock.now}
	_, _, err := jobs.Enqueue(w.t.Context(), layout.FetchJobKey(w.ref), func(job.Job) bool { return false }, func(j *job.Job) {
		j.Name, j.Ref, j.Src = "x.img", w.ref, w.src
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) task() []byte { return job.Fetch.Task(string(w.ref)).Encode() }

func (w *world) job() job.Job {
	w.t.Helper()
	j, _, err := record.Read[job.Job](context.Background(), w.root, layout.FetchJobKey(w.ref))
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

// finish handles the task again, as the queue would redeliver it, until the job has
// ended.
func (w *world) finish(f *Function) job.Job {
	w.t.Helper()
	for range 20 {
		_ = f.Handle(w.t.Context(), w.task()) // the job has the outcome
		if j := w.job(); !j.Status.Active() {
			return j
		}
		w.clock.advance(time.Minute) // longer than the queue's delays and a lease
	}
	j := w.job()
	w.t.Fatalf("the job does not end: %s %s (%s)", j.Status, j.Error, j.Checkpoint)
	return j
}

func (w *world) keys(prefix string) []store.Key {
	w.t.Helper()
	var keys []store.Key
	for info, err := range w.root.List(context.Background(), prefix, "") {
		if err != nil {
			w.t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

func (w *world) pending() []store.PendingUpload {
	w.t.Helper()
	var all []store.PendingUpload
	for u, err := range w.root.PendingUploads(context.Background(), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, u)
	}
	return all
}

// honest checks the invariant: a blob's name is its SHA-256.
func (w *world) honest() {
	w.t.Helper()
	for _, key := range w.keys(layout.BlobPrefix) {
		body, _, err := w.root.Get(context.Background(), key, store.All, "")
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			w.t.Fatal(err)
		}
		if key != layout.BlobKey(sum256(data)) {
			w.t.Errorf("%s holds %d bytes with the SHA-256 %s", key, len(data), sum256(data))
		}
	}
}

// clean checks that no incomplete upload is left.
func (w *world) clean() {
	w.t.Helper()
	if left := w.keys(layout.StagingPrefix); len(left) > 0 {
		w.t.Errorf("left in staging: %v", left)
	}
	if left := w.pending(); len(left) > 0 {
		w.t.Errorf("left of uploads: %+v", left)
	}
}

// has checks that the fetch has stored data, and nothing else.
func (w *world) has(data []byte) {
	w.t.Helper()
	j := w.job()
	size, sum := int64(len(data)), sum256(data)
	if j.Status != job.Completed || j.Error != "" || j.SHA256 != sum || j.BytesDone != size || j.BytesTotal == nil || *j.BytesTotal != size {
		w.t.Errorf("the job is %s: %q, SHA-256 %s, %d bytes", j.Status, j.Error, j.SHA256, j.BytesDone)
	}
	w.honest()
	if blobs := w.keys(layout.BlobPrefix); len(blobs) != 1 || blobs[0] != layout.BlobKey(sum) {
		w.t.Errorf("the blobs are %v, want %s", blobs, sum)
	}
	rec, _, err := record.Read[entry.Fetched](context.Background(), w.root, layout.FetchedKey(w.ref))
	if err != nil || rec.SHA256 != sum || rec.SizeBytes != size || rec.Src != w.src {
		w.t.Errorf("recorded as fetched: %+v, %v", rec, err)
	}
}

// failed checks that the fetch has failed with a reason that contains all words,
// and that no blob exists.
func (w *world) failed(words ...string) {
	w.t.Helper()
	j := w.job()
	if j.Status != job.Failed || j.FinishedAt == nil {
		w.t.Errorf("the job is %s: %q", j.Status, j.Error)
	}
	for _, word := range words {
		if !strings.Contains(j.Error, word) {
			w.t.Errorf("the error does not say %q: %s", word, j.Error)
		}
	}
	if blobs := w.keys(layout.BlobPrefix); len(blobs) > 0 {
		w.t.Errorf("a failed fetch left %v", blobs)
	}
	if _, _, err := w.root.ReadRecord(context.Background(), layout.FetchedKey(w.ref)); !errors.Is(err, store.ErrNotFound) {
		w.t.Errorf("a failed fetch was recorded as one (%v)", err)
	}
	if j.Checkpoint == nil {
		w.clean()
	} else {
		w.swept(w.process("sweeper", w.root)) // kept for a day
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func knows(data []byte) entry.Entry {
	size := int64(len(data))
	return entry.Entry{SHA256: sum256(data), SizeBytes: &size}
}

func sized(n int64) entry.Entry { return entry.Entry{SizeBytes: &n} }
