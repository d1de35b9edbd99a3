package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// inProgress is the suffix of an upload's directory during its completion.
const inProgress = ".inprogress"

// uploads returns the directory of the uploads of p.
func (p place) uploads() string {
	return filepath.Join(p.dir, posix.MetaTmpMultipartDir, fmt.Sprintf("%x", sha256.Sum256([]byte(p.key))))
}

func (b *backend) CreateMultipartUpload(ctx context.Context, in s3response.CreateMultipartUploadInput) (s3response.InitiateMultipartUploadResult, error) {
	return onObject(b, "begin upload of", in.Bucket, in.Key, true, func(p place) (s3response.InitiateMultipartUploadResult, error) {
		if err := p.writable(); err != nil {
			return s3response.InitiateMultipartUploadResult{}, err
		}
		in.Bucket, in.Key = &p.dir, &p.key
		out, err := b.posix.CreateMultipartUpload(ctx, in)
		out.Bucket, out.Key = p.bucket, p.key
		return out, err
	})
}

// onUpload is [onObject] for an upload. It refuses an ID that could be a path.
func onUpload[T any](b *backend, doing string, bucket, key, id *string, do func(p place, id string) (T, error)) (T, error) {
	return onObject(b, doing, bucket, key, true, func(p place) (T, error) {
		if id == nil || !uploadID(*id) {
			var none T
			return none, s3err.GetNoSuchUploadErr("")
		}
		return do(p, strings.Clone(*id))
	})
}

// uploadID reports whether s can be the ID of an upload: a UUID.
func uploadID(s string) bool {
	return len(s) == 36 && strings.Trim(s, "0123456789abcdef-") == ""
}

func (b *backend) ListMultipartUploads(ctx context.Context, in *s3.ListMultipartUploadsInput) (s3response.ListMultipartUploadsResult, error) {
	return ofBucket(ctx, b, "list", in.Bucket, func(ctx context.Context, dir string) (out s3response.ListMultipartUploadsResult, err error) {
		enc, err := encodingOf(ctx)
		if err != nil {
			return out, err
		}
		in.Bucket = &dir
		out, err = b.posix.ListMultipartUploads(ctx, in)
		out.Bucket = filepath.Base(dir)
		out.EncodingType = string(enc)
		enc.encode(&out.Prefix, &out.Delimiter, &out.KeyMarker, &out.NextKeyMarker)
		for i := range out.Uploads {
			enc.encode(&out.Uploads[i].Key)
		}
		for i := range out.CommonPrefixes {
			enc.encode(&out.CommonPrefixes[i].Prefix)
		}
		return out, err
	})
}

func (b *backend) AbortMultipartUpload(ctx context.Context, in *s3.AbortMultipartUploadInput) error {
	_, err := onUpload(b, "abort upload of", in.Bucket, in.Key, in.UploadId, func(p place, id string) (none struct{}, _ error) {
		claim, err := claimUpload(ctx, p, id)
		if errors.Is(err, fs.ErrNotExist) {
			return none, s3err.GetNoSuchUploadErr(id)
		}
		if err != nil {
			return none, err
		}
		defer claim.Close()
		in.Bucket, in.Key, in.UploadId = &p.dir, &p.key, &id
		return none, b.posix.AbortMultipartUpload(ctx, in)
	})
	return err
}
