package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imageroot/test/need"
)

// run runs a command that must succeed.
func run(t testing.TB, args ...string) {
	t.Helper()
	need.Programs(t, args[0])
	cmd := exec.Command(args[0], args[1:]...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// disk writes a raw disk with incompressible bytes, compressible ones, written zeros
// and holes, which end in the middle of clusters.
func disk(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1})
	for at := int64(0); at < size; at += 700_001 {
		b := make([]byte, min(300_000, size-at))
		switch at % 4 {
		case 0:
			_, _ = random.Read(b) // never fails
		case 1:
			for n := range b {
				b[n] = byte(n / 1000)
			}
		case 2:
			_, _ = random.Read(b[:len(b)/2])
		}
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// raw returns the disk that qemu-img reads from an image.
func raw(t testing.TB, path string) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "converted.raw")
	run(t, "qemu-img", "convert", "-O", "raw", path, to)
	return load(t, to)
}

func open(t testing.TB, b []byte) *Image {
	t.Helper()
	i, err := Open(formatOf(b), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// formatOf returns the format of an image that may be damaged.
func formatOf(b []byte) Format {
	if f, _, ok := Begins(b); ok {
		return f
	}
	if beginsVHD(b[max(0, len(b)-vhdFooter):]) {
		return VHD
	}
	return QCOW2
}

// readAll reads the disk in pieces of n bytes.
func readAll(i *Image, n int) ([]byte, error) {
	var all []byte
	buf := make([]byte, n)
	for {
		n, err := i.ReadAt(buf, int64(len(all)))
		all = append(all, buf[:n]...)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// checkSame checks that the image reads as want, whole, in odd pieces and concurrently,
// and that Zeros counts only zeros.
func checkSame(t *testing.T, image, want []byte) {
	t.Helper()
	i := open(t, image)
	if i.Size() != int64(len(want)) {
		t.Fatalf("the disk has %d bytes, want %d", i.Size(), len(want))
	}
	if err := i.Check(); err != nil {
		t.Errorf("Check: %v", err)
	}
	for _, n := range []int{3 << 20, 65_537} {
		got, err := readAll(i, n)
		if err != nil {
			t.Fatalf("in pieces of %d: %v", n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("in pieces of %d: differs from byte %d on", n, differ(got, want))
		}
	}
	for off := int64(0); off < i.Size(); {
		n, err := i.Zeros(off)
		if err != nil {
			t.Fatal(err)
		}
		if off+n > i.Size() || !bytes.Equal(want[off:off+n], make([]byte, n)) {
			t.Fatalf("%d bytes from %d on are said to be zero", n, off)
		}
		off += n + 4096
	}
	for off := int64(0); off < i.Size(); {
		n, zeros, err := i.Extent(off, min(off+1<<20, i.Size()))
		if err != nil || n <= 0 || n > min(1<<20, i.Size()-off) {
			t.Fatalf("an extent of %d bytes from %d on, %v", n, off, err)
		}
		if known, _ := i.Zeros(off); zeros != (known > 0) || zeros && n > known {
			t.Fatalf("an extent of %d bytes from %d on, zero: %v; %d are known to be zero", n, off, zeros, known)
		}
		off += n
	}
	var wg sync.WaitGroup
	random := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		seed := random.Uint64()
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, 3))
			for range 50 {
				off := random.IntN(len(want))
				p := make([]byte, random.IntN(200_000))
				n, err := i.ReadAt(p, int64(off))
				if n < len(p) && !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], want[off:off+n]) {
					t.Errorf("ReadAt(%d bytes, %d) = %d, %v, or wrong bytes", len(p), off, n, err)
				}
			}
		})
	}
	wg.Wait()
}

func differ(a, b []byte) int {
	for n := range min(len(a), len(b)) {
		if a[n] != b[n] {
			return n
		}
	}
	return min(len(a), len(b))
}

