package content

import (
	"bytes"
	"fmt"
	"io"

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
	directory, ok, err := zipDirectory(s, s.size)
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
	switch images := zipImages(directory); len(images) {
	case 0:
		refuse("has no image in it, the name of which ends in " + image.PackedList())
	case 1:
		c.size(int64(min(images[0].Size, 1<<62)))
	default:
		refuse(fmt.Sprintf("has %d images in it: unpack it and upload each", len(images)))
	}
}

// A ZipFile is a file as the directory of a ZIP archive describes it.
type ZipFile struct {
	CRC                  uint32
	Packed, Size, Header uint64 // bytes; Header: the offset of its local header
}

// ZipEnd is the number of bytes at the end of an archive that [ZipImage] reads at most.
const ZipEnd = maxDirectory + maxComment + zipEndBytes + 20 + 56

// ZipImage returns what the directory of an archive of size bytes says of the one image in
// it, and false if there is no such directory. The error is r's.
func ZipImage(r io.ReaderAt, size int64) (ZipFile, bool, error) {
	directory, ok, err := zipDirectory(r, size)
	if err != nil || !ok || len(directory) > maxDirectory {
		return ZipFile{}, false, err
	}
	images := zipImages(directory)
	if len(images) != 1 {
		return ZipFile{}, false, nil
	}
	return images[0], true, nil
}

// zipImages returns the images in a directory.
func zipImages(directory []byte) (images []ZipFile) {
	for len(directory) >= zipEntryBytes && string(directory[:4]) == zipEntry {
		name := zipEntryBytes + int(le16(directory, 28))
		extra := name + int(le16(directory, 30))
		next := extra + int(le16(directory, 32))
		if next > len(directory) {
			break
		}
		if image.Packed(string(directory[zipEntryBytes:name])) {
			images = append(images, zipFile(directory, directory[name:extra]))
		}
		directory = directory[next:]
	}
	return images
}

// zipFile returns the file of an entry. A ZIP64 extra field has the numbers that are too
// large (section 4.5.3).
func zipFile(entry, extra []byte) ZipFile {
	f := ZipFile{CRC: le32(entry, 16), Packed: uint64(le32(entry, 20)), Size: uint64(le32(entry, 24)), Header: uint64(le32(entry, 42))}
	for len(extra) >= 4 {
		id, n := le16(extra, 0), int(le16(extra, 2))
		field := extra[4:min(4+n, len(extra))]
		extra = extra[4+len(field):]
		if id != 1 {
			continue
		}
		for _, v := range []*uint64{&f.Size, &f.Packed, &f.Header} {
			if *v == 1<<32-1 && len(field) >= 8 {
				*v, field = le64(field, 0), field[8:]
			}
		}
		break
	}
	return f
}

// zipDirectory returns the central directory, or maxDirectory+1 bytes for a larger one, and
// false if there is none. The error is r's.
func zipDirectory(r io.ReaderAt, size int64) (directory []byte, ok bool, err error) {
	tail := make([]byte, min(size, zipEndBytes+maxComment))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil {
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
		if size < 56 || where > uint64(size)-56 {
			return nil, false, nil
		}
		if _, err := r.ReadAt(wide, int64(where)); err != nil {
			return nil, false, err
		}
		if !image.At(wide, 0, zip64End) {
			return nil, false, nil
		}
		length, at = le64(wide, 40), le64(wide, 48)
	} else if at == 1<<32-1 { // zip 3.0 with -fz and -fd leaves out the wide record
		at = uint64(size-int64(len(tail))+int64(i)) - length
	}
	if length > uint64(size) || at > uint64(size)-length {
		return nil, false, nil
	}
	if length > maxDirectory {
		return make([]byte, maxDirectory+1), true, nil
	}
	directory = make([]byte, length)
	if length > 0 {
		_, err = r.ReadAt(directory, int64(at))
	}
	return directory, err == nil, err
}
