package gateway

// Free returns the bytes that an object may have at the most, or -1 where
// the file system does not say.
func (g *Gateway) Free() int64 { return Free(g.backend.dir) }

// Free is what [Gateway.Free] would return of a gateway over dir.
func Free(dir string) int64 {
	free, err := freeBytes(dir)
	if err != nil {
		return -1
	}
	return max(0, int64(free)-reserve)
}
