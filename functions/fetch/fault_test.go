package fetch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
)

var smallA, smallB = content(5, 30_000), content(6, 20_000)

func readerOf(data []byte) io.Reader { return bytes.NewReader(data) }

// A freezer is the store of a process that stops at one of its writes, before or
// after the write takes effect, until it is thawed.
type freezer struct {
	store.Root
	at    int  // the write, from 1
	after bool // the write has taken effect

	mu     sync.Mutex
	writes int
	op     string // of the write
	frozen bool
	hit    chan struct{} // closed at the write
	thaw   chan struct{}
}

func freeze(root store.Root, at int, after bool) *freezer {
	return &freezer{Root: root, at: at, after: after, hit: make(chan struct{}), thaw: make(chan struct{})}
}

// wait returns when the process may continue. It freezes at the write op.
func (z *freezer) wait(op string) {
	z.mu.Lock()
	if op != "" && !z.frozen {
		z.op, z.frozen = op, true
		close(z.hit)
	}
	frozen := z.frozen
	z.mu.Unlock()
	if frozen {
		<-z.thaw
	}
}

func (z *freezer) write(op string, do func()) {
	z.mu.Lock()
	z.writes++
	here := z.writes == z.at
	z.mu.Unlock()
	if here && !z.after {
		z.wait(op)
	} else {
		z.wait("")
	}
	do()
	if here && z.after {
		z.wait(op)
	}
}

func (z *freezer) Head(ctx context.Context, key store.Key) (store.Info, error) {
	z.wait("")
	return z.Root.Head(ctx, key)
}

func (z *freezer) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	z.wait("")
	return z.Root.ReadRecord(ctx, key)
}

func (z *freezer) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	z.wait("")
	return z.Root.ListParts(ctx, key, id)
}

func (z *freezer) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	z.wait("")
	return z.Root.List(ctx, prefix, after)
}

func (z *freezer) Delete(ctx context.Context, key store.Key) (err error) {
	z.write("Delete", func() { err = z.Root.Delete(ctx, key) })
	return err
}

func (z *freezer) Move(ctx context.Context, dst, src store.Key, v store.Version) (moved store.Version, err error) {
	z.write("Move", func() { moved, err = z.Root.Move(ctx, dst, src, v) })
	return moved, err
}

func (z *freezer) CreateUpload(ctx context.Context, key store.Key) (id string, err error) {
	z.write("CreateUpload", func() { id, err = z.Root.CreateUpload(ctx, key) })
	return id, err
}

func (z *freezer) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (p store.Part, err error) {
	z.write("UploadPart", func() { p, err = z.Root.UploadPart(ctx, key, id, n, body, size) })
	return p, err
}

func (z *freezer) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (v store.Version, err error) {
	z.write("CompleteUpload", func() { v, err = z.Root.CompleteUpload(ctx, key, id, parts) })
	return v, err
}

func (z *freezer) AbortUpload(ctx context.Context, key store.Key, id string) (err error) {
	z.write("AbortUpload", func() { err = z.Root.AbortUpload(ctx, key, id) })
	return err
}

func (z *freezer) CreateRecord(ctx context.Context, key store.Key, data []byte) (tag string, err error) {
	z.write("CreateRecord "+string(key), func() { tag, err = z.Root.CreateRecord(ctx, key, data) })
	return tag, err
}

func (z *freezer) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (newTag string, err error) {
	z.write("ReplaceRecord "+string(key), func() { newTag, err = z.Root.ReplaceRecord(ctx, key, data, tag) })
	return newTag, err
}