// Every variant that QEMU writes reads as in QEMU.
func TestConverted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, options string
		args          string
		size          int64
	}{
		{"compat 0.10", "compat=0.10", "", 5 << 20},
		{"compat 1.1", "compat=1.1", "", 5 << 20},
		{"zlib", "compat=1.1", "-c", 5 << 20},
		{"zlib of version 2", "compat=0.10", "-c", 5 << 20},
		{"zstd", "compression_type=zstd", "-c", 5 << 20},
		{"lazy refcounts", "lazy_refcounts=on,refcount_bits=1", "", 5 << 20},
		{"half a cluster", "compat=1.1", "", 5<<20 + 512},
		{"half a compressed cluster", "compat=1.1", "-c", 5<<20 + 512},
		{"one sector", "compat=1.1", "", 512},
		{"preallocated metadata", "preallocation=metadata", "", 5 << 20},
		{"preallocated by falloc", "preallocation=falloc", "", 5 << 20},
		{"preallocated in full", "preallocation=full", "", 5 << 20},
		{"clusters of 512", "cluster_size=512", "", 5 << 20},
		{"clusters of 512, zlib", "cluster_size=512", "-c", 5 << 20},
		{"clusters of 512, zstd", "cluster_size=512,compression_type=zstd", "-c", 5 << 20},
		{"clusters of 4 KiB, zlib", "cluster_size=4k", "-c", 5 << 20},
		{"clusters of 2 MiB", "cluster_size=2M", "", 5<<20 + 512},
		{"clusters of 2 MiB, zlib", "cluster_size=2M", "-c", 5<<20 + 512},
		{"clusters of 2 MiB, zstd", "cluster_size=2M,compression_type=zstd", "-c", 5<<20 + 512},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			from, to := disk(t, c.size), filepath.Join(t.TempDir(), "disk.qcow2")
			args := append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", c.options}, strings.Fields(c.args)...)
			run(t, append(args, from, to)...)
			want := load(t, from)
			if !bytes.Equal(raw(t, to), want) {
				t.Fatal("qemu-img does not read what it wrote")
			}
			checkSame(t, load(t, to), want)
		})
	}
}

// A machine has written to the disk: clusters out of order, some rewritten, zeroed,
// discarded or formerly compressed, with snapshots in between.
func TestWritten(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "preallocation=metadata"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "20M")
			random := rand.New(rand.NewPCG(1, 2))
			for round := range 3 {
				args := []string{"qemu-io"}
				for range 40 {
					off, n := random.IntN(20<<20-200_000)&^511, (random.IntN(200_000)&^511)+512
					switch random.IntN(4) {
					case 0, 1:
						args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+random.IntN(200), off, n))
					case 2:
						args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, n))
					case 3:
						args = append(args, "-c", fmt.Sprintf("discard %d %d", off, n))
					}
				}
				run(t, append(args, path)...)
				run(t, "qemu-img", "snapshot", "-c", fmt.Sprintf("s%d", round), path)
			}
			image := load(t, path)
			if h := open(t, image).Header(); h.Snapshots != 3 {
				t.Errorf("%d snapshots, want 3", h.Snapshots)
			}
			checkSame(t, image, raw(t, path))
		})
	}
}

// The cost of reading a disk of 1 TiB depends only on the data written to it.
func TestSparse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1T")
	const at = 700 << 30
	run(t, "qemu-io", "-c", fmt.Sprintf("write -P 7 %d 1M", at), path)
	i := open(t, load(t, path))
	if i.Size() != 1<<40 {
		t.Fatalf("the disk has %d bytes", i.Size())
	}
	if err := i.Check(); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int64]int64{0: at, 5: at - 5, at: 0, at + 1<<20: 1<<40 - at - 1<<20, 1 << 40: 0} {
		if n, err := i.Zeros(off); n != want || err != nil {
			t.Errorf("Zeros(%d) = %d, %v, want %d", off, n, err, want)
		}
	}
	run(t, "qemu-io", "-c", fmt.Sprintf("write -z %d 1M", at-1<<20), path)
	i = open(t, load(t, path))
	if n, hole, err := i.Hole(at-1<<20, 1<<40); n != 2<<20 || hole || err != nil {
		t.Errorf("zeros that were written are a hole: %d, %v, %v", n, hole, err)
	}
	if n, hole, err := i.Hole(at+1<<20, at+2<<20); n != 1<<20 || !hole || err != nil {
		t.Errorf("what was never written is no hole: %d, %v, %v", n, hole, err)
	}
	p := make([]byte, 4096)
	if _, err := i.ReadAt(p, at-2048); err != nil {
		t.Fatal(err)
	}
	if want := append(make([]byte, 2048), bytes.Repeat([]byte{7}, 2048)...); !bytes.Equal(p, want) {
		t.Error("wrong bytes where the written ones begin")
	}
	if n, err := i.ReadAt(p, 1<<40-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// QEMU counts a disk in sectors.
func TestOddSize(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	run(t, "qemu-img", "convert", "-O", "qcow2", disk(t, 1<<20), path)
	image := load(t, path)
	binary.BigEndian.PutUint64(image[24:], 1<<20-255)
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	checkSame(t, image, raw(t, path))
}

// An image that needs more than its file is refused with advice.
func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "raw", at("base.raw"), "1M")
	for _, c := range []struct {
		name  string
		args  []string
		words string
	}{
		{"backing", []string{"-b", at("base.raw"), "-F", "raw"}, "base.raw"},
		{"aes", []string{"--object", "secret,id=s,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=s"}, "encrypted"},
		{"external", []string{"-o", "data_file=" + at("external.raw")}, "another file"},
		{"extended", []string{"-o", "extended_l2=on"}, "extended L2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"qemu-img", "create", "-q", "-f", "qcow2"}, c.args...)
			run(t, append(args, at(c.name), "1M")...)
			b := load(t, at(c.name))
			h, err := ReadHeader(QCOW2, bytes.NewReader(b), int64(len(b)))
			if err != nil || h.Size != 1<<20 {
				t.Errorf("ReadHeader = %+v, %v", h, err)
			}
			refused(t, b, ErrUnsupported, c.words)
		})
	}
}

