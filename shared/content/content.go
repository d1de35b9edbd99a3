// Package content finds out what an image is by looking at a few of its bytes,
// whatever its name says.
package content

// A Kind is what the first look at an image's bytes says it is.
type Kind string

// The kinds.
const (
	QCOW2      Kind = "qcow2"
	ISO9660    Kind = "iso9660" // with or without a partition table in front (isohybrid)
	MBR        Kind = "mbr"
	GPT        Kind = "gpt"
	Filesystem Kind = "filesystem" // bare: ext4, xfs, ...
	Gzip       Kind = "gzip"
	XZ         Kind = "xz"
	Zstd       Kind = "zstd"
	Bzip2      Kind = "bzip2"
	Text       Kind = "text"
	HTML       Kind = "html"
	Unknown    Kind = "unknown"
)

// Compressed reports whether k is a compressed stream: what package unpack
// reads.
func (k Kind) Compressed() bool {
	return k == Gzip || k == XZ || k == Zstd || k == Bzip2
}
