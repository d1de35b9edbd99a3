// Package guest gives random access to the disk in an image of a virtual machine, as the
// guest sees it: the formats of QEMU (qcow2), VMware (VMDK), Microsoft (VHD, VHDX) and
// VirtualBox (VDI). The file of each format names the specification that it follows.
//
// It refuses images that are incomplete without another file or a key: with a backing
// file or a parent, encrypted, or with data in another file ([ErrUnsupported]).
//
// Files are not trusted. Memory is bounded as documented for [Image], and time by the
// size of the file. Data behind the end of the file is an error ([ErrTruncated]), where
// QEMU reads zeros.
package guest

import (
	"io"
	"slices"
	"sync"
)

// A Format is the format of a file. It is also the suffix of names, without the dot.
type Format string

// The formats.
const (
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
	VDI   Format = "vdi"
)

// A row is a row of the table of formats.
type row struct {
	Format
	name   string // in sentences: "the VMDK image"
	what   string // with an article
	begins func(head []byte) bool
	read   func(f *file) (Header, error)
}

var formats = []row{
	{QCOW2, "qcow2", "a qcow2 image", beginsQCOW2, readQCOW2},
	{VMDK, "VMDK", "a VMDK (VMware) image", beginsVMDK, readVMDK},
	{VHD, "VHD", "a VHD (Hyper-V) image", beginsVHD, readVHD},
	{VHDX, "VHDX", "a VHDX (Hyper-V) image", beginsVHDX, readVHDX},
	{VDI, "VDI", "a VDI (VirtualBox) image", beginsVDI, readVDI},
}

// Begins returns the format of a file that begins with head, of which 72 bytes decide, and
// what such a file is, with an article. It returns false if head is none of this package's
// formats. A fixed VHD is known by its end alone: see [Fixed].
func Begins(head []byte) (format Format, what string, ok bool) {
	for _, f := range formats {
		if f.begins(head) {
			return f.Format, f.what, true
		}
	}
	return "", "", false
}

// Known reports whether f is a format of this package.
func Known(f Format) bool {
	return slices.ContainsFunc(formats, func(r row) bool { return r.Format == f })
}

// A Header is what the header of a file says.
type Header struct {
	// What describes the image, with an article: "a qcow2 image (version 3)".
	What string
	Size int64 // bytes of the disk that the guest sees
	// Block is the number of bytes that a table entry maps. If Packed, blocks may be
	// compressed, and have at most 2 MiB.
	Block  int64
	Packed bool
	// Corrupt was set by the last writer. The image can be read: its entries may be
	// wrong, which reading detects.
	Corrupt bool
	// Snapshots is the number of internal snapshots. They are not read.
	Snapshots int

	refusal error // why the disk cannot be read, or nil
	mapping mapping
}

// A mapping finds the bytes of the disk in the file.
type mapping interface {
	// check reads the first table. It bounds the time to read all of them by the size of
	// the file.
	check(t *tables) error
	// lookup returns the extent from off to the end of the block, or of what an absent
	// table would map. off is within the disk.
	lookup(t *tables, off int64) (extent, error)
}

// ReadHeader reads the header of a file of size bytes. The error is an [*Error], or the
// file's. With an [*Error], the fields before the faulty one are set.
func ReadHeader(format Format, r io.ReaderAt, size int64) (Header, error) {
	n := slices.IndexFunc(formats, func(r row) bool { return r.Format == format })
	if n < 0 {
		return Header{}, &Error{ErrFormat, "this is not an image of a virtual machine"}
	}
	return formats[n].read(&file{r, size, formats[n].name})
}

// An Image is the guest's disk. It is safe for concurrent use if its file is. It uses 1
// MiB of memory for tables. If blocks may be compressed, it uses one block for partial reads
// of them, and up to three blocks for each read in flight.
type Image struct {
	header Header
	file   *file
	tables tables

	inflater sync.Pool // of inflaters

	mu   sync.Mutex // last and data
	last extent     // the compressed block that data has
	data []byte
}

// Open opens the image in a file of size bytes: it reads the header and the first table.
// The error is an [*Error], or the file's.
func Open(format Format, r io.ReaderAt, size int64) (*Image, error) {
	h, err := ReadHeader(format, r, size)
	if err == nil {
		err = h.refusal
	}
	if err != nil {
		return nil, err
	}
	n := slices.IndexFunc(formats, func(r row) bool { return r.Format == format })
	i := &Image{header: h, file: &file{r, size, formats[n].name}}
	i.tables = tables{file: i.file, bytes: min(max(h.Block, minPage), maxPage)}
	return i, h.mapping.check(&i.tables)
}

// Header returns the header of the file.
func (i *Image) Header() Header { return i.header }

// Buffer returns the number of bytes of a block that may be held in memory, since it is
// compressed; 0 if none is.
func (i *Image) Buffer() int64 {
	if i.header.Packed {
		return i.header.Block
	}
	return 0
}

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
			err = i.file.full(part, e.host)
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
		e, err := i.header.mapping.lookup(&i.tables, off+n)
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

// Hole is Extent, but for the blocks that are unallocated: the image says nothing about
// them, whereas a block marked as zero was written.
func (i *Image) Hole(off, limit int64) (n int64, hole bool, err error) {
	return i.run(off, limit, func(e extent) bool { return e.hole })
}

// run returns the number of bytes from off to limit at most for which is returns the same.
func (i *Image) run(off, limit int64, is func(extent) bool) (n int64, same bool, err error) {
	for entries := 0; off+n < limit && entries < maxRun; entries++ {
		e, err := i.header.mapping.lookup(&i.tables, off+n)
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
