package unpack

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// A zstdStream is one or more frames of zstd (RFC 8878), some of which may be
// skippable.
type zstdStream struct {
	*zstd.Decoder
	window int64
}

func newZstd(in io.Reader, window int64) (zstdStream, error) {
	// One block at a time is as fast as the zstd tool, and says where in the
	// input an error is.
	d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderMaxMemory(uint64(window)))
	return zstdStream{d, window}, err
}

// zstdWindow is what the first frame refers back to, as far as it can be told.
func zstdWindow(in *bufio.Reader) int64 {
	h, _ := in.Peek(zstd.HeaderMaxSize)
	var header zstd.Header
	if header.Decode(h) != nil || header.Skippable {
		return 0
	}
	return int64(min(cmp.Or(header.WindowSize, header.FrameContentSize), 1<<62))
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
