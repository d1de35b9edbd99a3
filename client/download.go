package client

import (
	"bytes"
	"context"
	"io"
	"os"
	"sync"

	"imageroot/client/progress"
	"imageroot/shared/digest"
	"imageroot/shared/layout"
)

// A download writes bytes in order, and hashes them on another goroutine meanwhile. Its
// methods are for one goroutine.
type download struct {
	size  int64 // bytes that were written
	put   func(b []byte, at int64) error
	empty func() error

	sum    *digest.Hasher
	free   chan []byte
	blocks chan []byte // to hash
	busy   sync.WaitGroup
}

const (
	// downloadBlock is a size that stays in the cache of a processor, from the network to
	// the file and the hash.
	downloadBlock  = 64 << 10
	downloadBlocks = 32
)

// newDownload returns a download that writes by calling put, and begins anew by calling empty.
func newDownload(put func(b []byte, at int64) error, empty func() error) *download {
	d := &download{put: put, empty: empty, sum: digest.New(false), free: make(chan []byte, downloadBlocks), blocks: make(chan []byte, downloadBlocks)}
	for range downloadBlocks {
		d.free <- make([]byte, downloadBlock)
	}
	go func() {
		for b := range d.blocks {
			_, _ = d.sum.Write(b)
			d.free <- b[:downloadBlock]
			d.busy.Done()
		}
	}()
	return d
}

// close ends the goroutine.
func (d *download) close() { close(d.blocks) }

// block returns a buffer for write, which takes it over.
func (d *download) block() []byte { return <-d.free }

// write writes the beginning of a block.
func (d *download) write(b []byte) error {
	err := d.put(b, d.size)
	if err != nil {
		b = b[:0]
	}
	d.hash(b)
	return err
}

func (d *download) hash(b []byte) {
	d.size += int64(len(b))
	d.busy.Add(1)
	d.blocks <- b
}

// sha256 returns the SHA-256 of what was written.
func (d *download) sha256() layout.SHA256 {
	d.busy.Wait()
	return d.sum.Sum256()
}

// reset begins anew.
func (d *download) reset() error {
	d.busy.Wait()
	d.size, d.sum = 0, digest.New(false)
	return d.empty()
}

// resume takes over the bytes that an earlier run has written to f.
func (d *download) resume(ctx context.Context, f io.Reader, bar *progress.Bar) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := d.block()
		n, err := f.Read(b)
		d.hash(b[:n])
		bar.Add(int64(n))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// zeros is compared with blocks of the file system.
var zeros [4 << 10]byte

// writeSparse writes b to f, except blocks of zeros, which become holes. It is for the end
// of a file.
func writeSparse(f *os.File, b []byte, at int64) error {
	for len(b) > 0 {
		n := min(len(b), len(zeros)-int(at%int64(len(zeros)))) // to the end of a block
		hole := bytes.Equal(b[:n], zeros[:n])
		for n < len(b) {
			next := min(len(b)-n, len(zeros))
			if bytes.Equal(b[n:n+next], zeros[:next]) != hole {
				break
			}
			n += next
		}
		if !hole {
			if _, err := f.WriteAt(b[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		b = b[n:]
	}
	return nil
}
