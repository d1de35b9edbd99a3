package disk_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/disk"
	"imageroot/shared/unpack"
	"imageroot/test/need"
)

const reads = 1000

// A lab makes images with the tools that people use.
type lab struct {
	t   testing.TB
	dir string
}

func newLab(t testing.TB) *lab {
	need.Programs(t, "sfdisk", "mkfs.ext4", "mkfs.vfat", "mcopy", "mksquashfs", "genisoimage", "mkfs.xfs", "mkfs.btrfs")
	return &lab{t, t.TempDir()}
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) run(stdin, name string, args ...string) {
	l.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = l.dir, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (l *lab) write(name string, data []byte) {
	l.t.Helper()
	path := l.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) read(path string) []byte {
	l.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

func (l *lab) link(target, name string) {
	l.t.Helper()
	if err := os.Symlink(target, l.path(name)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) empty(name string, size int64) {
	l.t.Helper()
	l.write(name, nil)
	if err := os.Truncate(l.path(name), size); err != nil {
		l.t.Fatal(err)
	}
}

const (
	mib      = 1 << 20
	extBytes = 12 * mib
)

const debian = `PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
VERSION_CODENAME=trixie
ID=debian
`

const (
	mediumInfo = "Debian GNU/Linux 13.2.0 \"Trixie\" - Official amd64 NETINST with firmware 20261115-10:38\n"
	piIssue    = "Raspberry Pi reference 2026-10-01\nGenerated using pi-gen\n"
)

// elf returns the head of a program.
func elf(wide byte, order byte, machine uint16, flags uint32) []byte {
	b := make([]byte, 9000)
	copy(b, "\x7fELF")
	b[4], b[5], b[6] = wide, order, 1
	if order == 1 {
		binary.LittleEndian.PutUint16(b[18:], machine)
		binary.LittleEndian.PutUint32(b[36:], flags)
	} else {
		binary.BigEndian.PutUint16(b[18:], machine)
	}
	return b
}

// efi returns the head of an EFI program.
func efi(machine uint16) []byte {
	b := make([]byte, 5000)
	copy(b, "MZ")
	b[60] = 0x80
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], machine)
	return b
}

// root makes the root directory of a system as Debian lays it out, with enough files for
// directories of several blocks.
func (l *lab) root(name, osRelease string, program []byte, more ...string) {
	l.t.Helper()
	l.write(name+"/usr/lib/os-release", []byte(osRelease))
	l.write(name+"/usr/bin/env", program)
	long := strings.Repeat("x", 200)
	for n := range 50 {
		l.write(fmt.Sprintf("%s/usr/bin/program-%s-%d", name, long, n), []byte("#!/bin/sh\n"))
		l.write(fmt.Sprintf("%s/etc/%s-%d/conf", name, long, n), []byte("x=y\n"))
	}
	for _, path := range more {
		l.write(name+"/"+path, []byte("x"))
	}
	l.link("../usr/lib/os-release", name+"/etc/os-release")
	l.link("usr/bin", name+"/bin")
	l.link("usr/lib", name+"/lib")
}

// fat makes a FAT file system with files.
func (l *lab) fat(name string, size int64, files map[string][]byte, options ...string) {
	l.t.Helper()
	l.empty(name, size)
	l.run("", "mkfs.vfat", append(options, "-n", "BOOTFS", name)...)
	folders := map[string]bool{}
	for path, data := range files {
		parts := strings.Split(path, "/")
		for n := range len(parts) - 1 {
			if folder := strings.Join(parts[:n+1], "/"); !folders[folder] {
				folders[folder] = true
				l.run("", "mmd", "-i", name, "::"+folder)
			}
		}
		l.write("copied", data)
		l.run("", "mcopy", "-i", name, "copied", "::"+path)
	}
}

// disk makes a disk with a partition table by a script of sfdisk, and copies file systems to
// offsets.
func (l *lab) disk(name string, size int64, script string, at map[int64]string, options ...string) []byte {
	l.t.Helper()
	l.empty(name, size)
	l.run(script, "sfdisk", append(options, "-q", name)...)
	b := l.read(l.path(name))
	for off, part := range at {
		copy(b[off:], l.read(l.path(part)))
	}
	return b
}

func (l *lab) ext(name, kind string, size int64, root string, options ...string) {
	l.t.Helper()
	l.empty(name, size)
	l.run("", "mkfs.ext4", append(options, "-q", "-F", "-t", kind, "-L", "rootfs", "-d", root, name)...)
}

// text returns what was found as JSON, without what is tested elsewhere.
func text(in disk.Inside) string {
	in.Inspector, in.Partitions = 0, nil
	b, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	return strings.Replace(string(b), `"inspector":0,`, "", 1)
}

// parts returns the partitions in short.
func parts(in disk.Inside) (s []string) {
	for _, p := range in.Partitions {
		s = append(s, fmt.Sprintf("%d %s %s %d+%d %s %s", p.Number, p.Type, p.Label, p.StartBytes, p.SizeBytes, p.Filesystem, p.FSLabel))
	}
	return s
}

// An image is one with what is to be found in it.
type image struct {
	name  string
	bytes []byte
	want  string
	parts []string
	// damage is true if testDamaged tests it: what is told of it has checksums, or is in
	// tables that point to each other.
	damage bool
}

const (
	debianFound = `"system":"debian","version":"13","codename":"trixie","title":"Debian GNU/Linux 13 (trixie)","architecture":"amd64"`
	gptRoot     = `0FC63DAF-8483-4772-8E79-3D69D8477DE4`
)

// images returns images of all kinds.
func (l *lab) images() []image {
	damaged := []string{"Debian for EFI", "Raspberry Pi", "board", "hybrid ISO", "squashfs with gzip"}
	var all []image
	add := func(name string, b []byte, want string, parts ...string) {
		all = append(all, image{name, b, want, parts, slices.Contains(damaged, name)})
	}
	amd64 := elf(2, 1, 62, 0)
	l.root("debian", debian, amd64, "usr/bin/cloud-init", "etc/cloud/build.info")
	l.write("debian/etc/cloud/build.info", []byte("build_name: server\nserial: 20261102.1\n"))
	l.fat("esp", 8*mib, map[string][]byte{"EFI/BOOT/BOOTX64.EFI": efi(0x8664), "EFI/debian/grubx64.efi": efi(0x8664)}, "-F", "16", "-s", "1")
	l.ext("ext4", "ext4", extBytes, "debian")
	table := "label: gpt\nstart=2048,size=8M,type=U,name=ESP\nstart=10M,size=12M,type=L,name=system\n"
	debianParts := []string{
		"1 C12A7328-F81F-11D2-BA4B-00A0C93EC93B ESP 1048576+8388608 vfat BOOTFS",
		"2 " + gptRoot + " system 10485760+12582912 ext4 rootfs",
	}
	debianDisk := l.disk("x", 24*mib, table, map[int64]string{mib: "esp", 10 * mib: "ext4"})
	add("Debian for EFI", debianDisk, `{"table":"gpt","sector_bytes":512,"boot":[{"kind":"efi","arch":"amd64"}],`+debianFound+`,"cloud_init":true,"release_date":"2026-11-02"}`, debianParts...)
	add("GPT whose first header is damaged", func() []byte {
		b := bytes.Clone(debianDisk)
		b[512+30] ^= 1
		return b
	}(), all[0].want, debianParts...)
	for _, k := range []struct{ name, kind string }{{"ext2", "ext2"}, {"ext3", "ext3"}} {
		l.ext("x", k.kind, extBytes, "debian")
		add(k.name, l.read(l.path("x")), `{"table":"none",`+debianFound+`,"cloud_init":true,"release_date":"2026-11-02"}`, "0   0+12582912 "+k.kind+" rootfs")
	}
	for name, options := range map[string][]string{
		"ext4 without checksums":      {"-O", "^metadata_csum,^64bit"},
		"ext4 with blocks of 1 KiB":   {"-b", "1024"},
		"ext4 with a seed of its own": {"-O", "metadata_csum_seed"},
		"ext4 with small inodes":      {"-I", "128"},
		"ext4 with block groups":      {"-g", "1024", "-G", "2", "-b", "4096"},
	} {
		l.ext("x", "ext4", extBytes, "debian", options...)
		add(name, l.read(l.path("x")), `{"table":"none",`+debianFound+`,"cloud_init":true,"release_date":"2026-11-02"}`, "0   0+12582912 ext4 rootfs")
	}

	// A Raspberry Pi: its firmware, and a root file system for ARMv6.
	raspbian := strings.NewReplacer("debian", "raspbian", "Debian", "Raspbian").Replace(debian)
	l.root("pi", raspbian, elf(1, 1, 40, 0x5000400))
	l.write("pi/etc/rpi-issue", []byte(piIssue))
	l.ext("x2", "ext4", extBytes, "pi")
	l.fat("boot", 36*mib, map[string][]byte{"config.txt": []byte("x"), "start4.elf": []byte("x"), "kernel7.img": []byte("x"), "overlays/README": []byte("x")}, "-F", "32", "-s", "1")
	l.ext("x", "ext4", extBytes, "pi")
	add("Raspberry Pi", l.disk("y", 52*mib, "label: dos\n2048,36M,c\n38M,12M,83\n", map[int64]string{mib: "boot", 38 * mib: "x"}),
		`{"table":"mbr","sector_bytes":512,"boot":[{"kind":"raspberrypi"}],"system":"raspbian","version":"13","codename":"trixie","title":"Raspbian GNU/Linux 13 (trixie)","architecture":"armhf","cloud_init":false,"release_date":"2026-10-01"}`,
		"1 0c  1048576+37748736 vfat BOOTFS", "2 83  39845888+12582912 ext4 rootfs")

	// A board with U-Boot in the disk, and one that reads extlinux.conf.
	l.root("board", debian, elf(2, 1, 183, 0), "boot/extlinux/extlinux.conf")
	l.ext("x", "ext4", extBytes, "board")
	board := `{"table":"gpt","sector_bytes":512,"boot":[{"kind":"uboot"}],"system":"debian","version":"13","codename":"trixie","title":"Debian GNU/Linux 13 (trixie)","architecture":"arm64","cloud_init":false}`
	add("board", l.disk("y", 30*mib, "label: gpt\n16M,12M,L\n", map[int64]string{16 * mib: "x"}), board, "1 "+gptRoot+"  16777216+12582912 ext4 rootfs")
	l.root("board2", debian, elf(2, 1, 183, 0))
	l.ext("x", "ext4", extBytes, "board2")
	b := l.disk("y", 30*mib, "label: gpt\n16M,12M,L\n", map[int64]string{16 * mib: "x"})
	copy(b[8*mib:], "\xd0\x0d\xfe\xed")
	copy(b[8*mib+100:], "FIT image with U-Boot")
	add("board without extlinux.conf", b, board, "1 "+gptRoot+"  16777216+12582912 ext4 rootfs")

	// Logical partitions, and FAT in all its sizes.
	l.fat("f12", 2*mib, map[string][]byte{"EFI/BOOT/bootia32.efi": efi(0x14c)}, "-F", "12")
	l.fat("f16", 20*mib, map[string][]byte{"efi/boot/BootAA64.efi": efi(0xaa64), "boot.scr": []byte("x")}, "-F", "16")
	add("logical partitions", l.disk("y", 30*mib, "label: dos\n2048,2M,ef\n4M,25M,5\n5M,20M,c\n", map[int64]string{mib: "f12", 5 * mib: "f16"}),
		`{"table":"mbr","sector_bytes":512,"boot":[{"kind":"efi","arch":"i386"},{"kind":"uboot"},{"kind":"efi","arch":"arm64"}],"architecture":"arm64"}`,
		"1 ef  1048576+2097152 vfat BOOTFS", "2 05  4194304+26214400  ", "5 0c  5242880+20971520 vfat BOOTFS")
	add("FAT without a table", l.read(l.path("f16")), `{"table":"none","boot":[{"kind":"uboot"},{"kind":"efi","arch":"arm64"}],"architecture":"arm64"}`, "0   0+20971520 vfat BOOTFS")

	// What is recognised and not read.
	for _, c := range []struct{ name, size, tool, label string }{{"xfs", "300M", "mkfs.xfs", "-L"}, {"btrfs", "120M", "mkfs.btrfs", "-L"}} {
		l.empty("x", 300*mib)
		l.run("", c.tool, "-q", c.label, "data", "x")
		add(c.name, bytes.Clone(l.read(l.path("x"))[:mib]), `{"table":"none","unknown":["the disk has `+c.name+`: its files are not read"]}`, "0   0+1048576 "+c.name+" data")
	}
	b = make([]byte, mib)
	copy(b, "LUKS\xba\xbe\x00\x02")
	add("LUKS", b, `{"table":"none","unknown":["the disk has crypto_LUKS: it is encrypted"]}`, "0   0+1048576 crypto_LUKS ")
	l.ext("x", "ext4", extBytes, "debian")
	b = l.read(l.path("x"))
	b[1024+96] |= 4
	add("ext4 that was not unmounted", func() []byte { b := bytes.Clone(b); l.sum(b[1024:]); return b }(), `{"table":"none","unknown":["the disk cannot be read: it was not unmounted, so its journal has to be replayed first"]}`, "0   0+12582912 ext4 rootfs")
	add("ext4 with a damaged superblock", b, `{"table":"none","unknown":["the disk cannot be read: it is damaged"]}`, "0   0+12582912 ext4 rootfs")
	add("two systems", l.disk("y", 30*mib, "label: gpt\n1M,12M,L\n14M,12M,L\n", map[int64]string{mib: "ext4", 14 * mib: "x2"}),
		`{"table":"gpt","sector_bytes":512,"unknown":["partition 1 has Debian GNU/Linux 13 (trixie) amd64, and partition 2 has Raspbian GNU/Linux 13 (trixie) armhf: which of them starts is not known"]}`,
		"1 "+gptRoot+"  1048576+12582912 ext4 rootfs", "2 "+gptRoot+"  14680064+12582912 ext4 rootfs")
	add("zeros", make([]byte, mib), `{"table":"none"}`, "0   0+1048576  ")
	add("nothing", nil, `{"unknown":["the first sector of the disk cannot be read: it is cut short"]}`)
	add("cut short", debianDisk[:6*mib], `{"table":"gpt","sector_bytes":512,"boot":[{"kind":"efi","arch":"amd64"}],"architecture":"amd64","unknown":["the disk of 6291456 bytes ends before partition 1 does","the disk of 6291456 bytes ends before partition 2 does"]}`, debianParts[0], "2 "+gptRoot+" system 10485760+12582912  ")

	// squashfs, as routers have it.
	for _, method := range []string{"gzip", "zstd", "xz", "lz4"} {
		l.run("", "mksquashfs", "debian", "squash-"+method, "-comp", method, "-quiet", "-no-progress", "-noappend")
		b := l.read(l.path("squash-" + method))
		want := `{"table":"none",` + debianFound + `,"cloud_init":true,"release_date":"2026-11-02"}`
		if method == "lz4" {
			want = `{"table":"none","unknown":["the disk cannot be read: it is compressed by method 5, which is not read"]}`
		}
		add("squashfs with "+method, b, want, fmt.Sprintf("0   0+%d squashfs ", len(b)))
	}

	// Media: by what they state, by the system that they start, and by their name.
	l.write("cd/.disk/info", []byte(mediumInfo))
	l.write("cd/bios.bin", make([]byte, 2048))
	l.fat("f12", 2*mib, map[string][]byte{"EFI/BOOT/bootx64.efi": efi(0x8664), "EFI/BOOT/bootia32.efi": efi(0x14c)})
	l.write("cd/efi.img", l.read(l.path("f12")))
	iso := func(volume string, options ...string) []byte {
		l.run("", "genisoimage", append(append([]string{"-quiet", "-V", volume, "-o", "x.iso"}, options...), "cd")...)
		return l.read(l.path("x.iso"))
	}
	netinst := `"boot":[{"kind":"eltorito"},{"kind":"efi","arch":"amd64"},{"kind":"efi","arch":"i386"}],"system":"debian","version":"13.2.0","codename":"trixie","title":"Debian GNU/Linux 13.2.0","architecture":"amd64","release_date":"2026-11-15"}`
	cd := []string{"-b", "bios.bin", "-no-emul-boot", "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot"}
	for name, form := range map[string]string{"ISO with Rock Ridge": "-R", "ISO with Joliet": "-J"} {
		b := iso("Debian 13.2.0 amd64 n", append([]string{form}, cd...)...)
		add(name, b, `{"table":"iso9660",`+netinst, fmt.Sprintf("0   0+%d iso9660 Debian 13.2.0 amd64 n", len(b)))
	}
	b = iso("Debian 13.2.0 amd64 n", append([]string{"-R"}, cd...)...)
	copy(b, "\xeb\x63")
	copy(b[446:], "\x80\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00\x00\x10\x00\x00")
	copy(b[510:], "\x55\xaa")
	add("hybrid ISO", b, `{"table":"iso9660",`+strings.Replace(netinst, `{"kind":"eltorito"}`, `{"kind":"bios"},{"kind":"eltorito"}`, 1), fmt.Sprintf("0   0+%d iso9660 Debian 13.2.0 amd64 n", len(b)))
	_ = os.RemoveAll(l.path("cd/.disk"))
	add("ISO of which nothing is known", iso("STUFF", "-R"), `{"table":"iso9660"}`, fmt.Sprintf("0   0+%d iso9660 STUFF", len(l.read(l.path("x.iso")))))
	add("ISO known by its name", iso("alpine-std 3.22.1 aarch64", "-R"), `{"table":"iso9660","system":"alpine","version":"3.22.1","title":"Alpine Linux 3.22.1","architecture":"arm64"}`, fmt.Sprintf("0   0+%d iso9660 alpine-std 3.22.1 aarch64", len(l.read(l.path("x.iso")))))
	l.write("cd/.treeinfo", []byte("[header]\ntype = productmd.treeinfo\n\n[general]\narch = x86_64\nfamily = Fedora\nname = Fedora 43\ntimestamp = 1761177600\nversion = 43\n"))
	add("ISO with .treeinfo", iso("Fedora-S-dvd-x86_64-43", "-R"), `{"table":"iso9660","system":"fedora","version":"43","title":"Fedora 43","architecture":"amd64","release_date":"2025-10-23"}`, fmt.Sprintf("0   0+%d iso9660 Fedora-S-dvd-x86_64-43", len(l.read(l.path("x.iso")))))
	l.write("cd/live/filesystem.squashfs", l.read(l.path("squash-zstd")))
	add("live ISO", iso("LIVE", "-R"), `{"table":"iso9660",`+debianFound+`,"cloud_init":true,"release_date":"2026-11-02"}`, fmt.Sprintf("0   0+%d iso9660 LIVE", len(l.read(l.path("x.iso")))))
	return all
}

// sum corrects the checksum of a superblock of ext4.
func (l *lab) sum(super []byte) {
	binary.LittleEndian.PutUint32(super[1020:], ^crc32.Checksum(super[:1020], crc32.MakeTable(crc32.Castagnoli)))
}

// xz unpacks the blocks of a squashfs.
func xz(packed []byte, limit int) ([]byte, error) {
	u, err := unpack.NewReader(content.XZ, bytes.NewReader(packed), unpack.Limit{})
	if err != nil {
		return nil, err
	}
	defer u.Close()
	return io.ReadAll(io.LimitReader(u, int64(limit)+1))
}

func TestImages(t *testing.T) {
	l := newLab(t)
	all := l.images()
	t.Run("Inspect", func(t *testing.T) {
		for _, c := range all {
			in, err := disk.Inspect(bytes.NewReader(c.bytes), int64(len(c.bytes)), reads, xz)
			if err != nil || text(in) != c.want {
				t.Errorf("%s: %v\n     %s\nwant %s", c.name, err, text(in), c.want)
			}
			if got, want := strings.Join(parts(in), "\n"), strings.Join(c.parts, "\n"); got != want {
				t.Errorf("%s: partitions\n%s\nwant\n%s", c.name, got, want)
			}
		}
	})
	// A disk that passes once has the same in it, but for the copy of the table at its end.
	t.Run("Stream", func(t *testing.T) {
		for _, c := range all {
			if strings.HasPrefix(c.name, "GPT") {
				continue
			}
			if in := streamed(c.bytes, mib); text(in) != c.want || strings.Join(parts(in), "\n") != strings.Join(c.parts, "\n") {
				t.Errorf("%s:\n     %s\nwant %s\n%s", c.name, text(in), c.want, strings.Join(parts(in), "\n"))
			}
		}
	})
	t.Run("Damaged", func(t *testing.T) {
		for _, c := range all {
			if c.damage {
				testDamaged(t, c)
			}
		}
	})
}

// damages is the number of times that each of five images is damaged.
const damages = 20

// testDamaged tests that of a disk that is cut or damaged nothing wrong is told. Bytes that
// have a text that is told stay: nothing shows that they are wrong.
func testDamaged(t *testing.T, c image) {
	truth, err := disk.Inspect(bytes.NewReader(c.bytes), int64(len(c.bytes)), reads, xz)
	if err != nil {
		t.Fatal(err)
	}
	var keep [][2]int
	for _, text := range []string{debian, strings.NewReplacer("debian", "raspbian", "Debian", "Raspbian").Replace(debian), mediumInfo, piIssue} {
		if at := bytes.Index(c.bytes, []byte(text)); at >= 0 {
			keep = append(keep, [2]int{at, at + len(text)})
		}
	}
	var used []int // blocks that are not zero
	for at := 0; at+512 <= len(c.bytes); at += 512 {
		if len(bytes.Trim(c.bytes[at:at+512], "\x00")) > 0 {
			used = append(used, at)
		}
	}
	told := 0
	for n := range damages {
		rng := rand.New(rand.NewPCG(15, uint64(n)))
		b := bytes.Clone(c.bytes)
		if n%4 == 0 {
			b = b[:rng.IntN(len(b))]
		} else {
			for range 1 << rng.IntN(9) {
				at := used[rng.IntN(len(used))] + rng.IntN(512)
				if !slices.ContainsFunc(keep, func(k [2]int) bool { return at >= k[0] && at < k[1] }) {
					b[at] ^= 1 << rng.IntN(8)
				}
			}
		}
		r := &counting{Reader: bytes.NewReader(b)}
		in, err := disk.Inspect(r, int64(len(b)), reads, xz)
		if err != nil {
			t.Errorf("%s, %d: %v", c.name, n, err)
		}
		if r.reads > reads {
			t.Errorf("%s, %d: %d reads", c.name, n, r.reads)
		}
		for how, in := range map[string]disk.Inside{"": in, " in passing": streamed(b, mib)} {
			if wrong := contradicts(in, truth); wrong != "" {
				t.Errorf("%s, %d%s: wrong %s\n     %s\nwant %s", c.name, n, how, wrong, text(in), text(truth))
			}
			if in.System != "" {
				told++
			}
		}
	}
	if told == 0 {
		t.Errorf("%s: nothing was told of any of them", c.name)
	}
}

// contradicts returns what was told that is not true.
func contradicts(in, truth disk.Inside) string {
	for _, c := range [][3]string{
		{"system", in.System, truth.System},
		{"version", in.Version, truth.Version},
		{"codename", in.Codename, truth.Codename},
		{"title", in.Title, truth.Title},
		{"architecture", string(in.Architecture), string(truth.Architecture)},
		{"date", in.ReleaseDate, truth.ReleaseDate},
		{"list", in.SBOM, truth.SBOM},
	} {
		if c[1] != "" && c[1] != c[2] {
			return c[0]
		}
	}
	if in.CloudInit != nil && (truth.CloudInit == nil || *in.CloudInit != *truth.CloudInit) {
		return "cloud_init"
	}
	for _, b := range in.Boot {
		if !slices.Contains(truth.Boot, b) {
			return "boot"
		}
	}
	return ""
}

// A counting reader counts reads.
type counting struct {
	*bytes.Reader
	reads int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.Reader.ReadAt(p, off)
}

// streamed inspects a disk that passes in pieces.
func streamed(b []byte, piece int) disk.Inside {
	s := disk.NewStream(xz)
	defer s.Stop()
	for p := range slices.Chunk(b, piece) {
		_, _ = s.Write(p) // never fails
	}
	return s.End(true)
}
