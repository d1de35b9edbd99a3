// Package entry keeps the images that operators named by URL, and what
// fetching a source found.
package entry

import (
	"time"

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
	// Source is what the source said of itself when the entry was added.
	Source Source `json:"source"`
	// Changed says, once a fetch has noticed, how the source differs from then.
	Changed string `json:"changed,omitempty"`
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
	Source    Source    `json:"source"`
}
