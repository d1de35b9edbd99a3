package index

import (
	"context"
	"maps"
	"slices"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// A listing is the store's listing of a section.
type listing struct {
	*section
	began uint64 // the table's seq before the listing
	infos map[store.Key]store.Info
}

func (ix *Index) list(ctx context.Context, s *section) (listing, error) {
	ix.mu.Lock()
	l := listing{s, ix.table.seq, map[store.Key]store.Info{}}
	ix.mu.Unlock()
	for info, err := range ix.root(s.root).List(ctx, s.prefix, "") {
		if err != nil {
			return l, err
		}
		if s.has(info.Key) {
			l.infos[info.Key] = info
		}
	}
	return l, nil
}

// compare updates a section from a listing, and reads the records that differ. If
// journal is set, the differences go to the journal. The caller holds update.
func (ix *Index) compare(ctx context.Context, l listing, journal bool) error {
	s := l.section
	var read []asked
	ix.mu.Lock()
	for _, key := range slices.Sorted(maps.Keys(l.infos)) { // so that data are archived in order
		info := l.infos[key]
		p := place{s.root, key}
		it := s.get(key)
		switch {
		case it.known() && s.same(it, &info.Version):
		case s.records || it.number() > l.began: // the listing may be older
			read = append(read, asked{p, question{}, journal})
		default:
			ix.found(s, journal, change{place: p, version: info.Version})
		}
	}
	for it := range s.existing().All() {
		key := it.key
		if _, ok := l.infos[key]; ok || it.seq > l.began {
			continue
		}
		ix.found(s, journal, change{place: place{s.root, key}, before: it.etag, gone: true, version: store.Version{LastModified: ix.cfg.Now().UTC()}})
	}
	ix.mu.Unlock()
	return ix.ask(ctx, read)
}

// found applies a difference found in a listing. The caller holds mu.
func (ix *Index) found(s *section, journal bool, c change) {
	ix.table.set(s, c, journal, false)
	if journal {
		ix.toJournal(c)
	}
}

// rebuild builds the index from the listings and the records, which include all journal
// entries so far. The caller holds update.
func (ix *Index) rebuild(ctx context.Context) error {
	began := ix.cfg.Now()
	j := newJournal()
	for info, err := range ix.cfg.Catalog.List(ctx, layout.JournalPrefix, "") {
		if err != nil {
			return err
		}
		if id, ok := layout.ParseJournalKey(info.Key); ok {
			j.note(id, nil)
			j.see(id)
		}
	}
	ix.mu.Lock()
	ix.journal, ix.keeps, ix.wantBase = j, true, true
	ix.mu.Unlock()
	// The table is kept: comparing costs less than reading all records.
	for _, s := range ix.sections {
		l, err := ix.list(ctx, s)
		if err == nil {
			err = ix.compare(ctx, l, false)
		}
		if err != nil {
			return err
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.loaded, ix.polledAt = true, began
	return nil
}
