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

// inProgress ends the name of an upload's directory while its parts are put
// together.
const inProgress = ".inprogress"

// uploads is the directory of the uploads of p.
func (p place) uploads() string {
	return filepath.Join(p.dir, posix.MetaTmpMultipartDir, fmt.Sprintf("%x", sha256.Sum256([]byte(p.key))))
}

// CreateMultipartUpload implements backend.Backend.
func (b *backend) CreateMultipartUpload(ctx context.Context, in s3response.CreateMultipartUploadInput) (s3response.InitiateMultipartUploadResult, error) {
	p, err := b.object(in.Bucket, in.Key, true)
	if err == nil {
		err = p.writable()
	}
	if err != nil {
		return s3response.InitiateMultipartUploadResult{}, b.answer("begin upload of", p, err)
	}
	in.Bucket, in.Key = &p.dir, &p.key
	out, err := b.posix.CreateMultipartUpload(ctx, in)
	out.Bucket, out.Key = p.bucket, p.key
	return out, b.answer("begin upload of", p, err)
}

// upload returns the place of an upload's object, and the ID, which is the name
// of one directory and never a path.
func (b *backend) upload(bucket, key, id *string) (place, string, error) {
	p, err := b.object(bucket, key, true)
	if err != nil {
		return p, "", b.answer("find upload of", p, err)
	}
	if id == nil || !uploadID(*id) {
		return p, "", s3err.GetNoSuchUploadErr("")
	}
	return p, strings.Clone(*id), nil
}

// uploadID reports whether s can be the ID of an upload: a UUID.
func uploadID(s string) bool {
	return len(s) == 36 && strings.Trim(s, "0123456789abcdef-") == ""
}

// ListMultipartUploads implements backend.Backend.
func (b *backend) ListMultipartUploads(ctx context.Context, in *s3.ListMultipartUploadsInput) (s3response.ListMultipartUploadsResult, error) {
	name, dir, err := b.bucket(in.Bucket)
	if err != nil {
		return s3response.ListMultipartUploadsResult{}, err
	}
	enc, err := encodingOf(ctx)
	if err != nil {
		return s3response.ListMultipartUploadsResult{}, err
	}
	copied := *in
	copied.Bucket = &dir
	out, err := b.posix.ListMultipartUploads(ctx, &copied)
	out.Bucket = name
	out.EncodingType = string(enc)
	enc.encode(&out.Prefix, &out.Delimiter, &out.KeyMarker, &out.NextKeyMarker)
	for i := range out.Uploads {
		enc.encode(&out.Uploads[i].Key)
	}
	for i := range out.CommonPrefixes {
		enc.encode(&out.CommonPrefixes[i].Prefix)
	}
	return out, b.answer("list uploads", place{bucket: name}, err)
}

// AbortMultipartUpload implements backend.Backend.
func (b *backend) AbortMultipartUpload(ctx context.Context, in *s3.AbortMultipartUploadInput) error {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return err
	}
	claim, err := claimUpload(ctx, p, id)
	if errors.Is(err, fs.ErrNotExist) {
		return s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		return b.answer("abort upload of", p, err)
	}
	defer claim.Close()
	copied := *in
	copied.Bucket, copied.Key, copied.UploadId = &p.dir, &p.key, &id
	return b.answer("abort upload of", p, b.posix.AbortMultipartUpload(ctx, &copied))
}
