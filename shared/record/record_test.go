package record_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

type counter struct {
	record.Meta
	N int `json:"n"`
}

func add(c *counter, _ bool) error { c.N++; return nil }

// count returns the counter without any fault.
func count(t *testing.T, s store.Records) int {
	t.Helper()
	c, _, err := record.Read[counter](t.Context(), s, "c")
	if errors.Is(err, store.ErrNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.N
}

func TestChange(t *testing.T) {
	ctx, s := t.Context(), memstore.New()
	var existed []bool
	note := func(c *counter, exists bool) error {
		existed = append(existed, exists)
		c.N += 5
		return nil
	}
	one, tag1, err := record.Change(ctx, s, "c", note)
	if err != nil || one.N != 5 || tag1 == "" || one.Nonce == "" {
		t.Fatalf("first change: %+v, %q, %v", one, tag1, err)
	}
	two, tag2, err := record.Change(ctx, s, "c", note)
	if err != nil || two.N != 10 || tag2 == tag1 || two.Nonce == one.Nonce {
		t.Fatalf("second change: %+v, %q, %v after %+v, %q", two, tag2, err, one, tag1)
	}
	if fmt.Sprint(existed) != "[false true]" {
		t.Errorf("change was called with %v", existed)
	}

	// ErrKeep and other errors write nothing.
	kept, tag, err := record.Change(ctx, s, "c", func(c *counter, _ bool) error { return record.ErrKeep })
	if err != nil || kept != two || tag != tag2 {
		t.Errorf("kept: %+v, %q, %v; want %+v, %q", kept, tag, err, two, tag2)
	}
	refuse := errors.New("refused")
	if _, _, err := record.Change(ctx, s, "c", func(c *counter, _ bool) error { c.N = 99; return refuse }); !errors.Is(err, refuse) {
		t.Errorf("refused: %v", err)
	}
	if got, tag, _ := record.Read[counter](ctx, s, "c"); got != two || tag != tag2 {
		t.Errorf("the record went to %+v, %q", got, tag)
	}

	// Writes of others in between are not lost.
	between := 0
	if _, _, err := record.Change(ctx, s, "c", func(c *counter, _ bool) error {
		if between++; between <= 3 {
			if _, _, err := record.Change(ctx, s, "c", add); err != nil {
				t.Error(err)
			}
		}
		c.N += 100
		return nil
	}); err != nil {
		t.Error(err)
	}
	if got := count(t, s); got != 10+3+100 || between != 4 {
		t.Errorf("with three writes between: %d in %d tries", got, between)
	}
}

// A damaged record counts as missing, and is replaced.
func TestDamaged(t *testing.T) {
	for _, data := range []string{"", "{", `{"nonce":"A","n":`, "\x00\xff", "null", "{}", "[]", "7", `"x"`, `{"nonce":"A","n":"x"}`} {
		ctx, s := t.Context(), memstore.New()
		if _, err := s.CreateRecord(ctx, "c", []byte(data)); err != nil {
			t.Fatal(err)
		}
		v, tag, err := record.Read[counter](ctx, s, "c")
		if !errors.Is(err, record.ErrDamaged) || !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), `"c"`) || tag == "" || v != (counter{}) {
			t.Errorf("Read of %q: %+v, tag %q: %v", data, v, tag, err)
		}
		if _, _, err := record.Change(ctx, s, "c", add); err != nil {
			t.Errorf("Change of %q: %v", data, err)
		}
		if got := count(t, s); got != 1 {
			t.Errorf("in place of %q is a count of %d", data, got)
		}
	}
}

