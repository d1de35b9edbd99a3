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
	at      func() int64
	inflate io.ReadCloser
	inside  bool   // a member is being read from in
	crc     uint32 // of the output of the member
	n       uint32 // bytes of output of the member, modulo 1<<32
	after   int64

	length int // of the rest of the member whose header was read, according to BGZF; 0: unknown
	ahead  []*bgzfMember
	idle   []*bgzfMember
	failed error       // of what follows ahead
	member *bgzfMember // the one that is being read, or nil
	left   []byte      // the bytes left of it
}

const (
	gzipMagic   = "\x1f\x8b"
	gzipTrailer = 8 // bytes
)

var errGzipMember = errors.New("wrong checksum or size of a member")

func newGzip(in *bufio.Reader, memory memory) (stream, int64, error) {
	g := &gzipStream{in: in, at: memory.at, inflate: flate.NewReader(in)}
	return g, -1, g.header()
}

// Flags of a member (RFC 1952 section 2.3.1).
const (
	gzipSum      = 1 << 1
	gzipExtra    = 1 << 2
	gzipName     = 1 << 3
	gzipComment  = 1 << 4
	gzipReserved = 0xe0
)

// header reads the header of a member (section 2.3).
func (g *gzipStream) header() error {
	s := &summer{in: g.in}
	g.length = 0
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
	case string(h[:2]) != gzipMagic || h[2] != 8:
		return errors.New("no header of a member")
	case flags&gzipReserved != 0:
		return &Error{Refused, 0, "the gzip data has a header of a kind that is not known here; compress the image again"}
	}
	if flags&gzipExtra != 0 {
		n, err := read(2)
		if err != nil {
			return err
		}
		extra, err := read(int(binary.LittleEndian.Uint16(n)))
		if err != nil {
			return err
		}
		if len(extra) == 6 && string(extra[:4]) == "BC\x02\x00" { // as in all of BGZF's
			g.length = int(binary.LittleEndian.Uint16(extra[4:])) + 1
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
	g.length = max(0, g.length-int(s.n))
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
	for {
		switch {
		case g.inside:
			n, err := g.inflate.Read(p)
			g.crc = crc32.Update(g.crc, crc32.IEEETable, p[:n])
			g.n += uint32(n)
			if errors.Is(err, io.EOF) {
				g.inside = false
				err = g.trailer()
			}
			if n > 0 || len(p) == 0 || err != nil {
				return n, err
			}
		case g.member == nil && g.failed == nil && g.room() && g.isBGZF():
			if g.failed = g.start(); g.failed == nil {
				g.failed = g.next()
			}
		case g.member != nil || len(g.ahead) > 0:
			if n, err := g.readMember(p); n > 0 || len(p) == 0 || err != nil {
				return n, err
			}
		case g.failed != nil:
			return 0, g.failed
		default:
			g.crc, g.n, g.inside = 0, 0, true
			if err := g.inflate.(flate.Resetter).Reset(g.in, nil); err != nil {
				return 0, err
			}
		}
	}
}

// trailer checks the trailer of a member (section 2.3.1) and begins the next one.
func (g *gzipStream) trailer() error {
	var trailer [gzipTrailer]byte
	if _, err := io.ReadFull(g.in, trailer[:]); err != nil {
		return unexpected(err)
	}
	if binary.LittleEndian.Uint32(trailer[:]) != g.crc || binary.LittleEndian.Uint32(trailer[4:]) != g.n {
		return errGzipMember
	}
	return g.next()
}

// next reads the header of the next member, and returns io.EOF if there is none.
func (g *gzipStream) next() error {
	magic, err := g.in.Peek(2)
	switch {
	case len(magic) == 0:
		return err
	case len(magic) == 1 && magic[0] != 0: // gzip treats it as half a magic
		_, _ = g.in.Discard(1) // it was peeked
		return io.ErrUnexpectedEOF
	case string(magic) != gzipMagic:
		if g.after, err = skipTrailing(g.in); err != nil {
			return err
		}
		return io.EOF
	}
	return g.header()
}

func (g *gzipStream) trailing() int64 { return g.after }

func (g *gzipStream) Close() {
	for _, m := range g.ahead {
		<-m.done
	}
	g.ahead, g.failed = nil, io.ErrClosedPipe
	_ = g.inflate.Close()
}
