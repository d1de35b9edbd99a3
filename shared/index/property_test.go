package index_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/index"
	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

var (
	seeds = flag.Int("seeds", 60, "the number of seeds of each property test")
	first = flag.Uint64("seed", 1, "the first seed")
)

// In TestProperty, processes whose clocks differ by up to a minute write, read and
// compact in random order, interleaved at every request. In the end every reader agrees
// with the records.
func TestProperty(t *testing.T) { property(t, false, false) }

// TestKills also kills processes at random requests. In the end, once one process has
// compared listings, every reader agrees with the records.
func TestKills(t *testing.T) { property(t, true, false) }

// TestDamage also deletes, truncates, garbles and rolls back objects of the index.
func TestDamage(t *testing.T) { property(t, true, true) }

func property(t *testing.T, kills, damage bool) {
	for n := range *seeds {
		seed := *first + uint64(n)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed)
			w.kills, w.damage = kills, damage
			for range 60 + w.rnd(60) {
				w.step(false)
			}
			w.settle()
		})
	}
}

// A world is what several processes share.
type world struct {
	t               *testing.T
	images, catalog *memstore.Root
	kills, damage   bool

	mu     sync.Mutex
	rand   *rand.Rand
	now    time.Time
	n      int
	nested bool // do not interleave further steps
	procs  []*process
	old    map[store.Key][]string // contents that the objects of the index had
}

// A process is one imageroot process.
type process struct {
	w      *world
	lead   time.Duration // of its clock
	dead   bool
	failed bool // a request failed
	index  *index.Index
	images store.Root
	record store.Root

	pictures *index.Section[store.Key, struct{}]
	blobs    *index.Section[layout.SHA256, struct{}]
	digests  *index.Section[image.Name, string]
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, images: memstore.New(), catalog: memstore.New(), rand: rand.New(rand.NewPCG(seed, 0)),
		now: time.Now(), old: map[store.Key][]string{},
	}
	for range 2 + w.rnd(2) {
		w.procs = append(w.procs, w.start())
	}
	return w
}

func (w *world) rnd(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rand.IntN(n)
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) start() *process {
	return w.startWith(time.Duration(w.rnd(121)-60)*time.Second, w.rnd(4) > 0)
}

// startWith starts a process whose clock is ahead by lead.
func (w *world) startWith(lead time.Duration, compact bool) *process {
	p := &process{w: w, lead: lead}
	p.index = index.New(index.Config{
		Images: &hooked{w.images, p}, Catalog: &hooked{w.catalog, p}, Compact: compact, Patience: time.Hour,
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now.Add(p.lead)
		},
		Quiet: func(_ store.Key, old, new []byte) bool {
			of, ok := strings.CutPrefix(string(old), "running ")
			owner, _, _ := strings.Cut(of, " ")
			return ok && strings.HasPrefix(string(new), "running "+owner+" ")
		},
		Live: func(_ store.Key, data []byte) bool { return strings.HasPrefix(string(data), "running") },
		Log:  slog.New(slog.DiscardHandler),
	})
	p.pictures = index.Images(p.index)
	p.blobs = index.Blobs(p.index, layout.BlobPrefix, layout.BlobSHA256)
	p.digests = index.Text(p.index, layout.DigestPrefix, layout.DigestName)
	p.images, p.record = p.index.ObserveImages(&hooked{w.images, p}), p.index.ObserveCatalog(&hooked{w.catalog, p})
	return p
}

// hooked interleaves steps of other processes before each request of one.
type hooked struct {
	store.Root
	p *process
}

var errKilled = errors.New("killed")

// before returns the error with which the next request fails.
func (h *hooked) before() error {
	w := h.p.w
	w.mu.Lock()
	nest := !w.nested && w.rand.IntN(4) == 0
	fail := w.kills && w.rand.IntN(60) == 0
	w.nested = w.nested || nest
	if fail && w.rand.IntN(2) == 0 {
		h.p.dead = true
	}
	fail = fail || h.p.dead
	h.p.failed = h.p.failed || fail
	w.mu.Unlock()
	if nest {
		w.others(h.p)
		w.mu.Lock()
		w.nested = false
		w.mu.Unlock()
	}
	if fail {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, errKilled)
	}
	return nil
}

