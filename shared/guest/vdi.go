package guest

import (
	"bytes"
	"encoding/binary"
)

// VirtualBox's format, version 1.1, of VDICore.h in its sources, and as block/vdi.c of
// QEMU reads it. Numbers are little-endian.

const (
	vdiSignature = "\x7f\x10\xda\xbe"
	vdiSignedAt  = 0x40
	vdiHeader    = 0x1c8 // bytes of the header that are used
	vdiVersion   = 1<<16 | 1
	vdiMaxBlock  = 256 << 20

	// Types of images.
	vdiDynamic, vdiStatic = 1, 2
)

func beginsVDI(head []byte) bool {
	return len(head) >= vdiSignedAt+4 && string(head[vdiSignedAt:vdiSignedAt+4]) == vdiSignature
}

func readVDI(f *file) (Header, error) {
	h := Header{What: "a VDI (VirtualBox) image"}
	b, err := f.head(sector)
	switch {
	case err != nil:
		return h, err
	case !beginsVDI(b):
		return h, f.other()
	case len(b) < vdiHeader:
		return h, f.truncated("it ends within its header")
	}
	u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(b[at:])) }
	version, kind, table, stored, unit := u32(0x44), u32(0x4c), u32(0x154), u32(0x158), u32(0x168)
	size, block, extra, blocks := binary.LittleEndian.Uint64(b[0x170:]), u32(0x178), u32(0x17c), u32(0x180)
	if version != vdiVersion {
		return h, unsupported("the image is of version %d.%d of the VDI format; version 1.1 is known", version>>16, version&0xffff)
	}
	if size > 1<<62 {
		return h, f.corrupt("its disk would have %d bytes", size)
	}
	h.Size, h.Block = (int64(size)+sector-1)&^(sector-1), block // VBoxManage makes disks of odd sizes
	switch {
	case block < sector || block > vdiMaxBlock || block&(block-1) != 0:
		return h, f.corrupt("its blocks would have %d bytes", block)
	case table%sector != 0 || stored%sector != 0 || stored == 0 || unit != sector:
		return h, f.corrupt("its table at byte %d, its data at byte %d or its sectors of %d bytes are none that VirtualBox writes", table, stored, unit)
	case blocks < (h.Size+block-1)/block:
		return h, f.corrupt("its table has %d blocks of %d bytes, and the disk %d bytes", blocks, block, h.Size)
	case kind != vdiDynamic && kind != vdiStatic || !bytes.Equal(b[0x1a8:0x1c8], make([]byte, 32)):
		h.refusal = unsupported("the image holds only what differs from its parent: put the whole together with qemu-img convert first")
	case extra != 0:
		h.refusal = unsupported("the image has %d bytes of other data in each block, which is not known here: convert it with VBoxManage first", extra)
	}
	h.mapping = &flat{file: f, table: table, width: 4, size: h.Size, block: block, host: func(entry []byte) (int64, bool) {
		n := int64(binary.LittleEndian.Uint32(entry))
		if n >= 1<<32-2 { // unallocated, or zero
			return 0, n == 1<<32-1
		}
		return stored + n*block, false
	}}
	return h, nil
}
