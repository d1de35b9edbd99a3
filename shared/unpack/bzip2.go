package unpack

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/bits"
	"runtime"
)

// A bzip2Stream is one or more streams of bzip2. It accepts and refuses what bzip2
// 1.0.8 does, whose decompress.c is the only description of the format.
// compress/bzip2 differs: it decodes incomplete codes as other symbols, and accepts a
// block that ends in a run without its length.
//
// The codes of blocks are read one after the other, since nothing says where the next block
// begins. The Burrows-Wheeler transforms of several blocks are undone in parallel.
type bzip2Stream struct {
	in     *bufio.Reader
	memory memory
	after  int64

	// The bits read from in and not used yet, which are the lowest of bits, and the
	// first error of reading.
	bits  uint64
	nbits uint
	err   error

	level  int // of the stream: blocks have up to level times 100,000 bytes; 0: no stream yet
	crc    uint32
	ahead  []*bzip2Block // whose codes are read
	idle   []*bzip2Block
	failed error // of what follows ahead

	// The block being read, or nil; the bytes left of it; and its checksum.
	block    *bzip2Block
	left     []byte
	blockCRC uint32
	// Four equal bytes are followed by the number of further ones.
	last        byte
	run, repeat int

	selectors [bzip2Selectors]uint8
	codes     [bzip2Codes]bzip2Code
}

const (
	bzip2Symbols   = 258           // maximum in a code: 255 bytes, two for runs, and the end
	bzip2Selectors = 2 + 900000/50 // further ones are read and ignored
	bzip2Codes     = 6
	bzip2Group     = 50 // symbols per selector
	bzip2Longest   = 20 // bits of a symbol
	bzip2Fast      = 10 // bits of an index into bzip2Code.fast
)

var errBzip2 = errors.New("wrong codes of a block")

func newBzip2(in *bufio.Reader, memory memory) (stream, int64, error) {
	return &bzip2Stream{in: in, memory: memory}, bzip2BlockBytes, nil
}

func (b *bzip2Stream) trailing() int64 { return b.after }

func (b *bzip2Stream) Close() {
	for _, block := range b.ahead {
		<-block.done
	}
	b.ahead, b.failed = nil, io.ErrClosedPipe
}

// consumed returns the offset of the input after the block being read.
func (b *bzip2Stream) consumed() (int64, bool) {
	if b.block == nil {
		return 0, false
	}
	return b.block.end, true
}

func (b *bzip2Stream) Read(p []byte) (int, error) {
	for {
		switch {
		case b.block != nil:
			n := b.drain(p)
			if n > 0 || len(p) == 0 {
				b.blockCRC = bzip2CRC(b.blockCRC, p[:n])
				return n, nil
			}
			if b.run == 4 {
				return 0, errors.New("a block ends in a run without its length")
			}
			if b.blockCRC != b.block.wantCRC {
				return 0, errors.New("wrong checksum of a block")
			}
			b.idle, b.block = append(b.idle, b.block), nil
		case b.failed == nil && b.room():
			b.failed = b.step()
		case len(b.ahead) > 0:
			b.block, b.ahead = b.ahead[0], b.ahead[1:]
			if err := <-b.block.done; err != nil {
				return 0, err
			}
			b.left, b.blockCRC, b.run, b.repeat = b.block.data, 0, 0, 0
		default:
			return 0, b.failed
		}
	}
}

// room returns whether there is room for a further block.
func (b *bzip2Stream) room() bool {
	n := len(b.ahead)
	return n == 0 || n < runtime.GOMAXPROCS(0) && (len(b.idle) > 0 || b.memory.spare(int64(n+1)*bzip2BlockBytes))
}

// step reads the header of a stream, a block, or the end of a stream.
func (b *bzip2Stream) step() error {
	if b.level == 0 {
		return b.begin()
	}
	switch magic := uint64(b.read(24))<<24 | uint64(b.read(24)); {
	case b.err != nil:
		return b.err
	case magic == 0x314159265359:
		err := b.decode()
		if b.err != nil { // the cause of the other error
			return b.err
		}
		return err
	case magic == 0x177245385090:
		sum := b.read(32)
		if b.err != nil {
			return b.err
		}
		if sum != b.crc {
			return errors.New("wrong checksum of a stream")
		}
		b.nbits = 0 // the padding to a whole byte
		b.level = 0
		return b.follow()
	default:
		return errors.New("no header of a block")
	}
}

// begin reads the header of a stream.
func (b *bzip2Stream) begin() error {
	var h [4]byte
	if _, err := io.ReadFull(b.in, h[:]); err != nil {
		return unexpected(err)
	}
	if string(h[:3]) != "BZh" || h[3] < '1' || h[3] > '9' {
		return errors.New("no header of a stream")
	}
	b.level, b.crc = int(h[3]-'0'), 0
	return nil
}

