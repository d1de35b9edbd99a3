package content

import (
	"bytes"
	"fmt"

	"imageroot/shared/image"
)

// Records at the end of a ZIP archive (PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.12, and
// 4.3.14 to 4.3.16).
const (
	zipEnd        = "PK\x05\x06"
	zipEndBytes   = 22
	zip64Locator  = "PK\x06\x07"
	zip64End      = "PK\x06\x06"
	zipEntry      = "PK\x01\x02"
	zipEntryBytes = 46
	maxComment    = 1<<16 - 1
	maxDirectory  = 1 << 20 // bytes
)

// zip reads the directory of an archive, which must have one image, and sets the size of
// that.
func (c *Content) zip(s *seeker) {
	directory, ok, err := zipDirectory(s)
	if err != nil {
		return
	}
	refuse := func(why string) {
		c.Unreadable = "the ZIP archive " + why
		c.warn(c.Unreadable)
	}
	if !ok {
		refuse("has no directory of its files: it was cut short; get it again")
		return
	}
	if len(directory) > maxDirectory {
		refuse(fmt.Sprintf("has a directory of more than %d MiB: unpack it and upload the image", maxDirectory>>20))
		return
	}
	images := 0
	for len(directory) >= zipEntryBytes && string(directory[:4]) == zipEntry {
		name := zipEntryBytes + int(le16(directory, 28))
		extra := name + int(le16(directory, 30))
		next := extra + int(le16(directory, 32))
		if next > len(directory) {
			break
		}
		if image.Packed(string(directory[zipEntryBytes:name])) {
			images++
			c.size(zipSize(directory, directory[name:extra]))
		}
		directory = directory[next:]
	}
	switch {
	case images == 0:
		refuse("has no image in it, the name of which ends in " + image.PackedList())
	case images > 1:
		refuse(fmt.Sprintf("has %d images in it: unpack it and upload each", images))
	default:
		return
	}
	c.VirtualSize = nil
}

// zipSize returns the size of the file of an entry, which a ZIP64 extra field may have
// (section 4.5.3).
func zipSize(entry, extra []byte) int64 {
	size := le32(entry, 24)
	for size == 1<<32-1 && len(extra) >= 4 {
		id, n := le16(extra, 0), int(le16(extra, 2))
		if id == 1 && n >= 8 {
			return int64(min(le64(extra, 4), 1<<62))
		}
		extra = extra[min(4+n, len(extra)):]
	}
	return int64(size)
}

// zipDirectory returns the central directory, or maxDirectory+1 bytes for a larger one, and
// false if there is none. The error is s's.
func zipDirectory(s *seeker) (directory []byte, ok bool, err error) {
	tail := make([]byte, min(s.size, zipEndBytes+maxComment))
	if _, err := s.ReadAt(tail, s.size-int64(len(tail))); err != nil {
		return nil, false, err
	}
	i := bytes.LastIndex(tail, []byte(zipEnd))
	if i < 0 || i+zipEndBytes > len(tail) {
		return nil, false, nil
	}
	length, at := uint64(le32(tail, i+12)), uint64(le32(tail, i+16))
	if j := i - 20; (length == 1<<32-1 || at == 1<<32-1 || le16(tail, i+10) == 1<<16-1) && j >= 0 && image.At(tail, j, zip64Locator) {
		wide := make([]byte, 56)
		where := le64(tail, j+8)
		if s.size < 56 || where > uint64(s.size)-56 {
			return nil, false, nil
		}
		if _, err := s.ReadAt(wide, int64(where)); err != nil {
			return nil, false, err
		}
		if !image.At(wide, 0, zip64End) {
			return nil, false, nil
		}
		length, at = le64(wide, 40), le64(wide, 48)
	}
	if length > uint64(s.size) || at > uint64(s.size)-length {
		return nil, false, nil
	}
	if length > maxDirectory {
		return make([]byte, maxDirectory+1), true, nil
	}
	directory = make([]byte, length)
	if length > 0 {
		_, err = s.ReadAt(directory, int64(at))
	}
	return directory, err == nil, err
}
