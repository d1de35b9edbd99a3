package unpack

import (
	"encoding/binary"
	"errors"
	"io"
)

// lzma2MinWindow is the smallest dictionary.
const lzma2MinWindow = 4 << 10

// An lzma2 reads the LZMA2 data of one block of xz after another. All share a dictionary,
// although a file can require any size in any number of blocks.
type lzma2 struct {
	in         io.Reader
	memory     memory
	decoder    *lzmaDecoder // nil before the first chunk
	capacity   int64        // of decoder's dictionary
	dictionary int64        // of the block
	n          int64        // bytes of the block read

	// The least control byte of the next chunk that is allowed, apart from 0 and 1.
	least byte

	// The chunk being read.
	out    int   // bytes of output left
	packed bool  // compressed
	err    error // of reading the input, which ends before the chunk
}

// begin begins a block that refers back up to dictionary bytes.
func (l *lzma2) begin(dictionary int64) { l.dictionary, l.least, l.n = dictionary, 0xe0, 0 }

// advance decodes at most n bytes, which are valid until the next call. It returns io.EOF
// at the end of the block, and reads nothing after that.
func (l *lzma2) advance(n int) ([]byte, error) {
	if l.out == 0 {
		if err := l.next(); err != nil {
			return nil, err
		}
	}
	d := l.decoder
	from := d.pos
	limit := from + min(n, l.out, d.size-from)
	var err error
	if l.packed {
		err = d.decode(limit)
	} else {
		n, err = io.ReadFull(l.in, d.ring[from:limit])
		l.n += int64(n)
		d.pos += n
		err = unexpected(err)
	}
	out := d.ring[from:d.pos]
	l.out -= len(out)
	if d.pos == d.size {
		d.pos, d.wrapped = 0, true
	}
	if err == nil && l.out == 0 && l.packed && !d.finish() {
		err = errors.New("a chunk is not as long as its data")
	}
	if err != nil && l.err != nil {
		err = l.err
	}
	return out, err
}

// next reads the header of the next chunk, which the .xz specification does not
// define: a control byte (what is reset, whether the chunk is compressed), the size of
// the output less one, the compressed size less one, and properties.
func (l *lzma2) next() error {
	var h [6]byte
	read := func(p []byte) error {
		n, err := io.ReadFull(l.in, p)
		l.n += int64(n)
		return unexpected(err)
	}
	if err := read(h[:1]); err != nil {
		return err
	}
	control, length := h[0], 3
	switch {
	case control == 0:
		return io.EOF
	case l.least == 0xe0 && control != 1 && control < 0xe0:
		return errors.New("a block begins without a dictionary")
	case control >= 0xc0:
		length = 6
	case control >= 0x80 && control >= l.least:
		length = 5
	case control > 2:
		return errors.New("a chunk of no kind that there is")
	}
	if err := read(h[1:length]); err != nil {
		return err
	}
	if l.least == 0xe0 {
		if err := l.allocate(); err != nil {
			return err
		}
	}
	d := l.decoder
	if control == 1 || control >= 0xe0 {
		d.forget()
		l.least = 0xc0
	}
	l.out = int(binary.BigEndian.Uint16(h[1:])) + 1
	if l.packed = control >= 0x80; !l.packed {
		return nil
	}
	l.out += int(control&0x1f) << 16
	if control >= 0xc0 {
		if !d.setProperties(h[5]) {
			return errors.New("wrong properties of a chunk")
		}
		l.least = 0
	}
	if control >= 0xa0 {
		d.resetState()
	}
	// Decode what there is, if the input ends in the chunk.
	body := d.in[:int(binary.BigEndian.Uint16(h[3:]))+1]
	n, err := io.ReadFull(l.in, body)
	l.n += int64(n)
	if l.err = unexpected(err); l.err != nil && n < 5 {
		return l.err
	}
	return d.start(n)
}

// allocate makes a decoder for the block, unless there is one whose dictionary suffices.
func (l *lzma2) allocate() error {
	if l.decoder == nil || l.dictionary > l.capacity {
		// At least double it, or blocks of growing dictionaries would need many
		// allocations.
		l.capacity = max(l.dictionary, min(2*l.capacity, l.memory.window), lzma2MinWindow)
		l.decoder = nil // free it before allocating the next
		if err := l.memory.grow(l.capacity); err != nil {
			return err
		}
		l.decoder = newLZMA(l.capacity)
	}
	l.decoder.window = uint32(max(l.dictionary, lzma2MinWindow))
	return nil
}
