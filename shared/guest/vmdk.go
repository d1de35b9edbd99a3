package guest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
)

// VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
// "Stream-Optimized Compressed Sparse Extents". Of its kinds, those that have the whole
// disk in one file are read: monolithicSparse and streamOptimized.

const (
	vmdkMagic   = "KDMV"
	vmdkHeader  = 80 // bytes of the header that are used
	vmdkAtEnd   = 1<<64 - 1
	vmdkVersion = 3 // the highest

	// Flags.
	vmdkZeroed     = 1 << 2  // an entry may say that a grain is zero
	vmdkCompressed = 1 << 16 // grains are compressed
	vmdkMarkers    = 1 << 17 // and behind markers

	vmdkFooterMarker = 3
	// maxGrain is the maximum number of bytes of a grain. VMware and QEMU write 64 KiB.
	maxGrain = 2 << 20
	maxGTEs  = 512      // of a grain table, as in QEMU
	maxGD    = 32 << 20 // bytes of the grain directory
	// maxDescriptor limits the bytes of the text that describes the disk.
	maxDescriptor = 64 << 10
)

func beginsVMDK(head []byte) bool { return bytes.HasPrefix(head, []byte(vmdkMagic)) }

// A vmdk is a sparse extent. Its sizes and offsets are in bytes.
type vmdk struct {
	file      *file
	size      int64 // of the disk
	flags     uint32
	grain     int64
	entries   int64 // of a grain table
	directory int64
}

func readVMDK(f *file) (Header, error) {
	v := &vmdk{file: f}
	h := Header{What: "a VMDK (VMware) image", mapping: v}
	head, err := f.head(sector)
	switch {
	case err != nil:
		return h, err
	case !beginsVMDK(head):
		return h, f.other()
	case len(head) < vmdkHeader:
		return h, f.truncated("it ends within its header")
	}
	descriptor, length := binary.LittleEndian.Uint64(head[28:]), binary.LittleEndian.Uint64(head[36:])
	if binary.LittleEndian.Uint64(head[56:]) == vmdkAtEnd {
		if head, err = v.footer(); err != nil {
			return h, err
		}
	}
	if err := v.read(head); err != nil {
		return h, err
	}
	h.Size, h.Block, h.Packed = v.size, v.grain, v.flags&vmdkCompressed != 0
	h.refusal, err = v.describe(descriptor, length)
	if h.Packed {
		h.What = "a stream-optimized VMDK (VMware) image"
	}
	return h, err
}

// footer returns the copy of the header that precedes the end-of-stream marker of a file
// whose directory was not known when the header was written.
func (v *vmdk) footer() ([]byte, error) {
	tail, err := v.file.part("its footer", v.file.size&^(sector-1)-3*sector, 3*sector)
	if err != nil {
		return nil, err
	}
	marker, copied, end := tail[:sector], tail[sector:2*sector], tail[2*sector:]
	if binary.LittleEndian.Uint32(marker[12:]) != vmdkFooterMarker || !beginsVMDK(copied) || !bytes.Equal(end[:16], make([]byte, 16)) {
		return nil, v.file.truncated("it does not end with a footer and the end of the stream")
	}
	return copied, nil
}

func (v *vmdk) read(head []byte) error {
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(head[at:]) }
	version, capacity, grain := binary.LittleEndian.Uint32(head[4:]), u64(12), u64(20)
	v.flags, v.entries = binary.LittleEndian.Uint32(head[8:]), int64(binary.LittleEndian.Uint32(head[44:]))
	algorithm := binary.LittleEndian.Uint16(head[77:])
	packed := v.flags&vmdkCompressed != 0
	switch directory := u64(56); {
	case version == 0 || version > vmdkVersion:
		return unsupported("the image is of version %d of the VMDK format; versions 1 to %d are known", version, vmdkVersion)
	case capacity == 0 && u64(28) != 0:
		return unsupported("the image only describes a disk whose data are in other files: put the whole together with qemu-img convert first")
	case capacity > 1<<53:
		return v.file.corrupt("its disk would have %d sectors", capacity)
	case grain == 0 || grain&(grain-1) != 0 || grain > maxGrain/sector:
		return v.file.corrupt("its grains would have %d sectors; a power of 2 up to %d is possible", grain, maxGrain/sector)
	case v.entries == 0 || v.entries > maxGTEs:
		return v.file.corrupt("its grain tables would have %d entries; %d are the most", v.entries, maxGTEs)
	case directory > 1<<53:
		return v.file.corrupt("its grain directory would begin at sector %d", directory)
	case packed && (algorithm != 1 || v.flags&vmdkMarkers == 0):
		return unsupported("the image's grains are compressed by a method (number %d, flags %#x) that is not known here: convert it with qemu-img first", algorithm, v.flags)
	default:
		v.size, v.grain, v.directory = int64(capacity)*sector, int64(grain)*sector, int64(directory)*sector
	}
	if v.tables()*4 > maxGD {
		return v.file.corrupt("its grain directory of %d entries is larger than the limit of 32 MiB", v.tables())
	}
	return nil
}

