// Package content detects the format of an image from a few of its bytes, independently
// of its name. A [Record] has what is known about the bytes with one SHA-256.
//
// [Sniff] reads the first 68 KiB and, for the size of the disk, a few more places: the
// headers and first tables of images of virtual machines, the indexes of xz, the frames of zstd, the footer of
// a fixed VHD. [Detect] and [Head] read less. The content may contradict the name: see
// [Content.Mismatch].
package content

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"slices"
	"strings"

	"imageroot/shared/guest"
	"imageroot/shared/image"
)

// A Kind is the format of the bytes of an image.
type Kind string

// The kinds of compressed images are the names of [image.Compressions] and [image.Zip], and those of virtual
// machines the formats of package guest.
const (
	QCOW2      Kind = "qcow2"
	VMDK       Kind = "vmdk"
	VHD        Kind = "vhd"
	VHDX       Kind = "vhdx"
	VDI        Kind = "vdi"
	ISO9660    Kind = "iso9660" // with or without a partition table in front (isohybrid)
	MBR        Kind = "mbr"
	GPT        Kind = "gpt"
	Filesystem Kind = "filesystem" // bare: ext4, xfs, ...
	Gzip       Kind = "gzip"
	XZ         Kind = "xz"
	Zstd       Kind = "zstd"
	Bzip2      Kind = "bzip2"
	Zip        Kind = "zip" // an archive
	Text       Kind = "text"
	HTML       Kind = "html"
	Unknown    Kind = "unknown"
)

// KindOf returns the kind of images of format f, or "" if images of this format are raw
// disks, which may be of several kinds.
func KindOf(f image.Format) Kind {
	if c, ok := f.Compression(); ok {
		return Kind(c.Name)
	}
	if f.Virtual() {
		return Kind(f)
	}
	return map[image.Format]Kind{"iso": ISO9660}[f]
}

