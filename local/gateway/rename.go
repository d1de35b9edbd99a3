package gateway

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"imageroot/shared/store"
)

// Rename gives the object with this ETag, without quotes, another key, from within the
// process. No bytes are copied, and what only the gateway has changed keeps its ETag. It
// returns the object, which the caller closes.
//
// If an object has the new key, the error is [store.ErrConflict]. If the object was
// replaced, it is [store.ErrChanged], and what replaced it may have the new key. [Fault]
// describes other errors. Rename raises no event: the caller makes the change known. It is
// durable when Rename returns, and a process that is killed leaves one of the two keys, or
// both. It is safe for concurrent use.
func (g *Gateway) Rename(bucket, from, to, etag string) (*File, error) {
	b := g.backend
	old, err := b.object(&bucket, &from, true)
	var f *File
	if err == nil {
		f, err = b.rename(old, to, etag)
	}
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrChanged) {
		return nil, err
	}
	return f, b.answer("rename", old, err)
}

func (b *backend) rename(old place, to, etag string) (_ *File, err error) {
	next, err := b.object(&old.bucket, &to, true)
	if err == nil {
		err = next.writable()
	}
	if err == nil && (old.folder() || next.folder()) {
		err = errNoSuchKey
	}
	if err != nil {
		return nil, err
	}
	f, err := old.open()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	v, err := b.subject(old, f).version()
	if err == nil && strings.Trim(v.etag(), `"`) != etag {
		err = store.ErrChanged
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(next.path()), 0o755)
	}
	if err != nil {
		return nil, err
	}
	gone, made := b.expect(old.bucket, old.key), b.expect(next.bucket, next.key)
	err = renameFile(f, old.path(), next.path())
	if err == nil && !isAt(f, next.path()) {
		err = store.ErrChanged
	}
	if v.ctime == 0 {
		b.mark(next, err)
	}
	made(err == nil)
	gone(err == nil)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, store.ErrConflict
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoSuchKey
	case err != nil:
		return nil, err
	}
	if err = errors.Join(next.sync(), old.sync()); err != nil {
		return nil, err
	}
	return b.file(next, f)
}

// renameFile renames the open file f, or what has its name by now. It does not replace a
// file.
func renameFile(f *os.File, from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	// The file system has no such flag.
	if err = os.Link(from, to); err == nil && isAt(f, from) {
		err = os.Remove(from)
	}
	return err
}
