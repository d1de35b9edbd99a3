// Package content finds out what an image is by looking at a few of its bytes,
// whatever its name says.
package content

import (
	"errors"
	"io"
	"strings"

	"imageroot/shared/image"
)

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

// Raw reports whether a disk gets the bytes as they are.
func (k Kind) Raw() bool {
	return k == ISO9660 || k == MBR || k == GPT || k == Filesystem || k == Unknown
}

// A Content is what a look at an image tells.
type Content struct {
	Kind Kind `json:"kind"`
	// What is the kind in words, with an article: "an ext4 file system".
	What string `json:"what"`
	// VirtualSize is how many bytes a disk gets of it, where that is written
	// in the image; nil if not.
	VirtualSize *int64 `json:"virtual_size_bytes,omitempty"`
	// Warnings are sentences on what is wrong, whatever the image is called.
	Warnings []string `json:"warnings,omitempty"`
}

func (c *Content) warn(sentence string) { c.Warnings = append(c.Warnings, sentence) }

func (c *Content) size(n int64) { c.VirtualSize = &n }

// HeadBytes is how much of an image [Head] wants to see: as far as the label of
// the file system with the last one, btrfs.
const HeadBytes = 68 << 10

// Detect is [Sniff] without what is written elsewhere: it reads the first
// [HeadBytes] at once, the last few bytes, and nothing else.
func Detect(r io.ReaderAt, size int64) (Content, error) {
	head, err := readHead(r, size)
	if err != nil {
		return Content{}, err
	}
	c := Head(head, size)
	err = c.readFoot(r, size)
	return c, err
}

// Sniff finds out what an image of size bytes is. It reads the first
// [HeadBytes] at once, and then up to seeks times up to 1 MiB of what is
// elsewhere: a footer, the virtual size. The error is r's.
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

// A seeker reads anywhere in an image, but not often.
type seeker struct {
	r    io.ReaderAt
	size int64
	left int
	err  error // of r
}

// maxSeekBytes is the most that is read at once.
const maxSeekBytes = 1 << 20

var errEnough = errors.New("enough of it has been read")

// ReadAt implements io.ReaderAt.
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

// NoDisk says why a disk gets nothing of an image: it is a web page, say, or of
// another program's format. It says nothing where a disk gets something.
func (c Content) NoDisk() string {
	switch {
	case c.Kind != Text && c.Kind != HTML && !c.foreign():
		return ""
	case len(c.Warnings) > 0:
		return c.Warnings[0]
	}
	return "the image is " + c.What
}

// NoDiskInside says why a disk gets nothing of a compressed image that
// decompresses to c. It says nothing where a disk gets c.
func (c Content) NoDiskInside() string {
	switch no := c.NoDisk(); {
	case no != "":
		return "once decompressed, " + no
	case c.Kind == QCOW2 || c.Kind.Compressed():
		return "once decompressed, this is " + c.What + ", which would have to be unpacked in turn: decompress it and upload what comes out"
	}
	return ""
}

// Mismatch says what is wrong with calling an image with that content name,
// or nothing. A disk to which it is written as it is would not boot. What a
// disk gets of it is at the path raw, or nowhere if raw is empty.
func (c Content) Mismatch(name, raw string) string {
	format, ok := image.FormatOf(name)
	if !ok || c.NoDisk() != "" { // which is warned of anyway
		return ""
	}
	said := name[len(name)-len(format)-1:]
	want := wanted(format)
	plain := said[:len(said)-len(suffixOf[want])] // of what is inside
	take := ""
	if raw != "" {
		take = "take it from " + raw + ", or "
	}
	boots := ": a disk it is written to as it is does not boot; " + take
	named := "named " + said + ", but it is " + c.What
	switch {
	case c.Kind == want, want == "" && c.Kind.Raw():
		return ""
	case c.Kind == QCOW2:
		return named + boots + "rename it to .qcow2"
	case c.Kind.Compressed() && want == QCOW2:
		return named + ": what reads qcow2 images does not read it; decompress it"
	case c.Kind.Compressed() && want.Compressed():
		return named + ": what decompresses it by its name fails; " + take + "rename it to " + plain + suffixOf[c.Kind]
	case c.Kind.Compressed():
		return named + boots + "rename it to " + said + suffixOf[c.Kind]
	case want.Compressed() && c.Kind.Raw():
		if c.Kind != ISO9660 && strings.EqualFold(plain, ".iso") {
			plain = ".img"
		}
		return named + " and not compressed: what decompresses it by its name fails; rename it to " + plain
	}
	return named
}

var suffixOf = map[Kind]string{Gzip: ".gz", XZ: ".xz", Zstd: ".zst", Bzip2: ".bz2"}

// wanted is the kind that a format stands for; empty for any that a disk gets
// as it is.
func wanted(format image.Format) Kind {
	switch format {
	case "qcow2":
		return QCOW2
	case "iso":
		return ISO9660
	}
	for kind, suffix := range suffixOf {
		if n := len(format) - len(suffix); n > 0 && string(format[n:]) == suffix {
			return kind
		}
	}
	return ""
}
