package client

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imageroot/shared/content"
	"imageroot/test/need"
)

// The disk that is hashed is the one that /raw sends, whatever the image is.
func TestHashDisk(t *testing.T) {
	need.Programs(t, "bash", "qemu-img", "xz", "zip")
	dir := t.TempDir()
	disk := bytes.Repeat([]byte("a disk. "), 1<<17)
	if err := os.WriteFile(filepath.Join(dir, "raw.img"), disk, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{
		"cp raw.img x", "gzip -c raw.img >x", "zip -q y raw.img; mv y.zip x",
		"qemu-img convert -c -O qcow2 raw.img x", "qemu-img convert -O vmdk -o subformat=streamOptimized raw.img x",
		"qemu-img convert -O vhdx raw.img x", "qemu-img convert -O vdi raw.img x",
		"qemu-img convert -O vpc -o force_size=on raw.img x", "qemu-img convert -O vpc -o subformat=fixed,force_size=on raw.img x",
		"qemu-img convert -O qcow2 raw.img y; xz -0 -c y >x",
	} {
		cmd := exec.Command("bash", "-ec", "rm -f x; "+script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		image, err := os.ReadFile(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		in := bufio.NewReaderSize(bytes.NewReader(image), content.HeadBytes)
		if err := hashDisk(in, int64(len(image)), h); err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(disk) {
			t.Errorf("%s: another disk, %v", script, err)
		}
	}
}
