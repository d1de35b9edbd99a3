// Package feed writes the documents from which other programs learn what images there are
// here, in their own formats. A feed is a file of this package and a row of [All].
package feed

import (
	"io"
	"iter"
	"time"

	"imageroot/shared/inventory"
)

// A Feed is a document about all images.
type Feed struct {
	Path        string // of its route
	ContentType string
	// Encode writes the document about the images of s, one image in each Write.
	Encode encoder
}

type encoder = func(to io.Writer, s *inventory.Snapshot, on Server) error

// A Server is where a feed is served.
type Server struct {
	URL string // the base of all URLs, without a slash at its end
	// ImagePath returns the path of the bytes of a row that has them.
	ImagePath func(*inventory.Head) string
	// RawPath returns the path of the disk in a row's image, or "" if there is none now.
	RawPath func(*inventory.Head) string
	// SigningKey returns the key that signs, or nil if there is none. It may be nil, too.
	SigningKey func() (Signer, error)
	Signatures *Signatures // that this server has made
	Now        time.Time
	// Only is the image that the document is about, below the URL of its content. If it is
	// nil, the document is about all images.
	Only *inventory.Head
}

// heads returns the images that the document is about.
func (on *Server) heads(s *inventory.Snapshot) iter.Seq[*inventory.Head] {
	if on.Only != nil {
		return func(yield func(*inventory.Head) bool) { yield(on.Only) }
	}
	return s.Heads()
}

// A Signer is a key that signs.
type Signer interface {
	// Signatures have no zero byte.
	ClearSign(text string, now time.Time) (string, error)
	SignOpenPGP(to io.Writer, message io.Reader, now time.Time) error
	SignMinisign(to io.Writer, message io.Reader, name string, now time.Time) error
	// The public keys, as OpenPGP and minisign keep them in files.
	OpenPGP() ([]byte, error)
	Minisign() ([]byte, error)
}

// All is the table of feeds.
var All = [...]Feed{
	{"/images/SHA256SUMS", checksumType, encodeChecksums},
	{"/images/SHA256SUMS.gpg", openPGPType, signed("/images/SHA256SUMS.gpg", encodeChecksums, openPGP)},
	{"/images/SHA256SUMS.minisig", checksumType, signed("/images/SHA256SUMS.minisig", encodeChecksums, miniSign)},
	{"/images/SHA512SUMS", checksumType, encodeSHA512},
	{"/images/PULP_MANIFEST", checksumType, encodePulp},
	{"/raw/SHA256SUMS", checksumType, encodeRawChecksums},
	{"/raw/SHA256SUMS.gpg", openPGPType, signed("/raw/SHA256SUMS.gpg", encodeRawChecksums, openPGP)},
	{"/raw/SHA256SUMS.minisig", checksumType, signed("/raw/SHA256SUMS.minisig", encodeRawChecksums, miniSign)},
	{"/os_list.json", "application/json", encodeImager},
	{"/streams/v1/index.json", "application/json", encodeStreams},
	{"/streams/v1/images.json", "application/json", encodeImages},
}
