package s3store

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// CopyInParts is Copy as it is done where the server does not copy at once.
func (r *Root) CopyInParts(ctx context.Context, dst, src string, size, partSize int64) error {
	return r.copyParts(ctx, dst, aws.String(r.bucket+"/"+escapePath(r.prefix+src)), size, partSize)
}
