package index

import (
	"context"
	"errors"

	"imageroot/shared/layout"
	"imageroot/shared/record"
)

// Check compares the current checkpoint with the index of this process. If the
// checkpoint is missing, damaged or wrong, the next [Index.Flush] replaces it. Only a
// process with [Config].Compact should call it, and only after [Section.Refresh] of all
// sections.
func (ix *Index) Check(ctx context.Context) error {
	ix.compacting.Lock()
	defer ix.compacting.Unlock()
	files, cur, err := ix.readCheckpoint(ctx)
	switch {
	case errors.Is(err, record.ErrNewer):
		return nil
	case err != nil && !errors.Is(err, errNoCheckpoint):
		return err
	}
	_, listed, lerr := ix.newEntries(ctx, cur.Until)
	if lerr != nil {
		return lerr
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if err != nil || !ix.agrees(files, cur, listed) {
		ix.cfg.Log.Info("the checkpoint of the index is written anew", "generation", cur.Generation, "because", err)
		ix.wantBase, ix.retryAt = true, ix.cfg.Now()
	}
	return nil
}

// agrees reports whether a checkpoint, with the listed entries that it does not contain,
// equals the table. The caller holds mu.
func (ix *Index) agrees(files [2]file, cur Current, listed []layout.JournalID) bool {
	contained := map[layout.JournalID]bool{}
	for _, id := range files[1].entries {
		contained[id] = true
	}
	except := map[place]bool{}
	for _, id := range listed {
		if !contained[id] {
			for _, p := range ix.journal.open[id] {
				except[p] = true
			}
		}
	}
	for _, c := range ix.pending {
		except[c.place] = true
	}
	stored := map[place]change{}
	for _, f := range files {
		for _, c := range f.changes {
			stored[c.place] = c
		}
	}
	for _, s := range ix.sections {
		for key, it := range s.table {
			p := place{s.root, key}
			c, ok := stored[p]
			delete(stored, p)
			is := it.change(p)
			if it.gone && (!ok || c.gone) || except[p] || ok && s.same(item{version: c.version, gone: c.gone, seq: 1}, is.after()) {
				continue
			}
			if !ok || c.gone || it.gone || !ix.cfg.Quiet(key, []byte(c.data), []byte(it.data)) {
				return false
			}
		}
	}
	for p, c := range stored {
		if !c.gone && !except[p] {
			return false
		}
	}
	return true
}
