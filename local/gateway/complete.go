package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// CompleteMultipartUpload can be repeated: another request waits for the first one
// and gets the same answer, as long as the object is the upload's.
func (b *backend) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	out, err := onUpload(b, "complete upload of", in.Bucket, in.Key, in.UploadId, func(p place, id string) (s3response.CompleteMultipartUploadResult, error) {
		out, err := b.complete(ctx, p, id, *in)
		out.Bucket, out.Key = &p.bucket, &p.key
		return out, err
	})
	return out, "", err
}

func (b *backend) complete(ctx context.Context, p place, id string, in s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, error) {
	var none s3response.CompleteMultipartUploadResult
	if err := p.writable(); err != nil {
		return none, err
	}
	claim, err := claimUpload(ctx, p, id)
	if errors.Is(err, fs.ErrNotExist) {
		v, completed := madeBy(p, id)
		if !completed {
			return none, s3err.GetNoSuchUploadErr(id)
		}
		etag := v.etag()
		return s3response.CompleteMultipartUploadResult{ETag: &etag}, nil
	}
	if err != nil {
		return none, err
	}
	defer claim.Close()

	dir := filepath.Join(p.uploads(), id)
	var parts []types.CompletedPart
	if in.MultipartUpload != nil {
		parts = in.MultipartUpload.Parts
	}
	a, err := openAssembly(dir)
	if err != nil {
		return none, err
	}
	if a != nil {
		defer a.Close()
	}
	l := layoutOf(dir, parts)
	fits, err := a.fits(dir, l)
	if err != nil {
		return none, err
	}
	missing := l.total
	if fits {
		missing -= a.has
	}
	if err := b.attrs.free.room(p.dir, missing); err != nil {
		return none, err
	}
	if err := xattr.LSet(dir, attrPrefix+attrNamed, fmt.Append(nil, len(parts))); err != nil {
		return none, err
	}
	in.Bucket, in.Key, in.UploadId = &p.dir, &p.key, &id
	var written version
	copied := 0
	done := func(bool) {}
	var failed error
	out, _, err := b.posix.CompleteMultipartUploadWithCopy(ctx, &in, func(from, to *os.File) (bool, error) {
		if failed == nil {
			if fits {
				failed = a.keep(l.at[filepath.Base(from.Name())], from)
			} else {
				failed = a.copy(to, from)
			}
		}
		if copied++; copied == len(parts) && failed == nil {
			if fits {
				failed = a.become(to, l.total)
			}
			if failed == nil {
				written.stamp, failed = flush(to)
			}
			done = b.expect(p.bucket, p.key)
		}
		if failed != nil {
			if fits {
				_ = a.Truncate(a.end) // frees space on a full disk
			}
			// versitygw continues after an error and would publish the file.
			// It cannot publish a closed one.
			to.Close()
		}
		return true, failed
	})
	if failed != nil {
		err = failed
	}
	b.mark(p, err)
	done(err == nil)
	if err != nil {
		return none, p.cause(err)
	}
	if out.ETag == nil || copied < len(parts) {
		return none, fmt.Errorf("versitygw completed an upload of %d parts with %d", len(parts), copied)
	}
	written.stored = *out.ETag
	etag := written.etag()
	out.ETag = &etag
	err = p.sync()
	b.report(p, false)
	return out, err
}

// madeBy reports whether the upload id made the object at p, and its version.
func madeBy(p place, id string) (version, bool) {
	f, err := p.open()
	if err != nil {
		return version{}, false
	}
	defer f.Close()
	s := subject{file: f}
	v, err := s.version()
	if err != nil || v.stored == "" {
		return version{}, false
	}
	data, err := s.get(attrParts)
	if err != nil {
		return version{}, false
	}
	t, err := parsePartTable(data)
	return v, err == nil && t.UploadID == id
}
