package feed

import (
	"fmt"
	"io"
	"strings"

	"imageroot/shared/image"
	"imageroot/shared/inventory"
)

// encodePulp writes the PULP_MANIFEST by which Pulp mirrors /images. Its parser has no
// quoting, reads a line that begins with # as a comment, and does not escape names in URLs.
func encodePulp(to io.Writer, s *inventory.Snapshot, on Server) error {
	return encodeLines(to, s, on, func(h *inventory.Head, name image.Name) string {
		if strings.ContainsAny(string(name), ",#?%") || h.SizeBytes < 0 {
			return ""
		}
		return fmt.Sprintf("%s,%s,%d\n", name, h.SHA256, h.SizeBytes)
	})
}
