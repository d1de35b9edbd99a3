package bmap

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func TestSums(t *testing.T) {
	disk := make([]byte, 20*BlockSize-100)
	_, _ = rand.NewChaCha8([32]byte{}).Read(disk) // never fails
	m := New(int64(len(disk)))
	for _, r := range [][2]int64{{100, 4096}, {4096, 4097}, {12288, 12289}, {19 * BlockSize, int64(len(disk))}} {
		m.Add(r[0], r[1])
	}
	s := m.Sums()
	for rest := disk; len(rest) > 0; {
		n := min(len(rest), 1+rand.IntN(3*BlockSize))
		_, _ = s.Write(rest[:n])
		rest = rest[n:]
	}
	want := []Range{{0, 1, sum(disk[:8192])}, {3, 3, sum(disk[12288:16384])}, {19, 19, sum(disk[19*BlockSize:])}}
	if fmt.Sprint(m.Ranges) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", m.Ranges, want)
	}

	// What is skipped is not verified.
	for n := range m.Ranges {
		m.Ranges[n].Sum = ""
	}
	s = m.Sums()
	_, _ = s.Write(disk[:8192])
	s.Skip(4096 + 1)
	_, _ = s.Write(disk[12289:])
	if m.Ranges[0] != want[0] || m.Ranges[1].Sum != "" || m.Ranges[2] != want[2] {
		t.Errorf("%v", m.Ranges)
	}
}

// TestJoin: a map of a disk with many holes is small, has every byte that was added, and the
// largest holes.
func TestJoin(t *testing.T) {
	const many = 5 * maxRanges
	m, off := New(0), int64(0)
	for n := range int64(many) {
		m.Add(off, off+1)
		off += 2 * BlockSize
		if n%1000 == 999 {
			off += 100 * BlockSize
		}
	}
	m.Size = off
	m.Join()
	if len(m.Ranges) != maxRanges {
		t.Fatalf("%d ranges", len(m.Ranges))
	}
	large := 0
	for n, r := range m.Ranges[1:] {
		if gap := r.First - m.Ranges[n].Last; gap > 100 {
			large++
		} else if gap < 2 || r.Last < r.First {
			t.Fatalf("%v follows %v", r, m.Ranges[n])
		}
	}
	if want := (many - 1) / 1000; large != want {
		t.Errorf("%d large holes are left, of %d", large, want)
	}
}

func TestEncode(t *testing.T) {
	for _, m := range []*Map{All(1, sum(nil)), All(BlockSize, ""), All(BlockSize+1, ""), New(5)} {
		text := string(m.Encode())
		_, rest, _ := strings.Cut(text, "<BmapFileChecksum> ")
		if got := rest[:64]; sum(bytes.Replace([]byte(text), []byte(got), bytes.Repeat([]byte("0"), 64), 1)) != got {
			t.Errorf("the file has another checksum than it says:\n%s", text)
		}
	}
	if !All(1, "").Whole() || !All(BlockSize+1, "").Whole() || New(1).Whole() {
		t.Error("Whole is wrong")
	}
}

func TestVerify(t *testing.T) {
	disk := make([]byte, 10*BlockSize)
	disk[5], disk[9*BlockSize] = 1, 2
	m := New(int64(len(disk)))
	m.Add(0, 1)
	m.Add(9*BlockSize, 10*BlockSize)
	_, _ = m.Sums().Write(disk)
	read, err := Parse(m.Encode())
	if err != nil || fmt.Sprint(read) != fmt.Sprint(m) {
		t.Fatalf("%v, %v, want %v", read, err, m)
	}
	for wrong, change := range map[string]func() []byte{
		"":             func() []byte { return disk },
		"the blocks 9": func() []byte { disk[9*BlockSize]++; return disk },
		"leaves out":   func() []byte { disk[9*BlockSize], disk[2*BlockSize] = 2, 1; return disk },
		"a disk of":    func() []byte { disk[2*BlockSize] = 0; return disk[:9*BlockSize] },
		"disk has 40961": func() []byte {
			disk[9*BlockSize], disk[2*BlockSize] = 2, 0
			return append(disk[:len(disk):len(disk)], 0)
		},
		"it was not comp": func() []byte { return nil },
	} {
		r := read.Verify()
		disk[9*BlockSize], disk[2*BlockSize] = 2, 0
		_, _ = r.Write(change())
		if got := r.Wrong(); !strings.Contains(got, wrong) || (got == "") != (wrong == "") {
			t.Errorf("%q, want %q", got, wrong)
		}
	}
}

