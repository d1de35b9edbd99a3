// Package qcow2 reads disk images in QEMU's qcow2 format, versions 2 and 3, as
// the guest would read them: docs/interop/qcow2.rst in QEMU's sources is the
// specification, and its sections are named where they are followed. It reads
// what the active L1 table says; reference counts, snapshots and bitmaps are of
// no interest to who reads.
//
// A file is not trusted. What it says of itself costs neither memory nor time
// beyond its size; what lies behind its end is an error ([ErrTruncated]),
// where QEMU would read zeros.
package qcow2

import (
	"io"
	"sync"
)

// An Image is the guest's disk. It may be read from several goroutines at
// once. It needs 1 MiB for tables, one cluster for reads of less than a
// compressed cluster, and three for each read under way.
type Image struct {
	header Header
	file   io.ReaderAt
	size   int64 // of the file

	pages    pages
	inflater sync.Pool // of inflaters

	mu   sync.Mutex // last and data
	last extent     // the compressed cluster that data holds
	data []byte
}

// Open reads the header and the L1 table of a file of size bytes. The error is
// an [*Error], or the file's.
func Open(file io.ReaderAt, size int64) (*Image, error) {
	h, err := ReadHeader(file, size)
	if err == nil {
		err = h.Refusal()
	}
	if err != nil {
		return nil, err
	}
	i := &Image{header: h, file: file, size: size}
	i.pages = pages{file: file, size: size, bytes: min(max(h.ClusterSize, minPage), maxPage)}
	return i, i.checkL1()
}

// Header returns what the file says of itself.
func (i *Image) Header() Header { return i.header }

// Size is that of the disk, in bytes.
func (i *Image) Size() int64 { return i.header.Size }

// ReadAt implements io.ReaderAt. The error is io.EOF at the end of the disk, an
// [*Error], or the file's.
func (i *Image) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, &Error{ErrFormat, "a read before the beginning of the disk"}
	}
	for n < len(p) {
		if off >= i.header.Size {
			return n, io.EOF
		}
		e, err := i.extent(off, min(off+int64(len(p)-n), i.header.Size))
		if err != nil {
			return n, err
		}
		part := p[n : n+int(e.length)]
		switch e.kind {
		case zero:
			clear(part)
		case data:
			err = readFull(i.file, part, e.host)
		case compressed:
			err = i.readCompressed(part, e)
		}
		if err != nil {
			return n, err
		}
		n += len(part)
		off += int64(len(part))
	}
	return n, nil
}

// Zeros returns how many bytes from off on are known to be zero from the
// tables alone; 0 where that is not known of the first one.
func (i *Image) Zeros(off int64) (int64, error) {
	var n int64
	for off+n < i.header.Size {
		e, err := i.lookup(off + n)
		if err != nil && n > 0 {
			break // whoever reads on will see it
		}
		if err != nil {
			return 0, err
		}
		if e.kind != zero {
			break
		}
		n += e.length
	}
	return min(n, max(0, i.header.Size-off)), nil
}

// Check looks at every table, without reading data, and says whether all that
// the disk consists of is within the file: an [*Error], or the file's. It reads
// at most the file.
func (i *Image) Check() error {
	for off := int64(0); off < i.header.Size; {
		e, err := i.extent(off, i.header.Size)
		if err != nil {
			return err
		}
		off += e.length
	}
	return nil
}
