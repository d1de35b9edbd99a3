package gateway_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestDemands sends demands that the gateway does not support, in each request in
// which S3 has them. They must not be ignored.
func TestDemands(t *testing.T) {
	g := start(t, t.TempDir(), uploader("images", ""))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "old.img", []byte("old"))
	const refused, allowed = true, false
	for _, tt := range []struct {
		header, value string
		refused       bool
	}{
		{"X-Amz-Server-Side-Encryption", "AES256", refused},
		{"X-Amz-Server-Side-Encryption", "aws:kms", refused},
		{"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "key", refused},
		{"X-Amz-Server-Side-Encryption-Customer-Algorithm", "AES256", refused},
		{"X-Amz-Copy-Source-Server-Side-Encryption-Customer-Key", "a2V5", refused},
		{"X-Amz-Object-Lock-Mode", "GOVERNANCE", refused},
		{"X-Amz-Object-Lock-Legal-Hold", "ON", refused},
		{"X-Amz-Storage-Class", "GLACIER", refused},
		{"X-Amz-Storage-Class", "STANDARD", allowed},
		{"X-Amz-Acl", "public-read", refused},
		{"X-Amz-Acl", "private", allowed},
		{"X-Amz-Grant-Read", `uri="http://acs.amazonaws.com/groups/global/AllUsers"`, refused},
		{"X-Amz-Tagging", "a=b", refused}, // by uploaders
		{"X-Amz-Write-Offset-Bytes", "3", refused},
		{"X-Amz-Website-Redirect-Location", "/there", allowed}, // it is stored
		{"X-Amz-Request-Payer", "requester", allowed},
	} {
		for name, ask := range map[string]func() (int, string){
			"PUT": func() (int, string) {
				return status(t, signed(t, "PUT", g.Endpoint()+"/images/old.img", "new", http.Header{tt.header: {tt.value}}))
			},
			"upload": func() (int, string) {
				return status(t, signed(t, "POST", g.Endpoint()+"/images/old.img?uploads=", "", http.Header{tt.header: {tt.value}}))
			},
			"presigned": func() (int, string) {
				req := request(t, "PUT", presigned(t, g.Endpoint(), "images", "old.img")+"&"+url.Values{tt.header: {tt.value}}.Encode())
				return status(t, req)
			},
			"form": func() (int, string) { return sendForm(t, g.Endpoint(), "old.img", tt.header, tt.value) },
		} {
			tag := tt.header == "X-Amz-Tagging" && name == "form" || name == "presigned" && !tt.refused
			if tag { // a form has another field for it, and an addition to a URL breaks its signature
				continue
			}
			code, body := ask()
			if (code >= 400) != tt.refused || code == http.StatusInternalServerError {
				t.Errorf("%s with %s: %s: %d %s", name, tt.header, tt.value, code, body)
			}
			if data, _ := get(t, r, "old.img"); tt.refused && string(data) != "old" {
				t.Errorf("%s with %s: %s has written %q", name, tt.header, tt.value, data)
			}
			if !tt.refused {
				put(t, r, "old.img", []byte("old"))
			}
		}
	}

	got, body := status(t, signed(t, "PUT", g.Endpoint()+"/images/old.img", "new", http.Header{"X-Amz-Copy-Source": {""}}))
	if data, _ := get(t, r, "old.img"); got != http.StatusBadRequest || string(data) != "old" {
		t.Errorf("a copy of nothing: %d %s; the object is %q", got, body, data)
	}

	_, err := raw(g.Endpoint()).PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("images"), Key: aws.String("sse.img"), Body: strings.NewReader("x"),
		SSECustomerAlgorithm: aws.String("AES256"), SSECustomerKey: aws.String("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="), SSECustomerKeyMD5: aws.String("hRasmdxgYDKV3nvbahU1MA=="),
	})
	if code(err) != "NotImplemented" {
		t.Errorf("SSE-C: %v", err)
	}
}

// TestUnroutedSubresources sends requests for operations of S3 that versitygw would
// treat as others.
func TestUnroutedSubresources(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "empty")
	r := root(t, g.Endpoint(), "images")
	c := raw(g.Endpoint())
	put(t, r, "a.img", []byte("a"))
	_, renameErr := c.RenameObject(t.Context(), &s3.RenameObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img"), RenameSource: aws.String("images/b.img")})
	_, tableErr := c.DeleteBucketMetadataTableConfiguration(t.Context(), &s3.DeleteBucketMetadataTableConfigurationInput{Bucket: aws.String("empty")})
	_, torrentErr := c.GetObjectTorrent(t.Context(), &s3.GetObjectTorrentInput{Bucket: aws.String("images"), Key: aws.String("a.img")})
	_, appendErr := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img"), Body: strings.NewReader("b"), WriteOffsetBytes: aws.Int64(1)})
	_, classErr := c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: aws.String("images"), Key: aws.String("b.img"), CopySource: aws.String("images/a.img"), StorageClass: types.StorageClassGlacier})
	for what, err := range map[string]error{"rename": renameErr, "metadata table": tableErr, "torrent": torrentErr, "append": appendErr, "copy to Glacier": classErr} {
		if got := code(err); got != "NotImplemented" && got != "InvalidStorageClass" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if data, _ := get(t, r, "a.img"); string(data) != "a" {
		t.Errorf("the object holds %q", data)
	}
	if _, err := c.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: aws.String("empty")}); err != nil {
		t.Errorf("the empty bucket: %v", err)
	}
}

// TestOldSignature signs with Signature Version 2.
func TestOldSignature(t *testing.T) {
	g := start(t, t.TempDir(), uploader("images", ""))
	root(t, g.Endpoint(), "images")
	header := request(t, "GET", g.Endpoint()+"/images")
	header.Header.Set("Authorization", "AWS "+uploaderKey+":c2lnbmF0dXJl")
	for _, req := range []*http.Request{header, request(t, "GET", g.Endpoint()+"/images/a.img?AWSAccessKeyId="+uploaderKey+"&Signature=c2lnbmF0dXJl&Expires=1900000000")} {
		code, body := status(t, req)
		if code != http.StatusBadRequest || !strings.Contains(body, "AWS4-HMAC-SHA256") || !strings.Contains(body, "signature_v2") {
			t.Errorf("%s: %d %s", req.URL, code, body)
		}
	}
}

// sendForm uploads a file by a form that uploaders signed, with one more field.
func sendForm(t testing.TB, endpoint, key, field, value string) (int, string) {
	t.Helper()
	body, contentType := form(t, uploaderKey, uploaderSecret, key, []byte("new"), field, value)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, endpoint+"/images", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	return status(t, req)
}
