package index_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/index"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

// A bench is an index of the images, and of records p/ID that contain numbers.
type bench struct {
	*index.Index
	t               *testing.T
	images, catalog *faultstore.Root
	numbers         *index.Section[string, int]
	pictures        *index.Section[store.Key, struct{}]
	log             bytes.Buffer
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, images: faultstore.New(memstore.New(), nil), catalog: faultstore.New(memstore.New(), nil)}
	b.restart()
	return b
}

// restart replaces the index with an empty one.
func (b *bench) restart() {
	b.Index = index.New(index.Config{
		Images: b.images, Catalog: b.catalog, Compact: true, Patience: time.Hour, Now: time.Now, Log: slog.New(slog.NewTextHandler(&b.log, nil)),
	})
	b.pictures = index.Images(b.Index)
	b.numbers = index.Decoded(b.Index, "p/", number, func(_ store.Key, data []byte) (int, error) { return strconv.Atoi(string(data)) })
}

func number(key store.Key) (string, bool) {
	id, ok := strings.CutPrefix(string(key), "p/")
	return id, ok && !strings.HasPrefix(id, "~")
}

func (b *bench) put(id, content string) {
	b.t.Helper()
	if _, err := b.catalog.Put(context.Background(), store.Key("p/"+id), strings.NewReader(content), int64(len(content))); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) delete(id string) {
	b.t.Helper()
	if err := b.catalog.Delete(context.Background(), store.Key("p/"+id)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) flush() {
	b.t.Helper()
	if err := b.Flush(context.Background()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) holds(want map[string]int) index.Items[string, int] {
	b.t.Helper()
	items, err := b.numbers.All(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	if got := maps.Collect(items.Values()); !maps.Equal(got, want) {
		b.t.Errorf("the index has %v, want %v", got, want)
	}
	for id, info := range items.All() {
		if info.Key != store.Key("p/"+id) || info.ETag == "" {
			b.t.Errorf("the item %q is of %+v", id, info)
		}
	}
	return items
}

// calls returns the numbers of calls of the catalog root since the last call.
func (b *bench) calls() map[string]int {
	counts := map[string]int{}
	for _, c := range b.catalog.Calls() {
		counts[c.Op]++
	}
	b.catalog.Reset(nil)
	return counts
}

func TestTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put("a", "1")
		b.put("b", "2")
		b.put("~not", "3")
		b.put("dir/a", "4")
		first := b.holds(map[string]int{"a": 1, "b": 2})
		b.calls()
		if again := b.holds(map[string]int{"a": 1, "b": 2}); !again.Same(first) || len(b.calls()) != 0 {
			t.Errorf("without a change, a second All returned other items, or asked the store")
		}

		// An untouched change from outside is not seen. A touched one is, at once.
		b.put("a", "10")
		b.put("c", "3")
		b.delete("b")
		b.holds(map[string]int{"a": 1, "b": 2})
		b.TouchCatalog("p/a")
		second := b.holds(map[string]int{"a": 10, "b": 2})
		b.TouchCatalog("p/b")
		b.TouchCatalog("p/c")
		third := b.holds(map[string]int{"a": 10, "c": 3})
		if second.Same(first) || third.Same(second) || third.Same(first) {
			t.Error("changed items are the same")
		}
		if got := third.Changes(first); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("the changed items are %q", got)
		}
		b.calls()
		b.TouchCatalog("p/~not")
		b.TouchCatalog("elsewhere/a")
		b.holds(map[string]int{"a": 10, "c": 3})
		if n := b.calls(); len(n) != 0 {
			t.Errorf("keys of another kind led to %v", n)
		}
		b.put("a", "11")
		b.TouchCatalog("p/a")
		b.holds(map[string]int{"a": 11, "c": 3})
		if n := b.calls(); n["List"] != 0 || n["Get"] != 1 {
			t.Errorf("one touched key led to %v", n)
		}
	})
}

// An idle index sends no request. One that is read sends one a second.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put("a", "1")
		b.holds(map[string]int{"a": 1})
		b.flush()
		ctx, stop := context.WithCancel(t.Context())
		go b.Run(ctx)
		time.Sleep(2 * time.Second)
		b.calls()
		time.Sleep(time.Hour)
		if n := b.calls(); len(n) != 0 {
			t.Errorf("an hour in which nobody asks led to %v", n)
		}
		b.holds(map[string]int{"a": 1}) // the checkpoint, after an hour
		b.calls()
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			b.holds(map[string]int{"a": 1})
		}
		if n := b.calls(); len(n) != 1 || n["List"] < 9 || n["List"] > 10 {
			t.Errorf("ten seconds of asking led to %v", n)
		}
		stop()
		synctest.Wait()
	})
}

