package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// The kinds of errors about a file. An [*Error] wraps one of them.
var (
	// ErrFormat: the file is not a qcow2 image.
	ErrFormat = errors.New("not a qcow2 image")
	// ErrTruncated: part of the image is behind the end of the file.
	ErrTruncated = errors.New("qcow2 image cut short")
	// ErrCorrupt: the file contradicts the specification.
	ErrCorrupt = errors.New("qcow2 image corrupt")
	// ErrUnsupported: the image is valid, but needs another file, a key, or a feature
	// that this package does not implement.
	ErrUnsupported = errors.New("qcow2 image of an unsupported kind")
)

// An Error describes what is wrong with a file. Its text is a sentence for users.
type Error struct {
	Kind   error // one of the errors of this package
	Detail string
}

func (e *Error) Error() string { return e.Detail }

func (e *Error) Unwrap() error { return e.Kind }

func truncated(format string, args ...any) error {
	return &Error{ErrTruncated, "the qcow2 image is cut short: " + fmt.Sprintf(format, args...)}
}

func corrupt(format string, args ...any) error {
	return &Error{ErrCorrupt, "the qcow2 image is corrupt: " + fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &Error{ErrUnsupported, fmt.Sprintf(format, args...)}
}

// Magic is the first four bytes of a qcow2 file.
const Magic = "QFI\xfb"

// A Header is the header of a file (section "Header").
type Header struct {
	Version     int
	Size        int64  // bytes of the disk that the guest sees
	ClusterSize int64  // bytes
	Backing     string // name of the backing file; empty: none
	Encryption  string // "AES" or "LUKS"; empty: none
	Compression string // of compressed clusters: "zlib" or "zstd"
	// Dirty and Corrupt were set by the last writer. Images with either can be
	// read: the reference counts of a dirty one may be wrong, and any entry of a
	// corrupt one, which reading detects.
	Dirty, Corrupt bool
	// ExternalData: the data of the disk are in another file.
	ExternalData bool
	// ExtendedL2: clusters have subclusters.
	ExtendedL2 bool
	// Unknown has the bits of incompatible features that this package does not
	// know.
	Unknown uint64
	// Snapshots is the number of internal snapshots. They are not read.
	Snapshots int

	clusterBits int
	l1Offset    int64
	l1Entries   int64 // the number that the disk's size needs
}

// Incompatible features (section "Header", bytes 72 to 79).
const (
	featureDirty = 1 << iota
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

// ReadHeader reads the header of a file of size bytes. The error is an [*Error], or
// the file's. With an [*Error], the fields before the faulty one are set.
func ReadHeader(file io.ReaderAt, size int64) (Header, error) {
	buf := make([]byte, compressionAt+8)
	n, err := file.ReadAt(buf[:min(int64(len(buf)), max(size, 0))], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, err
	}
	buf = buf[:n]
	if n < len(Magic) || string(buf[:len(Magic)]) != Magic {
		return Header{}, &Error{ErrFormat, "this is not a qcow2 image"}
	}
	if n < headerV2 {
		return Header{}, truncated("it ends within its header")
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(buf[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(buf[at:]) }
	h := Header{Version: int(u32(4)), Compression: "zlib", Snapshots: int(u32(60))}
	if h.Version != 2 && h.Version != 3 {
		return h, unsupported("the image is of version %d of the qcow2 format; versions 2 and 3 are known", h.Version)
	}
	bits := u32(20)
	if bits < minClusterBits || bits > maxClusterBits {
		return h, corrupt("its clusters would have 2^%d bytes; 2^%d to 2^%d are possible", bits, minClusterBits, maxClusterBits)
	}
	h.clusterBits, h.ClusterSize = int(bits), 1<<bits
	if err := h.readSize(u64(24), u32(36), u64(40)); err != nil {
		return h, err
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
		if table.bytes > table.limit || table.offset > math.MaxInt64-table.bytes || table.offset%uint64(h.ClusterSize) != 0 {
			return h, corrupt("its table of %s, of %d bytes at byte %d, is none that QEMU takes", table.what, table.bytes, table.offset)
		}
	}
	if u32(56) == 0 {
		return h, corrupt("it has no reference counts")
	}
	switch crypt := u32(32); crypt {
	case 0:
	case 1:
		h.Encryption = "AES"
	case 2:
		h.Encryption = "LUKS"
	default:
		return h, corrupt("it names an encryption method, %d, that does not exist", crypt)
	}
	if h.Version == 3 {
		if n < headerV3 {
			return h, truncated("it ends within its header")
		}
		if err := h.readVersion3(buf); err != nil {
			return h, err
		}
	}
	return h, h.readBacking(file, size, u64(8), u32(16))
}

// readSize sets the size of the disk and the location of the L1 table, which must map
// the whole disk.
func (h *Header) readSize(size uint64, entries uint32, offset uint64) error {
	if uint64(entries)*8 > maxL1Bytes {
		return corrupt("its L1 table of %d entries is larger than QEMU's limit of 32 MiB", entries)
	}
	if offset > 1<<62 || offset%uint64(h.ClusterSize) != 0 {
		return corrupt("its L1 table begins at byte %d, which is no cluster's beginning", offset)
	}
	span := uint64(h.ClusterSize) * uint64(h.ClusterSize/8) // of one L1 entry
	needed := size / span
	if size%span != 0 {
		needed++
	}
	if needed > uint64(entries) {
		return corrupt("its L1 table has %d entries, and a disk of %d bytes needs %d", entries, size, needed)
	}
	h.l1Offset, h.l1Entries = int64(offset), int64(needed)
	// QEMU counts a disk in whole sectors.
	h.Size = int64(size) &^ 511
	return nil
}

func (h *Header) readVersion3(buf []byte) error {
	features, length := binary.BigEndian.Uint64(buf[72:]), binary.BigEndian.Uint32(buf[100:])
	if length < headerV3 || int64(length) > h.ClusterSize {
		return corrupt("its header claims a length of %d bytes", length)
	}
	if order := binary.BigEndian.Uint32(buf[96:]); order > maxRefcountOrder {
		return corrupt("its reference counts would have 2^%d bits; 64 are the most", order)
	}
	h.Dirty, h.Corrupt = features&featureDirty != 0, features&featureCorrupt != 0
	h.ExternalData, h.ExtendedL2 = features&featureExternalData != 0, features&featureExtendedL2 != 0
	h.Unknown = features &^ knownFeatures
	// Section "Additional fields": a field beyond the header's length is absent.
	var compression byte
	if length > compressionAt {
		if len(buf) <= compressionAt {
			return truncated("it ends within its header")
		}
		compression = buf[compressionAt]
	}
	switch {
	case compression == 0 != (features&featureCompression == 0):
		return corrupt("its header contradicts itself on how clusters are compressed")
	case compression == 1:
		h.Compression = "zstd"
	case compression > 1:
		return unsupported("the image's clusters are compressed by a method (number %d) that is not known here: convert it with qemu-img first", compression)
	}
	return nil
}

func (h *Header) readBacking(file io.ReaderAt, size int64, offset uint64, length uint32) error {
	if offset == 0 {
		return nil
	}
	if offset > uint64(h.ClusterSize) || length > maxBackingName || offset+uint64(length) > uint64(h.ClusterSize) {
		return corrupt("the name of its backing file is not within its first cluster")
	}
	if length == 0 {
		return nil
	}
	if int64(offset)+int64(length) > size {
		return truncated("it ends within its header")
	}
	name := make([]byte, length)
	if err := readFull(file, name, int64(offset)); err != nil {
		return err
	}
	h.Backing = string(name)
	return nil
}

// Refusal returns an [*Error] of kind [ErrUnsupported] if this package cannot read
// the disk from the file, and nil otherwise.
func (h *Header) Refusal() error {
	switch {
	case h.Encryption != "":
		return unsupported("the image is encrypted (%s), and its key is not known here: decrypt it with qemu-img convert first", h.Encryption)
	case h.Backing != "":
		return unsupported("the image holds only what differs from its backing file %q: put the whole together with qemu-img convert first", h.Backing)
	case h.ExternalData:
		return unsupported("the image's data are in another file (an external data file): put both together with qemu-img convert first")
	case h.ExtendedL2:
		return unsupported("the image has extended L2 entries (subclusters), which are not read here: convert it with qemu-img, without extended_l2, first")
	case h.Unknown != 0:
		return unsupported("the image has features (bits %#x of the incompatible ones) that are not known here: convert it with qemu-img first", h.Unknown)
	}
	return nil
}

// readFull fills p from offset off of the file.
func readFull(file io.ReaderAt, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF // the file is shorter than size
	}
	return err
}
