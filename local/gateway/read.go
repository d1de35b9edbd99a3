package gateway

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"
)

// A File is an object that is read without S3 in between. It must be closed.
type File struct {
	*os.File
	ETag         string // as S3 has it, without quotes
	Size         int64  // bytes
	LastModified time.Time
}

// Open opens an object of this gateway from within the process: what it holds
// costs one copy then, not four. The error is fs.ErrNotExist where there is no
// such object, and otherwise the file system's.
func (g *Gateway) Open(bucket, key string) (*File, error) {
	p, err := g.backend.object(&bucket, &key, false)
	if err == nil && p.folder() {
		err = errNoSuchKey
	}
	var f *os.File
	if err == nil {
		f, err = p.open()
	}
	if errors.Is(err, errNoSuchKey) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	v, err := g.backend.subject(p, f).version()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{f, strings.Trim(v.etag(), `"`), v.size, v.modTime()}, nil
}