// A start costs a handful of requests, however many records there are.
func TestStart(t *testing.T) {
	b := newBench(t)
	want := map[string]int{}
	for i := range 5000 {
		b.put(fmt.Sprint(i), fmt.Sprint(i))
		want[fmt.Sprint(i)] = i
	}
	b.holds(want)
	if n := b.calls(); n["Get"] < 5000 {
		t.Errorf("the first start led to %v", n)
	}
	b.flush()
	t.Logf("the first checkpoint: %v", b.calls())
	observed := b.ObserveCatalog(b.catalog)
	for i := range 10 {
		id := fmt.Sprint(5000 + i)
		if _, err := observed.CreateRecord(t.Context(), store.Key("p/"+id), []byte(id)); err != nil {
			t.Fatal(err)
		}
		want[id] = 5000 + i
		b.flush()
	}
	b.restart()
	b.calls()
	b.holds(want)
	n := b.calls()
	total := 0
	for _, c := range n {
		total += c
	}
	t.Logf("a start with 10 entries in the journal: %v", n)
	if total > 20 {
		t.Errorf("a start led to %d requests: %v", total, n)
	}
}

// After a flush, another process has the change, from the journal alone.
func TestTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBench(t)
		a.holds(map[string]int{})
		a.flush()
		b := &bench{t: t, images: a.images, catalog: faultstore.New(a.catalog, nil)}
		b.restart()
		b.holds(map[string]int{})
		root := a.ObserveCatalog(a.catalog)
		tag, err := root.CreateRecord(t.Context(), "p/a", []byte("1"))
		if err != nil {
			t.Fatal(err)
		}
		if tag, err = root.ReplaceRecord(t.Context(), "p/a", []byte("2"), tag); err != nil {
			t.Fatal(err)
		}
		if _, err := root.CreateRecord(t.Context(), "p/b", []byte("3")); err != nil {
			t.Fatal(err)
		}
		a.flush()
		time.Sleep(time.Second)
		b.calls()
		b.holds(map[string]int{"a": 2, "b": 3})
		if n := b.calls(); n["List"] != 1 || n["Get"] != 1 || len(n) != 2 {
			t.Errorf("an entry led to %v, want a listing and the entry", n)
		}
		if _, err := root.ReplaceRecord(t.Context(), "p/a", []byte("4"), tag); err != nil {
			t.Fatal(err)
		}
		if err := root.Delete(t.Context(), "p/b"); err != nil {
			t.Fatal(err)
		}
		a.flush()
		time.Sleep(time.Second)
		b.holds(map[string]int{"a": 4})
		if n := b.calls(); n["List"] != 1 || n["Get"] != 1 || len(n) != 2 {
			t.Errorf("a change and a deletion led to %v, want a listing and the entry", n)
		}
	})
}

// Entries are removed, but only after every reader has had time to read them.
func TestTrim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		root := b.ObserveCatalog(b.catalog)
		b.holds(map[string]int{})
		entries := func() (n int) {
			for range b.catalog.List(t.Context(), layout.JournalPrefix, "") {
				n++
			}
			return n
		}
		want := map[string]int{}
		write := func(n int) {
			t.Helper()
			for range n {
				i := len(want)
				if _, err := root.CreateRecord(t.Context(), store.Key(fmt.Sprint("p/", i)), []byte(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
				want[fmt.Sprint(i)] = i
				time.Sleep(time.Second)
				b.flush()
			}
		}
		write(50)
		time.Sleep(15 * time.Minute)
		write(50)
		if n := entries(); n != 100 {
			t.Errorf("after a quarter of an hour there are %d of 100 entries", n)
		}
		for range 4 {
			time.Sleep(21 * time.Minute)
			write(20)
		}
		if n := entries(); n >= 100 {
			t.Errorf("after an hour and a half there are %d of 180 entries", n)
		}
		files := 0
		for range b.catalog.List(t.Context(), layout.IndexPrefix, "") {
			files++
		}
		if files > 20 {
			t.Errorf("the index has %d objects", files)
		}
		b.restart()
		b.calls()
		b.holds(want)
		if n := b.calls(); n["List"] != 1 {
			t.Errorf("a start from a checkpoint whose journal was trimmed led to %v", n)
		}
	})
}

