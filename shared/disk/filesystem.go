package disk

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf16"
)

// A fileSystem is how to recognise one and what else is in a partition, and to read it.
type fileSystem struct {
	name  string // see [Partition.Filesystem]
	at    int64
	magic string
	// label is where the label is; zero: there is none that is read.
	label, size int64
	// open is nil if it is not read.
	open func(span, Unpacker) (tree, error)
	// why is why it is not read, as the end of a sentence, if open is nil; "": there is
	// nothing to read.
	why string
}

const notRead = "its files are not read"

// fileSystems are tried in this order. To have another one read, implement [tree].
var fileSystems = []fileSystem{
	{name: "crypto_LUKS", at: 0, magic: "LUKS\xba\xbe", label: 24, size: 48, why: "it is encrypted"},
	{name: "BitLocker", at: 3, magic: "-FVE-FS-", why: "it is encrypted"},
	{name: "LVM2_member", at: 512, magic: "LABELONE", why: "it is a volume of LVM, which is not read"},
	{name: "linux_raid_member", at: 4096, magic: "\xfc\x4e\x2b\xa9", label: 4096 + 32, size: 32, why: "it is a part of a RAID, which is not read"},
	{name: "linux_raid_member", at: 0, magic: "\xfc\x4e\x2b\xa9", label: 32, size: 32, why: "it is a part of a RAID, which is not read"},
	{name: "ext4", at: extSuper + 56, magic: "\x53\xef", label: extSuper + 120, size: 16, open: func(p span, _ Unpacker) (tree, error) { return openExt(p) }},
	{name: "squashfs", at: 0, magic: "hsqs", open: openSquash},
	{name: "iso9660", at: 16*isoSector + 1, magic: "CD001", label: 16*isoSector + 40, size: 32, open: func(p span, _ Unpacker) (tree, error) { return openISO(p) }},
	{name: "xfs", at: 0, magic: "XFSB", label: 108, size: 12, why: notRead},
	{name: "btrfs", at: 65536 + 64, magic: "_BHRfS_M", label: 65536 + 299, size: 256, why: notRead},
	{name: "f2fs", at: 1024, magic: "\x10\x20\xf5\xf2", why: notRead},
	{name: "erofs", at: 1024, magic: "\xe2\xe1\xf5\xe0", label: 1024 + 64, size: 16, why: notRead},
	{name: "bcachefs", at: 4096 + 24, magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", why: notRead},
	{name: "exfat", at: 3, magic: "EXFAT   ", why: notRead},
	{name: "ntfs", at: 3, magic: "NTFS    ", why: notRead},
	{name: "ufs", at: 65536 + 1372, magic: "\x19\x01\x54\x19", why: notRead},
	{name: "ufs", at: 8192 + 1372, magic: "\x54\x19\x01\x00", why: notRead},
	{name: "hfsplus", at: 1024, magic: "H+\x00\x04", why: notRead},
	{name: "swap", at: 4086, magic: "SWAPSPACE2", label: 1024 + 28, size: 16},
	{name: "DM_verity_hash", at: 0, magic: "verity\x00\x00"},
	{name: "vfat", at: 510, magic: "\x55\xaa", open: func(p span, _ Unpacker) (tree, error) { return openFAT(p) }},
}

// recognise returns the file system in a span and its label; nil: it has none that is known.
func recognise(p span) (*fileSystem, string, error) {
	p.keep(0, partitionBytes)
	for n := range fileSystems {
		fs := &fileSystems[n]
		b, err := p.bytes(fs.at, len(fs.magic))
		if err != nil && !errors.Is(err, errEnd) {
			return nil, "", err
		}
		if err != nil || string(b) != fs.magic {
			continue
		}
		found := *fs
		switch fs.name {
		case "vfat":
			b, err := p.bytes(0, sectorBytes)
			if err != nil {
				return nil, "", err
			}
			f := parseFAT(p, b)
			if f == nil {
				continue
			}
			return fs, clean(f.label()), nil
		case "ext4":
			b, err := p.bytes(extSuper, 1024)
			if err != nil {
				return nil, "", err
			}
			if found.name = extVersion(b); found.name == "jbd" {
				found.open, found.why = nil, notRead
			}
		case "f2fs":
			if b, err := p.upTo(extSuper+124, 128); err == nil {
				units := make([]uint16, len(b)/2)
				for i := range units {
					units[i] = le.Uint16(b[2*i:])
				}
				name, _, _ := strings.Cut(string(utf16.Decode(units)), "\x00")
				return fs, clean(name), nil
			}
		case "iso9660":
			if b, err := p.upTo(18*isoSector, 12*isoSector); err == nil && (bytes.Contains(b, []byte("\x00NSR02\x01")) || bytes.Contains(b, []byte("\x00NSR03\x01"))) {
				found.name = "udf" // as well
			}
		}
		b, err = p.upTo(found.label, int(found.size))
		if err != nil {
			return nil, "", err
		}
		label, _, _ := strings.Cut(string(b), "\x00")
		return &found, clean(strings.TrimRight(label, " ")), nil
	}
	return nil, "", nil
}
