package store

import (
	"errors"
	"io"
)

// PartSize returns the smallest multiple of unit, in bytes, that divides size bytes
// into no more than most parts.
func PartSize(size, unit, most int64) int64 {
	most *= unit
	return unit * max(1, (size+most-1)/most)
}

// ReadBlock reads until b is full or r returns an error, and returns that error: io.EOF
// at the end of r, even if b is not full. Unlike io.ReadFull, it does not convert that
// to io.ErrUnexpectedEOF, which is the error of a truncated body.
func ReadBlock(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// ReadUpTo returns the next n bytes of r, or fewer and no error if r ends before.
func ReadUpTo(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	n, err := ReadBlock(r, b)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}
