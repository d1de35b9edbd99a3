package gateway

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/valyala/fasthttp"
	vgw "github.com/versity/versitygw/backend"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// maxCopy is the maximum number of bytes that one request copies, as on AWS.
const maxCopy = 5 << 30

// source opens the object that a copy reads, if it meets the conditions. If owner
// is given, it must own the bucket.
func (b *backend) source(ctx context.Context, copySource, owner *string, conditions vgw.PreConditions) (p place, f *os.File, v version, err error) {
	if copySource == nil {
		return p, nil, v, errNoSuchKey
	}
	// Clients disagree on whether a plus is a space.
	p, f, err = b.sourceFile(strings.ReplaceAll(*copySource, "+", "%2B"))
	if errors.Is(err, errNoSuchKey) {
		p, f, err = b.sourceFile(*copySource)
	}
	if err != nil {
		return p, nil, v, err
	}
	err = b.reaches(ctx, p)
	if owner != nil && *owner != "" && *owner != b.attrs.owner {
		err = s3err.GetAPIError(s3err.ErrAccessDenied)
	}
	if err == nil {
		v, err = b.subject(p, f).version()
	}
	if err == nil {
		err = vgw.EvaluatePreconditions(v.etag(), v.modTime(), conditions)
	}
	if err != nil {
		f.Close()
	}
	return p, f, v, err
}

func (b *backend) sourceFile(copySource string) (place, *os.File, error) {
	bucket, key, id, err := vgw.ParseCopySource(copySource)
	if err != nil {
		return place{}, nil, err
	}
	if id != "" && id != "null" {
		return place{}, nil, s3err.GetInvalidArgumentErr(s3err.InvalidArgVersionId, id)
	}
	p, err := b.object(&bucket, &key, false)
	if err != nil {
		return p, nil, err
	}
	f, err := p.open()
	return p, f, err
}

// unchanged fails if f, opened at version v, was written to since.
func unchanged(f *os.File, v version) error {
	info, err := f.Stat()
	if err == nil && stampOf(info) != v.stamp {
		err = errBusy
	}
	return err
}

// A stableReader reads a file and fails at its end if the file was written to
// meanwhile.
type stableReader struct {
	io.Reader
	file    *os.File
	version version
}

func (s stableReader) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		if changed := unchanged(s.file, s.version); changed != nil {
			err = changed
		}
	}
	return n, err
}

func (b *backend) CopyObject(ctx context.Context, in s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	return onObject(b, "copy to", in.Bucket, in.Key, true, func(p place) (s3response.CopyObjectOutput, error) { return b.copy(ctx, p, in) })
}

func (b *backend) copy(ctx context.Context, p place, in s3response.CopyObjectInput) (out s3response.CopyObjectOutput, err error) {
	if err := p.writable(); err != nil {
		return out, err
	}
	from, f, v, err := b.source(ctx, in.CopySource, in.ExpectedSourceBucketOwner, vgw.PreConditions{
		IfMatch: in.CopySourceIfMatch, IfNoneMatch: in.CopySourceIfNoneMatch,
		IfModSince: in.CopySourceIfModifiedSince, IfUnmodeSince: in.CopySourceIfUnmodifiedSince,
	})
	if err != nil {
		return out, err
	}
	defer f.Close()
	sums, err := subject{file: f}.sums()
	if err != nil {
		return out, err
	}
	replace := in.MetadataDirective == types.MetadataDirectiveReplace
	switch {
	case v.size > maxCopy:
		return out, s3err.GetCopySourceObjectTooLargeErr(maxCopy)
	case from == p && !replace:
		return out, s3err.GetAPIError(s3err.ErrInvalidCopyDest)
	}
	ifMatch, ifNoneMatch := conditions(ctx)
	if in.ChecksumAlgorithm == "" && v.stored != "" {
		in.ChecksumAlgorithm = sums.Algorithm
	}
	put := s3response.PutObjectInput{
		ContentLength: &v.size, ChecksumAlgorithm: in.ChecksumAlgorithm,
		Body:        stableReader{io.LimitReader(f, v.size), f, v},
		ContentType: in.ContentType, ContentEncoding: in.ContentEncoding, ContentDisposition: in.ContentDisposition,
		ContentLanguage: in.ContentLanguage, CacheControl: in.CacheControl, Expires: in.Expires, Metadata: in.Metadata,
		WebsiteRedirectLocation: in.WebsiteRedirectLocation, Tagging: in.Tagging,
		IfMatch: ifMatch, IfNoneMatch: ifNoneMatch,
	}
	if !replace {
		head, err := b.posix.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &from.dir, Key: &from.key})
		if err != nil {
			return out, err
		}
		put.ContentType, put.ContentEncoding, put.ContentDisposition = head.ContentType, head.ContentEncoding, head.ContentDisposition
		put.ContentLanguage, put.CacheControl, put.Expires = head.ContentLanguage, head.CacheControl, head.ExpiresString
		put.Metadata = head.Metadata
	}
	if in.TaggingDirective != types.TaggingDirectiveReplace {
		tags, err := b.posix.GetObjectTagging(ctx, from.dir, from.key, "")
		if err != nil && !errors.Is(err, s3err.GetAPIError(s3err.ErrBucketTaggingNotFound)) {
			return out, err
		}
		query := url.Values{}
		for k, v := range tags {
			query.Set(k, v)
		}
		encoded := query.Encode()
		put.Tagging = &encoded
	}
	res, err := b.put(ctx, p, put)
	if err != nil {
		return out, err
	}
	info, err := p.readable()
	if err != nil {
		return out, err
	}
	return copied(&res.ETag, info.ModTime(), res), nil
}

// copied returns the answer to a copy, with the checksums of sums.
func copied(etag *string, modified time.Time, sums any) s3response.CopyObjectOutput {
	var result s3response.CopyObjectResult
	carry(&result, sums)
	result.ETag, result.LastModified = etag, &modified
	return s3response.CopyObjectOutput{CopyObjectResult: &result}
}

// conditions returns the conditions of the request behind ctx, a copy, on the
// object that it replaces. versitygw does not read them.
func conditions(ctx context.Context) (ifMatch, ifNoneMatch *string) {
	req, ok := ctx.(*fasthttp.RequestCtx)
	if !ok {
		return nil, nil
	}
	header := func(name string) *string {
		return s3utils.GetStringPtr(s3utils.TrimQuotes(string(req.Request.Header.Peek(name))))
	}
	return header("If-Match"), header("If-None-Match")
}
