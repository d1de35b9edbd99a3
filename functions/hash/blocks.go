package hash

import (
	"io"
	"iter"

	"imageroot/shared/store"
)

const (
	// blockBytes is large enough that the hash, not the requests, is the
	// limit, and readAhead is how many blocks there are.
	blockBytes = 1 << 20
	readAhead  = 3
)

// blocks reads r to its end, and the next blocks while the caller works on one:
// on two cores, reading costs a hash no time. The last pair has the error that
// ended the reading, io.EOF too, and may have bytes; all that was read comes
// before. A block is valid until the next one is asked for. A caller that stops
// before the end must close r, for the read that may be in flight.
func blocks(r io.Reader) iter.Seq2[[]byte, error] {
	type block struct {
		data []byte
		err  error
	}
	return func(yield func([]byte, error) bool) {
		free, full := make(chan []byte, readAhead), make(chan block, readAhead)
		for range readAhead {
			free <- make([]byte, blockBytes)
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
			free <- b.data[:blockBytes] // as this has
		}
	}
}