// after returns the error of a write that has taken effect.
func (h *hooked) after() error {
	w := h.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kills && w.rand.IntN(60) == 0 || h.p.dead {
		h.p.failed = true
		return fmt.Errorf("%w: %w", store.ErrUnknown, errKilled)
	}
	return nil
}

func (h *hooked) Head(ctx context.Context, key store.Key) (store.Info, error) {
	if err := h.before(); err != nil {
		return store.Info{}, err
	}
	return h.Root.Head(ctx, key)
}

func (h *hooked) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	if err := h.before(); err != nil {
		return nil, store.Info{}, err
	}
	return h.Root.Get(ctx, key, r, ifMatch)
}

func (h *hooked) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for info, err := range h.Root.List(ctx, prefix, after) {
			if herr := h.before(); herr != nil {
				yield(store.Info{}, herr)
				return
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (h *hooked) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	if err := h.before(); err != nil {
		return nil, "", err
	}
	return h.Root.ReadRecord(ctx, key)
}

func (h *hooked) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	if err := h.before(); err != nil {
		return store.Version{}, err
	}
	v, err := h.Root.Put(ctx, key, body, size)
	return v, errors.Join(err, h.after())
}

func (h *hooked) Delete(ctx context.Context, key store.Key) error {
	if err := h.before(); err != nil {
		return err
	}
	return errors.Join(h.Root.Delete(ctx, key), h.after())
}

func (h *hooked) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	return h.swap(key, func() (string, error) { return h.Root.CreateRecord(ctx, key, data) })
}

func (h *hooked) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	return h.swap(key, func() (string, error) { return h.Root.ReplaceRecord(ctx, key, data, tag) })
}

func (h *hooked) swap(key store.Key, do func() (string, error)) (string, error) {
	if err := h.before(); err != nil {
		return "", err
	}
	tag, err := do()
	if aerr := h.after(); err == nil && aerr != nil {
		return "", aerr
	}
	return tag, err
}

// others makes a process other than p do a step.
func (w *world) others(p *process) {
	w.mu.Lock()
	list := make([]*process, 0, len(w.procs))
	for _, o := range w.procs {
		if o != p {
			list = append(list, o)
		}
	}
	w.mu.Unlock()
	for range 1 + w.rnd(3) {
		w.do(list[w.rnd(len(list))], true)
	}
}

func (w *world) step(nested bool) {
	w.keepOld()
	switch n := w.rnd(40); {
	case n < 10:
		w.pass(time.Duration(w.rnd(5000)) * time.Millisecond)
	case n == 10:
		w.pass(time.Duration(w.rnd(30)) * time.Minute)
	case n == 11 && w.kills:
		i := w.rnd(len(w.procs))
		w.procs[i] = w.start()
	case n < 15 && w.damage:
		w.spoil()
	}
	i := w.rnd(len(w.procs))
	w.do(w.procs[i], nested)
	for i, p := range w.procs {
		if p.dead {
			w.procs[i] = w.start()
		}
	}
}

var hexes = [...]layout.SHA256{layout.SHA256(strings.Repeat("a", 64)), layout.SHA256(strings.Repeat("b", 64))}

