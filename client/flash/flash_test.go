package flash

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"imageroot/test/need"
)

const mib = 1 << 20

// disk returns bytes with zeros of several lengths, at places that are no multiples of
// anything.
func disk(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i>>16+i>>8+i) | 1
	}
	for _, hole := range [][2]int{{0, 70_000}, {mib, 3 * mib}, {4*mib - 5, 9*mib + 7}, {10 * mib, 10*mib + 100}, {size - 200_000, size}} {
		clear(b[min(hole[0], size):min(hole[1], size)])
	}
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// file returns the path of a file full of old bytes.
func file(t testing.TB, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *Device {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func ignore(int64) {}

// The same tests are done with files and with loop devices.
func testWrite(t *testing.T, path string, size int, free func() int64) {
	want := disk(size)
	write := func(d *Device, w *Writer, r io.Reader, fails error) {
		t.Helper()
		before := w.Offset()
		if n, err := w.ReadFrom(r); !errors.Is(err, fails) || n != w.Offset()-before {
			t.Fatalf("%d %v", n, err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(size int) {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(f, got[:size]); err != nil || !bytes.Equal(got[:size], want[:size]) {
			t.Fatalf("the disk is not on the device: %v", err)
		}
	}
	d := open(t, path)
	if err := d.Fits(d.Size + 1); err == nil || d.Fits(d.Size) != nil {
		t.Error(err)
	}
	// Twice: over old bytes, and over holes.
	for range 2 {
		w := d.Writer()
		var moved int64
		w.Moved = func(n int64) { moved += n }
		cut := errors.New("cut")
		at := len(want)*2/3 + 1
		write(d, w, io.MultiReader(iotest.HalfReader(bytes.NewReader(want[:at])), iotest.ErrReader(cut)), cut)
		holds(at)
		state, err := w.State()
		if err != nil {
			t.Fatal(err)
		}
		if w, err = d.Resume(t.Context(), w.Offset(), state, ignore); err != nil {
			t.Fatal(err)
		}
		if w.Offset() != int64(at) || moved != w.Offset() {
			t.Errorf("%d %d", w.Offset(), moved)
		}
		write(d, w, bytes.NewReader(want[at:]), nil)
		holds(len(want))
		if w.Sum() != sum(want) {
			t.Error("the SHA-256 of what was written is wrong")
		}
		var read int64
		direct, err := d.Verify(t.Context(), int64(len(want)), sum(want), func(n int64) { read += n })
		if err != nil || !direct || read != int64(len(want)) {
			t.Errorf("%v %v %d", direct, err, read)
		}
	}
	if full := d.Size; free() > full-5*mib {
		t.Errorf("%d of %d bytes are stored, with %d zeros", free(), full, 7*mib)
	}
	// A device that does not hold what was written to it.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{want[len(want)/2] ^ 1}, int64(len(want)/2))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Verify(t.Context(), int64(len(want)), sum(want), ignore); !errors.Is(err, ErrDiffers) {
		t.Errorf("%v", err)
	}
	w := d.Writer()
	w.sum.Write(want)
	state, err := w.State()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Resume(t.Context(), int64(len(want)), state, ignore); !errors.Is(err, ErrDiffers) {
		t.Errorf("%v", err)
	}
}

func stored(t testing.TB, path string) func() int64 {
	return func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Blocks * 512
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	for _, size := range []int{12*mib + 777, 12 * mib, 40*mib + 512} {
		path := file(t, size+1000)
		testWrite(t, path, size, stored(t, path))
		if b, err := os.ReadFile(path); err != nil || len(b) != size+1000 || len(bytes.Trim(b[size:], "\xaa")) > 0 {
			t.Error("what is behind the disk was changed")
		}
	}
}

// Without holes, zeros are written where the device has something else.
func TestWriteZeros(t *testing.T) {
	t.Parallel()
	path, want := file(t, 12*mib), disk(12*mib)
	d := open(t, path)
	w := d.Writer()
	w.noHole = true
	if _, err := w.ReadFrom(bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
		t.Error("the disk is not on the device")
	}
	blank := filepath.Join(t.TempDir(), "blank")
	if err := errors.Join(os.WriteFile(blank, nil, 0o600), os.Truncate(blank, 12*mib)); err != nil {
		t.Fatal(err)
	}
	w = open(t, blank).Writer()
	w.noHole = true
	if _, err := w.ReadFrom(bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if n := stored(t, blank)(); n > 7*mib {
		t.Errorf("%d bytes were written to a blank device", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	empty := file(t, 0)
	for path, why := range map[string]string{"/dev/null": "neither", t.TempDir(): "neither", "/nonexistent": "does not exist", empty: "no bytes"} {
		if d, err := Open(path); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v %v", path, d, err)
		}
	}
}

// machine writes a /sys and /proc of a machine with these files, by their paths. A file
// whose text begins with -> is a link.
func machine(t *testing.T, files map[string]string) kernel {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range files {
		path = filepath.Join(dir, path)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if to, ok := strings.CutPrefix(text, "->"); ok {
			err = errors.Join(err, os.Symlink(filepath.Join(dir, to), path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(text), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return kernel(dir)
}

// sdAandB has two disks with two partitions each.
func twoDisks(mounts, swaps string, more map[string]string) map[string]string {
	files := map[string]string{"proc/self/mountinfo": mounts, "proc/swaps": "Filename Type\n" + swaps}
	for i, disk := range []string{"sda", "sdb"} {
		at := "sys/devices/" + disk
		add := func(name, at, number string) {
			files[at+"/dev"], files[at+"/size"] = number+"\n", "2048\n"
			files["sys/class/block/"+name], files["sys/dev/block/"+number] = "->"+at, "->"+at
			files["dev/"+name] = ""
		}
		add(disk, at, fmt.Sprintf("8:%d", 16*i))
		for n := 1; n < 3; n++ {
			part := fmt.Sprintf("%s%d", disk, n)
			add(part, at+"/"+part, fmt.Sprintf("8:%d", 16*i+n))
			files[at+"/"+part+"/partition"] = fmt.Sprint(n)
		}
	}
	files["sys/devices/sda/device/vendor"], files["sys/devices/sda/device/model"] = "ATA     ", "Drive 5  \n"
	files["sys/devices/sda/sda1/uevent"] = "DEVTYPE=partition\nPARTNAME=root part\n"
	files["run/udev/data/b8:1"] = "S:x\nE:ID_FS_TYPE=ext4\nE:ID_FS_LABEL=rootfs\n"
	for k, v := range more {
		files[k] = v
	}
	return files
}

func TestRefuse(t *testing.T) {
	const root = "22 1 8:17 / / rw,relatime - ext4 /dev/sdb1 rw\n"
	dm := map[string]string{
		"sys/devices/dm-0/dev": "253:0", "sys/devices/dm-0/size": "100", "sys/devices/dm-0/dm/name": "vg-root", "sys/devices/dm-0/slaves/sda1": "->sys/devices/sda/sda1",
		"sys/devices/sda/sda1/holders/dm-0": "->sys/devices/dm-0", "sys/dev/block/253:0": "->sys/devices/dm-0", "sys/class/block/dm-0": "->sys/devices/dm-0",
	}
	for name, c := range map[string]struct {
		mounts, swaps string
		more          map[string]string
		device, want  string // want "": it may be overwritten
	}{
		"unused":                    {root, "", nil, "sda", ""},
		"partition":                 {root, "", nil, "sda2", ""},
		"mounted partition":         {root + "30 22 8:2 / /mnt/a\\040b rw - ext4 /dev/sda2 rw\n", "", nil, "sda", `mounted at /mnt/a\040b`},
		"other partition mounted":   {root + "30 22 8:2 / /mnt rw - ext4 /dev/sda2 rw\n", "", nil, "sda1", ""},
		"mounted whole":             {root + "30 22 8:0 / /mnt rw shared:1 - vfat /dev/sda rw\n", "", nil, "sda", "mounted at /mnt"},
		"btrfs has its own numbers": {root + "30 22 0:40 / /mnt rw - btrfs /dev/sda1 rw\n", "", nil, "sda", "mounted at /mnt"},
		"second disk of btrfs":      {root, "", map[string]string{"sys/fs/btrfs/ID/devices/sda1": "->sys/devices/sda/sda1"}, "sda", "btrfs"},
		"by a link":                 {root + "30 22 0:41 / /mnt rw - btrfs /dev/disk/by-id/x rw\n", "", map[string]string{"dev/disk/by-id/x": "->dev/sda2"}, "sda", "mounted"},
		"swap":                      {root, "/dev/sda2 partition 1 0 -2\n", nil, "sda", "swap"},
		"system":                    {root, "", nil, "sdb", "runs this system"},
		"partition beside system":   {root, "", nil, "sdb2", "runs this system"},
		"boot":                      {root + "30 22 8:1 / /boot/efi rw - vfat /dev/sda1 rw\n", "", nil, "sda", "runs this system"},
		"system of btrfs":           {"22 1 0:33 / / rw - btrfs /dev/sda1 rw\n", "", nil, "sda2", "runs this system"},
		"system on LVM":             {"22 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw\n", "", dm, "sda", "runs this system"},
		"LVM":                       {root, "", dm, "sda", "dm-0 (vg-root)"},
		"system in memory":          {"22 1 0:20 / / rw - overlay overlay rw\n", "", nil, "sda", ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := machine(t, twoDisks(c.mounts, c.swaps, c.more))
			b, err := k.block("sys/class/block", c.device)
			if err != nil {
				t.Fatal(err)
			}
			err = k.refuse(b)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	k := machine(t, map[string]string{"sys/class/block/sda": "->sys/devices/sda", "sys/devices/sda/size": "8"})
	if b, err := k.block("sys/class/block/sda"); err != nil || k.refuse(b) == nil {
		t.Errorf("without /proc, nothing is known: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	k := machine(t, twoDisks("", "", map[string]string{"sys/devices/sda/removable": "1", "sys/block/loop0/loop/backing_file": "/a b\n"}))
	b, err := k.block("sys/class/block/sda")
	if err != nil {
		t.Fatal(err)
	}
	var d Device
	k.describe(&d, b)
	if d.Model != "ATA Drive 5" || !d.Removable || len(d.Parts) != 2 || d.Parts[0] != (Part{"sda1", mib, "root part", "ext4", "rootfs"}) {
		t.Errorf("%+v", d)
	}
	if k.looped("/a b") != "loop0" || k.looped("/a") != "" {
		t.Error("the file of a loop device")
	}
}

func TestDeepDevices(t *testing.T) {
	need.Programs(t, "mkfs.ext4", "mkfs.btrfs", "partx", "sfdisk", "mkswap", "swapon", "swapoff", "mount", "umount")
	run := func(command string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "sh", "-ec", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	path := file(t, 40*mib)
	testWrite(t, need.Loop(t, path), 40*mib, stored(t, path))
	testWrite(t, need.Loop(t, file(t, 40*mib)), 40*mib-512, func() int64 { return 0 })
	refused := func(device, why string) {
		t.Helper()
		if d, err := Open(device); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v %v", why, d, err)
		}
	}
	refused(need.Loop(t, path, "--read-only"), "read-only")
	refused(path, "is made of it")
	loop, dir := need.Loop(t, file(t, 128*mib)), t.TempDir()
	d := open(t, loop)
	refused(loop, "busy")
	d.Close()
	run(fmt.Sprintf("mkfs.ext4 -q %s && mount %[1]s %s", loop, dir))
	refused(loop, "mounted at "+dir)
	run(fmt.Sprintf("umount %s && mkswap -q %s && swapon %[2]s", dir, loop))
	refused(loop, "swap")
	run(fmt.Sprintf("swapoff %s && printf 'size=50MiB\\nsize=50MiB\\n' | sfdisk -q --no-reread %[1]s && partx --add %[1]s && mkfs.ext4 -q %[1]sp1 && mount %[1]sp1 %s", loop, dir))
	refused(loop, "mounted at "+dir)
	refused(loop+"p1", "mounted at "+dir)
	if d := open(t, loop+"p2"); d.Size != 50*mib || d.Close() != nil {
		t.Errorf("%+v", d)
	}
	run("umount " + dir + " && partx --delete " + loop)
	second := need.Loop(t, file(t, 128*mib))
	run(fmt.Sprintf("mkfs.btrfs -q -f %s %s && mount -o device=%[2]s %[1]s %[3]s", loop, second, dir))
	refused(loop, "in use")
	refused(second, "in use")
	run("umount " + dir)

	// A device that loses what it took: its medium changes below what the kernel keeps of it.
	medium := file(t, 20*mib)
	loop, want := need.Loop(t, medium), disk(20*mib)
	d = open(t, loop)
	w := d.Writer()
	if _, err := w.ReadFrom(bytes.NewReader(want)); err != nil || w.Sync() != nil {
		t.Fatal(err)
	}
	if _, err := d.Verify(t.Context(), int64(len(want)), w.Sum(), ignore); err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(medium, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{want[10*mib+200] ^ 1}, 10*mib+200)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Verify(t.Context(), int64(len(want)), w.Sum(), ignore); !errors.Is(err, ErrDiffers) {
		t.Errorf("a device that lies: %v", err)
	}
	d.Close()

	// A device that fails.
	small := filepath.Join(need.Mount(t, "tmpfs", "size=2m"), "small")
	if err := errors.Join(os.WriteFile(small, nil, 0o600), os.Truncate(small, 20*mib)); err != nil {
		t.Fatal(err)
	}
	d = open(t, small)
	w = d.Writer()
	_, err = w.ReadFrom(bytes.NewReader(disk(20 * mib)))
	if _, ok := errors.AsType[*DeviceError](err); !ok {
		t.Errorf("%v", err)
	}
	d.Close()
}
