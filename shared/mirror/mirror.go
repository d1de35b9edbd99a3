// Package mirror keeps a listing of a root, and the records in it, in memory.
//
// A record is read again only if the listing has another version of it, so that a
// page with ten thousand images costs no request. Freshness has two sources: keys
// that [Mirror.Touch] names are asked for at the next [Mirror.All], and a listing
// older than [Config].MaxAge is made again.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"imageroot/shared/store"
)

// readers is the number of records read at a time. The first listing of ten
// thousand takes ten thousand requests.
const readers = 16

// relistOver is the number of touched keys above which a listing is cheaper than a
// request for each.
const relistOver = 200

// Config configures a [Mirror].
type Config[ID ~string, T any] struct {
	Root   store.Root
	Prefix string
	// ID returns the ID of a key, or false if the mirror ignores the key.
	ID func(key store.Key) (ID, bool)
	// Decode returns the value of the record at key. If it is nil, records are not
	// read and values are zero. A record that does not decode is left out, and
	// logged once, with the text of Remedy.
	Decode func(key store.Key, data []byte) (T, error)
	Remedy func(key store.Key, err error) string
	// MaxAge is the age at which a listing is made again. Zero lists every time,
	// for a mirror without Touch.
	MaxAge time.Duration
	// Wait makes All wait for a listing that is due, instead of listing in the
	// background: for a process that is frozen between requests.
	Wait bool
	Now  func() time.Time
	Log  *slog.Logger
}

// An Item is an object in the mirror.
type Item[T any] struct {
	Info  store.Info
	Value T
}

// A Mirror is safe for concurrent use.
type Mirror[ID ~string, T any] struct {
	cfg Config[ID, T]

	refresh sync.Mutex // one refresh at a time

	mu       sync.Mutex
	items    map[ID]Item[T] // never changed once published
	damaged  map[ID]leftOut // by ID: records that do not decode
	gen      uint64
	listedAt time.Time
	took     time.Duration
	dirty    map[store.Key]struct{} // keys
	looking  bool                   // at keys that were dirty
	relist   bool                   // a listing runs in the background
}

// New returns an empty mirror. The first All fills it.
func New[ID ~string, T any](cfg Config[ID, T]) *Mirror[ID, T] {
	return &Mirror[ID, T]{cfg: cfg, dirty: map[store.Key]struct{}{}, damaged: map[ID]leftOut{}}
}

// A leftOut is a record that does not decode.
type leftOut struct {
	version store.Version
	err     error
}

