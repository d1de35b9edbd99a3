// Package entry keeps the images that operators named by URL, and what
// fetching a source found.
package entry

import (
	"cmp"
	"errors"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
)

// An Entry is the record of an image known by URL. Sizes are bytes, digests
// lower case hexadecimal.
type Entry struct {
	record.Meta
	URL       string    `json:"url"`
	SHAURL    string    `json:"sha_url,omitempty"`
	Name      string    `json:"name"`
	Format    string    `json:"format"`
	SizeBytes *int64    `json:"size_bytes"`
	SHA256    string    `json:"sha256,omitempty"`
	SHA512    string    `json:"sha512,omitempty"`
	AddedAt   time.Time `json:"added_at"`
	// KnownAt is since when the name has had these bytes, if that is before
	// AddedAt; UTC.
	KnownAt time.Time `json:"known_at,omitzero"`
	// Source is what the source said of itself when the entry was added.
	Source Source `json:"source"`
	// Changed says, once a fetch has noticed, how the source differs from then.
	Changed string `json:"changed,omitempty"`
}

// Validate implements record.Validator.
func (e *Entry) Validate() error {
	if e.URL == "" || !image.IsName(e.Name) {
		return errors.New("an entry has a URL and the name of an image")
	}
	return nil
}

// Source is what tells one state of a source from another.
type Source struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
	// Digest is the digest of the layer that an oras reference was resolved
	// to ("sha256:..."); its bytes never change.
	Digest string `json:"digest,omitempty"`
}

// Fetched is the record of what fetching a source found.
type Fetched struct {
	record.Meta
	Src       string    `json:"src"`
	SHA256    string    `json:"sha256"`
	SizeBytes int64     `json:"size_bytes"`
	At        time.Time `json:"at"`
	// KnownAt is since when the source is known to have these bytes, if that
	// is before At; UTC.
	KnownAt time.Time `json:"known_at,omitzero"`
	Source  Source    `json:"source"`
}

// Validate implements record.Validator.
func (f *Fetched) Validate() error {
	if f.Src == "" || !layout.IsHex256(f.SHA256) || f.SizeBytes < 0 {
		return errors.New("fetched bytes have a source, a SHA-256 and a size")
	}
	return nil
}

// Since returns the time from which on the name has had these bytes.
func (e *Entry) Since() time.Time { return cmp.Or(e.KnownAt, e.AddedAt) }

// Since returns the time from which on the source is known to have these bytes.
func (f *Fetched) Since() time.Time { return cmp.Or(f.KnownAt, f.At) }