func TestUndecodable(t *testing.T) {
	b := newBench(t)
	b.put("a", "1")
	b.put("b", "2")
	b.holds(map[string]int{"a": 1, "b": 2})
	write := func(id, content string) {
		b.put(id, content)
		b.TouchCatalog(store.Key("p/" + id))
	}
	write("b", "not a number")
	write("c", "3")
	b.holds(map[string]int{"a": 1, "c": 3})
	if !strings.Contains(b.log.String(), "p/b") {
		t.Errorf("the log does not name what was left out: %s", b.log.String())
	}
	write("d", "4")
	b.holds(map[string]int{"a": 1, "c": 3, "d": 4})
	if n := strings.Count(b.log.String(), "p/b"); n != 1 || len(b.numbers.LeftOut(nil)) != 1 {
		t.Errorf("%d lines name the damaged record, of which there is 1 and LeftOut says %q", n, b.numbers.LeftOut(nil))
	}
	// A start from the checkpoint gives the same.
	b.flush()
	b.restart()
	b.holds(map[string]int{"a": 1, "c": 3, "d": 4})
	if len(b.numbers.LeftOut(nil)) != 1 {
		t.Errorf("after a start LeftOut says %q", b.numbers.LeftOut(nil))
	}
	write("b", "20\n") // nor does a line break matter
	write("b", "20")
	b.holds(map[string]int{"a": 1, "b": 20, "c": 3, "d": 4})
	if len(b.numbers.LeftOut(nil)) != 0 {
		t.Errorf("%q are damaged after it was written again", b.numbers.LeftOut(nil))
	}
}

// TestErrors makes each request of an All fail in turn. All fails, and no earlier touch
// is lost.
func TestErrors(t *testing.T) {
	failed := 0
	for n := 1; n <= 20; n++ {
		b := newBench(t)
		b.put("a", "1")
		b.put("b", "2")
		b.holds(map[string]int{"a": 1, "b": 2})
		b.put("a", "10")
		b.put("c", "3")
		b.TouchCatalog("p/a")
		b.TouchCatalog("p/c")
		b.catalog.Reset(func(c faultstore.Call) faultstore.Fault {
			if c.N == n {
				return faultstore.Before
			}
			return faultstore.None
		})
		if _, err := b.numbers.All(t.Context()); err != nil {
			failed++
			if !errors.Is(err, faultstore.ErrInjected) {
				t.Errorf("call %d failed: %v", n, err)
			}
		}
		b.catalog.Reset(nil)
		b.holds(map[string]int{"a": 10, "b": 2, "c": 3})
	}
	if failed < 2 {
		t.Errorf("only %d failures were told", failed)
	}
	// The same for the first All.
	for n := 1; n <= 5; n++ {
		b := newBench(t)
		b.put("a", "1")
		b.catalog.Reset(func(c faultstore.Call) faultstore.Fault {
			if c.N == n {
				return faultstore.Before
			}
			return faultstore.None
		})
		if items, err := b.numbers.All(t.Context()); err == nil && items.Len() != 1 || err != nil && !errors.Is(err, faultstore.ErrInjected) {
			t.Errorf("a first All whose request %d fails has %d: %v", n, items.Len(), err)
		}
		b.catalog.Reset(nil)
		b.holds(map[string]int{"a": 1})
	}
}

// While the store does not answer, All returns what is known. A failed flush is
// repeated.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put("a", "1")
		b.holds(map[string]int{"a": 1})
		b.flush()
		down := func(faultstore.Call) faultstore.Fault { return faultstore.Before }
		for _, d := range []time.Duration{time.Minute, time.Hour} {
			time.Sleep(d)
			b.catalog.Reset(down)
			b.holds(map[string]int{"a": 1})
		}
		b.catalog.Reset(nil)
		if _, err := b.ObserveCatalog(b.catalog).CreateRecord(t.Context(), "p/b", []byte("2")); err != nil {
			t.Fatal(err)
		}
		b.catalog.Reset(down)
		if err := b.Flush(t.Context()); !errors.Is(err, faultstore.ErrInjected) {
			t.Errorf("a flush without a store: %v", err)
		}
		b.catalog.Reset(nil)
		b.flush()
		b.restart()
		b.holds(map[string]int{"a": 1, "b": 2})
	})
}

// The index of a newer version is neither used nor overwritten.
func TestNewer(t *testing.T) {
	b := newBench(t)
	b.put("a", "1")
	const newer = `{"schema": 99, "nonce": "n", "base": "of another type"}`
	if _, err := b.catalog.Put(t.Context(), layout.IndexKey, strings.NewReader(newer), int64(len(newer))); err != nil {
		t.Fatal(err)
	}
	b.holds(map[string]int{"a": 1})
	b.flush()
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	b.flush()
	if data, _, err := b.catalog.ReadRecord(t.Context(), layout.IndexKey); err != nil || string(data) != newer {
		t.Errorf("the newer record is %s, %v", data, err)
	}
}

// unreadable has an object that the server lists but does not open.
type unreadable struct {
	store.Root
	key store.Key
}

func (u *unreadable) Head(ctx context.Context, key store.Key) (store.Info, error) {
	if key == u.key {
		return store.Info{}, store.ErrDisk
	}
	return u.Root.Head(ctx, key)
}

