package content_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/test/need"
)

var (
	scratch string
	made    = map[string]string{} // the directories below scratch, by script
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

// run adds the directories of root's tools to PATH and removes scratch in the end.
func run(m *testing.M) int {
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	var err error
	if scratch, err = os.MkdirTemp("", "content-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// shell returns the file x that a script writes. It runs each script once, in its
// own directory.
func shell(t testing.TB, script string) *io.SectionReader {
	t.Helper()
	need.Programs(t, "sh")
	dir, ok := made[script]
	if !ok {
		dir = filepath.Join(scratch, strconv.Itoa(len(made)))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		made[script] = dir
	}
	f, err := os.Open(filepath.Join(dir, "x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return io.NewSectionReader(f, 0, info.Size())
}

func sniff(t testing.TB, file *io.SectionReader) content.Content {
	t.Helper()
	c, err := content.Sniff(file, file.Size(), 100)
	if err != nil {
		t.Fatal(err)
	}
	d, err := content.Detect(file, file.Size())
	if err != nil || d.Kind != c.Kind || d.NoDisk() != c.NoDisk() {
		t.Errorf("Detect: %s, %v; Sniff: %s", d.Kind, err, c.Kind)
	}
	return c
}

// luks defines a command that makes an encrypted image of a given size. QEMU measures
// the speed of the machine for that, and sometimes fails because its clock is too
// coarse.
const luks = `luks() {
	for n in $(seq 50); do
		qemu-img create -q -f qcow2 --object secret,id=s,data=geheim -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 x $1 && return
	done
	return 1
}
luks`

// udf defines a command that begins a UDF volume of a given version.
const udf = `udf() {
	truncate -s 2M x
	for d in 16:BEA01 17:NSR0$1 18:TEA01; do
		printf "\0${d#*:}\1" | dd of=x bs=2048 seek=${d%:*} conv=notrunc status=none
	done
}
udf `

// words prints 5 MB of text in the scripts below.
const words = "seq 1000000 | head -c 5000000"

// A disk is an image and the content that should be detected.
type disk struct {
	name   string
	script string
	kind   content.Kind
	what   string
	size   int64 // virtual; 0: the size of the file; -1: unknown
}

// disks has images of every kind, made by the common tools.
var disks = []disk{
	{"qcow2", "qemu-img create -q -f qcow2 x 3G", content.QCOW2, "version 3", 3 << 30},
	{"qcow2 of version 2", "qemu-img create -q -f qcow2 -o compat=0.10 x 1T", content.QCOW2, "version 2", 1 << 40},
	{"iso", "mkdir d; echo hello >d/f; genisoimage -quiet -R -o x d", content.ISO9660, "ISO 9660", 0},
	{"isohybrid", `mkdir d; head -c 3000000 /dev/zero >d/f; genisoimage -quiet -o x d
		printf '\200\1\1\0\027\77\40\1\0\0\0\0\0\20\0\0' | dd of=x bs=1 seek=446 conv=notrunc status=none
		printf '\125\252' | dd of=x bs=1 seek=510 conv=notrunc status=none`, content.ISO9660, "ISO 9660", 0},
	{"udf", udf + "2", content.ISO9660, "UDF", 2 << 20},
	{"udf of version 3", udf + "3", content.ISO9660, "UDF", 2 << 20},
	{"mbr", "truncate -s 64M x; echo 'label: dos\n2048,20000,c\n,,83' | sfdisk -q x", content.MBR, "MBR", 64 << 20},
	{"mbr around ext4", "truncate -s 64M p x; mkfs.ext4 -q p; echo 'label: dos\n2048,,83' | sfdisk -q x; dd if=p of=x bs=1M seek=1 count=63 conv=notrunc status=none", content.MBR, "MBR", 64 << 20},
	{"gpt", "truncate -s 64M x; echo 'label: gpt\n,20M\n,,' | sfdisk -q x", content.GPT, "GUID", 64 << 20},
	{"ext2", "truncate -s 10M x; mke2fs -q -t ext2 x", content.Filesystem, "ext", 10 << 20},
	{"ext4, 64 bit", "truncate -s 10M x; mke2fs -q -t ext4 -O 64bit x", content.Filesystem, "ext", 10 << 20},
	{"xfs", "truncate -s 300M x; mkfs.xfs -q x", content.Filesystem, "xfs", 300 << 20},
	{"btrfs", "truncate -s 200M x; mkfs.btrfs -q x", content.Filesystem, "btrfs", 200 << 20},
	{"squashfs", "mkdir d; echo hello >d/f; mksquashfs d x -quiet -no-progress", content.Filesystem, "squashfs", 0},
	{"fat16", "truncate -s 20M x; mkfs.vfat -F 16 x", content.Filesystem, "FAT", 20 << 20},
	{"fat32", "truncate -s 80M x; mkfs.vfat -F 32 x", content.Filesystem, "FAT", 80 << 20},
	{"noise", "head -c 1000000 /dev/urandom | tr 'BQS\\037\\050\\375H' 0 >x", content.Unknown, "no format", 1000000},
	{"zeros", "truncate -s 3M x", content.Unknown, "no format", 3 << 20},
	{"gzip", words + " | gzip >x", content.Gzip, "gzip", -1},
	{"bzip2", words + " | bzip2 >x", content.Bzip2, "bzip2", -1},
	{"bzip2 of nothing", "bzip2 </dev/null >x", content.Bzip2, "bzip2", -1},
	{"xz", words + " | xz -0 >x", content.XZ, "xz", 5000000},
	{"xz in blocks", words + " | xz -0 --block-size=100000 >x", content.XZ, "xz", 5000000},
	{"xz, many streams", words + " | xz -0 >y; cat y y >x; head -c 400 /dev/zero >>x; xz </dev/null >>x; cat y >>x; printf '\\0\\0\\0\\0' >>x", content.XZ, "xz", 15000000},
	{"zstd of a file", words + " >y; zstd -q -1 y -o x", content.Zstd, "zstd", 5000000},
	{"zstd of a pipe", words + " | zstd -q -1 >x", content.Zstd, "zstd", -1},
	{"zstd, frames", words + " >y; zstd -q -1 --no-check y -o z; printf '\\123\\052\\115\\030\\5\\0\\0\\0skip!' >s; cat s z z s >x", content.Zstd, "zstd", 10000000},
	{"zstd of zeros", "truncate -s 100M y; zstd -q y -o x", content.Zstd, "zstd", 100 << 20},
	{"zstd, one frame does not say", words + " >y; zstd -q y -o x; zstd -q <y >>x", content.Zstd, "zstd", -1},
	{"web page", "printf '\\n <!DOCTYPE html><title>404</title>' >x", content.HTML, "web page", -1},
	{"error message", "printf '<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>' >x", content.Text, "text", -1},
	{"text", "echo Not found >x", content.Text, "text", -1},
	{"vmdk", "qemu-img create -q -f vmdk x 1G", content.VMDK, "VMDK", 1 << 30},
	{"stream-optimized vmdk", words + " >y; qemu-img convert -f raw -O vmdk -o subformat=streamOptimized y x", content.VMDK, "stream-optimized", 5000192},
	{"vmdk, its description", "qemu-img create -q -f vmdk -o subformat=monolithicFlat x 1M", content.Unknown, "without the image", -1},
	{"vhd", "qemu-img create -q -f vpc -o force_size=on x 10M", content.VHD, "dynamic VHD", 10 << 20},
	{"fixed vhd", mbr + "; mv x y; qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on y x", content.VHD, "fixed VHD", 64 << 20},
	{"qed", "qemu-img create -q -f qed x 10M", content.Unknown, "QED", -1},
	{"parallels", "qemu-img create -q -f parallels x 10M", content.Unknown, "Parallels", -1},
	{"lzma", words + " | xz --format=lzma -0 >x", content.Unknown, "LZMA", -1},
	{"lzma that says its size", words + " >y; xz --format=lzma -0 y; mv y.lzma x", content.Unknown, "LZMA", -1},
	{"zlib", words + " | gzip -n >z; (printf '\\170\\234'; tail -c +11 z | head -c -8) >x", content.Unknown, "zlib", -1},
	{"zip", words + " >f.img; zip -q x.zip f.img; mv x.zip x", content.Zip, "ZIP", 5000000},
	{"ZIP64", words + " >f.img; echo hello >README; zip -q -fz x.zip README f.img; mv x.zip x", content.Zip, "ZIP", 5000000},
	{"zip of nothing", "echo hello >f; zip -q x.zip f; zip -q -d x.zip f 2>/dev/null; test -e x.zip || printf 'PK\\5\\6' >x.zip; truncate -s 22 x.zip; mv x.zip x", content.Unknown, "ZIP", -1},
	{"cpio", "mkdir d; echo hello >d/f; (cd d; find . | busybox cpio -o -H newc 2>/dev/null) >x", content.Unknown, "cpio", -1},
	{"ar", "echo hello >f; ar rc x f", content.Unknown, "ar archive", -1},
	{"device tree", `printf '\320\015\376\355\0\0\0\110' >x`, content.Unknown, "FIT", -1},
	{"Rockchip firmware", "printf RKFW >x; truncate -s 1M x", content.Unknown, "Rockchip", -1},
	{"Rockchip update", "printf RKAF >x; truncate -s 1M x", content.Unknown, "Rockchip", -1},
	{"Allwinner", "printf IMAGEWTY >x; truncate -s 1M x", content.Unknown, "Allwinner", -1},
	{"Amlogic", `printf '\0\0\0\0\2\0\0\0\126\031\265\047' >x; truncate -s 1M x`, content.Unknown, "Amlogic", -1},
	{"UF2", `printf 'UF2\n\127\121\135\236' >x; truncate -s 512 x`, content.Unknown, "UF2", -1},
	{"UBI", `printf 'UBI#\1' >x; truncate -s 1M x`, content.Unknown, "UBI", -1},
	{"dmg", "truncate -s 1M x; printf koly >>x; truncate -s +508 x", content.Unknown, "DMG", -1},
	{"boot sector", `truncate -s 1440K x; printf '\125\252' | dd of=x bs=1 seek=510 conv=notrunc status=none`, content.MBR, "boot sector and no partitions", 1440 << 10},
	{"swap", "truncate -s 1M x; mkswap -q x", content.Filesystem, "swap", 1 << 20},
	{"vdi", "qemu-img create -q -f vdi x 1G", content.VDI, "VDI", 1 << 30},
	{"vhdx", "qemu-img create -q -f vhdx x 1G", content.VHDX, "VHDX", 1 << 30},
	{"qcow", "qemu-img create -q -f qcow x 1G", content.Unknown, "qcow image of version 1", -1},
	{"android sparse", "truncate -s 4096 x; printf '\\072\\377\\046\\355\\1\\0\\0\\0\\034\\0\\014\\0' | dd of=x conv=notrunc status=none", content.Unknown, "simg2img", -1},
	{"tar", "echo hello >f; tar cf x f", content.Unknown, "tar", -1},
	{"nothing", ">x", content.Unknown, "empty", -1},
}

func TestSniff(t *testing.T) {
	for _, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			file := shell(t, d.script)
			c := sniff(t, file)
			if c.Kind != d.kind || !strings.Contains(c.What, d.what) {
				t.Errorf("%s, %s; want %s, %s", c.Kind, c.What, d.kind, d.what)
			}
			want := d.size
			if want == 0 {
				want = file.Size()
			}
			switch {
			case c.VirtualSize == nil && want >= 0:
				t.Errorf("no virtual size, want %d", want)
			case c.VirtualSize != nil && *c.VirtualSize != want:
				t.Errorf("virtual size %d, want %d", *c.VirtualSize, want)
			}
			if bad := want < 0 && !c.Kind.Compressed(); bad != (len(c.Warnings) > 0) {
				t.Errorf("warnings: %q", c.Warnings)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct{ name, script, says string }{
		{"backing file", "qemu-img create -q -f raw base.img 1M; qemu-img create -q -f qcow2 -b base.img -F raw x", `"base.img"`},
		{"encrypted", luks + " 1M", "encrypted (LUKS)"},
		{"external data", "qemu-img create -q -f qcow2 -o data_file=d.raw x 1M", "external data file"},
		{"extended L2", "qemu-img create -q -f qcow2 -o extended_l2=on x 1M", "extended L2"},
		{"cut qcow2", words + " >y; qemu-img convert -O qcow2 y z; head -c 200000 z >x", "cut short"},
		{"cut qcow2 header", "qemu-img create -q -f qcow2 z 1M; head -c 50 z >x", "cut short"},
		{"cut xz", words + " | xz -0 | head -c 30000 >x", "cut short"},
		{"xz, second stream cut", words + " | xz -0 >y; head -c 30000 y >z; cat y z >x", "cut short"},
		{"xz, something behind", words + " | xz -0 >x; echo more >>x", "something was appended"},
		{"cut zstd", words + " >y; zstd -q y -o z; head -c 30000 z >x", "ends at byte 30000 "},
		{"cut iso", "mkdir d; head -c 1000000 /dev/urandom >d/f; genisoimage -quiet -o z d; head -c 500000 z >x", "ISO 9660 volume ends at byte 13"},
		{"cut gpt", gpt + "; truncate -s 20M x", "cut short: the last partition begins at byte 22020096, the image ends at byte 20971520; get it again"},
		{"cut gpt, where the last partition begins", gpt + "; truncate -s 21M x", "cut short: the last partition begins at byte 22020096"},
		{"cut table of gpt", gpt + "; truncate -s 9000 x", "GUID partition table ends at byte 17408"},
		{"cut mbr", mbr + "; truncate -s 3M x", "cut short: the last partition begins at byte 3145728, the image ends at byte 3145728; get it again"},
		{"cut ext4", "truncate -s 10M x; mke2fs -q -t ext4 x; truncate -s 9M x", "file system ends at byte 10485760"},
		{"fixed vhd that grew", "qemu-img create -q -f vpc -o subformat=fixed y 10M; (cat y; tail -c 512 y) >x", "its last 512 bytes are a footer"},
		{"cut vmdk", words + " >y; qemu-img convert -f raw -O vmdk y z; head -c 13000 z >x", "cut short"},
		{"vmdk with a parent", "qemu-img create -q -f vmdk y.vmdk 1M; qemu-img create -q -f vmdk -b y.vmdk -F vmdk x", "differs from its parent"},
		{"zip without an image", "echo hello >f; zip -q x.zip f; mv x.zip x", "no image in it"},
		{"zip of two images", "echo hello >a.img; echo hello >b.vmdk; zip -q x.zip a.img b.vmdk; mv x.zip x", "2 images"},
		{"cut zip", words + " >f.img; zip -q x.zip f.img; head -c 100000 x.zip >x", "no directory"},
		{"cut squashfs", "mkdir d; head -c 500000 /dev/urandom >d/f; mksquashfs d x -quiet -no-progress; truncate -s 300000 x", "file system ends"},
	} {
		got := sniff(t, shell(t, c.script))
		if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], c.says) {
			t.Errorf("%s: %q, want one that says %q", c.name, got.Warnings, c.says)
		}
		// The warning about a virtual image here is also the reason that its disk cannot
		// be read.
		if no := (&content.Record{Content: got}).NoDisk(); (got.Kind.Virtual() || got.Kind == content.Zip) && no != got.Warnings[0] {
			t.Errorf("%s: the disk is not available because %q, want %q", c.name, no, got.Warnings[0])
		}
	}
}

// What a compressed image decompresses to may be a virtual image.
func TestInside(t *testing.T) {
	vast := shell(t, "qemu-img create -q -f qcow2 x 3T")
	head := make([]byte, vast.Size())
	if _, err := vast.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	c := content.Content{Kind: content.XZ, What: "an xz file"}
	c.Inside([]byte("a plain disk"))
	if c.Inner != "" || c.Mismatch("a.img.xz", "") != "" {
		t.Errorf("a plain disk: %+v", c)
	}
	c.Inside(head)
	if c.Inner != content.QCOW2 || c.VirtualSize == nil || *c.VirtualSize != 3<<40 || c.Format() != "qcow2.xz" || c.NoDisk() != "" {
		t.Errorf("%+v", c)
	}
	if c.Mismatch("a.qcow2.xz", "") != "" || !strings.Contains(c.Mismatch("a.img.xz", ""), "a qcow2 image inside") {
		t.Errorf("%q, %q", c.Mismatch("a.qcow2.xz", ""), c.Mismatch("a.img.xz", ""))
	}
	short := content.Content{Kind: content.XZ, What: "an xz file"}
	if short.Inside(head[:10]); short.Inner != content.QCOW2 || short.VirtualSize != nil {
		t.Errorf("of ten bytes: %+v", short)
	}
}

// Disks of two partitions, the second of which begins at 21 or 3 MiB.
const (
	gpt = "truncate -s 64M x; echo 'label: gpt\n,20M\n,40M' | sfdisk -q x"
	mbr = "truncate -s 64M x; echo 'label: dos\n2048,4096\n6144,,83' | sfdisk -q x"
)

// Some publishers ship images whose last partition ends behind the image. They get a
// warning, but are not reported as cut short.
func TestBehind(t *testing.T) {
	const calm = " bytes beyond the image: some publishers ship images like that; else it was cut short"
	for _, c := range []struct{ name, script, says string }{
		{"mbr", mbr + "; truncate -s 60M x", "the last partition extends 4194304" + calm},
		{"mbr, one byte of the last partition", mbr + "; truncate -s 3145729 x", "the last partition extends 63963135" + calm},
		{"gpt", gpt + "; truncate -s 60M x", "the last partition extends 1048576" + calm},
		{"gpt without its backup", "truncate -s 64M x; echo 'label: gpt\n,20M' | sfdisk -q x; truncate -s 30M x", "the GUID partition table extends 35651584" + calm},
		{"gpt of sectors of 4096 bytes", `truncate -s 64M x; printf 'EFI PART' | dd of=x bs=1 seek=4096 conv=notrunc status=none
			printf '\377\377' | dd of=x bs=1 seek=4128 conv=notrunc status=none`, "the GUID partition table extends 201326592" + calm},
		// A protective partition may have any size.
		{"protective mbr", `truncate -s 1M x; printf '\0\0\2\0\356\377\377\377\1\0\0\0\377\377\377\377' | dd of=x bs=1 seek=446 conv=notrunc status=none
			printf '\125\252' | dd of=x bs=1 seek=510 conv=notrunc status=none`, ""},
	} {
		got := sniff(t, shell(t, c.script))
		if says := strings.Join(got.Warnings, "\n"); says != c.says || got.NoDisk() != "" || got.Kind != content.MBR && got.Kind != content.GPT {
			t.Errorf("%s: %s, %q, %q; want %q", c.name, got.Kind, says, got.NoDisk(), c.says)
		}
	}
}

func TestMismatch(t *testing.T) {
	// Each file, and the names that fit it.
	names := []string{"a.qcow2", "a.img", "A.RAW", "a.iso", "a.img.xz", "a.raw.gz", "a.iso.ZST", "a.img.bz2", "a.wic", "a.vmdk", "a.VHD", "a.zip", "a.img.zip"}
	for _, c := range []struct {
		script string
		good   []string
	}{
		{"qemu-img create -q -f qcow2 x 1M", []string{"a.qcow2"}},
		{"mkdir d; genisoimage -quiet -o x d", []string{"a.img", "A.RAW", "a.iso", "a.wic"}},
		{udf + "2", []string{"a.img", "A.RAW", "a.iso", "a.wic"}},
		{"truncate -s 64M x; echo 'label: gpt' | sfdisk -q x", []string{"a.img", "A.RAW", "a.wic"}},
		{"truncate -s 1M x", []string{"a.img", "A.RAW", "a.wic"}},
		{"xz </dev/null >x", []string{"a.img.xz"}},
		{"gzip </dev/null >x", []string{"a.raw.gz"}},
		{"zstd -q </dev/null >x", []string{"a.iso.ZST"}},
		{"bzip2 </dev/null >x", []string{"a.img.bz2"}},
		// These have a warning under any name.
		{"qemu-img create -q -f vmdk x 1G", []string{"a.vmdk"}},
		{"qemu-img create -q -f vpc -o subformat=fixed x 1M", []string{"a.VHD"}},
		{"qemu-img create -q -f qed x 1G", names},
		{"echo hello >a.img; zip -q x.zip a.img; mv x.zip x", []string{"a.zip", "a.img.zip"}},
		{"echo '<html>' >x", names},
	} {
		got := sniff(t, shell(t, c.script))
		for _, name := range names {
			if m := got.Mismatch(image.Name(name), "/raw/x"); (m == "") != slices.Contains(c.good, name) {
				t.Errorf("%s called %s: %q", got.What, name, m)
			}
		}
	}
	qcow := content.Content{Kind: content.QCOW2, What: "a qcow2 image"}
	if m := qcow.Mismatch("noble-server-cloudimg-amd64.img", ""); strings.Contains(m, "take it from") {
		t.Errorf("where no disk gets it: %s", m)
	}
	if m := qcow.Mismatch("noble-server-cloudimg-amd64.img", "/raw/noble-server-cloudimg-amd64.img"); !strings.Contains(m, "named .img, but it is a qcow2 image") || !strings.Contains(m, "take it from /raw/noble-server-cloudimg-amd64.img, or") {
		t.Error(m)
	}
}

// A name that a warning proposes is valid, and fits.
func TestAdvisedName(t *testing.T) {
	advice := regexp.MustCompile(`rename it to (\.\S+)$`)
	for _, c := range []struct {
		kind content.Kind
		name image.Name
		want string // want: the new suffix; empty: none fits
	}{
		{content.XZ, "a.img.gz", ".img.xz"},
		{content.Zstd, "a.iso.xz", ".iso.zst"},
		{content.Bzip2, "A.RAW.ZST", ".RAW.bz2"},
		{content.Gzip, "a.iso", ".iso.gz"},
		{content.Gzip, "a.qcow2", ""},
		{content.QCOW2, "a.img.xz", ".qcow2"},
		{content.MBR, "a.img.xz", ".img"},
		{content.ISO9660, "a.iso.xz", ".iso"},
		{content.GPT, "a.ISO.xz", ".img"},
		{content.MBR, "a.iso", ""},
	} {
		got := content.Content{Kind: c.kind, What: "something"}
		m := got.Mismatch(c.name, "/raw/x")
		if c.want == "" {
			if m == "" || strings.Contains(m, "rename") || got.Fitting(c.name) != "" {
				t.Errorf("%s called %s: %q, and %q fits", c.kind, c.name, m, got.Fitting(c.name))
			}
			continue
		}
		found := advice.FindStringSubmatch(m)
		if found == nil || found[1] != c.want {
			t.Errorf("%s called %s: %q, want %s advised", c.kind, c.name, m, c.want)
			continue
		}
		if fits := got.Fitting(c.name); !strings.HasSuffix(string(fits), found[1]) || got.Mismatch(fits, "") != "" {
			t.Errorf("%s called %s: %s fits", c.kind, c.name, fits)
		}
		if _, ok := image.FormatOf(image.Name("a" + found[1])); !ok || got.Mismatch(image.Name("a"+found[1]), "/raw/x") != "" {
			t.Errorf("%s called %s: %s is advised and does not fit", c.kind, c.name, found[1])
		}
	}
	if m := (content.Content{Kind: content.Gzip, What: "a gzip file"}).Mismatch("a.qcow2", "/raw/a.img"); !strings.HasSuffix(m, "decompress it") {
		t.Error(m)
	}
}

// limited fails the test if reads are more or larger than documented.
type limited struct {
	t    testing.TB
	r    io.ReaderAt
	left int
}

func (l *limited) ReadAt(p []byte, off int64) (int, error) {
	if l.left--; l.left < 0 || len(p) > 1<<20 {
		l.t.Errorf("a read of %d bytes, %d too many", len(p), -l.left)
	}
	return l.r.ReadAt(p, off)
}

// With few reads, less is detected, but nothing is wrong.
func TestSeeks(t *testing.T) {
	for _, d := range disks {
		file := shell(t, d.script)
		for _, seeks := range []int{1, 2, 3, 5} {
			c, err := content.Sniff(&limited{t, file, seeks + 1}, file.Size(), seeks)
			if err != nil || c.Kind != d.kind {
				t.Errorf("%s, %d seeks: %s, %v", d.name, seeks, c.Kind, err)
			}
			if c.VirtualSize != nil && d.size != 0 && *c.VirtualSize != d.size {
				t.Errorf("%s, %d seeks: virtual size %d, want %d", d.name, seeks, *c.VirtualSize, d.size)
			}
		}
	}
}

// failing fails after some reads.
type failing struct {
	r    io.ReaderAt
	left int
}

var errFailed = errors.New("the disk failed")

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errFailed
	}
	return f.r.ReadAt(p, off)
}

func TestReadError(t *testing.T) {
	for _, name := range []string{"qcow2", "xz", "zstd of a file", "mbr"} {
		file := shell(t, disks[slices.IndexFunc(disks, func(d disk) bool { return d.name == name })].script)
		failed := 0
		for reads := range 10 {
			_, err := content.Sniff(&failing{file, reads}, file.Size(), 100)
			if errors.Is(err, errFailed) {
				failed++
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if failed == 0 {
			t.Errorf("%s: no read failed", name)
		}
	}
	if _, err := content.Sniff(strings.NewReader("short"), 10, 1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an image that ends early: %v", err)
	}
}

func FuzzSniff(f *testing.F) {
	for _, d := range disks {
		if file := shell(f, d.script); file.Size() < 1<<20 {
			data, err := io.ReadAll(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
			f.Add(data[:len(data)/2])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const seeks = 20
		c, err := content.Sniff(&limited{t, bytes.NewReader(data), seeks + 1}, int64(len(data)), seeks)
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind == "" || c.What == "" || c.VirtualSize != nil && *c.VirtualSize < 0 {
			t.Fatalf("%+v", c)
		}
		for _, name := range []string{"a.img", "a.iso.xz", "a.qcow2"} {
			_ = c.Mismatch(image.Name(name), "/raw/x")
		}
	})
}

// A content that is not known is no fault, also for earlier versions' records.
func TestUnknownIsNoFault(t *testing.T) {
	old := content.Record{Content: content.Content{Kind: content.Unknown, Warnings: []string{"the image is of no format that is known here: it begins with nothing", "cut short"}}}
	if w := old.AllWarnings(); !slices.Equal(w, []string{"cut short"}) || len(old.Warnings) != 2 {
		t.Errorf("%q, of %q", w, old.Warnings)
	}
	noise := content.Head(bytes.Repeat([]byte{0x9e, 0x13, 0xf7, 0}, 1000), 4000)
	for name, fits := range map[image.Name]bool{"a.img": true, "a.raw": true, "a.iso": false, "a.qcow2": false, "a.img.xz": false} {
		if m := noise.Mismatch(name, ""); len(noise.Warnings) > 0 || (m == "") != fits {
			t.Errorf("%s: %q, %q", name, noise.Warnings, m)
		}
	}
}
