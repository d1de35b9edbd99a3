package gateway

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/s3response"
)

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
	// Tokens are opaque to the client and not encoded.
	out.EncodingType = types.EncodingType(enc)
	enc.encode(out.Prefix, out.Delimiter, out.StartAfter)
	enc.listing(out.Contents, out.CommonPrefixes)
	return out, b.answer("list", place{bucket: name}, err)
}

// listablePrefix reports whether a listing may read the directory of its prefix.
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

// listed returns the function that turns files of a bucket's directory into
// entries of a listing.
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
