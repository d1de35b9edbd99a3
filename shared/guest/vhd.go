package guest

import (
	"bytes"
	"encoding/binary"
)

// Microsoft's "Virtual Hard Disk Image Format Specification" of 2006. Numbers are
// big-endian. A fixed VHD is the disk and a footer; a dynamic one begins with a copy of the
// footer. The bitmaps of the sectors of a block are not read, as in QEMU: without a parent,
// a sector that is not set is zero.

const (
	vhdCookie  = "conectix"
	vhdDynamic = "cxsparse"
	// vhdFooter is the number of bytes of the footer ("Hard Disk Footer Format").
	vhdFooter = 512
	vhdHeader = 1024 // of the header of a dynamic disk ("Dynamic Disk Header Format")

	// Types of disks.
	vhdTypeFixed, vhdTypeDynamic, vhdTypeDifferencing = 2, 3, 4

	// vhdMaxCHS is the largest geometry, in sectors. That of a larger disk is the same.
	vhdMaxCHS = 65535 * 16 * 255
)

func beginsVHD(head []byte) bool { return bytes.HasPrefix(head, []byte(vhdCookie)) }

// Fixed reports whether foot, the last 512 bytes of a file of size bytes, is the footer of
// a fixed VHD: the disk in it is the rest of the file.
func Fixed(foot []byte, size int64) bool {
	disk := uint64(size - vhdFooter)
	return vhdFooted(foot) && binary.BigEndian.Uint32(foot[60:]) == vhdTypeFixed && (binary.BigEndian.Uint64(foot[48:]) == disk || uint64(vhdSize(foot)) == disk)
}

// vhdFooted reports whether b is a footer with the right checksum: the complement of the
// sum of its other bytes.
func vhdFooted(b []byte) bool {
	return len(b) == vhdFooter && beginsVHD(b) && vhdSum(b, 64) == binary.BigEndian.Uint32(b[64:])
}

// vhdSum returns the checksum of b, which has it at an offset.
func vhdSum(b []byte, at int) (sum uint32) {
	for i, c := range b {
		if i < at || i >= at+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// vhdSize returns the number of bytes of the disk. Virtual PC and QEMU take it from the
// geometry, others from the footer's size; as in block/vpc.c of QEMU, the name of the
// program that wrote the file decides, unless the geometry is the largest one.
func vhdSize(foot []byte) int64 {
	chs := int64(binary.BigEndian.Uint16(foot[56:])) * int64(foot[58]) * int64(foot[59])
	if app := string(foot[28:32]); chs != vhdMaxCHS && (app == "vpc " || app == "qemu") {
		return chs * sector
	}
	return int64(min(binary.BigEndian.Uint64(foot[48:]), 1<<62)) &^ (sector - 1)
}

func readVHD(f *file) (Header, error) {
	h := Header{What: "a VHD (Hyper-V) image"}
	head, err := f.head(vhdFooter)
	if err != nil {
		return h, err
	}
	dynamic := beginsVHD(head)
	foot := head
	if !vhdFooted(foot) { // a fixed disk, or the copy is damaged
		if foot, err = f.part("its footer", f.size-vhdFooter, vhdFooter); err != nil {
			return h, err
		}
	}
	switch {
	case !vhdFooted(foot) && !dynamic && !beginsVHD(foot):
		return h, f.other()
	case !vhdFooted(foot):
		return h, f.corrupt("the checksum of its footer is wrong")
	}
	h.Size = vhdSize(foot)
	switch kind := binary.BigEndian.Uint32(foot[60:]); kind {
	case vhdTypeFixed:
		h.What, h.Block, h.mapping = "a fixed VHD (Hyper-V) image", maxPage, fixed{}
		if !Fixed(foot, f.size) {
			err = f.truncated("its disk of %d bytes is not the file of %d without the footer", h.Size, f.size)
		}
		h.Size = f.size - vhdFooter
	case vhdTypeDynamic:
		h.What = "a dynamic VHD (Hyper-V) image"
		err = h.readVHD(f, binary.BigEndian.Uint64(foot[16:]))
	case vhdTypeDifferencing:
		h.refusal = unsupported("the image holds only what differs from its parent: put the whole together with qemu-img convert first")
	default:
		err = f.corrupt("its type, %d, does not exist", kind)
	}
	return h, err
}

// readVHD reads the header of a dynamic disk.
func (h *Header) readVHD(f *file, at uint64) error {
	if at > 1<<62 {
		return f.corrupt("its header would begin at byte %d", at)
	}
	b, err := f.part("its header", int64(at), vhdHeader)
	if err != nil {
		return err
	}
	table, entries, block := binary.BigEndian.Uint64(b[16:]), int64(binary.BigEndian.Uint32(b[28:])), int64(binary.BigEndian.Uint32(b[32:]))
	switch {
	case string(b[:len(vhdDynamic)]) != vhdDynamic:
		return f.corrupt("there is no header at byte %d", at)
	case vhdSum(b, 36) != binary.BigEndian.Uint32(b[36:]):
		return f.corrupt("the checksum of its header is wrong")
	case table > 1<<62 || table%sector != 0:
		return f.corrupt("its table would begin at byte %d", table)
	case block < sector || block&(block-1) != 0:
		return f.corrupt("its blocks would have %d bytes", block)
	case entries < (h.Size+block-1)/block:
		return f.corrupt("its table has %d blocks of %d bytes, and the disk %d bytes", entries, block, h.Size)
	}
	bitmap := (block/sector/8 + sector - 1) &^ (sector - 1) // of the sectors, in front of each block
	h.Block = block
	h.mapping = &flat{file: f, table: int64(table), width: 4, size: h.Size, block: block, host: func(entry []byte) (int64, bool) {
		n := binary.BigEndian.Uint32(entry)
		if n == 1<<32-1 {
			return 0, true
		}
		return int64(n)*sector + bitmap, false
	}}
	return nil
}

// A fixed mapping is the disk itself, at the beginning of the file.
type fixed struct{}

func (fixed) check(*tables) error { return nil }

func (fixed) lookup(_ *tables, off int64) (extent, error) {
	return extent{kind: data, length: 1<<62 - off, host: off}, nil
}
