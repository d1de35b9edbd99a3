package flash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A kernel is what /proc, /sys and /run/udev below a directory say of the block devices of a
// machine.
type kernel string

// A block is a disk, a partition or another block device, by its directory in /sys.
type block string

func (k kernel) path(elem ...string) string {
	return filepath.Join(append([]string{string(k)}, elem...)...)
}

// block returns the block device of a link in /sys.
func (k kernel) block(elem ...string) (block, error) {
	dir, err := filepath.EvalSymlinks(k.path(elem...))
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(dir, "size"))
	return block(dir), err
}

// name returns the name of b in /sys, as sda1.
func (b block) name() string { return filepath.Base(string(b)) }

// read returns the text of a file of b, or "".
func (b block) read(file string) string {
	text, _ := os.ReadFile(filepath.Join(string(b), file))
	return strings.TrimSpace(string(text))
}

// size returns the size of b in bytes.
func (b block) size() int64 {
	n, _ := strconv.ParseInt(b.read("size"), 10, 64)
	return n * 512
}

// partition reports whether b is a partition.
func (b block) partition() bool { return b.read("partition") != "" }

// disk returns the disk that b is, or is a partition of.
func (b block) disk() block {
	if b.partition() {
		return block(filepath.Dir(string(b)))
	}
	return b
}

// partitions returns the partitions of b.
func (b block) partitions() (all []block) {
	files, _ := filepath.Glob(filepath.Join(string(b), "*", "partition"))
	for _, f := range files {
		all = append(all, block(filepath.Dir(f)))
	}
	return all
}

// below returns the disks that b is made of.
func (k kernel) below(b block) []block {
	links, _ := filepath.Glob(filepath.Join(string(b), "slaves", "*"))
	all := []block{b.disk()}
	for _, l := range links {
		if dir, err := filepath.EvalSymlinks(l); err == nil {
			all = append(all, k.below(block(dir))...)
		}
	}
	return all
}

// A mount is a line of /proc/self/mountinfo.
type mount struct{ number, point, source string }

func (k kernel) mounts() (all []mount, err error) {
	text, err := os.ReadFile(k.path("proc/self/mountinfo"))
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f, s := strings.Fields(before), strings.Fields(after)
		if len(f) > 4 && len(s) > 1 {
			all = append(all, mount{f[2], f[4], s[1]})
		}
	}
	return all, err
}

// named returns the name in /sys of the device at a path in /dev, or "".
func (k kernel) named(path string) string {
	path, err := filepath.EvalSymlinks(k.path(path))
	if name, ok := strings.CutPrefix(path, k.path("dev")+"/"); ok && err == nil {
		return strings.ReplaceAll(name, "/", "!")
	}
	return ""
}

// refuse returns an error that says what uses b, or a partition of it.
func (k kernel) refuse(b block) error {
	mounts, err := k.mounts()
	if err != nil {
		return fmt.Errorf("whether it is in use is unknown: %w", err)
	}
	if k.system(b.disk(), mounts) {
		return errors.New("it is on the disk that runs this system")
	}
	for _, part := range append([]block{b}, b.partitions()...) {
		name := part.name()
		if holders, _ := filepath.Glob(filepath.Join(string(part), "holders", "*")); len(holders) > 0 {
			what := filepath.Base(holders[0])
			if alias := block(holders[0]).read("dm/name"); alias != "" {
				what += " (" + alias + ")"
			}
			return fmt.Errorf("it is in use: %s is made of %s (LVM, RAID or encryption)", what, name)
		}
		for _, m := range mounts {
			if m.number == part.read("dev") || k.named(m.source) == name {
				return fmt.Errorf("it is in use: %s is mounted at %s", name, m.point)
			}
		}
		if found, _ := filepath.Glob(k.path("sys/fs/btrfs/*/devices", name)); len(found) > 0 {
			return fmt.Errorf("it is in use: %s is part of a mounted btrfs", name)
		}
		swaps, _ := os.ReadFile(k.path("proc/swaps"))
		for line := range strings.Lines(string(swaps)) {
			if f := strings.Fields(line); len(f) > 0 && k.named(f[0]) == name {
				return fmt.Errorf("it is in use: %s is swap", name)
			}
		}
	}
	return nil
}

// system reports whether the running system is on a disk.
func (k kernel) system(disk block, mounts []mount) bool {
	for _, m := range mounts {
		if m.point != "/" && m.point != "/usr" && m.point != "/boot" && !strings.HasPrefix(m.point, "/boot/") {
			continue
		}
		links := []string{k.path("sys/dev/block", m.number)}
		if name := k.named(m.source); name != "" { // btrfs has numbers of its own
			links = append(links, k.path("sys/class/block", name))
		}
		for _, l := range links {
			dir, err := filepath.EvalSymlinks(l)
			if err != nil {
				continue
			}
			for _, d := range k.below(block(dir)) {
				if d == disk {
					return true
				}
			}
		}
	}
	return false
}

// looped returns the name of the loop device that is made of a file, or "".
func (k kernel) looped(file string) string {
	all, _ := filepath.Glob(k.path("sys/block/loop*"))
	for _, b := range all {
		if block(b).read("loop/backing_file") == file {
			return block(b).name()
		}
	}
	return ""
}

// udev returns what udev knows of b, by the names of its properties.
func (k kernel) udev(b block) map[string]string {
	all := map[string]string{}
	text, _ := os.ReadFile(k.path("run/udev/data", "b"+b.read("dev")))
	for line := range strings.Lines(string(text)) {
		if property, ok := strings.CutPrefix(strings.TrimSpace(line), "E:"); ok {
			name, value, _ := strings.Cut(property, "=")
			all[name] = value
		}
	}
	return all
}

// model returns the maker's name for a disk, or "".
func (b block) model() string {
	return strings.Join(strings.Fields(b.read("device/vendor")+" "+b.read("device/model")+" "+b.read("device/name")), " ")
}

// part returns what is known of a disk or a partition.
func (k kernel) part(b block) Part {
	p := Part{Name: b.name(), Size: b.size()}
	for line := range strings.Lines(b.read("uevent")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PARTNAME="); ok {
			p.PartLabel = name
		}
	}
	u := k.udev(b)
	p.FileSystem, p.Label = u["ID_FS_TYPE"], u["ID_FS_LABEL"]
	return p
}
