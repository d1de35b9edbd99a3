package content

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"net/http"
	"slices"

	"imageroot/shared/guest"
	"imageroot/shared/image"
)

// A magic is the bytes by which a format is detected, and their offset.
type magic struct {
	offset int
	bytes  string
	what   string
}

func (m magic) in(head []byte) bool { return image.At(head, m.offset, m.bytes) }

// fileSystems has the magics and sizes of Linux (include/uapi/linux/magic.h, fs/*/)
// and of util-linux's libblkid.
var fileSystems = []struct {
	magic
	size func(head []byte) uint64 // in bytes; nil: not read
}{
	{magic{0x438, "\x53\xef", "an ext2, ext3 or ext4 file system"}, extSize},
	{magic{0, "XFSB", "an xfs file system"}, func(b []byte) uint64 { return be64(b, 8) * uint64(be32(b, 4)) }},
	{magic{0x10040, "_BHRfS_M", "a btrfs file system"}, func(b []byte) uint64 { return le64(b, 0x10070) }},
	{magic{0, "hsqs", "a squashfs file system"}, func(b []byte) uint64 { return le64(b, 40) }},
	{magic{0x400, "\x10\x20\xf5\xf2", "an f2fs file system"}, nil},
	{magic{0x400, "\xe2\xe1\xf5\xe0", "an erofs file system"}, nil},
	{magic{0x36, "FAT12   ", "a FAT file system"}, nil},
	{magic{0x36, "FAT16   ", "a FAT file system"}, nil},
	{magic{0x52, "FAT32   ", "a FAT file system"}, nil},
	{magic{3, "NTFS    ", "an NTFS file system"}, nil},
	{magic{3, "EXFAT   ", "an exFAT file system"}, nil},
	{magic{0x400, "H+\x00\x04", "an HFS+ file system"}, nil},
	{magic{0x200, "PM\x00\x00", "a disk with an Apple partition map"}, nil},
	{magic{0x200, "\x57\x45\x56\x82", "a disk with a BSD disklabel"}, nil},
	{magic{0x10034, "ReIsEr", "a ReiserFS file system"}, nil},
	{magic{0x8000, "JFS1", "a JFS file system"}, nil},
	{magic{0x406, "\x34\x34", "a NILFS2 file system"}, nil},
	{magic{0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcachefs file system"}, nil},
	{magic{0, "\x45\x3d\xcd\x28", "a cramfs file system"}, nil},
	{magic{0, "-rom1fs-", "a romfs file system"}, nil},
	{magic{0x20, "NXSB", "an APFS container"}, nil},
	{magic{0x55c, "\x19\x01\x54\x19", "a UFS file system"}, nil},
	{magic{0x1055c, "\x19\x01\x54\x19", "a UFS file system"}, nil},
	{magic{0xff6, "SWAPSPACE2", "a swap area"}, nil},
	{magic{0x1000, "\xfc\x4e\x2b\xa9", "a member of a RAID array (md)"}, nil},
	{magic{0, "LUKS\xba\xbe", "an encrypted (LUKS) volume"}, nil},
	{magic{0x218, "LVM2 001", "an LVM volume"}, nil},
}

// foreign has files in which this program finds no disk: images that only other
// programs read, firmware that is flashed by other means, archives.
var foreign = []magic{
	// Disks of virtual machines, and copies of disks.
	{0, "COWD", "a VMDK (VMware ESX) image"},
	{0, "# Disk DescriptorFile", "a description of a VMDK (VMware) image, without the image"},
	{0, "QFI\xfb\x00\x00\x00\x01", "a qcow image of version 1"},
	{0, "QED\x00", "a QED (QEMU) image"},
	{0, "WithoutFreeSpace", "a Parallels image"},
	{0, "WithouFreSpacExt", "a Parallels image"}, // the magic of version 2 is as long
	{0, "Bochs Virtual HD Image", "a Bochs image"},
	{0, "VMA\x00", "a Proxmox backup (VMA)"},
	{0, "MSWIM\x00\x00\x00", "a WIM (Windows) image"},
	{0, "EVF\x09\x0d\x0a\xff\x00", "an EnCase (EWF) image"},
	{0, "partclone-image", "a partclone (Clonezilla) image of a file system"},
	{0, "PaRtImAgE-VoLuMe", "a Partimage image of a file system"},
	{0, "\x00ntfsclone-image", "an ntfsclone image of a file system"},
	{0, "FsArCh_00", "an FSArchiver image of file systems"},
	{0, "IsZ!", "an ISZ image"},
	{0, "CISO", "a CSO image"},
	// Firmware for boards, flashed over USB or by a boot loader.
	{0, "\x3a\xff\x26\xed", "an Android sparse image (simg2img makes a raw one of it)"}, // libsparse, sparse_format.h
	{0, "ANDROID!", "an Android boot image"},                                            // bootimg.h
	{0, "VNDRBOOT", "an Android vendor boot image"},
	{0, "CrAU", "an Android update"}, // update_metadata.proto
	{0, "RKFW", "a Rockchip firmware image (RKFW)"},
	{0, "RKAF", "a Rockchip update image (RKAF)"},
	{0, "IMAGEWTY", "an Allwinner (LiveSuit, PhoenixSuit) image"},
	{8, "\x56\x19\xb5\x27", "an Amlogic upgrade package"},
	{0, "UF2\n\x57\x51\x5d\x9e", "a UF2 file for microcontrollers"},
	{0, "\x27\x05\x19\x56", "a U-Boot image (uImage)"},
	{0, "\xd0\x0d\xfe\xed", "a device tree or a U-Boot FIT image"},
	{0, "UBI#", "a UBI image for raw flash"},
	{0, "\x31\x18\x10\x06", "a UBIFS image for raw flash"},
	{0, "\x85\x19\x03\x20", "a JFFS2 image for raw flash"},
	{0, "\x85\x19\x01\xe0", "a JFFS2 image for raw flash"},
	{0, "\x85\x19\x02\xe0", "a JFFS2 image for raw flash"},
	{0, "HDR0", "a TRX firmware image for routers"},
	{0x202, "HdrS", "a Linux kernel"},
	{0x38, "ARMd", "a Linux kernel"},
	{0, "\x7fELF", "a program"},
	// Archives and compressed files that package unpack does not read.
	{0, "PK\x05\x06", "a ZIP archive"}, // empty
	{0, "PK\x07\x08", "a ZIP archive"}, // split
	{0, "7z\xbc\xaf\x27\x1c", "a 7-Zip archive"},
	{0, "Rar!\x1a\x07", "a RAR archive"},
	{0, "MSCF\x00\x00\x00\x00", "a CAB archive"},
	{0, "xar!", "an XAR archive"},
	{257, "ustar", "a tar archive"},
	{0, "070701", "a cpio archive"},
	{0, "070702", "a cpio archive"},
	{0, "070707", "a cpio archive"},
	{0, "!<arch>\n", "a Debian package or another ar archive"},
	{0, "\xed\xab\xee\xdb", "an RPM package"},
	{0, "\x04\x22\x4d\x18", "an lz4 file"},
	{0, "\x02\x21\x4c\x18", "an lz4 file"}, // legacy format
	{0, "LZIP\x01", "an lzip file"},
	{0, "\x89LZO\x00\x0d\x0a\x1a\x0a", "an lzop file"},
	{0, "LRZI", "an lrzip file"},
	{0, "\x1f\x9d\x90", "a compress (.Z) file"},
	{0, "%PDF-", "a PDF document"},
}

// FootBytes is the number of bytes at the end of an image that [Content.Foot] reads.
const FootBytes = 512

const (
	vhdCookie = "conectix" // Virtual Hard Disk Image Format Specification, "Hard Disk Footer Format"

	lzmaAlone = "an LZMA file without the header of xz (xz -d reads it; compress the output with xz)"
	zlibAlone = "a zlib stream without the header of gzip (pigz -dz reads it; compress the output with gzip)"
)

// is makes c a file without a disk.
func (c *Content) is(what string) {
	*c = Content{Kind: Unknown, What: what}
	c.warn("the image is " + what + ", which nothing here can write to a disk")
}

const (
	nothing = "of no format that is known here"
	empty   = "an empty file"
)

// Head detects the content of an image of size bytes from its first [HeadBytes], or
// from the whole image if it is shorter. It omits the virtual size of compressed and
// virtual images.
func Head(head []byte, size int64) Content {
	c := Content{Kind: Unknown, What: nothing}
	switch {
	case size == 0:
		c.What = empty
		c.warn("the image is empty")
		return c
	case c.packed(head), c.iso(head, size), c.foreignHead(head), c.text(head):
		return c
	}
	c.disk(head, size)
	switch {
	case c.Kind != Unknown:
	case isLZMA(head):
		c.is(lzmaAlone)
		return c
	case isZlib(head):
		c.is(zlibAlone)
		return c
	}
	c.size(size)
	return c
}

func (c *Content) foreignHead(head []byte) bool {
	i := slices.IndexFunc(foreign, func(m magic) bool { return m.in(head) })
	if i >= 0 {
		c.is(foreign[i].what)
	}
	return i >= 0
}

// Foot adds to c what the last [FootBytes] of an image of size bytes show. It ignores a
// shorter foot.
func (c *Content) Foot(foot []byte, size int64) {
	if !c.footed(size) || len(foot) != FootBytes {
		return
	}
	switch {
	case bytes.HasPrefix(foot, []byte("koly")):
		c.is("an Apple disk image (DMG)")
	case bytes.HasPrefix(foot, []byte(vhdCookie)):
		c.What = "a fixed VHD (Hyper-V) image"
		c.warn(fmt.Sprintf("the image is a fixed VHD (Hyper-V): its last %d bytes are a footer and no part of the disk; qemu-img convert -f vpc -O raw makes a raw image of it", FootBytes))
	}
}

// footed reports whether an image of size bytes may have a footer.
func (c *Content) footed(size int64) bool { return size >= FootBytes && c.Kind.Raw() && !c.foreign() }

// isLZMA reports whether b begins like a .lzma file, the predecessor of .xz: with
// properties, the sizes of the dictionary and of the output, and a zero
// (lzma-file-format.txt of XZ Utils, sections 1.1 and 2). It accepts the same sizes as
// src/liblzma/common/alone_decoder.c.
func isLZMA(b []byte) bool {
	const header = 13
	if len(b) <= header || b[0] >= 9*5*5 || b[header] != 0 {
		return false
	}
	dict, size := le32(b, 1), le64(b, 5)
	ones := bits.OnesCount32(dict)
	return dict >= 4096 && (ones == 1 || ones == 2 && dict&(dict>>1) != 0) && (size == math.MaxUint64 || size < 256<<30)
}

// isZlib reports whether b begins with a header of zlib (RFC 1950 section 2.2), which
// is short, and data that decompress.
func isZlib(b []byte) bool {
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return false
	}
	n, err := io.Copy(io.Discard, io.LimitReader(r, HeadBytes))
	return n > 0 && (err == nil || errors.Is(err, io.ErrUnexpectedEOF))
}

// packed detects compressed and virtual images.
func (c *Content) packed(head []byte) bool {
	if format, what, ok := guest.Begins(head); ok {
		c.Kind, c.What = Kind(format), what
		return true
	}
	for _, row := range append(slices.Clone(image.Compressions), image.Zip) {
		if row.Begins(head) {
			c.Kind, c.What = Kind(row.Name), row.What
			return true
		}
	}
	return false
}

// iso detects ISO 9660 by its volume descriptors, which begin at sector 16 (ECMA-119
// sections 6.2.1 and 8.4), and UDF without ISO 9660 by its own (ECMA-167 sections
// 2/8.3, 2/9.2 and 3/9.1).
func (c *Content) iso(head []byte, size int64) bool {
	const sector, first = 2048, 16 * 2048
	udf := image.At(head, first+1, "BEA01") && (image.At(head, first+sector+1, "NSR02") || image.At(head, first+sector+1, "NSR03"))
	switch {
	case udf:
		c.Kind, c.What = ISO9660, "a UDF image without ISO 9660"
	case image.At(head, first+1, "CD001"):
		c.Kind, c.What = ISO9660, "an ISO 9660 image"
	default:
		return false
	}
	c.size(size)
	if !udf && len(head) >= first+sector && head[first] == 1 { // the primary descriptor
		c.ends("the ISO 9660 volume", uint64(le32(head, first+80))*uint64(le16(head, first+128)), size)
	}
	return true
}

// text detects web pages and messages that were saved instead of an image.
func (c *Content) text(head []byte) bool {
	if bytes.IndexByte(head, 0) >= 0 {
		return false
	}
	switch t := http.DetectContentType(head); {
	case bytes.HasPrefix([]byte(t), []byte("text/html")):
		c.Kind, c.What = HTML, "a web page"
		c.warn("this is a web page and no image: most likely an error or log-in page that was saved in place of one; read it, and get the image again")
	case bytes.HasPrefix([]byte(t), []byte("text/")):
		c.Kind, c.What = Text, "text"
		c.warn("this is text and no image: most likely an error message that was saved in place of one; read it, and get the image again")
	default:
		return false
	}
	return true
}

// disk detects partition tables, boot sectors and file systems.
func (c *Content) disk(head []byte, size int64) {
	for _, sector := range []int{512, 4096} {
		if image.At(head, sector, "EFI PART") && len(head) >= sector+40 {
			c.Kind, c.What = GPT, "a disk with a GUID partition table"
			c.gpt(head, sector, size)
			return
		}
	}
	boot := image.At(head, 510, "\x55\xaa") // a boot sector, which resembles an MBR
	last, partitioned := mbr(head)
	for _, fs := range fileSystems {
		if !fs.in(head) || boot && fs.offset > 0x52 && partitioned {
			continue // probably of the first partition
		}
		c.Kind, c.What = Filesystem, fs.what
		if fs.size != nil {
			c.ends("the file system", fs.size(head), size)
		}
		return
	}
	switch {
	case boot && partitioned:
		c.Kind, c.What = MBR, "a disk with an MBR partition table"
		c.holds(last, size)
	case boot:
		c.Kind, c.What = MBR, "a disk with a boot sector and no partitions"
	}
}

// A span of partitions is from the first byte of the last one to the end of all.
type span struct{ begin, end uint64 }

func (s *span) add(begin, end uint64) {
	s.begin, s.end = max(s.begin, begin), max(s.end, end)
}

// mbr returns the span of the partitions of an MBR, and false if there are none or the
// bytes are not a partition table. The span omits a protective partition (type 0xee),
// which keeps old programs off a GUID partition table.
func mbr(head []byte) (last span, found bool) {
	if len(head) < 512 {
		return span{}, false
	}
	for e := head[446:510]; len(e) > 0; e = e[16:] {
		begin, sectors := uint64(le32(e, 8)), uint64(le32(e, 12))
		switch {
		case e[0]&0x7f != 0:
			return span{}, false
		case e[4] == 0 || begin+sectors == 0:
			continue
		case e[4] != 0xee:
			last.add(begin*512, (begin+sectors)*512)
		}
		found = true
	}
	return last, found
}

// gpt checks the partitions of a GUID partition table that are in the head (UEFI
// specification, tables 5.5 and 5.6).
func (c *Content) gpt(head []byte, sector int, size int64) {
	unit, h := uint64(sector), head[sector:]
	at, entry := satMul(le64(h, 72), unit), uint64(le32(h, 84))
	end := satAdd(at, satMul(uint64(le32(h, 80)), entry), 1)
	if c.ends("the GUID partition table", end, size); c.Warnings != nil {
		return
	}
	var last span
	for ; entry >= 128 && at+entry <= min(end, uint64(len(head))); at += entry {
		if e := head[at : at+entry]; le64(e, 0)|le64(e, 8) != 0 {
			last.add(satMul(le64(e, 32), unit), satAdd(le64(e, 40), 1, unit))
		}
	}
	if c.holds(last, size); c.Warnings == nil {
		// The last sector has the backup of the table's header.
		c.behind("the GUID partition table", satAdd(le64(h, 32), 1, unit), size)
	}
}

// holds warns if part of a partition is not in the image.
func (c *Content) holds(last span, size int64) {
	if last.end > uint64(size) && last.begin >= uint64(size) {
		c.warn(fmt.Sprintf("the image is cut short: the last partition begins at byte %d, the image ends at byte %d; get it again", last.begin, size))
		return
	}
	c.behind("the last partition", last.end, size)
}

// behind warns that a part ends behind the image, although the image may be complete:
// the last partition of OpenWrt's images and of shrunk copies is larger than the image.
func (c *Content) behind(what string, at uint64, size int64) {
	if at > uint64(size) {
		c.warn(fmt.Sprintf("%s extends %d bytes beyond the image: some publishers ship images like that; else it was cut short", what, at-uint64(size)))
	}
}

// ends warns that the image is cut short if the part what ends behind it.
func (c *Content) ends(what string, at uint64, size int64) {
	if at > uint64(size) {
		c.warn(fmt.Sprintf("the image is cut short: %s ends at byte %d, the image at byte %d; get it again", what, at, size))
	}
}

// extSize returns the size in the superblock (fs/ext4/ext4.h, ext4_super_block).
func extSize(head []byte) uint64 {
	const super, incompat64 = 0x400, 0x80
	shift, blocks := le32(head, super+0x18), uint64(le32(head, super+4))
	if shift > 6 { // 64 KiB
		return 0
	}
	if le32(head, super+0x60)&incompat64 != 0 {
		blocks |= uint64(le32(head, super+0x150)) << 32
	}
	return satMul(blocks, 1024<<shift)
}

// satAdd returns (n + more) * unit, or the largest uint64 if that overflows.
func satAdd(n, more, unit uint64) uint64 {
	if n+more < n {
		return 1<<64 - 1
	}
	return satMul(n+more, unit)
}

func satMul(n, unit uint64) uint64 {
	if unit != 0 && n > (1<<64-1)/unit {
		return 1<<64 - 1
	}
	return n * unit
}

// The le functions return the number at an offset, or 0 if b ends before it.
func le16(b []byte, at int) uint16 { return binary.LittleEndian.Uint16(field(b, at, 2)) }
func le32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(field(b, at, 4)) }
func le64(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(field(b, at, 8)) }
func be32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(field(b, at, 4)) }
func be64(b []byte, at int) uint64 { return binary.BigEndian.Uint64(field(b, at, 8)) }

func field(b []byte, at, n int) []byte {
	if at+n > len(b) {
		return make([]byte, n)
	}
	return b[at : at+n]
}
