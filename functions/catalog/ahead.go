package catalog

import (
	"errors"
	"io"
	"iter"
)

const (
	// aheadBytes is the minimum size of a block, which is read at once.
	aheadBytes = 1 << 20
	// aheadBlocks is the maximum number of blocks in flight: enough for two
	// processors and for the latency of a store.
	aheadBlocks = 4
)

// ordered runs tasks concurrently and yields their results in the order of the
// tasks. It begins with one task and adds one with each result, so that a short
// read causes little work. It stops at the first error, and returns when no task
// is running.
func ordered[T any](tasks iter.Seq[func() (T, error)]) iter.Seq2[T, error] {
	type result struct {
		value T
		err   error
	}
	return func(yield func(T, error) bool) {
		next, stop := iter.Pull(tasks)
		defer stop()
		var under []chan result
		defer func() {
			for _, c := range under {
				<-c
			}
		}()
		for most := 1; ; most = min(most+1, aheadBlocks) {
			for len(under) < most {
				task, ok := next()
				if !ok {
					break
				}
				c := make(chan result, 1)
				under = append(under, c)
				go func() {
					v, err := task()
					c <- result{v, err}
				}()
			}
			if len(under) == 0 {
				return
			}
			r := <-under[0]
			under = under[1:]
			if !yield(r.value, r.err) || r.err != nil {
				return
			}
		}
	}
}

// buffers is a pool of unused blocks. It is safe for concurrent use.
type buffers struct {
	size int64
	free chan []byte
}

func newBuffers(size int64) buffers { return buffers{size, make(chan []byte, aheadBlocks+1)} }

// take returns a block of n bytes with arbitrary content.
func (b buffers) take(n int64) []byte {
	select {
	case p := <-b.free:
		return p[:n]
	default:
		return make([]byte, b.size)[:n]
	}
}

func (b buffers) give(p []byte) {
	select {
	case b.free <- p:
	default:
	}
}

// An aheadReader reads a section in order, with some blocks read ahead. The caller
// must close it.
type aheadReader struct {
	src    section
	offset int64 // of the next Read
	at     int64 // of block
	free   buffers
	block  []byte // the unread rest of whole
	whole  []byte // the block that was read last
	next   func() ([]byte, error, bool)
	stop   func()
	err    error // the first failure to read
}

func newAheadReader(src section) *aheadReader {
	return &aheadReader{src: src, free: newBuffers(src.Block())}
}

// blocks returns the tasks that read the section from off to its end.
func (a *aheadReader) blocks(off int64) iter.Seq[func() ([]byte, error)] {
	return func(yield func(func() ([]byte, error)) bool) {
		for off < a.src.Size() {
			at := off
			// The first block ends at a multiple of the block size, so that
			// clusters are read whole.
			n := min(a.free.size-at%a.free.size, a.src.Size()-at)
			off += n
			if !yield(func() ([]byte, error) {
				p := a.free.take(n)
				m, err := a.src.ReadAt(p, at)
				if int64(m) == n {
					err = nil // it may be io.EOF
				}
				return p[:m], err
			}) {
				return
			}
		}
	}
}

// Read implements [io.Reader]. With an empty p it waits for the next block, and
// returns the error of reading it.
func (a *aheadReader) Read(p []byte) (int, error) {
	if a.offset >= a.src.Size() {
		return 0, io.EOF
	}
	if a.offset != a.at {
		a.Close()
		a.at = a.offset
	}
	if a.next == nil {
		a.next, a.stop = iter.Pull2(ordered(a.blocks(a.offset)))
	}
	for len(a.block) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.whole != nil {
			a.free.give(a.whole)
		}
		var ok bool
		if a.block, a.err, ok = a.next(); !ok {
			a.err = io.ErrUnexpectedEOF
		}
		a.whole = a.block
	}
	n := copy(p, a.block)
	a.block = a.block[n:]
	a.offset += int64(n)
	a.at = a.offset
	return n, nil
}

// Seek implements [io.Seeker].
func (a *aheadReader) Seek(offset int64, whence int) (int64, error) {
	offset, err := seek(offset, whence, a.offset, a.src.Size())
	if err == nil {
		a.offset = offset
	}
	return offset, err
}

// seek returns the new offset of a Seek in a body of size bytes; at is the current one.
func seek(offset int64, whence int, at, size int64) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += at
	case io.SeekEnd:
		offset += size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	return offset, nil
}

// Close stops reading ahead. It returns when no read is running.
func (a *aheadReader) Close() {
	if a.stop != nil {
		a.stop()
	}
	a.next, a.stop, a.block, a.whole = nil, nil, nil, nil
}

func (a *aheadReader) failure() error { return a.err }
