package catalog

import (
	"io"
	"sync/atomic"

	"imageroot/shared/guest"
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
	// Extent returns the number of bytes from off to limit at most that are all stored,
	// or all known to be zero. The run may continue behind it.
	Extent(off, limit int64) (n int64, zeros bool, err error)
}

// An objectSection is a whole object. Only Extent knows of its zeros.
type objectSection struct {
	*reader.Reader
	last *atomic.Pointer[run] // that Extent has found
}

// A run is what [section.Extent] has found.
type run struct {
	from, to int64
	zeros    bool
}

func newObjectSection(file *reader.Reader) objectSection {
	return objectSection{file, new(atomic.Pointer[run])}
}

func (objectSection) Block() int64               { return aheadBytes }
func (objectSection) Zeros(int64) (int64, error) { return 0, nil }

// Extent implements section. Finding the end of a run may take the file system long, so
// it is found once.
func (s objectSection) Extent(off, limit int64) (int64, bool, error) {
	r := s.last.Load()
	if r == nil || off < r.from || off >= r.to {
		n, zeros, err := s.Reader.Extent(off, s.Size())
		if err != nil {
			return 0, false, err
		}
		r = &run{off, off + n, zeros}
		s.last.Store(r)
	}
	return min(limit, r.to) - off, r.zeros, nil
}

// A diskSection is the disk in a virtual image.
type diskSection struct{ *guest.Image }

func (s diskSection) Block() int64 { return max(aheadBytes, s.Buffer()) }
