package index

import (
	"strings"
	"time"

	"imageroot/shared/sorted"
	"imageroot/shared/store"
)

// A table has what the tables of all sections share. It is guarded by Index.mu.
type table struct {
	live    map[place]bool // live records that others write
	isLive  func(key store.Key, data []byte) bool
	seq     uint64 // of the last set
	archive archive
}

// An item is the state of a key. The nil item is the state of a key that was never seen.
// Only data and journalled change, and are guarded by Index.mu.
type item struct {
	key      store.Key
	etag     string
	size     int64
	modified int64  // in Unix seconds; if gone, when the deletion was seen
	data     datum  // of a record
	seq      uint64 // grows with each change of any item
	gone     bool   // deleted
	// journalled says that this state needs no further entry: its entry was read, or is
	// to be written, or the change is quiet.
	journalled bool
}

func (it *item) info() store.Info {
	return store.Info{Key: it.key, Version: store.Version{ETag: it.etag, Size: it.size, LastModified: time.Unix(it.modified, 0).UTC()}}
}

func (it *item) known() bool  { return it != nil }
func (it *item) exists() bool { return it != nil && !it.gone }

// number returns the seq of an item, or 0.
func (it *item) number() uint64 {
	if it == nil {
		return 0
	}
	return it.seq
}

// order is that of the items of a section.
func order(a, b *item) int { return strings.Compare(string(a.key), string(b.key)) }

// A section's states are those of its keys. They are guarded by Index.mu.
type states struct {
	items  sorted.List[*item] // those that exist, except for recent changes
	recent map[store.Key]*item
	gone   map[store.Key]*item // deleted ones, except for recent changes
}

// get returns the state of a key.
func (st *states) get(key store.Key) *item {
	if it, ok := st.recent[key]; ok {
		return it
	}
	if it, ok := st.items.Find(func(it *item) int { return strings.Compare(string(it.key), string(key)) }); ok {
		return it
	}
	return st.gone[key]
}

// existing returns the items that exist.
func (st *states) existing() sorted.List[*item] {
	if len(st.recent) == 0 {
		return st.items
	}
	var removed, added []*item
	for key, it := range st.recent {
		if it.gone {
			removed = append(removed, it)
			st.gone[key] = it
		} else {
			added = append(added, it)
			delete(st.gone, key)
		}
	}
	st.items = st.items.With(order, removed, added)
	st.recent = map[store.Key]*item{}
	return st.items
}

// same reports whether it has version v, or does not exist if v is nil.
func (s *section) same(it *item, v *store.Version) bool {
	if v == nil || !it.exists() {
		return v == nil && !it.exists()
	}
	if s.records {
		return it.etag == v.ETag // a record has each content once
	}
	return it.info().Version.Equal(*v)
}

// sameState reports whether two changes lead to the same state.
func (s *section) sameState(c, d *change) bool {
	return s.same(&item{etag: c.version.ETag, size: c.version.Size, modified: c.version.LastModified.Unix(), gone: c.gone}, d.after())
}

// set changes the state of a key. journalled is that of the item, and own says that
// this process wrote it.
func (t *table) set(s *section, c change, journalled, own bool) {
	t.seq++
	text := string(c.key) + c.version.ETag // a copy: c may share the memory of a file
	p := place{c.root, store.Key(text[:len(c.key)])}
	s.recent[p.key] = &item{
		key: p.key, etag: text[len(c.key):], size: c.version.Size, modified: c.version.LastModified.Unix(),
		data: t.archive.put(c.data), seq: t.seq, gone: c.gone, journalled: journalled,
	}
	if len(s.recent) > 1000+s.items.Len()/8 {
		s.existing()
	}
	delete(t.live, p)
	if s.records && !own && !c.gone && t.isLive(p.key, []byte(c.data)) {
		t.live[p] = true
	}
}

// An effect is what a change does to a table.
type effect int

const (
	none    effect = iota // the table has it
	applied               // the table has it from now on
	doubt                 // the object must be read
)

// apply applies a change if it follows what the table holds, so that the table only
// moves forward in the history of a key. The correctness of the index rests on this.
//
//   - A key that was never seen takes its creation or its deletion, or any change if it
//     is not a record.
//   - A record takes a change whose before is the version that the table holds. A
//     record never has the same content twice, so this happens once.
//   - Every other change is in doubt, and the object itself is read. These are late
//     changes, changes that skip another, changes of a deleted key (tombstones outlive
//     the longest delay of an entry), and all changes of an existing object that is not
//     a record. Such an object can have the same version twice.
func (t *table) apply(s *section, c change, own bool) effect {
	it := s.get(c.key)
	switch {
	case s.same(it, c.after()) && (it.known() || !c.gone):
		return none
	case !it.known() && (c.gone || !s.records || c.before == ""),
		s.records && it.exists() && c.before != "" && c.before == it.etag:
		t.set(s, c, true, own)
		return applied
	}
	return doubt
}
