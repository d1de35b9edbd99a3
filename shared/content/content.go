// Package content detects the format of an image from a few of its bytes,
// independently of its name, and keeps what is known of the bytes with one SHA-256
// in a [Record].
//
// [Sniff] reads the first 68 KiB and, for the size of the disk, a few places
// more: the header and first table of qcow2, the indexes of xz, the frames of
// zstd, the footer of a VHD. [Detect] and [Head] do with less. What they find
// and the name can contradict each other: see [Content.Mismatch].
package content

import (
	"errors"
	"io"
	"slices"
	"strings"

	"imageroot/shared/image"
)

// A Kind is the format of the bytes of an image.
type Kind string

// The kinds. Those of compressed images are the names of [image.Compressions].
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

// KindOf returns the kind of images of a format, and "" if a disk gets images of
// that format unchanged and they may be of several kinds.
func KindOf(f image.Format) Kind {
	if c, ok := f.Compression(); ok {
		return Kind(c.Name)
	}
	return map[image.Format]Kind{"qcow2": QCOW2, "iso": ISO9660}[f]
}

func (k Kind) compression() (image.Compression, bool) {
	i := slices.IndexFunc(image.Compressions, func(c image.Compression) bool { return Kind(c.Name) == k })
	if i < 0 {
		return image.Compression{}, false
	}
	return image.Compressions[i], true
}

// Compressed reports whether k is a compressed stream, which package unpack
// reads.
func (k Kind) Compressed() bool {
	_, ok := k.compression()
	return ok
}

// Raw reports whether a disk gets the bytes unchanged, unless [Content.NoDisk]
// has a reason against it.
func (k Kind) Raw() bool {
	return k == ISO9660 || k == MBR || k == GPT || k == Filesystem || k == Unknown
}

// A Content is what is known of an image from a few of its bytes.
type Content struct {
	Kind Kind `json:"kind"`
	// What describes the content in a sentence, with an article: "an ext4 file
	// system". It is for people; no decision depends on it.
	What string `json:"what"`
	// VirtualSize is the size in bytes of the disk in the image. It is nil if
	// the image does not say, and if there is no disk in it: of kind [Unknown],
	// that distinguishes other programs' formats from a disk.
	VirtualSize *int64 `json:"virtual_size_bytes,omitempty"`
	// Unreadable is the reason, as a sentence, that the disk in the image cannot be
	// read, which only [Sniff] finds. It is empty if none is known.
	Unreadable string `json:"unreadable,omitempty"`
	// Warnings are sentences on what is wrong under any name.
	Warnings []string `json:"warnings,omitempty"`
}

func (c *Content) warn(sentence string) { c.Warnings = append(c.Warnings, sentence) }

func (c *Content) size(n int64) { c.VirtualSize = &n }

// HeadBytes is the number of bytes that [Head] reads: up to and with the label
// of btrfs, which is the furthest in.
const HeadBytes = 68 << 10

// Detect is [Sniff] without the virtual size of compressed and qcow2 images. It
// reads the first [HeadBytes] at once, the last [FootBytes], and nothing else.
func Detect(r io.ReaderAt, size int64) (Content, error) {
	head, err := readHead(r, size)
	if err != nil {
		return Content{}, err
	}
	c := Head(head, size)
	err = c.readFoot(r, size)
	return c, err
}

// Sniff detects the content of an image of size bytes. It reads the first
// [HeadBytes] at once, and then a footer and the virtual size with at most seeks
// reads of at most 1 MiB, one or more. If those are not enough, it leaves out
// the virtual size. The error is r's, and io.ErrUnexpectedEOF if r has fewer bytes than size.
func Sniff(r io.ReaderAt, size int64, seeks int) (Content, error) {
	head, err := readHead(r, size)
	if err != nil {
		return Content{}, err
	}
	c := Head(head, size)
	s := &seeker{r: r, size: size, left: seeks}
	switch c.Kind {
	case QCOW2:
		c.qcow2(s)
	case XZ:
		c.xz(s)
	case Zstd:
		c.zstd(s)
	default:
		if c.readFoot(s, size) != nil { // s has the error, if it is r's
			c.VirtualSize = nil
		}
	}
	return c, s.err
}

