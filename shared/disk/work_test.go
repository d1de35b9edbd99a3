package disk_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"imageroot/shared/disk"
)

// longLinks returns an ext2 file system in which etc is a link with a long path through a
// large directory, as is what it leads to.
func longLinks() []byte {
	const (
		block                       = 64 << 10
		groups, inodes, large, last = 1, 2, 3, 4 // blocks
		links                       = 5          // and more
		folderBlocks                = 12         // all but one of them are one block of the disk
	)
	names := []string{"etc", "a", "b", "c", "d", "e", "f", "g"}
	b, le := make([]byte, (links+len(names))*block), binary.LittleEndian
	for off, v := range map[int]uint32{0: 512, 4: uint32(len(b) / block), 24: 6, 40: 512, 56: 0xef53} {
		le.PutUint32(b[1024+off:], v)
	}
	le.PutUint32(b[groups*block+8:], inodes)
	inode := func(number int, mode uint16, size int, blocks ...uint32) {
		i := b[inodes*block+(number-1)*128:]
		le.PutUint16(i, mode)
		le.PutUint32(i[4:], uint32(size))
		for n, at := range blocks {
			le.PutUint32(i[40+4*n:], at)
		}
	}
	folder := func(number uint32, names ...string) {
		for at := b[number*block : (number+1)*block]; len(at) > 0; at = at[16:] {
			le.PutUint32(at, 2)
			if le.PutUint16(at[4:], 16); len(names) > 0 {
				le.PutUint32(at, uint32(9+len(names)))
				at[6] = byte(copy(at[8:], names[0]))
				names = names[1:]
			}
		}
	}
	folder(large)
	folder(last, append([]string{"h"}, names...)...)
	blocks := make([]uint32, folderBlocks)
	for i := range blocks {
		blocks[i] = large
	}
	blocks[folderBlocks-1] = last
	inode(2, 0x4000, folderBlocks*block, blocks...)
	inode(10+len(names), 0x4000, folderBlocks*block, blocks...) // h
	for i := range names {
		path := strings.Repeat("h/../", 800)
		if i+1 < len(names) {
			path += names[i+1]
		}
		inode(9+len(names)-i, 0xa000, len(path), uint32(links+i))
		copy(b[(links+i)*block:], path)
	}
	return b
}

// TestWork tests that an inspection ends soon whatever leads to what in a small image.
func TestWork(t *testing.T) {
	b := longLinks()
	in, err := disk.Inspect(bytes.NewReader(b), int64(len(b)), reads, nil)
	if err != nil || !strings.Contains(strings.Join(in.Unknown, " "), "an inspection reads no more of one image") {
		t.Errorf("%+v, %v", in, err)
	}
	if in := streamed(b, mib); !strings.Contains(strings.Join(in.Unknown, " "), "an inspection reads no more of one image") {
		t.Errorf("as a stream: %+v", in)
	}
}
