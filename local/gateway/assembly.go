package gateway

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"
	vgw "github.com/versity/versitygw/backend"
	"golang.org/x/sys/unix"
)

const (
	// assemblyName is the name of an assembly in the directory of its upload.
	// Parts have numbers for names.
	assemblyName = "object"
	// attrStride is an attribute of an assembly: the number of bytes reserved for
	// each part.
	attrStride = "imageroot-stride"
	// attrAt is an attribute of a part whose bytes are in the assembly: their offset.
	attrAt = "imageroot-at"
)

// An assembly is the file that becomes the object of a multipart upload. Parts are
// written to it by the program (see [stream]), or moved into it as they arrive. The
// offset of each assumes that all parts before it have the size of the first one to
// arrive, as clients cut objects. The part's own file keeps its size and attributes.
// So completing the upload writes nothing a second time, and the disk need not hold
// the object twice.
//
// A part that does not fit there keeps its bytes. So does one whose number was
// sent before, since the earlier one may be read until it is replaced. A writer
// of a part has a lock on the bytes until the part has its name: another part of that
// number would overwrite them, and a completed upload must not be written to.
type assembly struct {
	*os.File
	has, end int64 // the bytes of parts in it, and the end of the last one; see fits
}

// assemble moves the bytes of part n, which has been written but not yet
// renamed to its place in dir, into the assembly. The caller holds the upload and
// closes locked after the rename. A part that cannot be moved keeps its bytes, and
// locked is nil.
func assemble(dir string, n int32, part *os.File) (locked *os.File) {
	info, err := part.Stat()
	if err != nil {
		return nil
	}
	a, at := placeFor(dir, n, info.Size())
	if a == nil {
		return nil
	}
	if err := a.take(at, part, info.Size()); err != nil {
		a.Close()
		return nil
	}
	return a.File
}

// placeFor returns the assembly of the upload in dir and the offset of part n in it,
// which has size bytes. The bytes are locked until the assembly is closed. It returns
// nil if the part stays in its own file. The caller need not hold the upload.
func placeFor(dir string, n int32, size int64) (_ *assembly, at int64) {
	if size < vgw.MinPartSize {
		return nil, 0 // it can only be the last, and is quick to copy
	}
	path := filepath.Join(dir, assemblyName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0
	}
	a := &assembly{File: f}
	stride, err := a.stride(size)
	at = int64(n-1) * stride
	if err == nil && size <= stride && a.lock(at, size) == nil && isAt(f, path) && a.alone() {
		if _, err := os.Lstat(filepath.Join(dir, fmt.Sprint(n))); errors.Is(err, fs.ErrNotExist) {
			return a, at
		}
	}
	f.Close()
	return nil, 0
}

// take moves the bytes of a part to the reserved offset at.
func (a *assembly) take(at int64, part *os.File, size int64) error {
	err := a.write(at, part)
	if err == nil {
		err = a.Sync()
	}
	if err == nil {
		err = xattr.FSet(part, attrPrefix+attrAt, fmt.Append(nil, at))
	}
	if err != nil {
		punch(a.File, at, size)
		return err
	}
	punch(part, 0, size)
	return nil
}

// alone reports whether the assembly has one name. If a process was killed
// between publishing the object and removing the upload, it is also the object
// or a copy of it, and must not be written to.
func (a *assembly) alone() bool {
	info, err := a.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 1
}

// punch makes a hole in a file. A file system without holes keeps the bytes, so
// the disk holds the part twice.
func punch(f *os.File, at, length int64) {
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
}

// stride returns the bytes reserved for each part: size, unless another writer
// has set it.
func (a *assembly) stride(size int64) (int64, error) {
	err := unix.Fsetxattr(int(a.Fd()), attrPrefix+attrStride, fmt.Append(nil, size), unix.XATTR_CREATE)
	if err == nil {
		return size, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return 0, err
	}
	return number(xattr.FGet(a.File, attrPrefix+attrStride))
}

// number parses the value of an attribute.
func number(value []byte, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(value), 10, 64)
}

