package gateway

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"

	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3response"
)

func (b *backend) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	return onObject(b, "write", in.Bucket, in.Key, true, func(p place) (s3response.PutObjectOutput, error) {
		if err := errors.Join(b.reaches(ctx, p), formAsks(ctx, b.now())); err != nil {
			return s3response.PutObjectOutput{}, err
		}
		return b.put(ctx, p, in)
	})
}

// put writes an object at p durably and reports the change.
func (b *backend) put(ctx context.Context, p place, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	var size int64
	if in.ContentLength != nil {
		size = *in.ContentLength
	}
	within, _ := in.Body.(*stream)
	if within != nil {
		size, within.room = max(0, within.size), b.attrs.free.more(p.dir)
	}
	if err := errors.Join(p.writable(), b.attrs.free.room(p.dir, size)); err != nil {
		return s3response.PutObjectOutput{}, err
	}
	if file, ok := in.Body.(s3utils.MpFileReader); ok {
		size += int64(len("\r\n")) // the line break may be missing after the last boundary
		in.Body, in.ContentLength = &formFile{MpFileReader: file}, &size
	} else if in.Body != nil && within == nil {
		in.Body = &upload{in.Body, size}
	}
	in.Bucket, in.Key = &p.dir, &p.key
	var written version
	done := func(bool) {}
	out, err := b.posix.PutObjectWithPostFunc(ctx, in, func(f *os.File) (err error) {
		// All bytes are written, and the key is not locked yet.
		if written.stamp, err = flush(f); err == nil && within != nil {
			within.evict()
		}
		done = b.expect(p.bucket, p.key)
		return err
	})
	b.mark(p, err)
	done(err == nil)
	if err != nil {
		return s3response.PutObjectOutput{}, p.cause(err)
	}
	if !p.folder() {
		written.stored = out.ETag
		out.ETag = written.etag()
	}
	err = p.sync()
	b.report(p, false)
	return out, err
}

// subject returns the open file f, which is at p, as a subject.
func (b *backend) subject(p place, f *os.File) subject {
	return subject{file: f, since: b.attrs.since(p.bucket)}
}

// mark records that the gateway has just changed the file at p, if err is nil and
// others change files of the bucket. Without the mark the object counts as another
// version and is hashed again. A file that others have changed must not be marked:
// the change would not make another version.
func (b *backend) mark(p place, err error) {
	if err != nil || p.folder() || b.attrs.since(p.bucket) == 0 {
		return
	}
	if err := (subject{path: p.path()}).mark(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("a change of an object could not be marked", slog.String("bucket", p.bucket), slog.String("key", p.key), slog.Any("error", err))
	}
}

// flush makes the bytes of f durable and returns its stamp.
func flush(f *os.File) (stamp, error) {
	if err := f.Sync(); err != nil {
		return stamp{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	return stampOf(info), nil
}
