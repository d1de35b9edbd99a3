package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/mirror"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

// A bench is a mirror of the records p/ID, whose content is a number.
type bench struct {
	*mirror.Mirror[string, int]
	t    *testing.T
	root *faultstore.Root
	log  bytes.Buffer
}

func newBench(t *testing.T, maxAge time.Duration) *bench {
	b := &bench{t: t, root: faultstore.New(memstore.New(), nil)}
	b.Mirror = mirror.New(mirror.Config[string, int]{
		Root: b.root, Prefix: "p/",
		ID: func(key store.Key) (string, bool) {
			id, ok := strings.CutPrefix(string(key), "p/")
			return id, ok && !strings.HasPrefix(id, "~")
		},
		Decode: func(_ store.Key, data []byte) (int, error) { return strconv.Atoi(string(data)) },
		Remedy: func(store.Key, error) string { return "write it again" },
		MaxAge: maxAge, Now: time.Now, Log: slog.New(slog.NewTextHandler(&b.log, nil)),
	})
	return b
}

func (b *bench) put(id, content string) {
	b.t.Helper()
	if _, err := b.root.Put(context.Background(), store.Key("p/"+id), strings.NewReader(content), int64(len(content))); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) delete(id string) {
	b.t.Helper()
	if err := b.root.Delete(context.Background(), store.Key("p/"+id)); err != nil {
		b.t.Fatal(err)
	}
}

// holds checks the items of the mirror and returns their generation.
func (b *bench) holds(want map[string]int) uint64 {
	b.t.Helper()
	items, gen, err := b.All(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	got := map[string]int{}
	for id, it := range items {
		got[id] = it.Value
		if it.Info.Key != store.Key("p/"+id) || it.Info.ETag == "" {
			b.t.Errorf("the item %q is of %+v", id, it.Info)
		}
	}
	if !maps.Equal(got, want) {
		b.t.Errorf("the mirror has %v, want %v", got, want)
	}
	return gen
}

// calls counts the calls of the store since the last count.
func (b *bench) calls() map[string]int {
	counts := map[string]int{}
	for _, c := range b.root.Calls() {
		counts[c.Op]++
	}
	b.root.Reset(nil)
	return counts
}

func TestTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour)
		b.put("a", "1")
		b.put("b", "2")
		b.put("~not", "3")
		b.put("dir/a", "4")
		gen := b.holds(map[string]int{"a": 1, "b": 2})
		b.calls()
		if again := b.holds(map[string]int{"a": 1, "b": 2}); again != gen || len(b.calls()) != 0 {
			t.Errorf("a second look went from generation %d to %d", gen, again)
		}

		// A change without Touch is not seen yet; one with Touch is, at once.
		b.put("a", "10")
		b.put("c", "3")
		b.delete("b")
		b.holds(map[string]int{"a": 1, "b": 2})
		b.Touch("p/a")
		gen2 := b.holds(map[string]int{"a": 10, "b": 2})
		b.Touch("p/b")
		b.Touch("p/c")
		gen3 := b.holds(map[string]int{"a": 10, "c": 3})
		if gen == gen2 || gen2 == gen3 || gen == gen3 {
			t.Errorf("changes went with the generations %d, %d, %d", gen, gen2, gen3)
		}
		b.calls()
		b.Touch("p/~not")
		b.Touch("elsewhere/a")
		b.holds(map[string]int{"a": 10, "c": 3})
		if n := b.calls(); len(n) != 0 {
			t.Errorf("keys of another kind led to %v", n)
		}
		b.put("a", "11")
		b.Touch("p/a")
		b.holds(map[string]int{"a": 11, "c": 3})
		if n := b.calls(); n["List"] != 0 || n["ReadRecord"] != 1 {
			t.Errorf("one touched key led to %v", n)
		}
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Minute)
		b.put("a", "1")
		gen := b.holds(map[string]int{"a": 1})
		b.put("b", "2")
		b.delete("a")
		time.Sleep(time.Minute)
		b.holds(map[string]int{"a": 1})
		b.calls()
		// The first All after MaxAge returns the old items and begins a listing.
		time.Sleep(time.Second)
		b.holds(map[string]int{"a": 1})
		synctest.Wait()
		if n := b.calls(); n["List"] != 1 {
			t.Errorf("an old listing led to %v", n)
		}
		if b.holds(map[string]int{"b": 2}) == gen {
			t.Error("the generation did not change")
		}

		// A failing listing leaves the items.
		time.Sleep(time.Hour)
		b.root.Reset(func(faultstore.Call) faultstore.Fault { return faultstore.Before })
		b.holds(map[string]int{"b": 2})
		synctest.Wait()
		b.holds(map[string]int{"b": 2})
		synctest.Wait()
		if n := len(b.root.Calls()); n != 2 || !strings.Contains(b.log.String(), "listing failed") {
			t.Errorf("%d calls, and the log says %s", n, b.log.String())
		}
		b.root.Reset(nil)
		b.put("b", "3")
		b.holds(map[string]int{"b": 2})
		synctest.Wait()
		b.holds(map[string]int{"b": 3})
	})
}

