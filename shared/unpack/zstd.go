package unpack

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// A zstdStream is one or more frames of zstd (RFC 8878), some of them skippable.
type zstdStream struct {
	*zstd.Decoder
	window int64
}

func newZstd(in *bufio.Reader, window int64, grow func(int64) error) (stream, int64, error) {
	first := zstdWindow(in)
	// One block at a time is as fast as the zstd tool, and errors have an offset in
	// the input.
	d, err := zstd.NewReader(&zstdFrames{in: in, window: window, grow: grow}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderMaxMemory(uint64(window)))
	return zstdStream{d, window}, first, err
}

// zstdWindow returns the window of the first frame, and 0 if it is unknown.
func zstdWindow(in *bufio.Reader) int64 {
	h, _ := in.Peek(zstd.HeaderMaxSize)
	var header zstd.Header
	if header.Decode(h) != nil || header.Skippable {
		return 0
	}
	return windowOf(header)
}

func windowOf(h zstd.Header) int64 {
	return int64(min(cmp.Or(h.WindowSize, h.FrameContentSize), 1<<62))
}

// A zstdFrames passes a stream on to the decoder, which allocates what any frame asks
// for. It reads headers of frames and blocks (RFC 8878 section 3.1.1) to have each
// frame's window granted before the decoder gets the frame.
type zstdFrames struct {
	in     *bufio.Reader
	window int64
	grow   func(int64) error
	left   int64 // bytes to pass on before the next header
	inside bool  // of a frame: a block is next
	sum    bool  // the frame ends in a checksum
}

func (z *zstdFrames) Read(p []byte) (int, error) {
	if z.left == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n, err := z.in.Read(p[:min(int64(len(p)), z.left)])
	z.left -= int64(n)
	return n, err
}

// next reads the next header. It passes on what is malformed: the decoder reads the
// same headers and reports it.
func (z *zstdFrames) next() error {
	z.left = math.MaxInt64
	if z.inside {
		b, _ := z.in.Peek(3)
		if len(b) < 3 {
			return nil
		}
		n := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
		z.left = 3 + n>>3
		if n>>1&3 == 1 { // one byte, repeated
			z.left = 3 + 1
		}
		if n&1 != 0 {
			z.inside = false
			if z.sum {
				z.left += 4
			}
		}
		return nil
	}
	b, _ := z.in.Peek(zstd.HeaderMaxSize)
	var h zstd.Header
	if h.Decode(b) != nil {
		return nil
	}
	z.left = int64(h.HeaderSize)
	if h.Skippable {
		z.left += int64(h.SkippableSize)
		return nil
	}
	z.inside, z.sum = true, h.HasCheckSum
	if w := windowOf(h); w <= z.window { // else it is refused
		return z.grow(w)
	}
	return nil
}

func (z zstdStream) Read(p []byte) (int, error) {
	n, err := z.Decoder.Read(p)
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		err = &Error{Refused, 0, fmt.Sprintf("the zstd data refers back further than the %s that are held in memory for it; compress the image again with --long=%d at the most, or without --long and --ultra", size(z.window), bits.Len64(uint64(z.window))-1)}
	case errors.Is(err, zstd.ErrUnknownDictionary):
		err = &Error{Refused, 0, "the zstd data needs a dictionary that is not in it; compress the image again without one"}
	}
	return n, err
}
