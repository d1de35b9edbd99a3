// Package entry defines the records of images named by URL: an [Entry] is what the
// operator added, and [Fetched] is what a fetch job received from its source.
package entry

import (
	"cmp"
	"errors"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/record"
)

// An Entry is the record of an image named by URL. Sizes are in bytes, and digests
// are lower-case hexadecimal.
type Entry struct {
	record.Meta
	URL       string        `json:"url"`
	SHAURL    string        `json:"sha_url,omitempty"`
	Name      image.Name    `json:"name"`
	Format    string        `json:"format"`
	SizeBytes *int64        `json:"size_bytes"`
	SHA256    layout.SHA256 `json:"sha256,omitempty"`
	SHA512    string        `json:"sha512,omitempty"`
	AddedAt   time.Time     `json:"added_at"`
	// KnownAt is the time since which the name has had these bytes, in UTC. It is
	// zero if that is AddedAt.
	KnownAt time.Time `json:"known_at,omitzero"`
	// Source is the state of the source when the entry was added.
	Source Source `json:"source"`
	// Changed describes how the source differs from that state. It is empty until a
	// fetch has detected a difference.
	Changed string `json:"changed,omitempty"`
	// Words are the name and the metadata that the operator gave with the URL; nil: none.
	Words *metadata.Words `json:"words,omitempty"`
	// Metadata is what the annotations of an artifact in a registry say; nil: nothing.
	Metadata *metadata.Fields `json:"metadata,omitempty"`
}

// A Request is what an operator gives to add an entry.
type Request struct {
	ImageURL string `json:"image_url"`
	SHAURL   string `json:"sha_url"`
	SHA256   string `json:"sha256"` // of the image, from elsewhere
	// Name is that of the image, instead of the one from the source.
	Name    string `json:"name"`
	Refresh bool   `json:"refresh"`
	// SizeBytes is used if the source does not say its size; nil: unknown.
	SizeBytes *int64 `json:"-"`
	// Words are the name, instead of that from the source, and metadata; nil: none.
	Words *metadata.Words `json:"-"`
}

// Validate implements record.Validator.
func (e *Entry) Validate() error {
	if e.URL == "" || !e.Name.Valid() {
		return errors.New("an entry has a URL and the name of an image")
	}
	return nil
}

// Source identifies one state of a source. A field that the source did not report is
// empty.
type Source struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
	// Digest is the digest ("sha256:...") that a pinned source resolved to: of a
	// layer in a registry. The bytes with a digest never change.
	Digest string `json:"digest,omitempty"`
}

// Fetched is the record of the bytes that a fetch received from a source.
type Fetched struct {
	record.Meta
	Src       string        `json:"src"`
	SHA256    layout.SHA256 `json:"sha256"`
	SizeBytes int64         `json:"size_bytes"`
	At        time.Time     `json:"at"`
	// KnownAt is the time since which the source is known to have these bytes, in UTC.
	// It is zero if that is At.
	KnownAt time.Time `json:"known_at,omitzero"`
	Source  Source    `json:"source"`
}

// Validate implements record.Validator.
func (f *Fetched) Validate() error {
	if f.Src == "" || !f.SHA256.Valid() || f.SizeBytes < 0 {
		return errors.New("fetched bytes have a source, a SHA-256 and a size")
	}
	return nil
}

// Since returns the time since which the name has had these bytes.
func (e *Entry) Since() time.Time { return cmp.Or(e.KnownAt, e.AddedAt) }

// Since returns the time since which the source is known to have these bytes.
func (f *Fetched) Since() time.Time { return cmp.Or(f.KnownAt, f.At) }
