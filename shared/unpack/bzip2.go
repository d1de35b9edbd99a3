package unpack

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"io"
)

// A bzip2Stream is one or more streams of bzip2, which the standard library
// reads one after the other.
type bzip2Stream struct {
	in    *bufio.Reader
	r     io.Reader
	after int64
}

func newBzip2(in *bufio.Reader) *bzip2Stream {
	return &bzip2Stream{in: in, r: bzip2.NewReader(in)}
}

// errNoStream is what compress/bzip2 says of what follows the end of a stream
// and is none, of which it has read two bytes then.
const errNoStream = bzip2.StructuralError("bad magic value in continuation file")

func (b *bzip2Stream) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, errNoStream) {
		if b.after, err = skipTrailing(b.in); err == nil {
			err = io.EOF
		}
	}
	return n, err
}

func (b *bzip2Stream) trailing() int64 { return b.after }
func (b *bzip2Stream) Close()          {}
