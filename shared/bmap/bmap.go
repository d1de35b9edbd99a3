// Package bmap makes block maps, the files by which bmaptool (bmap-tools) writes only the
// blocks of a disk that have data. It writes version 2.0 of the format, with SHA-256, as
// BmapCreate.py of bmap-tools does.
package bmap

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
)

// BlockSize is the size in bytes of a block in the maps that this program makes.
const BlockSize = 4096

// maxRanges limits the size of a map, which has about 100 bytes for each range.
const maxRanges = 8192

// A Map says which blocks of a disk must be written. The others must not have data: what a
// client leaves there differs from machine to machine.
type Map struct {
	Size   int64   // of the disk, in bytes
	Ranges []Range // sorted, without overlaps
}

// A Range is a run of blocks, from First to Last.
type Range struct {
	First, Last int64
	SHA256      string // of its bytes, in hexadecimal; "" if unknown, then clients verify nothing
}

// All returns the map of a disk of size bytes, at least one, all of which must be written.
func All(size int64, sha256 string) *Map {
	return &Map{size, []Range{{0, (size - 1) / BlockSize, sha256}}}
}

// Add adds the blocks that have bytes of [from, to), which must follow all bytes added
// before. Of many ranges, it joins those with the smallest gaps: a map never has more than
// twice maxRanges while it grows.
func (m *Map) Add(from, to int64) {
	first, last := from/BlockSize, (to-1)/BlockSize
	if n := len(m.Ranges); n > 0 && first <= m.Ranges[n-1].Last+1 {
		m.Ranges[n-1].Last = max(m.Ranges[n-1].Last, last)
		return
	}
	if m.Ranges = append(m.Ranges, Range{First: first, Last: last}); len(m.Ranges) == 2*maxRanges {
		m.Join()
	}
}

// Join leaves at most maxRanges ranges.
func (m *Map) Join() {
	if len(m.Ranges) <= maxRanges {
		return
	}
	byGap := make([]int, len(m.Ranges)-1) // the range n is followed by the gap n
	for n := range byGap {
		byGap[n] = n
	}
	gap := func(n int) int64 { return m.Ranges[n+1].First - m.Ranges[n].Last }
	slices.SortFunc(byGap, func(a, b int) int { return cmp.Or(cmp.Compare(gap(b), gap(a)), a-b) })
	kept := byGap[:maxRanges-1]
	slices.Sort(kept)
	all, first := m.Ranges, int64(m.Ranges[0].First)
	joined := make([]Range, 0, maxRanges)
	for _, n := range kept {
		joined = append(joined, Range{First: first, Last: all[n].Last})
		first = all[n+1].First
	}
	m.Ranges = append(joined, Range{First: first, Last: all[len(all)-1].Last})
}

// Whole reports whether m has every block of the disk.
func (m *Map) Whole() bool {
	return m.Size == 0 || len(m.Ranges) == 1 && m.Ranges[0].First == 0 && m.Ranges[0].Last == (m.Size-1)/BlockSize
}

// Encode returns the file.
func (m *Map) Encode() []byte {
	blocks, mapped := (m.Size+BlockSize-1)/BlockSize, int64(0)
	for _, r := range m.Ranges {
		mapped += r.Last - r.First + 1
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> %d </ImageSize>
    <BlockSize> %d </BlockSize>
    <BlocksCount> %d </BlocksCount>
    <MappedBlocksCount> %d </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> `, m.Size, BlockSize, blocks, mapped)
	at := b.Len()
	fmt.Fprintf(&b, "%064d </BmapFileChecksum>\n    <BlockMap>\n", 0)
	for _, r := range m.Ranges {
		b.WriteString("        <Range")
		if r.SHA256 != "" {
			fmt.Fprintf(&b, ` chksum="%s"`, r.SHA256)
		}
		if fmt.Fprintf(&b, "> %d", r.First); r.Last > r.First {
			fmt.Fprintf(&b, "-%d", r.Last)
		}
		b.WriteString(" </Range>\n")
	}
	b.WriteString("    </BlockMap>\n</bmap>\n")
	// The sum is that of the file with zeros in its place.
	sum := sha256.Sum256(b.Bytes())
	hex.Encode(b.Bytes()[at:], sum[:])
	return b.Bytes()
}

// A Summer computes the SHA-256 of the ranges of a map from the bytes of the disk, in order.
type Summer struct {
	m    *Map
	next int // the range that ends next
	off  int64
	hash hash.Hash
	lost bool // bytes of that range were skipped
}

// NewSummer returns the Summer of m at the beginning of the disk.
func NewSummer(m *Map) *Summer { return &Summer{m: m, hash: sha256.New()} }

// Write takes the next bytes of the disk. It never fails.
func (s *Summer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, mapped := s.run(int64(len(p)))
		if mapped {
			s.hash.Write(p[:part])
		}
		p = p[part:]
		s.advance(part, false)
	}
	return n, nil
}

// Skip leaves out the next n bytes of the disk. The ranges that they are in get no sum.
func (s *Summer) Skip(n int64) {
	for n > 0 {
		part, mapped := s.run(n)
		n -= part
		s.advance(part, mapped)
	}
}

// run returns the number of the next bytes, up to limit, that are all in the next range or
// all before it.
func (s *Summer) run(limit int64) (n int64, mapped bool) {
	if s.next == len(s.m.Ranges) {
		return limit, false
	}
	r := s.m.Ranges[s.next]
	if first := r.First * BlockSize; s.off < first {
		return min(limit, first-s.off), false
	}
	return min(limit, s.end()-s.off), true
}

// end returns the offset of the end of the next range.
func (s *Summer) end() int64 { return min((s.m.Ranges[s.next].Last+1)*BlockSize, s.m.Size) }

func (s *Summer) advance(n int64, lost bool) {
	s.off += n
	s.lost = s.lost || lost
	if s.next == len(s.m.Ranges) || s.off < s.end() {
		return
	}
	if !s.lost {
		s.m.Ranges[s.next].SHA256 = hex.EncodeToString(s.hash.Sum(nil))
	}
	s.hash.Reset()
	s.lost = false
	s.next++
}
