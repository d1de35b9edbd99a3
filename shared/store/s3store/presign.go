package s3store

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"mime"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"imageroot/shared/store"
)

const (
	// linkTime is how long a URL is good for that a client follows at once.
	linkTime = time.Hour
	// putTime is that of an object, which the URL can replace as often as it is
	// used. It bounds when a request begins, not how long its body takes.
	putTime = 5 * time.Minute
	// partTime is that of parts, which are sent one after the other. It ends
	// sooner where the credentials that signed it do.
	partTime = 12 * time.Hour
)

var _ store.Presigner = (*Root)(nil)

func (r *Root) presign(expires time.Duration) *s3.PresignClient {
	return s3.NewPresignClient(r.s3, func(o *s3.PresignOptions) {
		o.Expires = expires
		o.ClientOptions = append(o.ClientOptions, func(o *s3.Options) {
			// There is no body yet to have a sum of.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		})
	})
}

// PresignPut implements store.Presigner.
func (r *Root) PresignPut(ctx context.Context, key, sha256 string) (string, error) {
	in := &s3.PutObjectInput{Bucket: &r.bucket, Key: r.key(key)}
	if sha256 != "" {
		sum, err := hex.DecodeString(sha256)
		if err != nil {
			return "", err
		}
		in.ChecksumSHA256 = aws.String(base64.StdEncoding.EncodeToString(sum))
	}
	return link(r.presign(putTime).PresignPutObject(ctx, in))
}

// PresignPart implements store.Presigner.
func (r *Root) PresignPart(ctx context.Context, key, id string, n int32) (string, error) {
	return link(r.presign(partTime).PresignUploadPart(ctx, &s3.UploadPartInput{
		Bucket: &r.bucket, Key: r.key(key), UploadId: &id, PartNumber: &n,
	}))
}

// PresignGet implements store.Presigner.
func (r *Root) PresignGet(ctx context.Context, key, filename string, head bool) (string, error) {
	if head {
		return link(r.presign(linkTime).PresignHeadObject(ctx, &s3.HeadObjectInput{Bucket: &r.bucket, Key: r.key(key)}))
	}
	disposition := mime.FormatMediaType("attachment", map[string]string{"filename": filename})
	return link(r.presign(linkTime).PresignGetObject(ctx, &s3.GetObjectInput{
		Bucket: &r.bucket, Key: r.key(key), ResponseContentDisposition: &disposition,
		ResponseContentType: aws.String("application/octet-stream"),
	}))
}

func link(req *v4.PresignedHTTPRequest, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return req.URL, nil
}
