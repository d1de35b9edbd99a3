package e2e

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// s3Client returns a client for single S3 requests, for tests that need an
// object but no particular program.
func s3Client(endpoint, access, secret string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &endpoint, UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(access, secret, ""),
	})
}

func (s *Server) uploader() *s3.Client { return s3Client(s.S3, s.AccessKey, s.SecretKey) }

// program returns a client with the key that may use both buckets.
func (s *Server) program(t testing.TB) *s3.Client {
	t.Helper()
	access, secret := s.programKey(t)
	return s3Client(s.S3, access, secret)
}

// s3Put writes an object of the image root.
func (s *Server) s3Put(t testing.TB, name string, content []byte) {
	t.Helper()
	if _, err := s.uploader().PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.ImageBucket, Key: &name, Body: bytes.NewReader(content)}); err != nil {
		t.Fatal(err)
	}
}

// s3Get reads an object of the image root.
func (s *Server) s3Get(t testing.TB, name string) ([]byte, error) {
	t.Helper()
	out, err := s.uploader().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.ImageBucket, Key: &name})
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Body.Close() }()
	return io.ReadAll(out.Body)
}

// s3Delete deletes an object of the image root.
func (s *Server) s3Delete(t testing.TB, name string) {
	t.Helper()
	if _, err := s.uploader().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.ImageBucket, Key: &name}); err != nil {
		t.Fatal(err)
	}
}

// objects returns the keys of a bucket that begin with prefix.
func (s *Server) objects(t testing.TB, bucket, prefix string) (keys []string) {
	t.Helper()
	pages := s3.NewListObjectsV2Paginator(s.program(t), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			keys = append(keys, aws.ToString(o.Key))
		}
	}
	return keys
}

// pending returns the keys of the multipart uploads of a bucket that are neither
// completed nor aborted.
func (s *Server) pending(t testing.TB, bucket string) (keys []string) {
	t.Helper()
	pages := s3.NewListMultipartUploadsPaginator(s.program(t), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range page.Uploads {
			keys = append(keys, aws.ToString(u.Key))
		}
	}
	return keys
}

// noHalves fails the test if a part of a fetch or an upload is left.
func (s *Server) noHalves(t testing.TB) {
	t.Helper()
	for _, bucket := range []string{s.ImageBucket, s.CatalogBuck} {
		if left := s.pending(t, bucket); len(left) > 0 {
			t.Errorf("uploads in %s that nothing continues: %q", bucket, left)
		}
	}
	if left := s.objects(t, s.CatalogBuck, "staging/"); len(left) > 0 {
		t.Errorf("bytes on their way to a blob are left: %q", left)
	}
}

// blobs returns the names of the fetched bytes. It fails the test if one is not
// the SHA-256 of its content.
func (s *Server) blobs(t testing.TB) (names []string) {
	t.Helper()
	client := s.program(t)
	for _, key := range s.objects(t, s.CatalogBuck, "blobs/") {
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.CatalogBuck, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(out.Body)
		_ = out.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("blobs/%s", sum(b)); got != key {
			t.Errorf("%s has the bytes of %s", key, got)
		}
		names = append(names, key[len("blobs/"):])
	}
	return names
}
