package gateway_test

import (
	"bufio"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// TestUnreadBodies sends requests whose body the gateway does not read, and another
// request after each. The body must not be parsed as requests.
func TestUnreadBodies(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	path := func(bucket, key string) string {
		return strings.TrimPrefix(presigned(t, g.Endpoint(), bucket, key), g.Endpoint())
	}
	const inner = "GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, line := range []string{
		"PUT /images/a.img", "PUT /bucket", "PUT /images?tagging", "PUT /images/a.img?tagging", "PUT /im%ages/a.img",
		"POST /images", "POST /images?delete", "POST /images/a.img?uploads", "POST /images/a.img?uploadId=x",
		"GET /", "GET /images/a.img", "HEAD /images/a.img", "DELETE /images/a.img", "OPTIONS /images/a.img", "PATCH /create-user", "UNKNOWN /images",
		"PUT " + path("missing", "a.img"), "PUT " + path("images", ".hidden"), "PUT " + path("images", strings.Repeat("x", 300)),
		"PUT " + path("images", "a.img") + "0", // another signature
	} {
		for _, length := range []int{len(inner), 10_000, 100_000, 600_000} {
			body := inner + strings.Repeat("A", length-len(inner))
			for framing, sent := range map[string]string{
				"length":                      fmt.Sprintf("Content-Length: %d\r\n\r\n%s", length, body),
				"chunks":                      fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", length, body),
				"a chunk, refused, then more": fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", body),
				"aws-chunked in chunks":       fmt.Sprintf("X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Decoded-Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", length, body),
				"both":                        fmt.Sprintf("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", body),
				"a length in aws-chunked":     fmt.Sprintf("Content-Encoding: aws-chunked\r\nX-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\r\nX-Amz-Decoded-Content-Length: 10\r\nContent-Length: %d\r\n\r\n%s", length, body),
			} {
				most := 2
				if strings.Contains(sent, "Transfer-Encoding") {
					most = 1
				}
				head := line + " HTTP/1.1\r\nHost: x\r\n"
				if got := answers(t, g.Addr(), head+sent+"GET /outer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); got > most {
					t.Errorf("%.50s: %d bytes by %s: %d answers", line, length, framing, got)
				}
			}
		}
	}
}

// answers sends requests on one connection and returns the number of answers.
func answers(t *testing.T, addr, requests string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	go func() { _, _ = io.WriteString(c, requests) }() // the write may be cut off
	r := bufio.NewReader(c)
	method, _, _ := strings.Cut(requests, " ")
	n := 0
	for ; ; n++ {
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		method = http.MethodGet
	}
}

// TestUnsignedChunks sends content whose signature does not match, or that ends
// before the gateway compares the signature.
func TestUnsignedChunks(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	upload, err := r.CreateUpload(t.Context(), "part.img")
	if err != nil {
		t.Fatal(err)
	}
	chunk := "4;chunk-signature=" + strings.Repeat("a", 64) + "\r\nfake"
	sum := md5.Sum([]byte("fake"))
	for _, path := range []string{"/images/a.img", "/images/part.img?partNumber=1&uploadId=" + upload} {
		for _, payload := range []string{"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"} {
			for _, header := range []string{"", "Content-Md5"} {
				for _, body := range []string{chunk, "1000" + chunk, chunk + "\r\n", chunk + "\r\n0;chunk-signature=" + strings.Repeat("a", 64) + "\r\n\r\n"} {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, g.Endpoint()+path, strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("X-Amz-Content-Sha256", payload)
					req.Header.Set("X-Amz-Decoded-Content-Length", "4")
					if header != "" {
						req.Header.Set(header, base64.StdEncoding.EncodeToString(sum[:]))
					}
					creds := aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secretKey}
					if err := v4.NewSigner().SignHTTP(t.Context(), creds, req, payload, "s3", "us-east-1", time.Now()); err != nil {
						t.Fatal(err)
					}
					if code, answer := status(t, req); code < 400 || code >= 500 {
						t.Errorf("PUT %s as %s with %q: %d %s", path, payload, body, code, answer)
					}
				}
			}
		}
	}
}
