package hash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"imageroot/shared/bmap"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
)

// A holedDisk is a disk that knows its holes.
type holedDisk interface {
	io.ReaderAt
	Size() int64
	// Hole returns the number of bytes from off to limit at most that are all a hole, or all
	// not. The run may continue behind it.
	Hole(off, limit int64) (n int64, hole bool, err error)
}

// A plainDisk is the disk in a plain image, whose holes are those of the file if another
// program has made it: the store makes holes of zeros.
type plainDisk struct{ *reader.Reader }

func (d plainDisk) Hole(off, limit int64) (int64, bool, error) {
	if !d.OwnHoles() {
		return limit - off, false, nil
	}
	return d.Extent(off, limit)
}

// mapHoles returns the block map of a disk, or nil if it has no hole of a block, or a fault,
// which reading it finds.
func mapHoles(ctx context.Context, disk holedDisk) (*bmap.Map, error) {
	m := bmap.New(disk.Size())
	for off := int64(0); off < m.Size; {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		n, hole, err := disk.Hole(off, m.Size)
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

// A mappedHasher computes the digest of a disk and those of the ranges of its block maps.
type mappedHasher struct {
	*digest.Hasher
	maps []*bmap.Reading
}

// newMappedHasher returns a mappedHasher that sets the digests of made, and compares those of
// published. Both may be nil.
func newMappedHasher(made *bmap.Map, published *bmap.Reading) mappedHasher {
	h := mappedHasher{Hasher: digest.New(false)}
	if made != nil {
		h.maps = append(h.maps, made.Sums())
	}
	if published != nil {
		h.maps = append(h.maps, published)
	}
	return h
}

// Write takes the next bytes of the disk. It never fails.
func (h mappedHasher) Write(p []byte) (int, error) {
	var all sync.WaitGroup
	for _, m := range h.maps {
		all.Go(func() { _, _ = m.Write(p) })
	}
	_, _ = h.Hasher.Write(p)
	all.Wait()
	return len(p), nil
}

// A published is the block map that a publisher has put beside an image.
type published struct {
	content.Bmap
	text   []byte
	m      *bmap.Map     // nil if there is a problem
	before store.Version // that the record had when the check began
}

// findMap returns the block map beside the image at a place, or else the one that was fetched
// with these bytes; its File is "" if there is none.
func (f *Function) findMap(ctx context.Context, sha256 layout.SHA256, at place) (p published, err error) {
	var keys []store.Key
	if at.Local {
		keys = layout.BmapSidecars(at.name)
	}
	for _, key := range append(keys, layout.PublishedKey(sha256)) {
		if p, err = f.readMap(ctx, key); !errors.Is(err, store.ErrNotFound) {
			return p, err
		}
	}
	return published{}, nil
}

// readMap reads the block map at key, or returns [store.ErrNotFound].
func (f *Function) readMap(ctx context.Context, key store.Key) (p published, err error) {
	p.File = key
	root := f.Images
	if p.Fetched() {
		root = f.Catalog
	}
	body, info, err := root.Get(ctx, key, store.All, "")
	if err != nil {
		return p, err
	}
	defer body.Close()
	p.Version = info.Version
	if info.Size > bmap.MaxBytes {
		p.Problem = fmt.Sprintf("it has %d bytes, and at most %d are read", info.Size, bmap.MaxBytes)
		return p, nil
	}
	if p.text, err = io.ReadAll(body); err != nil {
		return p, err
	}
	sum := digest.New(false)
	_, _ = sum.Write(p.text) // never fails
	p.SHA256 = sum.Sum256()
	m, err := bmap.Parse(p.text)
	if err != nil {
		p.Problem = err.Error()
		return p, nil
	}
	p.m = m
	return p, nil
}

// inspectMap compares the publisher's block map of the image at a place with the one that the
// record of its content has, and returns the record. One that was not compared with the disk yet
// is pending, and so is the map that this program makes if a publisher's is gone.
func (f *Function) inspectMap(ctx context.Context, rec content.Record, at place) (content.Record, error) {
	// A check does not read the disk in a virtual image that is compressed.
	if f.runner(job.Check).Off() || rec.NoDisk() != "" || rec.Inner != "" {
		return rec, nil
	}
	found, err := f.findMap(ctx, rec.SHA256, at)
	if err != nil {
		return rec, err
	}
	changed := func(rec *content.Record) bool {
		return rec.Bmap == nil && found.File != "" || rec.Bmap != nil && (rec.Bmap.File != found.File || !rec.Bmap.Version.Equal(found.Version))
	}
	if !changed(&rec) {
		return rec, nil
	}
	if rec.Bmap != nil && rec.Bmap.File != "" && rec.Bmap.File != found.File && !rec.Bmap.Fetched() {
		// Another name of this content may have it.
		if _, err := f.Images.Head(ctx, rec.Bmap.File); !errors.Is(err, store.ErrNotFound) {
			return rec, err
		}
	}
	rec, _, err = record.Change(ctx, f.Catalog, layout.ContentKey(rec.SHA256), func(rec *content.Record, exists bool) error {
		if !exists {
			return record.ErrKeep
		}
		// It is read again for each try: another inspection may have recorded a newer one.
		if found, err = f.findMap(ctx, rec.SHA256, at); err != nil {
			return err
		}
		if !changed(rec) {
			return record.ErrKeep
		}
		to := found.Bmap
		if to.Pending = true; rec.Bmap != nil && to.SHA256 != "" && to.SHA256 == rec.Bmap.SHA256 { // it was moved or copied
			to.Pending, to.Problem = rec.Bmap.Pending, rec.Bmap.Problem
		}
		rec.Bmap = &to
		return nil
	})
	return rec, err
}

// storeMap stores the block map of the disk in the image with this SHA-256: the publisher's
// if nothing is wrong with it, else the one that was made, or none.
func (f *Function) storeMap(ctx context.Context, sha256 layout.SHA256, made *bmap.Map, p *published) error {
	var text []byte
	switch {
	case p != nil && p.File != "" && p.Problem == "":
		text = p.text
	case made != nil:
		text = made.Encode()
	case p != nil:
		if err := f.Catalog.Delete(ctx, layout.BmapKey(sha256)); err != nil {
			return job.StoreFailed(err)
		}
		return nil
	default:
		return nil
	}
	_, err := f.Catalog.Put(ctx, layout.BmapKey(sha256), bytes.NewReader(text), int64(len(text)))
	if err != nil && !errors.Is(err, store.ErrChanged) { // by another check of the same bytes
		return job.StoreFailed(err)
	}
	return nil
}

// publishedMap returns the publisher's block map that is to be compared with the disk.
func (f *Function) publishedMap(ctx context.Context, b *content.Bmap) (*published, error) {
	p := published{}
	var err error
	if b.File != "" {
		p, err = f.readMap(ctx, b.File)
	}
	if errors.Is(err, store.ErrNotFound) {
		p.Bmap, err = content.Bmap{File: b.File, Version: b.Version, Problem: "it was removed"}, nil
	}
	p.before = b.Version
	return &p, err
}

// settle records in b the result of a check, which has compared p; nil: none. If an inspection
// has found another file meanwhile, that one stays pending.
func settle(b *content.Bmap, verdict content.Check, p *published) {
	switch {
	case verdict.Verdict != content.Good || p == nil:
		b.Pending = false
		if b.File != "" && b.Problem == "" {
			b.Problem = "it was not compared with the disk"
		}
	case p.File == b.File && (b.Version.Equal(p.before) || b.Version.Equal(p.Version)):
		*b = p.Bmap
	}
}
