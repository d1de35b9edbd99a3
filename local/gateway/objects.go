package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"
	"github.com/valyala/fasthttp"
	vgw "github.com/versity/versitygw/backend"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
	"golang.org/x/sys/unix"
)

// PutObject implements backend.Backend.
func (b *backend) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	p, err := b.object(in.Bucket, in.Key, true)
	if err == nil {
		err = errors.Join(b.reaches(ctx, p), formAsks(ctx, b.now()))
	}
	if err != nil {
		return s3response.PutObjectOutput{}, b.answer("write", p, err)
	}
	out, err := b.put(ctx, p, in)
	return out, b.answer("write", p, err)
}

// put writes an object at p, durably, and tells of it.
func (b *backend) put(ctx context.Context, p place, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	var size int64
	if in.ContentLength != nil {
		size = *in.ContentLength
	}
	if err := errors.Join(p.writable(), room(p.dir, size)); err != nil {
		return s3response.PutObjectOutput{}, err
	}
	if file, ok := in.Body.(s3utils.MpFileReader); ok {
		size += int64(len("\r\n")) // which may not be there behind the last boundary
		in.Body, in.ContentLength = &formFile{MpFileReader: file}, &size
	} else if in.Body != nil {
		in.Body = &upload{in.Body, size}
	}
	in.Bucket, in.Key = &p.dir, &p.key
	var written version
	done := func(bool) {}
	out, err := b.posix.PutObjectWithPostFunc(ctx, in, func(f *os.File) (err error) {
		// All bytes are there, and nobody waits for the lock of the key yet.
		written.stamp, err = flush(f)
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
	b.tell(p, false)
	return out, err
}

// subject returns the file at p, which is open.
func (b *backend) subject(p place, f *os.File) subject {
	return subject{file: f, since: b.attrs.since(p.bucket)}
}

// mark records that the file at p has just been changed by the gateway, if err
// is nil and others change files of the bucket. Without the mark the object is
// taken for another one and hashed again. A file that others have changed must
// not be marked: it would be taken for what it was before.
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

// tries bounds how often a reader looks again at an object that is replaced
// while it looks.
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

// look opens the object at p and returns what versitygw says of it, both of
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

// DeleteObject implements backend.Backend.
func (b *backend) DeleteObject(ctx context.Context, in *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	out, p, existed, err := b.remove(ctx, in)
	if err == nil && existed {
		err = p.sync()
		b.tell(p, true)
	}
	return out, b.answer("delete", p, err)
}

// remove deletes an object; a key at which there is none is no error.
func (b *backend) remove(ctx context.Context, in *s3.DeleteObjectInput) (out *s3.DeleteObjectOutput, p place, existed bool, err error) {
	p, err = b.object(in.Bucket, in.Key, false)
	if err == nil {
		_, err = p.readable()
	}
	if errors.Is(err, errNoSuchKey) {
		return &s3.DeleteObjectOutput{}, p, false, nil
	}
	if err != nil {
		return nil, p, false, err
	}
	copied := *in
	copied.Bucket, copied.Key = &p.dir, &p.key
	done := b.expect(p.bucket, p.key)
	out, err = b.posix.DeleteObject(ctx, &copied)
	done(err == nil)
	if errors.Is(err, errNoSuchKey) {
		return &s3.DeleteObjectOutput{}, p, false, nil
	}
	return out, p, err == nil, err
}

// DeleteObjects implements backend.Backend.
func (b *backend) DeleteObjects(ctx context.Context, in *s3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	var result s3response.DeleteResult
	if _, _, err := b.bucket(in.Bucket); err != nil {
		return result, err
	}
	if in.Delete == nil {
		return result, nil
	}
	var gone []place
	parents := map[string]place{}
	for _, o := range in.Delete.Objects {
		if o.ETag != nil {
			*o.ETag = s3utils.TrimQuotes(*o.ETag)
		}
		_, p, existed, err := b.remove(ctx, &s3.DeleteObjectInput{
			Bucket: in.Bucket, Key: o.Key, VersionId: o.VersionId,
			IfMatch: o.ETag, IfMatchLastModifiedTime: o.LastModifiedTime, IfMatchSize: o.Size,
		})
		if err != nil {
			result.Error = append(result.Error, s3err.ObjectDeleteError(o.Key, o.VersionId, b.answer("delete", p, err)))
			continue
		}
		result.Deleted = append(result.Deleted, types.DeletedObject{Key: o.Key, VersionId: o.VersionId})
		if existed {
			gone = append(gone, p)
			parents[path.Dir(p.key)] = p
		}
	}
	var err error
	for _, p := range parents {
		err = errors.Join(err, p.sync())
	}
	for _, p := range gone {
		b.tell(p, true)
	}
	return result, b.answer("delete", place{}, err)
}

// source opens the object that a copy reads, in a bucket of owner, if that is
// given.
func (b *backend) source(ctx context.Context, copySource, owner *string) (place, *os.File, version, error) {
	if copySource == nil {
		return place{}, nil, version{}, errNoSuchKey
	}
	// A plus is a space to some clients, and to others it is a plus.
	p, f, err := b.sourceFile(strings.ReplaceAll(*copySource, "+", "%2B"))
	if errors.Is(err, errNoSuchKey) {
		p, f, err = b.sourceFile(*copySource)
	}
	if err != nil {
		return p, nil, version{}, err
	}
	err = b.reaches(ctx, p)
	if owner != nil && *owner != "" && *owner != b.attrs.owner {
		err = s3err.GetAPIError(s3err.ErrAccessDenied)
	}
	if err != nil {
		f.Close()
		return p, nil, version{}, err
	}
	v, err := b.subject(p, f).version()
	if err != nil {
		f.Close()
		return p, nil, version{}, err
	}
	return p, f, v, nil
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

// still is a reader of a file that fails at its end if the file was written
// to meanwhile.
type still struct {
	io.Reader
	file    *os.File
	version version
}

func (s still) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		if changed := unchanged(s.file, s.version); changed != nil {
			err = changed
		}
	}
	return n, err
}

// CopyObject implements backend.Backend.
func (b *backend) CopyObject(ctx context.Context, in s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	p, err := b.object(in.Bucket, in.Key, true)
	if err != nil {
		return s3response.CopyObjectOutput{}, b.answer("copy to", p, err)
	}
	out, err := b.copy(ctx, p, in)
	return out, b.answer("copy to", p, err)
}

func (b *backend) copy(ctx context.Context, p place, in s3response.CopyObjectInput) (out s3response.CopyObjectOutput, err error) {
	if err := p.writable(); err != nil {
		return out, err
	}
	from, f, v, err := b.source(ctx, in.CopySource, in.ExpectedSourceBucketOwner)
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
	err = vgw.EvaluatePreconditions(v.etag(), v.modTime(), vgw.PreConditions{
		IfMatch: in.CopySourceIfMatch, IfNoneMatch: in.CopySourceIfNoneMatch,
		IfModSince: in.CopySourceIfModifiedSince, IfUnmodeSince: in.CopySourceIfUnmodifiedSince,
	})
	if err != nil {
		return out, err
	}
	ifMatch, ifNoneMatch := conditions(ctx)
	plain := ifMatch == nil && !replace && in.TaggingDirective != types.TaggingDirectiveReplace && in.ChecksumAlgorithm == ""
	if plain && b.linkable(from, p, f, v) {
		if out, linked, err := b.link(p, f, v, sums); linked || err != nil {
			return out, err
		}
	}
	if in.ChecksumAlgorithm == "" && v.stored != "" {
		in.ChecksumAlgorithm = sums.Algorithm
	}
	put := s3response.PutObjectInput{
		ContentLength: &v.size, ChecksumAlgorithm: in.ChecksumAlgorithm,
		Body:        still{io.LimitReader(f, v.size), f, v},
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
	modified := info.ModTime()
	return s3response.CopyObjectOutput{CopyObjectResult: &s3response.CopyObjectResult{
		ETag: &res.ETag, LastModified: &modified,
		ChecksumCRC32: res.ChecksumCRC32, ChecksumCRC32C: res.ChecksumCRC32C, ChecksumCRC64NVME: res.ChecksumCRC64NVME,
		ChecksumSHA1: res.ChecksumSHA1, ChecksumSHA256: res.ChecksumSHA256, ChecksumSHA512: res.ChecksumSHA512,
		ChecksumMD5: res.ChecksumMD5, ChecksumXXHASH64: res.ChecksumXXHASH64, ChecksumXXHASH3: res.ChecksumXXHASH3,
		ChecksumXXHASH128: res.ChecksumXXHASH128, ChecksumType: res.ChecksumType,
	}}, nil
}

// conditions returns what the request behind ctx, a copy, asks of the object
// that it replaces. versitygw does not read it.
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

// linkable reports whether a copy can be another name of the same file: in a
// bucket where nobody edits files in place, and of an object that has all its
// attributes and none that a copy does not get.
func (b *backend) linkable(from, to place, f *os.File, v version) bool {
	if from.bucket != to.bucket || to.folder() || v.stored == "" || slices.Contains(b.attrs.shared, to.bucket) {
		return false
	}
	_, err := subject{file: f}.get(attrRedirect)
	return errors.Is(err, xattr.ENOATTR)
}

// link makes p another name of the file f, which spares the disk the bytes. It
// does not where there is something at p, or the file system cannot.
func (b *backend) link(p place, f *os.File, v version, sums s3response.Checksum) (out s3response.CopyObjectOutput, linked bool, err error) {
	if err := os.MkdirAll(filepath.Dir(p.path()), 0o755); err != nil {
		return out, false, nil // copying tells why
	}
	// By its descriptor: what has the source's name by now may be another file.
	open := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	done := b.expect(p.bucket, p.key)
	err = unix.Linkat(unix.AT_FDCWD, open, unix.AT_FDCWD, p.path(), unix.AT_SYMLINK_FOLLOW)
	done(err == nil)
	if err != nil {
		return out, false, nil
	}
	err = p.sync()
	b.tell(p, false)
	etag, modified := v.etag(), v.modTime()
	return s3response.CopyObjectOutput{CopyObjectResult: &s3response.CopyObjectResult{
		ETag: &etag, LastModified: &modified,
		ChecksumCRC32: sums.CRC32, ChecksumCRC32C: sums.CRC32C, ChecksumCRC64NVME: sums.CRC64NVME,
		ChecksumSHA1: sums.SHA1, ChecksumSHA256: sums.SHA256, ChecksumSHA512: sums.SHA512,
		ChecksumMD5: sums.MD5, ChecksumXXHASH64: sums.XXHASH64, ChecksumXXHASH3: sums.XXHASH3,
		ChecksumXXHASH128: sums.XXHASH128, ChecksumType: sums.Type,
	}}, true, err
}

// ListObjects implements backend.Backend.
func (b *backend) ListObjects(ctx context.Context, in *s3.ListObjectsInput) (s3response.ListObjectsResult, error) {
	name, dir, err := b.bucket(in.Bucket)
	if err != nil {
		return s3response.ListObjectsResult{}, err
	}
	enc, err := encodingOf(ctx)
	if err != nil {
		return s3response.ListObjectsResult{}, err
	}
	copied := *in
	copied.Bucket = &dir
	if !listablePrefix(dir, in.Prefix) {
		copied.MaxKeys = new(int32)
	}
	out, err := b.posix.ListObjectsParametrized(ctx, &copied, b.listed)
	out.Name, out.MaxKeys = &name, in.MaxKeys
	out.CommonPrefixes = visible(out.CommonPrefixes)
	out.EncodingType = types.EncodingType(enc)
	enc.encode(out.Prefix, out.Delimiter, out.Marker, out.NextMarker)
	enc.listing(out.Contents, out.CommonPrefixes)
	return out, b.answer("list", place{bucket: name}, err)
}

// ListObjectsV2 implements backend.Backend.
func (b *backend) ListObjectsV2(ctx context.Context, in *s3.ListObjectsV2Input) (s3response.ListObjectsV2Result, error) {
	name, dir, err := b.bucket(in.Bucket)
	if err != nil {
		return s3response.ListObjectsV2Result{}, err
	}
	enc, err := encodingOf(ctx)
	if err != nil {
		return s3response.ListObjectsV2Result{}, err
	}
	copied := *in
	copied.Bucket = &dir
	if !listablePrefix(dir, in.Prefix) {
		copied.MaxKeys = new(int32)
	}
	out, err := b.posix.ListObjectsV2Parametrized(ctx, &copied, b.listed)
	out.Name, out.MaxKeys = &name, in.MaxKeys
	out.CommonPrefixes = visible(out.CommonPrefixes)
	if out.KeyCount != nil {
		*out.KeyCount = int32(len(out.Contents) + len(out.CommonPrefixes))
	}
	// Tokens are not encoded: they are not keys to the client.
	out.EncodingType = types.EncodingType(enc)
	enc.encode(out.Prefix, out.Delimiter, out.StartAfter)
	enc.listing(out.Contents, out.CommonPrefixes)
	return out, b.answer("list", place{bucket: name}, err)
}

// listablePrefix reports whether the directory that a listing begins in may
// be entered.
func listablePrefix(dir string, prefix *string) bool {
	if prefix == nil {
		return true
	}
	parent, _, found := cutLast(*prefix, "/")
	if !found {
		return !hidden(*prefix)
	}
	if hidden(*prefix) || checkKey(parent) != nil {
		return false
	}
	info, err := place{dir: dir, key: parent}.lstat()
	return err == nil && info.IsDir()
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func visible(prefixes []types.CommonPrefix) []types.CommonPrefix {
	var kept []types.CommonPrefix
	for _, p := range prefixes {
		if p.Prefix != nil && !hidden(*p.Prefix) && listable(*p.Prefix) {
			kept = append(kept, p)
		}
	}
	return kept
}

// listed returns what turns the files of a bucket's directory into entries of
// a listing.
func (b *backend) listed(dir string, fetchOwner bool) vgw.GetObjFunc {
	var owner *types.Owner
	since := b.attrs.since(filepath.Base(dir))
	if fetchOwner {
		owner = &types.Owner{ID: &b.attrs.owner}
	}
	folder := b.posix.FileToObj(dir, fetchOwner)
	return func(key string, d fs.DirEntry) (s3response.Object, error) {
		if hidden(key) || !listable(key) {
			return s3response.Object{}, vgw.ErrSkipObj
		}
		if d.IsDir() {
			return folder(key, d)
		}
		if !d.Type().IsRegular() {
			return s3response.Object{}, vgw.ErrSkipObj
		}
		file := subject{path: filepath.Join(dir, key), since: since}
		v, err := file.version()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return s3response.Object{}, vgw.ErrSkipObj
		}
		if err != nil {
			return s3response.Object{}, err
		}
		etag, modified := v.etag(), v.modTime()
		object := s3response.Object{
			Key: &key, ETag: &etag, LastModified: &modified, Size: &v.size,
			StorageClass: types.ObjectStorageClassStandard, Owner: owner,
		}
		if v.stored == "" {
			return object, nil
		}
		if sums, err := file.sums(); err == nil && sums.Algorithm != "" {
			object.ChecksumAlgorithm, object.ChecksumType = []types.ChecksumAlgorithm{sums.Algorithm}, sums.Type
		}
		return object, nil
	}
}

// GetObjectTagging implements backend.Backend.
func (b *backend) GetObjectTagging(ctx context.Context, bucket, object, versionID string) (map[string]string, error) {
	p, err := b.existing(bucket, object)
	if err != nil {
		return nil, err
	}
	tags, err := b.posix.GetObjectTagging(ctx, p.dir, p.key, versionID)
	return tags, b.answer("read tags of", p, err)
}

// PutObjectTagging implements backend.Backend.
func (b *backend) PutObjectTagging(ctx context.Context, bucket, object, versionID string, tags map[string]string) error {
	p, err := b.existing(bucket, object)
	if err != nil {
		return err
	}
	file := subject{path: p.path(), since: b.attrs.since(p.bucket)}
	intact := file.isIntact()
	err = b.posix.PutObjectTagging(ctx, p.dir, p.key, versionID, tags)
	if intact {
		b.mark(p, err)
	}
	return b.answer("tag", p, err)
}

// DeleteObjectTagging implements backend.Backend.
func (b *backend) DeleteObjectTagging(ctx context.Context, bucket, object, versionID string) error {
	return b.PutObjectTagging(ctx, bucket, object, versionID, nil)
}

// existing returns the place of an object that there is.
func (b *backend) existing(bucket, key string) (place, error) {
	p, err := b.object(&bucket, &key, false)
	if err == nil {
		_, err = p.readable()
	}
	return p, b.answer("look at", p, err)
}
