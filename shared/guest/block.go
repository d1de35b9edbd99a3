package guest

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"imageroot/shared/guard"
)

// readCompressed reads part of a compressed block. It expands a whole block directly into
// p. For a smaller part it keeps the expanded block for the next read.
func (i *Image) readCompressed(p []byte, e extent) error {
	if int64(len(p)) == i.header.Block {
		return i.expand(p, e)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.data == nil || i.last.host != e.host || i.last.bytes != e.bytes {
		if i.data == nil {
			i.data = make([]byte, i.header.Block)
		}
		i.last = extent{} // data is invalid if this fails
		if err := i.expand(i.data, e); err != nil {
			return err
		}
		i.last = e
	}
	copy(p, i.data[e.within:])
	return nil
}

// expand reads and decompresses the block that e is in.
func (i *Image) expand(block []byte, e extent) error {
	x, ok := i.inflater.Get().(*inflater)
	if !ok {
		x = &inflater{}
	}
	if e.method == grain {
		var err error
		if e, err = i.grain(e); err != nil {
			return err
		}
	}
	// The file may end within the last sector.
	have := min(e.bytes, i.file.size-e.host)
	if int64(cap(x.in)) < have {
		x.in = make([]byte, have)
	}
	x.in = x.in[:have]
	if err := i.file.full(x.in, e.host); err != nil {
		return err
	}
	err := guard.Call(func() error { return x.expand(block, e) })
	switch {
	case err == nil:
		i.inflater.Put(x) // after a panic, its decoders are in no state for another block
		return nil
	case have < e.bytes && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		return i.file.truncated("the compressed cluster at byte %d extends beyond the end of the file", e.host)
	}
	return i.file.corrupt("the compressed cluster at byte %d does not expand (%v)", e.host, err)
}

// maxWindow is the maximum window of zstd. A block has at most 2 MiB.
const maxWindow = 8 << 20

// An inflater has the buffers and decoders for one block at a time.
type inflater struct {
	in    []byte
	plain io.ReadCloser // of deflate
	zlib  io.ReadCloser
	zstd  *zstd.Decoder
}

// expand fills block from x.in.
func (x *inflater) expand(block []byte, e extent) (err error) {
	src := bytes.NewReader(x.in)
	var r io.Reader
	switch e.method {
	case grain:
		if x.zlib == nil {
			x.zlib, err = zlib.NewReader(src)
		} else {
			err = x.zlib.(zlib.Resetter).Reset(src, nil)
		}
		if err == nil {
			err = readChecked(x.zlib, block, int(e.need))
		}
		return err
	case zstandard:
		if x.zstd == nil {
			x.zstd, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		} else {
			err = x.zstd.Reset(src)
		}
		r = x.zstd
	default:
		if x.plain == nil {
			x.plain = flate.NewReader(src) // raw deflate, without zlib's header and checksum
		} else {
			err = x.plain.(flate.Resetter).Reset(src, nil)
		}
		r = x.plain
	}
	if err != nil {
		return err
	}
	// The end of x.in may belong to another cluster: "decompression stops when it has
	// produced a cluster of data".
	_, err = io.ReadFull(r, block)
	return err
}

// readChecked fills block from r, whose end has a checksum and may come after the first need
// bytes: the last grain of a disk may be shorter.
func readChecked(r io.Reader, block []byte, need int) error {
	n, err := 0, error(nil)
	for err == nil && n < len(block) {
		var m int
		m, err = r.Read(block[n:])
		n += m
	}
	if err == nil {
		var more [1]byte
		m := 0
		if m, err = io.ReadFull(r, more[:]); m > 0 {
			return errors.New("there is more than a grain in it")
		}
	}
	switch {
	case !errors.Is(err, io.EOF):
		return err
	case n < need:
		return errors.New("there is less than a grain in it")
	}
	clear(block[n:])
	return nil
}
