package disk

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A squash is a squashfs 4.0 file system
// (https://dr-emann.github.io/squashfs/squashfs.html).
type squash struct {
	span
	unpack          func(packed []byte, limit int) ([]byte, error)
	block           int64
	fragments       int64 // their number
	rootRef         uint64
	inodes, folders int64 // offsets of the tables
	fragmentIndex   int64
	metadata        map[int64]metadata // blocks that were read, by offset
}

// A metadata is a block of metadata, and the offset of the next one.
type metadata struct {
	data []byte
	next int64
}

const (
	metadataBytes = 8 << 10
	maxMetadata   = 128 // blocks that are cached, of 8 KiB
)

func openSquash(p span, xz Unpacker) (tree, error) {
	b, err := p.bytes(0, 96)
	if err != nil {
		return nil, err
	}
	s := &squash{span: p, block: int64(le.Uint32(b[12:])), fragments: int64(le.Uint32(b[16:])), rootRef: le.Uint64(b[32:]), metadata: map[int64]metadata{}}
	used := int64(le.Uint64(b[40:]))
	s.inodes, s.folders, s.fragmentIndex = int64(le.Uint64(b[64:])), int64(le.Uint64(b[72:])), int64(le.Uint64(b[80:]))
	switch {
	case le.Uint16(b[28:]) != 4 || le.Uint16(b[30:]) != 0:
		return nil, unsupported("it has the version %d.%d", le.Uint16(b[28:]), le.Uint16(b[30:]))
	case s.block < 4<<10 || s.block > 1<<20 || s.block != 1<<le.Uint16(b[22:]), used < 96:
		return nil, errDamaged
	case used > p.size:
		return nil, errEnd
	}
	switch compression := le.Uint16(b[20:]); {
	case compression == 1:
		s.unpack = inflate
	case compression == 4 && xz != nil:
		s.unpack = xz
	case compression == 6:
		s.unpack = unzstd
	default:
		return nil, unsupported("it is compressed by method %d, which is not read", compression)
	}
	if used <= maxKeptSquash {
		s.keep(0, used)
	}
	return s, nil
}

// maxKeptSquash is the size of a file system that a [Stream] keeps whole: what tells where a
// file is, is at its end.
const maxKeptSquash = 8 << 20

func inflate(packed []byte, limit int) ([]byte, error) {
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, int64(limit)+1))
}

func unzstd(packed []byte, limit int) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(8<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(io.LimitReader(z, int64(limit)+1))
}

// expand returns n bytes at an offset, decompressed unless plain, of which there may be limit.
func (s *squash) expand(off int64, n, limit int, plain bool) ([]byte, error) {
	if n > limit {
		return nil, errDamaged
	}
	b, err := s.bytes(off, n)
	if err != nil || plain {
		return b, err
	}
	if err := s.spend(limit + unpackWork); err != nil {
		return nil, err
	}
	b, err = s.unpack(b, limit)
	if _, said := errors.AsType[fault](err); !said && (err != nil || len(b) > limit) {
		err = errDamaged
	}
	return b, err
}

// meta returns n bytes of metadata: at an offset in what the block at another offset holds,
// and the position after them.
func (s *squash) meta(block, off int64, n int) ([]byte, int64, int64, error) {
	if err := s.spend(n + readWork); err != nil { // it may be cached
		return nil, 0, 0, err
	}
	var out []byte
	for {
		m, ok := s.metadata[block]
		if !ok {
			head, err := s.bytes(block, 2)
			if err != nil {
				return nil, 0, 0, err
			}
			const plain = 1 << 15
			size := int(le.Uint16(head))
			data, err := s.expand(block+2, size&^plain, metadataBytes, size&plain != 0)
			if err != nil {
				return nil, 0, 0, err
			}
			m = metadata{data, block + 2 + int64(size&^plain)}
			if len(s.metadata) == maxMetadata {
				clear(s.metadata)
			}
			s.metadata[block] = m
		}
		if off > int64(len(m.data)) || len(m.data) == 0 {
			return nil, 0, 0, errDamaged
		}
		take := min(n-len(out), len(m.data)-int(off))
		out = append(out, m.data[off:off+int64(take)]...)
		off += int64(take)
		if len(out) == n {
			return out, block, off, nil
		}
		block, off = m.next, 0
	}
}

// A cursor reads metadata in order.
type cursor struct {
	*squash
	block, off int64
}

func (c *cursor) bytes(n int) (b []byte, err error) {
	b, c.block, c.off, err = c.meta(c.block, c.off, n)
	return b, err
}

func (s *squash) root() (node, error) { return s.node(s.rootRef) }

// The types of inodes. An extended one has a type that is larger by inodeExtended.
const (
	inodeFolder, inodeFile, inodeLink, inodeExtended = 1, 2, 3, 7
)

// inode returns the type of an inode, its first n bytes after the head, and the position
// after them.
func (s *squash) inode(ref uint64, sizes map[uint16]int) (uint16, []byte, *cursor, error) {
	c := &cursor{s, s.inodes + int64(ref>>16&0xffffffff), int64(ref & 0xffff)}
	head, err := c.bytes(16)
	if err != nil {
		return 0, nil, nil, err
	}
	kind := le.Uint16(head)
	n, ok := sizes[kind]
	if !ok {
		return kind, nil, c, nil
	}
	b, err := c.bytes(n)
	return kind, b, c, err
}

