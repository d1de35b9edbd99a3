package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/crc64nvme"
	"github.com/pkg/xattr"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
	"golang.org/x/sys/unix"

	"imageroot/shared/store"
)

// Put replaces or creates an object from within the process, with all that holds for
// a PUT through S3, and returns its ETag without quotes. It writes size bytes of body,
// or all if size is negative. A body that fails, or that has fewer or more bytes,
// changes nothing, and its error is returned. [Fault] describes other errors. It is
// safe for concurrent use. If create is true, it replaces no object: the error is that of a
// PUT with If-None-Match: *.
func (g *Gateway) Put(ctx context.Context, bucket, key string, body io.Reader, size int64, create bool) (etag string, err error) {
	b, s := g.backend, newStream(ctx, body, size)
	var ifNoneMatch *string
	if create {
		any := "*"
		ifNoneMatch = &any
	}
	out, err := onObject(b, "write", &bucket, &key, true, func(p place) (s3response.PutObjectOutput, error) {
		if p.folder() {
			return s3response.PutObjectOutput{}, refuse("The key is that of a directory.")
		}
		return b.put(context.WithoutCancel(ctx), p, s3response.PutObjectInput{Body: s, ContentType: &octets, IfNoneMatch: ifNoneMatch})
	})
	return strings.Trim(out.ETag, `"`), s.cause(err)
}

// PutPart is [Gateway.Put] for part n of an upload, whose size must be known.
func (g *Gateway) PutPart(ctx context.Context, bucket, key, id string, n int32, body io.Reader, size int64) (etag string, err error) {
	s := newStream(ctx, body, size)
	out, err := g.backend.UploadPart(context.WithoutCancel(ctx), &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: &id, PartNumber: &n, Body: s})
	if err != nil {
		return "", s.cause(err)
	}
	return strings.Trim(*out.ETag, `"`), nil
}

// octets is the Content-Type of objects that the program writes.
var octets = "application/octet-stream"

// Fault returns the S3 error code and the HTTP status with which a client would be
// answered err, or neither.
func Fault(err error) (code string, status int) {
	if known, ok := errors.AsType[s3err.S3Error](err); ok {
		return known.BaseError().Code, known.StatusCode()
	}
	return "", 0
}

// A stream is the body of a write from within the process. versitygw lets it write
// itself to the file, since it is an io.WriterTo, and then requests the checksum, as
// it does for one that follows a request's body. Pages of zeros become holes in the file of
// an object.
type stream struct {
	ctx  context.Context
	body io.Reader
	size int64        // negative if unknown
	room func() error // returns errFull if the disk is full

	// place returns the assembly for the bytes of a part, and their offset in it, or
	// nil. It is nil for an object.
	place    func() (*assembly, int64)
	assembly *assembly // that the bytes are in, if any

	file    *os.File // that the bytes are written to
	at      int64    // the offset of the first one in it
	written int64
	begun   int64 // the bytes of written that the system was told to write to the disk
	evicted int64 // the bytes of begun that are on the disk, and no longer in the page cache
	sum     hash.Hash64
	failed  error // of the disk
	err     error // of body or ctx
}

func newStream(ctx context.Context, body io.Reader, size int64) *stream {
	return &stream{ctx: ctx, body: body, size: size, sum: crc64nvme.New()}
}

// Read implements io.Reader. It fails, since only WriteTo returns the bytes.
func (s *stream) Read([]byte) (int, error) {
	return 0, errors.New("this version of versitygw reads what it should let write itself; use the version in go.mod")
}

// Algorithm and Checksum implement versitygw's reader of a trailing checksum.
func (s *stream) Algorithm() string { return "crc64nvme" }

// Checksum: see Algorithm.
func (s *stream) Checksum() string { return base64.StdEncoding.EncodeToString(s.sum.Sum(nil)) }