// A record of a newer version is not read, changed or removed, even if it does not
// decode. A record without a version has version 1.
func TestNewer(t *testing.T) {
	for _, data := range []string{`{"schema":2,"nonce":"A","n":1}`, `{"schema":3}`, `{"n":[1],"nonce":{"is":"A"},"schema":99}`} {
		ctx, s := t.Context(), memstore.New()
		old, err := s.CreateRecord(ctx, "c", []byte(data))
		if err != nil {
			t.Fatal(err)
		}
		refused := func(what string, err error) {
			t.Helper()
			e, ok := errors.AsType[*record.NewerError](err)
			if !ok || e.Key != "c" || e.Known != 1 || errors.Is(err, store.ErrNotFound) || errors.Is(err, record.ErrDamaged) {
				t.Errorf("%s %s: %v", what, data, err)
			}
			if now, tag, err := s.ReadRecord(ctx, "c"); err != nil || string(now) != data || tag != old {
				t.Errorf("%s left %q: %v", what, now, err)
			}
		}
		v, tag, err := record.Read[counter](ctx, s, "c")
		if v != (counter{}) || tag != "" {
			t.Errorf("Read of %s: %+v, tag %q", data, v, tag)
		}
		refused("Read", err)
		_, _, err = record.Change(ctx, s, "c", add)
		refused("Change", err)
		refused("CheckVersion", record.CheckVersion[counter](ctx, s, "c"))
		refused("Delete", record.Delete[counter](ctx, s, "c"))
		if _, err := record.Swap(ctx, s, "c", &counter{N: 1}, ""); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Swap of %s: %v", data, err)
		}
	}
	ctx, s := t.Context(), memstore.New()
	for _, data := range []string{`{"nonce":"A","n":1}`, `{"schema":1,"nonce":"A","n":1}`, `{"schema":7`} {
		if err := record.CheckVersion[counter](ctx, s, "c"); err != nil {
			t.Errorf("CheckVersion of no record: %v", err)
		}
		_, _ = s.CreateRecord(ctx, "c", []byte(data))
		if err := record.CheckVersion[counter](ctx, s, "c"); err != nil {
			t.Errorf("CheckVersion of %s: %v", data, err)
		}
		if v, _, err := record.Change(ctx, s, "c", add); err != nil || v.Schema != 1 {
			t.Errorf("Change of %s: %+v, %v", data, v, err)
		}
		if err := record.Delete[counter](ctx, s, "c"); err != nil {
			t.Error(err)
		}
	}
}

func TestSwap(t *testing.T) {
	ctx := t.Context()
	for _, plain := range []bool{false, true} {
		for _, tt := range []struct {
			fault faultstore.Fault
			found bool // the write counts
		}{
			{faultstore.None, true},
			{faultstore.Before, false},
			{faultstore.After, true},
			{faultstore.Late, false},
		} {
			under := memstore.New()
			s := faultstore.New(under, faultstore.NthWrite(1, tt.fault))
			s.Plain = plain
			created := &counter{N: 1}
			tag, err := record.Swap(ctx, s, "c", created, "")
			if (err == nil) != tt.found || (tag != "") != tt.found {
				t.Errorf("create with the fault %v (plain %v): %q, %v", tt.fault, plain, tag, err)
			}
			if err != nil && !errors.Is(err, faultstore.ErrInjected) {
				t.Errorf("create with the fault %v (plain %v): %v", tt.fault, plain, err)
			}
			s = faultstore.New(under, faultstore.NthWrite(1, tt.fault))
			s.Plain = plain
			if !tt.found {
				if tag, err = record.Swap(ctx, under, "c", created, ""); err != nil {
					t.Fatal(err)
				}
			}
			newTag, err := record.Swap(ctx, s, "c", &counter{N: 2}, tag)
			if (err == nil) != tt.found {
				t.Errorf("replace with the fault %v (plain %v): %v", tt.fault, plain, err)
			}
			if _, now, _ := record.Read[counter](ctx, under, "c"); tt.found && now != newTag {
				t.Errorf("replace with the fault %v: the tag is %q, in force is %q", tt.fault, newTag, now)
			}
		}
	}
}

// hook runs f before each read of a record.
type hook struct {
	store.Records
	f func()
}

func (h hook) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	h.f()
	return h.Records.ReadRecord(ctx, key)
}

func TestSwapFindsAnothersWrite(t *testing.T) {
	ctx := t.Context()
	for name, other := range map[string]func(under store.Root) error{
		"replaced": func(under store.Root) error { _, _, err := record.Change(ctx, under, "c", add); return err },
		"deleted":  func(under store.Root) error { return under.Delete(ctx, "c") },
	} {
		under := memstore.New()
		tag, err := record.Swap(ctx, under, "c", &counter{N: 1}, "")
		if err != nil {
			t.Fatal(err)
		}
		s := hook{faultstore.New(under, faultstore.NthWrite(1, faultstore.Before)), func() {
			if err := other(under); err != nil {
				t.Error(err)
			}
		}}
		if _, err := record.Swap(ctx, s, "c", &counter{N: 9}, tag); !errors.Is(err, store.ErrConflict) {
			t.Errorf("swap with an unknown outcome of a record that was %s meanwhile: %v, want ErrConflict", name, err)
		}
	}
	// The create may not have arrived, and there is still no record.
	s := faultstore.New(memstore.New(), faultstore.NthWrite(1, faultstore.Before))
	if _, err := record.Swap(ctx, s, "c", &counter{}, ""); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("create with an unknown outcome: %v, want ErrUnknown", err)
	}
}

