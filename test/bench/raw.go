package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"imageroot/test/runner"
)

const (
	rawSize   = 768 * mib
	rawMemory = 150 // MiB
)

// A rawKind is a kind of image, and the tool that one would use to unpack it.
type rawKind struct {
	name   string
	pack   string // the command that makes the image from $disk
	unpack string // the command that unpacks it, to /dev/null or to a temporary file
	bound  *bound
}

var rawKinds = []rawKind{
	{"disk.img.zst", "zstd -q -c $disk", "zstd -dc %s", atLeast(1)},
	{"pzstd.img.zst", "pzstd -q -c $disk", "zstd -dc %s", atLeast(1)},
	{"disk.img.gz", "gzip -c $disk", "gzip -dc %s", atLeast(1)},
	{"bgzip.img.gz", "bgzip -c $disk", "gzip -dc %s", atLeast(1.6)},
	{"disk.img.xz", "xz -1 -T1 -c $disk", "xz -dc %s", atLeast(0.9)},
	{"blocks.img.xz", "xz -1 -T2 -c $disk", "xz -dc -T1 %s", atLeast(1.6)},
	{"disk.img.bz2", "bzip2 -c $disk", "bzip2 -dc %s", atLeast(1)},
	{"pbzip2.img.bz2", "pbzip2 -c $disk", "bzip2 -dc %s", atLeast(1)},
	{"zlib.qcow2", "qemu-img convert -c -O qcow2 $disk $out", "qemu-img convert -O raw %s raw.out", atLeast(0.7)},
	{"zstd.qcow2", "qemu-img convert -c -O qcow2 -o compression_type=zstd $disk $out", "qemu-img convert -O raw %s raw.out", atLeast(0.7)},
	{"plain.qcow2", "qemu-img convert -O qcow2 $disk $out", "qemu-img dd -O raw bs=4M if=%s of=raw.out", atLeast(0.7)},
}

// raw compares GET /raw of an image of each kind with the kind's own tool. The disk has programs
// and their sources, and an eighth of it is empty.
func (b *bench) raw(ctx context.Context) error {
	disk, size, err := b.files(ctx, 5)
	if err != nil {
		return err
	}
	defer os.Remove(disk)
	s, err := b.server(ctx, "raw")
	if err != nil {
		return err
	}
	defer s.remove()
	for _, k := range rawKinds {
		packed := b.path(k.name) // the server would hash and check an image that grows
		script := strings.NewReplacer("$disk", disk, "$out", packed).Replace(k.pack)
		if script == strings.ReplaceAll(k.pack, "$disk", disk) {
			script += " > " + packed
		}
		if _, err := (tool{args: []string{"sh", "-ec", script}}).time(ctx, b.dir); err != nil {
			return err
		}
		if err := os.Rename(packed, s.image(k.name)); err != nil {
			return err
		}
		if _, err := s.completed(ctx, hashes, k.name); err != nil {
			return err
		}
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	if err := runner.ForgetPeak(s.PID()); err != nil {
		return err
	}
	for _, k := range rawKinds {
		packed := s.image(k.name)
		side := func(args ...string) func(int) (float64, error) {
			return func(int) (float64, error) {
				if err := settle(packed); err != nil {
					return 0, err
				}
				defer os.Remove(b.path("raw.out"))
				return tool{args: args}.time(ctx, b.dir)
			}
		}
		unpack := fmt.Sprintf(strings.ReplaceAll(k.unpack, "raw.out", b.path("raw.out")), packed)
		o, p, err := b.turns(side("curl", "-sS", "--fail", "-o", "/dev/null", s.Pages+"/raw/"+k.name), side(strings.Fields(unpack)...))
		if err != nil {
			return err
		}
		b.report.faster("raw", formatBytes(size)+" of "+k.name, series{"imageroot, curl", unitSeconds, o},
			series{strings.Join(strings.Fields(k.unpack)[:2], " "), unitSeconds, p}, k.bound)
	}
	peak, err := runner.Memory(s.PID(), "VmHWM")
	if err != nil {
		return err
	}
	b.report.absolute("raw", "peak memory", unitMiB, []float64{peak}, atMost(rawMemory))
	return nil
}

// files makes a disk of rawSize as filesOf does, if there is room for so many of its size.
func (b *bench) files(ctx context.Context, copies int64) (path string, size int64, err error) {
	path, size = b.path("raw.img"), b.scaled(rawSize)
	if err := b.room(copies * size); err != nil {
		return "", 0, err
	}
	return path, size, filesOf(ctx, path, size)
}

// filesOf makes a disk of the files of the Go distribution, which each machine that runs this
// has.
func filesOf(ctx context.Context, path string, size int64) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	// Disks do not begin with text.
	if _, err := out.Seek(mib, io.SeekStart); err != nil {
		return err
	}
	left := size - size/8
	for left > 0 {
		before := left
		err := filepath.WalkDir(strings.TrimSpace(string(root)), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			in, err := os.Open(path)
			if err != nil {
				return err
			}
			defer in.Close()
			n, err := io.Copy(out, io.LimitReader(in, left))
			if left -= n; err == nil && left == 0 {
				err = fs.SkipAll
			}
			return err
		})
		if err == nil && left == before {
			err = errors.New("there is nothing in GOROOT")
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(out.Truncate(size), out.Close())
}
