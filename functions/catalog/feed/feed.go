// Package feed writes the documents from which other programs learn what images there are
// here, in their own formats. A feed is a file of this package and a row of [All].
package feed

import (
	"io"

	"imageroot/shared/inventory"
)

// A Feed is a document about all images.
type Feed struct {
	Path        string // of its route
	ContentType string
	// Encode writes the document about the images of s, one image in each Write.
	Encode func(to io.Writer, s *inventory.Snapshot, on Server) error
}

// A Server is where a feed is served.
type Server struct {
	URL string // the base of all URLs, without a slash at its end
	// ImagePath returns the path of the bytes of a row that has them.
	ImagePath func(*inventory.Head) string
	// RawPath returns the path of the disk in a row's image, or "" if there is none now.
	RawPath func(*inventory.Head) string
}

// All is the table of feeds.
var All = [...]Feed{
	{"/images/SHA256SUMS", checksumType, encodeChecksums},
	{"/raw/SHA256SUMS", checksumType, encodeRawChecksums},
	{"/os_list.json", "application/json", encodeImager},
}
