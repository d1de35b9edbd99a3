// Package reader gives random access to one version of an object.
//
// If the store is on this machine's disk ([store.Direct]), reads go there. Otherwise
// the object is read in chunks of 1 MiB, with one request for each, and the eight most
// recently used are cached. So sequential reads take one request per MiB.
package reader

import (
	"context"
	"io"
	"slices"
	"sync"

	"imageroot/shared/store"
)

const (
	// chunkBytes is the size of a chunk.
	chunkBytes = 1 << 20
	// maxChunks is the number of cached chunks, for reads that alternate between
	// several offsets.
	maxChunks = 8
)

// A Reader is an io.ReaderAt of one version of an object. Reads are safe for concurrent
// use. The caller must close it after all of them have returned.
type Reader struct {
	ctx     context.Context
	objects store.Objects
	key     store.Key
	version store.Version
	body    io.ReadCloser // of the first request
	direct  store.Direct  // nil: read in chunks

	mu     sync.Mutex
	chunks []*chunk // least recently used first
}

type chunk struct {
	number int64
	once   sync.Once
	data   []byte
	err    error
}

// Open opens version v of an object. If the object is another version, Open or a later
// read returns [store.ErrChanged]. Other errors are the store's. All reads use ctx.
func Open(ctx context.Context, objects store.Objects, key store.Key, v store.Version) (*Reader, error) {
	r := &Reader{ctx: ctx, objects: objects, key: key, version: v}
	if v.Size == 0 {
		return r, nil // an empty object has no range
	}
	var err error
	if r.body, err = r.get(0); err != nil {
		return nil, err
	}
	var ok bool
	if r.direct, ok = r.body.(store.Direct); ok {
		return r, nil
	}
	first := &chunk{}
	first.once.Do(func() { first.data, first.err = r.take(r.body, 0) })
	r.body = nil
	r.chunks = []*chunk{first}
	return r, first.err
}

// Size returns the size of the object in bytes.
func (r *Reader) Size() int64 { return r.version.Size }

// Local reports whether reads send no requests.
func (r *Reader) Local() bool { return r.direct != nil }

// get opens the chunk with this number.
func (r *Reader) get(number int64) (io.ReadCloser, error) {
	body, info, err := r.objects.Get(r.ctx, r.key, store.Range{Offset: number * chunkBytes, Length: chunkBytes}, r.version.ETag)
	if err == nil && info.Size != r.version.Size {
		body.Close()
		err = store.ErrChanged
	}
	return body, err
}

// take reads the body of a chunk and closes it.
func (r *Reader) take(body io.ReadCloser, number int64) ([]byte, error) {
	defer body.Close()
	data := make([]byte, min(chunkBytes, r.version.Size-number*chunkBytes))
	_, err := io.ReadFull(body, data)
	return data, err
}

// ReadAt implements io.ReaderAt. If the object was replaced, the error is
// [store.ErrChanged].
func (r *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	if r.direct != nil {
		return r.direct.ReadObjectAt(p, off)
	}
	for n < len(p) {
		if off >= r.version.Size {
			return n, io.EOF
		}
		c := r.chunk(off / chunkBytes)
		c.once.Do(func() {
			body, err := r.get(c.number)
			if err == nil {
				c.data, err = r.take(body, c.number)
			}
			c.err = err
		})
		if c.err != nil {
			r.drop(c)
			return n, c.err
		}
		m := copy(p[n:], c.data[off%chunkBytes:])
		n += m
		off += int64(m)
	}
	return n, nil
}

// Extent returns the number of bytes from off to limit at most that are all stored, or
// all a hole, which reads as zeros. Only the store of this machine's disk knows of holes.
func (r *Reader) Extent(off, limit int64) (n int64, hole bool, err error) {
	if r.direct != nil {
		return r.direct.ObjectExtent(off, limit)
	}
	return limit - off, false, nil
}

// OwnHoles reports whether holes are those of another program's file, and not zeros for
// which the store has made holes.
func (r *Reader) OwnHoles() bool { return r.direct != nil && r.direct.ObjectOwnHoles() }

// Same reports whether it is known, without a request, that the object has not changed
// since it was opened.
func (r *Reader) Same() bool { return r.direct != nil && r.direct.ObjectSame() }

// chunk returns the chunk with this number. A new chunk may replace the least recently
// used one.
func (r *Reader) chunk(number int64) *chunk {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := slices.IndexFunc(r.chunks, func(c *chunk) bool { return c.number == number })
	c := &chunk{number: number}
	switch {
	case n >= 0:
		c = r.chunks[n]
		r.chunks = slices.Delete(r.chunks, n, n+1)
	case len(r.chunks) == maxChunks:
		r.chunks = slices.Delete(r.chunks, 0, 1)
	}
	r.chunks = append(r.chunks, c)
	return c
}

// drop forgets a chunk that could not be read.
func (r *Reader) drop(c *chunk) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.chunks = slices.DeleteFunc(r.chunks, func(other *chunk) bool { return other == c })
}

// Close implements io.Closer. Further calls do nothing.
func (r *Reader) Close() error {
	body := r.body
	r.body, r.chunks = nil, nil
	if body == nil {
		return nil
	}
	return body.Close()
}
