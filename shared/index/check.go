package index

import (
	"context"
	"errors"
	"strings"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Check compares the current checkpoint with the index of this process. If the
// checkpoint is missing, damaged or wrong, the next [Index.Flush] replaces it. Only a
// process with [Config].Compact should call it, and only after [Section.Refresh] of all
// sections.
func (ix *Index) Check(ctx context.Context) error {
	ix.compacting.Lock()
	defer ix.compacting.Unlock()
	c := comparison{ix: ix, except: map[place]bool{}, delta: map[place]bool{}}
	cur, err := ix.readCheckpoint(ctx, func(cur Current, delta file) error {
		_, listed, err := ix.newEntries(ctx, cur.Until)
		if err == nil {
			c.begin(delta, listed)
		}
		return err
	}, c.base)
	switch {
	case errors.Is(err, record.ErrNewer):
		return nil
	case err != nil && !errors.Is(err, errNoCheckpoint):
		return err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if err != nil || !c.agrees() {
		ix.cfg.Log.Info("the checkpoint of the index is written anew", "generation", cur.Generation, "because", err)
		ix.wantBase, ix.retryAt = true, ix.cfg.Now()
	}
	return nil
}

// A comparison of a checkpoint with the table.
type comparison struct {
	ix     *Index
	except map[place]bool // keys that may differ
	delta  map[place]bool // keys in the delta
	began  uint64         // the table's seq: items that were set since may differ

	// Guarded by Index.mu.
	expect  int // items that the checkpoint must have
	found   int
	differs bool
}

// begin compares the delta of a checkpoint. The keys of the listed entries that the
// checkpoint does not contain may differ.
func (c *comparison) begin(delta file, listed []layout.JournalID) {
	c.ix.mu.Lock()
	contained := map[layout.JournalID]bool{}
	for _, id := range delta.entries {
		contained[id] = true
	}
	for _, id := range listed {
		if !contained[id] {
			for _, p := range c.ix.journal.open[id] {
				c.except[p] = true
			}
		}
	}
	for _, p := range c.ix.pending {
		c.except[p.place] = true
	}
	c.began = c.ix.table.seq
	for _, s := range c.ix.sections {
		for it := range s.existing().All() {
			if !c.except[place{s.root, it.key}] {
				c.expect++
			}
		}
	}
	c.ix.mu.Unlock()
	c.compare(delta.changes)
	for _, d := range delta.changes {
		c.delta[place{d.root, store.Key(strings.Clone(string(d.key)))}] = true
	}
}

// base compares changes of the base. It is safe for concurrent use.
func (c *comparison) base(_ int, changes []change) {
	n := 0
	for _, b := range changes {
		if !c.delta[b.place] {
			changes[n] = b
			n++
		}
	}
	c.compare(changes[:n])
}

func (c *comparison) compare(changes []change) {
	c.ix.mu.Lock()
	defer c.ix.mu.Unlock()
	for i := range changes {
		stored := &changes[i]
		s := c.ix.section(stored.place)
		var it *item
		if s != nil {
			it = s.get(stored.key)
		}
		switch {
		case c.except[stored.place], it.number() > c.began, stored.gone && !it.exists():
		case !it.exists(), stored.gone,
			!s.same(it, stored.after()) && !c.ix.cfg.Quiet(stored.key, []byte(stored.data), it.data.bytes()):
			c.differs = true
		default:
			c.found++
		}
	}
}

// agrees reports whether the checkpoint, with the listed entries that it does not
// contain, equals the table. The caller holds Index.mu.
func (c *comparison) agrees() bool {
	changed := 0 // items that the checkpoint need not have
	for _, s := range c.ix.sections {
		for it := range s.existing().All() {
			if it.seq > c.began {
				changed++
			}
		}
		for _, it := range s.gone {
			if it.seq > c.began {
				changed++
			}
		}
	}
	return !c.differs && c.found+changed >= c.expect
}
