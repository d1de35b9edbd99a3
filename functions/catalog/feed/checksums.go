package feed

import (
	"io"
	"strings"
	"unicode"

	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
)

const checksumType = "text/plain; charset=utf-8"

// Checksum returns the line of a file in a checksum file, as sha256sum of GNU coreutils
// writes it. Names of images have no character that it would escape.
func Checksum(sha256 layout.SHA256, name string) string { return line(string(sha256), name) }

func line(digest, name string) string { return digest + "  " + name + "\n" }

// listable reports whether other programs can read a line with this name: many split it at
// white space, and reject the whole file.
func listable(name image.Name) bool { return !strings.ContainsFunc(string(name), unicode.IsSpace) }

// encodeChecksums writes a checksum file of all names by which /images serves an image.
func encodeChecksums(to io.Writer, s *inventory.Snapshot, on Server) error {
	return encodeLines(to, s, on, func(h *inventory.Head, name image.Name) string { return Checksum(h.SHA256, string(name)) })
}

// encodeSHA512 does that for the images whose publisher says their SHA-512.
func encodeSHA512(to io.Writer, s *inventory.Snapshot, on Server) error {
	return encodeLines(to, s, on, func(h *inventory.Head, name image.Name) string {
		for _, source := range s.Sources(h) {
			if source.SHA512 != "" {
				return line(source.SHA512, string(name))
			}
		}
		return ""
	})
}

// encodeLines writes the line, which may be empty, of each name by which /images serves an
// image.
func encodeLines(to io.Writer, s *inventory.Snapshot, on Server, of func(*inventory.Head, image.Name) string) error {
	for h := range on.heads(s) {
		if !h.Cached || h.SHA256 == "" || !h.Format().Image() {
			continue
		}
		var lines strings.Builder
		for _, name := range h.Names() {
			if s.Named(name) == h && listable(name) {
				lines.WriteString(of(h, name))
			}
		}
		if _, err := io.WriteString(to, lines.String()); err != nil {
			return err
		}
	}
	return nil
}

// encodeRawChecksums writes a checksum file of all disks that /raw serves by their names.
func encodeRawChecksums(to io.Writer, s *inventory.Snapshot, on Server) error {
	for h := range on.heads(s) {
		if on.RawPath(h) == "" {
			continue
		}
		lines := "" // two names may have one disk
		for _, name := range h.Names() {
			disk := image.DiskName(name)
			found, line := s.ByDisk(disk), Checksum(h.RawSHA256, string(disk))
			if h.RawSHA256 != "" && len(found) == 1 && s.Named(found[0]) == h && listable(disk) && !strings.Contains(lines, line) {
				lines += line
			}
		}
		if _, err := io.WriteString(to, lines); err != nil {
			return err
		}
	}
	return nil
}
