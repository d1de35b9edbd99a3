package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/sorted"
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
	l := loading{ix: ix}
	j := newJournal()
	cur, err := ix.readCheckpoint(ctx, func(cur Current, delta file) error {
		j.newest, j.until = cur.Until.Add(overlap), cur.Until
		for _, id := range delta.entries {
			j.note(id, nil)
			j.see(id)
		}
		clear(j.open) // the checkpoint contains them
		l.delta = l.items(delta.changes)
		return nil
	}, l.add)
	switch {
	case errors.Is(err, errNoCheckpoint):
		ix.cfg.Log.Info("the index is built from the records", "because", err)
		return ix.rebuild(ctx)
	case err != nil:
		return err
	}
	ix.mu.Lock()
	l.commit()
	ix.journal = j
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

// A loading is the items of a checkpoint that is being read.
type loading struct {
	ix    *Index
	delta []loaded
	mu    sync.Mutex
	base  [][]loaded // in the order of the file
}

// A loaded is an item that was read. It is the item of the index if that has the same
// version, else a new one, whose seq is 0.
type loaded struct {
	section *section
	item    *item
	live    bool
}

// add adds the nth changes of the base. It is safe for concurrent use.
func (l *loading) add(n int, changes []change) {
	list := l.items(changes)
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.base) <= n {
		l.base = append(l.base, nil)
	}
	l.base[n] = list
}

func (l *loading) items(changes []change) []loaded {
	list := make([]loaded, len(changes))
	size := 0
	l.ix.mu.Lock()
	for i := range changes {
		c := &changes[i]
		if s := l.ix.section(c.place); s != nil {
			list[i].section = s
			if it := s.get(c.key); it.exists() && s.same(it, c.after()) {
				list[i].item = it
			} else {
				size += len(c.key) + len(c.version.ETag)
			}
		}
	}
	l.ix.mu.Unlock()
	// One string has those of all items: the strings of changes share the memory of
	// the records.
	var text strings.Builder
	text.Grow(size)
	cut := func(s string) string {
		text.WriteString(s)
		return text.String()[text.Len()-len(s):]
	}
	data := archive{codec: &l.ix.codec, bulk: true}
	for i := range list {
		c, e := &changes[i], &list[i]
		if e.section == nil {
			continue
		}
		if e.item == nil {
			e.item = &item{
				key: store.Key(cut(string(c.key))), etag: cut(c.version.ETag), size: c.version.Size, modified: c.version.LastModified.Unix(),
				data: data.put(c.data), gone: c.gone,
			}
		}
		e.live = e.section.records && !c.gone && l.ix.cfg.Live(c.key, []byte(c.data))
	}
	data.finish()
	return slices.DeleteFunc(list, func(e loaded) bool { return e.section == nil })
}

// commit replaces the items of the index. The caller holds Index.mu.
func (l *loading) commit() {
	t := &l.ix.table
	t.seq++
	clear(t.live)
	for _, s := range l.ix.sections {
		s.items, s.recent, s.gone = sorted.List[*item]{}, map[store.Key]*item{}, map[store.Key]*item{}
	}
	existing := map[*section][]*item{}
	set := func(e loaded) {
		if e.item.journalled = false; e.item.seq == 0 {
			e.item.seq = t.seq
		}
		if p := (place{e.section.root, e.item.key}); e.live {
			t.live[p] = true
		} else {
			delete(t.live, p)
		}
	}
	for _, list := range l.base {
		for _, e := range list {
			set(e)
			if e.item.gone {
				e.section.recent[e.item.key] = e.item
			} else {
				existing[e.section] = append(existing[e.section], e.item)
			}
		}
	}
	for s, items := range existing {
		s.items = s.items.With(order, nil, items)
	}
	for _, e := range l.delta {
		set(e)
		e.section.recent[e.item.key] = e.item
	}
}

var errNoCheckpoint = errors.New("there is no checkpoint that can be used")

// readCheckpoint reads the current checkpoint. It calls delta once, and then base for
// many changes at a time, concurrently. The keys of the delta are changed in the base,
// too. The error matches errNoCheckpoint if there is no usable checkpoint: then what was
// read is worth nothing. It may be that of delta.
func (ix *Index) readCheckpoint(ctx context.Context, delta func(Current, file) error, base func(int, []change)) (cur Current, err error) {
	cur, _, err = record.Read[Current](ctx, ix.cfg.Catalog, layout.IndexKey)
	if err == nil {
		err = ix.usable(ctx, cur)
	}
	if err == nil {
		err = ix.readBoth(ctx, cur, delta, base)
	}
	switch {
	case errors.Is(err, errDamaged), errors.Is(err, record.ErrDamaged), errors.Is(err, record.ErrNewer):
		err = fmt.Errorf("%w: %w", errNoCheckpoint, err)
	case errors.Is(err, store.ErrNotFound):
		err = errNoCheckpoint
	}
	return cur, err
}

// readBoth requests both files of a checkpoint at once, and reads the delta first.
func (ix *Index) readBoth(ctx context.Context, cur Current, delta func(Current, file) error, base func(int, []change)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var deltaErr, baseErr error
	deltaRead := make(chan struct{})
	wg.Go(func() {
		defer close(deltaRead)
		f, err := ix.readFile(ctx, layout.CheckpointKey(cur.Delta.ID))
		if err == nil {
			err = delta(cur, f)
		}
		if deltaErr = err; err != nil {
			cancel()
		}
	})
	wg.Go(func() {
		body, _, err := ix.cfg.Catalog.Get(ctx, layout.CheckpointKey(cur.Base.ID), store.All, "")
		<-deltaRead
		if baseErr = err; err == nil && deltaErr == nil {
			baseErr = ix.parseParallel(body, base)
		}
		if err == nil {
			body.Close()
		}
	})
	wg.Wait()
	return cmp.Or(deltaErr, baseErr)
}

// parseParallel reads a file and calls each for many of its changes at a time,
// concurrently. n counts the calls in the order of the file.
func (ix *Index) parseParallel(r io.Reader, each func(n int, changes []change)) error {
	calls := 0
	var parsing errgroup.Group
	parsing.SetLimit(runtime.GOMAXPROCS(0))
	err := ix.codec.scan(r, func(lines string) error {
		n := calls
		calls++
		parsing.Go(func() error {
			f, err := parse(lines)
			each(n, f.changes)
			return err
		})
		return nil
	})
	return cmp.Or(parsing.Wait(), err)
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
