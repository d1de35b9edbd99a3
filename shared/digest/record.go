// Package digest computes and records the SHA-256 of images.
//
// A [Hasher] hashes a stream and can be saved and resumed, so that a killed process
// need not read the stream again. A [Reader] hashes a stream while it is read and withholds
// the end until the whole is verified. A [Record] is the digest of one version of an
// image. [ParseRequest] and [FormatReprDigest] read and write the HTTP fields of RFC
// 9530 and S3.
//
// All digests are lower-case hexadecimal, except in HTTP fields.
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

// The origin of the digest of a [Record].
const (
	ByUpload = "upload" // an upload, while the server received it
	ByHash   = "hash"   // a hash job
)

// A Record has the digests of one version of an image. It does not apply to any other
// version: compare Version before use.
type Record struct {
	record.Meta
	Name     image.Name    `json:"name"`
	Version  store.Version `json:"version"`
	SHA256   layout.SHA256 `json:"sha256"`
	SHA512   string        `json:"sha512,omitempty"` // empty if it was not computed
	HashedAt time.Time     `json:"hashed_at"`        // UTC
	By       string        `json:"by"`               // ByUpload or ByHash
	// KnownAt is the time since which the name has had these bytes, in UTC. It is
	// zero if that is HashedAt.
	KnownAt time.Time `json:"known_at,omitzero"`
	// Publishers are the results of comparing the image with its sidecars.
	Publishers []Publisher `json:"publishers,omitempty"`
}

func (r *Record) Validate() error {
	if !r.Name.Valid() || !r.SHA256.Valid() || r.By != ByUpload && r.By != ByHash {
		return errors.New("a digest record has the name of an image, its SHA-256 and what computed it")
	}
	return nil
}

// Since returns the time since which the name has had these bytes.
func (r *Record) Since() time.Time { return cmp.Or(r.KnownAt, r.HashedAt) }

// Next returns the record that replaces r after another hash of name.
func (r *Record) Next(name image.Name, version store.Version, sha256 layout.SHA256, by string, now time.Time) Record {
	next := Record{Meta: r.Meta, Name: name, Version: version, SHA256: sha256, HashedAt: now.UTC(), By: by}
	if r.SHA256 == sha256 {
		next.KnownAt = r.Since()
	}
	return next
}

// Renamed returns the record that replaces r once the image with the digests of old is
// the version of another name.
func (r *Record) Renamed(old *Record, name image.Name, version store.Version) Record {
	next := *old
	next.Meta, next.Name, next.Version, next.KnownAt, next.Publishers = r.Meta, name, version, old.Since(), nil
	return next
}

// A Publisher is the result of comparing an image with one of its sidecars. If Error is
// empty, Match is the verdict.
type Publisher struct {
	Algorithm      string        `json:"algorithm,omitempty"` // "sha256" or "sha512"
	Expected       string        `json:"expected,omitempty"`
	Match          bool          `json:"match"`
	Error          string        `json:"error,omitempty"` // a sentence: the reason for no verdict
	SidecarVersion store.Version `json:"sidecar_version"`
}

// Equal reports whether p and q are equal results for the same version of a sidecar.
func (p Publisher) Equal(q Publisher) bool {
	same := p.SidecarVersion.Equal(q.SidecarVersion)
	p.SidecarVersion, q.SidecarVersion = store.Version{}, store.Version{}
	return same && p == q
}

// Warning returns a sentence for the operator about the image name, or "" if the
// sidecar matches. raw is the SHA-256 of the disk in the image, or "" if unknown.
func (p Publisher) Warning(name image.Name, raw layout.SHA256) string {
	switch {
	case p.Error != "":
		return p.Error
	case !p.Match && p.Expected == string(raw):
		return fmt.Sprintf("%s.%s has the digest of the disk in %s, and it is the right one; it is not the digest of the file itself", name, p.Algorithm, name)
	case !p.Match:
		return fmt.Sprintf("%s.%s says %s, which is not the %s of these bytes; find the cause before you use the image",
			name, p.Algorithm, p.Expected, p.Algorithm)
	}
	return ""
}
