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

// write creates a record, or replaces the content that tag identifies if tag is not
// empty.
func (s *suite) write(key store.Key, data []byte, tag string) (string, error) {
	if tag == "" {
		return s.root.CreateRecord(s.ctx, key, data)
	}
	return s.root.ReplaceRecord(s.ctx, key, data, tag)
}

// wins is a write that must win. It returns the new tag.
func (s *suite) wins(what string, key store.Key, data []byte, tag string) string {
	s.Helper()
	tag, err := s.write(key, data, tag)
	s.must(what, err)
	s.reads(key, data, tag)
	return tag
}

// loses is a write that must lose, and leave the content and the tag of the record, or
// no record if contentTag is empty.
func (s *suite) loses(what string, key store.Key, data []byte, tag string, content []byte, contentTag string) {
	s.Helper()
	_, err := s.write(key, data, tag)
	s.fails(what, err, store.ErrConflict)
	if contentTag != "" {
		s.reads(key, content, contentTag)
		return
	}
	_, _, err = s.root.ReadRecord(s.ctx, key)
	s.fails("read after "+what, err, store.ErrNotFound)
}

func (s *suite) records() {
	const key = "jobs/hash/a b+ü%41.img"
	n := func(i int) []byte { return fmt.Appendf(nil, `{"n":%d}`, i) }
	_, _, err := s.root.ReadRecord(s.ctx, key)
	s.fails("read of no record", err, store.ErrNotFound)
	s.loses("replace of no record", key, n(0), `"00000000000000000000000000000000"`, nil, "")
	one := s.wins("create", key, n(1), "")
	s.loses("create again", key, n(2), "", n(1), one)
	two := s.wins("replace", key, n(2), one)
	if one == two {
		s.Errorf("two contents have one tag: %s", one)
	}
	s.loses("replace with an old tag", key, n(3), one, n(2), two)
	three := s.wins("replace with the new tag", key, n(3), two)

	s.must("delete", s.root.Delete(s.ctx, key))
	s.must("delete again", s.root.Delete(s.ctx, key))
	_, _, err = s.root.ReadRecord(s.ctx, key)
	s.fails("read of a deleted record", err, store.ErrNotFound)
	s.loses("replace of a deleted record", key, n(4), three, nil, "")
	four := s.wins("create after delete", key, n(4), "")
	s.loses("replace with the tag of before the delete", key, n(5), three, n(4), four)

	s.wins("create beside", "jobs/hash/a b+ü%41.im", []byte(`{}`), "")
	s.reads(key, n(4), four)
}

// recordsAreObjects checks that records can be listed and read as objects.
func (s *suite) recordsAreObjects() {
	tag := s.wins("create", "entries/a", []byte("one"), "")
	v := s.holds("entries/a", []byte("one"))
	s.lists("entries/", "", "entries/a")
	s.wins("replace", "entries/a", []byte("two"), tag)
	if w := s.holds("entries/a", []byte("two")); w.Equal(v) {
		s.Errorf("a record that was replaced kept its version %+v", v)
	}
	for info, err := range s.root.List(s.ctx, "entries/", "") {
		s.must("list", err)
		if head := s.holds("entries/a", []byte("two")); !head.Equal(info.Version) {
			s.Errorf("the record is listed as %+v, and Head returns %+v", info.Version, head)
		}
	}
	s.must("delete", s.root.Delete(s.ctx, "entries/a"))
	s.isMissing("entries/a")
	s.lists("entries/", "")

	// An object can be read as a record.
	one, two := []byte("version = 1"), []byte("version = 2")
	s.put("catalog.toml", one)
	data, tag, err := s.root.ReadRecord(s.ctx, "catalog.toml")
	s.must("read an object", err)
	if !bytes.Equal(data, one) || tag == "" {
		s.Errorf("the object is read as %s with the tag %q", data, tag)
	}
	s.loses("create over an object", "catalog.toml", two, "", one, tag)
	s.wins("replace an object", "catalog.toml", two, tag)
	s.holds("catalog.toml", two)
}

func (s *suite) recordSizes() {
	tag := s.wins("create an empty record", "empty", nil, "")
	full := pattern(1, store.MaxRecordBytes)
	tag = s.wins("replace by the largest record", "empty", full, tag)
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

// race makes all racers write at once. Exactly one must win, and its content must be in
// force. The others must get ErrConflict. It returns the new tag.
func (s *suite) race(key store.Key, tag string) string {
	s.Helper()
	type result struct {
		n   int
		tag string
		err error
	}
	content := func(n int) []byte { return fmt.Appendf(nil, `{"racer":%d,"before":%q}`, n, tag) }
	start := make(chan struct{})
	results := make(chan result, racers)
	for n := range racers {
		go func() {
			<-start
			tag, err := s.write(key, content(n), tag)
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
	s.reads(key, content(won[0].n), won[0].tag)
	return won[0].tag
}

func (s *suite) createRace() {
	for round := range 10 {
		key := store.Key(fmt.Sprintf("jobs/hash/%d.img", round))
		s.race(key, "")
		// Once more after a deletion.
		s.must("delete", s.root.Delete(s.ctx, key))
		s.race(key, "")
	}
}

func (s *suite) replaceRace() {
	tag := s.wins("create", "r", []byte(`{}`), "")
	for range 10 {
		tag = s.race("r", tag)
	}
}

// A counter is a record that loses an increment if a swap is not atomic.
type counter struct {
	record.Meta
	N int `json:"n"`
}

func (s *suite) counter() {
	const each = 3 // so few that no racer can lose a hundred times
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
