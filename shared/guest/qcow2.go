package guest

import (
	"encoding/binary"
	"fmt"
	"math"
)

// qcow2Magic is the first four bytes of a qcow2 file, of which version 1 is another format.
const qcow2Magic = "QFI\xfb"

func beginsQCOW2(head []byte) bool {
	return len(head) >= 4 && string(head[:4]) == qcow2Magic && (len(head) < 8 || binary.BigEndian.Uint32(head[4:]) != 1)
}

// A qcow2 is the header of a qcow2 file, versions 2 and 3, whose sections in QEMU's
// docs/interop/qcow2.rst the comments name. What the active L1 table maps is read:
// unallocated and zero clusters, standard clusters, and clusters compressed with zlib or
// zstd. Reference counts, snapshots and bitmaps are not read.
type qcow2 struct {
	file         *file
	version      int
	size         int64 // of the disk
	cluster      int64
	clusterBits  int
	backing      string // name of the backing file; empty: none
	encryption   string // "AES" or "LUKS"; empty: none
	zstd         bool   // whether clusters are compressed with zstd, else with zlib
	corrupt      bool
	externalData bool   // the data of the disk are in another file
	extendedL2   bool   // clusters have subclusters
	unknown      uint64 // bits of incompatible features that are not known here
	snapshots    int

	l1Offset  int64
	l1Entries int64 // the number that the disk's size needs
}

// Incompatible features (section "Header", bytes 72 to 79).
const (
	_ = 1 << iota // the reference counts may be wrong
	featureCorrupt
	featureExternalData
	featureCompression
	featureExtendedL2
	knownFeatures = 1<<iota - 1
)

const (
	headerV2 = 72  // bytes of a header of version 2
	headerV3 = 104 // the minimum of version 3
	// compressionAt is the offset of the compression type, an additional field.
	compressionAt = 104

	minClusterBits = 9
	maxClusterBits = 21       // QEMU's limit
	maxL1Bytes     = 32 << 20 // so is this
	maxBackingName = 1023
	// maxRefcountOrder is the order of 64-bit counts. Counts are not read.
	maxRefcountOrder = 6
	maxRefcountBytes = 8 << 20 // QEMU's limit
	maxSnapshots     = 1 << 16 // so is this
	snapshotHeader   = 40      // bytes of a snapshot, without its names
)

func readQCOW2(f *file) (Header, error) {
	q := &qcow2{file: f}
	err := q.read()
	h := Header{
		What: "a qcow2 image", Size: q.size, Block: q.cluster, Packed: true,
		Corrupt: q.corrupt, Snapshots: q.snapshots, refusal: q.refusal(), mapping: q,
	}
	if q.version != 0 {
		h.What = fmt.Sprintf("a qcow2 image (version %d)", q.version)
	}
	return h, err
}

