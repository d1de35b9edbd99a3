package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pkg/xattr"
	"github.com/versity/versitygw/backend/posix"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"golang.org/x/sys/unix"
)

// buckets returns the directories in dir that are buckets, sorted by name.
func buckets(dir string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []fs.FileInfo
	for _, e := range entries {
		if !s3utils.IsValidBucketName(e.Name()) {
			continue
		}
		// A bucket can be on another disk, behind a symbolic link.
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		if err == nil && info.IsDir() {
			found = append(found, info)
		}
	}
	return found, nil
}

// openDir creates the data directory if it is missing and returns its absolute
// path without symbolic links.
func openDir(path string) (string, error) {
	if path == "" {
		return "", errors.New("the S3 gateway needs a data directory")
	}
	dir, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("the data directory %s cannot be found: %w", path, err)
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir(), errors.Is(err, syscall.ENOTDIR):
		return "", fmt.Errorf("the data directory %s is no directory; choose another path or move the file away", dir)
	case errors.Is(err, fs.ErrNotExist):
		err = os.MkdirAll(dir, 0o755)
		if errors.Is(err, syscall.ENOTDIR) {
			return "", fmt.Errorf("the data directory %s cannot be made: part of the path is a file; choose another path", dir)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return "", fmt.Errorf("the data directory %s cannot be made or entered: permission denied; give the user that runs this the right to it", dir)
	}
	if err != nil {
		return "", fmt.Errorf("the data directory %s cannot be made: %w", dir, err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("the data directory %s cannot be found: %w", path, err)
	}
	return dir, probe(dir)
}

// probe returns the first error of Probe.
func probe(dir string) error {
	rights, attributes := Probe(dir)
	return cmp.Or(rights, attributes)
}

// Probe writes a hidden file with an extended attribute into dir and removes it.
// rights is the reason that a file cannot be written, attributes the reason that
// attributes are not kept. Each is nil or one sentence that has the remedy.
func Probe(dir string) (rights, attributes error) {
	f, err := os.CreateTemp(dir, ".imageroot-probe-*")
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the directory %s cannot be written to: permission denied; give the user that runs this the right to it", dir), nil
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("the directory %s is on a read-only file system; choose another one", dir), nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the directory %s is on a file system that is full; make room on it", dir), nil
	case err != nil:
		return fmt.Errorf("the directory %s cannot be written to (%w); choose another one", dir, err), nil
	}
	defer os.Remove(f.Name())
	defer f.Close()
	const name, value = attrPrefix + "imageroot-probe", "ok"
	err = xattr.FSet(f, name, []byte(value))
	if err == nil {
		var got []byte
		if got, err = xattr.FGet(f, name); err == nil && string(got) != value {
			err = fmt.Errorf("wrote %q and read %q", value, got)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the file system of %s does not keep extended attributes (exFAT, FAT and some network file systems do not); choose a directory on ext4, XFS or Btrfs: %w", dir, err)
	}
	return nil, nil
}

// claim registers this process as a user of the directory until the returned file
// is closed. The first user cleans up after a killed process.
func claim(dir string, log *slog.Logger) (*os.File, error) {
	all, err := buckets(dir)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be read: %w", dir, err)
	}
	for _, b := range all {
		if err := probe(filepath.Join(dir, b.Name())); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, lockDir), 0o755); err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be written to: %w", dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockDir, "alive"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be written to: %w", dir, err)
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		for _, b := range all {
			sweep(filepath.Join(dir, b.Name()), log)
		}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		log.Warn("the file system has no locks; use the data directory from one process only", slog.Any("error", err))
	}
	return f, nil
}

// firstUse returns the time, in nanoseconds since 1970, at which a version of this
// program that compares change times of files first used the directory. Files
// that have not changed since keep the ETags of earlier versions.
func firstUse(dir string) (int64, error) {
	path := filepath.Join(dir, lockDir, "since")
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.ModTime().UnixNano(), nil
}

// sweep removes the temporary files of a bucket and gives back uploads whose
// completion was cut off. Uploads in progress stay, so clients can resume them.
func sweep(bucket string, log *slog.Logger) {
	remove := func(path string) {
		if err := os.Remove(path); err != nil {
			log.Warn("a left-over temporary file cannot be removed", slog.String("path", path), slog.Any("error", err))
		}
	}
	tmp := filepath.Join(bucket, posix.MetaTmpDir)
	files, err := os.ReadDir(tmp)
	if err != nil {
		return // nothing was ever uploaded
	}
	for _, f := range files {
		if f.Type().IsRegular() {
			remove(filepath.Join(tmp, f.Name()))
		}
	}
	multipart := filepath.Join(bucket, posix.MetaTmpMultipartDir)
	keys, err := os.ReadDir(multipart)
	if err != nil {
		return
	}
	for _, k := range keys {
		dir := filepath.Join(multipart, k.Name())
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch {
			case e.Type().IsRegular():
				remove(path) // part of a part
			case strings.HasSuffix(e.Name(), inProgress):
				key, _ := xattr.LGet(dir, attrPrefix+"objname") // without it the object is unknown
				if err := giveBack(place{dir: bucket, key: string(key)}, dir, e.Name()); err != nil {
					log.Warn("an upload that was being completed cannot be given back", slog.String("path", path), slog.Any("error", err))
				}
			}
		}
		_ = os.Remove(dir) // if it is empty
	}
}
