package s3store

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"imageroot/shared/store"
)

const (
	// putTime is the lifetime of a URL for a PUT, which can be used more than once. It
	// limits the start of a request, not its duration.
	putTime = 5 * time.Minute
	// partTime is the lifetime of URLs for parts, which are sent one by one. They
	// expire earlier if the credentials that signed them do.
	partTime = 12 * time.Hour
)

var _ store.Presigner = (*Root)(nil)

func (r *Root) presign(expires time.Duration) *s3.PresignClient {
	return s3.NewPresignClient(r.s3, func(o *s3.PresignOptions) {
		o.Expires = expires
		o.ClientOptions = append(o.ClientOptions, func(o *s3.Options) {
			// There is no body yet to compute a checksum of.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		})
	})
}

func (r *Root) PresignPut(ctx context.Context, key store.Key, sha256 string, create bool) (string, error) {
	in := &s3.PutObjectInput{Bucket: &r.bucket, Key: r.key(key)}
	if sha256 != "" {
		sum, err := hex.DecodeString(sha256)
		if err != nil {
			return "", err
		}
		in.ChecksumSHA256 = aws.String(base64.StdEncoding.EncodeToString(sum))
	}
	if create {
		in.IfNoneMatch = absent
	}
	return link(r.presign(putTime).PresignPutObject(ctx, in))
}

func (r *Root) PresignPart(ctx context.Context, key store.Key, id string, n int32) (string, error) {
	return link(r.presign(partTime).PresignUploadPart(ctx, &s3.UploadPartInput{
		Bucket: &r.bucket, Key: r.key(key), UploadId: &id, PartNumber: &n,
	}))
}

func (r *Root) PresignGet(ctx context.Context, key store.Key, h store.GetHeader) (string, error) {
	in := &s3.GetObjectInput{Bucket: &r.bucket, Key: r.key(key)}
	for field, value := range map[**string]string{
		&in.ResponseContentDisposition: h.Disposition, &in.ResponseContentType: h.Type, &in.ResponseContentEncoding: h.Encoding,
	} {
		if value != "" {
			*field = &value
		}
	}
	return link(r.presign(store.LinkTime).PresignGetObject(ctx, in))
}

func (r *Root) PresignHead(ctx context.Context, key store.Key) (string, error) {
	return link(r.presign(store.LinkTime).PresignHeadObject(ctx, &s3.HeadObjectInput{Bucket: &r.bucket, Key: r.key(key)}))
}

func link(req *v4.PresignedHTTPRequest, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return req.URL, nil
}
