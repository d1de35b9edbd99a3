package disk

import (
	"bytes"
	"strings"
	"unicode/utf16"
)

// A fat is a FAT12, FAT16 or FAT32 file system (Microsoft FAT specification, 2005).
type fat struct {
	span
	bits                  int
	cluster               int64 // bytes of a cluster
	table, folder, data   int64 // offsets: of the first FAT, the root directory of FAT12 and FAT16, and cluster 2
	folderBytes, clusters int64
	rootCluster           uint64
	name                  string // the label in the boot sector
}

const (
	fatEntry   = 32
	fatLabel   = 0x08 // attributes
	fatFolder  = 0x10
	fatLong    = 0x0f
	fatDeleted = 0xe5
)

// parseFAT returns the file system with this boot sector, or nil if it is none.
func parseFAT(p span, b []byte) *fat {
	if len(b) < 512 || b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 || bytes.HasPrefix(b[3:], []byte("NTFS")) || bytes.HasPrefix(b[3:], []byte("EXFAT")) {
		return nil
	}
	sectorBytes, perCluster, reserved, fats := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	entries, sectors, fatSectors := int64(le.Uint16(b[17:])), int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	f := &fat{span: p}
	extended := 36 // offset of the extended boot record
	if fatSectors == 0 {
		fatSectors, extended = int64(le.Uint32(b[36:])), 64
		f.bits, f.rootCluster = 32, uint64(le.Uint32(b[44:]))
	}
	switch {
	case sectorBytes < 512 || sectorBytes > 4096 || sectorBytes&(sectorBytes-1) != 0,
		perCluster == 0 || perCluster&(perCluster-1) != 0,
		reserved == 0 || fats == 0 || fats > 4 || fatSectors == 0,
		b[21] != 0xf0 && b[21] < 0xf8, // media
		(f.bits == 32) != (entries == 0):
		return nil
	}
	f.cluster = sectorBytes * perCluster
	f.table = reserved * sectorBytes
	f.folder = f.table + fats*fatSectors*sectorBytes
	f.folderBytes = entries * fatEntry
	f.data = f.folder + (f.folderBytes+sectorBytes-1)/sectorBytes*sectorBytes
	f.clusters = (sectors*sectorBytes - f.data) / f.cluster
	switch {
	case f.clusters < 1:
		return nil
	case f.bits == 32:
	case f.clusters < 4085:
		f.bits = 12
	default:
		f.bits = 16
	}
	if f.clusters > fatSectors*sectorBytes*8/int64(f.bits) {
		return nil
	}
	if b[extended+2] == 0x29 {
		if s := strings.TrimRight(string(b[extended+7:extended+18]), " "); s != "NO NAME" {
			f.name = s
		}
	}
	return f
}

func openFAT(p span) (tree, error) {
	b, err := p.bytes(0, 512)
	if err != nil {
		return nil, err
	}
	f := parseFAT(p, b)
	if f == nil {
		return nil, errDamaged
	}
	f.keep(f.table, (f.clusters+2)*int64(f.bits)/8)
	f.keep(f.folder, f.folderBytes)
	if f.bits == 32 {
		f.keep(f.data, f.cluster)
	}
	return f, nil
}

func (f *fat) root() (node, error) { return node{kind: dir, at: f.rootCluster}, nil }

// next returns the cluster after one, 0 at the end of a file.
func (f *fat) next(cluster uint64) (uint64, error) {
	off := int64(cluster) * int64(f.bits) / 8
	b, err := f.bytes(f.table+off, max(2, f.bits/8))
	if err != nil {
		return 0, err
	}
	var n, end uint64
	switch f.bits {
	case 12:
		n, end = uint64(le.Uint16(b)), 0xff8
		if cluster%2 == 1 {
			n >>= 4
		}
		n &= 0xfff
	case 16:
		n, end = uint64(le.Uint16(b)), 0xfff8
	default:
		n, end = uint64(le.Uint32(b)&0x0fffffff), 0x0ffffff8
	}
	if n >= end {
		return 0, nil
	}
	return n, f.valid(n)
}

// valid returns nil for a cluster that a file may have.
func (f *fat) valid(cluster uint64) error {
	if cluster < 2 || cluster >= uint64(f.clusters)+2 {
		return errDamaged
	}
	return nil
}