func TestMaxAgeZeroListsEachTime(t *testing.T) {
	b := newBench(t, 0)
	b.holds(map[string]int{})
	b.put("a", "1")
	gen := b.holds(map[string]int{"a": 1})
	b.put("a", "10")
	b.put("b", "2")
	b.holds(map[string]int{"a": 10, "b": 2})
	b.delete("a")
	last := b.holds(map[string]int{"b": 2})
	b.calls()
	if again := b.holds(map[string]int{"b": 2}); again != last || again == gen {
		t.Errorf("the generations are %d, %d, %d", gen, last, again)
	}
	// Unchanged records are not read again.
	if n := b.calls(); n["List"] != 1 || n["ReadRecord"] != 0 {
		t.Errorf("a look at what is as before led to %v", n)
	}
}

func TestUndecodable(t *testing.T) {
	for _, touched := range []bool{false, true} {
		maxAge := time.Duration(0)
		if touched {
			maxAge = time.Hour
		}
		b := newBench(t, maxAge)
		b.put("a", "1")
		b.put("b", "2")
		b.holds(map[string]int{"a": 1, "b": 2})
		b.put("b", "not a number")
		b.put("c", "3")
		if touched {
			b.Touch("p/b")
			b.Touch("p/c")
		}
		b.holds(map[string]int{"a": 1, "c": 3})
		if !strings.Contains(b.log.String(), "p/b") {
			t.Errorf("the log does not name what was left out: %s", b.log.String())
		}
		b.put("d", "4")
		if touched {
			b.Touch("p/d")
		}
		b.holds(map[string]int{"a": 1, "c": 3, "d": 4})
		if n := strings.Count(b.log.String(), "p/b"); n != 1 || len(b.LeftOut(nil)) != 1 {
			t.Errorf("%d lines name the damaged record, of which there is 1 and LeftOut says %q", n, b.LeftOut(nil))
		}
		b.put("b", "20")
		if touched {
			b.Touch("p/b")
		}
		b.holds(map[string]int{"a": 1, "b": 20, "c": 3, "d": 4})
		if len(b.LeftOut(nil)) != 0 {
			t.Errorf("%q are damaged after it was written again", b.LeftOut(nil))
		}
	}
}

// TestErrors has each request of an All fail in turn. All fails, and no earlier Touch
// is lost.
func TestErrors(t *testing.T) {
	for _, maxAge := range []time.Duration{0, time.Hour} {
		failed := 0
		for n := 1; n <= 20; n++ {
			b := newBench(t, maxAge)
			b.put("a", "1")
			b.put("b", "2")
			b.holds(map[string]int{"a": 1, "b": 2})
			b.put("a", "10")
			b.put("c", "3")
			b.Touch("p/a")
			b.Touch("p/c")
			b.root.Reset(func(c faultstore.Call) faultstore.Fault {
				if c.N == n {
					return faultstore.Before
				}
				return faultstore.None
			})
			if _, _, err := b.All(t.Context()); err != nil {
				failed++
				if !errors.Is(err, faultstore.ErrInjected) {
					t.Errorf("call %d failed: %v", n, err)
				}
			}
			b.root.Reset(nil)
			b.holds(map[string]int{"a": 10, "b": 2, "c": 3})
		}
		if failed < 3 {
			t.Errorf("only %d failures were told", failed)
		}
	}
	// The same for the first All.
	b := newBench(t, time.Hour)
	b.put("a", "1")
	b.root.Reset(faultstore.Plan(func(c faultstore.Call) faultstore.Fault {
		if c.N <= 2 {
			return faultstore.Before
		}
		return faultstore.None
	}))
	for range 2 {
		if _, _, err := b.All(t.Context()); !errors.Is(err, faultstore.ErrInjected) {
			t.Errorf("a first look that fails: %v", err)
		}
	}
	b.holds(map[string]int{"a": 1})
}

