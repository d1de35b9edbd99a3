// Package checksum reads the checksum lists that publishers put beside their
// images, and finds the digest of one file in a list.
//
// It reads the output of these programs, also mixed in one list:
//
//   - sha256sum, sha512sum and cksum of GNU: text and binary markers, escaped
//     names, --tag, --base64
//   - sha256 of BSD, with and without -r
//   - openssl dgst
//   - sha256:HEX and the sha256-BASE64 of subresource integrity, before or after
//     a name
//   - a bare digest, alone in its file
//
// The algorithm of a digest is that in its line, else that of a title above it
// ("SHA256SUMS:"), else that in the list's name, else the one with digests of this
// length. Digests of other algorithms than SHA-256 and SHA-512 are ignored.
//
// Of a PGP clear-signed list (RFC 9580 section 7) only the signed text counts. The
// signature is not verified: a list is as trustworthy as the connection that it was
// read over.
package checksum

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"

	"imageroot/shared/image"
)

// MaxBytes is the maximum size of a checksum list, in bytes.
const MaxBytes = 1 << 20

// Algorithms of a [Sum].
const (
	SHA256 = "sha256"
	SHA512 = "sha512"
)

// A Sum is a digest that a publisher gives for a file.
type Sum struct {
	Algorithm string // [SHA256] or [SHA512]
	Hex       string // lower case
}

// A List is a parsed checksum list. It is safe for concurrent use.
type List struct {
	location string
	named    []entry
	bare     []Sum // without a name; empty if named is not
}

type entry struct {
	name string // as listed, without a leading "./"
	sum  Sum
}

// Parse reads a checksum list of at most [MaxBytes] from r. location is that of the
// list: host and path, or a path only, without percent-encoding. Lines without a
// SHA-256 or SHA-512 digest (comments, MD5, prose) are ignored. A list without any
// digest is an error. The text of an error is a sentence for users. An error of r is
// wrapped.
func Parse(r io.Reader, location string) (*List, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("the checksum list could not be read: %w", err)
	}
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("the checksum list is larger than %d MiB; is it the URL of the image itself?", MaxBytes>>20)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("the checksum list is not UTF-8 text; a signature, an image or a UTF-16 file is not a list")
	}
	text := norm.NFC.String(string(data)) // the normal form that Find compares
	if strings.HasPrefix(strings.TrimSpace(text), "<") {
		return nil, errors.New("this is a web page or an XML error, not a checksum list; give the URL of the list itself")
	}
	text, err = signedText(text)
	if err != nil {
		return nil, err
	}
	return parseLines(text, path.Clean(norm.NFC.String(location)))
}

func parseLines(text, location string) (*List, error) {
	l := List{location: location}
	var weak, other bool
	section, _ := algorithmsIn(path.Base(location))
	section = section[max(0, len(section)-1):] // the text before it may be an image's name
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		t := strings.TrimSpace(line)
		if t == "" {
			continue
		}
		d, ok := parseLine(line, section)
		switch {
		case t[0] == '#', !ok:
			named, title := algorithmsIn(t)
			if named != nil {
				section = named
			}
			other = other || !title && t[0] != '#'
		case d.sum.Algorithm == "":
			weak = true
		case d.name == "":
			l.bare = append(l.bare, d.sum)
		default:
			l.named = append(l.named, d)
		}
	}
	switch {
	case len(l.named) > 0:
		l.bare = nil // a digest without a name is of an unknown file
	case len(l.bare) > 0 && other:
		return nil, errors.New("the checksum list has a digest without a file name among other text; a bare digest must stand alone")
	case len(l.bare) > 0:
	case weak:
		return nil, errors.New("the checksum list has only digests that are too weak or not known; it needs SHA-256 or SHA-512")
	default:
		return nil, errors.New("the checksum list has no SHA-256 or SHA-512 digest")
	}
	return &l, nil
}

// maxListed bounds the names that an error of [List.Find] shows.
const maxListed = 10