// One image that cannot be read does not hide the others, and images are not read.
func TestImages(t *testing.T) {
	b := newBench(t)
	put := func(key store.Key, content string) store.Version {
		v, err := b.images.Put(t.Context(), key, strings.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		b.TouchImage(key)
		return v
	}
	has := func(key store.Key, v store.Version) {
		t.Helper()
		items, err := b.pictures.All(t.Context())
		if info, ok := items.Info(key); err != nil || !ok || !info.Equal(v) {
			t.Errorf("%s is %+v, want %+v: %v", key, info, v, err)
		}
	}
	has("a.img", put("a.img", "one"))
	has("a.img", put("a.img", "another"))
	odd := store.Key("with\ta tab,\na \"line\" break.img")
	v := put(odd, "odd")
	has(odd, v)
	b.flush()
	b.restart()
	has(odd, v)
	for _, c := range b.images.Calls() {
		if c.Op == "ReadRecord" || c.Op == "Get" {
			t.Errorf("an image was read: %+v", c)
		}
	}
	ix := index.New(index.Config{Images: &unreadable{b.images, "bad.img"}, Catalog: b.catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	b.Index, b.pictures = ix, index.Images(ix)
	v = put("bad.img", "bad")
	has("bad.img", v)
	ix.TouchImage("bad.img")
	has("bad.img", v)
}

// held is a store whose reads of numbers block until released.
type held struct {
	store.Root
	reading chan struct{} // a read has begun
	release chan struct{} // and may end
}

func (h held) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (body io.ReadCloser, info store.Info, err error) {
	body, info, err = h.Root.Get(ctx, key, r, ifMatch)
	if strings.HasPrefix(string(key), "p/") {
		h.reading <- struct{}{}
		<-h.release
	}
	return body, info, err
}

// While one caller of All reads a touched key, another must not get the value from
// before the touch.
func TestTouchWhileAnotherAsks(t *testing.T) {
	under := memstore.New()
	root := held{under, make(chan struct{}), make(chan struct{})}
	ix := index.New(index.Config{Images: memstore.New(), Catalog: root, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	numbers := index.Decoded(ix, "p/", number, func(_ store.Key, data []byte) (int, error) { return strconv.Atoi(string(data)) })
	write := func(n int) {
		s := fmt.Sprint(n)
		if _, err := under.Put(t.Context(), "p/a", strings.NewReader(s), int64(len(s))); err != nil {
			t.Error(err)
		}
		ix.TouchCatalog("p/a")
	}
	if _, err := numbers.All(t.Context()); err != nil { // nothing yet
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	look := func(want int) {
		wg.Go(func() {
			items, err := numbers.All(t.Context())
			if got, _ := items.Value("a"); err != nil || got < want {
				t.Errorf("after the touch of version %d an All has %d, %v", want, got, err)
			}
		})
	}
	write(1)
	look(1)
	<-root.reading
	root.release <- struct{}{}
	wg.Wait()

	write(2)
	look(2)
	<-root.reading // that caller has taken the touch
	look(2)        // and this one waits for it
	root.release <- struct{}{}
	wg.Wait()

	// The next touch happens while another caller reads the older value.
	write(3)
	look(3)
	<-root.reading
	write(4)
	look(4)
	root.release <- struct{}{}
	<-root.reading
	root.release <- struct{}{}
	wg.Wait()
}

func TestConcurrent(t *testing.T) {
	b := newBench(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go b.Run(ctx)
	root := b.ObserveCatalog(b.catalog)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			key := store.Key(fmt.Sprint("p/", w))
			tag, err := root.CreateRecord(t.Context(), key, []byte("0"))
			for i := range 50 {
				if err == nil {
					tag, err = root.ReplaceRecord(t.Context(), key, []byte(fmt.Sprint(i+1)), tag)
				}
				items, aerr := b.numbers.All(t.Context())
				if got, _ := items.Value(fmt.Sprint(w)); errors.Join(err, aerr) != nil || got != i+1 {
					t.Errorf("after writing %d, %d has %d, %v", i+1, w, got, errors.Join(err, aerr))
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestRepaired replaces a damaged record before the index has read it.
func TestRepaired(t *testing.T) {
	b := newBench(t)
	root := b.ObserveCatalog(b.catalog)
	b.put("1", "damaged")
	change := func(*record.Meta, bool) error { return nil }
	for range 2 { // the second replaces a whole record
		if _, _, err := record.Change(t.Context(), root, "p/1", change); err != nil {
			t.Fatal(err)
		}
		if log := b.log.String(); strings.Count(log, "damaged record replaced") != 1 || !strings.Contains(log, "key=p/1") || !strings.Contains(log, "remedy=") {
			t.Errorf("the log is %q", log)
		}
	}
}
