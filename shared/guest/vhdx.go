package guest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Microsoft's "[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format", whose sections the
// comments name. Numbers are little-endian. An image whose log has to be replayed was not
// closed, and is refused, as by QEMU for an image that is only read.

const (
	vhdxMagic   = "vhdxfile"
	vhdxUnit    = 1 << 20  // offsets and sizes of regions are multiples of it
	vhdxTable   = 64 << 10 // bytes of a region table or a metadata table
	vhdxEntries = 2047     // the most in one of them
	vhdxHead    = 4 << 10  // bytes of a header

	vhdxMaxSize  = 64 << 40  // bytes of a disk
	vhdxMaxBlock = 256 << 20 // bytes
)

// Identifiers, in the order of their bytes in a file.
const (
	vhdxBAT        = "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08" // section 2.4
	vhdxMetadata   = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e" // section 2.6
	vhdxParameters = "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b" // section 2.6.2.1
	vhdxDiskSize   = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8" // section 2.6.2.2
	vhdxSectorSize = "\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f" // section 2.6.2.4
)

func beginsVHDX(head []byte) bool { return bytes.HasPrefix(head, []byte(vhdxMagic)) }

func readVHDX(f *file) (Header, error) {
	h := Header{What: "a VHDX (Hyper-V) image"}
	head, err := f.head(len(vhdxMagic))
	if err != nil {
		return h, err
	}
	if !beginsVHDX(head) {
		return h, f.other()
	}
	if h.refusal, err = vhdxLog(f); err != nil {
		return h, err
	}
	regions, err := vhdxRegions(f)
	if err != nil {
		return h, err
	}
	bat, metadata := regions[vhdxBAT], regions[vhdxMetadata]
	if bat == 0 || metadata == 0 {
		return h, f.corrupt("it has no table of blocks, or no metadata")
	}
	items, err := vhdxItems(f, metadata)
	if err != nil {
		return h, err
	}
	parameters, size, sectors := items[vhdxParameters], items[vhdxDiskSize], items[vhdxSectorSize]
	block, flags := int64(parameters&(1<<32-1)), parameters>>32
	h.Size, h.Block = int64(min(size, 1<<62)), block
	switch {
	case size == 0 || size > vhdxMaxSize || sectors != 512 && sectors != 4096 || size%sectors != 0:
		h.Size = 0
		return h, f.corrupt("its disk would have %d bytes in sectors of %d", size, sectors)
	case block < vhdxUnit || block > vhdxMaxBlock || block&(block-1) != 0:
		return h, f.corrupt("its blocks would have %d bytes", block)
	case flags&2 != 0:
		h.refusal = unsupported("the image holds only what differs from its parent: put the whole together with qemu-img convert first")
	}
	// Behind each chunk of entries of blocks is one of a bitmap, of which only images with
	// a parent have any (section 2.5).
	chunk := int64(1<<23) * int64(sectors) / block
	h.mapping = &flat{
		file: f, table: bat, width: 8, size: h.Size, block: block,
		slot: func(n int64) int64 { return n + n/chunk },
		host: func(entry []byte) (int64, bool) {
			e := binary.LittleEndian.Uint64(entry)
			switch e & 7 { // section 2.5.1.1
			case 0, 1, 3, 5: // not present, undefined, unmapped, and unmapped before version 1.0
				return 0, true
			case 2: // zero
				return 0, false
			case 6: // fully present
				if at := e >> 20 << 20; at != 0 && at < 1<<62 {
					return int64(at), false
				}
			}
			return -1, false
		},
	}
	return h, nil
}

// vhdxSummed returns whether b begins with a signature and has the right checksum, which
// follows the signature.
func vhdxSummed(b []byte, signature string) bool {
	if string(b[:4]) != signature {
		return false
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, _ = sum.Write(b[:4])
	_, _ = sum.Write(make([]byte, 4))
	_, _ = sum.Write(b[8:])
	return sum.Sum32() == binary.LittleEndian.Uint32(b[4:])
}

// vhdxLog reads the current one of the two headers (section 2.2.2), and returns an error if
// the log has to be replayed.
func vhdxLog(f *file) (refusal, err error) {
	var current []byte
	sequence := func(b []byte) uint64 { return binary.LittleEndian.Uint64(b[8:]) }
	for _, at := range []int64{64 << 10, 128 << 10} {
		b, err := f.part("its header", at, vhdxHead)
		if err != nil {
			return nil, err
		}
		if vhdxSummed(b, "head") && (current == nil || sequence(b) > sequence(current)) {
			current = b
		}
	}
	switch {
	case current == nil:
		return nil, f.corrupt("the checksums of both its headers are wrong")
	case binary.LittleEndian.Uint16(current[66:]) != 1:
		return unsupported("the image is of version %d of the VHDX format; version 1 is known", binary.LittleEndian.Uint16(current[66:])), nil
	case !bytes.Equal(current[48:64], make([]byte, 16)):
		return unsupported("the image was not closed by the program that wrote it, and has changes in its log: apply them with qemu-img check -r all first"), nil
	}
	return nil, nil
}

// vhdxRegions returns the offsets in the file of the regions, by their identifier (section
// 2.2.3).
func vhdxRegions(f *file) (map[string]int64, error) {
	for _, at := range []int64{192 << 10, 256 << 10} {
		b, err := f.part("its table of regions", at, vhdxTable)
		if err != nil {
			return nil, err
		}
		n := binary.LittleEndian.Uint32(b[8:])
		if !vhdxSummed(b, "regi") || n > vhdxEntries {
			continue
		}
		regions := map[string]int64{}
		for e := b[16:]; n > 0; n, e = n-1, e[32:] {
			id, offset := string(e[:16]), binary.LittleEndian.Uint64(e[16:])
			if offset > 1<<62 || offset%vhdxUnit != 0 {
				return nil, f.corrupt("a region would begin at byte %d", offset)
			}
			if id != vhdxBAT && id != vhdxMetadata && binary.LittleEndian.Uint32(e[28:])&1 != 0 {
				return nil, unsupported("the image has a required region that is not known here: convert it with qemu-img first")
			}
			regions[id] = int64(offset)
		}
		return regions, nil
	}
	return nil, f.corrupt("the checksums of both its tables of regions are wrong")
}

// vhdxItems returns the first bytes of the items of the metadata, as numbers, by their
// identifier (section 2.6.1).
func vhdxItems(f *file, at int64) (map[string]uint64, error) {
	b, err := f.part("its metadata", at, vhdxTable)
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint16(b[10:])
	if string(b[:8]) != "metadata" || n > vhdxEntries {
		return nil, f.corrupt("it has no table of metadata at byte %d", at)
	}
	items := map[string]uint64{}
	for e := b[32:]; n > 0; n, e = n-1, e[32:] {
		id, length := string(e[:16]), binary.LittleEndian.Uint32(e[20:])
		var value [8]byte
		switch id {
		case vhdxParameters, vhdxDiskSize, vhdxSectorSize:
			item, err := f.part("its metadata", at+int64(binary.LittleEndian.Uint32(e[16:])), int64(min(length, 8)))
			if err != nil {
				return nil, err
			}
			copy(value[:], item)
			items[id] = binary.LittleEndian.Uint64(value[:])
		}
	}
	return items, nil
}
