// Package qcow2 gives random access to the disk in an image of QEMU's qcow2 format,
// versions 2 and 3, as the guest sees it. It follows docs/interop/qcow2.rst in
// QEMU's sources, whose sections its comments name.
//
// It reads what the active L1 table maps: unallocated and zero clusters, standard
// clusters, and clusters compressed with zlib or zstd. It does not read reference
// counts, snapshots and bitmaps, and refuses images with a backing file, encryption,
// an external data file or extended L2 entries ([ErrUnsupported]).
//
// Files are not trusted. Memory is bounded as documented for [Image], and time by the
// size of the file. Data behind the end of the file is an error ([ErrTruncated]), where
// QEMU reads zeros.
package qcow2

import (
	"io"
	"sync"
)

// An Image is the guest's disk. It is safe for concurrent use if its file is. It uses 1
// MiB of memory for tables, one cluster for partial reads of compressed clusters, and
// up to three clusters for each read in flight. A cluster has at most 2 MiB.
type Image struct {
	header Header
	file   io.ReaderAt
	size   int64 // of the file

	pages    pages
	inflater sync.Pool // of inflaters

	mu   sync.Mutex // last and data
	last extent     // the compressed cluster that data has
	data []byte
}

// Open opens the image in a file of size bytes: it reads the header and the L1
// table. The error is an [*Error], or the file's.
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

// Header returns the header of the file.
func (i *Image) Header() Header { return i.header }

// Size returns the size of the disk in bytes.
func (i *Image) Size() int64 { return i.header.Size }

// ReadAt implements io.ReaderAt. The error is io.EOF at the end of the disk, an
// [*Error], or the file's. Bytes before the error are valid.
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

// Zeros returns the number of bytes from off on that are zero according to the
// tables, without reading data. It returns 0 if the byte at off is stored.
func (i *Image) Zeros(off int64) (int64, error) {
	var n int64
	for off+n < i.header.Size {
		e, err := i.lookup(off + n)
		if err != nil && n > 0 {
			break // a read there returns the error
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

// maxRun limits the table entries that one Extent reads.
const maxRun = 8192

// Extent returns the number of bytes from off to limit at most that are all zero
// according to the tables, or all stored. The run may continue behind it. off must be
// less than limit, and both within the disk.
func (i *Image) Extent(off, limit int64) (n int64, zeros bool, err error) {
	return i.run(off, limit, func(e extent) bool { return e.kind == zero })
}

// Hole is Extent, but for the clusters that are unallocated: the image says nothing about
// them, whereas a cluster marked as zero was written.
func (i *Image) Hole(off, limit int64) (n int64, hole bool, err error) {
	return i.run(off, limit, func(e extent) bool { return e.hole })
}

// run returns the number of bytes from off to limit at most for which is returns the same.
func (i *Image) run(off, limit int64, is func(extent) bool) (n int64, same bool, err error) {
	for entries := 0; off+n < limit && entries < maxRun; entries++ {
		e, err := i.lookup(off + n)
		if err != nil && n > 0 {
			break // a call for that offset returns the error
		}
		if err != nil {
			return 0, false, err
		}
		if n > 0 && is(e) != same {
			break
		}
		same = is(e)
		n += e.length
	}
	return min(n, limit-off), same, nil
}

// Check reads every table but no data, and returns an [*Error] if part of the disk is
// not within the file. Other errors are the file's.
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
