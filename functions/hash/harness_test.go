package hash

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
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
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// The tests run on the fake clock of a synctest bubble.

const imageName = "x.img"

// noise returns an image that depends on the seed.
func noise(seed uint64, size int) []byte {
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
func sum512(b []byte) string { s := sha512.Sum512(b); return hex.EncodeToString(s[:]) }

// A sender keeps the messages sent.
type sender struct {
	mu   sync.Mutex
	sent []string
}

func (s *sender) Send(_ context.Context, body []byte, delay time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := string(body)
	if delay > 0 {
		what += " in " + delay.String()
	}
	s.sent = append(s.sent, what)
	return nil
}

func (s *sender) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.sent = nil }()
	slices.Sort(s.sent)
	return s.sent
}

// A tap is the image root as one process reads it.
type tap struct {
	store.Root
	read func(ctx context.Context, offset int64) error // before each piece; may be nil

	mu    sync.Mutex
	bytes int64 // read of images
}

func (p *tap) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	body, info, err := p.Root.Get(ctx, key, r, ifMatch)
	if err != nil || key != imageName || r.Length >= 0 { // an inspection
		return body, info, err
	}
	return &tapped{body, p, ctx, r.Offset}, info, nil
}

type tapped struct {
	io.ReadCloser
	tap    *tap
	ctx    context.Context
	offset int64
}

func (b *tapped) Read(p []byte) (int, error) {
	if b.tap.read != nil {
		if err := b.tap.read(b.ctx, b.offset); err != nil {
			return 0, err
		}
	}
	n, err := b.ReadCloser.Read(p)
	b.offset += int64(n)
	b.tap.mu.Lock()
	b.tap.bytes += int64(n)
	b.tap.mu.Unlock()
	return n, err
}

// A world is two roots that processes work on.
type world struct {
	t               *testing.T
	images, catalog *memstore.Root
}

func newWorld(t *testing.T) *world {
	return &world{t, memstore.New(), memstore.New()}
}

// put stores an object and waits until it has settled.
func (w *world) put(name image.Name, data []byte) store.Version {
	w.t.Helper()
	time.Sleep(time.Second) // so that versions differ in their time
	v, err := w.images.Put(w.t.Context(), layout.ImageKey(name), bytes.NewReader(data), int64(len(data)))
	if err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(Settle + time.Second)
	return v
}

// A process is the function of one process.
type process struct {
	*Function
	tap               *tap
	inspections, work *sender
}

// process returns a process with its own catalog root.
func (w *world) process(owner string, catalog store.Root) *process {
	log := slog.New(slog.DiscardHandler)
	inv := inventory.New(inventory.Config{Images: w.images, Catalog: w.catalog, Now: time.Now, Log: log})
	catalog = inv.ObserveCatalog(catalog)
	p := &process{tap: &tap{Root: inv.ObserveImages(w.images)}, inspections: new(sender), work: new(sender)}
	m := metric.New()
	p.Function = &Function{
		Images: p.tap, Catalog: catalog, Bucket: "images", Inspections: p.inspections,
		Jobs: &job.Jobs{
			Records: catalog, Owner: owner, Now: time.Now, Queues: job.Queues{job.Hash: p.work},
			Activity: &activity.Log{Root: catalog, Now: time.Now, Log: log}, Metric: m, Log: log,
		},
		Inventory: inv, Metric: m, Workers: 1, Now: time.Now, Log: log,
	}
	return p
}

// inspect has p inspect an image until that succeeds.
func (w *world) inspect(p *process, name image.Name) {
	w.t.Helper()
	w.until(p, queue.InspectImage(name))
}

// run has p run the image's job until it has ended.
func (w *world) run(p *process) job.Job {
	w.t.Helper()
	for range 20 {
		w.until(p, job.Hash.Task(imageName))
		if j := w.job(); !j.Status.Active() {
			return j
		}
	}
	w.t.Fatalf("the job does not end: %+v", w.job())
	return job.Job{}
}