// refused checks the kind and the text of the error of Open.
func refused(t *testing.T, b []byte, kind error, words string) {
	t.Helper()
	_, err := Open(formatOf(b), bytes.NewReader(b), int64(len(b)))
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("Open: %v, want %v with %q", err, kind, words)
	}
}

// small returns an image of 1 MiB with one written cluster.
func small(t testing.TB, options string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "small.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M")
	run(t, "qemu-io", "-c", "write -P 7 64k 64k", path)
	return load(t, path)
}

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	good := small(t, "compat=1.1")
	l1 := binary.BigEndian.Uint64(good[40:])
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		kind   error
		words  string
	}{
		{"nothing", func([]byte) []byte { return nil }, ErrFormat, "not a qcow2"},
		{"the magic alone", func(b []byte) []byte { return b[:4] }, ErrTruncated, "header"},
		{"another magic", func(b []byte) []byte { b[3] = 'x'; return b }, ErrFormat, "not a qcow2"},
		{"version 1", func(b []byte) []byte { b[7] = 1; return b }, ErrUnsupported, "version 1"},
		{"version 4", func(b []byte) []byte { b[7] = 4; return b }, ErrUnsupported, "version 4"},
		{"half a header", func(b []byte) []byte { return b[:80] }, ErrTruncated, "header"},
		{"tiny clusters", func(b []byte) []byte { b[23] = 8; return b }, ErrCorrupt, "2^8"},
		{"huge clusters", func(b []byte) []byte { b[23] = 22; return b }, ErrCorrupt, "2^22"},
		{"clusters beyond numbers", func(b []byte) []byte { b[20] = 0xff; return b }, ErrCorrupt, "2^"},
		{"a huge disk", func(b []byte) []byte { b[24] = 0x7f; return b }, ErrCorrupt, "entries"},
		{"a disk beyond numbers", func(b []byte) []byte { copy(b[24:], bytes.Repeat([]byte{0xff}, 8)); return b }, ErrCorrupt, "entries"},
		{"a huge L1 table", func(b []byte) []byte { b[36] = 0xff; return b }, ErrCorrupt, "32 MiB"},
		{"an L1 table askew", func(b []byte) []byte { b[47] = 8; return b }, ErrCorrupt, "L1 table"},
		{"an L1 table behind the end", func(b []byte) []byte { b[44] = 0x40; return b }, ErrTruncated, "L1 table"},
		{"an L1 table beyond numbers", func(b []byte) []byte { b[40] = 0xff; return b }, ErrCorrupt, "L1 table"},
		// QEMU writes these only if it can measure processor time.
		{"encryption by LUKS", func(b []byte) []byte { b[35] = 2; return b }, ErrUnsupported, "LUKS"},
		{"another encryption", func(b []byte) []byte { b[35] = 3; return b }, ErrCorrupt, "encryption"},
		{"another compression", func(b []byte) []byte { b[79] |= 8; b[104] = 2; return b }, ErrUnsupported, "compressed"},
		{"compression without a word", func(b []byte) []byte { b[79] |= 8; return b }, ErrCorrupt, "contradicts"},
		{"compression by surprise", func(b []byte) []byte { b[104] = 1; return b }, ErrCorrupt, "contradicts"},
		{"a feature of tomorrow", func(b []byte) []byte { b[79] |= 32; return b }, ErrUnsupported, "0x20"},
		{"a short header", func(b []byte) []byte { b[103] = 72; return b }, ErrCorrupt, "header"},
		{"a vast header", func(b []byte) []byte { b[101] = 2; return b }, ErrCorrupt, "header"},
		{"a backing file far away", func(b []byte) []byte { b[8], b[19] = 1, 5; return b }, ErrCorrupt, "backing"},
		{"a backing file without end", func(b []byte) []byte { b[14], b[16] = 2, 0xff; return b }, ErrCorrupt, "backing"},
		{"an L2 table behind the end", func(b []byte) []byte { b[l1+3] = 1; return b }, ErrTruncated, "L2 table 0"},
		{"an L2 table askew", func(b []byte) []byte { b[l1+6] |= 2; return b }, ErrCorrupt, "L2 table 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			refused(t, c.change(bytes.Clone(good)), c.kind, c.words)
		})
	}
	// Dirty and corrupt images can be read.
	for name, bit := range map[string]byte{"dirty": 1, "corrupt": 2} {
		b := bytes.Clone(good)
		b[79] |= bit
		if h := open(t, b).Header(); h.Corrupt != (bit == 2) {
			t.Errorf("%s: %+v", name, h)
		}
		want, _ := readAll(open(t, good), 1<<20)
		checkSame(t, b, want)
	}
}

