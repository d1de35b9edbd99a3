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
	"golang.org/x/sys/unix"
)

// probe returns what of dir makes it of no use.
func probe(dir string) error {
	rights, attributes := Probe(dir)
	return cmp.Or(rights, attributes)
}

// Probe writes a file with an extended attribute into dir, which nothing sees,
// and removes it: nothing less tells whether the file system has them. rights
// is why that cannot be, attributes why there are none. Each is one sentence
// that says what to do.
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

// claim registers this process as a user of the directory until the file
// returned is closed. The first user cleans up what a killed process left.
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

// firstUse returns when the directory was first used by a version of this
// program that minds the change times of files, in nanoseconds. Files that have
// not changed since keep the ETags that versions before that gave them.
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

// sweep removes the temporary files of a bucket, and gives uploads back that
// were being completed. Uploads in progress stay: whoever began them goes on.
func sweep(bucket string, log *slog.Logger) {
	remove := func(path string) {
		if err := os.Remove(path); err != nil {
			log.Warn("a left-over temporary file cannot be removed", slog.String("path", path), slog.Any("error", err))
		}
	}
	tmp := filepath.Join(bucket, posix.MetaTmpDir)
	files, err := os.ReadDir(tmp)
	if err != nil {
		return // there never was an upload
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
				key, _ := xattr.LGet(dir, attrPrefix+"objname") // without it nothing is known of the object
				if err := giveBack(place{dir: bucket, key: string(key)}, dir, e.Name()); err != nil {
					log.Warn("an upload that was being completed cannot be given back", slog.String("path", path), slog.Any("error", err))
				}
			}
		}
		_ = os.Remove(dir) // where it is empty
	}
}

// attrNamed is an attribute of an upload's directory: how many parts it is
// completed from.
const attrNamed = "imageroot-parts"

// giveBack undoes the beginning of a completion that was killed, so that the
// client's retry succeeds; where it had got as far as the object, it finishes
// it. What is removed is removed only after the object is in place: where some
// is gone the object was there, whatever is there by now. name is that of the
// upload's directory in dir. The caller has claimed the upload, or is the only
// user of the bucket.
func giveBack(p place, dir, name string) error {
	id, _, _ := strings.Cut(name, ".")
	path := filepath.Join(dir, name)
	if _, done := madeBy(p, id); done {
		// Removing the name that the object has there changes it.
		object := subject{path: p.path(), since: 1}
		intact := object.isIntact()
		if err := os.RemoveAll(path); err != nil || !intact {
			return err
		}
		return object.mark()
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	parts, placedParts, assembled := 0, 0, false
	for _, e := range entries {
		if e.Name() == assemblyName {
			assembled = true
			continue
		}
		parts++
		if _, in, err := placed(subject{path: filepath.Join(path, e.Name())}); err == nil && in {
			placedParts++
		}
	}
	named, err := number(xattr.LGet(path, attrPrefix+attrNamed))
	if err == nil && int64(parts) < named || placedParts > 0 && !assembled {
		return os.RemoveAll(path)
	}
	return os.Rename(path, filepath.Join(dir, id))
}
