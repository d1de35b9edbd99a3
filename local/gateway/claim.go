package gateway

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pkg/xattr"
	"github.com/versity/versitygw/s3err"
	"golang.org/x/sys/unix"
)

// holdUpload takes a shared hold of an upload until the returned file is closed.
// Meanwhile the upload cannot be claimed: versitygw would create its directory
// again for a part that is renamed afterwards.
func holdUpload(dir, id string) (*os.File, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(d.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errBusy // until the claim ends
	}
	if err == nil && !isAt(d, dir) {
		err = s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// isAt reports whether path is still the name of the open file f.
func isAt(f *os.File, path string) bool {
	held, statErr := f.Stat()
	now, pathErr := os.Lstat(path)
	return statErr == nil && pathErr == nil && os.SameFile(held, now)
}

// claimUpload takes an exclusive hold of an upload's directory until the returned
// file is closed. It waits for other holders. It returns fs.ErrNotExist if there is
// no such upload. An upload whose completion was killed after it had made the
// object is removed, and counts as none.
func claimUpload(ctx context.Context, p place, id string) (*os.File, error) {
	dir := filepath.Join(p.uploads(), id)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		path := dir
		d, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			// Another request is completing it, or was killed doing so.
			claimed, _ := filepath.Glob(dir + ".*" + inProgress)
			if len(claimed) == 0 {
				return nil, err
			}
			path = claimed[0]
			d, err = os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if isAt(d, path) {
				if path == dir {
					return d, nil
				}
				err := giveBack(p, filepath.Dir(dir), filepath.Base(path))
				if err == nil && !isAt(d, dir) {
					err = fs.ErrNotExist // it was completed
				}
				if err != nil {
					d.Close()
					return nil, err
				}
				return d, nil
			}
			err = unix.EWOULDBLOCK // it was renamed or removed meanwhile
		}
		d.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// attrNamed is an attribute of an upload's directory: the number of parts that
// it is completed from.
const attrNamed = "imageroot-parts"

// giveBack undoes a completion that was killed, so that the client's retry
// succeeds, or finishes it if it had made the object. Parts are removed only once
// the object is in place, so a missing part means that the object was made, even
// if another one has replaced it. name is the upload's directory in dir. The
// caller has claimed the upload, or is the only user of the bucket.
func giveBack(p place, dir, name string) error {
	id, _, _ := strings.Cut(name, ".")
	path := filepath.Join(dir, name)
	if _, done := madeBy(p, id); done {
		// Removing the name that the object has in the directory changes its change
		// time.
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
