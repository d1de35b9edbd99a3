package unpack

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// A gzipStream is one or more members (RFC 1952 section 2.2). The library decodes
// the deflate data only: its reader of gzip headers refuses names and comments of more
// than 511 bytes.
type gzipStream struct {
	in      *bufio.Reader
	inflate io.ReadCloser
	crc     uint32 // of the output of the member
	n       uint32 // bytes of output of the member, modulo 1<<32
	after   int64
}

func newGzip(in *bufio.Reader, _ memory) (stream, int64, error) {
	if err := gzipHeader(in); err != nil {
		return nil, 0, err
	}
	return &gzipStream{in: in, inflate: flate.NewReader(in)}, -1, nil
}

// Flags of a member (RFC 1952 section 2.3.1).
const (
	gzipSum      = 1 << 1
	gzipExtra    = 1 << 2
	gzipName     = 1 << 3
	gzipComment  = 1 << 4
	gzipReserved = 0xe0
)

// gzipHeader reads the header of a member (section 2.3).
func gzipHeader(in *bufio.Reader) error {
	s := &summer{in: in}
	read := func(n int) ([]byte, error) {
		b := make([]byte, n)
		for i := range b {
			var err error
			if b[i], err = s.ReadByte(); err != nil {
				return nil, unexpected(err)
			}
		}
		return b, nil
	}
	h, err := read(10)
	if err != nil {
		return err
	}
	flags := h[3]
	switch {
	case string(h[:2]) != "\x1f\x8b" || h[2] != 8:
		return errors.New("no header of a member")
	case flags&gzipReserved != 0:
		return &Error{Refused, 0, "the gzip data has a header of a kind that is not known here; compress the image again"}
	}
	if flags&gzipExtra != 0 {
		n, err := read(2)
		if err != nil {
			return err
		}
		if _, err := read(int(binary.LittleEndian.Uint16(n))); err != nil {
			return err
		}
	}
	for _, f := range []byte{gzipName, gzipComment} {
		for c := byte(1); flags&f != 0 && c != 0; {
			if c, err = s.ReadByte(); err != nil {
				return unexpected(err)
			}
		}
	}
	if flags&gzipSum != 0 {
		want := uint16(s.crc)
		n, err := read(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(n) != want {
			return errors.New("wrong checksum of a header")
		}
	}
	return nil
}

// unexpected returns err, or io.ErrUnexpectedEOF for io.EOF.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (g *gzipStream) Read(p []byte) (int, error) {
	n, err := g.inflate.Read(p)
	g.crc = crc32.Update(g.crc, crc32.IEEETable, p[:n])
	g.n += uint32(n)
	if errors.Is(err, io.EOF) {
		err = g.next()
	}
	return n, err
}

// next checks the trailer of a member (section 2.3.1) and begins the next one.
func (g *gzipStream) next() error {
	var trailer [8]byte
	if _, err := io.ReadFull(g.in, trailer[:]); err != nil {
		return unexpected(err)
	}
	if binary.LittleEndian.Uint32(trailer[:]) != g.crc || binary.LittleEndian.Uint32(trailer[4:]) != g.n {
		return errors.New("wrong checksum or size of a member")
	}
	magic, err := g.in.Peek(2)
	switch {
	case len(magic) == 0:
		return err
	case len(magic) == 1 && magic[0] != 0: // gzip treats it as half a magic
		_, _ = g.in.Discard(1) // it was peeked
		return io.ErrUnexpectedEOF
	case string(magic) != "\x1f\x8b":
		if g.after, err = skipTrailing(g.in); err != nil {
			return err
		}
		return io.EOF
	}
	if err := gzipHeader(g.in); err != nil {
		return err
	}
	g.crc, g.n = 0, 0
	return g.inflate.(flate.Resetter).Reset(g.in, nil)
}

func (g *gzipStream) trailing() int64 { return g.after }
func (g *gzipStream) Close()          { _ = g.inflate.Close() }
