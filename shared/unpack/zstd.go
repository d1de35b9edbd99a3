package unpack

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/content"
)

// A zstdStream is one or more frames of zstd (RFC 8878), some of them skippable.
type zstdStream struct {
	*zstd.Decoder
	window int64
}

func newZstd(in *bufio.Reader, memory memory) (stream, int64, error) {
	first := zstdWindow(in)
	// One block at a time is as fast as the zstd tool, and errors have an offset in
	// the input.
	d, err := zstd.NewReader(&zstdFrames{in: in, memory: memory}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(memory.window)), zstd.WithDecoderMaxMemory(uint64(memory.window)))
	return zstdStream{d, memory.window}, first, err
}

// zstdWindow returns the window of the first frame, and 0 if it is unknown.
func zstdWindow(in *bufio.Reader) int64 {
	_, frame, err := new(content.ZstdFrames).Next(in)
	if err != nil || frame.Skippable {
		return 0
	}
	return windowOf(frame)
}

func windowOf(h *zstd.Header) int64 {
	return int64(min(cmp.Or(h.WindowSize, h.FrameContentSize), 1<<62))
}

// A zstdFrames passes a stream on to the decoder, which would allocate any window that
// a frame declares. It reads each frame's header and has its window granted before the
// decoder receives the frame.
type zstdFrames struct {
	in     *bufio.Reader
	memory memory
	frames content.ZstdFrames
	left   int64 // bytes to pass on before the next header
}

func (z *zstdFrames) Read(p []byte) (int, error) {
	if z.left == 0 {
		length, frame, err := z.frames.Next(z.in)
		if err != nil {
			length = math.MaxInt64 // the decoder reads the same bytes and reports the error
		}
		z.left = length
		if frame != nil && !frame.Skippable && windowOf(frame) <= z.memory.window { // otherwise the frame is refused
			if err := z.memory.grow(windowOf(frame)); err != nil {
				return 0, err
			}
		}
	}
	n, err := z.in.Read(p[:min(int64(len(p)), z.left)])
	z.left -= int64(n)
	return n, err
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
