// Package index keeps the catalog in memory: what the image root and the catalog
// root list, and the records in them.
//
// Records are the truth. The index says what they say, sooner: from a checkpoint,
// one compressed object with the whole catalog, and a journal, small objects in
// the order of time that say what has changed since. A start reads these two, so
// it costs a handful of requests however many images there are. Keeping up costs
// one listing of new journal entries, at most once a second while somebody asks.
//
// A change is applied only if it follows the version that the index holds. In any
// other case the object itself is read: see [table.apply]. So a change that is
// applied twice, late or out of order changes nothing, and an index that is
// deleted, truncated or garbled costs time and gives no wrong answer: it is built
// again from the listings and the records. What the journal never said, because a
// writer died between its record and its entry, [Section.Refresh] finds.
//
// docs/records.md documents the formats, docs/decisions/index.md the reasons.
package index

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"slices"
	"sync"
	"time"

	"imageroot/shared/store"
)

const (
	// pollEvery is the least time between two listings of the journal.
	pollEvery = time.Second
	// flushEvery is how soon [Index.Run] writes what has changed, and entryEvery the
	// least time between two entries while there are changes all the time.
	flushEvery = 200 * time.Millisecond
	entryEvery = 600 * time.Millisecond
	// overlap is how far before the newest entry a listing of the journal begins. It
	// covers clocks that differ by a minute, in either direction, and entries that
	// take up to writeTime to arrive.
	overlap   = 3 * time.Minute
	writeTime = 30 * time.Second
	// reloadAfter is the time without a poll after which the checkpoint is read again.
	// Entries are kept for longer than that.
	reloadAfter = 10 * time.Minute
	// readers is the number of objects read in parallel.
	readers = 16
)

// Config configures an [Index].
type Config struct {
	Images, Catalog store.Root
	// Quiet reports whether a record changed from old to new in a way that the
	// journal leaves out, such as the progress of a job. Nil: none does.
	Quiet func(key store.Key, old, new []byte) bool
	// Live reports whether a record has quiet changes. Records that are live by
	// the hand of other processes are read again once a second while somebody asks.
	// Nil: none has.
	Live func(key store.Key, data []byte) bool
	// Compact lets this process write checkpoints.
	Compact bool
	// Patience bounds a listing of the journal: what is known is served if the store
	// does not answer. The default is 5 s.
	Patience time.Duration
	Now      func() time.Time
	Log      *slog.Logger
}

// An Index is safe for concurrent use, once its sections are registered.
type Index struct {
	cfg      Config
	owner    string
	codec    codec
	sections []*section // not changed after registration

	// update is held by whoever reads the journal, asks or writes an entry, and
	// compacting by whoever writes a checkpoint. compacting is locked first.
	update, compacting sync.Mutex

	mu         sync.Mutex
	table      table
	loaded     bool               // the tables of the sections are complete
	keeps      bool               // changes are kept in them
	polledAt   time.Time          // the last poll that succeeded
	triedAt    time.Time          // the last poll
	wroteAt    time.Time          // the last entry
	asking     bool               // touched keys are being asked for
	dirty      map[place]question // keys to ask for
	pending    []change           // to be written to the journal
	quiet      map[place]quiet
	journal    journal
	generation int64     // of the newest checkpoint that was seen
	wantBase   bool      // the checkpoint is missing or damaged
	foreign    bool      // the index in the store is a newer program's: it is left alone
	retryAt    time.Time // the next compaction is not before
}

// New returns an index without sections. It does not access the roots.
func New(cfg Config) *Index {
	if cfg.Quiet == nil {
		cfg.Quiet = func(store.Key, []byte, []byte) bool { return false }
	}
	if cfg.Live == nil {
		cfg.Live = func(store.Key, []byte) bool { return false }
	}
	return &Index{
		cfg: cfg, owner: rand.Text(), table: table{live: map[place]bool{}, isLive: cfg.Live},
		dirty: map[place]question{}, quiet: map[place]quiet{}, journal: newJournal(),
	}
}

// A rootID names one of the two roots, in the index too.
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

// TouchImage marks the object at key in the image root as possibly changed, created
// or deleted. It does no request. Every later [Section.All] includes the change, and
// the next [Index.Flush] tells other processes.
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

// refresh brings the table up to date. When it returns nil, the table includes
// every change that was touched before the call, and what the last poll of the
// journal found, which was begun within a second unless the store is slow.
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
			return nil // another goroutine is at it
		}
		ix.update.Lock()
	}
	defer ix.update.Unlock()
	return ix.catchUp(ctx)
}

// Expire has the next [Section.All] list the journal, though it was listed within a
// second.
func (ix *Index) Expire() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.triedAt = time.Time{}
}

// due reports whether the journal is to be listed. The caller holds mu.
func (ix *Index) due() bool {
	age := ix.cfg.Now().Sub(ix.triedAt)
	return age < 0 || age >= pollEvery
}

// catchUp loads the checkpoint or polls the journal if that is due, and asks for what
// is in doubt. The caller holds update.
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

// readNew loads the checkpoint, or reads the journal on. The caller holds update.
func (ix *Index) readNew(ctx context.Context, stale bool) error {
	if stale {
		return ix.load(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(ix.cfg.Patience, 5*time.Second))
	defer cancel()
	return ix.poll(ctx)
}

// doubtLive has the live records of other processes read again.
func (ix *Index) doubtLive() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	for p := range ix.table.live {
		ix.doubt(p, question{})
	}
}

// A question is why a key is asked for.
type question struct {
	// touched says that the key may have changed by the hand of this process, or of
	// one that writes no journal.
	touched bool
	// expected are changes that the journal tells.
	expected []change
}

// doubt has the object itself asked. The caller holds mu.
func (ix *Index) doubt(p place, q question) {
	had := ix.dirty[p]
	ix.dirty[p] = question{had.touched || q.touched, append(had.expected, q.expected...)}
}

// Flush asks for what was touched, and writes what has changed through this process
// to the journal, so that others see it. If it fails, the next Flush repeats it.
// With [Config].Compact it writes a checkpoint if one is due.
func (ix *Index) Flush(ctx context.Context) error {
	if err := ix.flush(ctx); err != nil {
		return err
	}
	return ix.compact(ctx)
}

// Run calls [Index.Flush] whenever there is something to do, until ctx ends: what
// changes is in the journal within 600 milliseconds. The caller flushes once more when
// all writers have ended.
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

// parallel calls f for each of list, several at a time, and returns when all have
// returned.
func parallel[T any](list []T, f func(int, T)) {
	var wg sync.WaitGroup
	for part := range slices.Chunk(indices(len(list)), max(1, (len(list)+readers-1)/readers)) {
		wg.Go(func() {
			for _, i := range part {
				f(i, list[i])
			}
		})
	}
	wg.Wait()
}

func indices(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}
