package gateway

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/pkg/xattr"
	"github.com/versity/versitygw/s3response"
)

// sums returns the checksums that versitygw stored with a file or an upload,
// or none.
func (s subject) sums() (sums s3response.Checksum, err error) {
	value, err := s.get(attrSums)
	if errors.Is(err, xattr.ENOATTR) {
		return sums, nil
	}
	if err == nil {
		err = json.Unmarshal(value, &sums)
	}
	return sums, err
}

// Extended attributes of a file. Those named imageroot-... are this program's, the
// others versitygw's.
const (
	attrPrefix = "user."
	// attrETag is what versitygw stored as the ETag: a sum of the bytes.
	attrETag = "etag"
	// attrVersion is the stamp of the file when attrETag was written.
	attrVersion = "imageroot-version"
	// attrSums are the checksums of the bytes.
	attrSums = "checksums"
	// attrParts are the upload ID and the sizes of the parts: see [partTable].
	attrParts = "mp-metadata"
	attrACL   = "acl"
	// attrChanged is when the gateway itself last changed the file: see
	// [subject.intact].
	attrChanged = "imageroot-changed"
)

// A stamp distinguishes contents of a file without reading them.
type stamp struct {
	mtime int64 // nanoseconds since 1970
	size  int64
	inode uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{mtime: info.ModTime().UnixNano(), size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}

func (s stamp) String() string { return fmt.Sprintf("%x.%x.%x", s.mtime, s.size, s.inode) }

// A version describes a file's current content.
type version struct {
	stamp
	// stored is the sum that versitygw stored with this content, empty for a file
	// that was not written through S3 or was edited since.
	stored string
	// ctime is the file's change time in nanoseconds, or 0 if the gateway made the
	// last change.
	ctime int64
}

// etag returns the object's ETag. It depends on the stored sum, the modification
// time, the size and the inode, so no two contents of a key share it: two writes
// within one tick of the clock differ by their sum. For a file changed by others
// it also depends on the change time, since the modification time can be set back
// after an edit. It does not have the form of an MD5, which clients compare with what
// they sent.
func (v version) etag() string {
	of := v.stored + "\x00" + v.stamp.String()
	if v.ctime != 0 {
		of += fmt.Sprintf(".%x", v.ctime)
	}
	sum := sha256.Sum256([]byte(of))
	return fmt.Sprintf("%q", fmt.Sprintf("%x-1", sum[:16]))
}

func (v version) modTime() time.Time { return time.Unix(0, v.mtime) }

// A subject is an open file, or a path whose last element is not followed.
type subject struct {
	file *os.File
	path string
	// since is the change time, in nanoseconds, after which a change by others
	// makes another version, or 0 if only the gateway changes the file.
	since int64
}

// grace is the time after a mark in which a change counts as the gateway's own.
const grace = time.Second

// intact reports whether only the gateway has changed the file, by its change
// time, which no program can set. New permissions and names change it too: such a
// file counts as another version.
func (s subject) intact(ctime int64) (bool, error) {
	if s.since == 0 || ctime <= s.since {
		return true, nil
	}
	marked, err := number(s.get(attrChanged))
	if err != nil {
		return false, err
	}
	return ctime <= marked+int64(grace), nil
}

// isIntact is intact for the current change time. It reports false on an error.
func (s subject) isIntact() bool {
	info, err := s.info()
	if err != nil {
		return false
	}
	intact, err := s.intact(ctimeOf(info))
	return err == nil && intact
}

// mark records that the file's last change was the gateway's own.
func (s subject) mark() error {
	for range tries {
		info, err := s.info()
		if err != nil {
			return err
		}
		marked := ctimeOf(info)
		if s.file != nil {
			err = xattr.FSet(s.file, attrPrefix+attrChanged, fmt.Append(nil, marked))
		} else {
			err = xattr.LSet(s.path, attrPrefix+attrChanged, fmt.Append(nil, marked))
		}
		if err != nil {
			return err
		}
		// On a busy disk, writing the mark may take longer than grace.
		if info, err = s.info(); err != nil || ctimeOf(info) <= marked+int64(grace) {
			return err
		}
	}
	return errBusy
}

// ctimeOf returns the change time of a file or its metadata, in nanoseconds since
// 1970.
func ctimeOf(info fs.FileInfo) int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ctim.Nano()
}

func (s subject) info() (fs.FileInfo, error) {
	if s.file != nil {
		return s.file.Stat()
	}
	return os.Lstat(s.path)
}

func (s subject) get(attribute string) ([]byte, error) {
	if s.file != nil {
		return xattr.FGet(s.file, attrPrefix+attribute)
	}
	return xattr.LGet(s.path, attrPrefix+attribute)
}

// version reads the version of a regular file. The result describes one content,
// even if the file is replaced meanwhile.
func (s subject) version() (version, error) {
	info, err := s.info()
	for range 100 {
		if err != nil {
			return version{}, err
		}
		if !info.Mode().IsRegular() {
			return version{}, fs.ErrNotExist
		}
		v := version{stamp: stampOf(info)}
		var intact bool
		if intact, err = s.intact(ctimeOf(info)); !intact {
			v.ctime = ctimeOf(info)
		} else {
			var of []byte
			of, err = s.get(attrVersion)
			if err == nil && string(of) == v.stamp.String() {
				sum, err := s.get(attrETag)
				if err == nil {
					v.stored = string(sum)
				}
			}
		}
		// A file that may not be read still exists, and is listed.
		if err != nil && !errors.Is(err, xattr.ENOATTR) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return version{}, err
		}
		var again fs.FileInfo
		if again, err = s.info(); err == nil && stampOf(again) == v.stamp && ctimeOf(again) == ctimeOf(info) && os.SameFile(info, again) {
			return v, nil
		}
		info = again
	}
	return version{}, errBusy
}
