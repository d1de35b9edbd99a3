package gateway

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/pkg/xattr"
)

// Extended attributes of a file. All but the second are versitygw's.
const (
	attrPrefix = "user."
	// attrETag is what versitygw stored as the ETag: a sum of the bytes.
	attrETag = "etag"
	// attrVersion is the stamp of the file when attrETag was written.
	attrVersion = "imageroot-version"
	// attrSums are the checksums of the bytes.
	attrSums = "checksums"
	// attrParts are the upload ID and the offsets of parts.
	attrParts = "mp-metadata"
	attrACL   = "acl"
	// attrRedirect is where a website's object redirects to.
	attrRedirect = "website-redirect-location"
)

// A stamp tells one content of a file from another without reading it.
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

// A version is what is known of a file's present content.
type version struct {
	stamp
	// stored is the sum that versitygw stored with this very content, empty
	// for a file that came another way or was edited since.
	stored string
}

// etag is the object's ETag. It depends on the stored sum, the modification
// time, the size and the inode together, so no two contents that a key ever
// has share it: two writes within one tick of the clock differ by their sum.
// It looks like no MD5, as clients compare those with what they sent.
func (v version) etag() string {
	sum := sha256.Sum256([]byte(v.stored + "\x00" + v.stamp.String()))
	return fmt.Sprintf("%q", fmt.Sprintf("%x-1", sum[:16]))
}

func (v version) modTime() time.Time { return time.Unix(0, v.mtime) }

// A subject is an open file, or a path whose last element is not followed.
type subject struct {
	file *os.File
	path string
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

// version reads the version of a regular file. The result is of one content,
// also where the file is replaced meanwhile.
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
		var of []byte
		of, err = s.get(attrVersion)
		if err == nil && string(of) == v.stamp.String() {
			sum, err := s.get(attrETag)
			if err == nil {
				v.stored = string(sum)
			}
		}
		// A file that may not be read is still there, and listed.
		if err != nil && !errors.Is(err, xattr.ENOATTR) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return version{}, err
		}
		var again fs.FileInfo
		if again, err = s.info(); err == nil && stampOf(again) == v.stamp && os.SameFile(info, again) {
			return v, nil
		}
		info = again
	}
	return version{}, errBusy
}
