package gateway

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/s3response"
)

// ListObjects is ListObjectsV2 with a marker, which is encoded, in place of a token.
func (b *backend) ListObjects(ctx context.Context, in *s3.ListObjectsInput) (out s3response.ListObjectsResult, err error) {
	v2, err := b.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: in.Bucket, Prefix: in.Prefix, Delimiter: in.Delimiter, MaxKeys: in.MaxKeys,
		ContinuationToken: in.Marker, StartAfter: new(""), FetchOwner: new(true),
	})
	carry(&out, v2)
	out.Marker, out.NextMarker = v2.ContinuationToken, v2.NextContinuationToken
	encoding(out.EncodingType).encode(out.Marker, out.NextMarker)
	return out, err
}

func (b *backend) ListObjectsV2(ctx context.Context, in *s3.ListObjectsV2Input) (s3response.ListObjectsV2Result, error) {
	return ofBucket(ctx, b, "list", in.Bucket, func(ctx context.Context, dir string) (out s3response.ListObjectsV2Result, err error) {
		enc, err := encodingOf(ctx)
		if err != nil {
			return out, err
		}
		asked := in.MaxKeys
		in.Bucket = &dir
		if !listablePrefix(dir, in.Prefix) {
			in.MaxKeys = new(int32)
		}
		out, err = b.posix.ListObjectsV2Parametrized(ctx, in, b.listed)
		name := filepath.Base(dir)
		out.Name, out.MaxKeys = &name, asked
		out.CommonPrefixes = visible(out.CommonPrefixes)
		if out.KeyCount != nil {
			*out.KeyCount = int32(len(out.Contents) + len(out.CommonPrefixes))
		}
		// Tokens are opaque to the client and not encoded.
		out.EncodingType = types.EncodingType(enc)
		enc.encode(out.Prefix, out.Delimiter, out.StartAfter)
		for _, o := range out.Contents {
			enc.encode(o.Key)
		}
		for _, p := range out.CommonPrefixes {
			enc.encode(p.Prefix)
		}
		return out, err
	})
}

// listablePrefix reports whether a listing may read the directory of its prefix.
func listablePrefix(dir string, prefix *string) bool {
	if prefix == nil {
		return true
	}
	if hidden(*prefix) {
		return false
	}
	slash := strings.LastIndexByte(*prefix, '/')
	if slash < 0 {
		return true
	}
	parent := (*prefix)[:slash]
	if checkKey(parent) != nil {
		return false
	}
	info, err := place{dir: dir, key: parent}.lstat()
	return err == nil && info.IsDir()
}

// shown reports whether listings contain a key if there is such an object.
func shown(key string) bool { return !hidden(key) && listable(key) }

// listed returns the version of a file of a listing, and false if the file was removed
// meanwhile.
func (s subject) listed() (v version, found bool, err error) {
	v, err = s.version()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return version{}, false, nil
	}
	return v, err == nil, err
}

func visible(prefixes []types.CommonPrefix) []types.CommonPrefix {
	var kept []types.CommonPrefix
	for _, p := range prefixes {
		if p.Prefix != nil && shown(*p.Prefix) {
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
		if !shown(key) {
			return s3response.Object{}, vgw.ErrSkipObj
		}
		if d.IsDir() {
			return folder(key, d)
		}
		if !d.Type().IsRegular() {
			return s3response.Object{}, vgw.ErrSkipObj
		}
		file := subject{path: filepath.Join(dir, key), since: since}
		v, found, err := file.listed()
		if err != nil {
			return s3response.Object{}, err
		}
		if !found {
			return s3response.Object{}, vgw.ErrSkipObj
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

// A Listed is an object in a listing.
type Listed struct {
	Key, ETag    string
	Size         int64 // bytes
	LastModified time.Time
}

// List yields what S3 lists with this prefix, the delimiter "/" and this start: the
// objects of one directory whose keys are greater than after, in byte order. It reads
// the directory once, while each page of an S3 listing reads and sorts all of it. An
// error is of S3 or the file system, and is yielded last. It is safe for concurrent use.
func (g *Gateway) List(bucket, prefix, after string) iter.Seq2[Listed, error] {
	return func(yield func(Listed, error) bool) {
		name, dir, err := g.backend.bucket(&bucket)
		if err != nil {
			yield(Listed{}, err)
			return
		}
		if !listablePrefix(dir, &prefix) {
			return
		}
		parent := prefix[:strings.LastIndexByte(prefix, '/')+1]
		keys, err := regularFiles(filepath.Join(dir, parent), func(name string) bool {
			key := parent + name
			return key > after && strings.HasPrefix(key, prefix) && shown(key)
		})
		if err != nil {
			yield(Listed{}, err)
			return
		}
		since := g.backend.attrs.since(name)
		for _, key := range keys {
			key = parent + key
			v, found, err := subject{path: filepath.Join(dir, key), since: since}.listed()
			if err != nil {
				yield(Listed{}, err)
				return
			}
			if !found {
				continue
			}
			if !yield(Listed{key, strings.Trim(v.etag(), `"`), v.size, v.modTime()}, nil) {
				return
			}
		}
	}
}

// regularFiles returns the sorted names of the regular files in a directory for which
// wanted is true. If the directory does not exist, there are none.
func regularFiles(dir string, wanted func(name string) bool) (names []string, err error) {
	const batch = 1000
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(batch)
		for _, e := range entries {
			if e.Type().IsRegular() && wanted(e.Name()) {
				names = append(names, e.Name())
			}
		}
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
