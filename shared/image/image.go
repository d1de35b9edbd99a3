// Package image defines which names an image may have, and the table of the
// formats that images have.
//
// The suffix of a name stands for a [Format]. Clients rely on it, but it is only a
// claim: package content detects the format of the bytes.
package image

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// MaxNameBytes is the maximum length of an image name, in bytes of UTF-8. Common file
// systems have the same limit for a path segment.
const MaxNameBytes = 255

// A NameError is the reason that no image can have a name, as a sentence for the user
// that chose the name.
type NameError struct{ Reason string }

func (e *NameError) Error() string { return e.Reason }

// A Name is the name of an image, in UTF-8. [ParseName] checks names from outside: see
// also [Name.Valid].
type Name string

// ParseName returns s as the name of an image. If no image can have that name,
// the error is a [*NameError]. Suffixes compare without case; the name itself
// keeps its case.
func ParseName(s string) (Name, error) {
	if err := CheckSegment(s); err != nil {
		return "", err
	}
	if _, ok := FormatOf(Name(s)); ok {
		return Name(s), nil
	}
	if tarball(strings.ToLower(s)) != "" {
		return "", &NameError{"a tarball is not a disk image: extract it and upload the image inside (" + FormatList() + ")"}
	}
	return "", &NameError{"the name must end in one of " + FormatList()}
}

// Valid reports whether an image can have the name n.
func (n Name) Valid() bool {
	_, err := ParseName(string(n))
	return err == nil
}

// Spellings returns the names that differ from name at most in Unicode's normal form:
// name itself, then its composed (NFC) and decomposed form (NFD), each if it differs and is
// not too long for a name. macOS decomposes names that other systems leave composed.
func Spellings(name Name) []Name {
	list := []Name{name}
	for _, form := range []norm.Form{norm.NFC, norm.NFD} {
		if other := Name(form.String(string(name))); len(other) <= MaxNameBytes && !slices.Contains(list, other) {
			list = append(list, other)
		}
	}
	return list
}

// Join formats names as a list for users.
func Join(names []Name) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}

// tarball returns the suffix of the name of a tarball, which is in lower case, or "".
func tarball(lower string) Format {
	for _, s := range []string{".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz"} {
		if strings.HasSuffix(lower, s) {
			return Format(s[1:])
		}
	}
	i := strings.LastIndex(lower, ".tar.")
	if i < 0 || strings.Contains(lower[i+len(".tar."):], ".") {
		return ""
	}
	return Format(lower[i+1:])
}

// CheckSegment checks the rules for every name in the image root, with any
// suffix: one path segment of 1 to [MaxNameBytes] bytes of valid UTF-8 without
// '/', '\', control characters, U+FFFE, U+FFFF or a leading dot. The error is a
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
