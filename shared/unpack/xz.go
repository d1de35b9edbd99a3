package unpack

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"
)

// An xzStream is one or more streams of the .xz file format, version 1.2.1
// (https://tukaani.org/xz/xz-file-format.txt), whose sections the comments name.
type xzStream struct {
	in     *bufio.Reader
	lzma2  lzma2
	first  bool     // no stream has begun yet
	block  *xzBlock // nil: none is being read
	flags  [2]byte  // of the stream being read
	inside bool     // of a stream

	// What the index must contain (section 4.3): the number of blocks, and a hash
	// of their sizes, since there may be too many to keep.
	blocks uint64
	sizes  hash.Hash
}

// An xzBlock is a block being read. Sizes are in bytes.
type xzBlock struct {
	out             int64
	header          int64
	saidIn, saidOut int64     // according to the header; negative: unknown
	check           hash.Hash // nil: none
}

func newXZ(in *bufio.Reader, window int64, grow func(int64) error) (stream, int64, error) {
	return &xzStream{in: in, lzma2: lzma2{in: in, window: window, grow: grow}, first: true}, xzWindow(in), nil
}

func (x *xzStream) Close() {}

func (x *xzStream) Read(p []byte) (int, error) {
	for {
		if !x.inside {
			if err := x.begin(); err != nil {
				return 0, err
			}
		}
		if x.block == nil {
			if err := x.next(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := x.lzma2.Read(p)
		x.block.out += int64(n)
		if x.block.check != nil {
			x.block.check.Write(p[:n])
		}
		if errors.Is(err, io.EOF) {
			err = x.end()
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// begin skips padding (section 2.2) and reads the header of the next stream (2.1.1),
// or returns io.EOF.
func (x *xzStream) begin() error {
	var h [12]byte
	for {
		_, err := io.ReadFull(x.in, h[:4])
		if errors.Is(err, io.EOF) && !x.first {
			return io.EOF
		}
		if err != nil {
			return unexpected(err)
		}
		if x.first || binary.LittleEndian.Uint32(h[:]) != 0 {
			break
		}
	}
	if _, err := io.ReadFull(x.in, h[4:]); err != nil {
		return unexpected(err)
	}
	if !bytes.Equal(h[:6], []byte("\xfd7zXZ\x00")) || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return errors.New("no header of a stream")
	}
	x.first, x.inside, x.flags, x.blocks, x.sizes = false, true, [2]byte(h[6:8]), 0, sha256.New()
	_, err := newCheck(x.flags)
	return err
}

// newCheck returns the hash for the checks of a stream's blocks (2.1.1.2).
func newCheck(flags [2]byte) (hash.Hash, error) {
	switch flags {
	case [2]byte{0, 0}:
		return nil, nil
	case [2]byte{0, 1}:
		return crc32.NewIEEE(), nil
	case [2]byte{0, 4}:
		return crc64.New(crc64.MakeTable(crc64.ECMA)), nil
	case [2]byte{0, 10}:
		return sha256.New(), nil
	}
	return nil, &Error{Refused, 0, "the xz data has checksums of a kind that is not known here; compress the image again, with xz 5"}
}

// next begins the next block (3.1), or reads the index and the footer that end the
// stream.
func (x *xzStream) next() error {
	length, err := x.in.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	if length == 0 {
		return x.tail()
	}
	h := make([]byte, (int(length)+1)*4)
	h[0] = length
	if _, err := io.ReadFull(x.in, h[1:]); err != nil {
		return unexpected(err)
	}
	fields, sum := h[:len(h)-4], h[len(h)-4:]
	if crc32.ChecksumIEEE(fields) != binary.LittleEndian.Uint32(sum) {
		return errors.New("wrong checksum of a block header")
	}
	b, dictionary, err := parseBlock(fields)
	if err != nil {
		return err
	}
	b.header = int64(len(h))
	if dictionary > x.lzma2.window {
		return &Error{Refused, 0, fmt.Sprintf("the xz data has a dictionary of %s, and no more than %s are held in memory for it; compress the image again with xz -9 at the most", size(dictionary), size(x.lzma2.window))}
	}
	if b.saidOut >= 0 {
		dictionary = min(dictionary, b.saidOut) // references cannot reach further
	}
	b.check, _ = newCheck(x.flags) // begin has checked the error
	x.lzma2.begin(dictionary)
	x.block = b
	return nil
}

// parseBlock reads the fields of a block's header (3.1), whose first byte is its
// length. The block refers back up to dictionary bytes.
func parseBlock(fields []byte) (b *xzBlock, dictionary int64, err error) {
	b = &xzBlock{saidIn: -1, saidOut: -1}
	flags, r := fields[1], bytes.NewReader(fields[2:])
	for _, f := range []struct {
		flag byte
		said *int64
	}{{0x40, &b.saidIn}, {0x80, &b.saidOut}} {
		if flags&f.flag == 0 {
			continue
		}
		n, err := binary.ReadUvarint(r)
		if err != nil || n > 1<<62 {
			return nil, 0, errors.New("wrong size in a block header")
		}
		*f.said = int64(n)
	}
	// The only filter is LZMA2 (3.1.5), whose property is the size of its dictionary
	// (5.3.1).
	filter := make([]byte, 3)
	if _, err := io.ReadFull(r, filter); err != nil || flags&0x3f != 0 || filter[0] != 0x21 || filter[1] != 1 || filter[2] > 40 {
		return nil, 0, &Error{Refused, 0, "the xz data uses filters other than LZMA2, which are not read here; compress the image again without them"}
	}
	return b, int64(2|filter[2]&1) << (filter[2]/2 + 11), nil
}

// xzWindow returns the dictionary size of the first block, and 0 if it is unknown.
func xzWindow(in *bufio.Reader) int64 {
	const header = 12 // of the stream
	h, _ := in.Peek(header + 1)
	if len(h) > header && h[header] != 0 {
		h, _ = in.Peek(header + (int(h[header])+1)*4)
		if fields := h[header:]; len(fields) >= 8 {
			if _, dictionary, err := parseBlock(fields); err == nil {
				return dictionary
			}
		}
	}
	return 0
}

// end reads the padding (3.3) and the check (3.4) after a block's data.
func (x *xzStream) end() error {
	b := x.block
	x.block = nil
	var sum []byte
	if b.check != nil {
		sum = b.check.Sum(nil)
	}
	if f := x.flags[1]; f == 1 || f == 4 { // 3.4: little endian
		slices.Reverse(sum)
	}
	padding := -x.lzma2.n & 3
	after := make([]byte, int(padding)+len(sum))
	if _, err := io.ReadFull(x.in, after); err != nil {
		return unexpected(err)
	}
	switch {
	case b.saidIn >= 0 && b.saidIn != x.lzma2.n, b.saidOut >= 0 && b.saidOut != b.out:
		return errors.New("a block is not as long as its header says")
	case !bytes.Equal(after[:padding], make([]byte, padding)):
		return errors.New("wrong padding of a block")
	case !bytes.Equal(after[padding:], sum):
		return errors.New("wrong checksum of a block")
	}
	x.blocks++
	addSizes(x.sizes, uint64(b.header+x.lzma2.n)+uint64(len(sum)), uint64(b.out))
	return nil
}

// addSizes adds a block to the hash of all sizes.
func addSizes(h hash.Hash, unpadded, uncompressed uint64) {
	h.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, unpadded), uncompressed))
}

// tail reads the index (section 4) after its first byte, and the footer (2.1.2).
func (x *xzStream) tail() error {
	index := &summer{in: x.in}
	index.add(0)
	blocks, err := binary.ReadUvarint(index)
	if err != nil {
		return unexpected(err)
	}
	said := sha256.New()
	for i := uint64(0); i < blocks && blocks == x.blocks; i++ {
		unpadded, err := binary.ReadUvarint(index)
		if err != nil {
			return unexpected(err)
		}
		uncompressed, err := binary.ReadUvarint(index)
		if err != nil {
			return unexpected(err)
		}
		addSizes(said, unpadded, uncompressed)
	}
	if blocks != x.blocks || !bytes.Equal(said.Sum(nil), x.sizes.Sum(nil)) {
		return errors.New("the index is of other blocks")
	}
	for index.n&3 != 0 {
		if b, err := index.ReadByte(); err != nil || b != 0 {
			return cmp.Or(unexpected(err), errors.New("wrong padding of the index"))
		}
	}
	var f [4 + 12]byte
	if _, err := io.ReadFull(x.in, f[:]); err != nil {
		return unexpected(err)
	}
	footer := f[4:]
	if binary.LittleEndian.Uint32(f[:]) != index.crc || string(footer[10:]) != "YZ" || [2]byte(footer[8:]) != x.flags ||
		crc32.ChecksumIEEE(footer[4:10]) != binary.LittleEndian.Uint32(footer) ||
		(int64(binary.LittleEndian.Uint32(footer[4:]))+1)*4 != index.n+4 {
		return errors.New("wrong checksum or size of the index")
	}
	x.inside = false
	return nil
}

// A summer counts the bytes read from in and computes their CRC-32.
type summer struct {
	in  *bufio.Reader
	n   int64
	crc uint32
}

func (s *summer) ReadByte() (byte, error) {
	b, err := s.in.ReadByte()
	if err == nil {
		s.add(b)
	}
	return b, err
}

func (s *summer) add(b byte) {
	s.n++
	s.crc = crc32.Update(s.crc, crc32.IEEETable, []byte{b})
}
