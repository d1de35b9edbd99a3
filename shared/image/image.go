// Package image knows what an image may be called and what its name says
// about its format. It never looks at bytes.
package image

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxNameBytes is the longest image name, in bytes of UTF-8. It is what one
// path segment of the common file systems holds.
const MaxNameBytes = 255

// A Format is the suffix of an image name in lower case, without the leading
// dot: "qcow2", "img", "img.xz". See [Formats] for all of them.
type Format string

var (
	plain       = []string{"qcow2", "img", "raw", "iso"}
	compressed  = []string{"img", "raw", "iso"}
	compressors = []string{"zst", "xz", "gz", "bz2"}
	formats     = allFormats()
)

func allFormats() []Format {
	var fs []Format
	for _, p := range plain {
		fs = append(fs, Format(p))
	}
	for _, p := range compressed {
		for _, c := range compressors {
			fs = append(fs, Format(p+"."+c))
		}
	}
	return fs
}

// Formats lists every known format, the plain ones first.
func Formats() []Format { return slices.Clone(formats) }

// FormatList is [Formats] as one line for people: ".qcow2, .img, ...".
func FormatList() string {
	var b strings.Builder
	for i, f := range formats {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("." + string(f))
	}
	return b.String()
}

// A NameError says why a name cannot be an image's, in a sentence for the
// person who chose it.
type NameError struct{ Reason string }

func (e *NameError) Error() string { return e.Reason }

// ParseName checks that name can name an image and returns its format. The
// error is a [*NameError]. Suffixes compare without case; the name itself
// keeps its case.
func ParseName(name string) (Format, error) {
	if err := CheckSegment(name); err != nil {
		return "", err
	}
	if f, ok := FormatOf(name); ok {
		return f, nil
	}
	if isTarball(strings.ToLower(name)) {
		return "", &NameError{"a tarball is not a disk image: extract it and upload the image inside (" + FormatList() + ")"}
	}
	return "", &NameError{"the name must end in one of " + FormatList()}
}

// IsName reports whether name can name an image.
func IsName(name string) bool {
	_, err := ParseName(name)
	return err == nil
}

// Spellings returns the names that look like name because they differ in
// Unicode's normal form only: name itself, then the composed (NFC) and the
// decomposed one (NFD) where they are others. macOS decomposes names that
// other systems leave composed.
func Spellings(name string) []string {
	list := []string{name}
	for _, form := range []norm.Form{norm.NFC, norm.NFD} {
		if other := form.String(name); !slices.Contains(list, other) {
			list = append(list, other)
		}
	}
	return list
}

// FormatOf returns the format that name's suffix says, without checking the
// rest of the name. A name that is only a suffix (".img") has none.
func FormatOf(name string) (Format, bool) {
	// No format is a suffix of another one after a dot, so order does not
	// matter: "a.img.xz" is img.xz and nothing else.
	for _, f := range formats {
		if hasSuffix(name, "."+string(f)) {
			return f, true
		}
	}
	return "", false
}

// DiskName is what the raw disk in an image is called: the image's name without
// the suffix of its compression, and with ".img" for ".qcow2". Clients that
// decide by the name whether to decompress take a disk of that name as it is.
func DiskName(name string) string {
	format, ok := FormatOf(name)
	if !ok {
		return name
	}
	plain, _, _ := strings.Cut(string(format), ".")
	if plain == "qcow2" {
		return name[:len(name)-len(plain)] + "img"
	}
	return name[:len(name)-len(format)+len(plain)]
}

// hasSuffix reports whether name ends in suffix, which is ASCII, and has more
// before it. Only ASCII letters compare without case: strings.ToLower would
// make ".img" of ".\u0130MG", which no other program takes for it.
func hasSuffix(name, suffix string) bool {
	n := len(name) - len(suffix)
	// Of as many bytes as suffix has letters, all that match are ASCII.
	return n > 0 && strings.EqualFold(name[n:], suffix)
}

func isTarball(lower string) bool {
	for _, s := range []string{".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz"} {
		if strings.HasSuffix(lower, s) {
			return true
		}
	}
	i := strings.LastIndex(lower, ".tar.")
	return i >= 0 && !strings.Contains(lower[i+len(".tar."):], ".")
}

// CheckSegment checks the rules that hold for every name in the image root,
// whatever its suffix: one path segment of 1 to [MaxNameBytes] bytes of valid
// UTF-8 without '/', '\', control characters, U+FFFE, U+FFFF or a leading dot. The error is a
// [*NameError].
func CheckSegment(name string) error {
	switch {
	case name == "":
		return &NameError{"the name is empty"}
	case len(name) > MaxNameBytes:
		return &NameError{fmt.Sprintf("the name has %d bytes, the most is %d", len(name), MaxNameBytes)}
	case !utf8.ValidString(name):
		return &NameError{"the name is not valid UTF-8"}
	case name[0] == '.':
		return &NameError{"the name must not start with a dot"}
	}
	for _, r := range name {
		switch {
		case r == '/' || r == '\\':
			return &NameError{fmt.Sprintf("the name must be one path segment, without %q", r)}
		case unicode.IsControl(r):
			return &NameError{fmt.Sprintf("the name must not contain the control character %U", r)}
		case r == 0xFFFE || r == 0xFFFF:
			return &NameError{fmt.Sprintf("the name must not contain %U, which XML, and so S3, cannot carry", r)}
		}
	}
	return nil
}
