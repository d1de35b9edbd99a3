package hash

import (
	"io"
	"iter"

	"imageroot/shared/store"
)

const (
	// blockBytes is large enough that hashing, not reading, is the limit. readAhead
	// is the number of blocks.
	blockBytes = 1 << 20
	readAhead  = 3
)

// blocks yields the bytes of r in blocks of size bytes, and reads ahead while the caller
// works on one: on two cores, reading does not delay hashing. The last pair has the error
// that ended the reading, which may be io.EOF, and may have bytes. A block is valid
// until the next iteration. A caller that stops before the end must close r, since
// a read may be in flight.
func blocks(r io.Reader, size int) iter.Seq2[[]byte, error] {
	type block struct {
		data []byte
		err  error
	}
	return func(yield func([]byte, error) bool) {
		free, full := make(chan []byte, readAhead), make(chan block, readAhead)
		for range readAhead {
			free <- make([]byte, size)
		}
		defer close(free)
		go func() {
			defer close(full)
			for buf := range free {
				n, err := store.ReadBlock(r, buf)
				full <- block{buf[:n], err} // has room for all blocks
				if err != nil {
					return
				}
			}
		}()
		for b := range full {
			if !yield(b.data, b.err) {
				return
			}
			free <- b.data[:size] // has room, too
		}
	}
}

// An aheadReader is a reader of [blocks]. The caller must call stop after the last Read.
type aheadReader struct {
	next  func() ([]byte, error, bool)
	stop  func()
	block []byte
	err   error
}

func newAheadReader(r io.Reader, size int) *aheadReader {
	next, stop := iter.Pull2(blocks(r, size))
	return &aheadReader{next: next, stop: stop}
}

// Read implements [io.Reader].
func (a *aheadReader) Read(p []byte) (int, error) {
	if len(a.block) == 0 && a.err == nil {
		a.block, a.err, _ = a.next()
	}
	n := copy(p, a.block)
	if a.block = a.block[n:]; len(a.block) == 0 {
		return n, a.err
	}
	return n, nil
}
