package unpack

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"io"
)

// A bzip2Stream is one or more streams of bzip2, which the standard library
// reads one after the other.
type bzip2Stream struct {
	in    *bzip2Source
	r     io.Reader
	after int64
}

func newBzip2(in *bufio.Reader) *bzip2Stream {
	source := &bzip2Source{Reader: in}
	return &bzip2Stream{in: source, r: bzip2.NewReader(source)}
}

// What compress/bzip2 says of a header that is none: right after its first two
// bytes, its third or its fourth.
const (
	errNoStream = bzip2.StructuralError("bad magic value in continuation file")
	errNoThird  = bzip2.StructuralError("non-Huffman entropy encoding")
	errNoLevel  = bzip2.StructuralError("invalid compression level")
)

// bzip2Header is how long a header is: "BZh" and a digit.
const bzip2Header = 4

func (b *bzip2Stream) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err == nil && b.in.made == 0 {
		return n, nil
	}
	read := 0 // since the end of the stream before
	switch {
	case errors.Is(err, errNoStream):
		read = 2
	case errors.Is(err, errNoThird):
		read = 3
	case errors.Is(err, errNoLevel):
		read = 4
	}
	if read > 0 && b.in.n > bzip2Header { // else it is of the first stream
		return n, b.trail(b.in.last[bzip2Header-read : max(bzip2Header-b.in.made, bzip2Header-read)])
	}
	if b.in.made > 0 {
		return 0, io.ErrUnexpectedEOF // what is read then was made of it
	}
	return n, err
}

// trail is about what follows the end of a stream, of which the head was read
// and is no header: io.EOF if that may be.
func (b *bzip2Stream) trail(head []byte) error {
	if b.in.made > 0 && len(head) > 0 && bytes.HasPrefix([]byte("BZh"), head) {
		return io.ErrUnexpectedEOF // all that there is of a header
	}
	n, err := skipTrailing(b.in.Reader)
	if err != nil {
		return err
	}
	if n > 0 {
		b.after = int64(len(head)) + n
	} else {
		b.after = int64(len(bytes.TrimRight(head, "\x00")))
	}
	return io.EOF
}

func (b *bzip2Stream) trailing() int64 { return b.after }
func (b *bzip2Stream) Close()          {}

// A bzip2Source makes up two bytes where the input ends. compress/bzip2 reads
// two after each stream and says the same of an end in the middle of these and
// in the middle of a stream; with those made up, it finds no stream in the one
// case, and still an end in the other.
type bzip2Source struct {
	*bufio.Reader
	n    int64             // how many bytes of the input were read
	last [bzip2Header]byte // bytes that were read, made up or not
	made int               // how many were made up
}

// ReadByte implements io.ByteReader.
func (s *bzip2Source) ReadByte() (byte, error) {
	var c byte
	if s.made == 0 {
		var err error
		if c, err = s.Reader.ReadByte(); err == nil {
			s.n++
		} else if errors.Is(err, io.EOF) {
			s.made = 1
		} else {
			return 0, err
		}
	} else if s.made++; s.made > 2 {
		return 0, io.EOF
	}
	copy(s.last[:], s.last[1:])
	s.last[bzip2Header-1] = c
	return c, nil
}
