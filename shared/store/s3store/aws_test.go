package s3store_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

// TestCopyInParts copies in parts, as AWS requires for objects of more than 5 GiB.
func TestCopyInParts(t *testing.T) {
	root := openRoot(t)
	const part = 5 << 20
	data := bytes.Repeat([]byte("0123456789abcdef!"), (20*part+1000)/17)
	v, err := root.Put(t.Context(), "a b+c%.img", bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := root.CopyInParts(t.Context(), "copy.img", "a b+c%.img", v, part); err != nil {
		t.Fatal(err)
	}
	info, err := root.Head(t.Context(), "copy.img")
	if err != nil {
		t.Fatal(err)
	}
	body, _, err := root.Get(t.Context(), "copy.img", store.All, info.ETag)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(data), err)
	}
	// A failed copy leaves nothing.
	if err := root.CopyInParts(t.Context(), "none.img", "missing.img", v, part); err == nil {
		t.Error("nothing was copied")
	}
	for u, err := range root.PendingUploads(t.Context(), "") {
		t.Errorf("left: %+v, %v", u, err)
	}
}

// TestAWSParts checks requests to AWS, over TLS and with the client's defaults: a part
// must not have a checksum that its upload did not announce.
func TestAWSParts(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // a short body fails below
		for name := range r.Header {
			if n := strings.ToLower(name); strings.Contains(n, "checksum") || n == "x-amz-trailer" {
				t.Errorf("%s %s has %s: %s", r.Method, r.URL, name, r.Header.Get(name))
			}
		}
		if string(body) != "part" || r.ContentLength != 4 {
			t.Errorf("the body is %q, of length %d", body, r.ContentLength)
		}
		w.Header().Set("ETag", `"e"`)
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", ca)
	t.Setenv("AWS_ENDPOINT_URL_S3", server.URL) // unlike Config.Endpoint, it keeps all other settings for AWS
	c, err := s3store.Open(t.Context(), s3store.Config{Region: "us-east-1", AccessKey: "KEY", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Root("images", "").UploadPart(t.Context(), "x.img", "id", 1, strings.NewReader("part"), 4)
	if err != nil || p.ETag != "e" {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestPartsAgain: a part of a body of unknown size is sent again if S3 fails for a while,
// and the upload ends if S3 fails for longer.
func TestPartsAgain(t *testing.T) {
	var mu sync.Mutex
	failures := map[string]int{} // left, by the number of the part
	root := openRootThrough(t, func(gateway *url.URL) http.Handler {
		proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = gateway.Scheme, gateway.Host, r.In.Host // which the signature covers
		}}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			n := r.URL.Query().Get("partNumber")
			failures[n]--
			fail := n != "" && failures[n] >= 0
			mu.Unlock()
			if fail {
				_, _ = io.Copy(io.Discard, r.Body) // what it sends is not stored
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			proxy.ServeHTTP(w, r)
		})
	})
	data := bytes.Repeat([]byte("0123456789abcdef!"), 70<<20/17)
	put := func() error {
		_, err := root.Put(t.Context(), "x.img", bytes.NewReader(data), -1)
		return err
	}
	failures["2"], failures["5"] = 1, 1
	if err := put(); err != nil {
		t.Fatal(err)
	}
	body, _, err := root.Get(t.Context(), "x.img", store.All, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(data), err)
	}
	failures["3"] = 100
	if err := put(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a store that fails: %v", err)
	}
	for u, err := range root.PendingUploads(t.Context(), "") {
		t.Errorf("left: %+v, %v", u, err)
	}
}
