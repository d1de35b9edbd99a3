package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

const (
	// compactAfter is the number of entries after which a checkpoint is written.
	compactAfter = 16
	// A base is written when the delta has more than deltaMin + n/deltaShare of n keys.
	deltaMin, deltaShare = 1000, 8
	// lease is the time that a process has for a checkpoint. It only saves others the
	// work: a checkpoint is published by compare-and-swap on what was claimed.
	lease = time.Minute
	// keepEntries is how long entries stay after a checkpoint contains them: longer
	// than reloadAfter and the lead of a clock.
	keepEntries = 20 * time.Minute
	// keepFiles is how long files stay that no checkpoint names.
	keepFiles = time.Hour
	// keepGone is how long a deletion is remembered, which is longer than an entry
	// may take to arrive.
	keepGone = time.Hour
)

// compact writes a checkpoint if one is due and no other process writes one.
func (ix *Index) compact(ctx context.Context) error {
	ix.mu.Lock()
	now := ix.cfg.Now()
	due := ix.cfg.Compact && ix.loaded && !ix.foreign && (ix.wantBase || len(ix.journal.open) >= compactAfter)
	if wait := ix.retryAt.Sub(now); !due || wait > 0 && wait <= lease {
		ix.mu.Unlock()
		return nil
	}
	ix.retryAt = now.Add(lease)
	ix.mu.Unlock()

	ix.compacting.Lock()
	defer ix.compacting.Unlock()
	next, err := ix.prepare(ctx)
	if err == nil && next != nil {
		err = ix.publish(ctx, next)
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	return nil
}

// A checkpoint is one that is about to be written.
type checkpoint struct {
	cur     Current
	tag     string             // of the lease
	open    []layout.JournalID // entries that it contains, and the one before does not
	entries []layout.JournalID // those that it names
	delta   []change
	base    []change // nil: that of cur stays
	trim    time.Time
}

// prepare collects what the next checkpoint says, and claims the lease. It returns
// nil if none is due after all.
func (ix *Index) prepare(ctx context.Context) (*checkpoint, error) {
	ix.update.Lock()
	defer ix.update.Unlock()
	cur, tag, err := record.Read[Current](ctx, ix.cfg.Catalog, layout.IndexKey)
	missing := errors.Is(err, store.ErrNotFound) // or damaged
	now := ix.cfg.Now().UTC()
	switch {
	case errors.Is(err, record.ErrNewer):
		ix.mu.Lock()
		ix.foreign = true
		ix.mu.Unlock()
		return nil, nil
	case err != nil && !missing:
		return nil, err
	case !missing && cur.Owner != ix.owner && now.Before(cur.LeaseUntil) && cur.LeaseUntil.Sub(now) < 2*lease:
		return nil, nil
	}
	var before file // the delta in force
	if !missing {
		before, err = ix.readFile(ctx, layout.CheckpointKey(cur.Delta.ID))
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, errDamaged) {
			return nil, err
		}
		missing = err != nil
	}
	if err := ix.poll(ctx); err != nil {
		return nil, err
	}
	if err := ix.askDirty(ctx); err != nil {
		return nil, err
	}
	ix.mu.Lock()
	// An old copy, or one of another version of imageroot.
	missing = missing || cur.Generation < ix.generation || !slices.Equal(cur.Sections, ix.names())
	due := missing || ix.behind(cur, before.entries)
	ix.mu.Unlock()
	if !due {
		return nil, nil
	}
	if cur.Base.ID != "" {
		cur.Owner, cur.LeaseUntil = ix.owner, now.Add(lease)
		if tag, err = record.Swap(ctx, ix.cfg.Catalog, layout.IndexKey, &cur, tag); err != nil {
			return nil, err
		}
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.collect(&checkpoint{cur: cur, tag: tag}, before, missing), nil
}

// behind notes which entries a checkpoint contains. It reports whether another one is
// due. The caller holds mu.
func (ix *Index) behind(cur Current, entries []layout.JournalID) bool {
	for _, id := range entries {
		delete(ix.journal.open, id)
		if !ix.journal.read[id] && !id.Time().Before(ix.journal.pruned) {
			ix.loaded = false // it came too late to be listed: load again
		}
	}
	for id := range ix.journal.open {
		if id.Time().Before(cur.Until) {
			delete(ix.journal.open, id)
		}
	}
	if len(ix.journal.open) < compactAfter {
		ix.retryAt = time.Time{}
	}
	ix.generation = cur.Generation
	return ix.loaded && (ix.wantBase || len(ix.journal.open) >= compactAfter)
}

// collect fills in a checkpoint that follows one with the delta before. It has a new
// base if full is set, or the delta would be too large. The caller holds mu.
func (ix *Index) collect(c *checkpoint, before file, full bool) *checkpoint {
	now := ix.cfg.Now().UTC()
	keys := map[place]bool{}
	for _, b := range before.changes {
		keys[b.place] = true
	}
	for id, places := range ix.journal.open {
		c.open = append(c.open, id)
		for _, p := range places {
			keys[p] = true
		}
	}
	c.cur.Sections = ix.names()
	c.cur.Generation = max(c.cur.Generation, ix.generation) + 1
	if until := ix.journal.settled(now).UTC(); until.After(c.cur.Until) {
		c.cur.Until = until
	}
	if held := now.Sub(c.cur.MarkAt); held < 0 || held > keepEntries {
		c.trim = c.cur.MarkUntil
		c.cur.MarkAt, c.cur.MarkUntil = now, c.cur.Until
	}
	for id := range ix.journal.read {
		if !id.Time().Before(c.cur.Until) {
			c.entries = append(c.entries, id)
		}
	}
	slices.Sort(c.entries)
	if full || ix.wantBase || len(keys) > deltaMin+c.cur.Base.Items/deltaShare {
		clear(keys)
		c.base = ix.all(now, keys)
	}
	for p := range keys {
		if s := ix.section(p); s != nil && s.table[p.key].known() {
			c.delta = append(c.delta, s.table[p.key].change(p))
		}
	}
	return c
}

// all returns what every key has. It adds deleted keys to gone, and forgets those
// that were deleted long ago. The caller holds mu.
func (ix *Index) all(now time.Time, gone map[place]bool) []change {
	list := []change{}
	for _, s := range ix.sections {
		for key, it := range s.table {
			p := place{s.root, key}
			switch {
			case !it.gone:
				list = append(list, it.change(p))
			case now.Sub(it.version.LastModified) > keepGone:
				delete(s.table, key)
			default:
				gone[p] = true
			}
		}
	}
	return list
}

// change returns the change that makes a key what it is.
func (it item) change(p place) change {
	return change{place: p, gone: it.gone, version: it.version, data: it.data}
}

// publish writes the files of a checkpoint, puts it in force and removes what nobody
// needs any more. The error is store.ErrConflict if another process has written one.
func (ix *Index) publish(ctx context.Context, c *checkpoint) (err error) {
	if c.base != nil {
		if c.cur.Base, err = ix.writeFile(ctx, nil, c.base); err != nil {
			return err
		}
	}
	if c.cur.Delta, err = ix.writeFile(ctx, c.entries, c.delta); err != nil {
		return err
	}
	c.cur.Owner, c.cur.LeaseUntil = "", time.Time{}
	if _, err := record.Swap(ctx, ix.cfg.Catalog, layout.IndexKey, &c.cur, c.tag); err != nil {
		return err
	}
	ix.mu.Lock()
	for _, id := range c.open {
		delete(ix.journal.open, id)
	}
	ix.generation, ix.retryAt = c.cur.Generation, time.Time{}
	if c.base != nil {
		ix.wantBase = false
	}
	ix.mu.Unlock()
	if c.trim.IsZero() && c.base == nil {
		return nil
	}
	return ix.trim(ctx, c)
}

func (ix *Index) writeFile(ctx context.Context, entries []layout.JournalID, changes []change) (File, error) {
	f := File{ID: nonce(), Items: len(changes)}
	data := ix.codec.encode(entries, slices.Values(changes))
	v, err := ix.cfg.Catalog.Put(ctx, layout.CheckpointKey(f.ID), bytes.NewReader(data), int64(len(data)))
	f.ETag = v.ETag
	return f, err
}

// trim removes entries that a checkpoint has contained for long, and files that no
// checkpoint names.
func (ix *Index) trim(ctx context.Context, c *checkpoint) error {
	_, _, err := record.Change(ctx, ix.cfg.Catalog, layout.TrimmedKey, func(t *Trimmed, exists bool) error {
		switch {
		case !exists: // or damaged: it may have said no more than this
			t.Until = c.cur.MarkUntil
		case t.Until.Before(c.trim):
			t.Until = c.trim
		default:
			return record.ErrKeep
		}
		return nil
	})
	if err != nil || c.trim.IsZero() {
		return err
	}
	var old []store.Key
	for info, err := range ix.cfg.Catalog.List(ctx, layout.JournalPrefix, "") {
		if err != nil {
			return err
		}
		id, ok := layout.ParseJournalKey(info.Key)
		if ok && !id.Time().Before(c.trim) {
			break
		}
		if ok {
			old = append(old, info.Key)
		}
	}
	for info, err := range ix.cfg.Catalog.List(ctx, layout.IndexPrefix, "") {
		if err != nil {
			return err
		}
		id, ok := layout.CheckpointID(info.Key)
		if ok && id != c.cur.Base.ID && id != c.cur.Delta.ID && ix.cfg.Now().Sub(info.LastModified) > keepFiles {
			old = append(old, info.Key)
		}
	}
	errs := make([]error, len(old))
	parallel(old, func(i int, key store.Key) { errs[i] = ix.cfg.Catalog.Delete(ctx, key) })
	return errors.Join(errs...)
}
