package boot_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/shared/boot"
	"imageroot/test/need"
)

// TestFind tests disks and file systems as the tools make them.
func TestFind(t *testing.T) {
	need.Programs(t, "sfdisk", "mkfs.vfat", "mkfs.ext4", "genisoimage")
	dir := t.TempDir()
	run := func(stdin, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "cd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bios.bin", "efi.img"} {
		if err := os.WriteFile(filepath.Join(dir, "cd", name), make([]byte, 2048), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	code := func(b []byte) []byte {
		copy(b, "\xeb\xfe")
		copy(b[510:], "\x55\xaa")
		return b
	}
	iso := []string{"-quiet", "-o", "x", "-eltorito-boot", "bios.bin", "-no-emul-boot"}
	efi := []string{"-eltorito-alt-boot", "-efi-boot", "efi.img", "-no-emul-boot"}
	for _, c := range []struct {
		name string
		make func()
		edit func([]byte) []byte
		want boot.Ways
	}{
		{"MBR without code", func() { run("label: dos\n,,83,*\n", "sfdisk", "-q", "x") }, nil, boot.Ways{}},
		{"MBR with code", func() { run("label: dos\n,,83,*\n", "sfdisk", "-q", "x") }, code, boot.Ways{BIOS: true}},
		{"MBR with an EFI system partition", func() { run("label: dos\n,4M,83\n,,ef\n", "sfdisk", "-q", "x") }, nil, boot.Ways{UEFI: true}},
		{"code without partitions", func() {}, code, boot.Ways{BIOS: true}},
		{"code without a signature", func() {}, func(b []byte) []byte { b[0] = 0xeb; return b }, boot.Ways{}},
		{"GPT without an EFI system partition", func() { run("label: gpt\n,4M,L\n", "sfdisk", "-q", "x") }, nil, boot.Ways{}},
		{"GPT with an EFI system partition", func() { run("label: gpt\n,4M,L\n,,U\n", "sfdisk", "-q", "x") }, nil, boot.Ways{UEFI: true}},
		{"GPT for both", func() { run("label: gpt\n,1M,21686148-6449-6E6F-744E-656564454649\n,,U\n", "sfdisk", "-q", "x") }, code, boot.Ways{true, true}},
		{"FAT of mkfs.vfat", func() { run("", "mkfs.vfat", "x") }, nil, boot.Ways{}},
		{"ext4", func() { run("", "mkfs.ext4", "-q", "-F", "x") }, nil, boot.Ways{}},
		{"ISO for BIOS", func() { run("", "genisoimage", append(iso, "cd")...) }, nil, boot.Ways{BIOS: true}},
		{"ISO for both", func() { run("", "genisoimage", append(append(iso, efi...), "cd")...) }, nil, boot.Ways{true, true}},
		{"ISO for none", func() { run("", "genisoimage", "-quiet", "-o", "x", "cd") }, nil, boot.Ways{}},
		{"hybrid ISO", func() { run("", "genisoimage", "-quiet", "-o", "x", "cd") }, code, boot.Ways{BIOS: true}},
		{"cut short", func() { run("label: gpt\n,,U\n", "sfdisk", "-q", "x") }, func(b []byte) []byte { return b[:1024] }, boot.Ways{}},
		{"empty", func() {}, func([]byte) []byte { return nil }, boot.Ways{}},
	} {
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, make([]byte, 8<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		c.make()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.edit != nil {
			b = c.edit(b)
		}
		if got, err := boot.Find(bytes.NewReader(b)); got != c.want || err != nil {
			t.Errorf("%s: %+v %v, want %+v", c.name, got, err, c.want)
		}
	}
}

// failing fails from an offset on.
type failing struct {
	io.ReaderAt
	from int64
}

var errBroken = errors.New("broken")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errBroken
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestErrors tests that a disk that cannot be read is not taken for one that does not
// boot.
func TestErrors(t *testing.T) {
	b := make([]byte, 1<<20)
	copy(b[512:], "EFI PART")
	binary.LittleEndian.PutUint64(b[512+72:], 2)
	binary.LittleEndian.PutUint32(b[512+80:], 128)
	binary.LittleEndian.PutUint32(b[512+84:], 128)
	for _, from := range []int64{0, 512, 1024} {
		if got, err := boot.Find(failing{bytes.NewReader(b), from}); got.Any() || !errors.Is(err, errBroken) {
			t.Errorf("from %d on: %+v %v", from, got, err)
		}
	}
}

func FuzzFind(f *testing.F) {
	disk := make([]byte, 40<<10)
	copy(disk[510:], "\x55\xaaEFI PART")
	binary.LittleEndian.PutUint64(disk[512+72:], 2)
	binary.LittleEndian.PutUint32(disk[512+80:], 4)
	binary.LittleEndian.PutUint32(disk[512+84:], 128)
	f.Add(bytes.Clone(disk))
	copy(disk[17*2048:], "\x00CD001\x01EL TORITO SPECIFICATION")
	disk[17*2048+0x47] = 18
	copy(disk[18*2048:], "\x01")
	copy(disk[18*2048+30:], "\x55\xaa\x88")
	f.Add(disk)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &counting{Reader: bytes.NewReader(b)}
		if _, err := boot.Find(r); err != nil {
			t.Error(err)
		}
		if r.n > 1<<17 {
			t.Errorf("%d bytes were read", r.n)
		}
	})
}

type counting struct {
	*bytes.Reader
	n int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.n += len(p)
	return c.Reader.ReadAt(p, off)
}
