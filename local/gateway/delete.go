package gateway

import (
	"context"
	"errors"
	"path"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

func (b *backend) DeleteObject(ctx context.Context, in *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	out, p, existed, err := b.remove(ctx, in)
	if err == nil && existed {
		err = p.sync()
		b.report(p, true)
	}
	return out, b.answer("delete", p, err)
}

// remove deletes an object. It returns no error if there is none.
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
	in.Bucket, in.Key = &p.dir, &p.key
	done := b.expect(p.bucket, p.key)
	out, err = b.posix.DeleteObject(ctx, in)
	done(err == nil)
	if errors.Is(err, errNoSuchKey) {
		return &s3.DeleteObjectOutput{}, p, false, nil
	}
	return out, p, err == nil, err
}

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
		b.report(p, true)
	}
	return result, b.answer("delete", place{}, err)
}
