package disk

import (
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"
)

// A part is a partition and its bytes.
type part struct {
	Partition
	span
}

const (
	sectorBytes  = 512
	maxLogical   = 32        // logical partitions
	maxEntries   = 128       // of a GUID partition table
	maxTable     = 128 << 10 // bytes of one
	maxInspected = 32        // partitions whose file systems are read
)

// partitions returns the partition table.
func (i *inspection) partitions() (table Table, sector int, parts []part) {
	mbr, err := i.disk.bytes(0, sectorBytes)
	if err != nil {
		i.unknown("the first sector of the disk", err)
		return "", 0, nil
	}
	for _, size := range []int64{512, 4096} {
		head, err := i.disk.bytes(size, 92)
		if err != nil || string(head[:8]) != "EFI PART" {
			continue
		}
		parts, err := i.gpt(size, size)
		if err != nil && i.stream == nil { // the other copy is at the end
			if second, failed := i.gpt(size, (i.disk.size/size-1)*size); failed == nil {
				parts, err = second, nil
			}
		}
		if err != nil {
			i.unknown("the GUID partition table", err)
		}
		return GPT, int(size), parts
	}
	if mbr[510] == 0x55 && mbr[511] == 0xaa && parseFAT(i.disk, mbr) == nil {
		if parts := i.mbr(mbr); len(parts) > 0 {
			return MBR, sectorBytes, parts
		}
	}
	return None, 0, nil
}

// gpt returns the partitions of a GUID partition table (UEFI specification, section 5.3)
// whose header is at an offset, if its checksums are right.
func (i *inspection) gpt(sector, at int64) ([]part, error) {
	h, err := i.disk.bytes(at, int(sector))
	if err != nil {
		return nil, err
	}
	headBytes := int(le.Uint32(h[12:]))
	if string(h[:8]) != "EFI PART" || headBytes < 92 || headBytes > len(h) {
		return nil, errDamaged
	}
	sum := le.Uint32(h[16:])
	copy(h[16:20], "\x00\x00\x00\x00")
	if crc32.ChecksumIEEE(h[:headBytes]) != sum {
		return nil, errDamaged
	}
	first, n, size := int64(le.Uint64(h[72:])), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if size < 128 || size > 4096 || n > maxTable/size || first < 0 || first > i.disk.size/sector {
		return nil, errTooLarge
	}
	table, err := i.disk.bytes(first*sector, int(n*size))
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, errDamaged
	}
	var parts []part
	for number := 1; len(table) > 0 && len(parts) < maxEntries; number, table = number+1, table[size:] {
		e := table[:size]
		start, last := int64(le.Uint64(e[32:])), int64(le.Uint64(e[40:]))
		if zeros(e[:16]) || start < 0 || last < start || last > (1<<62)/sector {
			continue
		}
		label := make([]uint16, 36)
		for j := range label {
			label[j] = le.Uint16(e[56+2*j:])
		}
		name, _, _ := strings.Cut(string(utf16.Decode(label)), "\x00")
		parts = append(parts, i.part(number, guid(e), name, start*sector, (last-start+1)*sector))
	}
	return parts, nil
}

// guid returns a GUID as text.
func guid(b []byte) string {
	return fmt.Sprintf("%08X-%04X-%04X-%04X-%012X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), be.Uint16(b[8:]), b[10:16])
}

func (i *inspection) part(number int, kind, label string, start, size int64) part {
	return part{Partition{Number: number, Type: kind, Label: clean(label), StartBytes: start, SizeBytes: size}, i.disk.sub(start, size)}
}

// mbr returns the partitions of a master boot record, logical ones included. There are none
// if it is not valid, since the boot sector of a file system has the same signature.
func (i *inspection) mbr(b []byte) (parts []part) {
	var extended int64
	for n := range 4 {
		e := b[446+16*n:]
		kind, start, size := e[4], int64(le.Uint32(e[8:]))*sectorBytes, int64(le.Uint32(e[12:]))*sectorBytes
		if e[0]&0x7f != 0 {
			return nil
		}
		if kind == 0 || size == 0 {
			continue
		}
		if start == 0 && !i.iso && kind != 0xee { // the whole of an ISO image may be a partition
			return nil
		}
		parts = append(parts, i.part(n+1, fmt.Sprintf("%02x", kind), "", start, size))
		if kind == 0x05 || kind == 0x0f || kind == 0x85 {
			extended = start
		}
	}
	if extended == 0 {
		return parts
	}
	for at := extended; ; {
		b, err := i.disk.bytes(at, sectorBytes)
		if err == nil && (b[510] != 0x55 || b[511] != 0xaa) {
			err = errDamaged
		}
		if err != nil {
			i.unknown("the list of logical partitions", err)
			return parts
		}
		e, next := b[446:], int64(le.Uint32(b[446+16+8:]))*sectorBytes
		if size := int64(le.Uint32(e[12:])) * sectorBytes; size > 0 {
			parts = append(parts, i.part(5+len(parts)-primaries(parts), fmt.Sprintf("%02x", e[4]), "", at+int64(le.Uint32(e[8:]))*sectorBytes, size))
		}
		if next == 0 || len(parts) >= 4+maxLogical || extended+next <= at { // a ring, or an order that no tool makes
			return parts
		}
		at = extended + next
	}
}

// primaries returns the number of partitions that are not logical.
func primaries(parts []part) (n int) {
	for _, p := range parts {
		if p.Number <= 4 {
			n++
		}
	}
	return n
}
