package unpack

import (
	"encoding/binary"
	"errors"
)

// Probabilities are of a bit being 0, in units of 1/2048.
const (
	lzmaProbBits = 11
	lzmaProbInit = 1 << (lzmaProbBits - 1)
	lzmaMoveBits = 5 // of the adaption to each decoded bit
)

const (
	lzmaStates    = 12 // what the previous symbols were
	lzmaLiterals  = 7  // the first of the states that follow a match
	lzmaPositions = 1 << 4
	lzmaLiteral   = 0x300 // probabilities of a literal in a context
	lzmaContexts  = 1 << 4
	lzmaPacked    = 1 << 16 // the largest input of a decoder
	lzmaSymbol    = 64      // more input than a symbol can take
	lzmaMinMatch  = 2
	lzmaSlack     = 16 // bytes that copyMatch may write after a match
)

var errLZMA = errors.New("wrong codes")

// An lzmaRange is the state of the range decoder. Its methods return the new state rather
// than change it, which keeps the state in registers.
type lzmaRange struct {
	width, code uint32
	at          uint
	in          *[lzmaPacked + lzmaSymbol]byte
}

// normalize reads a byte if the range has become too narrow for a decision.
func (r lzmaRange) normalize() lzmaRange {
	if r.width < 1<<24 {
		r.width <<= 8
		r.code = r.code<<8 | uint32(r.in[r.at])
		r.at++
	}
	return r
}

// zero decodes a bit and returns whether it is 0. It is for bits that are well predicted.
// The range must be normalized.
func (r lzmaRange) zero(p *uint16) (lzmaRange, bool) {
	v := uint32(*p)
	bound := r.width >> lzmaProbBits * v
	if r.code < bound {
		r.width = bound
		*p = uint16(v + (1<<lzmaProbBits-v)>>lzmaMoveBits)
		return r, true
	}
	r.width -= bound
	r.code -= bound
	*p = uint16(v - v>>lzmaMoveBits)
	return r, false
}

// bit decodes a bit and appends it to symbol. It has no branch, since half of these bits
// would be mispredicted. The range must be normalized.
func (r lzmaRange) bit(p *uint16, symbol uint32) (lzmaRange, uint32) {
	v := uint32(*p)
	bound := r.width >> lzmaProbBits * v
	zero := uint32((int64(r.code) - int64(bound)) >> 63) // all ones if the bit is 0
	r.width = (r.width-bound)&^zero | bound&zero
	r.code -= bound &^ zero
	*p = uint16(v - uint32(int32(v-zero&(1<<lzmaProbBits-1<<lzmaMoveBits+1))>>lzmaMoveBits))
	return r, symbol<<1 + 1 + zero
}

// An lzmaLengths decodes the lengths of matches.
type lzmaLengths struct {
	long, longer uint16
	low, middle  [lzmaPositions][1 << 3]uint16
	high         [1 << 8]uint16
}

func (l *lzmaLengths) decode(r lzmaRange, position uint32) (lzmaRange, uint32) {
	var zero bool
	symbol := uint32(1)
	if r, zero = r.normalize().zero(&l.long); zero {
		tree := &l.low[position]
		for range 3 {
			r, symbol = r.normalize().bit(&tree[symbol], symbol)
		}
		return r, symbol - 1<<3 + lzmaMinMatch
	}
	if r, zero = r.normalize().zero(&l.longer); zero {
		tree := &l.middle[position]
		for range 3 {
			r, symbol = r.normalize().bit(&tree[symbol], symbol)
		}
		return r, symbol + lzmaMinMatch
	}
	for range 8 {
		r, symbol = r.normalize().bit(&l.high[symbol], symbol)
	}
	return r, symbol - 1<<8 + 2<<3 + lzmaMinMatch
}

