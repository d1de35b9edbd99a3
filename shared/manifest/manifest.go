// Package manifest reads and writes catalog.toml, a list of images by URL:
//
//	version = 1
//
//	[[images]]
//	name = "debian-12.qcow2"                     # an image name; required, unique without case
//	src = "https://example.org/debian-12.qcow2"  # http, https or oras URL; required
//	sha256 = "..."                               # 64 hex digits
//	sha512 = "..."                               # 128 hex digits
//	format = "qcow2"                             # what the name says
//	size_bytes = 1234
//
// A manifest is read whole or refused whole. Unknown keys are refused: a
// misspelt "sha256" must not pass for an image that needs no check.
package manifest

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"imageroot/shared/image"
)

// Limits of a manifest.
const (
	MaxBytes  = 1 << 20
	MaxImages = 10_000
)

// A Manifest is a parsed catalog.toml.
type Manifest struct {
	Images []Image
}

// An Image is one row of a manifest.
type Image struct {
	Name      string
	Src       string
	SHA256    string       // lower case hex, or empty if not known
	SHA512    string       // lower case hex, or empty if not known
	Format    image.Format // what Name says
	SizeBytes *int64       // nil if not known
}

// maxProblems bounds how many problems one [Error] reports.
const maxProblems = 10

// An Error says why a manifest is refused: the first problems in it, ten at
// most, in the order of their lines.
type Error struct{ Problems []Problem }

// A Problem is one reason why a manifest is refused.
type Problem struct {
	Line   int // from 1
	Reason string
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = fmt.Sprintf("line %d: %s", p.Line, p.Reason)
	}
	return strings.Join(lines, "\n")
}

// Encode returns the manifest as TOML. [Parse] reads the same manifest from
// it as long as every row is one that Parse accepts and the limits hold.
func (m *Manifest) Encode() ([]byte, error) {
	type row struct {
		Name      string       `toml:"name"`
		Src       string       `toml:"src"`
		SHA256    string       `toml:"sha256,omitempty"`
		SHA512    string       `toml:"sha512,omitempty"`
		Format    image.Format `toml:"format,omitempty"`
		SizeBytes *int64       `toml:"size_bytes,omitempty"`
	}
	doc := struct {
		Version int   `toml:"version"`
		Images  []row `toml:"images,omitempty"`
	}{Version: version}
	for _, i := range m.Images {
		doc.Images = append(doc.Images, row(i))
	}
	data, err := toml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("write %d images as TOML: %w", len(m.Images), err)
	}
	return data, nil
}
