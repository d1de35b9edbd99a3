// Package boot finds out which firmware can start a disk, by the bytes of the disk: code
// that a BIOS runs, and partitions or catalogs that name an EFI system partition. It does
// not look into file systems.
package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// Ways are the kinds of firmware that find something to start on a disk.
type Ways struct {
	// BIOS: the first sector has code, or an El Torito catalog has an entry for x86.
	BIOS bool `json:"bios"`
	// UEFI: a partition table or an El Torito catalog has an EFI system partition.
	UEFI bool `json:"uefi"`
}

// Any reports whether any firmware can start the disk.
func (w Ways) Any() bool { return w.BIOS || w.UEFI }

const (
	sector   = 512  // of a disk; firmware finds nothing on one that was made for another size
	cdSector = 2048 // of ISO 9660
	// maxTable limits the bytes of a GUID partition table that are read, which has 16 KiB
	// by custom.
	maxTable = 64 << 10
)

// Find returns what firmware can start the disk, as [Inspect] finds it.
func Find(r io.ReaderAt) (Ways, error) {
	f, err := Inspect(r)
	return Ways{BIOS: f.Code || f.CD.BIOS, UEFI: f.ESP || f.CD.UEFI}, err
}

// Found is what firmware finds on a disk.
type Found struct {
	Code bool // the first sector has boot code
	ESP  bool // a partition table has an EFI system partition
	CD   Ways // what the El Torito catalog has entries for
	// CDImage is the offset of the file system that the catalog has for UEFI; 0: none.
	CDImage int64
}

// Inspect reads the beginning of a disk: the first sector, the GUID partition table (at most
// 64 KiB), and the El Torito boot catalog (one sector). The error is r's, except io.EOF:
// what is not there counts as empty.
func Inspect(r io.ReaderAt) (Found, error) {
	d := disk{r: r}
	mbr := d.mbr()
	gpt := d.gpt()
	f := Found{Code: hasCode(mbr), ESP: hasType(mbr) || gpt}
	f.CD, f.CDImage = d.elTorito()
	if d.err != nil {
		return Found{}, d.err
	}
	return f, nil
}

// A disk keeps the first error of its reader.
type disk struct {
	r   io.ReaderAt
	err error
}

// read returns n bytes at an offset, or nil if they are not on the disk.
func (d *disk) read(off int64, n int) []byte {
	if d.err != nil || off < 0 {
		return nil
	}
	b := make([]byte, n)
	got, err := d.r.ReadAt(b, off)
	if got == n {
		return b
	}
	if !errors.Is(err, io.EOF) {
		d.err = err
	}
	return nil
}

// signature is the offset of 55 AA in a master boot record.
const signature = 510

// mbr returns the master boot record, or nil if there is none.
func (d *disk) mbr() []byte {
	b := d.read(0, sector)
	if b == nil || b[signature] != 0x55 || b[signature+1] != 0xaa {
		return nil
	}
	return b
}

// hasCode reports whether a BIOS runs a master boot record, from its first byte on, and its
// code is not that by which mkfs.fat and mkntfs say that there is none.
func hasCode(mbr []byte) bool {
	return mbr != nil && mbr[0] != 0 && !bytes.Contains(mbr, []byte("This is not a bootable disk"))
}

// hasType reports whether a master boot record has an EFI system partition (UEFI
// specification, section 5.2).
func hasType(mbr []byte) bool {
	const table, size, esp = 446, 16, 0xef
	if mbr == nil {
		return false
	}
	for e := mbr[table:signature]; len(e) > 0; e = e[size:] {
		if e[0]&0x7f != 0 { // no partition table, but code
			return false
		}
		if e[4] == esp && binary.LittleEndian.Uint32(e[12:]) != 0 {
			return true
		}
	}
	return false
}

// espType is the type of an EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B
// (UEFI specification, table 5.7).
const espType = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"

// gpt reports whether a GUID partition table has an EFI system partition (UEFI
// specification, section 5.3).
func (d *disk) gpt() bool {
	h := d.read(sector, sector)
	if !bytes.HasPrefix(h, []byte("EFI PART")) {
		return false
	}
	at, n, size := binary.LittleEndian.Uint64(h[72:]), binary.LittleEndian.Uint32(h[80:]), int(binary.LittleEndian.Uint32(h[84:]))
	if at > 1<<40 || size < 128 || size > maxTable {
		return false
	}
	table := d.read(int64(at)*sector, size*int(min(n, uint32(maxTable/size))))
	for ; len(table) > 0; table = table[size:] {
		if bytes.HasPrefix(table, []byte(espType)) {
			return true
		}
	}
	return false
}

// elTorito returns what the boot catalog of an ISO 9660 image has for which firmware (El
// Torito Bootable CD-ROM Format Specification 1.0, section 2; UEFI specification, section
// 13.3.2.1), and the offset of what it has for UEFI.
func (d *disk) elTorito() (w Ways, efi int64) {
	const record, catalog, entry = 17 * cdSector, 0x47, 32
	b := d.read(record, cdSector)
	if !bytes.HasPrefix(b, []byte("\x00CD001\x01EL TORITO SPECIFICATION")) {
		return w, 0
	}
	c := d.read(int64(binary.LittleEndian.Uint32(b[catalog:]))*cdSector, cdSector)
	if c == nil || c[0] != 1 || c[30] != 0x55 || c[31] != 0xaa { // the validation entry
		return w, 0
	}
	platform := c[1]
	for e := c[entry:]; len(e) > 0; e = e[entry:] {
		switch e[0] {
		case 0x90, 0x91: // a header: of more sections, and the last one
			platform = e[1]
		case 0x88: // bootable
			w.BIOS = w.BIOS || platform == 0
			if platform == 0xef && !w.UEFI {
				w.UEFI, efi = true, int64(binary.LittleEndian.Uint32(e[8:]))*cdSector
			}
		}
	}
	return w, efi
}
