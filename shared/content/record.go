package content

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imageroot/shared/boot"
	"imageroot/shared/disk"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// A Record is what is known about the bytes with one SHA-256, under all their names,
// whether they are stored in the image root, as a blob, or both.
type Record struct {
	record.Meta
	SHA256    layout.SHA256 `json:"sha256"` // of the bytes, lower case hex
	SizeBytes int64         `json:"size_bytes"`
	Content
	SniffedAt time.Time `json:"sniffed_at"` // UTC
	// Boot is which firmware can start the disk; nil: it was not found out yet.
	Boot *boot.Ways `json:"boot,omitempty"`
	// Inside is what an inspection found in the disk; nil: it was not inspected yet.
	Inside *disk.Inside `json:"inside,omitempty"`
	// Check is the result of reading the whole image; nil: not checked yet.
	Check *Check `json:"check,omitempty"`
	// Bmap is about the block map of the disk; nil: all blocks have to be written, or the
	// unallocated clusters of a qcow2 image are left out.
	Bmap *Bmap `json:"bmap,omitempty"`
	// Disk is the expanded disk in the catalog root; nil: there is none.
	Disk *Disk `json:"disk,omitempty"`
	// Fingerprint is that of the image for Incus; nil: it was not computed yet, or Incus does
	// not start the image.
	Fingerprint *Fingerprint `json:"fingerprint,omitempty"`
}

// A Fingerprint identifies an image of a virtual machine for Incus and LXD.
type Fingerprint struct {
	// Metadata is the SHA-256 of the tarball of metadata, see package incus. SHA256 is that of
	// the tarball followed by the image. Both are empty if GivenUp.
	Metadata layout.SHA256 `json:"metadata,omitempty"`
	SHA256   layout.SHA256 `json:"sha256,omitempty"`
	// GivenUp is true if it is not to be computed, because that failed or was cancelled.
	GivenUp bool `json:"given_up,omitempty"`
}

// A Bmap is the block map of the disk in an image, which a publisher has put beside the
// image, or which this program makes of the holes of a file.
type Bmap struct {
	// File, Version and SHA256 are those of the publisher's file, or zero. It is in the image
	// root, or a [layout.PublishedKey] of the catalog root.
	File    store.Key     `json:"file,omitempty"`
	Version store.Version `json:"version,omitzero"`
	SHA256  layout.SHA256 `json:"sha256,omitempty"` // "" in records of earlier versions
	// Pending is true until the disk was read for it.
	Pending bool `json:"pending,omitempty"`
	// Problem is the reason, as part of a sentence, that the publisher's map is not served;
	// empty if it is.
	Problem string `json:"problem,omitempty"`
}

// Published reports whether the publisher's map is served. b may be nil.
func (b *Bmap) Published() bool {
	return b != nil && b.File != "" && !b.Pending && b.Problem == ""
}

// Fetched reports whether the publisher's file was fetched with the image.
func (b *Bmap) Fetched() bool {
	_, ok := layout.PublishedSHA256(b.File)
	return ok
}

// A Disk is the expanded disk of an image, or the virtual image that is in a compressed one.
// It is an object of its own, whose bytes never
// differ, since they are verified before it is visible. Sizes are in bytes.
type Disk struct {
	SizeBytes int64 `json:"size_bytes"`
	// StoredBytes is what the object takes in the store: less than SizeBytes if the
	// store keeps holes.
	StoredBytes int64     `json:"stored_bytes"`
	MadeAt      time.Time `json:"made_at"` // UTC
	// UsedAt is when it was last read, to within UseStep; UTC.
	UsedAt time.Time `json:"used_at"`
}

// UseStep is the interval at which the use of a disk is recorded.
const UseStep = 5 * time.Minute

// InUse reports whether the disk may be in use, in any process.
func (d *Disk) InUse(now time.Time) bool { return now.Sub(d.UsedAt) < 2*UseStep }

func (r *Record) Validate() error {
	if !r.SHA256.Valid() || r.SizeBytes < 0 || r.Kind == "" {
		return errors.New("a content record has a SHA-256, a size and a kind")
	}
	return nil
}

// A Verdict is the result of a check.
type Verdict string

// The verdicts.
const (
	Good      Verdict = "good"
	Truncated Verdict = "truncated"
	Damaged   Verdict = "damaged"
	Refused   Verdict = "refused"   // it exceeds the limits, or uses an unsupported feature
	Unchecked Verdict = "unchecked" // the check was given up; Reason has the cause
	Cancelled Verdict = "cancelled" // by the operator
)

