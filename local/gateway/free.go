package gateway

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Free returns the size in bytes of the largest object that can be written, or
// -1 if the file system does not report its free space.
func (g *Gateway) Free() int64 { return g.backend.attrs.free.most(g.backend.dir) }

// Free returns what [Gateway.Free] would return for a gateway over dir.
func Free(dir string) int64 { return space(freeBytes).most(dir) }

const (
	// reserve is the space in bytes that images leave for the catalog's records.
	reserve = 64 << 20
	// smallWrite is the largest size in bytes that may use the reserve.
	smallWrite = 1 << 20
)

// A space returns the bytes free on the file system of a directory.
type space func(dir string) (uint64, error)

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}

func (free space) most(dir string) int64 {
	n, err := free(dir)
	if err != nil {
		return -1
	}
	return max(0, int64(n)-reserve)
}

// room returns errFull if the file system of dir cannot hold size more bytes.
func (free space) room(dir string, size int64) error {
	n, err := free(dir)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if size > smallWrite {
		size += reserve
	}
	if size > 0 && uint64(size) > n {
		return errFull
	}
	return nil
}

// more returns a function that returns errFull if the file system of dir can hold nothing
// more of an image.
func (free space) more(dir string) func() error {
	return func() error { return free.room(dir, smallWrite+1) }
}