// TestEveryWriteFails fails each write of a series of changes in turn.
func TestEveryWriteFails(t *testing.T) {
	const changes = 4
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; n <= changes; n++ {
			under := memstore.New()
			s := faultstore.New(under, faultstore.NthWrite(n, fault))
			for i := range changes {
				c, tag, err := record.Change(t.Context(), s, "c", add)
				if err != nil || c.N != i+1 || tag == "" {
					t.Errorf("write %d failed %v: change %d returned %+v, %q, %v", n, fault, i+1, c, tag, err)
				}
			}
			if got := count(t, under); got != changes {
				t.Errorf("write %d failed %v: %d changes counted to %d", n, fault, changes, got)
			}
			if s.Writes() < changes {
				t.Errorf("%d changes took %d writes", changes, s.Writes())
			}
		}
	}
}

// TestEveryCallFails fails two calls in a row, so that reading back an unknown outcome
// fails, too. The caller then either knows the outcome or gets an error.
func TestEveryCallFails(t *testing.T) {
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; n <= 10; n++ {
			under := memstore.New()
			s := faultstore.New(under, func(c faultstore.Call) faultstore.Fault {
				if c.N == n || c.N == n+1 {
					return fault
				}
				return faultstore.None
			})
			sure, unsure := 0, 0
			for range 4 {
				if _, _, err := record.Change(t.Context(), s, "c", add); err == nil {
					sure++
				} else {
					unsure++
				}
			}
			if got := count(t, under); got < sure || got > sure+unsure {
				t.Errorf("calls %d and %d failed %v: %d changes succeeded and %d may have, and the counter is %d", n, n+1, fault, sure, unsure, got)
			}
		}
	}
}

// In TestRandomFaults, many goroutines increment a counter over a server that loses a
// fifth of all requests. If lost writes have no effect, the counter is exact. If they
// take effect, some count twice, since others replace them before they are read back,
// but none is lost.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(5) {
		for _, tt := range []struct {
			faults []faultstore.Fault
			exact  bool
		}{
			{[]faultstore.Fault{faultstore.Before}, true},
			{[]faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late}, false},
		} {
			under := memstore.New()
			random := faultstore.Random(seed, 0.2, tt.faults...)
			s := faultstore.New(under, func(c faultstore.Call) faultstore.Fault {
				if c.Write == 0 {
					return faultstore.None
				}
				return random(c)
			})
			var wg sync.WaitGroup
			var mu sync.Mutex
			sure, unsure := 0, 0
			for range 8 {
				wg.Go(func() {
					for range 5 {
						_, _, err := record.Change(t.Context(), s, "c", add)
						mu.Lock()
						if err == nil {
							sure++
						} else {
							unsure++
						}
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			got := count(t, under)
			if got < sure || tt.exact && got > sure+unsure {
				t.Errorf("seed %d, %v: %d changes succeeded and %d may have, and the counter is %d", seed, tt.faults, sure, unsure, got)
			}
		}
	}
}

func TestChangeGivesUp(t *testing.T) {
	// Reads work, and no write does.
	s := faultstore.New(memstore.New(), func(c faultstore.Call) faultstore.Fault {
		if c.Write > 0 {
			return faultstore.Before
		}
		return faultstore.None
	})
	if _, _, err := record.Change(t.Context(), s, "c", add); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("without any write: %v, want ErrUnknown", err)
	}
	if s.Writes() > 20 {
		t.Errorf("it took %d writes to give up", s.Writes())
	}
	// Nothing works.
	s.Reset(func(faultstore.Call) faultstore.Fault { return faultstore.Before })
	if _, _, err := record.Change(t.Context(), s, "c", add); !errors.Is(err, faultstore.ErrInjected) || len(s.Calls()) != 1 {
		t.Errorf("without any read: %v after %d calls", err, len(s.Calls()))
	}
	// Another write always wins.
	under := memstore.New()
	tries := 0
	_, _, err := record.Change(t.Context(), under, "c", func(c *counter, _ bool) error {
		tries++
		_, _, err := record.Change(t.Context(), under, "c", add)
		return err
	})
	if !errors.Is(err, store.ErrConflict) || tries != 100 {
		t.Errorf("against endless writes: %v after %d tries", err, tries)
	}
}
