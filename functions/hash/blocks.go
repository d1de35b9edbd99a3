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

// blocks reads r to its end, the next blocks while one is worked on: on two
// cores, what the reading takes costs a hash no time. The last pair has the
// error that ended it, io.EOF too, and may have bytes; whatever was read comes
// before. A block is good until the next one is asked for. Who stops before
// the end must close r, for the read that may be under way.
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
				full <- block{buf[:n], err} // has room for all that there are
				if err != nil {
					return
				}
			}
		}()
		for b := range full {
			if !yield(b.data, b.err) {
				return
			}
			free <- b.data[:blockBytes] // so has this
		}
	}
}
