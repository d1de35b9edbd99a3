package qcow2

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"imageroot/shared/guard"
)

// readCompressed reads part of a compressed cluster. It expands a whole cluster
// directly into p. For a smaller part it keeps the expanded cluster for the next read.
func (i *Image) readCompressed(p []byte, e extent) error {
	if int64(len(p)) == i.header.ClusterSize {
		return i.expand(p, e)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.data == nil || i.last.host != e.host || i.last.bytes != e.bytes {
		if i.data == nil {
			i.data = make([]byte, i.header.ClusterSize)
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

// expand reads and decompresses the cluster that e is in.
func (i *Image) expand(cluster []byte, e extent) error {
	x, ok := i.inflater.Get().(*inflater)
	if !ok {
		x = &inflater{}
	}
	// The file may end within the last sector.
	have := min(e.bytes, i.size-e.host)
	if int64(cap(x.in)) < have {
		x.in = make([]byte, have)
	}
	x.in = x.in[:have]
	if err := readFull(i.file, x.in, e.host); err != nil {
		return err
	}
	err := guard.Call(func() error { return x.expand(cluster, i.header.Compression) })
	switch {
	case err == nil:
		i.inflater.Put(x) // after a panic, its decoders are in no state for another cluster
		return nil
	case have < e.bytes && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		return truncated("the compressed cluster at byte %d extends beyond the end of the file", e.host)
	}
	return corrupt("the compressed cluster at byte %d does not expand (%v)", e.host, err)
}

// maxWindow is the maximum window of zstd. A cluster has at most 2 MiB.
const maxWindow = 8 << 20

// An inflater has the buffers and decoders for one cluster at a time.
type inflater struct {
	in   []byte
	zlib io.ReadCloser
	zstd *zstd.Decoder
}

// expand fills cluster from x.in. The end of x.in may belong to another cluster:
// "decompression stops when it has produced a cluster of data".
func (x *inflater) expand(cluster []byte, compression string) (err error) {
	src := bytes.NewReader(x.in)
	switch {
	case compression != "zstd" && x.zlib == nil:
		x.zlib = flate.NewReader(src) // raw deflate, without zlib's header and checksum
	case compression != "zstd":
		err = x.zlib.(flate.Resetter).Reset(src, nil)
	case x.zstd == nil:
		x.zstd, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	default:
		err = x.zstd.Reset(src)
	}
	if err != nil {
		return err
	}
	var r io.Reader = x.zlib
	if compression == "zstd" {
		r = x.zstd
	}
	_, err = io.ReadFull(r, cluster)
	return err
}