// WriteTo implements io.WriterTo for a temporary file of versitygw's. The bytes of a
// part for which the assembly has room go there; its own file gets the size.
func (s *stream) WriteTo(w io.Writer) (int64, error) {
	staged, ok := w.(interface{ File() *os.File })
	if !ok {
		return 0, errors.New("this version of versitygw hides its files; use the version in go.mod")
	}
	own := staged.File()
	s.file = own
	if s.place != nil {
		if s.assembly, s.at = s.place(); s.assembly != nil {
			s.file = s.assembly.File
		}
	}
	_, err := io.Copy(s, s.body)
	switch {
	case s.failed != nil:
		return s.written, s.failed
	case err == nil && s.written < s.size:
		err = fmt.Errorf("the body ended after %d of %d bytes: %w", s.written, s.size, io.ErrUnexpectedEOF)
	case err == nil:
		err = s.ctx.Err()
	}
	if err != nil {
		s.err = err
		return s.written, errCut
	}
	if s.assembly == nil {
		err = own.Truncate(s.written) // it may end with a hole
	} else {
		err = errors.Join(own.Truncate(s.size), xattr.FSet(own, attrPrefix+attrAt, fmt.Append(nil, s.at)))
	}
	return s.written, err
}

// ahead is the number of bytes after which the system is told to write them to the disk, so
// that the sync at the end has little left to do.
const ahead = 8 << 20

// writeBytes is the size of one write. For a larger one, Linux allocates larger pieces of
// contiguous memory for its cache, which can take longer than copying the bytes.
const writeBytes = 128 << 10

// Write implements io.Writer for WriteTo.
func (s *stream) Write(p []byte) (n int, err error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if s.size >= 0 && s.written+int64(len(p)) > s.size {
		return 0, fmt.Errorf("the body has more than %d bytes", s.size)
	}
	_, _ = s.sum.Write(p)
	for block := range slices.Chunk(p, writeBytes) {
		if s.written-s.begun >= ahead {
			if s.failed = s.advance(); s.failed != nil {
				return n, s.failed
			}
		}
		for run, zeros := range store.Runs(block) {
			m := len(run)
			if !zeros || s.assembly != nil { // an assembly may have had other bytes there
				m, s.failed = s.file.WriteAt(run, s.at+s.written)
			}
			s.written += int64(m)
			n += m
			if s.failed != nil {
				return n, s.failed
			}
		}
	}
	return n, nil
}

// advance has the system begin to write the new bytes to the disk. It waits for the bytes that
// the call before has begun, and evicts them from the page cache: an image does not push all
// else out of it, and in a virtual machine, new pages cost more than the copy into them.
func (s *stream) advance() error {
	fd := int(s.file.Fd())
	switch err := unix.SyncFileRange(fd, s.at+s.begun, s.written-s.begun, unix.SYNC_FILE_RANGE_WRITE); {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
		// The file system or a filter of system calls does not have it. It is advice.
	case err != nil:
		return fmt.Errorf("write to the disk: %w", err)
	case s.begun > s.evicted:
		const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(fd, s.at+s.evicted, s.begun-s.evicted, wait); err != nil {
			return fmt.Errorf("write to the disk: %w", err) // the sync at the end does not return it again
		}
		_ = unix.Fadvise(fd, s.at+s.evicted, s.begun-s.evicted, unix.FADV_DONTNEED)
		s.evicted = s.begun
	}
	s.begun = s.written
	return s.room()
}

// evict removes the bytes from the page cache, if they are many. The caller has synced the file.
func (s *stream) evict() {
	if s.written >= 2*ahead {
		_ = unix.Fadvise(int(s.file.Fd()), s.at, s.written, unix.FADV_DONTNEED)
	}
}

// close releases the assembly, if it has the bytes. If the part was not written, it
// removes them from it.
func (s *stream) close(written bool) {
	if s.assembly == nil {
		return
	}
	if !written {
		punch(s.assembly.File, s.at, s.size)
	}
	s.assembly.Close()
}

// cause returns the error of a write that failed with err.
func (s *stream) cause(err error) error {
	if err != nil && s.err != nil {
		return s.err
	}
	return err
}