// readFoot is [Content.Foot] of the image in r.
func (c *Content) readFoot(r io.ReaderAt, size int64) error {
	if !c.footed(size) {
		return nil
	}
	foot := make([]byte, FootBytes)
	if _, err := r.ReadAt(foot, size-FootBytes); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c.Foot(foot, size)
	return nil
}

func readHead(r io.ReaderAt, size int64) ([]byte, error) {
	head := make([]byte, min(size, HeadBytes))
	n, err := r.ReadAt(head, 0)
	if n == len(head) {
		return head, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// A seeker reads anywhere in an image, a limited number of times.
type seeker struct {
	r    io.ReaderAt
	size int64
	left int
	err  error // of r
}

// maxSeekBytes is the size of the largest read.
const maxSeekBytes = 1 << 20

var errEnough = errors.New("enough of it has been read")

func (s *seeker) ReadAt(p []byte, off int64) (int, error) {
	if s.left <= 0 || len(p) > maxSeekBytes {
		return 0, errEnough
	}
	s.left--
	n, err := s.r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// NoDisk returns the reason, as a sentence, that an image holds no disk: it
// is a web page, for example, or of another program's format. It returns "" if
// there is one.
func (c Content) NoDisk() string {
	switch {
	case c.Kind != Text && c.Kind != HTML && !c.foreign():
		return ""
	case len(c.Warnings) > 0:
		return c.Warnings[0]
	}
	return "the image is " + c.What
}

// NoDiskInside returns the reason, as a sentence, that no disk is in a
// compressed image that decompresses to c, or "" if there is one.
func (c Content) NoDiskInside() string {
	switch no := c.NoDisk(); {
	case no != "":
		return "once decompressed, " + no
	case c.Kind == QCOW2 || c.Kind.Compressed():
		return "once decompressed, this is " + c.What + ", which would have to be unpacked again: decompress it and upload what comes out"
	}
	return ""
}

// foreign reports whether an image of no known kind is known to be no disk:
// those that may be one have the size of the disk.
func (c Content) foreign() bool { return c.Kind == Unknown && c.VirtualSize == nil }

// Format returns the format of images with that content. It returns "" if there
// is no disk in it, or nothing is known of it.
func (c Content) Format() image.Format {
	packed, ok := c.Kind.compression()
	switch {
	case ok:
		return image.Format("img" + packed.Suffix)
	case c.Kind == QCOW2:
		return "qcow2"
	case c.Kind == ISO9660:
		return "iso"
	case c.Kind == Unknown || c.NoDisk() != "":
		return ""
	}
	return "img"
}

// Mismatch returns a sentence on what fails if an image with that content is
// called name, or "" if name fits. The raw disk in the image is served at the
// path raw, or nowhere if raw is empty. An image that [Content.NoDisk] refuses
// fits any name: it has a warning already.
func (c Content) Mismatch(name image.Name, raw string) string {
	format, ok := image.FormatOf(name)
	if !ok || c.NoDisk() != "" {
		return ""
	}
	said := string(name[len(name)-len(format)-1:])
	want := KindOf(format)
	claimed, _ := format.Compression()
	plain := said[:len(said)-len(claimed.Suffix)] // of what is inside
	found, packed := c.Kind.compression()
	take := ""
	if raw != "" {
		take = "take it from " + raw + ", or "
	}
	boots := ": a disk that gets it unchanged does not boot; " + take
	named := "named " + said + ", but it is " + c.What
	switch {
	case c.Kind == want, want == "" && c.Kind.Raw():
		return ""
	case c.Kind == QCOW2:
		return named + boots + "rename it to .qcow2"
	case packed && want == QCOW2:
		return named + ": what reads qcow2 images does not read it; decompress it"
	case packed && want.Compressed():
		return named + ": what decompresses it by its name fails; " + take + "rename it to " + plain + found.Suffix
	case packed:
		return named + boots + "rename it to " + said + found.Suffix
	case want.Compressed() && c.Kind.Raw():
		if c.Kind != ISO9660 && strings.EqualFold(plain, ".iso") {
			plain = ".img"
		}
		return named + " and not compressed: what decompresses it by its name fails; rename it to " + plain
	}
	return named
}
