package gateway

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"golang.org/x/sys/unix"
)

// A place is the file of a key, which may not exist.
type place struct {
	bucket string // name
	dir    string // the bucket's directory, absolute
	key    string
}

func (p place) path() string { return filepath.Join(p.dir, p.key) }

// folder reports whether the key names a directory, as S3 consoles create them.
func (p place) folder() bool { return strings.HasSuffix(p.key, "/") }

// bucket returns the directory of a bucket.
func (b *backend) bucket(name *string) (bucket, dir string, err error) {
	if name == nil || !s3utils.IsValidBucketName(*name) {
		return "", "", s3err.GetBucketErr(s3err.ErrNoSuchBucket, "")
	}
	bucket = strings.Clone(*name) // it points into a buffer that is reused
	dir = filepath.Join(b.dir, bucket)
	info, err := os.Stat(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		// Whether the bucket exists is unknown.
		return "", "", b.answer("find bucket", place{bucket: bucket}, err)
	}
	if err != nil || !info.IsDir() {
		return "", "", s3err.GetBucketErr(s3err.ErrNoSuchBucket, bucket)
	}
	b.shareLocks(bucket, dir)
	return bucket, dir, nil
}

// object returns the place of a key. For a key that no object can have, the error
// is errNoSuchKey, or the reason if write is set.
func (b *backend) object(bucket, key *string, write bool) (place, error) {
	name, dir, err := b.bucket(bucket)
	if err != nil {
		return place{}, err
	}
	if key == nil {
		return place{}, errNoSuchKey
	}
	p := place{name, dir, strings.Clone(*key)}
	if err := checkKey(p.key); err != nil {
		if _, tooLong := errors.AsType[s3err.KeyTooLongError](err); tooLong || write {
			return place{}, err
		}
		return place{}, errNoSuchKey
	}
	return p, nil
}

// onObject runs do with the place of a key and returns its result with the S3
// error for its error. write is that of [backend.object].
func onObject[T any](b *backend, doing string, bucket, key *string, write bool, do func(place) (T, error)) (T, error) {
	var out T
	p, err := b.object(bucket, key, write)
	if err == nil {
		out, err = do(p)
	}
	return out, b.answer(doing, p, err)
}

// onExisting is onObject for an object that exists.
func onExisting[T any](b *backend, doing string, bucket, key *string, do func(place) (T, error)) (T, error) {
	return onObject(b, doing, bucket, key, false, func(p place) (out T, err error) {
		if _, err := p.readable(); err != nil {
			return out, err
		}
		return do(p)
	})
}

// checkKey refuses the keys that cannot be files here, and those that are
// hidden.
func checkKey(key string) error {
	if len(key) > 1024 {
		return s3err.GetKeyTooLongErr(int64(len(key)), 1024)
	}
	if key == "" || !listable(key) {
		return refuse("The key is no printable UTF-8.")
	}
	for segment := range strings.SplitSeq(strings.TrimSuffix(key, "/"), "/") {
		switch {
		case segment == "":
			return refuse("The key has an empty segment.")
		case segment[0] == '.':
			return refuse("A segment of the key begins with a dot: such files are hidden.")
		case len(segment) > 255:
			return s3err.GetKeyTooLongErr(int64(len(segment)), 255)
		}
	}
	return nil
}

// listable reports whether XML can represent a name unescaped.
func listable(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsControl(r) || r == 0xFFFE || r == 0xFFFF
	})
}

// hidden reports whether a part of a slash-separated path begins with a dot.
func hidden(path string) bool { return strings.HasPrefix(path, ".") || strings.Contains(path, "/.") }

// lstat returns the file info of p without following symbolic links in its path.
func (p place) lstat() (fs.FileInfo, error) {
	path := p.dir
	var info fs.FileInfo
	for segment := range strings.SplitSeq(strings.TrimSuffix(p.key, "/"), "/") {
		if info != nil && !info.IsDir() {
			return nil, syscall.ENOTDIR
		}
		path = filepath.Join(path, segment)
		var err error
		if info, err = os.Lstat(path); err != nil {
			return nil, err
		}
	}
	return info, nil
}

// readable returns the file info of the object at p, or errNoSuchKey.
func (p place) readable() (fs.FileInfo, error) {
	info, err := p.lstat()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, errNoSuchKey
	case err != nil:
		return nil, err
	case p.folder() && info.IsDir(), !p.folder() && info.Mode().IsRegular():
		return info, nil
	}
	return nil, errNoSuchKey
}

// writable returns an error if p is occupied by something that a write must not
// replace.
func (p place) writable() error {
	info, err := p.lstat()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ENOTDIR):
		return errBelowFile
	case err != nil:
		return err
	case info.IsDir() && !p.folder():
		return errIsDirectory
	case info.IsDir(), info.Mode().IsRegular() && !p.folder():
		return nil
	case info.Mode().IsRegular():
		return errBelowFile
	}
	return errIsSpecial
}

// open opens the regular file at p for reading. It does not block on a pipe and
// does not leave the bucket, even if directories are moved meanwhile.
func (p place) open() (*os.File, error) {
	if _, err := p.readable(); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(p.key, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoSuchKey
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errNoSuchKey
	}
	return f, nil
}

// sync makes the directory entries in the path of p durable.
func (p place) sync() error {
	for dir := filepath.Dir(p.path()); ; dir = filepath.Dir(dir) {
		// A directory that was removed has no entries to keep.
		if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(dir) <= len(p.dir) {
			return nil
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