// span returns the number of bytes of the disk that a grain table maps.
func (v *vmdk) span() int64 { return v.entries * v.grain }

// tables returns the number of grain tables that the disk needs.
func (v *vmdk) tables() int64 { return (v.size + v.span() - 1) / v.span() }

var (
	vmdkType   = regexp.MustCompile(`(?mi)^\s*createType\s*=\s*"([^"]{0,64})"`)
	vmdkParent = regexp.MustCompile(`(?mi)^\s*parentCID\s*=\s*([0-9a-f]+)`)
)

// describe reads the text that describes the disk, and returns the reason not to read it.
func (v *vmdk) describe(at, length uint64) (refusal, err error) {
	const parts = "the image is one of the files of a disk: put the whole together with qemu-img convert first"
	if at == 0 || length == 0 {
		return unsupported(parts), nil
	}
	if at > 1<<53 {
		return nil, v.file.corrupt("its descriptor would begin at sector %d", at)
	}
	text, err := v.file.part("its descriptor", int64(at)*sector, int64(min(length, maxDescriptor/sector))*sector)
	if err != nil {
		return nil, err
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	if len(bytes.TrimSpace(text)) == 0 {
		return unsupported(parts), nil
	}
	kind, parent := vmdkType.FindSubmatch(text), vmdkParent.FindSubmatch(text)
	switch {
	case kind == nil:
		return nil, v.file.corrupt("its descriptor does not say of which type it is")
	case !strings.EqualFold(string(kind[1]), "monolithicSparse") && !strings.EqualFold(string(kind[1]), "streamOptimized"):
		return unsupported("the image is of the type %q: "+strings.TrimPrefix(parts, "the image is "), kind[1]), nil
	case parent != nil && !strings.EqualFold(strings.TrimLeft(string(parent[1]), "0"), "ffffffff"):
		return unsupported("the image holds only what differs from its parent: put the whole together with qemu-img convert first"), nil
	}
	return nil, nil
}

// check implements mapping: every grain table is within the file, and there are no more of
// them than fit in it.
func (v *vmdk) check(t *tables) error {
	n := v.tables()
	if v.directory > v.file.size-n*4 {
		return v.file.truncated("its grain directory ends at byte %d of a file of %d", v.directory+n*4, v.file.size)
	}
	room := v.file.size / (v.entries * 4)
	for i := range n {
		at, err := v.entry(t, v.directory+i*4)
		if err != nil {
			return err
		}
		if at == 0 {
			continue
		}
		room--
		switch {
		case at+v.entries*4 > v.file.size:
			return v.file.truncated("grain table %d is at byte %d of a file of %d", i, at, v.file.size)
		case room < 0:
			return v.file.corrupt("it has more grain tables than fit in the file")
		}
	}
	return nil
}

// entry returns the offset in the file that a table entry has. Entries count sectors.
func (v *vmdk) entry(t *tables, at int64) (int64, error) {
	b, err := t.entry(at, 4)
	if err != nil {
		return 0, err
	}
	return int64(binary.LittleEndian.Uint32(b)) * sector, nil
}

// lookup implements mapping.
func (v *vmdk) lookup(t *tables, off int64) (extent, error) {
	table, err := v.entry(t, v.directory+off/v.span()*4)
	if err != nil {
		return extent{}, err
	}
	if table == 0 {
		return extent{hole: true, length: v.span() - off%v.span()}, nil
	}
	at, err := v.entry(t, table+off%v.span()/v.grain*4)
	if err != nil {
		return extent{}, err
	}
	e := extent{length: v.grain - off%v.grain}
	switch {
	case at == 0:
		e.hole = true
	case at == sector && v.flags&vmdkZeroed != 0:
	case v.flags&vmdkCompressed != 0:
		e.kind, e.method, e.host, e.within = compressed, grain, at, off%v.grain
		e.need = min(v.grain, v.size-(off-e.within))
	default:
		e.kind, e.host = data, at+off%v.grain
	}
	return e, nil
}

// grain returns the extent of a compressed grain behind its marker, which has its size.
func (i *Image) grain(e extent) (extent, error) {
	const marker = 12
	head, err := i.file.part(fmt.Sprintf("the grain of byte %d", e.host), e.host, marker)
	if err != nil {
		return e, err
	}
	e.bytes = int64(binary.LittleEndian.Uint32(head[8:]))
	// Data that do not compress take a few bytes more.
	if e.bytes == 0 || e.bytes > 2*i.header.Block {
		return e, i.file.corrupt("the grain at byte %d would have %d bytes", e.host, e.bytes)
	}
	e.host += marker
	if e.host >= i.file.size {
		return e, i.file.truncated("the grain at byte %d extends beyond the end of the file", e.host)
	}
	return e, nil
}
