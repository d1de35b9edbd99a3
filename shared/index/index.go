// Package index keeps the catalog in memory: the listings of the image root and the
// catalog root, and the records in them.
//
// Records are the truth, and the index is derived from them. It is stored as a
// checkpoint, which is two compressed objects with the whole catalog, and a journal,
// which is small objects in the order of time with the changes since. A start reads
// these, so it costs a handful of requests however many images exist. Keeping up costs
// one listing of new journal entries per second while the index is read.
//
// A change is applied only if it follows the version that the index holds. In any other
// case the object itself is read: see [table.apply]. So a change that arrives twice,
// late or out of order does no harm. An index that is deleted, truncated or garbled
// costs time but gives no wrong answer: it is built again from the listings and the
// records. A writer that dies between its record and its journal entry leaves a change
// that only [Section.Refresh] finds.
//
// docs/records.md documents the formats, docs/decisions/index.md the reasons.
package index

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"imageroot/shared/store"
)

const (
	// pollEvery is the minimum time between two listings of the journal.
	pollEvery = time.Second
	// flushEvery is the interval at which [Index.Run] flushes, and entryEvery the
	// minimum time between two of its entries.
	flushEvery = 200 * time.Millisecond
	entryEvery = 600 * time.Millisecond
	// overlap is how far before the newest entry a listing of the journal begins. It
	// covers clocks that are up to a minute fast or slow, and writes of entries that
	// take up to writeTime.
	overlap   = 3 * time.Minute
	writeTime = 30 * time.Second
	// reloadAfter is the time without a successful poll after which the checkpoint is
	// read again. Entries are kept for longer.
	reloadAfter = 10 * time.Minute
	// readers is the number of requests in parallel.
	readers = 16
)

// Config configures an [Index]. Images, Catalog, Now and Log are required.
type Config struct {
	Images, Catalog store.Root
	// Quiet reports whether the journal may omit a record's change from old to new,
	// such as the progress of a job. Nil: it omits none.
	Quiet func(key store.Key, old, new []byte) bool
	// Live reports whether a record can have quiet changes now. While the index is
	// read, live records of other processes are read again once a second. Nil: none is
	// live.
	Live func(key store.Key, data []byte) bool
	// Compact lets this process write checkpoints.
	Compact bool
	// Patience bounds a poll of the journal. After that, the index serves what it
	// knows. The default is 5 s.
	Patience time.Duration
	Now      func() time.Time
	Log      *slog.Logger
}

// An Index is the catalog in memory. It is safe for concurrent use once its sections
// are registered.
type Index struct {
	cfg      Config
	owner    string
	codec    codec
	sections []*section // not changed after registration

	// update is held while the journal or dirty keys are read and while an entry is
	// written, compacting while a checkpoint is checked or written. compacting is
	// locked first.
	update, compacting sync.Mutex

	mu         sync.Mutex
	table      table
	loaded     bool               // table is complete
	keeps      bool               // changes are applied to table
	polledAt   time.Time          // the last poll that succeeded
	triedAt    time.Time          // the last poll
	wroteAt    time.Time          // the last entry
	asking     bool               // dirty keys are being read
	dirty      map[place]question // keys to read
	pending    []change           // to be written to the journal
	quiet      map[place]quiet
	journal    journal
	generation int64     // of the newest checkpoint that was seen
	wantBase   bool      // the checkpoint is missing or damaged
	foreign    bool      // a newer version wrote the stored index: do not write it
	retryAt    time.Time // no compaction before
}

// New returns an index without sections. It does not access the roots.
func New(cfg Config) *Index {
	if cfg.Quiet == nil {
		cfg.Quiet = func(store.Key, []byte, []byte) bool { return false }
	}
	if cfg.Live == nil {
		cfg.Live = func(store.Key, []byte) bool { return false }
	}
	ix := &Index{
		cfg: cfg, owner: rand.Text(), table: table{live: map[place]bool{}, isLive: cfg.Live},
		dirty: map[place]question{}, quiet: map[place]quiet{}, journal: newJournal(),
	}
	ix.table.archive.codec = &ix.codec
	return ix
}

// A rootID names one of the two roots, in memory and in files.
type rootID byte

const (
	imageRoot   rootID = 'i'
	catalogRoot rootID = 'c'
)

// A place is a key in one of the roots.
type place struct {
	root rootID
	key  store.Key
}

func (ix *Index) root(r rootID) store.Root {
	if r == imageRoot {
		return ix.cfg.Images
	}
	return ix.cfg.Catalog
}

// section returns the section of a place, or nil.
func (ix *Index) section(p place) *section {
	for _, s := range ix.sections {
		if s.root == p.root && s.has(p.key) {
			return s
		}
	}
	return nil
}

