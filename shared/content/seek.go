package content

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"imageroot/shared/guest"
)

// virtual reads the header and, unless the image is enormous, the first table, which shows
// whether the others are within the file.
func (c *Content) virtual(s *seeker) {
	format := guest.Format(c.Kind)
	h, err := guest.ReadHeader(format, s, s.size)
	if h.What != "" {
		c.What = h.What
	}
	known := err == nil
	if known {
		c.size(h.Size)
		_, err = guest.Open(format, s, s.size)
	}
	if wrong, ok := errors.AsType[*guest.Error](err); ok {
		c.Unreadable = wrong.Detail
		c.warn(wrong.Detail)
	}
	if !known {
		return
	}
	if h.Corrupt {
		c.warn("the image is marked as corrupt by the program that wrote it; repair it with qemu-img check -r all")
	}
	if h.Snapshots > 0 && c.Warnings == nil {
		c.What += fmt.Sprintf(" with %d snapshots inside", h.Snapshots)
	}
}

// Sizes in an xz file.
const (
	maxPadding = 64 << 10 // limit of the zeros skipped after a stream
	xzFooter   = 12       // bytes of a header or a footer
)

// errShort says that an xz file does not end with the end of a stream.
var errShort = errors.New("the xz data does not end as it should: the file was cut short, or something was appended to it; get it again")

// xz adds up the sizes in the indexes of all streams, from the end backwards
// (https://tukaani.org/xz/xz-file-format.txt sections 2 and 4).
func (c *Content) xz(s *seeker) {
	var total int64
	for end := s.size; end > 0; {
		begin, size, err := xzStream(s, end)
		if errors.Is(err, errShort) {
			c.warn(err.Error())
		}
		if err != nil || size > 1<<62-total {
			return
		}
		total += size
		end = begin
	}
	c.size(total)
}

// xzStream returns the offset at which the stream that ends at end, before padding,
// begins, and the number of bytes that it decompresses to.
func xzStream(s *seeker, end int64) (begin, size int64, err error) {
	tail := make([]byte, min(end, maxPadding))
	if _, err := s.ReadAt(tail, end-int64(len(tail))); err != nil {
		return 0, 0, err
	}
	padded := len(tail)
	tail = bytes.TrimRight(tail, "\x00") // a footer ends in "YZ"
	end -= int64(padded - len(tail))
	if len(tail) < xzFooter || string(tail[len(tail)-2:]) != "YZ" || (padded-len(tail))%4 != 0 {
		return 0, 0, errShort
	}
	footer := tail[len(tail)-xzFooter:]
	index := (int64(le32(footer, 4)) + 1) * 4
	if index > end-2*xzFooter {
		return 0, 0, errShort
	}
	data := make([]byte, min(index, maxSeekBytes+1)) // ReadAt refuses more than maxSeekBytes
	if _, err := s.ReadAt(data, end-xzFooter-index); err != nil {
		return 0, 0, err
	}
	blocks, size, ok := xzIndex(data)
	begin = end - xzFooter - index - blocks - xzFooter
	if !ok || begin < 0 {
		return 0, 0, errShort
	}
	var magic [6]byte
	if _, err := s.ReadAt(magic[:], begin); err != nil {
		return 0, 0, err
	}
	if row, _ := XZ.compression(); !row.Begins(magic[:]) {
		return 0, 0, errShort
	}
	return begin, size, nil
}

// xzIndex returns the number of bytes of the blocks in the file, and the number that
// they decompress to (section 4).
func xzIndex(data []byte) (blocks, size int64, ok bool) {
	r := bytes.NewReader(data)
	if b, err := r.ReadByte(); err != nil || b != 0 {
		return 0, 0, false
	}
	n, err := binary.ReadUvarint(r)
	for ; n > 0 && err == nil; n-- {
		var unpadded, uncompressed uint64
		if unpadded, err = binary.ReadUvarint(r); err == nil {
			uncompressed, err = binary.ReadUvarint(r)
		}
		if unpadded > 1<<62 || uncompressed > 1<<62 {
			return 0, 0, false
		}
		blocks += int64(unpadded+3) &^ 3
		size += int64(uncompressed)
		if blocks < 0 || size < 0 {
			return 0, 0, false
		}
	}
	return blocks, size, err == nil
}

// zstd skips from block to block and from frame to frame to add up the sizes in the
// headers of frames. That takes one read per block: see the seeks of Sniff.
func (c *Content) zstd(s *seeker) {
	in := &skipper{s: s, buf: bufio.NewReaderSize(nil, 512)}
	in.seek(0)
	var frames ZstdFrames
	var total int64
	known := true
	for {
		length, frame, err := frames.Next(in.buf)
		if err == nil {
			err = in.skip(length)
		}
		switch {
		case errors.Is(err, io.EOF):
			if known {
				c.size(total)
			}
			return
		case errors.Is(err, io.ErrUnexpectedEOF):
			c.warn(fmt.Sprintf("the zstd data ends at byte %d before it is complete: the file was cut short; get it again", s.size))
			return
		case err != nil:
			return
		case frame == nil || frame.Skippable:
		case !frame.HasFCS || frame.FrameContentSize >= 1<<62:
			known = false
		case int64(frame.FrameContentSize) > 1<<62-total:
			return
		default:
			total += int64(frame.FrameContentSize)
		}
	}
}

// A skipper reads in order and skips without reading.
type skipper struct {
	s   *seeker
	buf *bufio.Reader
	off int64 // of the end of buf's content
}

func (k *skipper) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), k.s.size-k.off)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	n, err := k.s.ReadAt(p, k.off)
	k.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (k *skipper) seek(off int64) {
	k.off = off
	k.buf.Reset(k)
}

// skip skips n bytes, and returns io.ErrUnexpectedEOF if there are fewer.
func (k *skipper) skip(n int64) error {
	at := k.off - int64(k.buf.Buffered())
	if n > k.s.size-at {
		return io.ErrUnexpectedEOF
	}
	if n <= int64(k.buf.Buffered()) {
		_, _ = k.buf.Discard(int(n)) // they are buffered
		return nil
	}
	k.seek(at + n)
	return nil
}
