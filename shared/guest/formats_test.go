package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// written has the images that qemu-img writes in formats other than qcow2.
var written = []struct {
	name    string
	format  Format
	driver  string // of qemu-img
	options string
}{
	{"sparse VMDK", VMDK, "vmdk", "subformat=monolithicSparse"},
	{"stream-optimized VMDK", VMDK, "vmdk", "subformat=streamOptimized"},
	{"VMDK with zeros in its tables", VMDK, "vmdk", "zeroed_grain=on"},
	{"dynamic VHD", VHD, "vpc", "subformat=dynamic"},
	{"dynamic VHD of the footer's size", VHD, "vpc", "subformat=dynamic,force_size=on"},
	{"fixed VHD", VHD, "vpc", "subformat=fixed"},
	{"fixed VHD of the footer's size", VHD, "vpc", "subformat=fixed,force_size=on"},
	{"VHDX", VHDX, "vhdx", "subformat=dynamic"},
	{"fixed VHDX", VHDX, "vhdx", "subformat=fixed,block_size=1M"},
	{"VDI", VDI, "vdi", "static=off"},
	{"static VDI", VDI, "vdi", "static=on"},
}

// Every variant that QEMU writes reads as in QEMU.
func TestFormats(t *testing.T) {
	t.Parallel()
	for _, c := range written {
		for _, size := range []int64{5 << 20, 9<<20 + 512} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				to, back := filepath.Join(dir, "x"), filepath.Join(dir, "y")
				run(t, "qemu-img", "convert", "-f", "raw", "-O", c.driver, "-o", c.options, disk(t, size), to)
				run(t, "qemu-img", "convert", "-f", c.driver, "-O", "raw", to, back)
				image := load(t, to)
				if got := formatOf(image); got != c.format {
					t.Fatalf("it is a %s", got)
				}
				checkSame(t, image, load(t, back))
			})
		}
	}
}

// image returns an image of 2 MiB of one of the written formats.
func image(t testing.TB, driver, options string) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "x")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", driver, "-o", options, disk(t, 2<<20), to)
	return load(t, to)
}

// A machine has written to the disk, so blocks are out of order.
func TestWrittenOutOfOrder(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"vmdk", "vpc", "vhdx", "vdi"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			to, back := filepath.Join(dir, "x"), filepath.Join(dir, "y")
			run(t, "qemu-img", "create", "-q", "-f", driver, to, "64M")
			run(t, "qemu-io", "-f", driver, "-c", "write -P 7 50M 70k", "-c", "write -P 8 3M 1000k", "-c", "write -P 9 51M 3M", "-c", "write -P 10 0 512", to)
			run(t, "qemu-img", "convert", "-f", driver, "-O", "raw", to, back)
			checkSame(t, load(t, to), load(t, back))
		})
	}
}

// atEnd returns a stream-optimized VMDK whose directory is said by a footer, as VMware
// writes it.
func atEnd(b []byte) []byte {
	footer := bytes.Clone(b[:sector])
	b = append(bytes.Clone(b), make([]byte, (sector-len(b)%sector)%sector)...)
	binary.LittleEndian.PutUint64(b[56:], vmdkAtEnd)
	marker := make([]byte, sector)
	binary.LittleEndian.PutUint64(marker, 1)
	binary.LittleEndian.PutUint32(marker[12:], vmdkFooterMarker)
	return append(append(append(b, marker...), footer...), make([]byte, sector)...)
}

func TestVMDKFooter(t *testing.T) {
	t.Parallel()
	b := atEnd(image(t, "vmdk", "subformat=streamOptimized"))
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	checkSame(t, b, raw(t, path))
	refused(t, b[:len(b)-sector], ErrTruncated, "footer")
}

// The checksum of a grain finds any byte that was changed in it.
func TestVMDKDamagedGrain(t *testing.T) {
	t.Parallel()
	b := image(t, "vmdk", "subformat=streamOptimized")
	i := open(t, b)
	e, err := i.extent(0, 1<<16)
	if err != nil || e.kind != compressed {
		t.Fatalf("%+v, %v", e, err)
	}
	for _, at := range []int64{12, 20, 500, 30_000} {
		bad := bytes.Clone(b)
		bad[e.host+at] ^= 0x10
		if _, err := readAll(open(t, bad), 1<<20); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d of a grain: %v", at, err)
		}
	}
	// The last grain may extend beyond the end of the disk.
	short := image(t, "vmdk", "subformat=streamOptimized")
	binary.LittleEndian.PutUint64(short[12:], binary.LittleEndian.Uint64(short[12:])-1)
	if _, err := readAll(open(t, short), 1<<20); err != nil {
		t.Errorf("a disk that ends within its last grain: %v", err)
	}
}

func TestReadChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, need int }{{10, 10}, {10, 20}, {20, 20}, {21, 20}} {
		err := readChecked(bytes.NewReader(make([]byte, c.in)), make([]byte, 20), c.need)
		if good := c.in >= c.need && c.in <= 20; good != (err == nil) {
			t.Errorf("%d bytes of at least %d and at most 20: %v", c.in, c.need, err)
		}
	}
}