// until handles a task until that returns no error, as a queue does.
func (w *world) until(p *process, t queue.Task) {
	w.t.Helper()
	var err error
	for range 20 {
		if err = p.Handle(w.t.Context(), t.Encode()); err == nil {
			return
		}
		time.Sleep(cmp.Or(queue.Outcome(err).After, 10*time.Second))
	}
	w.t.Fatalf("%+v still fails: %v", t, err)
}

func (w *world) job() job.Job {
	w.t.Helper()
	j, _, err := record.Read[job.Job](context.Background(), w.catalog, layout.HashJobKey(imageName))
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

// record returns the digest record, or nil.
func (w *world) record() *digest.Record {
	w.t.Helper()
	rec, _, err := record.Read[digest.Record](context.Background(), w.catalog, layout.DigestKey(imageName))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &rec
}

// honest checks the invariant: a digest record of the current version is right.
func (w *world) honest() {
	w.t.Helper()
	body, info, err := w.images.Get(context.Background(), imageName, store.All, "")
	rec := w.record()
	if err != nil || rec == nil || !rec.Version.Equal(info.Version) {
		return
	}
	data, err := io.ReadAll(body)
	if err != nil {
		w.t.Fatal(err)
	}
	if rec.SHA256 != sum256(data) || rec.SHA512 != "" && rec.SHA512 != sum512(data) {
		w.t.Errorf("the record of %+v says %s %s", rec.Version, rec.SHA256, rec.SHA512)
	}
}

// hashed checks that the digest record is that of data.
func (w *world) hashed(data []byte) {
	w.t.Helper()
	info, err := w.images.Head(context.Background(), imageName)
	if err != nil {
		w.t.Fatal(err)
	}
	j, rec, sum, size := w.job(), w.record(), sum256(data), int64(len(data))
	if j.Status != job.Completed || j.SHA256 != sum || j.BytesDone != size || j.BytesTotal == nil || *j.BytesTotal != size || j.Error != "" {
		w.t.Errorf("the job is %s with %s, %d bytes: %s", j.Status, j.SHA256, j.BytesDone, j.Error)
	}
	if rec == nil || rec.SHA256 != sum || !rec.Version.Equal(info.Version) || rec.Name != imageName || rec.By != digest.ByHash {
		w.t.Errorf("the record is %+v, want %s of %+v", rec, sum, info.Version)
	}
	w.honest()
}

// events checks that the activity is exactly this, newest first.
func (w *world) events(kinds ...string) {
	w.t.Helper()
	log := &activity.Log{Root: w.catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	events, _, err := log.List(context.Background(), activity.Filter{Limit: 10})
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

// A freezer is the catalog root of a process that stops at one of its writes,
// before or after the write takes effect, until it is thawed.
type freezer struct {
	store.Root
	at    int  // the write, from 1
	after bool // the write has taken effect

	mu     sync.Mutex
	writes int
	frozen bool
	hit    chan struct{} // closed at the write
	thaw   chan struct{}
}

func (z *freezer) wait(here bool) {
	z.mu.Lock()
	if here && !z.frozen {
		z.frozen = true
		close(z.hit)
	}
	frozen := z.frozen
	z.mu.Unlock()
	if frozen {
		<-z.thaw
	}
}

func (z *freezer) write(do func()) {
	z.mu.Lock()
	z.writes++
	here := z.writes == z.at
	z.mu.Unlock()
	z.wait(here && !z.after)
	do()
	z.wait(here && z.after)
}

func (z *freezer) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	z.wait(false)
	return z.Root.ReadRecord(ctx, key)
}

func (z *freezer) CreateRecord(ctx context.Context, key store.Key, data []byte) (tag string, err error) {
	z.write(func() { tag, err = z.Root.CreateRecord(ctx, key, data) })
	return tag, err
}

func (z *freezer) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (newTag string, err error) {
	z.write(func() { newTag, err = z.Root.ReplaceRecord(ctx, key, data, tag) })
	return newTag, err
}
