package bmap

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strconv"
	"strings"
)

// MaxBytes is the size of the largest block map that is read.
const MaxBytes = 4 << 20

// checksums are the types of checksums that can be verified.
var checksums = map[string]func() hash.Hash{"md5": md5.New, "sha1": sha1.New, "sha224": sha256.New224, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New}

// A file is a block map of any version, as bmaptool reads it.
type file struct {
	XMLName          xml.Name `xml:"bmap"`
	Version          string   `xml:"version,attr"`
	ImageSize        number   `xml:"ImageSize"`
	BlockSize        number   `xml:"BlockSize"`
	Blocks           number   `xml:"BlocksCount"`
	Mapped           number   `xml:"MappedBlocksCount"`
	ChecksumType     string   `xml:"ChecksumType"`
	BmapFileChecksum string   `xml:"BmapFileChecksum"`
	BmapFileSHA1     string   `xml:"BmapFileSHA1"`
	Ranges           []struct {
		Blocks string `xml:",chardata"`
		Sum    string `xml:"chksum,attr"`
		SHA1   string `xml:"sha1,attr"`
	} `xml:"BlockMap>Range"`
}

type number int64

func (n *number) UnmarshalText(text []byte) error {
	v, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err == nil && v < 0 {
		err = fmt.Errorf("%d is below zero", v)
	}
	*n = number(v)
	return err
}

// Parse reads a block map of version 1.x or 2.x and compares it with its own checksum; maps
// below version 1.3 have none. The error is a sentence for users.
func Parse(text []byte) (*Map, error) {
	var f file
	err := xml.Unmarshal(text, &f)
	if err == nil {
		err = unambiguous(text)
	}
	if err != nil {
		return nil, fmt.Errorf("it is not a block map: %w", err)
	}
	major, minor, _ := strings.Cut(f.Version, ".")
	m := &Map{Size: int64(f.ImageSize), BlockSize: int64(f.BlockSize)}
	own := ""
	switch {
	case major != "1" && major != "2":
		return nil, fmt.Errorf("it is of version %q; versions 1.x and 2.x are known", f.Version)
	case f.Version == "1.4" || major == "2": // 1.4 was 2.0 by mistake
		m.Checksum, own = strings.TrimSpace(f.ChecksumType), strings.TrimSpace(f.BmapFileChecksum)
	case minor == "3":
		m.Checksum, own = "sha1", strings.TrimSpace(f.BmapFileSHA1)
	}
	if m.Checksum != "" || major == "2" {
		if err := verify(text, m.Checksum, own); err != nil {
			return nil, err
		}
	}
	if m.Size > 1<<60 || m.BlockSize == 0 || m.BlockSize > 1<<30 || int64(f.Blocks) != m.blocks() {
		return nil, fmt.Errorf("its numbers contradict each other: %d blocks of %d bytes are not %d bytes", f.Blocks, m.BlockSize, m.Size)
	}
	next, mapped := int64(0), int64(0)
	for _, r := range f.Ranges {
		first, last, found := strings.Cut(r.Blocks, "-")
		if !found {
			last = first
		}
		var from, to number
		if from.UnmarshalText([]byte(first)) != nil || to.UnmarshalText([]byte(last)) != nil ||
			int64(from) < next || to < from || int64(to) >= m.blocks() {
			return nil, fmt.Errorf("the range %q is not in order, or not in the disk", strings.TrimSpace(r.Blocks))
		}
		sum := r.Sum
		if m.Checksum == "sha1" && sum == "" {
			sum = r.SHA1
		}
		m.Ranges = append(m.Ranges, Range{int64(from), int64(to), sum})
		next, mapped = int64(to)+1, mapped+int64(to-from)+1
	}
	if mapped != int64(f.Mapped) {
		return nil, fmt.Errorf("its ranges have %d blocks, and it says %d", mapped, f.Mapped)
	}
	return m, nil
}

// unambiguous returns an error if bmaptool could read another map than package xml does: it
// takes the first of several elements of a name, knows namespaces, and does not read the text
// behind an element inside of another one.
func unambiguous(text []byte) error {
	d := xml.NewDecoder(bytes.NewReader(text))
	var path []string
	seen := map[string]bool{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch t := token.(type) {
		case xml.StartElement:
			path = append(path, t.Name.Local)
			at := strings.Join(path, ">")
			if t.Name.Space != "" || seen[at] && at != "bmap>BlockMap>Range" || len(path) > 2 && at != "bmap>BlockMap>Range" {
				return fmt.Errorf("the element %.100q has no place there", at)
			}
			seen[at] = true
			for i, a := range t.Attr {
				if a.Name.Space != "" || slices.ContainsFunc(t.Attr[:i], func(b xml.Attr) bool { return a.Name == b.Name }) {
					return fmt.Errorf("the attribute %.100q has no place there", a.Name.Local)
				}
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
}

// verify compares a file with the checksum in it, which is that of the file with zeros in
// its place.
func verify(text []byte, kind, sum string) error {
	make, ok := checksums[kind]
	if !ok {
		return fmt.Errorf("its checksums are of the type %q, which is not known", kind)
	}
	h := make()
	if len(sum) != 2*h.Size() {
		return fmt.Errorf("it has no %s of itself", kind)
	}
	h.Write(bytes.Replace(text, []byte(sum), bytes.Repeat([]byte("0"), len(sum)), 1))
	if hex.EncodeToString(h.Sum(nil)) != sum {
		return fmt.Errorf("it is damaged: its %s is not the one that it has of itself", kind)
	}
	return nil
}
