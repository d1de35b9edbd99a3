package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/pkg/xattr"
	"github.com/versity/versitygw/s3response"
)

// tries limits the attempts to read an object that is being replaced.
const tries = 20

func (b *backend) HeadObject(ctx context.Context, in *s3.HeadObjectInput) (*s3.HeadObjectOutput, error) {
	return onObject(b, "read", in.Bucket, in.Key, false, func(p place) (*s3.HeadObjectOutput, error) {
		if p.folder() {
			if _, err := p.readable(); err != nil {
				return nil, err
			}
			in.Bucket, in.Key = &p.dir, &p.key
			return b.posix.HeadObject(ctx, in)
		}
		f, out, err := b.describe(ctx, p, in)
		if err != nil {
			return nil, err
		}
		return out, f.Close()
	})
}

// describe opens the object at p and returns versitygw's description of it, both
// of one version.
func (b *backend) describe(ctx context.Context, p place, in *s3.HeadObjectInput) (*os.File, *s3.HeadObjectOutput, error) {
	in.Bucket, in.Key = &p.dir, &p.key
	for range tries {
		f, err := p.open()
		if err != nil {
			return nil, nil, err
		}
		v, err := b.subject(p, f).version()
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		out, err := b.posix.HeadObject(ctx, in)
		if err == nil && out.ETag != nil && *out.ETag == v.etag() && out.LastModified != nil && out.LastModified.Equal(v.modTime()) {
			return f, out, nil
		}
		f.Close()
		if err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, errBusy
}

func (b *backend) GetObject(ctx context.Context, in *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	return onObject(b, "read", in.Bucket, in.Key, false, func(p place) (*s3.GetObjectOutput, error) { return b.get(ctx, p, in) })
}

func (b *backend) get(ctx context.Context, p place, in *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	if p.folder() {
		if _, err := p.readable(); err != nil {
			return nil, err
		}
		in.Bucket, in.Key = &p.dir, &p.key
		return b.posix.GetObject(ctx, in)
	}
	f, head, err := b.describe(ctx, p, &s3.HeadObjectInput{
		ChecksumMode: in.ChecksumMode, VersionId: in.VersionId,
		IfMatch: in.IfMatch, IfNoneMatch: in.IfNoneMatch,
		IfModifiedSince: in.IfModifiedSince, IfUnmodifiedSince: in.IfUnmodifiedSince,
		Range: in.Range, PartNumber: in.PartNumber,
	})
	if err != nil {
		return nil, err
	}
	body := &fileBody{f, *head.ContentLength}
	if head.ContentRange != nil {
		var first int64
		_, err := fmt.Sscanf(*head.ContentRange, "bytes %d-", &first)
		if err == nil {
			_, err = f.Seek(first, io.SeekStart)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
	}
	out := &s3.GetObjectOutput{Body: body}
	carry(out, *head)
	return out, nil
}

// carry sets the fields of the struct behind to that have the name and type of a
// field of from. In from, the name of a checksum may lack the prefix Checksum.
func carry(to, from any) {
	into, of := reflect.ValueOf(to).Elem(), reflect.ValueOf(from)
	for i := range into.NumField() {
		field := into.Type().Field(i)
		value := of.FieldByName(field.Name)
		if !value.IsValid() {
			value = of.FieldByName(strings.TrimPrefix(field.Name, "Checksum"))
		}
		if field.IsExported() && value.IsValid() && value.Type() == field.Type {
			into.Field(i).Set(value)
		}
	}
}

func (b *backend) GetObjectAttributes(ctx context.Context, in *s3.GetObjectAttributesInput) (s3response.GetObjectAttributesResponse, error) {
	return onExisting(b, "read", in.Bucket, in.Key, func(p place) (s3response.GetObjectAttributesResponse, error) {
		in.Bucket, in.Key = &p.dir, &p.key
		return b.posix.GetObjectAttributes(ctx, in)
	})
}

// A File is an object opened without S3. The caller closes it.
type File struct {
	*os.File
	ETag         string // as S3 has it, without quotes
	Size         int64  // bytes
	LastModified time.Time
	Written      bool // through S3 or by this program, whoever has changed it since
	opened       fs.FileInfo
}

// Same reports whether no program has changed the file, its attributes or its names since
// it was opened. A change within the same tick of the kernel's clock is not seen.
func (f *File) Same() bool {
	now, err := f.Stat()
	return err == nil && stampOf(now) == stampOf(f.opened) && ctimeOf(now) == ctimeOf(f.opened)
}

// Open opens an object from within the process. Reading it copies the bytes once;
// S3 would copy them four times. It returns [fs.ErrNotExist] if the bucket has no
// such object. Other errors are of S3 or the file system. It is safe for concurrent
// use.
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
	opened, err := g.backend.file(p, f)
	if err != nil {
		f.Close()
	}
	return opened, err
}

// file returns the open file f, which is at p, as a File.
func (b *backend) file(p place, f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	v, err := b.subject(p, f).version()
	if err != nil {
		return nil, err
	}
	_, err = b.subject(p, f).get(attrETag)
	return &File{f, strings.Trim(v.etag(), `"`), v.size, v.modTime(), !errors.Is(err, xattr.ENOATTR), info}, nil
}
