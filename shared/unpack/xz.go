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
	"runtime"
	"slices"
)

// An xzStream is one or more streams of the .xz file format, version 1.2.1
// (https://tukaani.org/xz/xz-file-format.txt), whose sections the comments name.
type xzStream struct {
	in     *bufio.Reader
	memory memory
	lzma2  lzma2
	first  bool     // no stream has begun yet
	block  *xzBlock // whose header was read last; nil: none, or it is decoded by a job
	begun  bool     // whether lzma2 reads the block
	flags  [2]byte  // of the stream being read
	inside bool     // of a stream
	err    error    // of what follows the jobs
	jobs   xzJobs

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
	dictionary      int64     // it refers back up to
	check           hash.Hash // nil: none
	littleEndian    bool      // the check
}

func newXZ(in *bufio.Reader, memory memory) (stream, int64, error) {
	x := &xzStream{in: in, memory: memory, lzma2: lzma2{in: in, memory: memory}, first: true}
	x.jobs.serial = runtime.GOMAXPROCS(0) == 1
	return x, xzWindow(in), nil
}

func (x *xzStream) Close() { x.jobs.stop() }

func (x *xzStream) Read(p []byte) (int, error) {
	for {
		ready := x.ready()
		switch {
		case len(x.jobs.queue) > 0:
			n, err := x.jobs.read(p, !ready)
			if n > 0 || err != nil || len(p) == 0 {
				return n, err
			}
		case x.err != nil:
			return 0, x.err
		case x.begun:
			n, err := x.readBlock(p)
			if n > 0 || err != nil || len(p) == 0 {
				return n, err
			}
			continue
		}
		if ready {
			x.err = x.step()
		}
	}
}

// ready returns whether step can be called.
func (x *xzStream) ready() bool {
	return x.err == nil && !x.begun && (x.block == nil || len(x.jobs.queue) == 0 || x.jobs.room(x.block, x.memory))
}

// step reads the next header, index and footer, or block.
func (x *xzStream) step() error {
	switch {
	case !x.inside:
		return x.begin()
	case x.block == nil:
		return x.next()
	case x.jobs.room(x.block, x.memory):
		b := x.block
		x.block = nil
		return x.startJob(b)
	}
	// Blocks after it could be decoded by jobs again, but then a file could require any
	// number of allocations.
	x.jobs = xzJobs{serial: true}
	x.lzma2.begin(x.block.dictionary)
	x.begun = true
	return nil
}

// readBlock reads a block without a job.
func (x *xzStream) readBlock(p []byte) (int, error) {
	out, err := x.lzma2.advance(len(p))
	n := copy(p, out)
	x.block.write(p[:n])
	if errors.Is(err, io.EOF) {
		b := x.block
		x.block, x.begun = nil, false
		after, err := b.readAfter(x.in, x.lzma2.n)
		if err != nil {
			return n, err
		}
		x.count(b, x.lzma2.n, b.out)
		return n, b.verify(x.lzma2.n, after)
	}
	return n, err
}

// startJob reads a block and starts a job that decodes it.
func (x *xzStream) startJob(b *xzBlock) error {
	j := x.jobs.get(b)
	n, err := io.ReadFull(x.in, j.packed)
	j.packed = j.packed[:n]
	if err == nil {
		j.after, err = b.readAfter(x.in, b.saidIn)
	}
	err = unexpected(err)
	j.cut, j.end = err, x.memory.at()
	x.count(b, b.saidIn, b.saidOut)
	x.jobs.start(j)
	return err
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
	if dictionary > x.memory.window {
		return &Error{Refused, 0, fmt.Sprintf("the xz data has a dictionary of %s, and no more than %s are held in memory for it; compress the image again with xz -9 at the most", size(dictionary), size(x.memory.window))}
	}
	if b.saidOut >= 0 {
		dictionary = min(dictionary, b.saidOut) // references cannot reach further
	}
	b.dictionary = dictionary
	b.check, _ = newCheck(x.flags)                      // begin has checked the error
	b.littleEndian = x.flags[1] == 1 || x.flags[1] == 4 // 3.4
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

// write adds decoded bytes to the check.
func (b *xzBlock) write(p []byte) {
	b.out += int64(len(p))
	if b.check != nil {
		b.check.Write(p)
	}
}

// readAfter reads the padding (3.3) and the check (3.4) after a block's data of n bytes.
func (b *xzBlock) readAfter(in io.Reader, n int64) ([]byte, error) {
	after := make([]byte, -n&3+b.checkSize())
	_, err := io.ReadFull(in, after)
	return after, unexpected(err)
}

// verify checks a block whose n bytes of data are decoded.
func (b *xzBlock) verify(n int64, after []byte) error {
	padding := -n & 3
	var sum []byte
	if b.check != nil {
		sum = b.check.Sum(nil)
	}
	if b.littleEndian {
		slices.Reverse(sum)
	}
	switch {
	case b.saidIn >= 0 && b.saidIn != n, b.saidOut >= 0 && b.saidOut != b.out:
		return errXZSizes
	case !bytes.Equal(after[:padding], make([]byte, padding)):
		return errors.New("wrong padding of a block")
	case !bytes.Equal(after[padding:], sum):
		return errors.New("wrong checksum of a block")
	}
	return nil
}

var errXZSizes = errors.New("a block is not as long as its header says")

// count adds a block to what the index must contain.
func (x *xzStream) count(b *xzBlock, in, out int64) {
	x.blocks++
	addSizes(x.sizes, uint64(b.header+in+b.checkSize()), uint64(out))
}

// checkSize returns the number of bytes of the check.
func (b *xzBlock) checkSize() int64 {
	if b.check == nil {
		return 0
	}
	return int64(b.check.Size())
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
