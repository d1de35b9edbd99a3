package unpack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"

	"github.com/klauspost/compress/flate"
)

// bgzfBytes is the maximum size of a member of BGZF, compressed or not.
const bgzfBytes = 64 << 10

// bgzfMost is the maximum number of members in memory. Each takes 170 KiB.
const bgzfMost = 16

// A bgzfMember is a member of gzip whose header says where it ends (BGZF, section 4.1 of the
// SAM format), so that it is decompressed while others are.
type bgzfMember struct {
	in      bytes.Reader
	inflate io.ReadCloser
	packed  []byte // the data and the trailer of the member
	data    []byte
	end     int64        // the offset of the input after the member
	done    <-chan error // receives the result of decompress
}

// isBGZF returns whether the member whose header was read is one of BGZF: if it had the length
// of its header, another one would follow, or nothing.
func (g *gzipStream) isBGZF() bool {
	if g.length < gzipTrailer {
		return false
	}
	p, err := g.in.Peek(g.length + 2)
	if len(p) < g.length || binary.LittleEndian.Uint32(p[g.length-4:]) > bgzfBytes {
		return false
	}
	return string(p[g.length:]) == gzipMagic || len(p) == g.length && errors.Is(err, io.EOF)
}

// room returns whether a further member can be decompressed ahead of the output.
func (g *gzipStream) room() bool {
	return len(g.ahead) < min(2*runtime.GOMAXPROCS(0), bgzfMost)
}

// start has the member decompressed whose header was read.
func (g *gzipStream) start() error {
	m := &bgzfMember{}
	if n := len(g.idle); n > 0 {
		m, g.idle = g.idle[n-1], g.idle[:n-1]
	}
	if m.packed == nil {
		m.packed, m.data = make([]byte, bgzfBytes), make([]byte, 0, bgzfBytes)
		m.inflate = flate.NewReader(&m.in)
	}
	m.packed = m.packed[:g.length]
	if _, err := io.ReadFull(g.in, m.packed); err != nil {
		return unexpected(err)
	}
	m.end = g.at()
	g.decompress(m)
	return nil
}

// decompress has m decompressed, which is read after the members that are ahead already.
func (g *gzipStream) decompress(m *bgzfMember) {
	m.done = ahead(m.decompress)
	g.ahead = append(g.ahead, m)
}

// decompress decompresses the member.
func (m *bgzfMember) decompress() error {
	m.in.Reset(m.packed)
	if err := m.inflate.(flate.Resetter).Reset(&m.in, nil); err != nil {
		return err
	}
	trailer := m.packed[len(m.packed)-gzipTrailer:]
	m.data = m.data[:binary.LittleEndian.Uint32(trailer[4:])]
	if _, err := io.ReadFull(m.inflate, m.data); err != nil {
		return errBGZF(err)
	}
	var more [1]byte
	switch n, err := io.ReadFull(m.inflate, more[:]); {
	case n > 0 || m.in.Len() != gzipTrailer:
		return errGzipMember
	case !errors.Is(err, io.EOF):
		return errBGZF(err)
	case crc32.ChecksumIEEE(m.data) != binary.LittleEndian.Uint32(trailer):
		return errGzipMember
	}
	return nil
}

// errBGZF returns err, which is damage if the data of a member ends before the member does.
func errBGZF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errGzipMember
	}
	return err
}

// readMember reads from the first member ahead. It returns no bytes at the end of one.
func (g *gzipStream) readMember(p []byte) (int, error) {
	if g.member == nil {
		g.member, g.ahead = g.ahead[0], g.ahead[1:]
		if err := <-g.member.done; err != nil {
			return 0, err
		}
		g.left = g.member.data
	}
	n := copy(p, g.left)
	if g.left = g.left[n:]; len(g.left) == 0 {
		g.idle, g.member = append(g.idle, g.member), nil
	}
	return n, nil
}

// consumed returns the offset of the input after the member of BGZF that is being read.
func (g *gzipStream) consumed() (int64, bool) {
	switch {
	case g.member != nil:
		return g.member.end, true
	case len(g.ahead) > 0:
		return g.ahead[0].end, true
	}
	return 0, false
}
