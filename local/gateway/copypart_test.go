package gateway_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Parts can be copied into an upload with a checksum, as aws s3 cp does with
// --checksum-algorithm: the server returns each part's checksum.
func TestCopyPartsWithChecksums(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	data := pattern(7, 6<<20)
	put(t, r, "source.img", data)
	c := raw(g.Endpoint())
	for _, algorithm := range types.ChecksumAlgorithm("").Values() {
		key := aws.String(fmt.Sprintf("%s.img", algorithm))
		created, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
			Bucket: aws.String("images"), Key: key, ChecksumAlgorithm: algorithm,
		})
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		var parts []types.CompletedPart
		for i, bytes := range []string{"bytes=0-5242879", "bytes=5242880-6291455"} {
			n := int32(i + 1)
			out, err := c.UploadPartCopy(t.Context(), &s3.UploadPartCopyInput{
				Bucket: aws.String("images"), Key: key, UploadId: created.UploadId, PartNumber: &n,
				CopySource: aws.String("images/source.img"), CopySourceRange: &bytes,
			})
			if err != nil {
				t.Fatalf("%s: %v", algorithm, err)
			}
			p := out.CopyPartResult
			parts = append(parts, types.CompletedPart{
				PartNumber: &n, ETag: p.ETag, ChecksumCRC32: p.ChecksumCRC32, ChecksumCRC32C: p.ChecksumCRC32C,
				ChecksumCRC64NVME: p.ChecksumCRC64NVME, ChecksumSHA1: p.ChecksumSHA1, ChecksumSHA256: p.ChecksumSHA256,
				ChecksumSHA512: p.ChecksumSHA512, ChecksumMD5: p.ChecksumMD5, ChecksumXXHASH64: p.ChecksumXXHASH64,
				ChecksumXXHASH3: p.ChecksumXXHASH3, ChecksumXXHASH128: p.ChecksumXXHASH128,
			})
		}
		if _, err := c.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
			Bucket: aws.String("images"), Key: key, UploadId: created.UploadId,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		}); err != nil {
			t.Errorf("%s: %v", algorithm, err)
			continue
		}
		if got, _ := get(t, r, *key); !bytes.Equal(got, data) {
			t.Errorf("%s: the copy differs", algorithm)
		}
	}
}