// TestFrozenOwner stops a process at each of its writes, before and after the write
// takes effect. Another one claims the job and resumes after the last part, as if
// the first had been killed. Then the first resumes: it is fenced and publishes
// nothing.
func TestFrozenOwner(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		data, then []byte // the source's bytes for the first process and for the second
		known      entry.Entry
	}{
		{"of a known digest", smallA, smallA, knows(smallA)},
		{"of an unknown digest", imageA, imageA, entry.Entry{}},
		{"changed meanwhile", smallA, smallB, entry.Entry{}},
	} {
		// Count the writes of an undisturbed fetch.
		w := newWorld(t, newOrigin(t, good(tt.data)).url(), tt.known)
		w.enqueue()
		counted := freeze(w.root, 0, false)
		w.finish(w.process("alone", counted))
		if counted.writes < 8 {
			t.Fatalf("%s: a fetch of %d writes", tt.name, counted.writes)
		}
		for at := range counted.writes {
			for _, late := range []bool{false, true} {
				z := &freezer{at: at + 1, after: late, hit: make(chan struct{}), thaw: make(chan struct{})}
				t.Run(fmt.Sprintf("%s, write %d, after %v", tt.name, z.at, late), func(t *testing.T) {
					t.Parallel()
					o := newOrigin(t, good(tt.data))
					w := newWorld(t, o.url(), tt.known)
					w.enqueue()
					z.Root = w.root
					first := w.process("first", z)
					done := make(chan error, 1)
					go func() { done <- first.Handle(t.Context(), w.task()) }()
					select {
					case <-z.hit:
						t.Log(z.op)
						w.takenOver(o, z, tt.data, tt.then, done)
					case err := <-done:
						// The counted fetch took longer, so it renewed its lease
						// more often.
						if w.has(tt.data); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
	}
}

func (w *world) takenOver(o *origin, z *freezer, data, then []byte, done <-chan error) {
	w.t.Helper()
	var safe checkpoint
	before := w.job()
	w.checkpoint(&safe)
	o.become(good(then))
	w.clock.advance(time.Minute) // the first one's lease lapses
	second := w.process("second", w.root)
	if before.Status.Active() {
		w.finish(second)
	}
	changed := &then[0] != &data[0]
	if changed && w.job().SHA256 == sum256(data) {
		// The first one had all bytes by then, and they are published.
		if safe.Hashed.Offset != int64(len(data)) && before.Status.Active() {
			w.t.Error("the source has changed, and what it was before was stored")
		}
		then, changed = data, false
	}
	check := func() {
		w.t.Helper()
		if !changed {
			w.has(then)
		}
		w.honest()
		if rec, j := w.fetched(), w.job(); rec.SHA256 != sum256(then) || j.SHA256 != rec.SHA256 || j.Status != job.Completed {
			w.t.Errorf("recorded: %+v; the job is %s with %s", rec, j.Status, j.SHA256)
		}
	}
	check()
	// An upload without a record is swept a day later.
	if safe.UploadID != "" {
		w.clean()
	}
	// Stored bytes are not requested again.
	size := int64(len(then))
	missing := size - min(int64(safe.Parts)*testPart, size)
	if !before.Status.Active() {
		missing = 0
	}
	if asked := o.askedBytes("second", size); !changed && asked != missing {
		w.t.Errorf("asked for %d bytes of %d that are missing", asked, missing)
	}
	published := w.fetched().Nonce
	close(z.thaw)
	<-done
	check()
	if w.fetched().Nonce != published {
		w.t.Error("the first one recorded what it had fetched, after the second")
	}
	w.clean()
	w.events(activity.ImageFetched)
	w.swept(second)
	w.honest()
}

func (w *world) fetched() entry.Fetched {
	w.t.Helper()
	rec, _, err := record.Read[entry.Fetched](context.Background(), w.root, layout.FetchedKey(w.ref))
	if err != nil {
		w.t.Fatal(err)
	}
	return rec
}

// A process that has lost the job and then fails does not remove the parts that the
// new owner uses.
func TestLostOwnerFails(t *testing.T) {
	t.Parallel()
	size := int64(len(longA))
	firstGoes, secondGoes := make(chan struct{}), make(chan struct{})
	var firstAsks, secondAsks sync.Once
	firstWaits, secondWaits := make(chan struct{}), make(chan struct{})
	o := newOrigin(t, func(o *origin, n int, rw http.ResponseWriter, r *http.Request) {
		from, _ := parseRange(t, r.Header.Get("Range"), size)
		switch {
		case r.UserAgent() == "first" && from >= testPart:
			firstAsks.Do(func() { close(firstWaits) })
			<-firstGoes
			status(http.StatusNotFound)(o, n, rw, r)
			return
		case r.UserAgent() == "second" && from >= 2*testPart:
			secondAsks.Do(func() { close(secondWaits) })
			<-secondGoes
		}
		good(longA)(o, n, rw, r)
	})
	w := newWorld(t, o.url(), entry.Entry{})
	w.enqueue()
	z := freeze(w.root, 0, false)
	first := w.process("first", z)
	firstDone := make(chan error, 1)
	go func() { firstDone <- first.Handle(t.Context(), w.task()) }()
	<-firstWaits
	go z.wait("everything")
	<-z.hit
	w.clock.advance(time.Minute)
	second := w.process("second", w.root)
	secondDone := make(chan error, 1)
	go func() { secondDone <- second.Handle(t.Context(), w.task()) }()
	<-secondWaits
	close(firstGoes)
	close(z.thaw)
	<-firstDone
	close(secondGoes)
	if err := <-secondDone; err != nil {
		t.Error(err)
	}
	w.has(longA)
	w.clean()
	w.events(activity.ImageFetched)
	if asked := o.askedBytes("second", size); asked != size-testPart {
		t.Errorf("the second asked for %d bytes of %d that were missing", asked, size-testPart)
	}
}

// TestFaultAtEveryWrite fails each write once: before and after it takes effect,
// and when the next one arrives. The fetch still completes, and downloads the bytes
// once.
func TestFaultAtEveryWrite(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		data  []byte
		known entry.Entry
		plain bool
	}{
		{"of a known digest", smallA, knows(smallA), false},
		{"of an unknown digest", smallA, entry.Entry{}, false},
		{"of two parts", imageA, entry.Entry{}, true},
	} {
		for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
			t.Run(tt.name+", "+fault.String(), func(t *testing.T) {
				t.Parallel()
				o := newOrigin(t, good(tt.data))
				for n := 1; !t.Failed(); n++ {
					o.become(good(tt.data))
					w := newWorld(t, o.url(), tt.known)
					w.enqueue()
					s := faultstore.New(w.root, faultstore.NthWrite(n, fault))
					s.Plain = tt.plain
					f := w.process("a", s)
					w.finish(f)
					w.has(tt.data)
					var failed faultstore.Call
					for _, c := range s.Calls() {
						if c.Write == n {
							failed = c
						}
					}
					if failed.Op != "CreateUpload" || fault != faultstore.After {
						w.clean()
					}
					w.swept(f)
					size := int64(len(tt.data))
					if asked := o.askedBytes("a", size); asked > size+testPart {
						t.Errorf("asked for %d bytes of an image of %d", asked, size)
					}
					if t.Failed() {
						t.Errorf("at write %d: %+v", n, failed)
					}
					if s.Writes() < n {
						if n < 8 {
							t.Errorf("a fetch of %d writes", n-1)
						}
						return
					}
				}
			})
		}
	}
}

// Random failures of the store only make a fetch slower.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, when(func(n int) bool { return n%5 == 0 }, cut(good(imageA), 20_000, true), good(imageA)))
			w := newWorld(t, o.url(), entry.Entry{})
			w.enqueue()
			s := faultstore.New(w.root, faultstore.Random(seed, 0.15, faultstore.Before, faultstore.After, faultstore.Late))
			f := w.process("a", s)
			w.finish(f)
			w.has(imageA)
			s.Reset(nil)
			w.swept(f)
		})
	}
}

// A fetch whose bytes the store refuses fails with the reason.
func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	for err, word := range map[error]string{store.ErrOccupied: "occupied", store.ErrRefused: "refuses"} {
		for _, op := range []string{"CreateUpload", "UploadPart", "CompleteUpload"} {
			w := newWorld(t, newOrigin(t, good(smallA)).url(), knows(smallA))
			w.enqueue()
			refusing := faultstore.New(w.root, func(c faultstore.Call) faultstore.Fault {
				if c.Op == op {
					return faultstore.Before
				}
				return faultstore.None
			})
			refusing.Err = err
			w.finish(w.process("a", refusing))
			w.failed(word)
		}
	}
}
