package s3store

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"imageroot/shared/store"
)

func (r *Root) CreateUpload(ctx context.Context, key store.Key) (string, error) {
	ctx, cancel := brief(ctx)
	defer cancel()
	out, err := r.s3.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &r.bucket, Key: r.key(key), ContentType: aws.String("application/octet-stream"),
	})
	if err != nil {
		return "", wrap("begin upload of", key, err)
	}
	return aws.ToString(out.UploadId), nil
}

func (r *Root) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error) {
	ctx, body, sent := sending(ctx, body, size)
	out, err := r.s3.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &r.bucket, Key: r.key(key), UploadId: &id, PartNumber: &n,
		Body: body, ContentLength: &size,
	}, streamed)
	if err = sent(err); err != nil {
		return store.Part{}, wrap("send part of", key, err)
	}
	return store.Part{Number: n, ETag: unquote(out.ETag), Size: size}, nil
}

func (r *Root) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	var parts []store.Part
	pages := s3.NewListPartsPaginator(r.s3, &s3.ListPartsInput{Bucket: &r.bucket, Key: r.key(key), UploadId: &id})
	for pages.HasMorePages() {
		page, err := nextPage(ctx, pages)
		if err != nil {
			return nil, wrap("list parts of", key, err)
		}
		for _, p := range page.Parts {
			parts = append(parts, store.Part{Number: aws.ToInt32(p.PartNumber), ETag: unquote(p.ETag), Size: aws.ToInt64(p.Size), LastModified: aws.ToTime(p.LastModified)})
		}
	}
	return parts, nil
}

func (r *Root) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	return r.completeUpload(ctx, key, id, parts, nil)
}

// CompleteNew implements store.Multipart.
func (r *Root) CompleteNew(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	return r.creating(ctx, key, func() (store.Version, error) { return r.completeUpload(ctx, key, id, parts, absent) })
}

func (r *Root) completeUpload(ctx context.Context, key store.Key, id string, parts []store.Part, ifNoneMatch *string) (store.Version, error) {
	var etag *string
	err := under(ifNoneMatch, func(ifNoneMatch *string) (err error) {
		etag, err = r.complete(ctx, key, id, parts, ifNoneMatch)
		return err
	})
	if err != nil {
		return store.Version{}, wrap("complete upload of", key, err)
	}
	var size int64
	for _, p := range parts {
		size += p.Size
	}
	// Some servers respond 200 for an unknown upload, so check the object.
	return r.written(ctx, key, unquote(etag), size)
}

// complete completes an upload, and returns the ETag of the object.
func (r *Root) complete(ctx context.Context, key store.Key, id string, parts []store.Part, ifNoneMatch *string) (etag *string, err error) {
	completed := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		completed[i] = types.CompletedPart{PartNumber: &p.Number, ETag: quote(p.ETag)}
	}
	out, err := r.s3.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &r.bucket, Key: r.key(key), UploadId: &id, IfNoneMatch: ifNoneMatch,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: completed},
	})
	if err != nil {
		return nil, err
	}
	return out.ETag, nil
}

func (r *Root) AbortUpload(ctx context.Context, key store.Key, id string) error {
	ctx, cancel := brief(ctx)
	defer cancel()
	_, err := r.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &r.bucket, Key: r.key(key), UploadId: &id})
	if err = wrap("abort upload of", key, err); errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

func (r *Root) PendingUploads(ctx context.Context, prefix string) iter.Seq2[store.PendingUpload, error] {
	return func(yield func(store.PendingUpload, error) bool) {
		// MinIO takes a prefix for the whole key of an upload, so this lists all
		// uploads of the bucket. There are never many of them.
		pages := s3.NewListMultipartUploadsPaginator(r.s3, &s3.ListMultipartUploadsInput{Bucket: &r.bucket})
		for pages.HasMorePages() {
			page, err := nextPage(ctx, pages)
			if err != nil {
				yield(store.PendingUpload{}, wrap("list uploads of", prefix, err))
				return
			}
			for _, u := range page.Uploads {
				if !strings.HasPrefix(aws.ToString(u.Key), r.prefix+prefix) {
					continue
				}
				if !yield(store.PendingUpload{Key: r.relative(u.Key), ID: aws.ToString(u.UploadId), Initiated: aws.ToTime(u.Initiated)}, nil) {
					return
				}
			}
		}
	}
}
