package index

import (
	"time"

	"imageroot/shared/store"
)

// A table has what the tables of all sections share. It is guarded by Index.mu.
type table struct {
	live    map[place]bool // live records that others write
	isLive  func(key store.Key, data []byte) bool
	seq     uint64 // of the last set
	archive archive
}

// An item is the state of a key. The zero item is the state of a key that was never
// seen.
type item struct {
	etag     string
	size     int64
	modified int64  // in Unix seconds; if gone, when the deletion was seen
	data     datum  // of a record
	seq      uint64 // grows with each change of any item; 0: never seen
	gone     bool   // deleted
	// told says that this state need not be journalled: its entry was read, or is to be
	// written, or the change is quiet.
	told bool
}

func (it *item) version() store.Version {
	return store.Version{ETag: it.etag, Size: it.size, LastModified: time.Unix(it.modified, 0).UTC()}
}

func (it item) known() bool  { return it.seq != 0 }
func (it item) exists() bool { return it.seq != 0 && !it.gone }

// same reports whether it has version v, or does not exist if v is nil.
func (s *section) same(it item, v *store.Version) bool {
	if v == nil || !it.exists() {
		return v == nil && !it.exists()
	}
	if s.records {
		return it.etag == v.ETag // a record has each content once
	}
	return it.version().Equal(*v)
}

// sameState reports whether two changes lead to the same state.
func (s *section) sameState(c, d *change) bool {
	return s.same(item{etag: c.version.ETag, size: c.version.Size, modified: c.version.LastModified.Unix(), gone: c.gone, seq: 1}, d.after())
}

// set changes the state of a key. told is that of the item, and own says that this
// process wrote it.
func (t *table) set(s *section, c change, told, own bool) {
	t.seq++
	text := string(c.key) + c.version.ETag // a copy: c may share the memory of a file
	p := place{c.root, store.Key(text[:len(c.key)])}
	s.table[p.key] = item{
		etag: text[len(c.key):], size: c.version.Size, modified: c.version.LastModified.Unix(), data: t.archive.put(c.data),
		gone: c.gone, told: told, seq: t.seq,
	}
	s.changed[p.key] = struct{}{}
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
	it := s.table[c.key]
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
