package index

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"imageroot/shared/record"
	"imageroot/shared/store"
)

// A section is the keys of one kind in one root.
type section struct {
	root    rootID
	prefix  string
	has     func(key store.Key) bool // for a key in root
	records bool

	// Guarded by Index.mu.
	table   map[store.Key]item
	changed map[store.Key]struct{} // since the last view
	all     bool                   // everything has changed
}

// An Item is an object in the index.
type Item[T any] struct {
	Info  store.Info
	Value T
}

// A Section has the objects of one kind by their IDs. It is safe for concurrent use.
type Section[ID ~string, T any] struct {
	section
	ix     *Index
	id     func(key store.Key) (ID, bool)
	decode func(key store.Key, data []byte) (T, error) // nil: all values are zero

	mu      sync.Mutex
	items   map[ID]Item[T] // never changed once published
	damaged map[ID]leftOut
	gen     uint64
}

// A leftOut is a record that cannot be decoded.
type leftOut struct {
	version store.Version
	err     error
}

// Images registers the objects at the top level of the image root. All sections must be
// registered before the index is used.
func Images(ix *Index) *Section[store.Key, struct{}] {
	return register[store.Key, struct{}](ix, section{root: imageRoot}, func(key store.Key) (store.Key, bool) {
		return key, key != "" && !strings.Contains(string(key), "/")
	}, nil)
}

// Blobs registers the objects of the catalog root whose keys begin with prefix. id
// returns the ID of a key, or false if the section does not have the key.
func Blobs[ID ~string](ix *Index, prefix string, id func(key store.Key) (ID, bool)) *Section[ID, struct{}] {
	return register[ID, struct{}](ix, section{root: catalogRoot, prefix: prefix}, id, nil)
}

// Records is [Blobs] for records of type T. A record that cannot be decoded is left
// out, and each version of it is logged once.
func Records[T any, ID ~string](ix *Index, prefix string, id func(key store.Key) (ID, bool)) *Section[ID, T] {
	return register(ix, section{root: catalogRoot, prefix: prefix, records: true}, id, record.Decode[T])
}

func register[ID ~string, T any](ix *Index, core section, id func(store.Key) (ID, bool), decode func(store.Key, []byte) (T, error)) *Section[ID, T] {
	core.table, core.changed = map[store.Key]item{}, map[store.Key]struct{}{}
	core.has = func(key store.Key) bool {
		if !strings.HasPrefix(string(key), core.prefix) {
			return false
		}
		_, ok := id(key)
		return ok
	}
	s := &Section[ID, T]{section: core, ix: ix, id: id, decode: decode, items: map[ID]Item[T]{}, damaged: map[ID]leftOut{}}
	ix.sections = append(ix.sections, &s.section)
	return s
}

// All returns the items by ID, and a number that changes whenever they change. The
// caller must not modify the map. It includes every write through this process and
// every key touched before the call, and the changes of other processes about a second
// after their journal entries. If the journal cannot be read, All returns what is
// known. Any other error of the store is returned.
func (s *Section[ID, T]) All(ctx context.Context) (map[ID]Item[T], uint64, error) {
	if err := s.ix.refresh(ctx); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view()
	return s.items, s.gen, nil
}

// Refresh compares the section with a listing of the store, corrects the index, and
// queues the corrections for the journal. When it returns nil, All includes every
// change made before the call.
func (s *Section[ID, T]) Refresh(ctx context.Context) error {
	if err := s.ix.refresh(ctx); err != nil {
		return err
	}
	l, err := s.ix.list(ctx, &s.section)
	if err != nil {
		return err
	}
	s.ix.update.Lock()
	defer s.ix.update.Unlock()
	if err := s.ix.compare(ctx, l, true); err != nil {
		return err
	}
	return s.ix.askDirty(ctx)
}

// LeftOut returns the IDs of the records that All leaves out because decoding failed
// with an error that matches cause, or with any error if cause is nil.
func (s *Section[ID, T]) LeftOut(cause error) []ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view()
	var ids []ID
	for id, d := range s.damaged {
		if cause == nil || errors.Is(d.err, cause) {
			ids = append(ids, id)
		}
	}
	return ids
}

// view brings items up to date with the table. The caller holds s.mu.
func (s *Section[ID, T]) view() {
	found := s.ix.take(&s.section)
	if len(found) == 0 {
		return
	}
	items := maps.Clone(s.items)
	if len(items) == 0 {
		items = make(map[ID]Item[T], len(found))
	}
	for part := range slices.Chunk(found, 2000) {
		values := s.decodeAll(part)
		for i, c := range part {
			id, _ := s.id(c.key)
			delete(items, id)
			old, was := s.damaged[id]
			delete(s.damaged, id)
			if !c.exists() {
				continue
			}
			if err := values[i].err; err != nil {
				s.damaged[id] = leftOut{c.version(), err}
				if !was || !old.version.Equal(c.version()) {
					s.ix.cfg.Log.Warn("record left out", "key", c.key, "error", err, "remedy", record.Remedy(c.key, err))
				}
				continue
			}
			items[id] = Item[T]{store.Info{Key: c.key, Version: c.version()}, values[i].value}
		}
	}
	s.items = items
	s.gen++
}

// A decoded is the value of a record, or the error of decoding it.
type decoded[T any] struct {
	value T
	err   error
}

// decodeAll decodes the records that exist, on all cores if there are many.
func (s *Section[ID, T]) decodeAll(found []keyed) []decoded[T] {
	values := make([]decoded[T], len(found))
	if s.decode == nil {
		return values
	}
	var wg sync.WaitGroup
	each := max(len(found)/runtime.GOMAXPROCS(0), 100)
	for at := 0; at < len(found); at += each {
		part, values := found[at:min(at+each, len(found))], values[at:]
		wg.Go(func() {
			var data dataReader
			for i, c := range part {
				if c.exists() {
					values[i].value, values[i].err = s.decode(c.key, data.get(c.data))
				}
			}
		})
	}
	wg.Wait()
	return values
}

// A keyed is an item with its key.
type keyed struct {
	key store.Key
	item
}

// take returns the items that have changed since the last call, those whose data are
// in one block together.
func (ix *Index) take(s *section) []keyed {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if s.all {
		for key := range s.table {
			s.changed[key] = struct{}{}
		}
	}
	found := make([]keyed, 0, len(s.changed))
	for key := range s.changed {
		found = append(found, keyed{key, s.table[key]})
	}
	s.changed, s.all = map[store.Key]struct{}{}, false
	slices.SortFunc(found, func(a, b keyed) int { return a.data.compare(b.data) })
	return found
}
