package s3store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

// openRoot returns a root in a new gateway.
func openRoot(t *testing.T) *s3store.Root {
	t.Helper()
	return openRootThrough(t, nil)
}

// openRootThrough returns a root whose requests pass through a proxy, unless it is nil.
func openRootThrough(t *testing.T, proxy func(gateway *url.URL) http.Handler) *s3store.Root {
	t.Helper()
	const access, secret = "PRESIGNTEST123456789", "presign-test-secret-0123456789abcdef"
	g, err := gateway.Start(t.Context(), gateway.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: access, SecretKey: secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	endpoint := "http://" + g.Addr()
	if proxy != nil {
		server := httptest.NewServer(proxy(&url.URL{Scheme: "http", Host: g.Addr()}))
		t.Cleanup(server.Close)
		endpoint = server.URL
	}
	c, err := s3store.Open(t.Context(), s3store.Config{Endpoint: endpoint, Region: "us-east-1", AccessKey: access, SecretKey: secret, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.EnsureBucket(t.Context(), "images"); err != nil {
		t.Fatal(err)
	}
	return c.Root("images", "in here/")
}

// do sends a request like an HTTP client without S3 support.
func do(t *testing.T, method, url string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, data
}

func TestPresign(t *testing.T) {
	root := openRoot(t)
	const key = "a b+ü%41#?&=.img"
	data := []byte("the bytes of an image")

	url, err := root.PresignPut(t.Context(), key, "", false)
	if err != nil {
		t.Fatal(err)
	}
	// Fields that clients add themselves are allowed.
	if resp, body := do(t, http.MethodPut, url, data, "Content-Type", "application/x-whatever", "User-Agent", "test"); resp.StatusCode != http.StatusOK {
		t.Fatalf("PUT: %s %s", resp.Status, body)
	}
	info, err := root.Head(t.Context(), key)
	if err != nil || info.Size != int64(len(data)) {
		t.Fatalf("after the PUT: %+v, %v", info, err)
	}
	for _, other := range []string{http.MethodGet, http.MethodDelete} {
		if resp, _ := do(t, other, url, nil); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s with the URL of a PUT: %s", other, resp.Status)
		}
	}
	if resp, _ := do(t, http.MethodPut, strings.Replace(url, "X-Amz-Signature=", "X-Amz-Signature=0", 1), data); resp.StatusCode == http.StatusOK {
		t.Error("a forged signature is taken")
	}

	if url, err = root.PresignGet(t.Context(), key, store.Attachment("säve as.img")); err != nil {
		t.Fatal(err)
	}
	resp, body := do(t, http.MethodGet, url, nil)
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, data) || !strings.Contains(resp.Header.Get("Content-Disposition"), "attachment") {
		t.Errorf("GET: %s %q %v", resp.Status, body, resp.Header)
	}
	if resp, body := do(t, http.MethodGet, url, nil, "Range", "bytes=4-8"); resp.StatusCode != http.StatusPartialContent || string(body) != "bytes" {
		t.Errorf("GET of a range: %s %q", resp.Status, body)
	}
	if url, err = root.PresignHead(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if resp, _ := do(t, http.MethodHead, url, nil); resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(data)) {
		t.Errorf("HEAD: %s %d", resp.Status, resp.ContentLength)
	}
}

func TestPresignWithSum(t *testing.T) {
	root := openRoot(t)
	data := []byte("the bytes of an image")
	sum := sha256.Sum256(data)
	url, err := root.PresignPut(t.Context(), "x.img", hex.EncodeToString(sum[:]), false)
	if err != nil {
		t.Fatal(err)
	}
	header := []string{"x-amz-checksum-sha256", base64.StdEncoding.EncodeToString(sum[:])}
	for name, r := range map[string]func() *http.Response{
		"other bytes": func() *http.Response {
			r, _ := do(t, http.MethodPut, url, []byte("The bytes of an image"), header...)
			return r
		},
		"no sum": func() *http.Response { r, _ := do(t, http.MethodPut, url, data); return r },
		"of other data": func() *http.Response {
			r, _ := do(t, http.MethodPut, url, data, header[0], strings.Repeat("A", 43)+"=")
			return r
		},
	} {
		if resp := r(); resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	if _, err := root.Head(t.Context(), "x.img"); err == nil {
		t.Error("other bytes were stored")
	}
	if resp, body := do(t, http.MethodPut, url, data, header...); resp.StatusCode != http.StatusOK {
		t.Errorf("the bytes: %s %s", resp.Status, body)
	}
	if _, err := root.PresignPut(t.Context(), "x.img", "no sum", false); err == nil {
		t.Error("a sum that is none is signed")
	}
}

func TestPresignCreate(t *testing.T) {
	root := openRoot(t)
	url, err := root.PresignPut(t.Context(), "x.img", "", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		header []string
		status int
	}{{nil, 403}, {[]string{"If-None-Match", "*"}, 200}, {[]string{"If-None-Match", "*"}, 412}, {nil, 403}} {
		if resp, body := do(t, http.MethodPut, url, []byte("bytes"), tt.header...); resp.StatusCode != tt.status {
			t.Errorf("%v: %s, want %d: %s", tt.header, resp.Status, tt.status, body)
		}
	}
}

func TestPresignPart(t *testing.T) {
	root := openRoot(t)
	ctx := t.Context()
	id, err := root.CreateUpload(ctx, "x.img")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), store.MinPartBytes/16)
	for n, part := range [][]byte{data, []byte("end")} {
		url, err := root.PresignPart(ctx, "x.img", id, int32(n+1))
		if err != nil {
			t.Fatal(err)
		}
		if resp, body := do(t, http.MethodPut, url, part); resp.StatusCode != http.StatusOK {
			t.Fatalf("part %d: %s %s", n+1, resp.Status, body)
		}
	}
	parts, err := root.ListParts(ctx, "x.img", id)
	if err != nil || len(parts) != 2 {
		t.Fatalf("parts: %+v, %v", parts, err)
	}
	if v, err := root.CompleteUpload(ctx, "x.img", id, parts); err != nil || v.Size != int64(len(data)+3) {
		t.Errorf("complete: %+v, %v", v, err)
	}
}