// TestParse reads maps of all versions, and refuses those that contradict themselves.
func TestParse(t *testing.T) {
	old := "<bmap version=\"1.3\"><ImageSize> 5000 </ImageSize><BlockSize> 4096 </BlockSize><BlocksCount> 2 </BlocksCount>" +
		"<MappedBlocksCount> 1 </MappedBlocksCount><BmapFileSHA1> 0000000000000000000000000000000000000000 </BmapFileSHA1>" +
		"<BlockMap><Range sha1=\"da39a3ee5e6b4b0d3255bfef95601890afd80709\"> 1 </Range></BlockMap></bmap>"
	h := sha1.Sum([]byte(old))
	old = strings.Replace(old, strings.Repeat("0", 40), hex.EncodeToString(h[:]), 1)
	if m, err := Parse([]byte(old)); err != nil || m.Checksum != "sha1" || m.Ranges[0] != (Range{1, 1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"}) {
		t.Errorf("version 1.3: %v, %v", m, err)
	}
	oldest := "<bmap version=\"1.2\"><ImageSize>5000</ImageSize><BlockSize>4096</BlockSize><BlocksCount>2</BlocksCount>" +
		"<MappedBlocksCount>2</MappedBlocksCount><BlockMap><Range>0</Range><Range> 1-1 </Range></BlockMap></bmap>"
	if m, err := Parse([]byte(oldest)); err != nil || len(m.Ranges) != 2 || m.Checksum != "" {
		t.Errorf("version 1.2: %v, %v", m, err)
	}
	for _, change := range [][2]string{
		{"1.2", "3.0"},
		{"1.2", "2.0"},
		{"<bmap", "<map"},
		{"</bmap>", ""},
		{"5000", "9000"},
		{"5000", "-1"},
		{"4096", "0"},
		{"4096", "x"},
		{">2</Mapped", ">1</Mapped"},
		{"1-1", "0-1"},
		{"1-1", "1-2"},
		{"1-1", "1-0"},
		{"1-1", "9223372036854775807"},
		{"1-1", ""},
	} {
		if m, err := Parse([]byte(strings.Replace(oldest, change[0], change[1], 1))); err == nil {
			t.Errorf("%q for %q: %v", change[1], change[0], m)
		}
	}
	text := All(5000, sum(nil)).Encode()
	for n := range text {
		text[n] ^= 4
		if m, err := Parse(text); err == nil && n > bytes.IndexByte(text, '\n') {
			t.Fatalf("byte %d is damaged: %v\n%s", n, m, text)
		}
		text[n] ^= 4
	}
}

func FuzzParse(f *testing.F) {
	f.Add(All(5000, sum(nil)).Encode())
	f.Fuzz(func(_ *testing.T, text []byte) {
		if m, err := Parse(text); err == nil {
			_, _ = m.Verify().Write(make([]byte, 3*BlockSize+1))
		}
	})
}

// TestParseAmbiguous refuses maps in which bmaptool finds fewer ranges than package xml.
func TestParseAmbiguous(t *testing.T) {
	const text = `<bmap version="1.2"><ImageSize>12288</ImageSize><BlockSize>4096</BlockSize><BlocksCount>3</BlocksCount>` +
		`<MappedBlocksCount>3</MappedBlocksCount><BlockMap><Range>0</Range><Range>1-2</Range></BlockMap></bmap>`
	if _, err := Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	for old, hostile := range map[string]string{
		"<Range>1-2":          "</BlockMap><BlockMap><Range>1-2",
		"<MappedBlocksCount>": "<MappedBlocksCount>1</MappedBlocksCount><MappedBlocksCount>",
		"<Range>1-2</Range>":  `<x:Range xmlns:x="urn:x">1-2</x:Range>`,
		"1-2":                 "1<x/>-2",
		"<BlockMap>":          `<BlockMap xmlns="urn:x">`,
		"<Range>0":            "<Range><Range>1</Range>0",
	} {
		if m, err := Parse([]byte(strings.Replace(text, old, hostile, 1))); err == nil {
			t.Errorf("%s: %+v", hostile, m)
		}
	}
}
