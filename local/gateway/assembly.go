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
	// attrStride is an attribute of an assembly: how many bytes it has for
	// each part.
	attrStride = "imageroot-stride"
	// attrAt is an attribute of a part whose bytes are in the assembly: where.
	attrAt = "imageroot-at"
)

// An assembly is what becomes the object of a multipart upload. Parts are put
// into it as they arrive, each where it will be if all before it are as long
// as the first that arrived, which is how clients cut an object; what is left
// of the part's own file is its size and its attributes. So nothing is written
// to the disk a second time when the upload is completed, and the disk needs
// not hold the object twice.
//
// A part that the assembly has no place for keeps its bytes, and so does one
// that was sent before: until it has replaced the other, that one may be asked
// for. Who puts a part in has a hold of the upload, and a lock on its bytes until
// it has its name: else another of its number would write over what it says.
type assembly struct {
	*os.File
	has, end int64 // bytes that are of parts, and where the last of them ends; see fits
}

// assemble moves the bytes of part n of the upload in dir, which has just been
// written and is not there yet under its name, into the assembly. release must
// be called when it is. Where it cannot be done the part stays as it is, and
// nothing is lost. The caller holds the upload.
func assemble(dir string, n int32, part *os.File) (release func()) {
	release = func() {}
	info, err := part.Stat()
	if err != nil || info.Size() < vgw.MinPartSize {
		return release // it can only be the last, and is soon copied
	}
	f, err := os.OpenFile(filepath.Join(dir, assemblyName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return release
	}
	if err := (&assembly{File: f}).take(dir, n, part, info.Size()); err != nil {
		f.Close()
		return release
	}
	return func() { f.Close() }
}

// errNotPlaced says that a part is not for the assembly.
var errNotPlaced = errors.New("the part stays by itself")

// take is assemble once the assembly is open. It holds the lock of the bytes when
// it returns without an error.
func (a *assembly) take(dir string, n int32, part *os.File, size int64) error {
	if !a.alone() {
		return errNotPlaced
	}
	stride, err := a.stride(size)
	if err != nil || size > stride {
		return errors.Join(err, errNotPlaced)
	}
	at := int64(n-1) * stride
	if err := a.lock(at, size); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, fmt.Sprint(n))); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, errNotPlaced)
	}
	err = a.write(at, part)
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

// alone reports whether the assembly has no name but its own. Where a process
// was killed between publishing the object and removing the upload it is an
// object, under that object's name or a copy's, and nothing may write into it.
func (a *assembly) alone() bool {
	info, err := a.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 1
}

// punch gives the bytes of a file back to the disk, and leaves zeros. A file
// system that has no holes keeps them: then there are two of a part, as there
// would be once the parts are put together.
func punch(f *os.File, at, length int64) {
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
}

// stride returns how many bytes there are for each part: what somebody has set
// it to, or size.
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

// number is the value of an attribute that is one.
func number(value []byte, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(value), 10, 64)
}

// placed returns where in the assembly the bytes of a part are, if they are.
func placed(part subject) (at int64, yes bool, err error) {
	at, err = number(part.get(attrAt))
	if errors.Is(err, xattr.ENOATTR) {
		return 0, false, nil
	}
	return at, err == nil, err
}

// write copies the file from, from its beginning, to at.
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

// lock takes hold of bytes of the assembly until it is closed. It fails where
// somebody else has some of them, in whatever process.
func (a *assembly) lock(at, length int64) error {
	return unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: length})
}

// openAssembly opens the assembly of the upload in dir, which the caller has
// claimed. It is nil where no part was put into one.
func openAssembly(dir string) (*assembly, error) {
	f, err := os.OpenFile(filepath.Join(dir, assemblyName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &assembly{File: f}, err
}

// A layout is where the parts of an object will be.
type layout struct {
	at    map[string]int64 // by the names of their files
	total int64
}

// layoutOf returns the layout of the object that a client wants of parts of
// the upload in dir. Those that are not there versitygw will ask for.
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

// fits reports whether each part whose bytes the assembly has is where l wants
// it. Then the assembly can be made the object: whatever else is written into
// it, and wherever that is broken off, is in no other part's place.
func (a *assembly) fits(dir string, l layout) (bool, error) {
	if a == nil || !a.alone() {
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

// keep puts the bytes of a part, which are to be at offset at of the object,
// into an assembly that fits.
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

// copy appends the bytes of a part to the file to, from wherever they are.
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

// become makes the assembly, cut to size, the file that versitygw has open as
// to. What is done through that from here on is done to the assembly; its own
// name stays until the upload's directory is removed, so that it is there
// still where this is broken off.
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
