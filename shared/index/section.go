package index

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"

	"imageroot/shared/record"
	"imageroot/shared/sorted"
	"imageroot/shared/store"
)

// A section is the keys of one kind in one root.
type section struct {
	root    rootID
	prefix  string
	has     func(key store.Key) bool // for a key in root
	records bool

	states
}

// A Section has the objects of one kind by their IDs. It is safe for concurrent use.
type Section[ID ~string, T any] struct {
	section
	ix     *Index
	id     func(key store.Key) (ID, bool)
	decode func(key store.Key, data []byte) (T, error) // nil: all values are zero

	mu      sync.Mutex
	decoded sorted.List[*item] // those of which damaged has all that cannot be decoded
	damaged map[store.Key]leftOut
}

// A leftOut is a record that cannot be decoded.
type leftOut struct {
	item *item
	err  error
}

// Items are the objects of a section at one moment, sorted by ID. They are immutable and
// safe for concurrent use.
type Items[ID ~string, T any] struct {
	list sorted.List[*item]
	of   *Section[ID, T]
}

// Len returns the number of objects, including records that cannot be decoded.
func (v Items[ID, T]) Len() int { return v.list.Len() }

// Same reports whether w is the same list.
func (v Items[ID, T]) Same(w Items[ID, T]) bool { return v.list.Same(w.list) }

// All returns the objects with their IDs, including records that cannot be decoded.
func (v Items[ID, T]) All() iter.Seq2[ID, store.Info] {
	return func(yield func(ID, store.Info) bool) {
		for it := range v.list.All() {
			if id, _ := v.of.id(it.key); !yield(id, it.info()) {
				return
			}
		}
	}
}

// Values returns the values with their IDs. It leaves out records that cannot be
// decoded. It decodes on all cores.
func (v Items[ID, T]) Values() iter.Seq2[ID, T] {
	type decoded struct {
		value T
		ok    bool
	}
	const most = 4096
	return func(yield func(ID, T) bool) {
		for part := range chunks(v.list.All(), most) {
			values := make([]decoded, len(part))
			var wg sync.WaitGroup
			each := max(len(part)/runtime.GOMAXPROCS(0), 100)
			for at := 0; at < len(part); at += each {
				wg.Go(func() {
					var data dataReader
					for i := at; i < min(at+each, len(part)); i++ {
						values[i].value, values[i].ok = v.decode(part[i], data.get)
					}
				})
			}
			wg.Wait()
			for i, it := range part {
				if id, _ := v.of.id(it.key); values[i].ok && !yield(id, values[i].value) {
					return
				}
			}
		}
	}
}

// chunks returns the elements of all in slices of up to n.
func chunks[T any](all iter.Seq[T], n int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		part := make([]T, 0, n)
		for e := range all {
			if part = append(part, e); len(part) == n {
				if !yield(part) {
					return
				}
				part = part[:0]
			}
		}
		if len(part) > 0 {
			yield(part)
		}
	}
}

// Info returns the object with this ID.
func (v Items[ID, T]) Info(id ID) (store.Info, bool) {
	it, ok := v.find(id)
	if !ok {
		return store.Info{}, false
	}
	return it.info(), true
}

// Value returns the value with this ID. It returns false if the record does not exist
// or cannot be decoded. It decodes the record at each call: records take less memory
// than values.
func (v Items[ID, T]) Value(id ID) (value T, ok bool) {
	it, ok := v.find(id)
	if !ok {
		return value, false
	}
	return v.value(it)
}

// Changes returns the IDs of the objects that differ from those of before.
func (v Items[ID, T]) Changes(before Items[ID, T]) []ID {
	added, removed := v.list.Diff(order, before.list)
	ids := make([]ID, 0, len(added))
	for _, it := range append(added, removed...) {
		id, _ := v.of.id(it.key)
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (v Items[ID, T]) find(id ID) (*item, bool) {
	return v.list.Find(func(it *item) int { return strings.Compare(string(it.key[len(v.of.prefix):]), string(id)) })
}

func (v Items[ID, T]) value(it *item) (value T, ok bool) { return v.decode(it, datum.bytes) }

func (v Items[ID, T]) decode(it *item, read func(datum) []byte) (value T, ok bool) {
	if v.of.decode == nil {
		return value, true
	}
	v.of.ix.mu.Lock()
	data := it.data
	v.of.ix.mu.Unlock()
	value, err := v.of.decode(it.key, read(data))
	if err != nil {
		v.of.leaveOut(it, err)
	}
	return value, err == nil
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

// Records is [Blobs] for records of type T. A record that cannot be decoded has no value,
// and each version of it is logged once.
func Records[T any, ID ~string](ix *Index, prefix string, id func(key store.Key) (ID, bool)) *Section[ID, T] {
	return register(ix, section{root: catalogRoot, prefix: prefix, records: true}, id, record.Decode[T])
}

func register[ID ~string, T any](ix *Index, core section, id func(store.Key) (ID, bool), decode func(store.Key, []byte) (T, error)) *Section[ID, T] {
	core.recent, core.gone = map[store.Key]*item{}, map[store.Key]*item{}
	core.has = func(key store.Key) bool {
		if !strings.HasPrefix(string(key), core.prefix) {
			return false
		}
		_, ok := id(key)
		return ok
	}
	s := &Section[ID, T]{section: core, ix: ix, id: id, decode: decode, damaged: map[store.Key]leftOut{}}
	ix.sections = append(ix.sections, &s.section)
	return s
}

// All returns the objects of the section. They include every write through this process
// and every key touched before the call, and the changes of other processes about a
// second after their journal entries. If the journal cannot be read, All returns what is
// known. Any other error of the store is returned.
func (s *Section[ID, T]) All(ctx context.Context) (Items[ID, T], error) {
	if err := s.ix.refresh(ctx); err != nil {
		return Items[ID, T]{}, err
	}
	return s.view(), nil
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

// LeftOut returns the IDs of the records that cannot be decoded because of an error that
// matches cause, or of any error if cause is nil.
func (s *Section[ID, T]) LeftOut(cause error) []ID {
	items := s.view()
	s.mu.Lock()
	decoded := s.decoded
	s.mu.Unlock()
	changed, _ := items.list.Diff(order, decoded)
	for _, it := range changed {
		items.value(it)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decoded = items.list
	var ids []ID
	for key, d := range s.damaged {
		id, _ := s.id(key)
		if it, ok := items.find(id); !ok || it != d.item {
			delete(s.damaged, key)
		} else if cause == nil || errors.Is(d.err, cause) {
			ids = append(ids, id)
		}
	}
	return ids
}

// leaveOut notes that the record it cannot be decoded, and logs it, unless there is
// another version of it by now.
func (s *Section[ID, T]) leaveOut(it *item, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, _ := s.id(it.key)
	if now, ok := s.view().find(id); !ok || now != it {
		return
	}
	old, was := s.damaged[it.key]
	s.damaged[it.key] = leftOut{it, err}
	if !was || !old.item.info().Equal(it.info().Version) {
		s.ix.cfg.Log.Warn("record left out", "key", it.key, "error", err, "remedy", record.Remedy(it.key, err))
	}
}

// view returns the items, up to date with the table.
func (s *Section[ID, T]) view() Items[ID, T] {
	s.ix.mu.Lock()
	defer s.ix.mu.Unlock()
	return Items[ID, T]{s.existing(), s}
}
