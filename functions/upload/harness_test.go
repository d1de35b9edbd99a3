package upload

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/web"
)

const testPart = store.MinPartBytes

// content returns an image that depends on the seed.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	var s [32]byte
	s[0] = byte(seed)
	_, _ = rand.NewChaCha8(s).Read(b) // never fails
	return b
}

func sum256(b []byte) layout.SHA256 {
	s := sha256.Sum256(b)
	return layout.SHA256(hex.EncodeToString(s[:]))
}

// A sender keeps the messages sent.
type sender struct {
	mu   sync.Mutex
	sent []string
}

func (s *sender) Send(_ context.Context, body []byte, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, string(body))
	return nil
}

func (s *sender) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.sent = nil }()
	return s.sent
}

// A world is two roots, with the function over them.
type world struct {
	*Function
	t               *testing.T
	images, catalog *memstore.Root
	looks, assembly *sender
	renames         *sender
	ahead           time.Duration // of the clock
	handler         http.Handler
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, images: memstore.New(), catalog: memstore.New()}
	w.over(w.images, w.catalog)
	return w
}

// over replaces the function by that of another process, with its own roots.
func (w *world) over(images, catalog store.Root) {
	log := slog.New(slog.DiscardHandler)
	now := func() time.Time { return time.Now().Add(w.ahead) }
	w.looks, w.assembly, w.renames = new(sender), new(sender), new(sender)
	inv := inventory.New(inventory.Config{Images: images, Catalog: catalog, Now: now, Log: log})
	images, catalog = inv.ObserveImages(images), inv.ObserveCatalog(catalog)
	w.Function = &Function{
		Images: images, Catalog: catalog, Inspections: w.looks, Assemblies: w.assembly, PartBytes: testPart, Inventory: inv,
		Activity: &activity.Log{Root: catalog, Now: now, Log: log}, Metric: metric.New(job.Names()...),
		Free: func() int64 { return -1 }, Now: now, Log: log,
	}
	w.Jobs = &job.Jobs{
		Records: catalog, Owner: crand.Text(), Now: now, Queues: job.Queues{job.Rename: w.renames},
		Activity: w.Activity, Metric: w.Metric, Log: log,
	}
	w.handler = web.Handler(web.Config{Auth: everybody{}, Metric: w.Metric, Log: log}, w.Routes())
}

type everybody struct{}

func (everybody) Authenticate(*http.Request) (web.Caller, error) {
	return web.Caller{Access: web.Admin}, nil
}

// do makes a request. fields are pairs of names and values.
func (w *world) do(method, target string, body []byte, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, bytes.NewReader(body))
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, r)
	return rec
}

// must is do, but fails the test if the answer has another status.
func (w *world) must(status int, method, target string, body []byte, fields ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	rec := w.do(method, target, body, fields...)
	if rec.Code != status {
		w.t.Fatalf("%s %s: %d, want %d: %s", method, target, rec.Code, status, rec.Body)
	}
	return rec
}

// holds returns the bytes of an image, or nil if there is none.
func (w *world) holds(name image.Name) []byte {
	w.t.Helper()
	body, _, err := w.images.Get(context.Background(), layout.ImageKey(name), store.All, "")
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// is checks the bytes of an image; nil means that there is none.
func (w *world) is(name string, data []byte) {
	w.t.Helper()
	if got := w.holds(image.Name(name)); !bytes.Equal(got, data) {
		w.t.Errorf("%s has %d bytes (%s), want %d (%s)", name, len(got), sum256(got), len(data), sum256(data))
	}
	w.honest(image.Name(name))
}

// honest checks the invariant: a digest record of the current version is right. It
// returns the digest, or "" if there is none.
func (w *world) honest(name image.Name) string {
	w.t.Helper()
	rec, _, err := record.Read[digest.Record](context.Background(), w.catalog, layout.DigestKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return ""
	}
	info, herr := w.images.Head(context.Background(), layout.ImageKey(name))
	if err != nil || herr != nil {
		w.t.Fatal(err, herr)
	}
	if !rec.Version.Equal(info.Version) {
		return ""
	}
	if sum := sum256(w.holds(name)); rec.SHA256 != sum || rec.By != digest.ByUpload {
		w.t.Errorf("the record says %s by %s, the bytes have %s", rec.SHA256, rec.By, sum)
	}
	return string(rec.SHA256)
}

// clean checks that no incomplete upload is left.
func (w *world) clean() {
	w.t.Helper()
	for u, err := range w.images.PendingUploads(context.Background(), "") {
		w.t.Errorf("left: %+v, %v", u, err)
	}
}

// told checks that the activity is exactly this, newest first.
func (w *world) told(kinds ...string) {
	w.t.Helper()
	log := &activity.Log{Root: w.catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	events, _, err := log.List(context.Background(), activity.Filter{Limit: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	got := make([]string, len(events))
	for i, e := range events {
		got[i] = e.Kind
	}
	if !slices.Equal(got, kinds) {
		w.t.Errorf("activity: %v, want %v", got, kinds)
	}
}

func decode[T any](t *testing.T, rec *httptest.ResponseRecorder) (v T) {
	t.Helper()
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, rec.Body)
	}
	return v
}

// begun begins a resumable upload.
func (w *world) begun(name string, size int) view {
	w.t.Helper()
	body := fmt.Appendf(nil, `{"name": %q, "size_bytes": %d}`, name, size)
	return decode[view](w.t, w.must(http.StatusCreated, http.MethodPost, "/uploads", body))
}

// part returns the bytes of a part.
func part(v view, data []byte, n int32) []byte {
	return data[int64(n-1)*v.PartSize : min(int64(n)*v.PartSize, int64(len(data)))]
}

// send sends a part.
func (w *world) send(v view, data []byte, n int32) {
	w.t.Helper()
	w.must(http.StatusOK, http.MethodPut, v.Parts[n-1].URL, part(v, data, n))
}

func (w *world) show(id string) view {
	w.t.Helper()
	return decode[view](w.t, w.must(http.StatusOK, http.MethodGet, "/uploads/"+id, nil))
}

// assembled handles the tasks of the assemblies queue, and redeliveries, until the
// upload has ended.
func (w *world) assembled(id string) view {
	w.t.Helper()
	for range 20 {
		for _, task := range w.assembly.take() {
			if err := w.Handle(context.Background(), []byte(task)); err != nil {
				_ = w.assembly.Send(context.Background(), []byte(task), 0)
			}
		}
		if v := w.show(id); v.Status == completed || v.Status == failed {
			return v
		}
		w.ahead += time.Minute
	}
	w.t.Fatalf("the upload does not end: %+v", w.show(id))
	return view{}
}

// uploads returns the uploads that have a record.
func (w *world) uploads() []pending {
	w.t.Helper()
	all, damaged, err := w.pending(w.t.Context())
	if err != nil || damaged != nil {
		w.t.Fatal(err, damaged)
	}
	return all
}
