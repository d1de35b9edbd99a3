package image

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Format is the suffix of an image name in lower case, without the leading
// dot: "qcow2", "img", "img.xz". See [Formats] for all of them.
type Format string

// A Compression is a row of the table of compressions. Package unpack has the
// decoder of each.
type Compression struct {
	// Name is the name of the format and of the command that decompresses it from
	// standard input with -d. A server may also send it as the content coding of an
	// answer that is the compressed file.
	Name   string
	What   string // Name in a sentence: "a gzip file"
	Suffix string // of file names, with the dot
	// Begins reports whether head is the beginning of a compressed file. Ten
	// bytes decide.
	Begins func(head []byte) bool
}

// Compressions is the table of compressions. It must not be changed.
var Compressions = []Compression{
	{"zstd", "a zstd file", ".zst", func(b []byte) bool {
		// A frame, or a skippable frame, whose first byte is 0x50 to 0x5f
		// (RFC 8878, sections 3.1.1 and 3.1.2).
		return At(b, 0, "\x28\xb5\x2f\xfd") || At(b, 1, "\x2a\x4d\x18") && b[0]>>4 == 5
	}},
	{"xz", "an xz file", ".xz", func(b []byte) bool {
		return At(b, 0, "\xfd7zXZ\x00") // xz-file-format.txt, section 2.1.1.1
	}},
	{"gzip", "a gzip file", ".gz", func(b []byte) bool {
		return At(b, 0, "\x1f\x8b\x08") // RFC 1952, section 2.3.1
	}},
	{"bzip2", "a bzip2 file", ".bz2", func(b []byte) bool {
		// A digit follows, then the first block, or the end of an empty stream.
		return At(b, 0, "BZh") && (At(b, 4, "1AY&SY") || At(b, 4, "\x17rE8P\x90"))
	}},
}

// Zip is the row of ZIP archives of one image.
var Zip = Compression{"zip", "a ZIP archive", ".zip", func(b []byte) bool { return At(b, 0, "PK\x03\x04") }}

// At reports whether b has magic at an offset.
func At(b []byte, offset int, magic string) bool {
	return len(b) >= offset+len(magic) && string(b[offset:offset+len(magic)]) == magic
}

var (
	raw     = []Format{"img", "raw", "iso", "wic"} // wic: a raw disk, by Yocto's tool of that name
	virtual = []Format{"qcow2", "vmdk", "vhd", "vhdx", "vdi"}
	formats = allFormats()
)

func allFormats() []Format {
	fs := slices.Concat(virtual[:1], raw, virtual[1:])
	for _, p := range slices.Concat(raw, virtual[:1]) {
		for _, c := range Compressions {
			fs = append(fs, p+Format(c.Suffix))
		}
	}
	return append(fs, "zip")
}

// Formats returns every known format, the uncompressed ones first.
func Formats() []Format { return slices.Clone(formats) }

// FormatList returns [Formats] as one line for users: ".qcow2, .img, ...".
func FormatList() string { return list(formats) }

func list(formats []Format) string {
	var b strings.Builder
	for i, f := range formats {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("." + string(f))
	}
	return b.String()
}

// FormatOf returns the format that the suffix of name stands for. It does not
// check the rest of name. A name that is only a suffix (".img") has no format.
func FormatOf(name Name) (Format, bool) {
	// At most one format matches, since no suffix ends in another one.
	for _, f := range formats {
		if hasSuffix(string(name), "."+string(f)) {
			return f, true
		}
	}
	return "", false
}

// Compression returns the compression of images of format f, and false if they
// are not compressed.
func (f Format) Compression() (Compression, bool) {
	if f == "zip" {
		return Zip, true
	}
	i := slices.IndexFunc(Compressions, func(c Compression) bool { return strings.HasSuffix(string(f), c.Suffix) })
	if i < 0 {
		return Compression{}, false
	}
	return Compressions[i], true
}