func (h *qcow2) read() error {
	buf, err := h.file.head(compressionAt + 8)
	if err != nil {
		return err
	}
	n := len(buf)
	if n < len(qcow2Magic) || string(buf[:len(qcow2Magic)]) != qcow2Magic {
		return h.file.other()
	}
	if n < headerV2 {
		return h.file.truncated("it ends within its header")
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(buf[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(buf[at:]) }
	h.version, h.snapshots = int(u32(4)), int(u32(60))
	if h.version != 2 && h.version != 3 {
		return unsupported("the image is of version %d of the qcow2 format; versions 2 and 3 are known", h.version)
	}
	bits := u32(20)
	if bits < minClusterBits || bits > maxClusterBits {
		return h.file.corrupt("its clusters would have 2^%d bytes; 2^%d to 2^%d are possible", bits, minClusterBits, maxClusterBits)
	}
	h.clusterBits, h.cluster = int(bits), 1<<bits
	if err := h.readSize(u64(24), u32(36), u64(40)); err != nil {
		return err
	}
	// Reference counts and snapshots are not read, but an image that QEMU refuses
	// because of them is refused here too.
	for _, table := range []struct {
		what         string
		offset       uint64
		bytes, limit uint64
	}{
		{"reference counts", u64(48), uint64(u32(56)) << bits, maxRefcountBytes},
		{"snapshots", u64(64), uint64(u32(60)) * snapshotHeader, maxSnapshots * snapshotHeader},
	} {
		if table.bytes > table.limit || table.offset > math.MaxInt64-table.bytes || table.offset%uint64(h.cluster) != 0 {
			return h.file.corrupt("its table of %s, of %d bytes at byte %d, is none that QEMU takes", table.what, table.bytes, table.offset)
		}
	}
	if u32(56) == 0 {
		return h.file.corrupt("it has no reference counts")
	}
	switch crypt := u32(32); crypt {
	case 0:
	case 1:
		h.encryption = "AES"
	case 2:
		h.encryption = "LUKS"
	default:
		return h.file.corrupt("it names an encryption method, %d, that does not exist", crypt)
	}
	if h.version == 3 {
		if n < headerV3 {
			return h.file.truncated("it ends within its header")
		}
		if err := h.readVersion3(buf); err != nil {
			return err
		}
	}
	return h.readBacking(u64(8), u32(16))
}

// readSize sets the size of the disk and the location of the L1 table, which must map
// the whole disk.
func (h *qcow2) readSize(size uint64, entries uint32, offset uint64) error {
	if uint64(entries)*8 > maxL1Bytes {
		return h.file.corrupt("its L1 table of %d entries is larger than QEMU's limit of 32 MiB", entries)
	}
	if offset > 1<<62 || offset%uint64(h.cluster) != 0 {
		return h.file.corrupt("its L1 table begins at byte %d, which is no cluster's beginning", offset)
	}
	span := uint64(h.cluster) * uint64(h.cluster/8) // of one L1 entry
	needed := size / span
	if size%span != 0 {
		needed++
	}
	if needed > uint64(entries) {
		return h.file.corrupt("its L1 table has %d entries, and a disk of %d bytes needs %d", entries, size, needed)
	}
	h.l1Offset, h.l1Entries = int64(offset), int64(needed)
	// QEMU counts a disk in whole sectors.
	h.size = int64(size) &^ 511
	return nil
}

func (h *qcow2) readVersion3(buf []byte) error {
	features, length := binary.BigEndian.Uint64(buf[72:]), binary.BigEndian.Uint32(buf[100:])
	if length < headerV3 || int64(length) > h.cluster {
		return h.file.corrupt("its header claims a length of %d bytes", length)
	}
	if order := binary.BigEndian.Uint32(buf[96:]); order > maxRefcountOrder {
		return h.file.corrupt("its reference counts would have 2^%d bits; 64 are the most", order)
	}
	h.corrupt = features&featureCorrupt != 0
	h.externalData, h.extendedL2 = features&featureExternalData != 0, features&featureExtendedL2 != 0
	h.unknown = features &^ knownFeatures
	// Section "Additional fields": a field beyond the header's length is absent.
	var compression byte
	if length > compressionAt {
		if len(buf) <= compressionAt {
			return h.file.truncated("it ends within its header")
		}
		compression = buf[compressionAt]
	}
	switch {
	case compression == 0 != (features&featureCompression == 0):
		return h.file.corrupt("its header contradicts itself on how clusters are compressed")
	case compression == 1:
		h.zstd = true
	case compression > 1:
		return unsupported("the image's clusters are compressed by a method (number %d) that is not known here: convert it with qemu-img first", compression)
	}
	return nil
}

func (h *qcow2) readBacking(offset uint64, length uint32) error {
	if offset == 0 {
		return nil
	}
	if offset > uint64(h.cluster) || length > maxBackingName || offset+uint64(length) > uint64(h.cluster) {
		return h.file.corrupt("the name of its backing file is not within its first cluster")
	}
	if length == 0 {
		return nil
	}
	name, err := h.file.part("the name of its backing file", int64(offset), int64(length))
	h.backing = string(name)
	return err
}

// refusal returns an [*Error] of kind [ErrUnsupported] if this package cannot read the
// disk from the file, and nil otherwise.
func (h *qcow2) refusal() error {
	switch {
	case h.encryption != "":
		return unsupported("the image is encrypted (%s), and its key is not known here: decrypt it with qemu-img convert first", h.encryption)
	case h.backing != "":
		return unsupported("the image holds only what differs from its backing file %q: put the whole together with qemu-img convert first", h.backing)
	case h.externalData:
		return unsupported("the image's data are in another file (an external data file): put both together with qemu-img convert first")
	case h.extendedL2:
		return unsupported("the image has extended L2 entries (subclusters), which are not read here: convert it with qemu-img, without extended_l2, first")
	case h.unknown != 0:
		return unsupported("the image has features (bits %#x of the incompatible ones) that are not known here: convert it with qemu-img first", h.unknown)
	}
	return nil
}

// Parts of table entries (section "Cluster mapping").
const (
	offsetMask     = 0x00ff_ffff_ffff_fe00 // bits 9 to 55, of L1 entries and standard clusters
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
)

func (h *qcow2) lookup(t *tables, off int64) (extent, error) {
	size := h.cluster
	entries := size / 8 // of an L2 table, which is one cluster
	cluster := off / size
	l1, err := t.u64(h.l1Offset + cluster/entries*8)
	if err != nil {
		return extent{}, err
	}
	l2 := int64(l1 & offsetMask)
	if l2 == 0 {
		span := size * entries
		return extent{kind: zero, hole: true, length: span - off%span}, nil
	}
	entry, err := t.u64(l2 + cluster%entries*8)
	if err != nil {
		return extent{}, err
	}
	e := extent{length: size - off%size}
	if entry&flagCompressed != 0 {
		// "Compressed Clusters Descriptor".
		shift := 62 - (h.clusterBits - 8)
		at := entry & (1<<shift - 1)
		sectors := entry>>shift&(1<<(h.clusterBits-8)-1) + 1
		if at > offsetMask|sector-1 {
			return extent{}, h.file.corrupt("byte %d of the disk would be at byte %d of the file", off, at)
		}
		e.kind, e.host, e.within = compressed, int64(at), off%size
		e.bytes, e.method = int64(sectors*sector-at%sector), deflate
		if h.zstd {
			e.method = zstandard
		}
		return e, nil
	}
	// "Standard Cluster Descriptor".
	at := int64(entry & offsetMask)
	switch {
	case at%size != 0:
		return extent{}, h.file.corrupt("byte %d of the disk would be in a cluster at byte %d of the file, where none begins", off, at)
	case entry&flagZero != 0 && h.version < 3:
		return extent{}, h.file.corrupt("byte %d of the disk is in a cluster marked as zero, which version 2 does not have", off)
	case entry&flagZero != 0, at == 0:
		e.hole = entry&flagZero == 0
		return e, nil
	}
	e.kind, e.host = data, at+off%size
	return e, nil
}

// check checks that every L2 table is aligned and within the file, and that there are
// no more tables than clusters in the file. This bounds the time to read all entries.
func (h *qcow2) check(t *tables) error {
	if h.l1Offset+h.l1Entries*8 > h.file.size {
		return h.file.truncated("its L1 table ends at byte %d of a file of %d", h.l1Offset+h.l1Entries*8, h.file.size)
	}
	room := h.file.size / h.cluster
	for n := range h.l1Entries {
		entry, err := t.u64(h.l1Offset + n*8)
		if err != nil {
			return err
		}
		at := int64(entry & offsetMask)
		if at == 0 {
			continue
		}
		room--
		switch {
		case at%h.cluster != 0:
			return h.file.corrupt("L2 table %d would be at byte %d of the file, where no cluster begins", n, at)
		case at+h.cluster > h.file.size:
			return h.file.truncated("L2 table %d is at byte %d of a file of %d", n, at, h.file.size)
		case room < 0:
			return h.file.corrupt("it has more L2 tables than the file has clusters")
		}
	}
	return nil
}
