package catalog

import (
	"io"

	"imageroot/shared/qcow2"
	"imageroot/shared/store/reader"
)

// A section is an [io.ReaderAt] with a size and known runs of zeros.
type section interface {
	io.ReaderAt
	Size() int64 // bytes
	// Block returns the best size of a read, in bytes, or a divisor of it.
	Block() int64
	// Zeros returns the number of bytes from off that are known to be zero.
	Zeros(off int64) (int64, error)
}

// An objectSection is a whole object. It knows of no zeros.
type objectSection struct{ *reader.Reader }

func (objectSection) Block() int64               { return aheadBytes }
func (objectSection) Zeros(int64) (int64, error) { return 0, nil }

// A diskSection is the disk in a qcow2 image.
type diskSection struct{ *qcow2.Image }

func (s diskSection) Block() int64 { return max(aheadBytes, s.Header().ClusterSize) }
