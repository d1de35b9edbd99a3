package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// A journal has what this process knows of the entries. It is guarded by Index.mu.
type journal struct {
	read map[layout.JournalID]bool // entries that the table includes
	// open has the entries that no known checkpoint contains, with their keys.
	open map[layout.JournalID][]place
	// newest is the time of the newest entry that was listed. Entries that this process
	// has written since do not count: older ones of other processes may not be listed
	// yet.
	newest time.Time
	// read has no entries from before pruned.
	pruned time.Time
	// until is that of the checkpoint that was loaded. The checkpoint contains every
	// entry from before, but does not name them all.
	until time.Time
}

func newJournal() journal {
	return journal{read: map[layout.JournalID]bool{}, open: map[layout.JournalID][]place{}}
}

// note adds an entry that the table includes, with its changes.
func (j *journal) note(id layout.JournalID, changes []change) {
	j.read[id] = true
	keys := make([]place, len(changes))
	for i, c := range changes {
		keys[i] = c.place
	}
	j.open[id] = keys
}

// see adds an entry that was listed.
func (j *journal) see(id layout.JournalID) {
	if at := id.Time(); at.After(j.newest) {
		j.newest = at
	}
}

// prune forgets that entries from before a time were read.
func (j *journal) prune(before time.Time) {
	j.pruned = before
	for id := range j.read {
		if id.Time().Before(before) {
			delete(j.read, id)
		}
	}
}

// settled returns a time such that no more entries from before it will arrive. It
// ignores clocks that are more than a minute fast.
func (j *journal) settled(now time.Time) time.Time {
	at := j.newest
	if at.After(now.Add(time.Minute)) {
		at = now.Add(time.Minute)
	}
	return at.Add(-overlap)
}

const (
	// maxChanges and maxBytes bound an entry.
	maxChanges, maxBytes = 2000, 4 << 20
)

// flush writes pending changes to the journal.
func (ix *Index) flush(ctx context.Context) error {
	ix.mu.Lock()
	idle := len(ix.pending) == 0 && !ix.touched()
	ix.mu.Unlock()
	if idle {
		return nil
	}
	ix.update.Lock()
	defer ix.update.Unlock()
	asked := ix.askDirty(ctx)
	for {
		batch := ix.takePending()
		if len(batch) == 0 {
			return asked
		}
		if err := ix.writeEntry(ctx, batch); err != nil {
			ix.mu.Lock()
			ix.pending = append(batch, ix.pending...)
			ix.mu.Unlock()
			return errors.Join(asked, err)
		}
	}
}

// touched reports whether a dirty key was touched. The caller holds mu.
func (ix *Index) touched() bool {
	for _, q := range ix.dirty {
		if q.touched {
			return true
		}
	}
	return false
}

func (ix *Index) takePending() []change {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	n, size := 0, 0
	for n < len(ix.pending) && n < maxChanges && size < maxBytes {
		size += len(ix.pending[n].data)
		n++
	}
	batch := slices.Clone(ix.pending[:n])
	ix.pending = slices.Clone(ix.pending[n:])
	return batch
}

// writeEntry writes an entry. If the outcome is unknown, the caller writes the changes
// again in another entry, which does no harm. The caller holds update.
func (ix *Index) writeEntry(ctx context.Context, batch []change) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	var data bytes.Buffer
	if _, err := ix.codec.encode(&data, nil, slices.Values(batch)); err != nil {
		return err
	}
	id := layout.NewJournalID(ix.cfg.Now(), layout.Nonce())
	if _, err := ix.cfg.Catalog.Put(ctx, layout.JournalKey(id), &data, int64(data.Len())); err != nil {
		return fmt.Errorf("write a journal entry: %w", err)
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.wroteAt = ix.cfg.Now()
	if ix.loaded {
		ix.journal.note(id, batch)
	}
	return nil
}

// poll reads and applies new entries. The caller holds update.
func (ix *Index) poll(ctx context.Context) error {
	ix.mu.Lock()
	began := ix.cfg.Now()
	from := ix.journal.settled(began)
	if from.Before(ix.journal.until) { // by a clock that is behind
		from = ix.journal.until
	}
	ix.mu.Unlock()
	ids, listed, err := ix.newEntries(ctx, from)
	if err != nil {
		return err
	}
	found := make([][]change, len(ids))
	errs := make([]error, len(ids))
	parallel(ids, func(i int, id layout.JournalID) {
		var f file
		f, errs[i] = ix.readFile(ctx, layout.JournalKey(id))
		found[i] = f.changes
	})
	damaged := false
	for i, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, errDamaged), errors.Is(err, store.ErrNotFound):
			// Its changes are unknown, so compare everything. A missing entry was
			// deleted by hand: trim removes only entries that are long since read.
			ix.cfg.Log.Warn("a journal entry cannot be read: everything is compared", "key", layout.JournalKey(ids[i]), "error", err)
			damaged = true
		default:
			return err
		}
	}
	ix.mu.Lock()
	ix.applyAll(found)
	for i, id := range ids {
		ix.journal.note(id, found[i])
	}
	for _, id := range listed {
		ix.journal.see(id)
	}
	ix.journal.prune(from.Add(-overlap))
	if !damaged {
		ix.polledAt = began
	}
	ix.mu.Unlock()
	if !damaged {
		return nil
	}
	return ix.rebuild(ctx)
}

// newEntries lists the entries since from, and returns those not yet read and all.
func (ix *Index) newEntries(ctx context.Context, from time.Time) (unread, listed []layout.JournalID, err error) {
	for info, err := range ix.cfg.Catalog.List(ctx, layout.JournalPrefix, store.Key(layout.JournalPrefix+layout.JournalStamp(from))) {
		if err != nil {
			return nil, nil, fmt.Errorf("list the journal: %w", err)
		}
		if id, ok := layout.ParseJournalKey(info.Key); ok {
			listed = append(listed, id)
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(listed), func(id layout.JournalID) bool { return ix.journal.read[id] }), listed, nil
}

// applyAll applies the changes of entries in the order of their stamps. A change that
// does not follow its predecessor is retried after each later change of its key, since
// clocks differ. The caller holds mu.
func (ix *Index) applyAll(entries [][]change) {
	waiting := map[place][]change{}
	for _, changes := range entries {
		for _, c := range changes {
			s := ix.section(c.place)
			if s == nil {
				continue // of a newer version
			}
			if ix.table.apply(s, c, false) == doubt {
				waiting[c.place] = append(waiting[c.place], c)
				continue
			}
			for w := waiting[c.place]; ; {
				n := len(w)
				w = slices.DeleteFunc(w, func(c change) bool { return ix.table.apply(s, c, false) != doubt })
				waiting[c.place] = w
				if len(w) == n {
					break
				}
			}
		}
	}
	for p, w := range waiting {
		if len(w) > 0 {
			ix.doubt(p, question{expected: w})
		}
	}
}

// readFile reads a journal entry or a file of a checkpoint. The error matches
// errDamaged if the content is damaged.
func (ix *Index) readFile(ctx context.Context, key store.Key) (file, error) {
	body, _, err := ix.cfg.Catalog.Get(ctx, key, store.All, "")
	if err != nil {
		return file{}, err
	}
	defer body.Close()
	f, err := ix.codec.decode(body)
	if err != nil {
		return file{}, fmt.Errorf("%q: %w", key, err)
	}
	return f, nil
}
