package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"imageroot/shared/store"
)

// askDirty reads every dirty key from the store. A key whose read fails stays dirty.
// The caller holds update.
func (ix *Index) askDirty(ctx context.Context) error {
	ix.mu.Lock()
	dirty := ix.dirty
	ix.dirty = map[place]question{}
	ix.asking = len(dirty) > 0
	ix.mu.Unlock()
	if len(dirty) == 0 {
		return nil
	}
	list := make([]asked, 0, len(dirty))
	for p, q := range dirty {
		list = append(list, asked{p, q, true})
	}
	err := ix.ask(ctx, list)
	ix.mu.Lock()
	ix.asking = false
	ix.mu.Unlock()
	return err
}

// An asked is a key to read from the store. If journal is set, the result goes to the
// journal.
type asked struct {
	place
	question
	journal bool
}

// ask reads the objects from the store and updates the table. The caller holds update.
func (ix *Index) ask(ctx context.Context, list []asked) error {
	errs := make([]error, len(list))
	parallel(list, func(i int, a asked) {
		const tries = 20
		again := true
		for n := 0; again && n < tries; n++ {
			again, errs[i] = ix.askOne(ctx, a)
		}
		if again || errs[i] != nil {
			ix.mu.Lock()
			ix.doubt(a.place, a.question)
			ix.mu.Unlock()
		}
	})
	return errors.Join(errs...)
}

// askOne reads one key. again is true if this process has changed the key meanwhile, so
// that the key must be read again.
func (ix *Index) askOne(ctx context.Context, a asked) (again bool, err error) {
	s := ix.section(a.place)
	ix.mu.Lock()
	seq := s.get(a.key).number()
	ix.mu.Unlock()
	found, err := ix.readObject(ctx, s, a.place)
	if err != nil {
		return false, err
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	it := s.get(a.key)
	if it.number() != seq {
		return true, nil // found may be older
	}
	same := it.known() && s.same(it, found.after())
	// A record never has the same content twice. An image, or an absence, can recur, so
	// other processes may have seen another state since this one was journalled.
	once := s.records && !found.gone
	if same && (!a.touched || it.journalled && once) {
		return false, nil
	}
	if it.exists() && !same {
		found.before = it.etag
	}
	// Every change of the table is in the journal or is about to be, so a state that
	// the table already has need not be written again.
	journalled := !same && it.exists() && !found.gone && ix.cfg.Quiet(a.key, it.data.bytes(), []byte(found.data)) ||
		(!a.touched || once) && slices.ContainsFunc(a.expected, func(c change) bool {
			return s.sameState(&c, &found)
		})
	if ix.keeps {
		ix.table.set(s, found, journalled || a.journal, false)
	}
	if a.journal && !journalled {
		ix.toJournal(found)
	}
	return false, nil
}

// readObject returns the current state of an object as a change whose before is
// unknown.
func (ix *Index) readObject(ctx context.Context, s *section, p place) (change, error) {
	c := change{place: p, before: unknown}
	var info store.Info
	var err error
	if s.records {
		c.data, info, err = ix.readRecord(ctx, p.key)
	} else {
		info, err = ix.root(p.root).Head(ctx, p.key)
		if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
			// An object that cannot be read must not hide the others, so use its
			// listing.
			info, err = listOne(ctx, ix.root(p.root), p.key)
		}
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		c.gone, c.version.LastModified = true, ix.cfg.Now().UTC()
	case err != nil:
		return c, err
	default:
		c.version = info.Version
	}
	return c, nil
}

// readRecord returns a record with its version. The data is empty if the record is too
// large, so that it counts as damaged.
func (ix *Index) readRecord(ctx context.Context, key store.Key) (string, store.Info, error) {
	body, info, err := ix.cfg.Catalog.Get(ctx, key, store.All, "")
	if err != nil {
		return "", info, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, store.MaxRecordBytes+1))
	if err != nil {
		return "", info, fmt.Errorf("read record %q: %w", key, err)
	}
	if len(data) > store.MaxRecordBytes {
		data = nil
	}
	return string(data), info, nil
}

func listOne(ctx context.Context, root store.Root, key store.Key) (store.Info, error) {
	for info, err := range root.List(ctx, string(key), "") {
		if err != nil {
			return info, err
		}
		if info.Key == key {
			return info, nil
		}
		break // key would be the first that begins with it
	}
	return store.Info{}, store.ErrNotFound
}
