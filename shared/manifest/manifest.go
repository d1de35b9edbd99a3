// Package manifest reads and writes catalog.toml, a list of images by URL in TOML
// 1.0:
//
//	version = 1
//
//	[[images]]
//	name = "debian-12.qcow2"                     # required: a name (package image)
//	src = "https://example.org/debian-12.qcow2"  # required: an absolute URL (package source)
//	sha256 = "..."                               # 64 hex digits
//	sha512 = "..."                               # 128 hex digits
//	format = "qcow2"                             # must match the suffix of the name
//	size_bytes = 1234
//
// version must precede the first image. Two names must differ in more than case. A src
// must not contain a user name or password.
//
// A manifest is accepted or refused as a whole. Unknown keys are refused: with a
// misspelt "sha256", an image would be fetched without verification.
package manifest

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// Limits of a manifest that [Parse] accepts.
const (
	MaxBytes  = 1 << 20
	MaxImages = 10_000
)

// A Manifest is a parsed catalog.toml.
type Manifest struct {
	Images []Image
}

// An Image is an image of a manifest.
type Image struct {
	Name      image.Name    `toml:"name"`
	Src       string        `toml:"src"`
	SHA256    layout.SHA256 `toml:"sha256,omitempty"` // lower-case hexadecimal, or empty if unknown
	SHA512    string        `toml:"sha512,omitempty"` // lower-case hexadecimal, or empty if unknown
	Format    image.Format  `toml:"format,omitempty"` // that of Name
	SizeBytes *int64        `toml:"size_bytes,omitempty"`
}

// maxProblems is the maximum number of problems in an [Error].
const maxProblems = 10

// An Error is the error of a refused manifest. It has the first problems, at most ten,
// in the order of their lines.
type Error struct{ Problems []Problem }

// A Problem is one reason to refuse a manifest.
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

// Encode returns the manifest as TOML. [Parse] returns an equal manifest from it if
// each image is valid and the limits hold.
func (m *Manifest) Encode() ([]byte, error) {
	data, err := toml.Marshal(struct {
		Version int     `toml:"version"`
		Images  []Image `toml:"images,omitempty"`
	}{version, m.Images})
	if err != nil {
		return nil, fmt.Errorf("encode manifest of %d images: %w", len(m.Images), err)
	}
	return data, nil
}