// An image that needs another file is refused with advice.
func TestOtherFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", at("base.vmdk"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-b", at("base.vmdk"), "-F", "vmdk", at("child.vmdk"))
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", at("split.vmdk"), "1M")
	refused(t, load(t, at("child.vmdk")), ErrUnsupported, "differs from its parent")
	refused(t, load(t, at("split-s001.vmdk")), ErrUnsupported, "one of the files of a disk")

	vhd := image(t, "vpc", "subformat=dynamic")
	binary.BigEndian.PutUint32(vhd[60:], vhdTypeDifferencing)
	binary.BigEndian.PutUint32(vhd[64:], vhdSum(vhd[:vhdFooter], 64))
	refused(t, vhd, ErrUnsupported, "differs from its parent")

	vdi := image(t, "vdi", "static=off")
	vdi[0x4c] = 4
	refused(t, vdi, ErrUnsupported, "differs from its parent")
}

func TestHostileFormats(t *testing.T) {
	t.Parallel()
	good := map[string][]byte{}
	for _, c := range written {
		good[c.driver+c.options] = image(t, c.driver, c.options)
	}
	le := func(at int, n uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[at:], n); return b }
	}
	le32 := func(at int, n uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], n); return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	// A number in the footer or in the header of a dynamic VHD, with the checksum.
	foot := func(at int, n uint32) func([]byte) []byte {
		return func(b []byte) []byte {
			for _, f := range [][]byte{b[:vhdFooter], b[len(b)-vhdFooter:]} {
				binary.BigEndian.PutUint32(f[at:], n)
				binary.BigEndian.PutUint32(f[64:], vhdSum(f, 64))
			}
			return b
		}
	}
	header := func(at int, n uint32) func([]byte) []byte {
		return func(b []byte) []byte {
			h := b[vhdFooter : vhdFooter+vhdHeader]
			binary.BigEndian.PutUint32(h[at:], n)
			binary.BigEndian.PutUint32(h[36:], vhdSum(h, 36))
			return b
		}
	}
	for _, c := range []struct {
		name, driver, options string
		change                func([]byte) []byte
		kind                  error
		words                 string
	}{
		{"a VMDK of version 4", "vmdk", "subformat=monolithicSparse", le32(4, 4), ErrUnsupported, "version 4"},
		{"a VMDK of many bytes", "vmdk", "subformat=monolithicSparse", le(12, 1<<60), ErrCorrupt, "sectors"},
		{"a VMDK with a vast directory", "vmdk", "subformat=monolithicSparse", le(12, 1<<50), ErrCorrupt, "32 MiB"},
		{"a VMDK with a directory behind the end", "vmdk", "subformat=monolithicSparse", le(56, 1<<30), ErrTruncated, "directory"},
		{"a VMDK with vast grains", "vmdk", "subformat=monolithicSparse", le(20, 1<<40), ErrCorrupt, "grains"},
		{"a VMDK with askew grains", "vmdk", "subformat=monolithicSparse", le(20, 100), ErrCorrupt, "grains"},
		{"a VMDK without tables", "vmdk", "subformat=monolithicSparse", le32(44, 0), ErrCorrupt, "entries"},
		{"a VMDK with vast tables", "vmdk", "subformat=monolithicSparse", le32(44, 1<<30), ErrCorrupt, "entries"},
		{"a VMDK of another compression", "vmdk", "subformat=streamOptimized", func(b []byte) []byte { b[77] = 9; return b }, ErrUnsupported, "number 9"},
		{"a VMDK without a descriptor", "vmdk", "subformat=monolithicSparse", func(b []byte) []byte { clear(b[512:1024]); return b }, ErrUnsupported, "one of the files"},
		{"a VMDK whose descriptor is far", "vmdk", "subformat=monolithicSparse", le(28, 1<<40), ErrTruncated, "descriptor"},
		{"a VMDK cut in its header", "vmdk", "subformat=monolithicSparse", cut(70), ErrTruncated, "header"},
		{"a VHD with a wrong checksum", "vpc", "subformat=dynamic", func(b []byte) []byte { b[50]++; b[len(b)-vhdFooter+50]++; return b }, ErrCorrupt, "checksum of its footer"},
		{"a VHD of no type", "vpc", "subformat=dynamic", foot(60, 9), ErrCorrupt, "type"},
		{"a VHD whose header is far", "vpc", "subformat=dynamic", foot(16, 1), ErrTruncated, "header"},
		{"a VHD with a damaged header", "vpc", "subformat=dynamic", func(b []byte) []byte { b[vhdFooter+20]++; return b }, ErrCorrupt, "checksum of its header"},
		{"a VHD with askew blocks", "vpc", "subformat=dynamic", header(32, 3000), ErrCorrupt, "blocks"},
		{"a VHD with few blocks", "vpc", "subformat=dynamic", header(28, 1), ErrCorrupt, "blocks"},
		{"a VHD whose table is far", "vpc", "subformat=dynamic", header(16, 1), ErrTruncated, "table"},
		{"a fixed VHD, cut", "vpc", "subformat=fixed", func(b []byte) []byte { return b[1<<20:] }, ErrTruncated, "disk"},
		{"a VHDX with damaged headers", "vhdx", "subformat=dynamic", func(b []byte) []byte { b[64<<10+9]++; b[128<<10+9]++; return b }, ErrCorrupt, "headers"},
		{"a VHDX with damaged regions", "vhdx", "subformat=dynamic", func(b []byte) []byte { b[192<<10+40]++; b[256<<10+40]++; return b }, ErrCorrupt, "regions"},
		{"a VHDX, cut", "vhdx", "subformat=dynamic", cut(300 << 10), ErrTruncated, "metadata"},
		{"a VDI of version 2", "vdi", "static=off", le32(0x44, 2<<16), ErrUnsupported, "version 2.0"},
		{"a VDI of many bytes", "vdi", "static=off", le(0x170, 1<<63), ErrCorrupt, "bytes"},
		{"a VDI with few blocks", "vdi", "static=off", le32(0x180, 1), ErrCorrupt, "blocks"},
		{"a VDI with askew blocks", "vdi", "static=off", le32(0x178, 12345), ErrCorrupt, "blocks"},
		{"a VDI without blocks", "vdi", "static=off", le32(0x178, 0), ErrCorrupt, "blocks"},
		{"a VDI whose table is far", "vdi", "static=off", le32(0x154, 1<<31), ErrTruncated, "table"},
		{"a VDI with a parent", "vdi", "static=off", le32(0x1b8, 1), ErrUnsupported, "parent"},
		{"a VDI with more in its blocks", "vdi", "static=off", le32(0x17c, 512), ErrUnsupported, "other data"},
		{"a VDI cut in its header", "vdi", "static=off", cut(0x180), ErrTruncated, "header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, c.change(bytes.Clone(good[c.driver+c.options])), c.kind, c.words)
		})
	}
}