// do makes a process do a random step.
func (w *world) do(p *process, nested bool) {
	ctx := context.Background()
	root, key := p.images, store.Key(fmt.Sprintf("%c.img", 'a'+w.rnd(3)))
	if w.rnd(3) == 0 {
		root, key = p.record, layout.BlobKey(hexes[w.rnd(2)])
	}
	digest := layout.DigestKey(image.Name(fmt.Sprintf("%c.img", 'a'+w.rnd(4))))
	switch w.rnd(12) {
	case 0, 1: // contents recur
		body := fmt.Sprint(w.rnd(2))
		_, _ = root.Put(ctx, key, strings.NewReader(body), int64(len(body)))
	case 2:
		_ = root.Delete(ctx, key)
	case 3, 4, 5:
		w.mu.Lock()
		w.n++
		content := fmt.Sprintf("%s %p %d", [...]string{"running", "ended"}[w.rand.IntN(2)], p, w.n)
		w.mu.Unlock()
		_, tag, err := p.record.ReadRecord(ctx, digest)
		switch {
		case errors.Is(err, store.ErrNotFound):
			_, err = p.record.CreateRecord(ctx, digest, []byte(content))
		case err == nil:
			_, err = p.record.ReplaceRecord(ctx, digest, []byte(content), tag)
		}
		if err == nil && !nested && w.rnd(4) == 0 {
			w.readsItsWrite(p, digest, content)
		}
	case 6:
		_ = p.record.Delete(ctx, digest)
	case 7, 8, 9:
		if err := p.index.Flush(ctx); err != nil && !errors.Is(err, errKilled) {
			w.t.Errorf("flush: %v", err)
		}
	default:
		if _, err := p.all(); err != nil && !errors.Is(err, errKilled) {
			w.t.Errorf("read: %v", err)
		}
	}
}

// readsItsWrite checks that a process sees its own write, unless another process has
// written since.
func (w *world) readsItsWrite(p *process, key store.Key, content string) {
	all, err := p.all()
	if err != nil {
		return
	}
	now, _, err := w.catalog.ReadRecord(context.Background(), key)
	if got := all[key]; err == nil && string(now) == content && !strings.HasSuffix(got, content) {
		w.t.Errorf("after writing %q to %s a process sees %q", content, key, got)
	}
}

// spoil damages a random object of the index.
func (w *world) spoil() {
	ctx := context.Background()
	var keys []store.Key
	for _, prefix := range []string{layout.IndexPrefix, layout.JournalPrefix} {
		for info := range w.catalog.List(ctx, prefix, "") {
			keys = append(keys, info.Key)
		}
	}
	if len(keys) == 0 {
		return
	}
	key := keys[w.rnd(len(keys))]
	if w.rnd(3) == 0 {
		key = layout.IndexKey
	}
	data, _, err := w.catalog.ReadRecord(ctx, key)
	if err != nil {
		return
	}
	switch w.rnd(4) {
	case 0:
		_ = w.catalog.Delete(ctx, key)
		return
	case 1:
		data = data[:w.rnd(len(data)+1)]
	case 2:
		if len(data) > 0 {
			data[w.rnd(len(data))] ^= byte(1 + w.rnd(255))
		}
	default:
		old := w.old[key]
		if len(old) == 0 {
			return
		}
		data = []byte(old[w.rnd(len(old))])
	}
	_, _ = w.catalog.Put(ctx, key, strings.NewReader(string(data)), int64(len(data)))
}

func (w *world) keepOld() {
	for _, key := range []store.Key{layout.IndexKey, layout.TrimmedKey} {
		if data, _, err := w.catalog.ReadRecord(context.Background(), key); err == nil {
			w.old[key] = append(w.old[key], string(data))
		}
	}
}

// all returns what a process knows, by key: the ETag and the content.
func (p *process) all() (map[store.Key]string, error) {
	ctx := context.Background()
	all := map[store.Key]string{}
	pictures, err := p.pictures.All(ctx)
	for _, info := range pictures.All() {
		all[info.Key] = info.ETag
	}
	blobs, err2 := p.blobs.All(ctx)
	for _, info := range blobs.All() {
		all[info.Key] = info.ETag
	}
	digests, err3 := p.digests.All(ctx)
	for id, info := range digests.All() {
		value, _ := digests.Value(id)
		all[info.Key] = info.ETag + " " + value
	}
	return all, errors.Join(err, err2, err3)
}

