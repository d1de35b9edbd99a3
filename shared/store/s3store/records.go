package s3store

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"imageroot/shared/store"
)

func (r *Root) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	ctx, cancel := brief(ctx)
	defer cancel()
	out, err := r.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: &r.bucket, Key: r.key(key)})
	if err != nil {
		return nil, "", wrap("read record", key, err)
	}
	defer out.Body.Close()
	data, err := io.ReadAll(io.LimitReader(out.Body, store.MaxRecordBytes+1))
	if err != nil {
		return nil, "", wrap("read record", key, err)
	}
	if len(data) > store.MaxRecordBytes {
		return nil, "", fmt.Errorf("read record %q: larger than %d bytes", key, store.MaxRecordBytes)
	}
	return data, aws.ToString(out.ETag), nil
}

func (r *Root) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	return r.swap(ctx, key, data, &s3.PutObjectInput{IfNoneMatch: absent})
}

func (r *Root) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	return r.swap(ctx, key, data, &s3.PutObjectInput{IfMatch: &tag})
}

func (r *Root) swap(ctx context.Context, key store.Key, data []byte, in *s3.PutObjectInput) (string, error) {
	if len(data) > store.MaxRecordBytes {
		return "", fmt.Errorf("write record %q: %d bytes, the most is %d", key, len(data), store.MaxRecordBytes)
	}
	ctx, cancel := brief(ctx)
	defer cancel()
	in.Bucket, in.Key = &r.bucket, r.key(key)
	in.Body, in.ContentType = bytes.NewReader(data), aws.String("application/json")
	// One attempt only: the server may refuse a retry because of the first
	// attempt, and ErrConflict would no longer mean that another write won.
	out, err := r.s3.PutObject(ctx, in, func(o *s3.Options) { o.RetryMaxAttempts = 1; o.Retryer = aws.NopRetryer{} })
	if err == nil {
		return aws.ToString(out.ETag), nil
	}
	switch kindOf(err) {
	case store.ErrConflict, store.ErrDenied, store.ErrFull, store.ErrTooLarge, store.ErrOccupied, store.ErrRefused:
		return "", wrap("write record", key, err)
	case store.ErrNotFound:
		// AWS responds 404 to If-Match on a deleted record.
		return "", fmt.Errorf("%w (%w)", store.ErrConflict, wrap("write record", key, err))
	}
	return "", fmt.Errorf("%w (%w)", store.ErrUnknown, wrap("write record", key, err))
}
