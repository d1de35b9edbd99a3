package unpack_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/unpack"
	"imageroot/test/need"
)

// tool runs a command and returns its output for the input in.
func tool(t testing.TB, in []byte, command string, args ...string) []byte {
	t.Helper()
	need.Programs(t, command)
	cmd := exec.Command(command, args...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", command, args, err, stderr.String())
	}
	return out
}

// disk returns n bytes of text, noise and runs of zeros.
func disk(n int) []byte {
	r := rand.New(rand.NewPCG(6, uint64(n)))
	var b []byte
	for len(b) < n {
		for range r.IntN(50) {
			b = fmt.Appendf(b, "line %d of some text\n", r.IntN(500))
		}
		for range r.IntN(500) {
			b = append(b, byte(r.Uint32()))
		}
		b = append(b, make([]byte, r.IntN(3000))...)
	}
	return b[:n]
}

// A sample is a file and its decompressed content.
type sample struct {
	name string
	kind content.Kind
	data []byte
	want []byte
	// unchecked says that no checksum covers some of its bytes, so that damage to them
	// may be undetected.
	unchecked bool
}

// samples returns files that the tools write for n bytes. Most windows are small: tests
// read a sample a thousand times.
func samples(t testing.TB, n int) []sample {
	t.Helper()
	raw := disk(n)
	half := n / 2
	var all []sample
	add := func(s sample) { all = append(all, s) }
	skippable := append([]byte{0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, "skip!"...)
	for _, c := range []struct {
		kind      content.Kind
		unchecked bool
		command   []string
	}{
		{content.Gzip, false, []string{"gzip", "-c"}},
		{content.Gzip, false, []string{"gzip", "-1", "-c"}},
		{content.Gzip, true, []string{"bgzip", "-c"}}, // much of it is headers
		{content.Bzip2, false, []string{"bzip2", "-c"}},
		{content.Bzip2, false, []string{"bzip2", "-1", "-c"}},
		{content.XZ, false, []string{"xz", "-c", "-T1", "--lzma2=dict=64KiB"}},
		{content.XZ, false, []string{"xz", "-c", "-T2", "--block-size=20000", "--lzma2=dict=64KiB"}}, // sizes in block headers
		{content.XZ, false, []string{"xz", "-c", "-T1", "--block-list=10000,7,0", "--lzma2=dict=64KiB"}},
		{content.XZ, false, []string{"xz", "-c", "-2e", "--check=sha256"}},
		{content.XZ, false, []string{"xz", "-c", "-0", "--check=crc32"}},
		{content.XZ, false, []string{"xz", "-c", "--lzma2=preset=9e,dict=4KiB,lc=0,lp=4,pb=4"}}, // a dictionary that wraps around
		{content.XZ, false, []string{"xz", "-c", "--lzma2=preset=1,dict=5000,lc=4,pb=0"}},
		{content.Zstd, false, []string{"zstd", "-c"}},
		{content.Zstd, false, []string{"zstd", "-c", "-19", "--long=17"}},
		{content.Zstd, true, []string{"zstd", "-c", "--no-check", "-1"}},
	} {
		name := strings.Join(c.command, " ")
		pack := func(b []byte) []byte { return tool(t, b, c.command[0], c.command[1:]...) }
		add(sample{name, c.kind, pack(raw), raw, c.unchecked})
		parts := [][]byte{pack(raw[:half]), pack(raw[half:])}
		if c.kind == content.Zstd {
			parts = [][]byte{skippable, parts[0], skippable, parts[1], skippable}
		}
		add(sample{name + ", twice", c.kind, bytes.Join(parts, nil), raw, c.unchecked})
	}
	add(sample{"pbzip2", content.Bzip2, tool(t, raw, "pbzip2", "-c", "-b1", "-1"), raw, false})
	one := tool(t, raw, "xz", "-c", "--lzma2=dict=64KiB")
	add(sample{"xz, padded", content.XZ, slices.Concat(one, make([]byte, 8), one), slices.Concat(raw, raw), true})
	add(sample{"gzip, padded", content.Gzip, append(tool(t, raw, "gzip", "-c"), make([]byte, 1000)...), raw, true})
	return all
}

// read returns the bytes that a stream decompresses to, and the error that ended it.
func read(kind content.Kind, r io.Reader, limit unpack.Limit) ([]byte, error) {
	u, err := unpack.NewReader(kind, r, limit)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	return io.ReadAll(u)
}

func TestRead(t *testing.T) {
	for _, s := range samples(t, 300_000) {
		t.Run(s.name, func(t *testing.T) {
			got, err := read(s.kind, bytes.NewReader(s.data), unpack.Limit{})
			if err != nil || !bytes.Equal(got, s.want) {
				t.Fatalf("%d bytes, %v; want %d", len(got), err, len(s.want))
			}
			got, err = read(s.kind, iotest.OneByteReader(bytes.NewReader(s.data)), unpack.Limit{})
			if err != nil || !bytes.Equal(got, s.want) {
				t.Fatalf("byte by byte: %d bytes, %v; want %d", len(got), err, len(s.want))
			}
		})
	}
}

// The compressed form of empty input is not empty.
func TestEmpty(t *testing.T) {
	for _, row := range image.Compressions {
		if got, err := read(content.Kind(row.Name), bytes.NewReader(tool(t, nil, row.Name, "-c")), unpack.Limit{}); err != nil || len(got) > 0 {
			t.Errorf("%s of nothing: %d bytes, %v", row.Name, len(got), err)
		}
	}
}

// A file cut at any byte is reported as cut at that byte, unless the rest is a
// complete file.
func TestTruncated(t *testing.T) {
	for _, s := range samples(t, 4_000) {
		t.Run(s.name, func(t *testing.T) {
			ends := 0
			for n := 0; n < len(s.data); n += 3 {
				got, err := read(s.kind, bytes.NewReader(s.data[:n]), unpack.Limit{})
				if err == nil {
					// Between two members, streams or frames, or in padding.
					ends++
					if !bytes.HasPrefix(s.want, got) {
						t.Fatalf("%d of %d bytes: other bytes", n, len(s.data))
					}
					continue
				}
				if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Truncated || e.Offset != int64(n) {
					t.Fatalf("%d of %d bytes: %v", n, len(s.data), err)
				}
			}
			if most := 5; ends > most && s.kind != content.Gzip || ends > most+1000 {
				t.Errorf("%d cuts of %d were not seen", ends, len(s.data))
			}
		})
	}
}

// Damage to any byte that a checksum covers is detected, and not before its offset.
func TestDamaged(t *testing.T) {
	for _, s := range samples(t, 4_000) {
		if s.unchecked {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			unseen := 0
			for i := 0; i < len(s.data); i += 7 {
				bad := bytes.Clone(s.data)
				bad[i] ^= 0x10
				got, err := read(s.kind, bytes.NewReader(bad), unpack.Limit{})
				if err == nil {
					if unseen++; !bytes.HasPrefix(s.want, got) {
						t.Fatalf("damage to byte %d of %d is not detected, and changes what is read", i, len(bad))
					}
					continue
				}
				e, ok := errors.AsType[*unpack.Error](err)
				if !ok || e.Offset > int64(len(bad)) {
					t.Fatalf("byte %d of %d: %v", i, len(bad), err)
				}
				if e.Offset < int64(i) && s.kind != content.XZ { // an xz header is refused at its beginning
					t.Errorf("byte %d of %d: found before, at %d: %v", i, len(bad), e.Offset, err)
				}
			}
			if most := len(s.data) / 7 / 20; unseen > most+2 {
				t.Errorf("%d of %d went unseen", unseen, len(s.data)/7)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	long := tool(t, make([]byte, 5<<20), "zstd", "-c", "--long=22", "--no-content-size")
	for _, c := range []struct {
		name  string
		kind  content.Kind
		data  []byte
		limit unpack.Limit
		says  string
	}{
		{"zstd window", content.Zstd, long, unpack.Limit{Window: 1 << 21}, "--long=21"},
		{"zstd --long=31", content.Zstd, tool(t, disk(1000), "zstd", "-c", "--ultra", "-22", "--long=31"), unpack.Limit{}, "128 MiB"},
		{"xz dictionary", content.XZ, tool(t, disk(1000), "xz", "-c", "--lzma2=dict=1GiB"), unpack.Limit{}, "dictionary of 1 GiB"},
		{"xz with a filter", content.XZ, tool(t, disk(1000), "xz", "-c", "--x86", "--lzma2=dict=1MiB"), unpack.Limit{}, "other than LZMA2"},
		{"not compressed", content.MBR, nil, unpack.Limit{}, "mbr is not compressed"},
	} {
		got, err := read(c.kind, bytes.NewReader(c.data), c.limit)
		if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Refused || !strings.Contains(e.Reason, c.says) {
			t.Errorf("%s: %d bytes, %v", c.name, len(got), err)
		}
	}
	if _, err := read(content.Zstd, bytes.NewReader(long), unpack.Limit{Window: 1 << 22}); err != nil {
		t.Errorf("a window as large as the limit: %v", err)
	}
}

// Bytes after a gzip or bzip2 stream are ignored and counted, unless so many that they
// may be the rest of an image.
func TestTrailing(t *testing.T) {
	raw := disk(5_000)
	for kind, data := range map[content.Kind][]byte{
		content.Gzip:  tool(t, raw, "gzip", "-c"),
		content.Bzip2: tool(t, raw, "bzip2", "-c"),
	} {
		u, err := unpack.NewReader(kind, bytes.NewReader(append(bytes.Clone(data), "FWx0 signature\n"...)), unpack.Limit{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(u)
		if err != nil || !bytes.Equal(got, raw) || u.Trailing() < 12 {
			t.Errorf("%s: %d bytes, %d trailing, %v", kind, len(got), u.Trailing(), err)
		}
		_, err = read(kind, bytes.NewReader(append(bytes.Clone(data), disk(200_000)...)), unpack.Limit{})
		if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Damaged {
			t.Errorf("%s: 200,000 trailing bytes: %v", kind, err)
		}
	}
}

// Like bzip2 -d, Read ignores bytes after a stream that do not begin another one, even
// a single byte, and reports a second stream that is cut.
func TestTrailingBzip2(t *testing.T) {
	raw := disk(5_000)
	data := tool(t, raw, "bzip2", "-c")
	for _, c := range []struct {
		behind string
		want   int64
	}{
		{"", 0},
		{"\n", 1},
		{"\x00", 0},
		{"\r\n", 2},
		{"x\x00", 1},
		{"\x00\x00\x00", 0},
		{"\x00\x00\n", 3},
		{"Bx", 2},
		{"BZx", 3},
		{"BZhx", 4},
		{"BZh0 and more", 13},
	} {
		got := tool(t, append(bytes.Clone(data), c.behind...), "bzip2", "-dc")
		if !bytes.Equal(got, raw) {
			t.Fatalf("%q: bzip2 -d: %d bytes", c.behind, len(got))
		}
		u, err := unpack.NewReader(content.Bzip2, iotest.DataErrReader(strings.NewReader(string(data)+c.behind)), unpack.Limit{})
		if err != nil {
			t.Fatal(err)
		}
		got, err = io.ReadAll(u)
		if err != nil || !bytes.Equal(got, raw) || u.Trailing() != c.want || u.Consumed() != int64(len(data)+len(c.behind)) {
			t.Errorf("%q: %d bytes, %d trailing, %d consumed, %v", c.behind, len(got), u.Trailing(), u.Consumed(), err)
		}
	}
	for n := 1; n < len(data); n++ {
		got, err := read(content.Bzip2, bytes.NewReader(append(bytes.Clone(data), data[:n]...)), unpack.Limit{})
		if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Truncated || e.Offset != int64(len(data)+n) || !bytes.HasPrefix(bytes.Repeat(raw, 2), got) || len(got) < len(raw) {
			t.Fatalf("%d bytes of a second stream: %d bytes, %v", n, len(got), err)
		}
	}
}

// allocates returns the number of bytes that f allocates, including freed ones.
func allocates(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// Whatever the number of blocks and the sizes of their dictionaries, the decoder
// allocates one dictionary that grows, or no more than it decodes.
func TestOneDictionary(t *testing.T) {
	raw := disk(200_000)
	var growing []byte
	zeros, n := make([]byte, 8<<20), 0
	for size := 512 << 10; size <= len(zeros); size += 512 << 10 { // the size in the headers
		growing = append(growing, tool(t, zeros[:size], "xz", "-c", "--lzma2=preset=0,dict=64MiB", "-T2")...)
		n += size
	}
	for _, c := range []struct {
		name       string
		data, want []byte
		most       int64
	}{
		{"blocks", tool(t, raw, "xz", "-c", "-9", "-T1", "--block-size=20000"), raw, 64<<20 + 8<<20},
		{"streams", bytes.Repeat(tool(t, raw, "xz", "-c", "-9", "-T1"), 6), bytes.Repeat(raw, 6), 64<<20 + 16<<20},
		{"ever more", growing, make([]byte, n), int64(n) + 16<<20},
	} {
		u, err := unpack.NewReader(content.XZ, bytes.NewReader(c.data), unpack.Limit{})
		if err != nil {
			t.Fatal(err)
		}
		hash, want := sha256.New(), sha256.Sum256(c.want)
		used := allocates(func() { _, err = io.Copy(hash, u) })
		if err != nil || !bytes.Equal(hash.Sum(nil), want[:]) || used > c.most {
			t.Errorf("%s: %d bytes allocated, want no more than %d; %v", c.name, used, c.most, err)
		}
	}
}

// Properties of LZMA2 in the header of an xz block.
const (
	dictionary64KiB  = 8
	dictionary128MiB = 30
)

// xzBlocks returns the beginning of an xz stream without checks, and blocks of these
// chunks, whose headers declare a dictionary of this size.
func xzBlocks(dictionary byte, blocks ...string) []byte {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	b := append([]byte("\xfd7zXZ\x00"), sum([]byte{0, 0})...)
	for _, chunks := range blocks {
		b = append(b, sum([]byte{2, 0, 0x21, 1, dictionary, 0, 0, 0})...)
		b = append(b, chunks...)
		b = append(b, make([]byte, -len(chunks)&3)...)
	}
	return b
}

// Memory does not grow with the number of blocks with little or no output, and an error
// of the input ends them.
func TestEmptyBlocks(t *testing.T) {
	cancelled := errors.New("cancelled")
	for _, c := range []struct {
		chunks string
		out    int
		most   int64
	}{
		{"\x00", 0, 8 << 20},
		{"\x01\x00\x00x\x00", 1, 128<<20 + 16<<20}, // an uncompressed byte
	} {
		const blocks = 200
		data := xzBlocks(dictionary128MiB, slices.Repeat([]string{c.chunks}, blocks)...)
		var got int64
		var err error
		used := allocates(func() {
			var u *unpack.Reader
			if u, err = unpack.NewReader(content.XZ, io.MultiReader(bytes.NewReader(data), iotest.ErrReader(cancelled)), unpack.Limit{}); err == nil {
				got, err = io.Copy(io.Discard, u)
			}
		})
		if !errors.Is(err, cancelled) || got != int64(blocks*c.out) || used > c.most {
			t.Errorf("%q: %d bytes, %d allocated, want no more than %d; %v", c.chunks, got, used, c.most, err)
		}
	}
}

// The sizes in the headers of chunks are checked, and a block cannot refer to the
// previous one.
func TestChunks(t *testing.T) {
	const one = "\x01\x00\x00x\x00"
	for name, second := range map[string]string{
		"no new dictionary":         "\x02\x00\x00y\x00",
		"nothing reset, compressed": "\x80\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00",
		"no new properties":         "\xc0\x00\x00\x00\x05\x5d\x00\x00\x00\x00\x00\x00\x00",
		"of no kind":                "\x03\x00\x00y\x00",
		"too short to be decoded":   "\xe0\x00\x00\x00\x00\x5d\x00\x00",
		"longer than its data":      "\xe0\x00\x00\x00\x20\x5d" + strings.Repeat("\x00", 0x22),
	} {
		for before, data := range map[string][]byte{"": xzBlocks(dictionary64KiB, second), "x": xzBlocks(dictionary64KiB, one, second)} {
			data = append(data, make([]byte, 100)...) // otherwise it would be cut short
			got, err := read(content.XZ, bytes.NewReader(data), unpack.Limit{})
			if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Damaged || !strings.HasPrefix(string(got), before) || len(got) > len(before)+1 {
				t.Errorf("%s, after %q: %q, %v", name, before, got, err)
			}
		}
	}
}

// An error of the input is not reported as damage.
func TestSource(t *testing.T) {
	failed := errors.New("the disk failed")
	for _, s := range samples(t, 300_000) {
		for _, n := range []int{0, 1, 20, len(s.data) / 2, len(s.data) - 1, len(s.data)} {
			if _, err := read(s.kind, io.MultiReader(bytes.NewReader(s.data[:n]), iotest.ErrReader(failed)), unpack.Limit{}); !errors.Is(err, failed) {
				t.Errorf("%s, after %d of %d bytes: %v", s.name, n, len(s.data), err)
			}
		}
	}
}

// Each row of the table of compressions has a tool, a decoder and a suffix, and package
// content detects the tool's output.
func TestCompressions(t *testing.T) {
	raw := disk(100_000)
	for _, row := range image.Compressions {
		data := tool(t, raw, row.Name, "-c")
		c := content.Head(data[:min(len(data), content.HeadBytes)], int64(len(data)))
		if c.What != row.What || c.Format() != image.Format("img"+row.Suffix) || content.KindOf(c.Format()) != c.Kind {
			t.Errorf("%s -c writes %s, %s", row.Name, c.What, c.Format())
		}
		if got, err := read(c.Kind, bytes.NewReader(data), unpack.Limit{}); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %d bytes, %v", row.Name, len(got), err)
		}
		if got := tool(t, data, row.Name, "-d"); !bytes.Equal(got, raw) {
			t.Errorf("%s -d writes %d other bytes", row.Name, len(got))
		}
	}
}

func FuzzRead(f *testing.F) {
	const intact = 128
	var kinds []content.Kind
	for _, row := range image.Compressions {
		kinds = append(kinds, content.Kind(row.Name))
	}
	for _, s := range samples(f, 2_000) {
		for i, k := range kinds {
			if k == s.kind {
				f.Add(byte(i), s.data)
				f.Add(byte(i)+intact, s.data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, i byte, data []byte) {
		limit := unpack.Limit{Window: 1 << 20}
		if i >= intact {
			limit = unpack.Limit{Window: 64 << 20, Intact: true}
		}
		u, err := unpack.NewReader(kinds[int(i%intact)%len(kinds)], bytes.NewReader(data), limit)
		if err == nil {
			defer u.Close()
			_, err = io.Copy(io.Discard, io.LimitReader(u, 8<<20))
		}
		e, ok := errors.AsType[*unpack.Error](err)
		if err != nil && !ok {
			t.Fatal(err)
		}
		if err != nil && (e.Offset < 0 || e.Offset > int64(len(data))) {
			t.Fatalf("at %d of %d bytes: %v", e.Offset, len(data), err)
		}
	})
}

// Chunks without checksums cannot do more harm than to be refused.
func FuzzChunks(f *testing.F) {
	for _, options := range []string{"preset=6", "lc=4,pb=0", "lc=1,lp=3,pb=4,nice=5"} {
		f.Add(tool(f, disk(2_000), "xz", "-c", "--format=raw", "--lzma2="+options))
	}
	f.Add([]byte("\x01\x00\x00x\x02\x00\x00y\x00"))
	f.Fuzz(func(t *testing.T, chunks []byte) {
		_, err := read(content.XZ, bytes.NewReader(xzBlocks(dictionary64KiB, string(chunks))), unpack.Limit{})
		e, ok := errors.AsType[*unpack.Error](err)
		if !ok || e.Offset < 0 {
			t.Fatal(err) // it has no index
		}
	})
}

// The memory that a stream needs is known before it is read.
func TestWindow(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // two blocks of xz
	for _, tt := range []struct {
		kind    content.Kind
		command []string
		want    int64
	}{
		{content.Gzip, []string{"gzip", "-c"}, 0},
		{content.Bzip2, []string{"bzip2", "-c"}, 4_500_000},
		{content.XZ, []string{"xz", "-c", "-0"}, 256 << 10},
		{content.XZ, []string{"xz", "-c", "-9"}, 64 << 20},
		{content.XZ, []string{"xz", "-c", "-9", "-T2", "--block-size=1000000"}, 64 << 20},
		{content.Zstd, []string{"zstd", "-c", "-1"}, 512 << 10},
		{content.Zstd, []string{"zstd", "-c", "--long=27"}, 128 << 20},
		{content.Zstd, []string{"zstd", "-c", "--long=31", "--ultra", "-22"}, unpack.DefaultWindow}, // refused later
	} {
		u, err := unpack.NewReader(tt.kind, bytes.NewReader(tool(t, data, tt.command[0], tt.command[1:]...)), unpack.Limit{})
		if err != nil {
			t.Errorf("%v: %v", tt.command, err)
			continue
		}
		if got := u.Window(); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.command, got, tt.want)
		}
		u.Close()
	}
	// A stream of unknown window may need the maximum.
	for skip, want := range map[int]int64{5: 512 << 10, 1 << 20: 16 << 20} {
		skippable := append([]byte{0x53, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, make([]byte, skip)...)
		binary.LittleEndian.PutUint32(skippable[4:], uint32(skip))
		u, err := unpack.NewReader(content.Zstd, bytes.NewReader(append(skippable, tool(t, data, "zstd", "-c", "-1")...)), unpack.Limit{Window: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if got := u.Window(); got != want {
			t.Errorf("after a skippable frame of %d bytes: %d, want %d", skip, got, want)
		}
		u.Close()
	}
}

// Blocks that are decoded in parallel are read in order, as those that are not: whether
// there is memory for that or not, and up to the damage or the end of a file. [Limit].Spare
// is asked before.
func TestParallel(t *testing.T) {
	raw := disk(1 << 20)
	for _, c := range []struct {
		kind    content.Kind
		command []string
		block   int64 // the least memory of a block
	}{
		{content.XZ, []string{"xz", "-c", "-T2", "--block-size=65536", "--lzma2=dict=64KiB"}, 65536},
		{content.Bzip2, []string{"bzip2", "-c", "-1"}, 900_000},
		{content.Gzip, []string{"bgzip", "-c"}, 0}, // within the memory that each stream may hold
		{content.Zstd, []string{"zstd", "-c", "-1"}, 20 << 20},
		{content.Zstd, []string{"pzstd", "-q", "-c", "-1"}, 20 << 20},
	} {
		data := tool(t, raw, c.command[0], c.command[1:]...)
		damaged, late, twice := bytes.Clone(data), bytes.Clone(data), slices.Concat(data, data)
		damaged[len(data)/2] ^= 1
		late[len(data)-200] ^= 1
		for name, in := range map[string][]byte{"whole": data, "twice": twice, "damaged": damaged, "damaged at the end": late, "cut": data[:len(data)/2], "cut before the index": data[:len(data)-100]} {
			name = string(c.kind) + ", " + name
			var want []byte
			var wantErr error
			for _, most := range []int64{0, 100_000, 300_000, unpack.DefaultWindow} { // 0: one after the other
				asked := int64(0)
				u, err := unpack.NewReader(c.kind, bytes.NewReader(in), unpack.Limit{Intact: true, Spare: func(n int64) bool {
					if n > most {
						return false
					}
					asked = max(asked, n)
					return true
				}})
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(u)
				if most == 0 {
					want, wantErr = got, err
					continue
				}
				a, _ := errors.AsType[*unpack.Error](err)
				b, _ := errors.AsType[*unpack.Error](wantErr)
				if c.kind == content.Zstd && err != nil && bytes.HasPrefix(got, want) {
					got = want // the last block can be read before the checksum behind it
				}
				if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) || a != nil && (b == nil || a.Problem != b.Problem) {
					t.Errorf("%s, %d: %d bytes, %v; want %d, %v", name, most, len(got), err, len(want), wantErr)
				}
				if a != nil && a.Offset < b.Offset {
					t.Errorf("%s, %d: at %d, before %d", name, most, a.Offset, b.Offset)
				}
				if runtime.GOMAXPROCS(0) > 1 && most == unpack.DefaultWindow && asked < 2*c.block {
					t.Errorf("%s: %d bytes were asked for", name, asked)
				}
				u.Close()
			}
		}
		closeEarly(t, c.kind, data)
	}
}

// An error of the source is not the end of the file, though the source ends after it.
func TestSourceFails(t *testing.T) {
	for _, s := range samples(t, 4_000) {
		failure := errors.New("the connection broke")
		in := io.MultiReader(bytes.NewReader(s.data), iotest.ErrReader(failure))
		once := readerFunc(func(p []byte) (int, error) {
			n, err := in.Read(p)
			if errors.Is(err, failure) {
				in = bytes.NewReader(nil)
			}
			return n, err
		})
		if _, err := read(s.kind, once, unpack.Limit{Intact: true}); !errors.Is(err, failure) {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// closeEarly tests that Close ends the decoding of blocks that were not read.
func closeEarly(t *testing.T, kind content.Kind, data []byte) {
	t.Helper()
	u, err := unpack.NewReader(kind, bytes.NewReader(data), unpack.Limit{Intact: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	u.Close()
	if _, err := u.Read(make([]byte, 1)); err == nil {
		t.Error("a read after Close")
	}
}

// Grow is called before a later frame or block with a larger window is read.
func TestGrow(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	skippable := append([]byte{0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, "skip!"...)
	frames := slices.Concat(tool(t, data[:100], "zstd", "-c", "--no-check"), skippable, tool(t, data, "zstd", "-c", "--long=27", "--no-content-size"))
	const ahead = 16 * (384<<10 + 98_048*24) // the blocks of zstd that are decoded ahead
	no := errors.New("no")
	for _, tt := range []struct {
		name        string
		intact      bool
		kind        content.Kind
		stream      []byte
		first, then int64
	}{
		{"zstd", false, content.Zstd, frames, 100, 128 << 20},
		{"intact zstd", true, content.Zstd, frames, 100, 128<<20 + ahead},
		{"xz", false, content.XZ, slices.Concat(tool(t, data[:100], "xz", "-c", "--lzma2=dict=64KiB"), tool(t, data, "xz", "-c", "-T1", "-9")), 64 << 10, 64 << 20},
	} {
		for _, refuse := range []error{nil, no} {
			var asked []int64
			u, err := unpack.NewReader(tt.kind, bytes.NewReader(tt.stream), unpack.Limit{Intact: tt.intact, Grow: func(n int64) error {
				asked = append(asked, n)
				return refuse
			}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(u)
			if !errors.Is(err, refuse) || u.Window() > tt.first && tt.kind == content.XZ || !slices.Equal(asked, []int64{tt.then}) {
				t.Errorf("%s, %v: window %d, asked for %d; %v", tt.name, refuse, u.Window(), asked, err)
			}
			if want := len(data) + 100; refuse == nil && len(got) != want || refuse != nil && len(got) != 100 {
				t.Errorf("%s, %v: %d bytes, want %d", tt.name, refuse, len(got), want)
			}
			u.Close()
		}
	}
}
