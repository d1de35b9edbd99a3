package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/s3response"
)

// tries bounds the attempts to read an object that is being replaced.
const tries = 20

// HeadObject implements backend.Backend.
func (b *backend) HeadObject(ctx context.Context, in *s3.HeadObjectInput) (*s3.HeadObjectOutput, error) {
	p, err := b.object(in.Bucket, in.Key, false)
	if err != nil {
		return nil, b.answer("look at", p, err)
	}
	if p.folder() {
		out, err := b.headFolder(ctx, p, in)
		return out, b.answer("look at", p, err)
	}
	f, out, err := b.look(ctx, p, in)
	if err != nil {
		return nil, b.answer("look at", p, err)
	}
	return out, b.answer("look at", p, f.Close())
}

func (b *backend) headFolder(ctx context.Context, p place, in *s3.HeadObjectInput) (*s3.HeadObjectOutput, error) {
	if _, err := p.readable(); err != nil {
		return nil, err
	}
	copied := *in
	copied.Bucket, copied.Key = &p.dir, &p.key
	return b.posix.HeadObject(ctx, &copied)
}

// look opens the object at p and returns versitygw's description of it, both of
// one version.
func (b *backend) look(ctx context.Context, p place, in *s3.HeadObjectInput) (*os.File, *s3.HeadObjectOutput, error) {
	copied := *in
	copied.Bucket, copied.Key = &p.dir, &p.key
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
		out, err := b.posix.HeadObject(ctx, &copied)
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

// GetObject implements backend.Backend.
func (b *backend) GetObject(ctx context.Context, in *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	p, err := b.object(in.Bucket, in.Key, false)
	if err != nil {
		return nil, b.answer("read", p, err)
	}
	out, err := b.get(ctx, p, in)
	return out, b.answer("read", p, err)
}

func (b *backend) get(ctx context.Context, p place, in *s3.GetObjectInput) (*s3.GetObjectOutput, error) {
	if p.folder() {
		if _, err := p.readable(); err != nil {
			return nil, err
		}
		copied := *in
		copied.Bucket, copied.Key = &p.dir, &p.key
		return b.posix.GetObject(ctx, &copied)
	}
	f, head, err := b.look(ctx, p, &s3.HeadObjectInput{
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
	return &s3.GetObjectOutput{
		AcceptRanges: head.AcceptRanges, Body: body,
		CacheControl: head.CacheControl, ChecksumCRC32: head.ChecksumCRC32, ChecksumCRC32C: head.ChecksumCRC32C,
		ChecksumCRC64NVME: head.ChecksumCRC64NVME, ChecksumMD5: head.ChecksumMD5, ChecksumSHA1: head.ChecksumSHA1,
		ChecksumSHA256: head.ChecksumSHA256, ChecksumSHA512: head.ChecksumSHA512, ChecksumType: head.ChecksumType,
		ChecksumXXHASH128: head.ChecksumXXHASH128, ChecksumXXHASH3: head.ChecksumXXHASH3, ChecksumXXHASH64: head.ChecksumXXHASH64,
		ContentDisposition: head.ContentDisposition, ContentEncoding: head.ContentEncoding, ContentLanguage: head.ContentLanguage,
		ContentLength: head.ContentLength, ContentRange: head.ContentRange, ContentType: head.ContentType,
		ETag: head.ETag, ExpiresString: head.ExpiresString, LastModified: head.LastModified, Metadata: head.Metadata,
		PartsCount: head.PartsCount, StorageClass: head.StorageClass, TagCount: head.TagCount, VersionId: head.VersionId,
		WebsiteRedirectLocation: head.WebsiteRedirectLocation,
	}, nil
}

// GetObjectAttributes implements backend.Backend.
func (b *backend) GetObjectAttributes(ctx context.Context, in *s3.GetObjectAttributesInput) (s3response.GetObjectAttributesResponse, error) {
	p, err := b.object(in.Bucket, in.Key, false)
	if err == nil {
		_, err = p.readable()
	}
	if err != nil {
		return s3response.GetObjectAttributesResponse{}, b.answer("look at", p, err)
	}
	copied := *in
	copied.Bucket, copied.Key = &p.dir, &p.key
	out, err := b.posix.GetObjectAttributes(ctx, &copied)
	return out, b.answer("look at", p, err)
}

// A File is an object opened without S3. The caller closes it.
type File struct {
	*os.File
	ETag         string // as S3 has it, without quotes
	Size         int64  // bytes
	LastModified time.Time
}

// Open opens an object from within the process, which copies its bytes once and
// not four times. It returns fs.ErrNotExist if there is no such object, else an
// error of the file system. It is safe for concurrent use.
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