// LeftOut returns the IDs of the records that All leaves out because they do
// not decode, with an error that matches cause; any error does if cause is nil.
func (m *Mirror[ID, T]) LeftOut(cause error) []ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []ID
	for id, d := range m.damaged {
		if cause == nil || errors.Is(d.err, cause) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Touch marks the object at key as possibly changed, created or deleted. It does
// no request.
func (m *Mirror[ID, T]) Touch(key store.Key) {
	if _, ok := m.cfg.ID(key); !ok {
		return
	}
	m.mu.Lock()
	m.dirty[key] = struct{}{}
	m.mu.Unlock()
}

// All returns the items by ID, which the caller must not modify, and a number that
// changes whenever they change. They include every change whose key was touched
// before the call. Other changes they include after the first call, and the listing
// that it starts, when MaxAge has passed. An error is the store's; that of a listing
// in the background is logged, and the items stay as they are.
func (m *Mirror[ID, T]) All(ctx context.Context) (map[ID]Item[T], uint64, error) {
	m.mu.Lock()
	// Keys that another call is asking for count as touched before this one.
	fresh := m.items != nil && len(m.dirty) == 0 && !m.looking
	age := m.cfg.Now().Sub(m.listedAt)
	// A listing that takes long is not repeated at once.
	stale := age > max(m.cfg.MaxAge, 20*m.took)
	if m.cfg.MaxAge == 0 {
		fresh, stale = false, true
	}
	wait := m.cfg.Wait && age > m.cfg.MaxAge
	fresh = fresh && !wait
	if fresh && stale && !m.relist {
		m.relist = true
		go m.relistLater(context.WithoutCancel(ctx))
	}
	if fresh {
		defer m.mu.Unlock()
		return m.items, m.gen, nil
	}
	m.mu.Unlock()

	m.refresh.Lock()
	defer m.refresh.Unlock()
	return m.update(ctx, wait || stale && m.cfg.MaxAge == 0)
}

// Refresh lists again. When it returns nil, All includes every change made before
// the call.
func (m *Mirror[ID, T]) Refresh(ctx context.Context) error {
	m.refresh.Lock()
	defer m.refresh.Unlock()
	_, _, err := m.update(ctx, true)
	return err
}

func (m *Mirror[ID, T]) relistLater(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	m.refresh.Lock()
	defer m.refresh.Unlock()
	if _, _, err := m.update(ctx, true); err != nil {
		m.cfg.Log.Warn("listing failed; what was listed before stays in use", "prefix", m.cfg.Prefix, "error", err)
	}
	m.mu.Lock()
	m.relist = false
	m.mu.Unlock()
}

// update asks for the dirty keys, or lists everything. The caller holds refresh.
func (m *Mirror[ID, T]) update(ctx context.Context, all bool) (map[ID]Item[T], uint64, error) {
	m.mu.Lock()
	old, dirty, damaged := m.items, m.dirty, m.damaged
	m.dirty = map[store.Key]struct{}{}
	m.looking = len(dirty) > 0
	m.mu.Unlock()
	all = all || old == nil || len(dirty) > relistOver

	started := m.cfg.Now()
	var items map[ID]Item[T]
	var changed bool
	var err error
	read := newReading(m, ctx)
	switch {
	case all:
		items, changed, err = m.list(ctx, read, old, damaged)
	case len(dirty) > 0:
		items, changed, err = m.look(read, old, dirty, damaged)
		if err != nil && m.cfg.Decode == nil && ctx.Err() == nil {
			// One object that cannot be read must not hide the others.
			all, read = true, newReading(m, ctx)
			items, changed, err = m.list(ctx, read, old, damaged)
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.looking = false
	if err != nil {
		for k := range dirty {
			m.dirty[k] = struct{}{}
		}
		return nil, 0, err
	}
	if all {
		m.listedAt, m.took = m.cfg.Now(), m.cfg.Now().Sub(started)
	}
	if all || len(dirty) > 0 {
		m.damaged = read.damaged
	}
	if changed || m.items == nil {
		m.items = items
		m.gen++
	}
	return m.items, m.gen, nil
}

func (m *Mirror[ID, T]) list(ctx context.Context, read *reading[ID, T], old map[ID]Item[T], damaged map[ID]leftOut) (map[ID]Item[T], bool, error) {
	items := make(map[ID]Item[T], len(old))
	changed := false
	for info, err := range m.cfg.Root.List(ctx, m.cfg.Prefix, "") {
		if err != nil {
			read.wait()
			return nil, false, err
		}
		id, ok := m.cfg.ID(info.Key)
		if !ok {
			continue
		}
		if it, ok := old[id]; ok && it.Info.Equal(info.Version) {
			items[id] = it
			continue
		}
		if v, ok := damaged[id]; ok && v.version.Equal(info.Version) {
			read.leaveOut(id, v)
			continue
		}
		changed = true
		read.start(id, info)
	}
	if err := read.wait(); err != nil {
		return nil, false, err
	}
	for id, it := range read.got {
		items[id] = it
	}
	return items, changed || len(items) != len(old), nil
}

func (m *Mirror[ID, T]) look(read *reading[ID, T], old map[ID]Item[T], dirty map[store.Key]struct{}, damaged map[ID]leftOut) (map[ID]Item[T], bool, error) {
	looked := make(map[ID]bool, len(dirty))
	for key := range dirty {
		id, _ := m.cfg.ID(key)
		looked[id] = true
		read.start(id, store.Info{Key: key})
	}
	for id, v := range damaged {
		if !looked[id] {
			read.leaveOut(id, v)
		}
	}
	if err := read.wait(); err != nil {
		return nil, false, err
	}
	items := make(map[ID]Item[T], len(old)+len(read.got))
	for id, it := range old {
		if _, ok := read.gone[id]; !ok {
			items[id] = it
		}
	}
	for id, it := range read.got {
		items[id] = it
	}
	return items, true, nil
}

// reading reads several records at once.
type reading[ID ~string, T any] struct {
	m    *Mirror[ID, T]
	ctx  context.Context
	slot chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	got     map[ID]Item[T]
	gone    map[ID]struct{}
	damaged map[ID]leftOut
	err     error
}

func newReading[ID ~string, T any](m *Mirror[ID, T], ctx context.Context) *reading[ID, T] {
	return &reading[ID, T]{m: m, ctx: ctx, slot: make(chan struct{}, readers), got: map[ID]Item[T]{}, gone: map[ID]struct{}{}, damaged: map[ID]leftOut{}}
}

// leaveOut leaves out a record that was damaged when it was read and is the same
// version still.
func (r *reading[ID, T]) leaveOut(id ID, v leftOut) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damaged[id] = v
}

func (r *reading[ID, T]) start(id ID, info store.Info) {
	if r.m.cfg.Decode == nil && info.ETag != "" {
		r.mu.Lock()
		r.got[id] = Item[T]{Info: info}
		r.mu.Unlock()
		return
	}
	r.slot <- struct{}{}
	r.wg.Go(func() {
		defer func() { <-r.slot }()
		it, err := r.m.read(r.ctx, info)
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case err == nil:
			r.got[id] = it
		case errors.Is(err, errUndecodable):
			r.gone[id], r.damaged[id] = struct{}{}, leftOut{it.Info.Version, err}
			r.m.cfg.Log.Warn("record left out", "key", info.Key, "error", err, "remedy", r.m.cfg.Remedy(info.Key, err))
		case errors.Is(err, store.ErrNotFound):
			r.gone[id] = struct{}{}
		default:
			r.err = errors.Join(r.err, err)
		}
	})
}

func (r *reading[ID, T]) wait() error {
	r.wg.Wait()
	return r.err
}

var errUndecodable = errors.New("record does not decode")

func (m *Mirror[ID, T]) read(ctx context.Context, info store.Info) (Item[T], error) {
	if info.ETag == "" {
		// Only the key is known. Asking for the version before the content makes a
		// change in between show in the next listing.
		head, err := m.cfg.Root.Head(ctx, info.Key)
		if err != nil {
			return Item[T]{}, err
		}
		info = head
	}
	it := Item[T]{Info: info}
	if m.cfg.Decode == nil {
		return it, nil
	}
	data, _, err := m.cfg.Root.ReadRecord(ctx, info.Key)
	if err != nil {
		return Item[T]{}, err
	}
	if it.Value, err = m.cfg.Decode(info.Key, data); err != nil {
		return it, fmt.Errorf("%w: %w", errUndecodable, err)
	}
	return it, nil
}
