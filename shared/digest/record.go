// Package digest is about the SHA-256 of images: the record of what hashing
// found, a hash whose progress survives a kill, and the HTTP fields that
// carry digests.
package digest

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Who computed the digest of a [Record].
const (
	ByUpload = "upload" // as the bytes went by
	ByHash   = "hash"   // a hash job
)

// A Record is what is known of one version of an image's bytes. It says
// nothing of any other version: compare Version before believing it.
type Record struct {
	record.Meta
	Name     string        `json:"name"`
	Version  store.Version `json:"version"`
	SHA256   string        `json:"sha256"`           // lower case hex
	SHA512   string        `json:"sha512,omitempty"` // lower case hex, where it was computed
	HashedAt time.Time     `json:"hashed_at"`        // UTC
	By       string        `json:"by"`               // ByUpload or ByHash
	// KnownAt is since when the name has had these bytes, if that is before
	// HashedAt; UTC.
	KnownAt time.Time `json:"known_at,omitzero"`
	// Publishers is what the checksum files beside the image say.
	Publishers []Publisher `json:"publishers,omitempty"`
}

// Validate implements record.Validator.
func (r *Record) Validate() error {
	if !image.IsName(r.Name) || !layout.IsHex256(r.SHA256) || r.By != ByUpload && r.By != ByHash {
		return errors.New("a digest record has the name of an image, its SHA-256 and what computed it")
	}
	return nil
}

// Since returns the time from which on the name has had these bytes.
func (r *Record) Since() time.Time { return cmp.Or(r.KnownAt, r.HashedAt) }

// Next returns the record that replaces r when name has been hashed (again).
func (r *Record) Next(name string, version store.Version, sha256, by string, now time.Time) Record {
	next := Record{Meta: r.Meta, Name: name, Version: version, SHA256: sha256, HashedAt: now.UTC(), By: by}
	if r.SHA256 == sha256 {
		next.KnownAt = r.Since()
	}
	return next
}

// A Publisher is what a checksum file beside an image says of it. Where Error
// is empty, Match is the verdict.
type Publisher struct {
	Algorithm      string        `json:"algorithm,omitempty"` // "sha256" or "sha512"
	Expected       string        `json:"expected,omitempty"`  // lower case hex
	Match          bool          `json:"match"`
	Error          string        `json:"error,omitempty"` // why there is no verdict; a sentence
	SidecarVersion store.Version `json:"sidecar_version"`
}

// Equal reports whether p and q say the same of the same checksum file.
func (p Publisher) Equal(q Publisher) bool {
	same := p.SidecarVersion.Equal(q.SidecarVersion)
	p.SidecarVersion, q.SidecarVersion = store.Version{}, store.Version{}
	return same && p == q
}

// Warning returns what an operator should know of the image name, empty if
// the checksum file agrees with it. raw is the SHA-256 of the disk that the
// image holds, if that is known.
func (p Publisher) Warning(name, raw string) string {
	switch {
	case p.Error != "":
		return p.Error
	case !p.Match && p.Expected == raw:
		return fmt.Sprintf("%s.%s has the digest of the disk that comes out of %s, and it is the right one; it does not speak of the file itself", name, p.Algorithm, name)
	case !p.Match:
		return fmt.Sprintf("%s.%s says %s, which is not the %s of these bytes; do not use the image before you know why",
			name, p.Algorithm, p.Expected, p.Algorithm)
	}
	return ""
}