// follow checks whether another stream follows.
func (b *bzip2Stream) follow() error {
	h, err := b.in.Peek(4)
	switch {
	case len(h) == 0:
		return err
	case len(h) < 4 && bytes.HasPrefix([]byte("BZh"), h):
		_, _ = b.in.Discard(len(h)) // they were peeked
		return io.ErrUnexpectedEOF
	case len(h) == 4 && string(h[:3]) == "BZh" && h[3] >= '1' && h[3] <= '9':
		return nil
	}
	if b.after, err = skipTrailing(b.in); err != nil {
		return err
	}
	return io.EOF
}

// fill reads until n bits, at most 32, are available.
func (b *bzip2Stream) fill(n uint) error {
	for b.nbits < n {
		c, err := b.in.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		b.bits = b.bits<<8 | uint64(c)
		b.nbits += 8
	}
	return nil
}

// read returns the next n bits, which are 0 after the end of the input.
func (b *bzip2Stream) read(n uint) uint32 {
	if b.err == nil {
		b.err = b.fill(n)
	}
	if b.err != nil {
		return 0
	}
	b.nbits -= n
	return uint32(b.bits>>b.nbits) & (1<<n - 1)
}

// A bzip2Code is a Huffman code, built as hbCreateDecodeTables does.
type bzip2Code struct {
	min         uint // bits of the shortest symbol
	limit, base [bzip2Longest + 3]int32
	perm        [bzip2Symbols]uint16
	n           int32                  // symbols
	fast        [1 << bzip2Fast]uint16 // symbol, and its length in the lowest 5 bits; 0: unknown
}

func (c *bzip2Code) set(lengths []uint8) {
	c.min, c.n = bzip2Longest, 0
	longest := uint(0)
	clear(c.base[:])
	clear(c.limit[:])
	for _, n := range lengths {
		c.min, longest = min(c.min, uint(n)), max(longest, uint(n))
		c.base[n+1]++
	}
	for i := c.min; i <= longest; i++ {
		for symbol, n := range lengths {
			if uint(n) == i {
				c.perm[c.n] = uint16(symbol)
				c.n++
			}
		}
	}
	for i := 1; i < len(c.base); i++ {
		c.base[i] += c.base[i-1]
	}
	v := int32(0)
	for i := c.min; i <= longest; i++ {
		v += c.base[i+1] - c.base[i]
		c.limit[i] = v - 1
		v <<= 1
	}
	for i := c.min + 1; i <= longest; i++ {
		c.base[i] = (c.limit[i-1]+1)<<1 - c.base[i]
	}
	for v := range c.fast {
		c.fast[v] = 0
		for n := c.min; n <= bzip2Fast; n++ {
			if symbol, ok := c.symbol(int32(v>>(bzip2Fast-n)), n); ok {
				c.fast[v] = symbol<<5 | uint16(n)
				break
			}
		}
	}
}

// symbol returns the symbol whose code is n bits long, if there is one.
func (c *bzip2Code) symbol(bits int32, n uint) (uint16, bool) {
	i := bits - c.base[n]
	if bits > c.limit[n] || i < 0 || i >= c.n {
		return 0, false
	}
	return c.perm[i], true
}

// decodeSymbol reads a symbol, bit by bit.
func (b *bzip2Stream) decodeSymbol(c *bzip2Code) (uint16, error) {
	bits := int32(b.read(c.min))
	for n := c.min; n <= bzip2Longest && b.err == nil; n++ {
		if bits <= c.limit[n] {
			if symbol, ok := c.symbol(bits, n); ok {
				return symbol, nil
			}
			break
		}
		bits = bits<<1 | int32(b.read(1))
	}
	return 0, errBzip2
}

// decode reads a block after its magic, and has its transform undone.
func (b *bzip2Stream) decode() error {
	sum := b.read(32)
	b.crc = (b.crc<<1 | b.crc>>31) ^ sum
	if b.read(1) != 0 {
		return &Error{Refused, 0, "the bzip2 data has randomised blocks, which no bzip2 since 1999 makes; decompress it with bzip2 and compress it again"}
	}
	origin := int(b.read(24))
	symbols := make([]byte, 0, 256)
	ranges := b.read(16)
	for i := range 16 {
		if ranges>>(15-i)&1 == 0 {
			continue
		}
		used := b.read(16)
		for j := range 16 {
			if used>>(15-j)&1 != 0 {
				symbols = append(symbols, byte(i*16+j))
			}
		}
	}
	codes, selectors := int(b.read(3)), int(b.read(15))
	if len(symbols) == 0 || codes < 2 || codes > bzip2Codes || selectors == 0 {
		return errBzip2
	}
	order := [bzip2Codes]uint8{0, 1, 2, 3, 4, 5} // codes, most recently used first
	for i := range selectors {
		n := 0
		for ; b.read(1) != 0; n++ {
			if n+1 >= codes {
				return errBzip2
			}
		}
		if i < len(b.selectors) {
			c := order[n]
			copy(order[1:n+1], order[:n])
			order[0], b.selectors[i] = c, c
		}
	}
	selectors = min(selectors, len(b.selectors))
	var lengths [bzip2Symbols]uint8
	all := lengths[:len(symbols)+2]
	for i := range codes {
		n := int(b.read(5))
		for j := range all {
			for {
				if n < 1 || n > bzip2Longest {
					return errBzip2
				}
				if b.read(1) == 0 {
					break
				}
				n += 1 - 2*int(b.read(1))
			}
			all[j] = uint8(n)
		}
		b.codes[i].set(all)
	}
	if b.err != nil {
		return b.err
	}
	block := &bzip2Block{}
	if n := len(b.idle); n > 0 {
		block, b.idle = b.idle[n-1], b.idle[:n-1]
	}
	if err := b.decodeBlock(block, symbols, b.selectors[:selectors]); err != nil {
		return err
	}
	if origin >= len(block.data) {
		return errors.New("a block begins outside of itself")
	}
	block.origin, block.wantCRC, block.end = origin, sum, b.memory.at()
	b.start(block)
	return nil
}

