package hash

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"imageroot/shared/bmap"
	"imageroot/shared/digest"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// holes is a disk that knows its holes.
type holes interface {
	// Hole returns the number of bytes from off to limit at most that are all a hole, or all
	// not. The run may continue behind it.
	Hole(off, limit int64) (n int64, hole bool, err error)
}

// mapHoles returns the block map of a disk of size bytes, or nil if it has no hole of a block,
// or a fault, which reading it finds.
func mapHoles(ctx context.Context, disk holes, size int64) (*bmap.Map, error) {
	m := &bmap.Map{Size: size}
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		n, hole, err := disk.Hole(off, size)
		if _, fault := faultVerdict(err); fault {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if !hole {
			m.Add(off, off+n)
		}
		off += n
	}
	if m.Join(); m.Whole() {
		return nil, nil
	}
	return m, nil
}

// A mappedHasher computes the digest of a disk and those of the ranges of its block map.
type mappedHasher struct {
	*digest.Hasher
	ranges *bmap.Summer // nil: there is no map
}

func newMappedHasher(m *bmap.Map) mappedHasher {
	h := mappedHasher{Hasher: digest.New(false)}
	if m != nil {
		h.ranges = bmap.NewSummer(m)
	}
	return h
}

// Write takes the next bytes of the disk. It never fails.
func (h mappedHasher) Write(p []byte) (int, error) {
	if h.ranges == nil {
		return h.Hasher.Write(p)
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = h.ranges.Write(p) })
	_, _ = h.Hasher.Write(p)
	both.Wait()
	return len(p), nil
}

// storeMap stores the block map of the disk in the image with this SHA-256; nil: it has none.
func (f *Function) storeMap(ctx context.Context, sha256 layout.SHA256, m *bmap.Map) error {
	if m == nil {
		return nil
	}
	data := m.Encode()
	_, err := f.Catalog.Put(ctx, layout.BmapKey(sha256), bytes.NewReader(data), int64(len(data)))
	if err != nil && !errors.Is(err, store.ErrChanged) { // one that was replaced has the same bytes
		return job.StoreFailed(err)
	}
	return nil
}
