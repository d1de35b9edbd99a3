package s3store

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// CopyInParts is Copy for a server that refuses to copy in one request.
func (r *Root) CopyInParts(ctx context.Context, dst, src string, size, partSize int64) error {
	return r.copyParts(ctx, dst, aws.String(r.bucket+"/"+escapePath(r.prefix+src)), size, partSize)
}