// An lzmaDecoder decodes the symbols of LZMA to a dictionary.
type lzmaDecoder struct {
	// The dictionary is a ring of size bytes, of which those before pos were written
	// last. The number of bytes is a multiple of lzmaPositions.
	ring    []byte // with lzmaSlack more bytes
	size    int
	pos     int
	wrapped bool
	window  uint32 // the maximum distance of a match

	state                  uint32
	rep0, rep1, rep2, rep3 uint32 // distances of the last matches, less one
	rest                   int    // bytes of the last match that are not in the dictionary yet

	lc              uint
	lpMask, posMask uint32
	coder           lzmaRange
	end             uint // of the input
	match, rep      lzmaLengths
	isMatch         [lzmaStates][lzmaPositions]uint16
	isLong          [lzmaStates][lzmaPositions]uint16
	isRep           [lzmaStates]uint16
	isRep0          [lzmaStates]uint16
	isRep1          [lzmaStates]uint16
	isRep2          [lzmaStates]uint16
	slots           [4][1 << 6]uint16
	special         [128]uint16
	align           [1 << 4]uint16
	literals        [lzmaContexts * lzmaLiteral]uint16
	in              [lzmaPacked + lzmaSymbol]byte
}

// newLZMA returns a decoder with a dictionary of at least capacity bytes.
func newLZMA(capacity int64) *lzmaDecoder {
	size := (int(capacity) + lzmaSlack + lzmaPositions - 1) / lzmaPositions * lzmaPositions
	return &lzmaDecoder{ring: make([]byte, size+lzmaSlack), size: size}
}

// forget empties the dictionary.
func (d *lzmaDecoder) forget() {
	d.pos, d.wrapped = 0, false
	d.ring[d.size-1] = 0 // the byte before the first one
}

// setProperties sets the numbers of bits of contexts, and returns whether they are valid.
func (d *lzmaDecoder) setProperties(p byte) bool {
	lc, lp, pb := p%9, p/9%5, p/45
	d.lc, d.lpMask, d.posMask = uint(lc), 1<<lp-1, 1<<pb-1
	return pb <= 4 && lc+lp <= 4
}

// resetState forgets the previous symbols.
func (d *lzmaDecoder) resetState() {
	d.state, d.rep0, d.rep1, d.rep2, d.rep3, d.rest = 0, 0, 0, 0, 0, 0
	fill := func(p []uint16) {
		for i := range p {
			p[i] = lzmaProbInit
		}
	}
	for i := range d.isMatch {
		fill(d.isMatch[i][:])
		fill(d.isLong[i][:])
	}
	for _, p := range []*[lzmaStates]uint16{&d.isRep, &d.isRep0, &d.isRep1, &d.isRep2} {
		fill(p[:])
	}
	for i := range d.slots {
		fill(d.slots[i][:])
	}
	fill(d.special[:])
	fill(d.align[:])
	for _, l := range []*lzmaLengths{&d.match, &d.rep} {
		l.long, l.longer = lzmaProbInit, lzmaProbInit
		for i := range l.low {
			fill(l.low[i][:])
			fill(l.middle[i][:])
		}
		fill(l.high[:])
	}
	fill(d.literals[:])
}

// start begins to decode the first n bytes of d.in.
func (d *lzmaDecoder) start(n int) error {
	clear(d.in[n : n+lzmaSymbol])
	d.coder = lzmaRange{0xffffffff, binary.BigEndian.Uint32(d.in[1:]), 5, &d.in}
	d.end = uint(n)
	d.rest = 0
	if d.in[0] != 0 || n < 5 {
		return errLZMA
	}
	return nil
}

// finish returns whether the input has been decoded exactly.
func (d *lzmaDecoder) finish() bool {
	d.coder = d.coder.normalize()
	return d.rest == 0 && d.coder.code == 0 && d.coder.at == d.end
}

