package unpack

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// An lzma2 reads the LZMA2 data of one block of xz after another. The library receives
// the chunks of all blocks without the end markers between them. So it allocates a
// dictionary once, although a file can require any size in any number of blocks. That
// is correct because the first chunk of a block resets the dictionary and the state of
// the decoder.
type lzma2 struct {
	in         *bufio.Reader
	window     int64 // the largest dictionary
	grow       func(int64) error
	decoder    *lzma.Reader2 // nil before the first chunk
	capacity   int64         // of decoder's dictionary
	dictionary int64         // of the block
	begun      bool          // whether the block had a chunk
	n          int64         // bytes of the block read

	// The unread rest of the chunk's header, body and output.
	header    []byte
	body, out int
	buf       [6]byte // of header
}

// begin begins a block that refers back up to dictionary bytes.
func (l *lzma2) begin(dictionary int64) { l.dictionary, l.begun, l.n = dictionary, false, 0 }

// Read implements io.Reader. It returns io.EOF at the end of the block, and reads
// nothing after that.
func (l *lzma2) Read(p []byte) (int, error) {
	if l.out == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	// Read no more than the chunk has, or the decoder would read the next header.
	n, err := l.decoder.Read(p[:min(len(p), l.out)])
	l.out -= n
	switch {
	case err != nil:
		return n, unexpected(err)
	case l.out == 0 && l.body > 0:
		return n, errors.New("a chunk is longer than its data")
	}
	return n, nil
}

// next reads the header of the next chunk, which the .xz specification does not
// define: a control byte (what is reset, whether the chunk is compressed), the size of
// the output less one, the compressed size less one, and properties.
func (l *lzma2) next() error {
	control, err := l.in.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	l.n++
	length := 3
	switch {
	case control == 0:
		return io.EOF
	case !l.begun && control != 1 && control < 0xe0:
		return errors.New("a block begins without a dictionary")
	case control >= 0xc0:
		length = 6
	case control >= 0x80:
		length = 5
	case control > 2:
		return errors.New("a chunk of no kind that there is")
	}
	l.begun = true
	h := l.buf[:length]
	h[0] = control
	n, err := io.ReadFull(l.in, h[1:])
	l.n += int64(n)
	if err != nil {
		return unexpected(err)
	}
	l.header = h
	l.out = int(binary.BigEndian.Uint16(h[1:])) + 1
	l.body = l.out
	if control >= 0x80 {
		l.out += int(control&0x1f) << 16
		l.body = int(binary.BigEndian.Uint16(h[3:])) + 1
	}
	if l.decoder != nil && l.dictionary <= l.capacity {
		return nil
	}
	// At least double it, or blocks of growing dictionaries would need many
	// allocations.
	l.capacity = max(l.dictionary, min(2*l.capacity, l.window), lzma.MinDictCap)
	l.decoder = nil // free it before allocating the next
	if err := l.grow(l.capacity); err != nil {
		return err
	}
	l.decoder, err = lzma.Reader2Config{DictCap: int(l.capacity)}.NewReader2((*chunk)(l))
	return err
}

// A chunk is what the decoder of an lzma2 reads.
type chunk lzma2

func (c *chunk) Read(p []byte) (n int, err error) {
	if len(c.header) > 0 {
		n = copy(p, c.header)
		c.header = c.header[n:]
		return n, nil
	}
	if c.body == 0 {
		return 0, io.EOF
	}
	n, err = c.in.Read(p[:min(len(p), c.body)])
	c.body -= n
	c.n += int64(n)
	return n, err
}
