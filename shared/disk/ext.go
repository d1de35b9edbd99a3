package disk

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

var le, be = binary.LittleEndian, binary.BigEndian

// An ext is an ext2, ext3 or ext4 file system
// (https://docs.kernel.org/filesystems/ext4/index.html). What has a checksum is read only if
// that is right.
type ext struct {
	span
	block                    int64
	inodes, perGroup, groups uint32
	inodeSize, descSize      int64
	table                    int64 // of group descriptors
	sums                     bool
	seed                     uint32
}

const (
	extSuper = 1024 // offset of the superblock

	extHasJournal   = 0x4    // compatible features
	extRecover      = 0x4    // incompatible ones
	extJournalDev   = 0x8    //
	ext64Bit        = 0x80   //
	extSeed         = 0x2000 //
	extOnly4        = 0x2c0  // extents, 64bit, flex_bg
	extKnown        = 0x2 | extRecover | extOnly4 | 0x100 | 0x400 | extSeed | 0x4000 | 0x8000 | 0x10000 | 0x20000
	extOnly4RO      = 0x478 // huge_file, gdt_csum, dir_nlink, extra_isize, metadata_csum
	extMetadataSums = 0x400 // read-only compatible

	extInodeIndex     = 0x1000
	extInodeExtents   = 0x80000
	extInodeInline    = 0x10000000
	extInodeEncrypted = 0x800
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// extSum continues a checksum as ext4 does, which neither begins nor ends with a complement.
func extSum(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// extVersion returns the name of a file system with these features.
func extVersion(super []byte) string {
	compat, incompat, ro := le.Uint32(super[92:]), le.Uint32(super[96:]), le.Uint32(super[100:])
	switch {
	case incompat&extJournalDev != 0:
		return "jbd"
	case incompat&extOnly4 != 0 || ro&extOnly4RO != 0:
		return "ext4"
	case compat&extHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

func openExt(p span) (tree, error) {
	b, err := p.bytes(extSuper, 1024)
	if err != nil {
		return nil, err
	}
	incompat, ro := le.Uint32(b[96:]), le.Uint32(b[100:])
	e := &ext{span: p, inodes: le.Uint32(b), perGroup: le.Uint32(b[40:]), inodeSize: 128, descSize: 32}
	if e.sums = ro&extMetadataSums != 0; e.sums {
		if extSum(^uint32(0), b[:1020]) != le.Uint32(b[1020:]) {
			return nil, errDamaged
		}
		e.seed = extSum(^uint32(0), b[104:120]) // of the UUID
		if incompat&extSeed != 0 {
			e.seed = le.Uint32(b[0x270:])
		}
	}
	switch {
	case incompat&^extKnown != 0:
		return nil, unsupported("it has the features %#x, which are not read", incompat&^extKnown)
	case incompat&extRecover != 0:
		return nil, unsupported("it was not unmounted, so its journal has to be replayed first")
	}
	if le.Uint32(b[76:]) > 0 { // revision
		e.inodeSize = int64(le.Uint16(b[88:]))
	}
	if incompat&ext64Bit != 0 {
		e.descSize = int64(le.Uint16(b[254:]))
	}
	shift := le.Uint32(b[24:])
	if shift > 6 || e.inodes == 0 || e.perGroup == 0 || e.inodeSize < 128 || e.inodeSize > 1024<<shift || e.descSize < 32 || e.descSize > 1024 {
		return nil, errDamaged
	}
	e.block = 1024 << shift
	e.table = (int64(le.Uint32(b[20:])) + 1) * e.block
	e.groups = (e.inodes-1)/e.perGroup + 1
	e.keepInodes()
	return e, nil
}

// maxKept limits the group descriptors whose inodes are kept.
const maxKept = 1024

// keepInodes asks a [Stream] for all inodes, since directories are behind them, in any
// order.
func (e *ext) keepInodes() {
	if e.stream == nil {
		return
	}
	for g := range min(e.groups, maxKept) {
		const uninitialised = 1
		if d, err := e.bytes(e.table+int64(g)*e.descSize, int(e.descSize)); err == nil && le.Uint16(d[18:])&uninitialised == 0 {
			e.keep(e.inodeTable(d), int64(e.perGroup)*e.inodeSize)
		}
	}
}

// inodeTable returns the offset of the inodes of a group.
func (e *ext) inodeTable(desc []byte) int64 {
	block := int64(le.Uint32(desc[8:]))
	if len(desc) >= 64 {
		block += int64(le.Uint32(desc[40:])) << 32
	}
	if block > e.size/e.block {
		return e.size
	}
	return block * e.block
}

// inode returns the bytes of an inode.
func (e *ext) inode(number uint32) ([]byte, error) {
	if number == 0 || number > e.inodes {
		return nil, errDamaged
	}
	group, index := (number-1)/e.perGroup, (number-1)%e.perGroup
	desc, err := e.bytes(e.table+int64(group)*e.descSize, int(e.descSize))
	if err != nil {
		return nil, err
	}
	b, err := e.bytes(e.inodeTable(desc)+int64(index)*e.inodeSize, int(e.inodeSize))
	if err != nil || !e.sums {
		return b, err
	}
	c := slices.Clone(b)
	want, mask := uint32(le.Uint16(c[124:])), uint32(0xffff)
	c[124], c[125] = 0, 0
	if len(c) > 128 && le.Uint16(c[128:]) >= 4 { // the extra fields have the other half
		want, mask = want|uint32(le.Uint16(c[130:]))<<16, 0xffffffff
		c[130], c[131] = 0, 0
	}
	sum := extSum(extSum(extSum(e.seed, le.AppendUint32(nil, number)), b[100:104]), c) & mask
	if sum != want {
		return nil, errDamaged
	}
	return b, nil
}

func (e *ext) root() (node, error) { return e.node(2) }

// node returns the node of an inode.
func (e *ext) node(number uint32) (node, error) {
	b, err := e.inode(number)
	if err != nil {
		return node{}, err
	}
	n := node{kind: special, size: int64(le.Uint32(b[4:])), at: uint64(number)}
	switch le.Uint16(b) & 0xf000 {
	case 0x4000:
		n.kind = dir
	case 0x8000:
		n.kind = file
		n.size += int64(le.Uint32(b[108:])) << 32
	case 0xa000:
		n.kind = link
	case 0:
		return node{}, errDamaged // of a file that was deleted
	}
	if n.size < 0 {
		return node{}, errDamaged
	}
	return n, nil
}

func (e *ext) lookup(d node, name string) (node, error) {
	if d.size > maxFolder {
		return node{}, errTooLarge
	}
	inode, err := e.inode(uint32(d.at))
	if err != nil {
		return node{}, err
	}
	if le.Uint32(inode[32:])&extInodeEncrypted != 0 {
		return node{}, unsupported("it has an encrypted directory")
	}
	for i := range d.size / e.block {
		b, err := e.fileBlock(inode, uint32(i), e.block)
		if err != nil {
			return node{}, err
		}
		if b == nil || !e.dirSum(inode, uint32(d.at), i, b) {
			return node{}, errDamaged
		}
		number, err := extEntry(b, name)
		if err != nil {
			return node{}, err
		}
		if number != 0 {
			return e.node(number)
		}
	}
	return node{}, errMissing
}

// extEntry returns the inode of a name in a block of a directory, 0 if it is not there.
func extEntry(b []byte, name string) (uint32, error) {
	for len(b) > 0 {
		if len(b) < 8 {
			return 0, errDamaged
		}
		number, length, n := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if length == 0 || length == 0xffff { // of blocks of 64 KiB
			length = 64 << 10
		}
		if length < 8 || length > len(b) || length < 8+n {
			return 0, errDamaged
		}
		if number != 0 && string(b[8:8+n]) == name {
			return number, nil
		}
		b = b[length:]
	}
	return 0, nil
}

// dirSum reports whether the checksum of a block of a directory is right. Blocks of its
// index have another one, but no names.
func (e *ext) dirSum(inode []byte, number uint32, block int64, b []byte) bool {
	indexed := le.Uint32(inode[32:])&extInodeIndex != 0
	if !e.sums || indexed && (block == 0 || le.Uint32(b) == 0 && int64(le.Uint16(b[4:])) == e.block) {
		return true
	}
	end := len(b) - 12
	if tail := b[end:]; le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != 12 || tail[6] != 0 || tail[7] != 0xde {
		return false
	}
	seed := extSum(extSum(e.seed, le.AppendUint32(nil, number)), inode[100:104])
	return extSum(seed, b[:end]) == le.Uint32(b[end+8:])
}

func (e *ext) read(f node, n int) ([]byte, error) {
	inode, err := e.inode(uint32(f.at))
	if err != nil {
		return nil, err
	}
	n = int(min(int64(n), f.size))
	flags := le.Uint32(inode[32:])
	const fast = 60
	switch {
	case f.kind == link && f.size < fast && flags&extInodeExtents == 0:
		return inode[40 : 40+n], nil
	case flags&extInodeEncrypted != 0:
		return nil, unsupported("it is encrypted")
	}
	var data []byte
	for i := uint32(0); len(data) < n; i++ {
		size := min(e.block, int64(n-len(data)))
		b, err := e.fileBlock(inode, i, size)
		if err != nil {
			return nil, err
		}
		if b == nil { // a hole
			b = make([]byte, size)
		}
		data = append(data, b...)
	}
	return data, nil
}

// fileBlock returns the first n bytes of a block of a file by its number in it, nil if it is a
// hole.
func (e *ext) fileBlock(inode []byte, number uint32, n int64) ([]byte, error) {
	flags, at, err := le.Uint32(inode[32:]), int64(0), error(nil)
	switch {
	case flags&extInodeInline != 0:
		return nil, unsupported("it has files in inodes, which are not read")
	case flags&extInodeExtents != 0:
		at, err = e.extent(inode[40:100], number)
	default:
		at, err = e.mapped(inode[40:100], number)
	}
	if err != nil || at == 0 {
		return nil, err
	}
	if at > e.size/e.block {
		return nil, errEnd
	}
	return e.bytes(at*e.block, int(n))
}

// extent returns the block on the disk that a tree of extents has for a block of a file.
func (e *ext) extent(b []byte, number uint32) (int64, error) {
	const maxDepth = 5
	for last := maxDepth + 1; ; {
		n, depth := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
		if le.Uint16(b) != 0xf30a || 12+12*n > len(b) || depth >= last {
			return 0, errDamaged
		}
		last = depth
		entries := b[12 : 12+12*n]
		if depth == 0 {
			for ; len(entries) > 0; entries = entries[12:] {
				first, length := le.Uint32(entries), uint32(le.Uint16(entries[4:]))
				const unwritten = 1 << 15
				if length > unwritten { // reads as zeros
					if length -= unwritten; number >= first && number-first < length {
						return 0, nil
					}
				} else if number >= first && number-first < length {
					return int64(le.Uint16(entries[6:]))<<32 + int64(le.Uint32(entries[8:])) + int64(number-first), nil
				}
			}
			return 0, nil
		}
		next := int64(0)
		for ; len(entries) > 0 && le.Uint32(entries) <= number; entries = entries[12:] {
			next = int64(le.Uint16(entries[8:]))<<32 + int64(le.Uint32(entries[4:]))
		}
		if next == 0 {
			return 0, nil
		}
		if next > e.size/e.block {
			return 0, errEnd
		}
		var err error
		if b, err = e.bytes(next*e.block, int(e.block)); err != nil {
			return 0, err
		}
	}
}

// mapped returns the block on the disk that the block map of ext2 has for a block of a file.
func (e *ext) mapped(b []byte, number uint32) (int64, error) {
	const direct = 12
	if number < direct {
		return int64(le.Uint32(b[4*number:])), nil
	}
	n, per := int64(number-direct), e.block/4
	depth := 1
	for size := per; n >= size && depth < 3; depth++ {
		n -= size
		size *= per
	}
	at := int64(le.Uint32(b[4*(direct+depth-1):]))
	for ; depth > 0 && at != 0; depth-- {
		size := int64(1)
		for range depth - 1 {
			size *= per
		}
		if n/size >= per {
			return 0, errTooLarge
		}
		if at > e.size/e.block {
			return 0, errEnd
		}
		entry, err := e.bytes(at*e.block+4*(n/size), 4)
		if err != nil {
			return 0, err
		}
		at, n = int64(le.Uint32(entry)), n%size
	}
	return at, nil
}