// chain calls yield for the clusters of a file, of which it reads size bytes at most, until that returns
// false.
func (f *fat) chain(first uint64, size int64, yield func(data []byte) bool) error {
	if err := f.valid(first); err != nil {
		return err
	}
	for n := int64(0); first != 0 && n < size; n += f.cluster {
		b, err := f.bytes(f.data+int64(first-2)*f.cluster, int(min(f.cluster, size-n)))
		if err != nil {
			return err
		}
		if !yield(b) {
			return nil
		}
		if first, err = f.next(first); err != nil {
			return err
		}
	}
	return nil
}

func (f *fat) read(n node, limit int) ([]byte, error) {
	limit = int(min(int64(limit), n.size))
	if limit == 0 {
		return nil, nil
	}
	var data []byte
	err := f.chain(n.at, int64(limit), func(b []byte) bool {
		data = append(data, b...)
		return len(data) < limit
	})
	if err == nil && len(data) < limit {
		err = errDamaged
	}
	if err != nil {
		return nil, err
	}
	return data[:limit], nil
}

func (f *fat) lookup(d node, name string) (node, error) {
	found, err := node{}, errMissing
	failed := f.entries(d, func(e []byte, long string) bool {
		if e[11]&fatLabel != 0 || !strings.EqualFold(long, name) && !strings.EqualFold(shortName(e), name) {
			return true
		}
		found, err = node{kind: file, size: int64(le.Uint32(e[28:])), at: uint64(le.Uint16(e[26:]))}, nil
		if f.bits == 32 {
			found.at |= uint64(le.Uint16(e[20:])&0x0fff) << 16
		}
		if e[11]&fatFolder != 0 {
			if found.kind, found.size = dir, 0; found.at == 0 { // ".." of a folder in the root
				found.at = f.rootCluster
			}
		}
		return false
	})
	if failed != nil {
		return node{}, failed
	}
	return found, err
}

// label returns the label in the root directory, or the one in the boot sector.
func (f *fat) label() string {
	label := f.name
	root, _ := f.root()
	_ = f.entries(root, func(e []byte, _ string) bool {
		if e[11]&(fatLabel|fatFolder) != fatLabel {
			return true
		}
		label = strings.TrimRight(string(e[:11]), " ")
		return false
	})
	return label
}

// entries calls yield for the entries of a directory with their long names, until that
// returns false.
func (f *fat) entries(d node, yield func(entry []byte, long string) bool) error {
	var long []uint16
	var sum byte
	ended := false
	block := func(b []byte) bool {
		for ; len(b) >= fatEntry && !ended; b = b[fatEntry:] {
			switch e := b[:fatEntry]; {
			case e[0] == 0:
				ended = true
			case e[0] == fatDeleted:
				long = nil
			case e[11]&0x3f == fatLong:
				const last = 0x40
				if e[0]&last != 0 {
					long, sum = nil, e[13]
				}
				if e[13] != sum || len(long) > 255 {
					long = nil
					continue
				}
				var part []uint16
				for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
					for i := r[0]; i < r[1]; i += 2 {
						part = append(part, le.Uint16(e[i:]))
					}
				}
				long = append(part, long...)
			default:
				name := ""
				if sum == shortSum(e) {
					name, _, _ = strings.Cut(string(utf16.Decode(long)), "\x00")
				}
				ended = !yield(e, name)
				long = nil
			}
		}
		return !ended
	}
	if d.at == 0 { // the root directory of FAT12 and FAT16
		b, err := f.bytes(f.folder, int(f.folderBytes))
		if err == nil {
			block(b)
		}
		return err
	}
	total := int64(0)
	err := f.chain(d.at, maxFolder, func(b []byte) bool {
		total += int64(len(b))
		return block(b)
	})
	if err == nil && !ended && total >= maxFolder {
		err = errTooLarge
	}
	return err
}

// shortName returns the name of an entry in the form NAME.EXT.
func shortName(e []byte) string {
	name, ext := strings.TrimRight(string(e[:8]), " "), strings.TrimRight(string(e[8:11]), " ")
	if ext == "" {
		return name
	}
	return name + "." + ext
}

// shortSum returns the checksum by which entries of a long name belong to e.
func shortSum(e []byte) (sum byte) {
	for _, c := range e[:11] {
		sum = sum<<7 + sum>>1 + c
	}
	return sum
}