// DiskName returns the name of the raw disk in an image: name without the
// suffix of its compression, and with ".img" for that of a virtual machine's image. A client that
// decides by the name whether to decompress takes the disk unchanged.
func DiskName(name Name) Name {
	format, _ := FormatOf(name)
	switch inner := format.Inner(); {
	case inner.Virtual():
		return name[:len(name)-len(format)] + "img"
	case format == "zip":
		packed := name[:len(name)-len(Zip.Suffix)]
		if Packed(string(packed)) {
			return DiskName(packed)
		}
		return packed + ".img"
	}
	c, _ := format.Compression()
	return name[:len(name)-len(c.Suffix)]
}

// Packed reports whether a file of this name in a ZIP archive is an image. The name may have
// directories.
func Packed(name string) bool {
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	f, ok := FormatOf(Name(name))
	_, compressed := f.Compression()
	return ok && !compressed && name[0] != '.' // macOS adds ._x.img
}

// PackedList returns the suffixes of [Packed] as one line for users.
func PackedList() string { return list(slices.Concat(raw, virtual)) }

// Inner returns the format of what images of format f decompress to, f if they are not
// compressed, and "" if its name does not say.
func (f Format) Inner() Format {
	if f == "zip" {
		return ""
	}
	c, _ := f.Compression()
	return f[:len(f)-len(c.Suffix)]
}

// Virtual reports whether images of format f are those of virtual machines, whose disk
// package guest reads.
func (f Format) Virtual() bool { return slices.Contains(virtual, f) }

// Image reports whether f is a format of disk images. A manifest may list other files, too.
func (f Format) Image() bool { return slices.Contains(formats, f) }

// otherFormat matches the formats that a file may have that is no disk image.
var otherFormat = regexp.MustCompile(`^[a-z0-9][a-z0-9._+-]{0,31}$`)

// Named returns the name of a file that a publisher calls name, and its format, which need
// not be one of disk images. If name has no suffix of an image, it is a title, and format,
// if that is not empty, says the suffix. The error is a [*NameError].
func Named(name, format string) (Name, Format, error) {
	given := Format(strings.ToLower(strings.TrimPrefix(format, ".")))
	own, known := FormatOf(Name(name))
	if !known {
		own = tarball(strings.ToLower(name))
	}
	switch {
	case known || given == "" && own == "":
		if n, err := ParseName(name); err != nil {
			return "", "", err
		} else if given == "" || given == own {
			return n, own, nil
		}
	case given == "":
		given = own
	case !otherFormat.MatchString(string(given)):
		return "", "", &NameError{fmt.Sprintf("format is %.40q, which is none of %s", format, FormatList())}
	}
	if own != "" && own != given {
		return "", "", &NameError{fmt.Sprintf("format is %.40q, but the name says %q", format, own)}
	}
	return Titled(name, given), given, nil
}

// Titled returns the name of an image of this format that has a title: the title, without
// what no name can have, and the suffix of the format unless it ends in that.
func Titled(title string, format Format) Name {
	suffix := "." + string(format)
	if hasSuffix(title, suffix) {
		title = title[:len(title)-len(suffix)]
	}
	title = strings.TrimLeft(strings.Map(func(r rune) rune {
		if CheckSegment("x"+string(r)) != nil {
			return '-'
		}
		return r
	}, strings.ToValidUTF8(title, "-")), ".")
	for len(title)+len(suffix) > MaxNameBytes {
		_, n := utf8.DecodeLastRuneInString(title)
		title = title[:len(title)-n]
	}
	return Name(cmp.Or(title, "image") + suffix)
}

// hasSuffix reports whether name ends in suffix, which is ASCII, and has more
// before it. Only ASCII letters compare without case: strings.ToLower would
// make ".img" of ".\u0130MG", which other programs do not take for it.
func hasSuffix(name, suffix string) bool {
	n := len(name) - len(suffix)
	// Of as many bytes as suffix has letters, all that match are ASCII.
	return n > 0 && strings.EqualFold(name[n:], suffix)
}
