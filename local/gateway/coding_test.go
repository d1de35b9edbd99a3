package gateway_test

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"

	"imageroot/shared/store"
)

// TestChunkingIsNoEncoding writes objects by each operation with the framing
// aws-chunked. It is not in their Content-Encoding; other codings are.
func TestChunkingIsNoEncoding(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	c, bucket := raw(g.Endpoint()), aws.String("images")
	put(t, r, "source.img", []byte("source"))
	data := []byte("data")
	for sent, want := range map[string]string{
		"aws-chunked": "", "AWS-Chunked": "", "gzip": "gzip",
		"aws-chunked,gzip": "gzip", "gzip, aws-chunked": "gzip", "zstd,aws-chunked,gzip": "zstd,gzip",
	} {
		for name, write := range map[string]func(key string) error{
			"PUT": func(key string) error {
				_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: bucket, Key: &key, Body: bytes.NewReader(data), ContentEncoding: &sent})
				return err
			},
			"multipart": func(key string) error {
				created, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: bucket, Key: &key, ContentEncoding: &sent})
				if err != nil {
					return err
				}
				part, err := c.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: bucket, Key: &key, UploadId: created.UploadId, PartNumber: aws.Int32(1), Body: bytes.NewReader(data)})
				if err != nil {
					return err
				}
				_, err = c.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
					Bucket: bucket, Key: &key, UploadId: created.UploadId,
					MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{{PartNumber: aws.Int32(1), ETag: part.ETag}}},
				})
				return err
			},
			"copy": func(key string) error {
				_, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{
					Bucket: bucket, Key: &key, CopySource: aws.String("images/source.img"),
					MetadataDirective: types.MetadataDirectiveReplace, ContentEncoding: &sent,
				})
				return err
			},
			"presigned": func(key string) error {
				req, err := http.NewRequest(http.MethodPut, presigned(t, g.Endpoint(), "images", key), bytes.NewReader(data))
				if err != nil {
					return err
				}
				req.Header.Set("Content-Encoding", sent)
				if status, body := status(t, req); status != http.StatusOK {
					return fmt.Errorf("%d %s", status, body)
				}
				return nil
			},
			"an older version": func(key string) error {
				put(t, r, key, data)
				return xattr.Set(filepath.Join(dir, "images", key), "user.content-encoding", []byte(sent))
			},
		} {
			key := "a.img"
			if err := write(key); err != nil {
				t.Errorf("%s of %q: %v", name, sent, err)
				continue
			}
			head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bucket, Key: &key})
			if err != nil {
				t.Errorf("%s of %q: %v", name, sent, err)
				continue
			}
			got, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: bucket, Key: &key})
			if err != nil {
				t.Errorf("%s of %q: %v", name, sent, err)
				continue
			}
			got.Body.Close()
			if aws.ToString(head.ContentEncoding) != want || aws.ToString(got.ContentEncoding) != want {
				t.Errorf("%s of %q: HEAD says %q and GET %q, want %q", name, sent, aws.ToString(head.ContentEncoding), aws.ToString(got.ContentEncoding), want)
			}
			if err := r.Delete(t.Context(), store.Key(key)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
