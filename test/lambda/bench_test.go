package lambda_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/emulator"
	"imageroot/test/need"
)

// BenchmarkDisk measures the rate at which the hash function, with one processor as in
// template.yaml, expands a disk of the files of the Go toolchain, from S3 and to S3.
func BenchmarkDisk(b *testing.B) {
	need.Programs(b, "gzip", "xz", "zstd", "bzip2", "qemu-img")
	const size = 256 << 20
	dir := b.TempDir()
	disk := files(b, size)
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		b.Fatal(err)
	}
	for _, tt := range []struct{ name, image, command string }{
		{"gzip", "bench.img.gz", "gzip -c $1"},
		{"zstd", "bench.img.zst", "zstd -q -c $1"},
		{"xz", "bench.img.xz", "xz -T0 -3 -c $1"},
		{"bzip2", "bench.img.bz2", "bzip2 -c $1"},
		{"qcow2", "bench.qcow2", "qemu-img convert -c -O qcow2 $1 $1.q && cat $1.q"},
	} {
		b.Run(tt.name, func(b *testing.B) {
			packed, err := exec.CommandContext(b.Context(), "sh", "-c", tt.command, "sh", raw).Output()
			if err != nil {
				b.Fatal(err)
			}
			w := newWorld(b)
			w.fn["HashFunction"].restart(func(cfg *emulator.Config) { cfg.Env = append(cfg.Env, "GOMAXPROCS=1", "IMAGEROOT_CHECK=false") })
			w.put(tt.image, packed)
			sum := hexSum(packed)
			w.served(sum)
			b.SetBytes(size)
			for b.Loop() {
				w.want(202, "POST", "/catalog/disks", map[string]string{"sha256": sum})
				w.until("the disk is made", func() bool {
					j := w.disks().Jobs[0]
					if j.Error != nil {
						b.Fatal(*j.Error)
					}
					return j.Status == "completed"
				})
				b.StopTimer()
				w.want(204, "DELETE", "/catalog/disks/"+sum, nil)
				b.StartTimer()
			}
		})
	}
}

// files returns the bytes of files of the Go toolchain, after a sector of zeros.
func files(b *testing.B, size int) []byte {
	b.Helper()
	root, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	var all bytes.Buffer
	all.Write(make([]byte, 512))
	for all.Len() < size {
		err := filepath.WalkDir(strings.TrimSpace(string(root)), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			all.Write(data)
			if all.Len() >= size {
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return all.Bytes()[:size]
}