// A Check is the result of reading a whole image.
type Check struct {
	Verdict Verdict `json:"verdict"`
	// Reason is a sentence; empty if the verdict is good.
	Reason string `json:"reason,omitempty"`
	// Offset is the byte of the image, or of the disk in a virtual image, at which
	// reading stopped; 0 if the verdict is good.
	Offset int64 `json:"offset,omitempty"`
	// The size in bytes and the SHA-256 of the disk; nil and empty if unknown, as long as
	// the virtual image in a compressed one was not read.
	RawSizeBytes *int64        `json:"raw_size_bytes,omitempty"`
	RawSHA256    layout.SHA256 `json:"raw_sha256,omitempty"`
	// NoDisk is the reason, as a sentence, that a good compressed image holds no disk;
	// empty if it holds one.
	NoDisk   string    `json:"no_disk,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
	At       time.Time `json:"at"` // UTC
}

// NoDisk returns the reason, as a sentence, that the image holds no disk or an
// unreadable one, or "" if no such reason is known.
func (r *Record) NoDisk() string {
	if no := cmp.Or(r.Content.NoDisk(), r.Unreadable); no != "" || r.Check == nil {
		return no
	}
	switch r.Check.Verdict {
	case Truncated, Damaged, Refused:
		return r.Check.Reason
	}
	return r.Check.NoDisk
}

// Checkable reports whether the image can be checked: it is compressed or virtual, and no
// archive without one image.
func (r *Record) Checkable() bool {
	return r.Kind.Virtual() || r.Kind.Compressed() && (r.Kind != Zip || r.Unreadable == "")
}

// Pending reports whether the image has to be read to its end: it can be checked and has not
// been, its block map was not compared with it, or it is a good compressed one whose disk was not inspected while it was checked.
func (r *Record) Pending() bool {
	if r.Bmap != nil && r.Bmap.Pending {
		return true
	}
	if r.Check == nil {
		return r.Checkable()
	}
	return r.Kind.Compressed() && r.Inner == "" && r.Check.Verdict == Good && r.NoDisk() == "" && r.Disk == nil && r.Stale()
}

// Stale reports whether an inspection of the disk may find more than is known.
func (r *Record) Stale() bool {
	return r.Inside == nil || r.Inside.Inspector < disk.Version || r.Inside.Partial && r.Disk != nil
}

// Inspectable reports whether an inspection is missing that does not have to read the whole
// image.
func (r *Record) Inspectable() bool {
	if r.Inner != "" && r.Disk == nil {
		return false // the virtual image can only be read once it is decompressed
	}
	return r.Boot == nil || r.Stale() && !r.Pending()
}

// Raw returns the size in bytes and the SHA-256 of the disk in the image, or nil and
// "" if they are unknown.
func (r *Record) Raw() (size *int64, sha256 layout.SHA256) {
	switch {
	case r.Kind.Raw() && !r.foreign():
		return &r.SizeBytes, r.SHA256
	case r.Check != nil:
		return r.Check.RawSizeBytes, r.Check.RawSHA256
	}
	return nil, ""
}

// Virtual returns the size in bytes of the disk in the image, or nil if it is unknown.
// The size that a check counted takes precedence over the one that the image states.
func (r *Record) Virtual() *int64 {
	if size, _ := r.Raw(); size != nil {
		return size
	}
	return r.VirtualSize
}

// AllWarnings returns sentences about faults of the image that do not depend on its
// name.
func (r *Record) AllWarnings() []string {
	// Records of earlier versions warn of any content that is not known.
	return slices.DeleteFunc(r.allWarnings(), func(w string) bool { return strings.Contains(w, "is "+nothing+":") })
}

func (r *Record) allWarnings() []string {
	all := r.ownWarnings()
	if r.Bmap != nil && !r.Bmap.Pending && r.Bmap.Problem != "" {
		file := string(r.Bmap.File)
		if r.Bmap.Fetched() {
			file = "beside the source"
		}
		all = append(all, fmt.Sprintf("the block map %s is not served: %s", file, r.Bmap.Problem))
	}
	return all
}

func (r *Record) ownWarnings() []string {
	if r.Check == nil {
		return slices.Clone(r.Warnings)
	}
	var all []string
	if !r.Kind.Compressed() || r.Check.Verdict == Unchecked || r.Check.Verdict == Cancelled {
		all = slices.Clone(r.Warnings) // otherwise the check has read the whole image
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