// truth returns what the roots have, as all does.
func (w *world) truth() map[store.Key]string {
	ctx := context.Background()
	all := map[store.Key]string{}
	for info := range w.images.List(ctx, "", "") {
		all[info.Key] = info.ETag
	}
	for info := range w.catalog.List(ctx, layout.BlobPrefix, "") {
		all[info.Key] = info.ETag
	}
	for info := range w.catalog.List(ctx, layout.DigestPrefix, "") {
		data, _, err := w.catalog.ReadRecord(ctx, info.Key)
		if err != nil {
			w.t.Fatal(err)
		}
		all[info.Key] = info.ETag + " " + string(data)
	}
	return all
}

// settle ends the world. All processes flush, and if some were killed, one compares
// listings. Then all of them, and new ones, must agree with the roots.
func (w *world) settle() {
	ctx := context.Background()
	lossy := w.kills || w.damage
	for _, p := range w.procs {
		lossy = lossy || p.failed
	}
	w.mu.Lock()
	w.kills, w.damage, w.nested = false, false, true
	w.mu.Unlock()
	flush := func() {
		for _, p := range w.procs {
			if err := p.index.Flush(ctx); err != nil {
				w.t.Errorf("flush: %v", err)
			}
			w.pass(100 * time.Millisecond)
		}
	}
	flush()
	w.pass(2 * time.Second)
	if lossy {
		// After damage to the index, each process must compare: the entries that it has
		// not read may be lost.
		for _, p := range w.procs {
			for _, err := range []error{p.pictures.Refresh(ctx), p.blobs.Refresh(ctx), p.digests.Refresh(ctx), p.index.Check(ctx)} {
				if err != nil {
					w.t.Errorf("compare: %v", err)
				}
			}
		}
		flush()
		w.pass(2 * time.Second)
		flush()
	}
	want := w.truth()
	for i, p := range append(w.procs, w.start(), w.start()) {
		got, err := p.all()
		if err != nil || !maps.Equal(got, want) {
			w.t.Errorf("process %d of %d: %s %v", i, len(w.procs), differ(got, want), err)
		}
	}
}

// differ returns how two results of all differ.
func differ(got, want map[store.Key]string) string {
	var b strings.Builder
	for k, v := range got {
		if want[k] != v {
			fmt.Fprintf(&b, "%s is %q, want %q; ", k, v, want[k])
		}
	}
	for k, v := range want {
		if _, ok := got[k]; !ok {
			fmt.Fprintf(&b, "%s is missing, want %q; ", k, v)
		}
	}
	return b.String()
}

// TestSlowClock: a process whose clock is behind applies no entry from before the
// checkpoint, which may lack the deletion that followed it.
func TestSlowClock(t *testing.T) {
	w := newWorld(t, 1)
	w.nested = true
	ctx := t.Context()
	flush := func(p *process) {
		if err := p.index.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	put := func(p *process, key store.Key) {
		if _, err := p.images.Put(ctx, key, strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
		flush(p)
	}
	writer := w.startWith(time.Minute, false)
	put(writer, "gone.img")
	w.pass(10 * time.Second)
	if err := writer.images.Delete(ctx, "gone.img"); err != nil {
		t.Fatal(err)
	}
	flush(writer)
	w.pass(175 * time.Second)
	put(writer, "last.img")
	// It builds the index from a listing, so its checkpoint knows of no deletion.
	compactor := w.startWith(time.Minute, true)
	if _, err := compactor.all(); err != nil {
		t.Fatal(err)
	}
	flush(compactor)
	if _, _, err := w.catalog.ReadRecord(ctx, layout.IndexKey); err != nil {
		t.Fatal(err)
	}
	got, err := w.startWith(-time.Minute, false).all()
	if err != nil || !maps.Equal(got, w.truth()) {
		t.Errorf("%s %v", differ(got, w.truth()), err)
	}
}
