package bmap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func TestSummer(t *testing.T) {
	disk := make([]byte, 20*BlockSize-100)
	_, _ = rand.NewChaCha8([32]byte{}).Read(disk) // never fails
	m := &Map{Size: int64(len(disk))}
	for _, r := range [][2]int64{{100, 4096}, {4096, 4097}, {12288, 12289}, {19 * BlockSize, int64(len(disk))}} {
		m.Add(r[0], r[1])
	}
	s := NewSummer(m)
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
		m.Ranges[n].SHA256 = ""
	}
	s = NewSummer(m)
	_, _ = s.Write(disk[:8192])
	s.Skip(4096 + 1)
	_, _ = s.Write(disk[12289:])
	if m.Ranges[0] != want[0] || m.Ranges[1].SHA256 != "" || m.Ranges[2] != want[2] {
		t.Errorf("%v", m.Ranges)
	}
}

// TestJoin: a map of a disk with many holes is small, has every byte that was added, and the
// largest holes.
func TestJoin(t *testing.T) {
	const many = 5 * maxRanges
	m, off := &Map{}, int64(0)
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
	for _, m := range []*Map{All(1, sum(nil)), All(BlockSize, ""), All(BlockSize+1, ""), {Size: 5}} {
		text := string(m.Encode())
		_, rest, _ := strings.Cut(text, "<BmapFileChecksum> ")
		if got := rest[:64]; sum(bytes.Replace([]byte(text), []byte(got), bytes.Repeat([]byte("0"), 64), 1)) != got {
			t.Errorf("the file has another checksum than it says:\n%s", text)
		}
	}
	if !All(1, "").Whole() || !All(BlockSize+1, "").Whole() || (&Map{Size: 1}).Whole() {
		t.Error("Whole is wrong")
	}
}