// Find returns the sum of the file at location (see [Parse]), SHA-256 rather than
// SHA-512 if the list has both. It is an error if the list has none for the file, or
// several that differ. Names are compared in Unicode's normal form C.
//
// A name with directories is a path relative to the directory of the list. If the file
// is outside that directory (a mirror, a "latest" directory), its location must end in
// the path. A name without directories is the name of the file. But if other names of
// the list have directories, it is a path too. In a list that is named after the file
// (x.img.sha256), directories are ignored: they are those of the machine that made the
// list.
//
// The digest of a list that names no file is the sum of any file.
func (l *List) Find(location string) (Sum, error) {
	location = path.Clean(norm.NFC.String(location))
	file := path.Base(location)
	if len(l.named) == 0 {
		return choose(file, l.bare)
	}
	dir := path.Dir(l.location)
	below := dir == "." || strings.HasPrefix(location, dir+"/")
	tree := slices.ContainsFunc(l.named, func(e entry) bool { return strings.ContainsAny(e.name, `/\`) })
	for _, matches := range []func(name string) bool{
		func(name string) bool { return path.Join(dir, name) == location },
		func(name string) bool {
			name = strings.TrimLeft(strings.ReplaceAll(name, "../", ""), "/")
			return !below && strings.Contains(name, "/") && strings.HasSuffix(location, "/"+name)
		},
		func(name string) bool { return name == file && !(below && tree) },
		func(name string) bool { return path.Base(name) == file && l.beside(location) },
	} {
		// Some lists have more blanks before the name than sha256sum's two.
		for _, spelling := range []func(string) string{forward, func(name string) string { return strings.TrimSpace(forward(name)) }} {
			var sums []Sum
			for _, e := range l.named {
				if matches(spelling(e.name)) {
					sums = append(sums, e.sum)
				}
			}
			if len(sums) > 0 {
				return choose(file, sums)
			}
		}
	}
	return Sum{}, l.missing(location)
}

// forward returns the path of a Windows tool with slashes. No image name has a
// backslash.
func forward(name string) string { return strings.ReplaceAll(name, `\`, "/") }

// beside reports whether the list is in the directory of the file at location and
// has its name with a suffix, like NAME.sha256.
func (l *List) beside(location string) bool {
	return path.Dir(l.location) == path.Dir(location) && strings.HasPrefix(path.Base(l.location), path.Base(location))
}

// missing returns the error of a list without the file at location.
func (l *List) missing(location string) error {
	file := path.Base(location)
	for _, e := range l.named {
		name := path.Base(e.name)
		if slices.ContainsFunc(image.Compressions, func(c image.Compression) bool { return name+c.Suffix == file }) {
			return fmt.Errorf("the checksum list has the digest of %q, which is what %q decompresses to: it has none of the compressed file", e.name, file)
		}
	}
	if len(l.named) == 1 && l.beside(location) {
		return fmt.Errorf("the checksum list's only line is of %.100q: if that is the name that %q was built under, give the list that name or make one of the file itself", l.named[0].name, file)
	}
	return fmt.Errorf("the checksum list does not name %q; it lists %s", file, l.names())
}

// choose returns the preferred one of the sums of a file.
func choose(fileName string, sums []Sum) (Sum, error) {
	found := map[string]string{}
	for _, s := range sums {
		if old, ok := found[s.Algorithm]; ok && old != s.Hex {
			return Sum{}, fmt.Errorf("the checksum list gives %q two different %s digests, %s and %s; use a list that names the file once",
				fileName, s.Algorithm, old, s.Hex)
		}
		found[s.Algorithm] = s.Hex
	}
	for _, alg := range []string{SHA256, SHA512} {
		if h, ok := found[alg]; ok {
			return Sum{alg, h}, nil
		}
	}
	return Sum{}, fmt.Errorf("the checksum list has no digest for %q", fileName)
}

// names formats the names in the list for a sentence.
func (l *List) names() string {
	seen := map[string]bool{}
	var shown []string
	for _, e := range l.named {
		if seen[e.name] {
			continue
		}
		seen[e.name] = true
		if len(shown) < maxListed {
			shown = append(shown, fmt.Sprintf("%.100q", e.name))
		}
	}
	s := strings.Join(shown, ", ")
	if more := len(seen) - len(shown); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}
