package content

import (
	"errors"
	"slices"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
)

// A Record is what is known of bytes, whatever they are called and wherever
// they are: of an image in the image root, of fetched ones, of both.
type Record struct {
	record.Meta
	SHA256    string `json:"sha256"` // of the bytes, lower case hex
	SizeBytes int64  `json:"size_bytes"`
	Content
	SniffedAt time.Time `json:"sniffed_at"` // UTC
	// Check is what came of reading the image through; nil: not yet.
	Check *Check `json:"check,omitempty"`
}

// Validate implements record.Validator.
func (r *Record) Validate() error {
	if !layout.IsHex256(r.SHA256) || r.SizeBytes < 0 || r.Kind == "" {
		return errors.New("a content record has a SHA-256, a size and a kind")
	}
	return nil
}

// A Verdict says what came of a check.
type Verdict string

// The verdicts.
const (
	Good      Verdict = "good"
	Truncated Verdict = "truncated"
	Damaged   Verdict = "damaged"
	Refused   Verdict = "refused"   // it is beyond the limits, or what nothing here reads
	Unchecked Verdict = "unchecked" // given up; Reason says why
	Cancelled Verdict = "cancelled" // by the operator
)

// A Check is what came of reading an image through.
type Check struct {
	Verdict Verdict `json:"verdict"`
	// Reason is a sentence, where the verdict is not good.
	Reason string `json:"reason,omitempty"`
	// Offset is the byte of the image, or of the disk in a qcow2 image, where
	// reading stopped, where the verdict is not good.
	Offset int64 `json:"offset,omitempty"`
	// What a disk gets; nil and empty where that is not known.
	RawSizeBytes *int64 `json:"raw_size_bytes,omitempty"`
	RawSHA256    string `json:"raw_sha256,omitempty"`
	// NoDisk is why a disk gets nothing of what the image decompresses to, though
	// all of it can be read; empty if a disk gets it.
	NoDisk   string    `json:"no_disk,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
	At       time.Time `json:"at"` // UTC
}

// NoDisk returns why a disk gets nothing of the image, as far as is known; empty
// if a disk gets something.
func (r *Record) NoDisk() string {
	if no := r.Content.NoDisk(); no != "" || r.Check == nil {
		return no
	}
	switch r.Check.Verdict {
	case Truncated, Damaged, Refused:
		return r.Check.Reason
	}
	return r.Check.NoDisk
}

// Checkable reports whether there is something to check: a disk gets anything
// else as it is.
func (r *Record) Checkable() bool { return r.Kind.Compressed() || r.Kind == QCOW2 }

// Pending reports whether the bytes are yet to be checked.
func (r *Record) Pending() bool { return r.Checkable() && r.Check == nil }

// Raw returns how many bytes a disk gets, and their SHA-256; nil and empty
// where that is not known.
func (r *Record) Raw() (size *int64, sha256 string) {
	switch {
	case r.Kind.Raw() && !r.foreign():
		return &r.SizeBytes, r.SHA256
	case r.Check != nil:
		return r.Check.RawSizeBytes, r.Check.RawSHA256
	}
	return nil, ""
}

// Virtual is how many bytes a disk needs for the image; nil where that is not
// known. What was counted wins over what is written.
func (r *Record) Virtual() *int64 {
	if size, _ := r.Raw(); size != nil {
		return size
	}
	return r.VirtualSize
}

// AllWarnings are what is wrong with the bytes, whatever they are called.
func (r *Record) AllWarnings() []string {
	if r.Check == nil {
		return r.Warnings
	}
	var all []string
	if !r.Kind.Compressed() || r.Check.Verdict == Unchecked || r.Check.Verdict == Cancelled {
		all = slices.Clone(r.Warnings) // else a check has seen more
	}
	add := func(w string) {
		if w != "" && !slices.Contains(all, w) {
			all = append(all, w)
		}
	}
	if r.Check.Verdict != Cancelled {
		add(r.Check.Reason)
	}
	for _, w := range r.Check.Warnings {
		add(w)
	}
	return all
}