func (k Kind) compression() (image.Compression, bool) {
	if k == Zip {
		return image.Zip, true
	}
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

// Virtual reports whether k is the image of a virtual machine, whose disk package guest
// reads at any offset.
func (k Kind) Virtual() bool { return guest.Known(guest.Format(k)) }

// Raw reports whether the bytes are the disk itself, unless [Content.NoDisk] returns a
// reason against that.
func (k Kind) Raw() bool {
	return k == ISO9660 || k == MBR || k == GPT || k == Filesystem || k == Unknown
}

// A Content is what a few bytes of an image show.
type Content struct {
	Kind Kind `json:"kind"`
	// What describes the content in a sentence, with an article: "an ext4 file system".
	// It is for users only: no decision depends on it.
	What string `json:"what"`
	// VirtualSize is the size of the disk in the image, in bytes. It is nil if it is
	// unknown or the image has no disk. For kind [Unknown], nil means a format of
	// another program, not a disk.
	VirtualSize *int64 `json:"virtual_size_bytes,omitempty"`
	// Inner is the kind of the virtual image that a compressed image holds, and empty if it
	// holds the disk. Only [Content.Inside] sets it.
	Inner Kind `json:"inner,omitempty"`
	// Unreadable is the reason, as a sentence, that the disk in the image cannot be
	// read, or empty. Only [Sniff] sets it.
	Unreadable string `json:"unreadable,omitempty"`
	// Warnings are sentences about faults that do not depend on the name.
	Warnings []string `json:"warnings,omitempty"`
}

func (c *Content) warn(sentence string) { c.Warnings = append(c.Warnings, sentence) }

// Inside sets Inner of a compressed image, and the size of the disk in it, from the first
// bytes that it decompresses to, of which [HeadBytes] are enough.
func (c *Content) Inside(head []byte) {
	const unknown = 1 << 62 // the size of what it decompresses to
	inner := Head(head[:min(len(head), HeadBytes)], unknown)
	if !inner.Kind.Virtual() {
		return
	}
	c.Inner, c.VirtualSize = inner.Kind, nil
	c.What += " with " + inner.What + " inside"
	if h, err := guest.ReadHeader(guest.Format(inner.Kind), bytes.NewReader(head), unknown); err == nil {
		c.size(h.Size)
	}
}

func (c *Content) size(n int64) { c.VirtualSize = &n }

// HeadBytes is the number of bytes that [Head] needs. They include the label of btrfs,
// which is furthest from the beginning.
const HeadBytes = 68 << 10

// Detect is [Sniff] without the virtual size of compressed and virtual images. It
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

// Sniff detects the content of an image of size bytes. It reads the first [HeadBytes]
// at once, and then the footer and the virtual size with at most seeks further reads of
// up to 1 MiB; seeks must be at least 1. If those do not suffice, it omits the virtual
// size. The error is r's, or io.ErrUnexpectedEOF if r has fewer bytes than size.
func Sniff(r io.ReaderAt, size int64, seeks int) (Content, error) {
	head, err := readHead(r, size)
	if err != nil {
		return Content{}, err
	}
	c := Head(head, size)
	s := &seeker{r: r, size: size, left: seeks}
	if c.readFoot(s, size) != nil { // s keeps an error of r
		c.VirtualSize = nil
	}
	switch {
	case c.Kind == XZ:
		c.xz(s)
	case c.Kind == Zstd:
		c.zstd(s)
	case c.Kind == Zip:
		c.zip(s)
	case c.Kind.Virtual():
		c.virtual(s)
	}
	return c, s.err
}

// readFoot is [Content.Foot] of the image in r, whose disk can be read without the footer
// if that is of a fixed VHD.
func (c *Content) readFoot(r io.ReaderAt, size int64) error {
	if !c.footed(size) {
		return nil
	}
	foot := make([]byte, FootBytes)
	if _, err := r.ReadAt(foot, size-FootBytes); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if guest.Fixed(foot, size) {
		*c = Content{Kind: VHD, What: "a fixed VHD (Hyper-V) image"}
		return nil
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
	return nil, unexpected(err)
}

// A seeker reads an image at any offset, a limited number of times.
type seeker struct {
	r    io.ReaderAt
	size int64
	left int
	err  error // of r
}

// maxSeekBytes is the maximum size of a read.
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

// NoDisk returns the reason, as a sentence, that an image holds no disk, such as a web
// page or a format of another program. It returns "" if the image holds one.
func (c Content) NoDisk() string {
	switch {
	case c.Kind != Text && c.Kind != HTML && !c.foreign():
		return ""
	case len(c.Warnings) > 0:
		return c.Warnings[0]
	}
	return "the image is " + c.What
}

// NoDiskInside returns the reason, as a sentence, that a compressed image that
// decompresses to c holds no disk, or "" if it holds one.
func (c Content) NoDiskInside() string {
	switch no := c.NoDisk(); {
	case no != "":
		return "once decompressed, " + no
	case c.Kind.Virtual() || c.Kind.Compressed():
		return "once decompressed, this is " + c.What + ", which would have to be unpacked again: decompress it and upload what comes out"
	}
	return ""
}

// foreign reports whether an image of kind Unknown is known not to be a disk: one that
// may be a disk has a virtual size.
func (c Content) foreign() bool { return c.Kind == Unknown && c.VirtualSize == nil }

// Format returns the format of images with this content, or "" if they hold no disk or
// it is unknown.
func (c Content) Format() image.Format {
	packed, ok := c.Kind.compression()
	switch {
	case ok && c.Inner == QCOW2:
		return image.Format(string(QCOW2) + packed.Suffix)
	case c.Kind == Zip:
		return "zip"
	case ok:
		return image.Format("img" + packed.Suffix)
	case c.Kind.Virtual():
		return image.Format(c.Kind)
	case c.Kind == ISO9660:
		return "iso"
	case c.Kind == Unknown || c.NoDisk() != "":
		return ""
	}
	return "img"
}

// Mismatch returns a sentence on what fails if an image with this content has this
// name, or "" if the name fits. raw is the path that serves the disk, or empty if none
// does. Every name fits an image without a disk, since [Content.NoDisk] is warning
// enough.
func (c Content) Mismatch(name image.Name, raw string) string {
	format, ok := image.FormatOf(name)
	if !ok || c.NoDisk() != "" {
		return ""
	}
	said := string(name[len(name)-len(format)-1:])
	want := KindOf(format)
	_, packed := c.Kind.compression()
	take := ""
	if raw != "" {
		take = "take it from " + raw + ", or "
	}
	boots := ": a disk that gets it unchanged does not boot; " + take
	named := "named " + said + ", but it is " + c.What
	switch {
	case c.Inner != "" && c.Kind == want && format != "zip" && KindOf(format.Inner()) != c.Inner:
		return named + ": what decompresses it writes that to the disk, which does not boot; " + take + "decompress it and rename it to ." + string(c.Inner)
	case c.Kind == want, want == "" && c.Kind.Raw():
		return ""
	case c.Kind == VHD:
		return named + ": a disk that gets it unchanged gets what the VHD adds to the disk, too; " + take + "rename it to " + c.suffix(said)
	case c.Kind.Virtual():
		return named + boots + "rename it to " + c.suffix(said)
	case packed && want.Virtual():
		return named + ": what reads " + string(want) + " images does not read it; decompress it"
	case packed && want.Compressed():
		return named + ": what decompresses it by its name fails; " + take + "rename it to " + c.suffix(said)
	case packed:
		return named + boots + "rename it to " + c.suffix(said)
	case want.Compressed() && c.Kind.Raw():
		return named + " and not compressed: what decompresses it by its name fails; rename it to " + c.suffix(said)
	}
	return named
}

// suffix returns the suffix of images with this content, in place of said, which does not
// fit, or "" if another suffix does not help.
func (c Content) suffix(said string) string {
	format := image.Format(strings.ToLower(said[1:]))
	claimed, _ := format.Compression()
	plain := cmp.Or(said[:len(said)-len(claimed.Suffix)], ".img") // of the content inside
	found, packed := c.Kind.compression()
	switch {
	case c.Kind.Virtual():
		return "." + string(c.Kind)
	case packed && !KindOf(format).Virtual():
		return plain + found.Suffix
	case packed, !c.Kind.Raw(), !KindOf(format).Compressed():
		return ""
	case format.Inner().Virtual():
		return ".img"
	case c.Kind != ISO9660 && strings.EqualFold(plain, ".iso"):
		return ".img"
	}
	return plain
}

// Fitting returns the name with a suffix that fits this content. It returns "" if the name
// fits, or if no name does; see [Content.Mismatch].
func (c Content) Fitting(name image.Name) image.Name {
	if c.Mismatch(name, "") == "" {
		return ""
	}
	format, _ := image.FormatOf(name)
	base := name[:len(name)-len(format)-1]
	fitting := base + image.Name(c.suffix(string(name[len(base):])))
	if fitting == base || !fitting.Valid() {
		return ""
	}
	return fitting
}