// placed returns the offset of a part's bytes in the assembly, if they are in it.
func placed(part subject) (at int64, yes bool, err error) {
	at, err = number(part.get(attrAt))
	if errors.Is(err, xattr.ENOATTR) {
		return 0, false, nil
	}
	return at, err == nil, err
}

// write copies all bytes of a file to offset at.
func (a *assembly) write(at int64, from *os.File) error {
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := a.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.Copy(a.File, from) // the kernel copies
	return err
}

// lock locks bytes of the assembly until it is closed, all from at on if length is 0.
// It fails if another writer, in any process, has locked some of them.
func (a *assembly) lock(at, length int64) error {
	return unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: length})
}

// openAssembly opens the assembly of the upload in dir, which the caller has
// claimed, or returns nil if there is none.
func openAssembly(dir string) (*assembly, error) {
	f, err := os.OpenFile(filepath.Join(dir, assemblyName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &assembly{File: f}, err
}

// A layout has the offsets of parts in an object.
type layout struct {
	at    map[string]int64 // by the names of their files
	total int64
}

// layoutOf returns the layout of the object made of parts of the upload in dir. It
// omits missing parts, which versitygw refuses.
func layoutOf(dir string, parts []types.CompletedPart) layout {
	l := layout{at: make(map[string]int64, len(parts))}
	for _, part := range parts {
		if part.PartNumber == nil {
			continue
		}
		name := fmt.Sprint(*part.PartNumber)
		if info, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			l.at[name] = l.total
			l.total += info.Size()
		}
	}
	return l
}

// fits reports whether each part in the assembly has its offset in l, and no other
// is being written. Then the assembly can become the object: completing it, even if
// that is interrupted, overwrites no part. It is locked until it is closed.
func (a *assembly) fits(dir string, l layout) (bool, error) {
	if a == nil || a.lock(0, 0) != nil || !a.alone() {
		return false, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		at, in, err := placed(subject{path: filepath.Join(dir, e.Name())})
		if err != nil {
			return false, err
		}
		if !in {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return false, err
		}
		if want, wanted := l.at[e.Name()]; !wanted || want != at {
			return false, nil
		}
		a.has += info.Size()
		a.end = max(a.end, at+info.Size())
	}
	return a.has > 0, nil
}

// keep writes the bytes of a part to offset at of an assembly that fits, unless
// they are there already.
func (a *assembly) keep(at int64, part *os.File) error {
	there, in, err := placed(subject{file: part})
	switch {
	case err != nil:
		return err
	case !in:
		return a.write(at, part)
	case there != at:
		return fmt.Errorf("part %s moved from %d to %d of the assembly while that was claimed", part.Name(), at, there)
	}
	return nil
}

// copy appends the bytes of a part, from its file or the assembly, to the file to.
func (a *assembly) copy(to, part *os.File) error {
	at, in, err := placed(subject{file: part})
	if err != nil {
		return err
	}
	if !in {
		_, err := io.Copy(to, part) // the kernel copies
		return err
	}
	if a == nil {
		return fmt.Errorf("the bytes of part %s are in a file that is gone", part.Name())
	}
	info, err := part.Stat()
	if err != nil {
		return err
	}
	if _, err := a.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err = io.CopyN(to, a.File, info.Size())
	return err
}

// become replaces the file that versitygw has open as to with the assembly,
// truncated to size. The assembly keeps its own name until the upload's directory
// is removed, so it still exists if the process is killed meanwhile.
func (a *assembly) become(to *os.File, size int64) error {
	if err := a.Truncate(size); err != nil { // which sets its time, too
		return err
	}
	self := fmt.Sprintf("/proc/self/fd/%d", a.Fd())
	next := to.Name() + ".next"
	if err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, next, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: a.Name(), New: next, Err: err}
	}
	if err := os.Rename(next, to.Name()); err != nil {
		os.Remove(next)
		return err
	}
	return unix.Dup3(int(a.Fd()), int(to.Fd()), unix.O_CLOEXEC)
}
