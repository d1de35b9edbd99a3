// Package incus makes what Incus and LXD need of an image of a virtual machine beside its
// disk: a tarball of metadata, and the fingerprint of both. Their doc/image-format.md describes
// the tarball.
package incus

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/layout"
)

// A Tarball has the metadata of an image.
type Tarball struct {
	Bytes  []byte
	SHA256 layout.SHA256 // of Bytes
}

// ID returns the SHA-256, or "" if t is nil.
func (t *Tarball) ID() layout.SHA256 {
	if t == nil {
		return ""
	}
	return t.SHA256
}

// Size returns the number of bytes, or 0 if t is nil.
func (t *Tarball) Size() int64 {
	if t == nil {
		return 0
	}
	return int64(len(t.Bytes))
}

// kernelNames are the architectures of virtual machines, as the kernel names them, by their
// names in package metadata.
var kernelNames = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "ppc64el": "ppc64le", "s390x": "s390x"}

// tarballs are the tarballs by architecture.
var tarballs = func() map[string]*Tarball {
	all := map[string]*Tarball{}
	for architecture, kernel := range kernelNames {
		all[architecture] = makeTarball(kernel)
	}
	return all
}()

// makeTarball returns the tarball for an architecture as the kernel names it. It has no more
// than Incus requires, and always the same bytes, so that a fingerprint does not depend on what
// else is known about an image: the list has that. The date must not be zero.
func makeTarball(kernel string) *Tarball {
	text := fmt.Sprintf("architecture: %s\ncreation_date: %d\n", kernel, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix())
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Format: tar.FormatUSTAR, Name: "metadata.yaml", Mode: 0o644, Size: int64(len(text))})
	_, _ = w.Write([]byte(text))
	_ = w.Close() // nothing that is written to memory fails
	h := digest.New(false)
	_, _ = h.Write(b.Bytes()) // never fails
	return &Tarball{b.Bytes(), h.Sum256()}
}

// Find returns the tarball with this SHA-256, or nil.
func Find(sha256 layout.SHA256) *Tarball {
	for _, t := range tarballs {
		if t.SHA256 == sha256 {
			return t
		}
	}
	return nil
}

// tarballOf returns the tarball of an image with this record, or nil if it is none that Incus
// starts. Incus takes qcow2 images alone.
func tarballOf(r *content.Record, architecture string) *Tarball {
	if r.Kind != content.QCOW2 || r.Check == nil || r.Check.Verdict != content.Good || r.NoDisk() != "" {
		return nil
	}
	return tarballs[architecture]
}

// Missing returns the tarball with which the fingerprint of an image must be computed, or nil
// if it is known, was given up, or is not needed.
func Missing(r *content.Record, architecture string) *Tarball {
	t := tarballOf(r, architecture)
	if t == nil || r.Fingerprint != nil && (r.Fingerprint.Metadata == t.SHA256 || r.Fingerprint.GivenUp) {
		return nil
	}
	return t
}

// Of returns the tarball of an image and the fingerprint of both, and false if that is not
// known.
func Of(r *content.Record, architecture string) (t *Tarball, fingerprint layout.SHA256, ok bool) {
	t = tarballOf(r, architecture)
	if t == nil || r.Fingerprint == nil || r.Fingerprint.Metadata != t.SHA256 {
		return nil, "", false
	}
	return t, r.Fingerprint.SHA256, true
}