func TestKeysOnly(t *testing.T) {
	root := faultstore.New(memstore.New(), nil)
	m := mirror.New(mirror.Config[string, struct{}]{
		Root: root, ID: func(key store.Key) (string, bool) { return string(key), !strings.Contains(string(key), "/") },
		MaxAge: time.Hour, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	put := func(key store.Key, content string) store.Version {
		v, err := root.Put(t.Context(), key, strings.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	all := func() map[string]mirror.Item[struct{}] {
		t.Helper()
		items, _, err := m.All(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return items
	}
	v := put("a.img", "one")
	if got := all(); len(got) != 1 || !got["a.img"].Info.Equal(v) {
		t.Errorf("the mirror has %+v", got)
	}
	v = put("a.img", "another")
	m.Touch("a.img")
	if got := all(); len(got) != 1 || !got["a.img"].Info.Equal(v) {
		t.Errorf("the mirror has %+v", got)
	}
	for _, c := range root.Calls() {
		if c.Op == "ReadRecord" || c.Op == "Get" {
			t.Errorf("an image was read: %+v", c)
		}
	}
}

func TestManyTouchedKeysAreListed(t *testing.T) {
	b := newBench(t, time.Hour)
	b.holds(map[string]int{})
	want := map[string]int{}
	for i := range 300 {
		id := fmt.Sprint(i)
		want[id] = i
		b.put(id, id)
		b.Touch(store.Key("p/" + id))
	}
	b.calls()
	b.holds(want)
	if n := b.calls(); n["List"] != 1 || n["Head"] != 0 {
		t.Errorf("300 touched keys led to %v", n)
	}
}

// held is a store whose reads of records wait after reading.
type held struct {
	store.Root
	reading chan struct{} // a read has begun
	release chan struct{} // and may end
}

func (h held) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	data, tag, err := h.Root.ReadRecord(ctx, key)
	h.reading <- struct{}{}
	<-h.release
	return data, tag, err
}

// TestTouchWhileAnotherLooks has one caller of All read a key that was touched. Another
// one, meanwhile, must not get the value of before the touch.
func TestTouchWhileAnotherLooks(t *testing.T) {
	under := memstore.New()
	root := held{under, make(chan struct{}), make(chan struct{})}
	m := mirror.New(mirror.Config[string, int]{
		Root: root, Prefix: "p/",
		ID:     func(key store.Key) (string, bool) { return string(key), true },
		Decode: func(_ store.Key, data []byte) (int, error) { return strconv.Atoi(string(data)) },
		Remedy: func(store.Key, error) string { return "write it again" },
		MaxAge: time.Hour, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	write := func(n int) {
		s := fmt.Sprint(n)
		if _, err := under.Put(t.Context(), "p/a", strings.NewReader(s), int64(len(s))); err != nil {
			t.Error(err)
		}
		m.Touch("p/a")
	}
	var wg sync.WaitGroup
	look := func(want int) {
		wg.Go(func() {
			items, _, err := m.All(t.Context())
			if got := items["p/a"].Value; err != nil || got < want {
				t.Errorf("after the touch of version %d a look sees %d, %v", want, got, err)
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
	<-root.reading // the touch is with that caller by now
	second := make(chan struct{})
	wg.Go(func() {
		defer close(second)
		items, _, err := m.All(t.Context())
		if got := items["p/a"].Value; err != nil || got != 2 {
			t.Errorf("after the touch of version 2 a second look sees %d, %v", got, err)
		}
	})
	select {
	case <-second: // with the error told, if it is one
	case <-time.After(50 * time.Millisecond): // it waits, as it should
	}
	root.release <- struct{}{}
	wg.Wait()

	// A touch while another caller reads the value of before it.
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
	b := newBench(t, time.Nanosecond)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				id := fmt.Sprint(w)
				b.put(id, fmt.Sprint(i))
				b.Touch(store.Key("p/" + id))
				items, _, err := b.All(t.Context())
				if err != nil || items[id].Value < i {
					t.Errorf("after its touch of %d, %s sees %d, %v", i, id, items[id].Value, err)
				}
				for _, id := range slices.Collect(maps.Keys(items)) {
					_ = items[id].Value
				}
			}
		})
	}
	wg.Wait()
}
