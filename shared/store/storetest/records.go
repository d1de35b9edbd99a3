package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"imageroot/shared/record"
	"imageroot/shared/store"
)

// racers is the number of writers in a race.
const racers = 32

func (s *suite) reads(key store.Key, want []byte, wantTag string) {
	s.Helper()
	data, tag, err := s.root.ReadRecord(s.ctx, key)
	s.must("read record", err)
	if !bytes.Equal(data, want) || tag != wantTag || tag == "" {
		s.Errorf("the record %q is %s with the tag %q, want %s with %q", key, short(data), tag, short(want), wantTag)
	}
}

func (s *suite) records() {
	const key = "jobs/hash/a b+ü%41.img"
	_, _, err := s.root.ReadRecord(s.ctx, key)
	s.fails("read of no record", err, store.ErrNotFound)
	_, err = s.root.ReplaceRecord(s.ctx, key, []byte("0"), `"00000000000000000000000000000000"`)
	s.fails("replace of no record", err, store.ErrConflict)
	_, _, err = s.root.ReadRecord(s.ctx, key)
	s.fails("read after a replace of no record", err, store.ErrNotFound)

	one, err := s.root.CreateRecord(s.ctx, key, []byte(`{"n":1}`))
	s.must("create", err)
	s.reads(key, []byte(`{"n":1}`), one)
	_, err = s.root.CreateRecord(s.ctx, key, []byte(`{"n":2}`))
	s.fails("create again", err, store.ErrConflict)
	s.reads(key, []byte(`{"n":1}`), one)

	two, err := s.root.ReplaceRecord(s.ctx, key, []byte(`{"n":2}`), one)
	s.must("replace", err)
	if one == two {
		s.Errorf("two contents have one tag: %s", one)
	}
	s.reads(key, []byte(`{"n":2}`), two)
	_, err = s.root.ReplaceRecord(s.ctx, key, []byte(`{"n":3}`), one)
	s.fails("replace with an old tag", err, store.ErrConflict)
	s.reads(key, []byte(`{"n":2}`), two)
	three, err := s.root.ReplaceRecord(s.ctx, key, []byte(`{"n":3}`), two)
	s.must("replace with the new tag", err)
	s.reads(key, []byte(`{"n":3}`), three)

	s.must("delete", s.root.Delete(s.ctx, key))
	s.must("delete again", s.root.Delete(s.ctx, key))
	_, _, err = s.root.ReadRecord(s.ctx, key)
	s.fails("read of a deleted record", err, store.ErrNotFound)
	_, err = s.root.ReplaceRecord(s.ctx, key, []byte(`{"n":4}`), three)
	s.fails("replace of a deleted record", err, store.ErrConflict)
	_, _, err = s.root.ReadRecord(s.ctx, key)
	s.fails("read after a replace of a deleted record", err, store.ErrNotFound)
	four, err := s.root.CreateRecord(s.ctx, key, []byte(`{"n":4}`))
	s.must("create after delete", err)
	s.reads(key, []byte(`{"n":4}`), four)
	_, err = s.root.ReplaceRecord(s.ctx, key, []byte(`{"n":5}`), three)
	s.fails("replace with the tag of before the delete", err, store.ErrConflict)
	s.reads(key, []byte(`{"n":4}`), four)

	// Other records stay as they are.
	_, err = s.root.CreateRecord(s.ctx, "jobs/hash/a b+ü%41.im", []byte(`{}`))
	s.must("create beside", err)
	s.reads(key, []byte(`{"n":4}`), four)
}

// recordsAreObjects checks that records can be listed and read as objects.
func (s *suite) recordsAreObjects() {
	tag, err := s.root.CreateRecord(s.ctx, "entries/a", []byte("one"))
	s.must("create", err)
	v := s.holds("entries/a", []byte("one"))
	s.lists("entries/", "", "entries/a")
	_, err = s.root.ReplaceRecord(s.ctx, "entries/a", []byte("two"), tag)
	s.must("replace", err)
	if w := s.holds("entries/a", []byte("two")); w.Equal(v) {
		s.Errorf("a record that was replaced kept its version %+v", v)
	}
	for info, err := range s.root.List(s.ctx, "entries/", "") {
		s.must("list", err)
		if head := s.holds("entries/a", []byte("two")); !head.Equal(info.Version) {
			s.Errorf("the record is listed as %+v and looked at as %+v", info.Version, head)
		}
	}
	s.must("delete", s.root.Delete(s.ctx, "entries/a"))
	s.isMissing("entries/a")
	s.lists("entries/", "")

	// An object can be read as a record.
	s.put("catalog.toml", []byte("version = 1"))
	data, tag, err := s.root.ReadRecord(s.ctx, "catalog.toml")
	s.must("read an object", err)
	if string(data) != "version = 1" || tag == "" {
		s.Errorf("the object is read as %s with the tag %q", data, tag)
	}
	_, err = s.root.CreateRecord(s.ctx, "catalog.toml", []byte("version = 2"))
	s.fails("create over an object", err, store.ErrConflict)
	_, err = s.root.ReplaceRecord(s.ctx, "catalog.toml", []byte("version = 2"), tag)
	s.must("replace an object", err)
	s.holds("catalog.toml", []byte("version = 2"))
}

