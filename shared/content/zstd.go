package content

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// ZstdFrames walks the headers of the frames and blocks of a zstd file (RFC 8878
// section 3.1.1).
type ZstdFrames struct {
	inside   bool // inside a frame: a block is next
	checksum bool // the frame ends in a checksum
}

// Next reads the next header, which in begins with, without consuming it. It returns
// the number of bytes up to the header after it, and the header of a frame, if it is
// one. The error is io.EOF if in ends between frames, io.ErrUnexpectedEOF if it ends
// within a header, and the decoder's if the header is invalid.
func (f *ZstdFrames) Next(in *bufio.Reader) (length int64, frame *zstd.Header, err error) {
	if f.inside {
		b, err := in.Peek(3)
		if err != nil {
			return 0, nil, unexpected(err)
		}
		n := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
		length = 3 + n>>3
		if n>>1&3 == 1 { // one byte, repeated
			length = 3 + 1
		}
		if n&1 != 0 { // the last block
			f.inside = false
			if f.checksum {
				length += 4
			}
		}
		return length, nil, nil
	}
	b, err := in.Peek(zstd.HeaderMaxSize)
	if len(b) == 0 || err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, err
	}
	frame = &zstd.Header{}
	if err := frame.Decode(b); err != nil {
		return 0, nil, err
	}
	if frame.Skippable {
		return int64(frame.HeaderSize) + int64(frame.SkippableSize), frame, nil
	}
	f.inside, f.checksum = true, frame.HasCheckSum
	return int64(frame.HeaderSize), frame, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
