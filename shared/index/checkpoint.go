package index

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Current is the record index/current: the current checkpoint, and the lease of the
// process that writes the next one. A checkpoint is two files. Base has the whole
// catalog. Delta has the changes since Base, and the IDs of the journal entries that
// the checkpoint contains.
type Current struct {
	record.Meta
	// Generation grows with every checkpoint.
	Generation int64 `json:"generation"`
	Base       File  `json:"base"`
	Delta      File  `json:"delta"`
	// Sections names the sections that the checkpoint has. A program that registers
	// other sections cannot use it.
	Sections []string `json:"sections"`
	// The checkpoint contains every entry from before Until.
	Until time.Time `json:"until"`
	// MarkUntil is the Until of the checkpoint written at MarkAt.
	MarkAt    time.Time `json:"mark_at"`
	MarkUntil time.Time `json:"mark_until"`
	// Owner may write the next checkpoint until LeaseUntil.
	Owner      string    `json:"owner,omitempty"`
	LeaseUntil time.Time `json:"lease_until,omitzero"`
}

// Validate implements record.Validator.
func (c *Current) Validate() error {
	if c.Base.ID == "" || c.Delta.ID == "" {
		return errors.New("it names no files")
	}
	return nil
}

// A File names one file of a checkpoint.
type File struct {
	ID   string `json:"id"`
	ETag string `json:"etag"`
	// Items is the number of keys in the file.
	Items int `json:"items"`
}

// Trimmed is the record index/trimmed: journal entries from before Until may be
// deleted. A checkpoint with an earlier Until cannot be used.
type Trimmed struct {
	record.Meta
	Until time.Time `json:"until"`
}

// load reads the checkpoint and the journal entries since. Without a usable checkpoint,
// it builds the index from the records. The caller holds update.
func (ix *Index) load(ctx context.Context) error {
	files, cur, err := ix.readCheckpoint(ctx)
	switch {
	case errors.Is(err, errNoCheckpoint):
		ix.cfg.Log.Info("the index is built from the records", "because", err)
		return ix.rebuild(ctx)
	case err != nil:
		return err
	}
	ix.mu.Lock()
	for _, s := range ix.sections {
		for key := range s.table {
			s.changed[key] = struct{}{}
		}
		s.table = map[store.Key]item{}
	}
	clear(ix.table.live)
	for _, f := range files {
		for _, c := range f.changes {
			if s := ix.section(c.place); s != nil {
				ix.table.set(s, c.place, item{version: c.version, data: c.data, gone: c.gone}, false)
			}
		}
	}
	ix.journal = newJournal()
	ix.journal.newest, ix.journal.until = cur.Until.Add(overlap), cur.Until
	for _, id := range files[1].entries {
		ix.journal.note(id, nil)
		ix.journal.see(id)
	}
	clear(ix.journal.open) // the checkpoint contains them
	ix.keeps, ix.generation, ix.wantBase = true, cur.Generation, false
	// Pending and quiet changes of this process are in no entry.
	for _, c := range ix.pending {
		ix.doubt(c.place, question{expected: []change{c}})
	}
	for p := range ix.quiet {
		ix.doubt(p, question{})
	}
	ix.mu.Unlock()
	if err := ix.poll(ctx); err != nil {
		return err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.loaded = true
	return nil
}

var errNoCheckpoint = errors.New("there is no checkpoint that can be used")

// readCheckpoint reads the base and the delta of the current checkpoint. The error
// matches errNoCheckpoint if there is no usable one.
func (ix *Index) readCheckpoint(ctx context.Context) (files [2]file, cur Current, err error) {
	cur, _, err = record.Read[Current](ctx, ix.cfg.Catalog, layout.IndexKey)
	if err == nil {
		err = ix.usable(ctx, cur)
	}
	if err == nil {
		var errs [2]error
		parallel([]File{cur.Base, cur.Delta}, func(i int, f File) {
			files[i], errs[i] = ix.readFile(ctx, layout.CheckpointKey(f.ID))
		})
		err = errors.Join(errs[:]...)
	}
	switch {
	case errors.Is(err, errDamaged), errors.Is(err, record.ErrDamaged), errors.Is(err, record.ErrNewer):
		err = fmt.Errorf("%w: %w", errNoCheckpoint, err)
	case errors.Is(err, store.ErrNotFound):
		err = errNoCheckpoint
	}
	return files, cur, err
}

func (ix *Index) usable(ctx context.Context, cur Current) error {
	if !slices.Equal(cur.Sections, ix.names()) {
		return fmt.Errorf("%w: it is of another version of imageroot", errNoCheckpoint)
	}
	trimmed, _, err := record.Read[Trimmed](ctx, ix.cfg.Catalog, layout.TrimmedKey)
	if err == nil && trimmed.Until.After(cur.Until) {
		return fmt.Errorf("%w: it is older than what is left of the journal", errNoCheckpoint)
	}
	return err
}

// names returns the [Current.Sections] of this process.
func (ix *Index) names() []string {
	var names []string
	for _, s := range ix.sections {
		names = append(names, string(s.root)+"/"+s.prefix)
	}
	slices.Sort(names)
	return names
}