// TouchImage marks the object at key in the image root as possibly created, changed or
// deleted. It sends no request. Every later [Section.All] includes the change, and the
// next [Index.Flush] writes it to the journal.
func (ix *Index) TouchImage(key store.Key) { ix.touch(place{imageRoot, key}) }

// TouchCatalog is [Index.TouchImage] for the catalog root.
func (ix *Index) TouchCatalog(key store.Key) { ix.touch(place{catalogRoot, key}) }

func (ix *Index) touch(p place) {
	if ix.section(p) == nil {
		return
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.doubt(p, question{touched: true})
}

// refresh brings the table up to date. When it returns nil, the table includes every
// key touched before the call and the last poll of the journal, which is at most a
// second old unless the store is slow.
func (ix *Index) refresh(ctx context.Context) error {
	ix.mu.Lock()
	certain := ix.loaded && len(ix.dirty) == 0 && !ix.asking
	due := ix.due()
	ix.mu.Unlock()
	if certain && !due {
		return nil
	}
	if !ix.update.TryLock() {
		if certain {
			return nil // another goroutine does it
		}
		ix.update.Lock()
	}
	defer ix.update.Unlock()
	return ix.catchUp(ctx)
}

// Expire makes the next [Section.All] list the journal, even if the last listing is
// less than a second old.
func (ix *Index) Expire() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.triedAt = time.Time{}
}

// due reports whether to list the journal. The caller holds mu.
func (ix *Index) due() bool {
	age := ix.cfg.Now().Sub(ix.triedAt)
	return age < 0 || age >= pollEvery
}

// catchUp loads the checkpoint or polls the journal if that is due, and reads dirty
// keys. The caller holds update.
func (ix *Index) catchUp(ctx context.Context) error {
	ix.mu.Lock()
	now := ix.cfg.Now()
	due, loaded := ix.due(), ix.loaded
	stale := !loaded || now.Sub(ix.polledAt) > reloadAfter
	if due {
		ix.triedAt = now
	}
	ix.mu.Unlock()
	if due || !loaded {
		err := ix.readNew(ctx, stale)
		switch {
		case err == nil:
		case !loaded || ctx.Err() != nil:
			return err
		default:
			ix.cfg.Log.Warn("the journal cannot be read; what is known stays in use", "error", err)
		}
		ix.doubtLive()
	}
	return ix.askDirty(ctx)
}

// readNew loads the checkpoint if stale is set, and polls the journal otherwise. The
// caller holds update.
func (ix *Index) readNew(ctx context.Context, stale bool) error {
	if stale {
		return ix.load(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(ix.cfg.Patience, 5*time.Second))
	defer cancel()
	return ix.poll(ctx)
}

// doubtLive marks the live records of other processes as dirty.
func (ix *Index) doubtLive() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for p := range ix.table.live {
		ix.doubt(p, question{})
	}
}

// A question is the reason to read a key.
type question struct {
	// touched says that this process, or a client that writes no journal, may have
	// changed the key.
	touched bool
	// expected has changes known from the journal or made by this process.
	expected []change
}

// doubt marks a key as dirty: its object must be read. The caller holds mu.
func (ix *Index) doubt(p place, q question) {
	had := ix.dirty[p]
	ix.dirty[p] = question{had.touched || q.touched, append(had.expected, q.expected...)}
}

// Flush reads the keys that were touched, and writes the changes of this process to the
// journal, where other processes see them. They are durable when it returns nil. If it
// fails, the next Flush repeats it. With [Config].Compact it also writes a checkpoint
// if one is due.
func (ix *Index) Flush(ctx context.Context) error {
	if err := ix.flush(ctx); err != nil {
		return err
	}
	return ix.compact(ctx)
}

// Run calls [Index.Flush] at intervals until ctx ends. A change reaches the journal
// within a second unless the store is slow. The caller must flush once more after all
// writers have ended.
func (ix *Index) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if ix.wroteJustNow() {
			continue
		}
		err := ix.Flush(ctx)
		switch {
		case err == nil:
			failed = ""
		case ctx.Err() == nil && err.Error() != failed:
			failed = err.Error()
			ix.cfg.Log.Warn("the index is written later", "error", err)
		}
	}
}

func (ix *Index) wroteJustNow() bool {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	age := ix.cfg.Now().Sub(ix.wroteAt)
	return age >= 0 && age < entryEvery
}

// parallel calls f for each element of list, up to readers at a time, and waits for all
// calls.
func parallel[T any](list []T, f func(int, T)) {
	var g errgroup.Group
	g.SetLimit(readers)
	for i, v := range list {
		g.Go(func() error {
			f(i, v)
			return nil
		})
	}
	_ = g.Wait() // no call returns an error
}