// sizesOf has the bytes of inodes before what is of variable length.
var sizesOf = map[uint16]int{
	inodeFolder: 16, inodeFolder + inodeExtended: 24, inodeFile: 16, inodeFile + inodeExtended: 40, inodeLink: 8, inodeLink + inodeExtended: 8,
}

// node returns the node of an inode.
func (s *squash) node(ref uint64) (node, error) {
	kind, b, _, err := s.inode(ref, sizesOf)
	if err != nil {
		return node{}, err
	}
	n := node{kind: special, at: ref}
	switch kind {
	case inodeFolder:
		n.kind, n.size = dir, int64(le.Uint16(b[8:]))
		n.from = uint64(le.Uint32(b))<<16 | uint64(le.Uint16(b[10:]))
	case inodeFolder + inodeExtended:
		n.kind, n.size = dir, int64(le.Uint32(b[4:]))
		n.from = uint64(le.Uint32(b[8:]))<<16 | uint64(le.Uint16(b[18:]))
	case inodeFile:
		n.kind, n.size = file, int64(le.Uint32(b[12:]))
	case inodeFile + inodeExtended:
		n.kind, n.size = file, int64(le.Uint64(b[8:]))
	case inodeLink, inodeLink + inodeExtended:
		n.kind, n.size = link, int64(le.Uint32(b[4:]))
	}
	if n.size < 0 {
		return node{}, errDamaged
	}
	return n, nil
}

func (s *squash) lookup(d node, name string) (node, error) {
	if d.size > maxFolder {
		return node{}, errTooLarge
	}
	c := &cursor{s, s.folders + int64(d.from>>16), int64(d.from & 0xffff)}
	for left := d.size - 3; left > 0; { // the size counts "." and ".."
		head, err := c.bytes(12)
		if err != nil {
			return node{}, err
		}
		left -= 12
		entries, start := int(le.Uint32(head))+1, uint64(le.Uint32(head[4:]))
		if entries > 256 {
			return node{}, errDamaged
		}
		for range entries {
			e, err := c.bytes(8)
			if err != nil {
				return node{}, err
			}
			n := int(le.Uint16(e[6:])) + 1
			if n > 256 {
				return node{}, errDamaged
			}
			b, err := c.bytes(n)
			if err != nil {
				return node{}, err
			}
			if left -= int64(8 + n); left < 0 {
				return node{}, errDamaged
			}
			if string(b) == name {
				return s.node(start<<16 | uint64(le.Uint16(e)))
			}
		}
	}
	return node{}, errMissing
}

func (s *squash) read(f node, limit int) ([]byte, error) {
	kind, b, c, err := s.inode(f.at, sizesOf)
	if err != nil {
		return nil, err
	}
	limit = int(min(int64(limit), f.size))
	var start int64
	var fragment uint32
	var within int64 // the fragment
	switch kind {
	case inodeLink, inodeLink + inodeExtended:
		return c.bytes(limit)
	case inodeFile:
		start, fragment, within = int64(le.Uint32(b)), le.Uint32(b[4:]), int64(le.Uint32(b[8:]))
	default:
		start, fragment, within = int64(le.Uint64(b)), le.Uint32(b[28:]), int64(le.Uint32(b[32:]))
	}
	const none = 0xffffffff
	whole := f.size / s.block
	if fragment == none && f.size%s.block != 0 {
		whole++
	}
	var data []byte
	for range whole {
		if len(data) >= limit {
			return data[:limit], nil
		}
		e, err := c.bytes(4)
		if err != nil {
			return nil, err
		}
		n, plain := stored(e)
		b := make([]byte, min(s.block, f.size-int64(len(data)))) // a hole
		if n > 0 {
			if b, err = s.expand(start, n, int(s.block), plain); err != nil {
				return nil, err
			}
		}
		if len(b) == 0 {
			return nil, errDamaged
		}
		start += int64(n)
		data = append(data, b...)
	}
	if len(data) < limit && fragment != none {
		b, err := s.fragment(fragment)
		if err != nil {
			return nil, err
		}
		if within > int64(len(b)) {
			return nil, errDamaged
		}
		data = append(data, b[within:]...)
	}
	if len(data) < limit {
		return nil, errDamaged
	}
	return data[:limit], nil
}

// stored returns how many bytes a block takes, and whether it is not compressed.
func stored(e []byte) (int, bool) {
	const plain = 1 << 24
	n := le.Uint32(e)
	return int(n &^ plain), n&plain != 0
}

// fragment returns a block with the ends of files.
func (s *squash) fragment(number uint32) ([]byte, error) {
	const entry, perBlock = 16, metadataBytes / 16
	if int64(number) >= s.fragments {
		return nil, errDamaged
	}
	index, err := s.bytes(s.fragmentIndex+8*int64(number/perBlock), 8)
	if err != nil {
		return nil, err
	}
	e, _, _, err := s.meta(int64(le.Uint64(index)), int64(number%perBlock)*entry, entry)
	if err != nil {
		return nil, err
	}
	n, plain := stored(e[8:])
	return s.expand(int64(le.Uint64(e)), n, int(s.block), plain)
}