// start has the transform of a block undone.
func (b *bzip2Stream) start(block *bzip2Block) {
	block.done = ahead(block.untransform)
	b.ahead = append(b.ahead, block)
}

// decodeBlock reads the symbols of a block and undoes its move-to-front coding and
// run-length coding of the first position.
func (b *bzip2Stream) decodeBlock(block *bzip2Block, symbols, selectors []byte) error {
	most, end := b.level*100_000, uint16(len(symbols)+1)
	if cap(block.data) < most {
		block.data = make([]byte, most)
	}
	data := block.data[:most]
	var front [256]byte // symbols, most recently used first
	copy(front[:], symbols)
	var code *bzip2Code
	n, run, power := 0, 0, 1
	bits, nbits := b.bits, b.nbits // in registers
	for left := 0; ; left-- {
		if left == 0 {
			if len(selectors) == 0 {
				return errBzip2
			}
			code, selectors, left = &b.codes[selectors[0]], selectors[1:], bzip2Group
		}
		if nbits < bzip2Fast && b.in.Buffered() >= 4 {
			next, _ := b.in.Peek(4) // they are buffered
			bits = bits<<32 | uint64(binary.BigEndian.Uint32(next))
			nbits += 32
			_, _ = b.in.Discard(4)
		}
		symbol := uint16(0)
		if nbits >= bzip2Fast {
			symbol = code.fast[bits>>((nbits-bzip2Fast)&63)&(1<<bzip2Fast-1)]
		}
		if symbol != 0 {
			nbits -= uint(symbol & 31)
			symbol >>= 5
		} else {
			var err error
			b.bits, b.nbits = bits, nbits
			if symbol, err = b.decodeSymbol(code); err != nil {
				return err
			}
			bits, nbits = b.bits, b.nbits
		}
		if symbol < 2 {
			if power >= 2<<20 {
				return errBzip2
			}
			run += power << symbol
			power <<= 1
			continue
		}
		if run > 0 {
			if run > most-n {
				return errors.New("a block is too long")
			}
			c, more := front[0], data[n:n+run]
			for i := range more {
				more[i] = c
			}
			n += run
			run, power = 0, 1
		}
		if symbol == end {
			b.bits, b.nbits = bits, nbits
			block.data = data[:n]
			return nil
		}
		if n == most {
			return errors.New("a block is too long")
		}
		i := uint8(symbol - 1)
		c := front[i]
		if i < 16 {
			for ; i > 0; i-- {
				front[i] = front[i-1]
			}
		} else {
			copy(front[1:], front[:i])
		}
		front[0] = c
		data[n] = c
		n++
	}
}

// drain copies the next bytes of the block to p. If it returns less than len(p), the
// block has ended.
func (b *bzip2Stream) drain(p []byte) int {
	n, used, run, last := 0, 0, b.run, b.last
	for n < len(p) {
		if b.repeat > 0 {
			p[n] = last
			n++
			b.repeat--
			continue
		}
		if used == len(b.left) {
			break
		}
		c := b.left[used]
		used++
		switch {
		case run == 4:
			b.repeat, run = int(c), 0
			continue
		case run > 0 && c == last:
			run++
		default:
			run, last = 1, c
		}
		p[n] = c
		n++
	}
	b.left, b.run, b.last = b.left[used:], run, last
	return n
}

// bzip2CRC updates a CRC-32 with the bit order opposite to that of hash/crc32.
func bzip2CRC(crc uint32, p []byte) uint32 {
	crc = bits.Reverse32(crc)
	var reversed [512]byte
	for len(p) > 0 {
		n := copy(reversed[:], p)
		for i, c := range reversed[:n] {
			reversed[i] = bits.Reverse8(c)
		}
		crc = crc32.Update(crc, crc32.IEEETable, reversed[:n])
		p = p[n:]
	}
	return bits.Reverse32(crc)
}
