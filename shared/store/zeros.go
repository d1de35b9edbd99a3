package store

import (
	"bytes"
	"iter"
)

// pageBytes is the size of a page of most file systems. Pages of zeros can be holes.
const pageBytes = 4 << 10

var zeroPage [pageBytes]byte

// Runs yields the runs of pages of b that are all zeros, with true, and the others. The
// last page may be short.
func Runs(b []byte) iter.Seq2[[]byte, bool] {
	return func(yield func([]byte, bool) bool) {
		begin, last := 0, false
		for at := 0; at < len(b); at += pageBytes {
			page := b[at:min(at+pageBytes, len(b))]
			zeros := bytes.Equal(page, zeroPage[:len(page)])
			if zeros != last && at > begin {
				if !yield(b[begin:at], last) {
					return
				}
				begin = at
			}
			last = zeros
		}
		if begin < len(b) {
			yield(b[begin:], last)
		}
	}
}
