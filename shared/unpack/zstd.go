package unpack

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/content"
	"imageroot/shared/guard"
)

// A zstdStream is one or more frames of zstd (RFC 8878), some of them skippable.
type zstdStream struct {
	*zstd.Decoder // nil before the first Read
	frames        *zstdFrames
	first         int64 // the window of the first frame
}

const (
	// zstdAhead is the number of blocks that are decoded ahead of the output: with fewer,
	// the goroutines wait for each other more often.
	zstdAhead = 16
	// zstdBlockBytes is the memory of one: 128 KiB of each of data, literals and output, and
	// the 98,047 sequences of 24 bytes that a block can have at the most.
	zstdBlockBytes = 3<<17 + 98_048*24
)

func newZstd(in *bufio.Reader, memory memory) (stream, int64, error) {
	z := &zstdStream{frames: &zstdFrames{in: in, memory: memory}, first: zstdWindow(in)}
	return z, z.first, nil
}

// begin makes the decoder. That of an intact stream reads literals, decodes sequences and
// executes them on a goroutine each, if there is memory for the blocks ahead.
func (z *zstdStream) begin() (err error) {
	// Otherwise one block at a time, so that errors have an offset in the input.
	blocks, memory := 1, z.frames.memory
	if ahead := int64(zstdAhead * zstdBlockBytes); memory.intact && runtime.GOMAXPROCS(0) > 1 && memory.spare(cmp.Or(z.first, memory.window)+ahead) {
		blocks, z.frames.ahead = zstdAhead, ahead
	}
	z.Decoder, err = zstd.NewReader(z.frames, zstd.WithDecoderConcurrency(blocks), zstd.WithDecoderLowmem(blocks == 1),
		zstd.WithDecoderMaxWindow(uint64(memory.window)), zstd.WithDecoderMaxMemory(uint64(memory.window)))
	return err
}

// zstdWindow returns the window of the first frame that is not skippable, and 0 if it is
// unknown.
func zstdWindow(in *bufio.Reader) int64 {
	const most = 4 << 10 // pzstd writes a skippable frame of 12 bytes first
	start, _ := in.Peek(most)
	head := bufio.NewReader(bytes.NewReader(start))
	for {
		length, frame, err := new(content.ZstdFrames).Next(head)
		if err != nil {
			return 0
		}
		if !frame.Skippable {
			return windowOf(frame)
		}
		if _, err := io.CopyN(io.Discard, head, length); err != nil {
			return 0
		}
	}
}

func windowOf(h *zstd.Header) int64 {
	return int64(min(cmp.Or(h.WindowSize, h.FrameContentSize), 1<<62))
}

// A zstdFrames passes a stream on to the decoder, which would allocate any window that
// a frame declares. It reads each frame's header and has its window granted before the
// decoder receives the frame. The decoder may read it on another goroutine.
type zstdFrames struct {
	in     *bufio.Reader
	memory memory
	frames content.ZstdFrames
	left   int64 // bytes to pass on before the next header
	ahead  int64 // the memory of blocks that are decoded ahead; 0 if there are none
	passed atomic.Int64
	ended  bool // the input ends between frames
	cut    bool // it ends within one
}

func (z *zstdFrames) Read(p []byte) (n int, err error) {
	err = guard.Call(func() (err error) {
		n, err = z.pass(p)
		return err
	})
	return n, err
}

func (z *zstdFrames) pass(p []byte) (int, error) {
	if z.left == 0 {
		length, frame, err := z.frames.Next(z.in)
		if err != nil {
			z.ended = errors.Is(err, io.EOF)
			length = math.MaxInt64 // the decoder reads the same bytes and reports the error
		}
		z.left = length
		if frame != nil && !frame.Skippable && windowOf(frame) <= z.memory.window { // otherwise the frame is refused
			if err := z.memory.grow(windowOf(frame) + z.ahead); err != nil {
				return 0, err
			}
		}
	}
	n, err := z.in.Read(p[:min(int64(len(p)), z.left)])
	z.left -= int64(n)
	z.passed.Add(int64(n))
	z.cut = errors.Is(err, io.EOF) && !z.ended
	return n, err
}

// consumed returns the bytes of the input that were passed to the goroutines of the decoder,
// if it has any.
func (z *zstdStream) consumed() (int64, bool) { return z.frames.passed.Load(), z.frames.ahead > 0 }

func (z *zstdStream) Read(p []byte) (int, error) {
	if z.Decoder == nil {
		if err := z.begin(); err != nil {
			return 0, err
		}
	}
	n, err := z.Decoder.Read(p)
	if err != nil {
		z.Close() // waits for the goroutines
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && z.frames.ahead > 0 && !z.frames.cut:
		err = errors.New("a block ends too early")
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		err = &Error{Refused, 0, fmt.Sprintf("the zstd data refers back further than the %s that are held in memory for it; compress the image again with --long=%d at the most, or without --long and --ultra", size(z.frames.memory.window), bits.Len64(uint64(z.frames.memory.window))-1)}
	case errors.Is(err, zstd.ErrUnknownDictionary):
		err = &Error{Refused, 0, "the zstd data needs a dictionary that is not in it; compress the image again without one"}
	}
	return n, err
}

func (z *zstdStream) Close() {
	if z.Decoder != nil {
		z.Decoder.Close()
	}
}
