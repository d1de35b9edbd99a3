package index

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

const (
	// compactAfter is the number of entries that make a checkpoint due.
	compactAfter = 16
	// A base is written when the delta has more than deltaMin + n/deltaShare of n keys.
	deltaMin, deltaShare = 1000, 8
	// lease is the time that a process has for a checkpoint. It only saves others the
	// work: correctness rests on the compare-and-swap that publishes the checkpoint.
	lease = time.Minute
	// keepEntries is how long entries are kept after a checkpoint contains them. It
	// exceeds reloadAfter plus the lead of a clock.
	keepEntries = 20 * time.Minute
	// keepFiles is how long files that no checkpoint names are kept.
	keepFiles = time.Hour
	// keepGone is how long a deletion is remembered. It exceeds the longest delay of an
	// entry.
	keepGone = time.Hour
)

// compact writes a checkpoint if one is due and no other process is writing one.
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
		// It is completed even if ctx ends, as it does with an invocation at AWS: a
		// checkpoint without its trim would leave old entries for keepEntries.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
		defer cancel()
		err = ix.publish(ctx, next)
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	return nil
}

// A checkpoint is the next one, before publish has written it.
type checkpoint struct {
	cur     Current
	tag     string             // of the record with the lease
	open    []layout.JournalID // entries that it contains and the current one does not
	entries []layout.JournalID // entries that its delta names
	delta   []place            // keys
	base    []place            // keys; nil: keep cur.Base
	trim    time.Time
}

// prepare claims the lease and collects the next checkpoint. It returns nil if none is
// due.
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
	var before file // the current delta
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
	// The record is an old copy, or another version of imageroot wrote it.
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

// behind closes the entries that a checkpoint contains. It reports whether another
// checkpoint is due. The caller holds mu.
func (ix *Index) behind(cur Current, entries []layout.JournalID) bool {
	for _, id := range entries {
		delete(ix.journal.open, id)
		if !ix.journal.read[id] && !id.Time().Before(ix.journal.pruned) {
			ix.loaded = false // it arrived too late to be listed: load again
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

// collect fills in a checkpoint that follows one whose delta is before. It includes a
// new base if full is set or the delta would be too large. The caller holds mu.
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
	c.delta = slices.Collect(maps.Keys(keys))
	return c
}

// all returns every key that exists. It adds deleted keys to gone, and forgets those
// deleted more than keepGone ago. The caller holds mu.
func (ix *Index) all(now time.Time, gone map[place]bool) []place {
	list := []place{}
	for _, s := range ix.sections {
		list = slices.Grow(list, s.existing().Len())
		for it := range s.existing().All() {
			list = append(list, place{s.root, it.key})
		}
		for key, it := range s.gone {
			if now.Sub(time.Unix(it.modified, 0)) > keepGone {
				delete(s.gone, key)
			} else {
				gone[place{s.root, key}] = true
			}
		}
	}
	return list
}

// statesOf yields the states of the keys of list that are known, each as a change that
// leads to it. A state may be newer than the call. Then a reader of the checkpoint finds
// an entry that does not follow the state, and reads the object. If fresh is set, the
// data move there, so that blocks with few of them can be collected.
func (ix *Index) statesOf(list []place, fresh *archive) iter.Seq[change] {
	return func(yield func(change) bool) {
		var reader dataReader
		items, data := []*item{}, []datum{}
		for part := range slices.Chunk(list, 500) {
			items, data = items[:0], data[:0]
			ix.mu.Lock()
			for _, p := range part {
				if s := ix.section(p); s != nil {
					if it := s.get(p.key); it.known() {
						items, data = append(items, it), append(data, it.data)
					}
				}
			}
			ix.mu.Unlock()
			for i, it := range items {
				c := change{place: place{part[i].root, it.key}, gone: it.gone, version: it.info().Version, data: string(reader.get(data[i]))}
				if fresh != nil {
					data[i] = fresh.put(c.data)
				}
				if !yield(c) {
					return
				}
			}
			if fresh != nil {
				ix.mu.Lock()
				for i, it := range items {
					it.data = data[i]
				}
				ix.mu.Unlock()
			}
		}
	}
}

// publish writes the files of a checkpoint, swaps the record to them and removes old
// entries and files. The error matches store.ErrConflict if another process has swapped
// the record.
func (ix *Index) publish(ctx context.Context, c *checkpoint) (err error) {
	if c.base != nil {
		fresh := archive{codec: &ix.codec}
		if c.cur.Base, err = ix.writeFile(ctx, nil, c.base, &fresh); err != nil {
			return err
		}
	}
	if c.cur.Delta, err = ix.writeFile(ctx, c.entries, c.delta, nil); err != nil {
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

// writeFile writes a file with the states of keys. Equal files need not be equal bytes,
// but sorted keys compress better.
func (ix *Index) writeFile(ctx context.Context, entries []layout.JournalID, keys []place, fresh *archive) (f File, err error) {
	slices.SortFunc(keys, func(a, b place) int { return cmp.Or(cmp.Compare(a.root, b.root), cmp.Compare(a.key, b.key)) })
	f.ID = layout.Nonce()
	var data pieces
	if f.Items, err = ix.codec.encode(&data, entries, ix.statesOf(keys, fresh)); err != nil {
		return f, err
	}
	if fresh != nil {
		fresh.finish()
	}
	v, err := ix.cfg.Catalog.Put(ctx, layout.CheckpointKey(f.ID), data.reader(), data.size)
	f.ETag = v.ETag
	return f, err
}

// pieces holds what was written to it. Unlike a bytes.Buffer, it never copies.
type pieces struct {
	list [][]byte
	size int64
}

func (p *pieces) Write(b []byte) (int, error) {
	p.list = append(p.list, bytes.Clone(b))
	p.size += int64(len(b))
	return len(b), nil
}

func (p *pieces) reader() io.Reader {
	var list []io.Reader
	for _, b := range p.list {
		list = append(list, bytes.NewReader(b))
	}
	return io.MultiReader(list...)
}

// trim removes the entries from before c.trim, and old files that the checkpoint does
// not name.
func (ix *Index) trim(ctx context.Context, c *checkpoint) error {
	_, _, err := record.Change(ctx, ix.cfg.Catalog, layout.TrimmedKey, func(t *Trimmed, exists bool) error {
		switch {
		case !exists: // or is damaged: its Until was at most this
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
