package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"imageroot/shared/inventory"
	kinds "imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// agree checks that the stored index says what the records say once a runner has
// reconciled, and that every runner then says what one says that has built its index from
// the records. No work may be left.
func (w *world) agree(ctx context.Context, c *client) {
	w.poll(ctx, rest, "the stored index says what the records say", func() error {
		stored, err := w.catalogOf(ctx, w.catalog)
		if err != nil {
			return err
		}
		rebuilt, err := w.catalogOf(ctx, unindexed{w.catalog})
		if err != nil {
			return err
		}
		return difference(stored, rebuilt)
	})
	fresh := w.newOther()
	w.others = append(w.others, fresh)
	w.poll(ctx, rest, fmt.Sprintf("runner %d builds its index from the records", fresh.number), func() error {
		if err := errors.Join(fresh.kill(), w.restore(ctx, nil)); err != nil {
			return err
		}
		w.start(ctx, fresh)
		if !strings.Contains(fresh.logs(), "the index is built from the records") {
			return errors.New("another runner has written a checkpoint before")
		}
		return nil
	})
	for _, n := range w.nodes() {
		w.poll(ctx, rest, fmt.Sprintf("runner %d says what runner %d has built from the records", n.number, fresh.number), func() error {
			for _, path := range []string{"/images", "/catalog.toml", "/catalog?limit=500", "/catalog/entries", "/catalog/hashes", "/catalog/downloads"} {
				want, err := w.answer(ctx, c, fresh, path)
				if err != nil {
					return err
				}
				got, err := w.answer(ctx, c, n, path)
				if err != nil {
					return err
				}
				if err := difference(got, want); err != nil {
					return fmt.Errorf("GET %s: %w", path, err)
				}
			}
			return nil
		})
	}
}

// answer returns the body of a page of a runner, without the runner's own address.
func (w *world) answer(ctx context.Context, c *client, n *node, path string) (string, error) {
	res, data, err := c.request(ctx, n, http.MethodGet, path, nil, 0)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	if err != nil {
		return "", fmt.Errorf("GET %s of runner %d: %w", path, n.number, err)
	}
	return strings.ReplaceAll(string(data), n.pages, ""), nil
}

// catalogOf returns the rows, images and jobs as a process reads them that starts over this
// catalog root.
func (w *world) catalogOf(ctx context.Context, catalog store.Root) (string, error) {
	inv := inventory.New(inventory.Config{Images: w.images, Catalog: catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	s, err := inv.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	jobs, err := inv.Jobs(ctx, kinds.Kinds...)
	if err != nil {
		return "", err
	}
	versions := map[string]store.Version{}
	rows := slices.Collect(s.Rows(nil))
	for _, r := range rows {
		for _, name := range r.Names {
			if info, ok := s.Image(name); ok {
				versions[string(name)] = info.Version
			}
		}
	}
	data, err := json.Marshal([]any{rows, versions, jobs})
	return string(data), err
}

// difference returns nil if got is want, and otherwise where they begin to differ.
func difference(got, want string) error {
	if got == want {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	from := max(0, at-200)
	return fmt.Errorf("got  %.500s\n\twant %.500s", got[from:], want[from:])
}

// unindexed is a catalog root without an index.
type unindexed struct{ store.Root }

func indexed(key store.Key) bool {
	return strings.HasPrefix(string(key), layout.IndexPrefix) || strings.HasPrefix(string(key), layout.JournalPrefix)
}

func (u unindexed) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	if indexed(key) {
		return nil, store.Info{}, store.ErrNotFound
	}
	return u.Root.Get(ctx, key, r, ifMatch)
}

func (u unindexed) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	if indexed(key) {
		return nil, "", store.ErrNotFound
	}
	return u.Root.ReadRecord(ctx, key)
}

func (u unindexed) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	if indexed(store.Key(prefix)) {
		return func(func(store.Info, error) bool) {}
	}
	return u.Root.List(ctx, prefix, after)
}