// A file of some KiB that maps exabytes through one table, referenced many times, is
// refused before all references are read.
func TestTablesInTables(t *testing.T) {
	t.Parallel()
	b := small(t, "cluster_size=512")
	l1 := binary.BigEndian.Uint64(b[40:])
	entry := b[l1+16 : l1+24] // of the only table
	const n = 4 << 20         // the maximum number of entries
	b = append(b, make([]byte, 512-len(b)%512)...)
	binary.BigEndian.PutUint64(b[40:], uint64(len(b)))
	binary.BigEndian.PutUint32(b[36:], n)
	binary.BigEndian.PutUint64(b[24:], n*512*64)
	refused(t, append(b, bytes.Repeat(entry, n)...), ErrCorrupt, "more L2 tables")
}

func TestHostileEntries(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		options string
		entry   uint64
		kind    error
		words   string
	}{
		{"behind the end", "compat=1.1", 1 << 40, ErrTruncated, "byte 65536 of the disk"},
		{"askew", "compat=1.1", 0x50200, ErrCorrupt, "none begins"},
		{"compressed, behind the end", "compat=1.1", 1<<62 | 1<<40, ErrTruncated, "byte 65536 of the disk"},
		{"compressed, of nothing", "compat=1.1", 1<<62 | 8, ErrCorrupt, "does not expand"},
		{"compressed, beyond numbers", "cluster_size=512", 1<<62 | 1<<60, ErrCorrupt, "would be at"},
		{"zero in version 2", "compat=0.10", 1, ErrCorrupt, "version 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := small(t, c.options)
			i := open(t, b)
			size := uint64(i.Header().Block)
			l1 := binary.BigEndian.Uint64(b[40:]) + 65536/size/(size/8)*8
			l2 := binary.BigEndian.Uint64(b[l1:])&offsetMask + 65536/size%(size/8)*8
			binary.BigEndian.PutUint64(b[l2:], c.entry)
			got, err := readAll(open(t, b), 1000)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want %v with %q", err, c.kind, c.words)
			}
			if len(got) != 65536 {
				t.Errorf("%d bytes before it, want 65536", len(got))
			}
			if err := open(t, b).Check(); !strings.HasPrefix(c.name, "compressed, of") && !errors.Is(err, c.kind) {
				t.Errorf("Check: %v, want %v", err, c.kind)
			}
		})
	}
}

