package catalog

import (
	"io"

	"imageroot/shared/qcow2"
	"imageroot/shared/store/reader"
)

// A section is an io.ReaderAt with an end, which may be known to be zero in
// places.
type section interface {
	io.ReaderAt
	Size() int64 // bytes
	// Block is how many bytes, or a multiple of how many, are best read at once.
	Block() int64
	// Zeros returns how many bytes from off on are known to be zero.
	Zeros(off int64) (int64, error)
}

// An objectSection is all of an object, of which nothing is known.
type objectSection struct{ *reader.Reader }

func (objectSection) Block() int64               { return aheadBytes }
func (objectSection) Zeros(int64) (int64, error) { return 0, nil }

// A diskSection is the disk in a qcow2 image.
type diskSection struct{ *qcow2.Image }

func (s diskSection) Block() int64 { return max(aheadBytes, s.Header().ClusterSize) }
