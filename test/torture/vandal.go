package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// A vandal damages the stored index at random moments. Whatever it does may cost time, and
// nothing else.
type vandal struct {
	*world
	rng *rand.Rand
	// copies are former contents of the whole index by key, oldest first.
	copies []map[store.Key][]byte
}

// Each kind of damage returns an error if the store is down.
var damages = []struct {
	name string
	do   func(*vandal, context.Context) error
}{
	{"delete the pointer", func(v *vandal, ctx context.Context) error { return v.catalog.Delete(ctx, layout.IndexKey) }},
	{"delete a checkpoint", func(v *vandal, ctx context.Context) error {
		return v.change(ctx, layout.IndexPrefix, func([]byte) []byte { return nil })
	}},
	{"delete an entry", func(v *vandal, ctx context.Context) error {
		return v.change(ctx, layout.JournalPrefix, func([]byte) []byte { return nil })
	}},
	{"delete everything", func(v *vandal, ctx context.Context) error { return v.restore(ctx, nil) }},
	{"truncate", func(v *vandal, ctx context.Context) error {
		return v.change(ctx, v.prefix(), func(data []byte) []byte { return data[:v.rng.IntN(len(data)+1)] })
	}},
	{"flip a bit", func(v *vandal, ctx context.Context) error {
		return v.change(ctx, v.prefix(), func(data []byte) []byte {
			if len(data) > 0 {
				data[v.rng.IntN(len(data))] ^= 1 << v.rng.IntN(8)
			}
			return data
		})
	}},
	{"roll the pointer back", func(v *vandal, ctx context.Context) error {
		data := v.copy()[layout.IndexKey]
		if data == nil {
			return nil
		}
		return v.put(ctx, layout.IndexKey, data)
	}},
	{"roll everything back", func(v *vandal, ctx context.Context) error { return v.restore(ctx, v.copy()) }},
	{"write garbage entries", (*vandal).garbage},
}

// work damages the index until ctx ends.
func (v *vandal) work(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, time.Duration(v.rng.IntN(4000))*time.Millisecond)
		if v.rng.IntN(3) == 0 {
			v.keep(ctx)
			continue
		}
		d := damages[v.rng.IntN(len(damages))]
		err := d.do(v, ctx)
		v.trace("vandal: %s: %v", d.name, err)
		if err != nil {
			v.count("vandal", "the store was down")
			continue
		}
		v.count("vandal", d.name)
	}
}

func (v *vandal) prefix() string {
	return []string{layout.IndexPrefix, layout.JournalPrefix}[v.rng.IntN(2)]
}

// read returns the current index by key.
func (v *vandal) read(ctx context.Context) (map[store.Key][]byte, error) {
	all := map[store.Key][]byte{}
	for _, prefix := range []string{layout.IndexPrefix, layout.JournalPrefix} {
		for info, err := range v.catalog.List(ctx, prefix, "") {
			if err != nil {
				return nil, err
			}
			body, _, err := v.catalog.Get(ctx, info.Key, store.All, "")
			if err != nil {
				continue // it is gone
			}
			data, err := io.ReadAll(body)
			_ = body.Close()
			if err == nil {
				all[info.Key] = data
			}
		}
	}
	return all, nil
}

// keep adds a copy of the index.
func (v *vandal) keep(ctx context.Context) {
	if all, err := v.read(ctx); err == nil {
		v.copies = append(v.copies, all)
	}
}

// copy returns an earlier copy of the index, or nil.
func (v *vandal) copy() map[store.Key][]byte {
	if len(v.copies) == 0 {
		return nil
	}
	return v.copies[v.rng.IntN(len(v.copies))]
}

// restore replaces the whole index with a copy. A nil copy is empty.
func (w *world) restore(ctx context.Context, to map[store.Key][]byte) error {
	for _, prefix := range []string{layout.IndexPrefix, layout.JournalPrefix} {
		for info, err := range w.catalog.List(ctx, prefix, "") {
			if err == nil && to[info.Key] == nil {
				err = w.catalog.Delete(ctx, info.Key)
			}
			if err != nil {
				return err
			}
		}
	}
	for key, data := range to {
		if err := w.put(ctx, key, data); err != nil {
			return err
		}
	}
	return nil
}

// change replaces a random object under prefix with what edit returns; nil deletes it.
func (v *vandal) change(ctx context.Context, prefix string, edit func([]byte) []byte) error {
	var keys []store.Key
	for info, err := range v.catalog.List(ctx, prefix, "") {
		if err != nil {
			return err
		}
		keys = append(keys, info.Key)
	}
	if len(keys) == 0 {
		return nil
	}
	// The newest of the journal are the ones that are read.
	slices.Reverse(keys)
	key := keys[v.rng.IntN(min(len(keys), 20))]
	body, _, err := v.catalog.Get(ctx, key, store.All, "")
	if err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	_ = body.Close()
	if err != nil {
		return err
	}
	if data = edit(data); data == nil {
		return v.catalog.Delete(ctx, key)
	}
	return v.put(ctx, key, data)
}

// garbage writes random bytes at keys of journal entries, and at others.
func (v *vandal) garbage(ctx context.Context) error {
	at := time.Now().Add(time.Duration(v.rng.IntN(240)-120) * time.Second)
	if v.rng.IntN(8) == 0 {
		at = at.AddDate(v.rng.IntN(20)-10, 0, 0)
	}
	data := make([]byte, v.rng.IntN(64<<10))
	for i := range data {
		data[i] = byte(v.rng.Uint32())
	}
	key := layout.JournalKey(layout.NewJournalID(at, layout.Nonce()))
	switch v.rng.IntN(6) {
	case 0:
		key = layout.JournalPrefix + "garbage"
	case 1:
		key = layout.IndexPrefix + "garbage"
	}
	return v.put(ctx, key, data)
}

func (w *world) put(ctx context.Context, key store.Key, data []byte) error {
	_, err := w.catalog.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
	return err
}