// decode writes the dictionary from d.pos to limit, which is at most d.size. If it returns
// an error, d.pos is where the correct bytes end.
func (d *lzmaDecoder) decode(limit int) error {
	if d.rest > 0 {
		d.copy(min(d.rest, limit-d.pos))
	}
	var err error
	ring, r, pos, state, zero := d.ring, d.coder, d.pos, d.state, false
	previous := ring[(pos+d.size-1)%d.size]
	for pos < limit {
		position := uint32(pos) & d.posMask
		if r, zero = r.normalize().zero(&d.isMatch[state][position]); zero {
			context := uint32(pos)&d.lpMask<<d.lc + uint32(previous)>>(8-d.lc)
			p := (*[lzmaLiteral]uint16)(d.literals[context*lzmaLiteral:])
			symbol := uint32(1)
			if state < lzmaLiterals {
				for symbol < 1<<8 {
					r, symbol = r.normalize().bit(&p[symbol], symbol)
				}
			} else {
				// The byte after the last match is a context as long as its bits are
				// those of the symbol.
				src := pos - int(d.rep0) - 1
				if src < 0 {
					src += d.size
				}
				after, same := uint32(ring[src]), uint32(1<<8)
				for symbol < 1<<8 {
					after <<= 1
					expected, before := after&same, symbol
					r, symbol = r.normalize().bit(&p[same+expected+symbol], symbol)
					same &= expected ^ (symbol - before<<1 - 1)
				}
			}
			if r.at > d.end {
				err = errLZMA
				break
			}
			previous = byte(symbol)
			ring[pos] = previous
			pos++
			state = uint32(lzmaAfterLiteral[state])
			continue
		}
		var n uint32
		after := uint32(0)
		if r, zero = r.normalize().zero(&d.isRep[state]); zero {
			d.rep3, d.rep2, d.rep1 = d.rep2, d.rep1, d.rep0
			r, n = d.match.decode(r, position)
			r, d.rep0 = d.distance(r, n)
			after = 7
		} else if r, zero = r.normalize().zero(&d.isRep0[state]); zero {
			if r, zero = r.normalize().zero(&d.isLong[state][position]); zero {
				n, after = 1, 9
			}
		} else {
			var distance uint32
			if r, zero = r.normalize().zero(&d.isRep1[state]); zero {
				distance = d.rep1
			} else {
				if r, zero = r.normalize().zero(&d.isRep2[state]); zero {
					distance = d.rep2
				} else {
					distance = d.rep3
					d.rep3 = d.rep2
				}
				d.rep2 = d.rep1
			}
			d.rep1 = d.rep0
			d.rep0 = distance
		}
		if n == 0 {
			r, n = d.rep.decode(r, position)
			after = 8
		}
		if state >= lzmaLiterals {
			after = min(after+3, 11)
		}
		state = after
		if r.at > d.end || d.rep0 >= d.window || int(d.rep0) >= pos && !d.wrapped {
			err = errLZMA
			break
		}
		d.rest, d.pos = int(n), pos
		d.copy(min(int(n), limit-pos))
		pos = d.pos
		previous = ring[pos-1]
	}
	d.coder, d.pos, d.state = r, pos, state
	return err
}

// lzmaAfterLiteral is the state after a literal.
var lzmaAfterLiteral = [lzmaStates]uint8{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5}

// distance decodes the distance, less one, of a match of n bytes.
func (d *lzmaDecoder) distance(r lzmaRange, n uint32) (lzmaRange, uint32) {
	slots := &d.slots[min(n-lzmaMinMatch, 3)]
	slot := uint32(1)
	for range 6 {
		r, slot = r.normalize().bit(&slots[slot], slot)
	}
	slot -= 1 << 6
	if slot < 4 {
		return r, slot
	}
	bits := slot>>1 - 1
	distance := (2 | slot&1) << bits
	if slot < 14 {
		return reverse(r, d.special[distance-slot:], bits, distance)
	}
	direct := uint32(0)
	for range bits - 4 {
		r = r.normalize()
		r.width >>= 1
		r.code -= r.width
		zero := uint32(int32(r.code) >> 31)
		r.code += r.width & zero
		direct = direct<<1 + 1 + zero
	}
	return reverse(r, d.align[:], 4, distance+direct<<4)
}

// reverse decodes bits, of which the lowest is the first, and adds them to n.
func reverse(r lzmaRange, p []uint16, bits, n uint32) (lzmaRange, uint32) {
	symbol := uint32(1)
	for i := range bits {
		before := symbol
		r, symbol = r.normalize().bit(&p[symbol], symbol)
		n += (symbol - before<<1) << i
	}
	return r, n
}

// copy appends n bytes of the last match to the dictionary.
func (d *lzmaDecoder) copy(n int) {
	dst, src := d.pos, d.pos-int(d.rep0)-1
	d.pos += n
	d.rest -= n
	if src < 0 {
		if src += d.size; src+n > d.size {
			for ; dst < d.pos; dst++ {
				d.ring[dst] = d.ring[src]
				if src++; src == d.size {
					src = 0
				}
			}
			return
		}
	} else if dst-src < 8 {
		for ; dst < d.pos; dst, src = dst+1, src+1 {
			d.ring[dst] = d.ring[src]
		}
		return
	}
	for ; dst < d.pos; dst, src = dst+8, src+8 {
		binary.LittleEndian.PutUint64(d.ring[dst:], binary.LittleEndian.Uint64(d.ring[src:]))
	}
}
