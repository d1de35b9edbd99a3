package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"imageroot/shared/store"
)

// ReadRecord implements store.Records.
func (r *Root) ReadRecord(ctx context.Context, key string) ([]byte, string, error) {
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

// CreateRecord implements store.Records.
func (r *Root) CreateRecord(ctx context.Context, key string, data []byte) (string, error) {
	return r.swap(ctx, key, data, func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
}

// ReplaceRecord implements store.Records.
func (r *Root) ReplaceRecord(ctx context.Context, key string, data []byte, tag string) (string, error) {
	return r.swap(ctx, key, data, func(in *s3.PutObjectInput) { in.IfMatch = &tag })
}

func (r *Root) swap(ctx context.Context, key string, data []byte, condition func(*s3.PutObjectInput)) (string, error) {
	if len(data) > store.MaxRecordBytes {
		return "", fmt.Errorf("write record %q: %d bytes, the most is %d", key, len(data), store.MaxRecordBytes)
	}
	ctx, cancel := brief(ctx)
	defer cancel()
	in := &s3.PutObjectInput{
		Bucket: &r.bucket, Key: r.key(key),
		Body: bytes.NewReader(data), ContentType: aws.String("application/json"),
	}
	condition(in)
	// One attempt only: the server may refuse a retry because of the first
	// attempt, and ErrConflict would no longer mean that another write won.
	out, err := r.s3.PutObject(ctx, in, func(o *s3.Options) { o.RetryMaxAttempts = 1; o.Retryer = aws.NopRetryer{} })
	if err == nil {
		return aws.ToString(out.ETag), nil
	}
	err = wrap("write record", key, err)
	switch {
	case errors.Is(err, store.ErrConflict):
		return "", err
	case errors.Is(err, store.ErrNotFound):
		// AWS responds 404 to If-Match on a deleted record.
		return "", fmt.Errorf("%w (%w)", store.ErrConflict, err)
	case errors.Is(err, store.ErrDenied), errors.Is(err, store.ErrFull), errors.Is(err, store.ErrTooLarge),
		errors.Is(err, store.ErrOccupied), errors.Is(err, store.ErrRefused):
		return "", err
	}
	return "", fmt.Errorf("%w (%w)", store.ErrUnknown, err)
}

// DeleteRecord implements store.Records.
func (r *Root) DeleteRecord(ctx context.Context, key string) error {
	return r.Delete(ctx, key)
}