// A truncated file reads up to its end and then fails. Missing data does not read as
// zeros.
func TestTruncated(t *testing.T) {
	t.Parallel()
	for _, options := range [][]string{nil, {"-c"}, {"-c", "-o", "compression_type=zstd"}, {"-o", "cluster_size=2M"}} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			t.Parallel()
			from, to := disk(t, 5<<20), filepath.Join(t.TempDir(), "disk.qcow2")
			args := append([]string{"qemu-img", "convert", "-O", "qcow2"}, options...)
			run(t, append(args, from, to)...)
			image, want := load(t, to), load(t, from)
			random := rand.New(rand.NewPCG(1, 2))
			for range 15 {
				cut := image[:random.IntN(len(image))]
				i, err := Open(QCOW2, bytes.NewReader(cut), int64(len(cut)))
				var got []byte
				if err == nil {
					check := i.Check()
					got, err = readAll(i, 100_000)
					if (check == nil) != (err == nil) && options == nil {
						t.Errorf("Check of %d of %d bytes: %v, reading: %v", len(cut), len(image), check, err)
					}
				}
				if err == nil && bytes.Equal(got, want) {
					continue // the cut removed only bytes behind the end of the disk
				}
				if !errors.Is(err, ErrTruncated) && (len(cut) >= 4 || !errors.Is(err, ErrFormat)) {
					t.Errorf("%d of %d bytes: %d read, then %v", len(cut), len(image), len(got), err)
				}
				if !bytes.HasPrefix(want, got) {
					t.Errorf("%d of %d bytes: wrong bytes from %d on", len(cut), len(image), differ(got, want))
				}
			}
		})
	}
}

// Damage in a compressed cluster gives an error or wrong bytes of this cluster, since
// the format has no checksum, but never a panic.
func TestDamagedClusters(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"compression_type=zlib", "compression_type=zstd"} {
		from, to := disk(t, 5<<20), filepath.Join(t.TempDir(), "disk.qcow2")
		run(t, "qemu-img", "convert", "-O", "qcow2", "-c", "-o", options, from, to)
		image := load(t, to)
		random := rand.New(rand.NewPCG(1, 2))
		found := 0
		for range 15 {
			b := bytes.Clone(image)
			for range 20 {
				b[random.IntN(len(b))] ^= byte(1 + random.IntN(255))
			}
			i, err := Open(QCOW2, bytes.NewReader(b), int64(len(b)))
			if err == nil {
				_, err = readAll(i, 1<<20)
			}
			if err == nil {
				continue
			}
			found++
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("%s: %v", options, err)
			}
		}
		if found == 0 {
			t.Errorf("%s: no damage was found", options)
		}
	}
}

// failing is a file whose reads fail after a number of bytes.
type failing struct {
	io.ReaderAt
	after int64
}

var errDisk = errors.New("the disk is on fire")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.after {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(p, off)
}

// An error of the file is not reported as an error of the image.
func TestFileFails(t *testing.T) {
	t.Parallel()
	b := small(t, "compat=1.1")
	for after := range int64(len(b)) / 8192 {
		i, err := Open(QCOW2, failing{bytes.NewReader(b), after * 8192}, int64(len(b)))
		if err == nil {
			_, err = readAll(i, 4096)
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("after %d bytes: %v", after*8192, err)
		}
	}
	// A file that is shorter than size gives an error of the file.
	i, err := Open(QCOW2, bytes.NewReader(b[:len(b)-100]), int64(len(b)))
	if err == nil {
		_, err = readAll(i, 4096)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrank: %v", err)
	}
}

func FuzzQCOW2(f *testing.F) {
	for _, options := range []string{"compat=0.10,cluster_size=512", "cluster_size=512", "cluster_size=512,compression_type=zstd", "cluster_size=1k"} {
		dir := f.TempDir()
		from, to := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
		b := bytes.Repeat([]byte("seed"), 5000)
		if err := os.WriteFile(from, b, 0o600); err != nil {
			f.Fatal(err)
		}
		for _, c := range []string{"-q", "-c"} {
			run(f, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, c, from, to)
			f.Add(load(f, to))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) { fuzz(t, QCOW2, b) })
}

// fuzz reads parts of an image. Whatever it is, errors are of this package, and zeros are
// zeros.
func fuzz(t *testing.T, format Format, b []byte) {
	i, err := Open(format, bytes.NewReader(b), int64(len(b)))
	if err == nil {
		err = i.Check()
		p := make([]byte, 100_000)
		for _, off := range []int64{0, 70_000, i.Size() - 512} {
			if off < 0 {
				continue
			}
			n, e := i.ReadAt(p, off)
			if n < len(p) && e == nil || n > 0 && off+int64(n) > i.Size() {
				t.Fatalf("ReadAt(%d) = %d, %v of a disk of %d bytes", off, n, e, i.Size())
			}
			zeros, e := i.Zeros(off)
			if e == nil && !bytes.Equal(p[:min(int64(n), zeros)], make([]byte, min(int64(n), zeros))) {
				t.Fatalf("%d bytes from %d on are not zero", zeros, off)
			}
		}
	}
	if _, ok := errors.AsType[*Error](err); err != nil && !ok {
		t.Fatalf("%v is none of this package's errors", err)
	}
}
