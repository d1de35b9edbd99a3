package catalog

import (
	"context"
	"io"
	"slices"
	"sync"

	"imageroot/shared/qcow2"
	"imageroot/shared/store"
)

const (
	// chunkBytes is how much of an object is asked for at a time where each time
	// is a request.
	chunkBytes = 1 << 20
	// maxChunks is how many of those are kept: those that reads from several
	// places at once come back to.
	maxChunks = 8
)

// An objectFile reads one version of an object in any order: from the disk
// where the store is on it, else in chunks. It may be read from several
// goroutines at once, and must be closed after they have ended.
type objectFile struct {
	ctx    context.Context
	object *object
	body   io.ReadCloser // of the first look
	direct store.Direct  // nil: in chunks

	mu     sync.Mutex
	chunks []*chunk // the one that was used last comes last
}

type chunk struct {
	number int64
	once   sync.Once
	data   []byte
	err    error
}

// openFile opens the version of an object that c is; store.ErrChanged where
// there is another one by now.
func openFile(ctx context.Context, c *object) (*objectFile, error) {
	f := &objectFile{ctx: ctx, object: c}
	if c.info.Size == 0 {
		return f, nil // of nothing there are no ranges
	}
	var err error
	if f.body, err = f.get(0); err != nil {
		return nil, err
	}
	var ok bool
	if f.direct, ok = f.body.(store.Direct); ok {
		return f, nil
	}
	first := &chunk{}
	first.once.Do(func() { first.data, first.err = f.take(f.body, 0) })
	f.body = nil
	f.chunks = []*chunk{first}
	return f, first.err
}

// get opens the chunk of that number.
func (f *objectFile) get(number int64) (io.ReadCloser, error) {
	body, info, err := f.object.root.Get(f.ctx, f.object.key, store.Range{Offset: number * chunkBytes, Length: chunkBytes}, f.object.info.ETag)
	if err == nil && info.Size != f.object.info.Size {
		body.Close()
		err = store.ErrChanged
	}
	return body, err
}

// take reads the body of a chunk and closes it.
func (f *objectFile) take(body io.ReadCloser, number int64) ([]byte, error) {
	defer body.Close()
	data := make([]byte, min(chunkBytes, f.object.info.Size-number*chunkBytes))
	_, err := io.ReadFull(body, data)
	return data, err
}

// ReadAt implements io.ReaderAt.
func (f *objectFile) ReadAt(p []byte, off int64) (n int, err error) {
	if f.direct != nil {
		return f.direct.ReadObjectAt(p, off)
	}
	for n < len(p) {
		if off >= f.object.info.Size {
			return n, io.EOF
		}
		c := f.chunk(off / chunkBytes)
		c.once.Do(func() {
			body, err := f.get(c.number)
			if err == nil {
				c.data, err = f.take(body, c.number)
			}
			c.err = err
		})
		if c.err != nil {
			return n, c.err
		}
		m := copy(p[n:], c.data[off%chunkBytes:])
		n += m
		off += int64(m)
	}
	return n, nil
}

// chunk returns a chunk that is kept, or a new one in place of that which was
// not used for longest. What failed is not kept.
func (f *objectFile) chunk(number int64) *chunk {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := slices.IndexFunc(f.chunks, func(c *chunk) bool { return c.number == number })
	c := &chunk{number: number}
	switch {
	case n >= 0:
		c = f.chunks[n]
		f.chunks = slices.Delete(f.chunks, n, n+1)
	case len(f.chunks) == maxChunks:
		f.chunks = slices.Delete(f.chunks, 0, 1)
	}
	f.chunks = append(f.chunks, c)
	return c
}

// Close implements io.Closer.
func (f *objectFile) Close() error {
	if f.body == nil {
		return nil
	}
	return f.body.Close()
}

// A section is an io.ReaderAt with an end, which may be known to be zero in
// places.
type section interface {
	io.ReaderAt
	Size() int64 // bytes
	// Block is how many bytes, or a multiple of how many, are best read at once.
	Block() int64
	// Zeros returns how many bytes from off on are known to be zero.
	Zeros(off int64) (int64, error)
}

// An objectSection is all of an object, of which nothing is known.
type objectSection struct{ *objectFile }

func (s objectSection) Size() int64              { return s.object.info.Size }
func (objectSection) Block() int64               { return aheadBytes }
func (objectSection) Zeros(int64) (int64, error) { return 0, nil }

// A diskSection is the disk in a qcow2 image.
type diskSection struct{ *qcow2.Image }

func (s diskSection) Block() int64 { return max(aheadBytes, s.Header().ClusterSize) }
