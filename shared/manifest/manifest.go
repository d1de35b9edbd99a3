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
//	format = "qcow2"                             # must match the suffix of the name, if that has one
//	size_bytes = 1234
//
// and what the image is, in the fields of package metadata, of which "arch" is another name
// of architecture:
//
//	title = "Debian 12"
//	description = "..."
//	system = "debian"
//	version = "12"
//	architecture = "amd64"
//	release_date = "2026-11-28"
//	icon = "https://..."
//	devices = ["pi5-64bit"]
//	init_format = "cloudinit"
//	home_page = "https://..."
//	labels = {channel = "stable"}                # or a table [images.labels]
//
// The version of the manifest must precede the first image. Two names must differ in more than case. A src
// must not contain a user name or password.
//
// A name without the suffix of an image is a title: the image gets the title with the
// suffix that format says as its name. A file whose format is none of disk images (tar.gz)
// is listed as well.
//
// A manifest is accepted or refused as a whole. Publishers write keys of their own, so
// unknown keys are warned of: with a misspelt "sha256", an image is fetched without
// verification. Those of an image are kept as labels, if a label can have their value.
package manifest

import (
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
)

// Limits of a manifest that [Parse] accepts.
const (
	MaxBytes  = 1 << 20
	MaxImages = 10_000
)

// A Manifest is a parsed catalog.toml.
type Manifest struct {
	Images []Image
	// Warnings are about what [Parse] accepted and did not understand, the first ones, in
	// the order of their lines.
	Warnings []Problem
}

// An Image is an image of a manifest.
type Image struct {
	Name      image.Name    `toml:"name"`
	Src       string        `toml:"src"`
	SHA256    layout.SHA256 `toml:"sha256,omitempty"` // lower-case hexadecimal, or empty if unknown
	SHA512    string        `toml:"sha512,omitempty"` // lower-case hexadecimal, or empty if unknown
	Format    image.Format  `toml:"format,omitempty"` // that of Name; not always one of disk images
	SizeBytes *int64        `toml:"size_bytes,omitempty"`
	metadata.Fields
}

// maxProblems is the maximum number of problems in an [Error].
const maxProblems = 10

// An Error is the error of a refused manifest. It has the first problems, at most ten,
// in the order of their lines.
type Error struct{ Problems []Problem }

// A Problem is one reason to refuse a manifest, or a warning.
type Problem struct {
	Line   int // from 1
	Reason string
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (p Problem) String() string { return fmt.Sprintf("line %d: %s", p.Line, p.Reason) }

// Encode writes a manifest of images as TOML, in one Write for its beginning and one
// for each image. [Parse] returns these images if each is valid and the limits hold.
func Encode(w io.Writer, images iter.Seq[Image]) error {
	if _, err := fmt.Fprintf(w, "version = %d\n", version); err != nil {
		return err
	}
	for im := range images {
		data, err := toml.Marshal(struct {
			Images []Image `toml:"images"`
		}{[]Image{im}})
		if err != nil {
			return fmt.Errorf("encode the image %q of a manifest: %w", im.Name, err)
		}
		if _, err := w.Write(append([]byte{'\n'}, data...)); err != nil {
			return err
		}
	}
	return nil
}