func (s *suite) recordSizes() {
	tag, err := s.root.CreateRecord(s.ctx, "empty", nil)
	s.must("create an empty record", err)
	s.reads("empty", nil, tag)
	full := pattern(1, store.MaxRecordBytes)
	tag, err = s.root.ReplaceRecord(s.ctx, "empty", full, tag)
	s.must("replace by the largest record", err)
	s.reads("empty", full, tag)
	over := pattern(1, store.MaxRecordBytes+1)
	if _, err := s.root.CreateRecord(s.ctx, "over", over); err == nil {
		s.Error("a record that is too large was created")
	}
	if _, err := s.root.ReplaceRecord(s.ctx, "empty", over, tag); err == nil {
		s.Error("a record was replaced by one that is too large")
	}
	s.reads("empty", full, tag)
	s.isMissing("over")
	s.put("image.img", over)
	if _, _, err := s.root.ReadRecord(s.ctx, "image.img"); err == nil || errors.Is(err, store.ErrNotFound) {
		s.Errorf("read of an object that is too large for a record: %v", err)
	}
}

// race runs write for each racer at once. Exactly one must win, and its
// content must be the one in force; the others must learn that they lost.
func (s *suite) race(key store.Key, write func(data []byte) (string, error)) string {
	s.Helper()
	type result struct {
		n   int
		tag string
		err error
	}
	start := make(chan struct{})
	results := make(chan result, racers)
	for n := range racers {
		go func() {
			<-start
			tag, err := write(fmt.Appendf(nil, `{"racer":%d,"key":%q}`, n, key))
			results <- result{n, tag, err}
		}()
	}
	close(start)
	var won []result
	for range racers {
		switch r := <-results; {
		case r.err == nil:
			won = append(won, r)
		case !errors.Is(r.err, store.ErrConflict):
			s.Errorf("racer %d: %v, want to win or %v", r.n, r.err, store.ErrConflict)
		}
	}
	if len(won) != 1 {
		s.Fatalf("%d of %d racers won, want 1", len(won), racers)
	}
	s.reads(key, fmt.Appendf(nil, `{"racer":%d,"key":%q}`, won[0].n, key), won[0].tag)
	return won[0].tag
}

func (s *suite) createRace() {
	for round := range 10 {
		key := store.Key(fmt.Sprintf("jobs/hash/%d.img", round))
		s.race(key, func(data []byte) (string, error) { return s.root.CreateRecord(s.ctx, key, data) })
		// And once more where one was deleted.
		s.must("delete", s.root.Delete(s.ctx, key))
		s.race(key, func(data []byte) (string, error) { return s.root.CreateRecord(s.ctx, key, data) })
	}
}

func (s *suite) replaceRace() {
	tag, err := s.root.CreateRecord(s.ctx, "r", []byte(`{}`))
	s.must("create", err)
	for round := range 10 {
		old := tag
		tag = s.race("r", func(data []byte) (string, error) {
			return s.root.ReplaceRecord(s.ctx, "r", data, old)
		})
		// The contents of the next round differ from those of this one.
		if tag, err = s.root.ReplaceRecord(s.ctx, "r", fmt.Appendf(nil, `{"round":%d}`, round), tag); err != nil {
			s.Fatalf("replace by the tag of the one that won: %v", err)
		}
	}
}

// A counter is a record that loses an increment if any swap does not hold.
type counter struct {
	record.Meta
	N int `json:"n"`
}

func (s *suite) counter() {
	const each = 3 // few enough that nobody can lose a hundred times
	var wg sync.WaitGroup
	for range racers {
		wg.Go(func() {
			for range each {
				if _, _, err := record.Change(s.ctx, s.root, "counter", func(c *counter, _ bool) error {
					c.N++
					return nil
				}); err != nil {
					s.Errorf("count: %v", err)
				}
			}
		})
	}
	wg.Wait()
	c, _, err := record.Read[counter](s.ctx, s.root, "counter")
	s.must("read the counter", err)
	if c.N != racers*each {
		s.Errorf("%d increments counted to %d", racers*each, c.N)
	}
}
