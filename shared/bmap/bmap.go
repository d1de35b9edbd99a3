// Package bmap makes and reads block maps, the files by which bmaptool (bmap-tools) writes only the
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

	"imageroot/shared/store"
)

// BlockSize is the size in bytes of a block in the maps that this program makes.
const BlockSize = 4096

// maxRanges limits the size of a map, which has about 100 bytes for each range.
const maxRanges = 8192

// A Map says which blocks of a disk must be written. The others must not have data: what a
// client leaves there differs from machine to machine.
type Map struct {
	Size      int64   // of the disk, in bytes
	BlockSize int64   // bytes
	Checksum  string  // the type of the sums, "sha256" in the maps that this program makes
	Ranges    []Range // sorted, without overlaps
}

// A Range is a run of blocks, from First to Last.
type Range struct {
	First, Last int64
	Sum         string // of its bytes, in hexadecimal; "" if unknown, then clients verify nothing
}

// New returns the map of a disk of size bytes, none of which have to be written.
func New(size int64) *Map { return &Map{Size: size, BlockSize: BlockSize, Checksum: "sha256"} }

// All returns the map of a disk of size bytes, at least one, all of which must be written.
func All(size int64, sha256 string) *Map {
	m := New(size)
	m.Ranges = []Range{{0, m.blocks() - 1, sha256}}
	return m
}

// blocks returns the number of blocks of the disk.
func (m *Map) blocks() int64 { return (m.Size + m.BlockSize - 1) / m.BlockSize }

// Add adds the blocks that have bytes of [from, to), which must follow all bytes added
// before. Of many ranges, it joins those with the smallest gaps: a map never has more than
// twice maxRanges while it grows.
func (m *Map) Add(from, to int64) {
	first, last := from/m.BlockSize, (to-1)/m.BlockSize
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
	return m.Size == 0 || len(m.Ranges) == 1 && m.Ranges[0].First == 0 && m.Ranges[0].Last == m.blocks()-1
}

// Encode returns the file of a map with SHA-256.
func (m *Map) Encode() []byte {
	mapped := int64(0)
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
    <BmapFileChecksum> `, m.Size, m.BlockSize, m.blocks(), mapped)
	at := b.Len()
	fmt.Fprintf(&b, "%064d </BmapFileChecksum>\n    <BlockMap>\n", 0)
	for _, r := range m.Ranges {
		b.WriteString("        <Range")
		if r.Sum != "" {
			fmt.Fprintf(&b, ` chksum="%s"`, r.Sum)
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

// A Reading computes the sums of the ranges of a map from the bytes of the disk, in order.
type Reading struct {
	m      *Map
	verify bool   // compare the sums with those of the map, instead of setting them
	wrong  string // what was found to differ first

	next int // the range that ends next
	off  int64
	hash hash.Hash
	lost bool // bytes of that range were skipped
}

// Sums returns the Reading that sets the sums of m.
func (m *Map) Sums() *Reading { return &Reading{m: m, hash: checksums[m.Checksum]()} }

// Verify returns the Reading that compares m with the disk.
func (m *Map) Verify() *Reading {
	kind := cmp.Or(m.Checksum, "sha256") // without sums, nothing is compared with it
	return &Reading{m: m, verify: true, hash: checksums[kind]()}
}

// Wrong returns in what the bytes differ from the map, as a sentence, or "". The disk must
// have been read to its end.
func (r *Reading) Wrong() string {
	if r.off == 0 && r.m.Size > 0 {
		return "it was not compared with the disk"
	}
	if r.wrong == "" && r.off != r.m.Size {
		return fmt.Sprintf("it is of a disk of %d bytes, and the disk has %d", r.m.Size, r.off)
	}
	return r.wrong
}

// Write takes the next bytes of the disk. It never fails.
func (r *Reading) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, mapped := r.run(int64(len(p)))
		switch {
		case mapped:
			r.hash.Write(p[:part])
		case r.verify && r.wrong == "" && r.off < r.m.Size && !zero(p[:part]):
			r.wrong = fmt.Sprintf("it leaves out bytes from %d on that are not zero", r.off)
		}
		p = p[part:]
		r.advance(part, false)
	}
	return n, nil
}

func zero(p []byte) bool {
	for _, zeros := range store.Runs(p) {
		if !zeros {
			return false
		}
	}
	return true
}

// Skip leaves out the next n bytes of the disk. The ranges that they are in get no sum.
func (r *Reading) Skip(n int64) {
	for n > 0 {
		part, mapped := r.run(n)
		n -= part
		r.advance(part, mapped)
	}
}

// run returns the number of the next bytes, up to limit, that are all in the next range or
// all before it.
func (r *Reading) run(limit int64) (n int64, mapped bool) {
	if r.next == len(r.m.Ranges) {
		return limit, false
	}
	if first := r.m.Ranges[r.next].First * r.m.BlockSize; r.off < first {
		return min(limit, first-r.off), false
	}
	return min(limit, r.end()-r.off), true
}

// end returns the offset of the end of the next range.
func (r *Reading) end() int64 { return min((r.m.Ranges[r.next].Last+1)*r.m.BlockSize, r.m.Size) }

func (r *Reading) advance(n int64, lost bool) {
	r.off += n
	r.lost = r.lost || lost
	if r.next == len(r.m.Ranges) || r.off < r.end() {
		return
	}
	sum, of := hex.EncodeToString(r.hash.Sum(nil)), &r.m.Ranges[r.next]
	switch {
	case r.lost:
	case !r.verify:
		of.Sum = sum
	case of.Sum != "" && of.Sum != sum && r.wrong == "":
		r.wrong = fmt.Sprintf("the blocks %d to %d have the %s %s, and it says %s", of.First, of.Last, r.m.Checksum, sum, of.Sum)
	}
	r.hash.Reset()
	r.lost = false
	r.next++
}
