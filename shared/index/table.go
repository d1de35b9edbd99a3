package index

import "imageroot/shared/store"

// A table keeps account of the items of all sections. It is guarded by Index.mu.
type table struct {
	live   map[place]bool // live records that others write
	isLive func(key store.Key, data []byte) bool
	seq    uint64 // of the last set
}

// An item is the state of a key. The zero item is that of a key that was never
// known.
type item struct {
	version store.Version
	data    string // of a record
	gone    bool   // deleted; LastModified is when
	// told says that other processes have learnt or will learn of it: from the
	// journal, since its entry was read or is to be written, or because they need not.
	told bool
	seq  uint64 // grows with each change of any item; 0: never known
}

func (it item) known() bool  { return it.seq != 0 }
func (it item) exists() bool { return it.seq != 0 && !it.gone }

// same reports whether a key with this item has v, or is gone if v is nil.
func (s *section) same(it item, v *store.Version) bool {
	if v == nil || !it.exists() {
		return v == nil && !it.exists()
	}
	if s.records {
		return it.version.ETag == v.ETag // a record has each content once
	}
	return it.version.Equal(*v)
}

// set changes the state of a key.
func (t *table) set(s *section, p place, it item, own bool) {
	t.seq++
	it.seq = t.seq
	s.table[p.key] = it
	s.changed[p.key] = struct{}{}
	delete(t.live, p)
	if s.records && !own && it.exists() && t.isLive(p.key, []byte(it.data)) {
		t.live[p] = true
	}
}

// An effect is what a change does to a table.
type effect int

const (
	none    effect = iota // the table has it
	applied               // the table has it now
	doubt                 // only the object can say
)

// apply applies a change if it follows what the table holds. This is the rule on
// which everything rests: the table only moves forward in the history of a key.
//
//   - A key that was never known takes its creation, or its absence.
//   - A record takes the change that was made to the very version that the table
//     holds. No two contents of a record are the same, so that version is passed
//     once.
//   - Everything else is in doubt, and the object itself is asked: an older change
//     that comes late, one that skips another, one of a key that was deleted
//     (tombstones are kept for longer than entries may come late), and every
//     change of an object that exists, since objects may have a version twice.
func (t *table) apply(s *section, c change, own bool) effect {
	it := s.table[c.key]
	next := item{version: c.version, data: c.data, gone: c.gone, told: true}
	switch {
	case s.same(it, c.after()) && (it.known() || !c.gone):
		return none
	case !it.known() && (c.gone || !s.records || c.before == ""),
		s.records && it.exists() && c.before != "" && c.before == it.version.ETag:
		t.set(s, c.place, next, own)
		return applied
	}
	return doubt
}
