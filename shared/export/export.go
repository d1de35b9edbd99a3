// Package export defines the record of an export that an operator has named: a name by
// which the NBD port serves the disk in an image of the catalog.
package export

import (
	"errors"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
)

// A Record says which image an export names: the image of a source, by Ref, or the image
// with a SHA-256. What became of it is not recorded, since the catalog says so.
type Record struct {
	record.Meta
	Name layout.ExportName `json:"name"`
	// SrcURL is the URL that the operator gave, byte for byte.
	SrcURL string        `json:"src_url"`
	Ref    layout.Ref    `json:"ref,omitempty"`
	SHA256 layout.SHA256 `json:"sha256,omitempty"`
	// ReadOnly is false if each connection may write to a layer of its own.
	ReadOnly bool      `json:"readonly"`
	AddedAt  time.Time `json:"added_at"` // UTC
}

// Validate implements record.Validator.
func (r *Record) Validate() error {
	if r.Name == "" || r.SrcURL == "" || r.Ref == "" && r.SHA256 == "" {
		return errors.New("an export has a name, a URL, and a ref or a SHA-256")
	}
	return nil
}
