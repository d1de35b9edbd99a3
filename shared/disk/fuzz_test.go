package disk_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/disk"
)

// fuzz inspects images that the fuzzer damages, at any offset and in passing: an inspection
// neither panics nor reads without end. What the fuzzer makes are the bytes to replace, since
// whole images are too large for it: three bytes say which one of those in granules that are
// not zero, and one has its value.
func fuzz(f *testing.F, images func(l *lab) [][]byte) {
	const granule = 64
	seeds := images(newLab(f))
	used := make([][]int, len(seeds))
	for n, b := range seeds {
		for at := 0; at+granule <= len(b); at += granule {
			if len(bytes.Trim(b[at:at+granule], "\x00")) > 0 {
				used[n] = append(used[n], at)
			}
		}
		f.Add(byte(n), []byte{0, 0, 0, b[used[n][0]]})
	}
	f.Fuzz(func(t *testing.T, image byte, changes []byte) {
		n := int(image) % len(seeds)
		b := bytes.Clone(seeds[n])
		for ; len(changes) >= 4; changes = changes[4:] {
			at := (int(changes[0])<<16 | int(changes[1])<<8 | int(changes[2])) % (len(used[n]) * granule)
			b[used[n][at/granule]+at%granule] = changes[3]
		}
		r := &counting{Reader: bytes.NewReader(b)}
		at, err := disk.Inspect(r, int64(len(b)), reads, xz)
		if err != nil || r.reads > reads {
			t.Fatalf("%d reads: %v", r.reads, err)
		}
		for _, in := range []disk.Inside{at, streamed(b, 100_000)} {
			text, err := json.Marshal(in)
			if err != nil || len(text) > 64<<10 {
				t.Fatalf("%d bytes: %v", len(text), err)
			}
			if slices.ContainsFunc(in.Unknown, func(s string) bool { return strings.Contains(s, "failed") }) {
				t.Fatalf("it panicked: %s", text)
			}
		}
	})
}

// small makes the root directory of a system without what makes it large.
func (l *lab) small() {
	l.write("small/usr/lib/os-release", []byte(debian))
	l.write("small/usr/bin/env", elf(2, 1, 62, 0)[:100])
	l.link("../usr/lib/os-release", "small/x")
	l.write("small/etc/os-release", []byte(debian))
}

func FuzzExt(f *testing.F) {
	fuzz(f, func(l *lab) (seeds [][]byte) {
		l.small()
		for _, kind := range []string{"ext2", "ext4"} {
			l.ext("x", kind, 256<<10, "small", "-O", "^has_journal,^metadata_csum,^resize_inode", "-N", "32")
			seeds = append(seeds, l.read(l.path("x")))
		}
		return seeds
	})
}

func FuzzFAT(f *testing.F) {
	fuzz(f, func(l *lab) (seeds [][]byte) {
		files := map[string][]byte{"EFI/BOOT/BOOTX64.EFI": efi(0x8664)[:1024], "config.txt": nil, "A long name.txt": []byte("x")}
		for _, bits := range []string{"12", "16", "32"} {
			size := map[string]int64{"12": 64 << 10, "16": 2200 << 10, "32": 34 * mib}[bits]
			l.fat("x", size, files, "-F", bits, "-s", "1")
			seeds = append(seeds, l.read(l.path("x"))[:min(size, 640<<10)])
		}
		return seeds
	})
}

func FuzzISO(f *testing.F) {
	fuzz(f, func(l *lab) (seeds [][]byte) {
		l.write("cd/.disk/info", []byte(mediumInfo))
		l.write("cd/bios.bin", make([]byte, 2048))
		for _, form := range []string{"-R", "-J"} {
			l.run("", "genisoimage", "-quiet", form, "-no-pad", "-b", "bios.bin", "-no-emul-boot", "-o", "x", "cd")
			seeds = append(seeds, l.read(l.path("x")))
		}
		return seeds
	})
}

func FuzzSquashfs(f *testing.F) {
	fuzz(f, func(l *lab) (seeds [][]byte) {
		l.small()
		for _, method := range []string{"gzip", "xz", "zstd"} {
			l.run("", "mksquashfs", "small", "x", "-comp", method, "-quiet", "-no-progress", "-noappend")
			seeds = append(seeds, l.read(l.path("x")))
			l.run("", "mksquashfs", "small", "x", "-noI", "-noD", "-noF", "-noX", "-quiet", "-no-progress", "-noappend")
			seeds = append(seeds, l.read(l.path("x")))
		}
		return seeds
	})
}

func FuzzTable(f *testing.F) {
	fuzz(f, func(l *lab) [][]byte {
		return [][]byte{
			l.disk("x", 2*mib, "label: gpt\n1M,64K,U\n", nil)[:1100<<10],
			l.disk("x", 3*mib, "label: dos\n1M,64K,c\n1200K,,5\n1300K,64K,83\n1500K,64K,83\n", nil)[:1600<<10],
		}
	})
}

// FuzzTexts writes what the fuzzer makes over the texts of a disk.
func FuzzTexts(f *testing.F) {
	f.Add([]byte(debian))
	f.Add([]byte(piIssue))
	f.Add([]byte("build_name: server\nserial: 20261102\n"))
	l := newLab(f)
	l.small()
	for _, name := range []string{"etc/os-release", "etc/rpi-issue", "etc/cloud/build.info"} {
		l.write("small/"+name, bytes.Repeat([]byte("?"), 4096))
	}
	l.ext("x", "ext4", 512<<10, "small", "-O", "^has_journal,^resize_inode", "-N", "64")
	image := l.read(l.path("x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := bytes.ReplaceAll(image, bytes.Repeat([]byte("?"), 1024), append(text, make([]byte, 1024)...)[:1024])
		in, err := disk.Inspect(bytes.NewReader(b), int64(len(b)), reads, xz)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{in.System, in.Version, in.Codename, in.Title, in.ReleaseDate} {
			if len(s) > 256 || strings.ContainsAny(s, "\x00\n\r\x1b") {
				t.Errorf("%q", s)
			}
		}
	})
}
