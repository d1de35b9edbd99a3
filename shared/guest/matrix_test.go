package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imageroot/test/need"
)

// matrix has the options of qemu-img, with part of the error of images that qemu-img
// reads and this package refuses by design.
var matrix = []struct{ name, script, refused string }{
	{"version 3", "qemu-img convert -O qcow2 raw x", ""},
	{"version 2", "qemu-img convert -O qcow2 -o compat=0.10 raw x", ""},
	{"clusters of 512", "qemu-img convert -O qcow2 -o cluster_size=512 raw x", ""},
	{"clusters of 2M", "qemu-img convert -O qcow2 -o cluster_size=2M raw x", ""},
	{"zlib", "qemu-img convert -c -O qcow2 -o cluster_size=4k raw x", ""},
	{"zlib, version 2", "qemu-img convert -c -O qcow2 -o compat=0.10 raw x", ""},
	{"zstd", "qemu-img convert -c -O qcow2 -o compression_type=zstd,cluster_size=8k raw x", ""},
	{"preallocated metadata", "qemu-img convert -O qcow2 -o preallocation=metadata,cluster_size=4k raw x", ""},
	{"preallocated", "qemu-img convert -O qcow2 -o preallocation=falloc,cluster_size=4k raw x", ""},
	{"lazy refcounts", "qemu-img convert -O qcow2 -o lazy_refcounts=on raw x", ""},
	{"refcounts of 1 bit", "qemu-img convert -O qcow2 -o refcount_bits=1 raw x", ""},
	{"a snapshot", "qemu-img convert -O qcow2 raw x; qemu-img snapshot -c before x; qemu-io -c 'write -P 7 10k 9k' x >&2", ""},
	{"zeros and holes", "qemu-img convert -O qcow2 raw x; qemu-io -c 'write -z 64k 64k' -c 'discard 0 64k' x >&2", ""},
	{"empty", "qemu-img create -q -f qcow2 x 1M", ""},
	{"bitmap", "qemu-img convert -O qcow2 raw x; qemu-img bitmap --add x b", ""},
	{"subclusters", "qemu-img convert -O qcow2 -o extended_l2=on raw x", "extended L2"},
	{"external data", "qemu-img convert -O qcow2 -o data_file=data,data_file_raw=on raw x", "external data file"},
	{"backing file", "qemu-img create -q -f qcow2 -b raw -F raw x", "backing file"},
}

// unread matches complaints of qemu-img about parts that this package does not read,
// because the disk does not depend on them.
var unread = regexp.MustCompile("snapshot table entry|Header extension|Bitmap")

// errVast: a flipped bit has made the disk too large for this test.
var errVast = errors.New("too large")

// This package reads the same bytes as qemu-img from its images, whole and damaged, or
// refuses them if qemu-img does.
func TestDeepMatrix(t *testing.T) {
	for n, m := range matrix {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			in := slices.Concat(load(t, disk(t, 100<<10)), make([]byte, 100<<10), bytes.Repeat([]byte("a disk. "), 10<<10))
			if err := os.WriteFile(filepath.Join(dir, "raw"), in, 0o600); err != nil {
				t.Fatal(err)
			}
			sh(t, dir, m.script)
			x := load(t, filepath.Join(dir, "x"))
			for what, data := range variants(x, n) {
				file := filepath.Join(dir, "damaged")
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
				os.Remove(filepath.Join(dir, "y"))
				cmd := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "damaged", "y")
				cmd.Dir = dir
				out, refused := cmd.CombinedOutput()
				ours, err := weRead(data)
				switch {
				case errors.Is(err, errVast):
				case refused != nil && err == nil && unread.Match(out):
				case refused != nil && err == nil:
					t.Errorf("%s: %d bytes are read, and qemu-img reads none (%.200s)", what, len(ours), out)
				case refused != nil:
				case m.refused != "":
					if err == nil || what == "whole" && !strings.Contains(err.Error(), m.refused) {
						t.Errorf("%s: %v; want a reason that says %q", what, err, m.refused)
					}
				case errors.Is(err, ErrTruncated): // qemu-img reads missing data as zeros
				case err != nil:
					t.Errorf("%s: refused (%v), and qemu-img reads it", what, err)
				case !bytes.Equal(ours, load(t, filepath.Join(dir, "y"))):
					t.Errorf("%s: other bytes than qemu-img reads", what)
				}
			}
		})
	}
}

func sh(t *testing.T, dir, script string) {
	t.Helper()
	need.Programs(t, "bash")
	cmd := exec.Command("bash", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// variants returns an image unchanged, with single bits of its header and elsewhere
// flipped, with other numbers in its header, and cut.
func variants(x []byte, number int) map[string][]byte {
	all := map[string][]byte{"whole": x}
	flipped := []int{len(x) / 5, len(x) / 3, len(x) / 2, len(x) - 1}
	for i := number % 4; i < 112; i += 4 {
		flipped = append(flipped, i)
	}
	for _, i := range flipped {
		bad := bytes.Clone(x)
		bad[i] ^= 1 << (i % 8)
		all[fmt.Sprintf("byte %d of %d flipped", i, len(x))] = bad
	}
	for _, i := range []int{3, 60, 100, len(x) / 4, len(x) / 2, len(x) * 9 / 10} {
		all[fmt.Sprintf("cut at %d of %d", i, len(x))] = x[:i]
	}
	return all
}

func weRead(data []byte) ([]byte, error) {
	i, err := Open(QCOW2, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	if i.Size() > 64<<20 {
		return nil, errVast
	}
	return io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
}
