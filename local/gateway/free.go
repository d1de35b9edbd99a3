package gateway

import "golang.org/x/sys/unix"

// Free returns the bytes that an object may have at the most, or -1 where
// the file system does not say.
func (g *Gateway) Free() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(g.backend.dir, &st); err != nil {
		return -1
	}
	return max(0, int64(st.Bavail)*int64(st.Bsize)-reserve)
}
