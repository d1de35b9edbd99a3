// Package checksum reads the checksum lists that publishers of images put
// beside them, in whatever form they do, and finds one file's digest in it.
//
// It reads what sha256sum and sha512sum write (text or binary marker, escaped
// names, --tag), what BSD's sha256 and openssl dgst write, and files that hold
// a bare digest. PGP clear-signed lists are read without verifying who signed
// them: they are trusted as much as the connection they came over.
package checksum

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxBytes is the largest checksum list that [Parse] reads.
const MaxBytes = 1 << 20

// Algorithms of a [Sum].
const (
	SHA256 = "sha256"
	SHA512 = "sha512"
)

// A Sum is what a publisher says that a file's bytes hash to.
type Sum struct {
	Algorithm string // SHA256 or SHA512
	Hex       string // lower case
}

// A List is a parsed checksum list.
type List struct {
	named []entry
	bare  []Sum // digests of a list that names no file
}

type entry struct {
	name string // as listed, without a leading "./"
	sum  Sum
}

// Parse reads a checksum list of at most [MaxBytes]. Lines that are not
// SHA-256 or SHA-512 digests (comments, MD5, prose) are passed over, but a
// list must have at least one. Errors are sentences for the person who named
// the list; an error of r is wrapped.
func Parse(r io.Reader) (*List, error) {
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
	text := string(data)
	if strings.HasPrefix(strings.TrimSpace(text), "<") {
		return nil, errors.New("this is a web page or an XML error, not a checksum list; give the URL of the list itself")
	}
	text, err = signedText(text)
	if err != nil {
		return nil, err
	}
	return parseLines(text)
}

func parseLines(text string) (*List, error) {
	var l List
	var weak, other bool
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if t := strings.TrimSpace(line); t == "" || t[0] == '#' {
			continue
		}
		d, ok := parseLine(line)
		switch {
		case !ok:
			other = true
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
		// Nobody can say which file a digest without a name is of when
		// others have names.
		l.bare = nil
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

// Find returns the sum of the file fileName (one path segment), a SHA-256 in
// preference to a SHA-512. An entry whose name is fileName counts before
// entries that have it behind a directory. It is an error if the list has
// nothing for fileName, or different digests.
func (l *List) Find(fileName string) (Sum, error) {
	if len(l.named) == 0 {
		return choose(fileName, l.bare)
	}
	for _, matches := range []func(string) bool{
		func(name string) bool { return name == fileName },
		func(name string) bool { return base(name) == fileName },
		// Some lists are aligned with more blanks than sha256sum's two.
		func(name string) bool { return base(strings.TrimSpace(name)) == fileName },
	} {
		var sums []Sum
		for _, e := range l.named {
			if matches(e.name) {
				sums = append(sums, e.sum)
			}
		}
		if len(sums) > 0 {
			return choose(fileName, sums)
		}
	}
	return Sum{}, fmt.Errorf("the checksum list does not name %q; it lists %s", fileName, l.names())
}

// choose returns the preferred of sums, all of which are of one file.
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

// names is what the list names, for people.
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

// base is what follows the last slash. Windows tools write backslashes, and
// no image name has either.
func base(name string) string {
	return name[strings.LastIndexAny(name, `/\`)+1:]
}