// The metadata and the log of a VHDX have no checksum of their own.
func TestHostileVHDX(t *testing.T) {
	t.Parallel()
	good := image(t, "vhdx", "subformat=dynamic")
	item := func(id string) int {
		at := bytes.Index(good, []byte(id))
		table := bytes.Index(good, []byte("metadata"))
		return table + int(binary.LittleEndian.Uint32(good[at+16:]))
	}
	for _, c := range []struct {
		name   string
		change func(b []byte)
		kind   error
		words  string
	}{
		{"a parent", func(b []byte) { b[item(vhdxParameters)+4] |= 2 }, ErrUnsupported, "parent"},
		{"no blocks", func(b []byte) { clear(b[item(vhdxParameters):][:4]) }, ErrCorrupt, "blocks"},
		{"a vast disk", func(b []byte) { b[item(vhdxDiskSize)+7] = 1 }, ErrCorrupt, "disk"},
		{"sectors of 1", func(b []byte) { b[item(vhdxSectorSize)], b[item(vhdxSectorSize)+1] = 1, 0 }, ErrCorrupt, "sectors"},
		{"items elsewhere", func(b []byte) { b[bytes.Index(good, []byte(vhdxDiskSize))+19] = 0x7f }, ErrTruncated, "metadata"},
		{"no table", func(b []byte) { b[bytes.Index(good, []byte("metadata"))] = 0 }, ErrCorrupt, "metadata"},
	} {
		b := bytes.Clone(good)
		c.change(b)
		refused(t, b, c.kind, c.words)
	}
}

// A truncated file never reads as zeros, and damage anywhere never gives an error that is
// not of this package.
func TestDamagedFormats(t *testing.T) {
	t.Parallel()
	for _, c := range written {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			good := image(t, c.driver, c.options)
			want, err := readAll(open(t, good), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for n := range 12 {
				b := good[:len(good)*n/12]
				i, err := Open(c.format, bytes.NewReader(b), int64(len(b)))
				var got []byte
				if err == nil {
					got, err = readAll(i, 100_000)
				}
				if _, ok := errors.AsType[*Error](err); !ok && !bytes.Equal(got, want) || !bytes.Equal(got, want[:len(got)]) {
					t.Errorf("cut at %d of %d: %d bytes, %v", len(b), len(good), len(got), err)
				}
			}
			for at := 0; at < len(good); at += 1 + at/9 {
				good[at] ^= 0x41
				fuzz(t, c.format, good)
				good[at] ^= 0x41
			}
		})
	}
}

func FuzzFormats(f *testing.F) {
	for _, c := range written {
		b := image(f, c.driver, c.options)
		f.Add(string(c.format), b[:min(len(b), 400<<10)])
	}
	f.Fuzz(func(t *testing.T, format string, b []byte) { fuzz(t, Format(strings.ToLower(format)), b) })
}
