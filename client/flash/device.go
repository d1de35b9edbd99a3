// Package flash writes disks to devices and verifies what they hold. A device is a disk, a
// partition, or a regular file that exists.
package flash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Device is open for writing. Nothing else has it to itself, if it is a block device. It
// is not safe for concurrent use.
type Device struct {
	Path    string // without links
	Size    int64  // in bytes
	Regular bool   // a file
	// Of a disk that is known: the maker's name for it, and whether it is removable.
	Model     string
	Removable bool
	// Parts are the file system on a device without partitions, or else the partitions.
	Parts []Part
	// ID tells devices apart that have the same path at different times, as far as the
	// kernel does.
	ID string

	file *os.File
}

// A Part is what a device had on it when it was opened. All fields but Name and Size may be
// empty.
type Part struct {
	Name                         string
	Size                         int64 // in bytes
	PartLabel, FileSystem, Label string
}

// Open opens a device. The error says why it must not be written to: it does not exist, is
// read-only, is in use, or has the running system on it. The caller closes it.
func Open(path string) (*Device, error) { return kernel("/").open(path) }

func (k kernel) open(path string) (*Device, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, err
	}
	d := &Device{Path: real}
	stat := info.Sys().(*syscall.Stat_t)
	flags := os.O_RDWR
	switch {
	case info.Mode().IsRegular():
		if loop := k.looped(real); loop != "" {
			return nil, fmt.Errorf("%s is in use: %s is made of it", path, loop)
		}
		d.Regular, d.ID = true, fmt.Sprintf("file %d %d", stat.Dev, stat.Ino)
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		number := strconv.Itoa(int(unix.Major(stat.Rdev))) + ":" + strconv.Itoa(int(unix.Minor(stat.Rdev)))
		b, err := k.block("sys/dev/block", number)
		if err != nil {
			return nil, fmt.Errorf("%s: whether it is in use is unknown: %w", path, err)
		}
		if err := k.refuse(b); err != nil {
			return nil, fmt.Errorf("%s must not be overwritten: %w", path, err)
		}
		if b.read("ro") == "1" {
			return nil, fmt.Errorf("%s is read-only", path)
		}
		k.describe(d, b)
		// What has a file system, swap or LVM on it fails with EBUSY, whatever /sys says
		// and whichever name space it is mounted in.
		flags |= unix.O_EXCL
	default:
		return nil, fmt.Errorf("%s is neither a disk nor a regular file", path)
	}
	if d.file, err = os.OpenFile(real, flags, 0); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%s is in use: the kernel says that it is busy", path)
		}
		return nil, err
	}
	if opened, err := d.file.Stat(); err != nil || !os.SameFile(info, opened) || opened.Sys().(*syscall.Stat_t).Rdev != stat.Rdev {
		return nil, errors.Join(fmt.Errorf("%s has just been replaced by another: try again", path), d.file.Close())
	}
	if d.Size, err = d.file.Seek(0, 2); err == nil && d.Size == 0 {
		err = fmt.Errorf("%s has no bytes: there is no medium, or the file is empty", path)
	}
	if err != nil {
		return nil, errors.Join(err, d.file.Close())
	}
	return d, nil
}

// describe sets what is known of the block device b.
func (k kernel) describe(d *Device, b block) {
	disk := b.disk()
	d.Model, d.Removable = disk.model(), disk.read("removable") == "1"
	for _, p := range b.partitions() {
		d.Parts = append(d.Parts, k.part(p))
	}
	if p := k.part(b); len(d.Parts) == 0 && (p.FileSystem != "" || p.PartLabel != "") {
		d.Parts = []Part{p}
	}
	d.ID = fmt.Sprintf("block %s %s %s %s %d", b.read("dev"), d.Model, disk.read("device/serial")+disk.read("device/cid")+disk.read("wwid"), k.udev(disk)["ID_SERIAL"], b.size())
}

// Fits returns an error if a disk of so many bytes is too large for the device.
func (d *Device) Fits(size int64) error {
	if size > d.Size {
		return fmt.Errorf("%s is too small: it has %d bytes, and the disk in the image has %d", d.Path, d.Size, size)
	}
	return nil
}

// Close closes the device. What was written may not be on it yet: see [Writer.Sync].
func (d *Device) Close() error { return d.file.Close() }

// ReadPartitions has the kernel read the partitions again. It is best effort: a partition
// and a file have none, and a system without udev may need it.
func (d *Device) ReadPartitions() { _ = unix.IoctlSetInt(int(d.file.Fd()), unix.BLKRRPART, 0) }
