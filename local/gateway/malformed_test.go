package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/pkg/xattr"

	"imageroot/local/gateway"
)

// errorsOf makes a gateway write the errors that it logs, panics included, to the
// returned buffer.
func errorsOf() (*syncBuffer, func(*gateway.Config)) {
	var b syncBuffer
	return &b, func(cfg *gateway.Config) {
		cfg.Log = slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelError}))
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestMalformedChunks sends bodies in aws-chunked whose framing is wrong.
func TestMalformedChunks(t *testing.T) {
	logged, quiet := errorsOf()
	g := start(t, t.TempDir(), uploader("images", ""), quiet)
	r := root(t, g.Endpoint(), "images")
	upload, err := r.CreateUpload(t.Context(), "part.img")
	if err != nil {
		t.Fatal(err)
	}
	sig := strings.Repeat("a", 64)
	broken := strings.Repeat("a", 30) + "\r\n" + strings.Repeat("a", 32)
	var bodies []string
	for _, size := range []string{
		"-1", "-5", "-7fffffffffffffff", "-8000000000000000", "+4", "-0", "", " ", "\t4", "4 ", " 4", "0x4", "4_0", "4\x00", "zz", "\r\n4", "\r\n",
		"7fffffffffffffff", "8000000000000000", "ffffffffffffffff", strings.Repeat("f", 17), strings.Repeat("0", 900) + "4", strings.Repeat("f", 5000),
	} {
		bodies = append(bodies,
			size+";chunk-signature="+sig+"\r\nfake\r\n0;chunk-signature="+sig+"\r\n\r\n",
			size+"\r\nfake\r\n0\r\n\r\n",
			"4;chunk-signature="+sig+"\r\nfake\r\n"+size+";chunk-signature="+sig+"\r\nmore",
			"4\r\nfake\r\n"+size+"\r\n\r\n",
		)
	}
	chunk := "4;chunk-signature=" + sig + "\r\nfake\r\n"
	bodies = append(bodies,
		"", "\r\n", ";", "4", "4;", "4;chunk-signature=", "4;chunk-signature="+sig, "4;chunk-signature="+broken+"\r\nfake",
		chunk, chunk+"0", chunk+"0;chunk-signature="+sig, chunk+"0;chunk-signature="+broken+"\r\n\r\n",
		strings.Repeat(";", 4000), strings.Repeat("4", 4000), strings.Repeat("\r\n", 4000),
		chunk+"0;chunk-signature="+sig+"\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
		chunk+"0;chunk-signature="+sig+"\r\nx-amz-checksum-crc32:"+strings.Repeat("A", 9000)+"\r\n\r\n",
		"4\r\nfake\r\n0\r\nx-amz-checksum-crc32:\r\n\r\n", "4\r\nfake\r\n0\r\nx-amz-checksum-crc32\r\n\r\n", "4\r\nfake\r\n0\r\n:\r\n\r\n",
		"4\r\nfake\r\n0\r\nx-amz-checksum-crc32:"+strings.Repeat("A", 9000), "4\r\nfake\r\n0\r\nx-amz-checksum-sha1:AAAAAA==\r\n\r\n",
	)
	// A signature that arrives in two reads.
	split := "4;chunk-signature=" + broken
	for _, path := range []string{"/images/a.img", "/images/part.img?partNumber=1&uploadId=" + upload} {
		for _, payload := range []string{"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"} {
			for _, body := range append(bodies, split) {
				header := http.Header{"X-Amz-Decoded-Content-Length": {"4"}, "Content-Encoding": {"aws-chunked"}}
				if strings.HasSuffix(payload, "TRAILER") {
					header.Set("X-Amz-Trailer", "x-amz-checksum-crc32")
				}
				if code, answer := status(t, streamed(t, g.Endpoint()+path, payload, strings.NewReader(body), header)); code < 400 || code >= 500 {
					t.Errorf("PUT %.20s as %s with %.60q: %d %s", path, payload, body, code, answer)
				}
			}
			for _, length := range []string{"", "-1", "-9223372036854775808", "9223372036854775807", "99999999999999999999", "x", " ", "0x4", "1e3"} {
				req := streamed(t, g.Endpoint()+path, payload, strings.NewReader(chunk), http.Header{"X-Amz-Decoded-Content-Length": {length}})
				if code, answer := status(t, req); code < 400 || code >= 500 && code != http.StatusInsufficientStorage {
					t.Errorf("PUT %.20s as %s of %q: %d %s", path, payload, length, code, answer)
				}
			}
		}
	}
	// Chunks whose head arrives in two reads, split at each offset.
	for i := range len(split) {
		pr, pw := io.Pipe()
		req := streamed(t, g.Endpoint()+"/images/a.img", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", pr, http.Header{"X-Amz-Decoded-Content-Length": {"4"}})
		req.ContentLength = int64(len(split) + 6)
		go func() {
			_, _ = io.WriteString(pw, split[:i])
			_, _ = io.WriteString(pw, split[i:]+"\r\nfake")
			pw.Close()
		}()
		if code, answer := status(t, req); code < 400 || code >= 500 {
			t.Errorf("a head in two pieces of %d: %d %s", i, code, answer)
		}
	}
	if s := logged.String(); s != "" {
		t.Errorf("logged: %.2000s", s)
	}
}

// streamed returns an uploader's PUT with the X-Amz-Content-Sha256 payload.
func streamed(t testing.TB, url, payload string, body io.Reader, header http.Header) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	req.Header.Set("X-Amz-Content-Sha256", payload)
	creds := aws.Credentials{AccessKeyID: uploaderKey, SecretAccessKey: uploaderSecret}
	if err := v4.NewSigner().SignHTTP(t.Context(), creds, req, payload, "s3", "us-east-1", time.Now()); err != nil {
		t.Fatal(err)
	}
	return req
}

// TestMalformedRequests sends requests for each route of uploaders with meaningless
// arguments, headers and bodies. None causes an internal error.
func TestMalformedRequests(t *testing.T) {
	logged, quiet := errorsOf()
	g := start(t, t.TempDir(), uploader("images", ""), quiet)
	r := root(t, g.Endpoint(), "images")
	put(t, r, "k.img", []byte("kept"))
	upload, err := r.CreateUpload(t.Context(), "k.img")
	if err != nil {
		t.Fatal(err)
	}
	values := []string{"", "-1", "99999999999999999999", "x", "\x00"}
	arguments := []string{"max-keys", "max-parts", "max-uploads", "max-buckets", "part-number-marker", "partNumber", "versionId", "uploadId", "continuation-token", "marker", "key-marker", "upload-id-marker", "prefix", "delimiter", "encoding-type", "response-content-type", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Algorithm"}
	headers := []string{
		"Range", "If-Match", "If-None-Match", "If-Modified-Since", "X-Amz-If-Match-Size", "X-Amz-If-Match-Last-Modified-Time", "X-Amz-If-Match-Initiated-Time", "X-Amz-Copy-Source", "X-Amz-Copy-Source-Range", "X-Amz-Copy-Source-If-Match", "X-Amz-Copy-Source-If-Modified-Since",
		"X-Amz-Metadata-Directive", "X-Amz-Tagging-Directive", "X-Amz-Tagging", "X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Checksum-Algorithm", "X-Amz-Checksum-Crc32", "X-Amz-Checksum-Type", "X-Amz-Checksum-Mode", "X-Amz-Mp-Object-Size", "X-Amz-Object-Attributes", "X-Amz-Max-Parts", "X-Amz-Part-Number-Marker", "Content-Md5", "X-Amz-Content-Sha256", "X-Amz-Date", "Authorization", "X-Amz-Decoded-Content-Length", "X-Amz-Trailer", "Content-Type", "Origin", "Access-Control-Request-Method", "X-Amz-Expected-Bucket-Owner", "X-Amz-Source-Expected-Bucket-Owner", "Expires", "X-Amz-Optional-Object-Attributes",
	}
	bodies := []string{
		"", "<", "<Delete/>", "<Delete><Object/></Delete>", "<Delete><Object><Key/></Object></Delete>", "<Delete><Object><Key>k2.img</Key><Size>x</Size></Object></Delete>",
		"<Delete><Object><Key>k2.img</Key><LastModifiedTime>x</LastModifiedTime></Object></Delete>", "<Delete><Object><VersionId>x</VersionId></Object></Delete>",
		"<CompleteMultipartUpload/>", "<CompleteMultipartUpload><Part/></CompleteMultipartUpload>", "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
		"<CompleteMultipartUpload><Part><ETag>x</ETag></Part></CompleteMultipartUpload>", "<CompleteMultipartUpload><Part><PartNumber>-1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>",
		"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag></ETag></Part><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
		"<CreateBucketConfiguration/>", "<Tagging/>", "<Tagging><TagSet><Tag/></TagSet></Tagging>", "<x>\x00</x>", "{}", "null", strings.Repeat("<a>", 2000),
	}
	try := func(route route, u, body, name, value string) {
		t.Helper()
		header := http.Header{"Content-Md5": {md5Of(body)}, "Connection": {"close"}}
		for _, h := range route.headers {
			header.Set(h, "images/k.img")
		}
		if name != "" {
			header.Set(name, value)
		}
		req := signed(t, route.method, u, body, header)
		const placeholder = "the value that net/http would not send"
		if name != "" {
			value = req.Header.Get(name)
			req.Header.Set(name, placeholder)
		}
		var b bytes.Buffer
		if err := req.Write(&b); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = c.Write(bytes.Replace(b.Bytes(), []byte(placeholder), []byte(value), 1)) // the write may be refused
		res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: route.method})
		if err != nil {
			t.Errorf("%v %s: %q with %.80q: %v", route, name, value, body, err)
			return
		}
		answer, _ := io.ReadAll(res.Body)
		if res.StatusCode == http.StatusInternalServerError {
			t.Errorf("%v %s: %q with %.80q: %s %.300s", route, name, value, body, res.Status, answer)
		}
	}
	for _, route := range routes(t) {
		if !slices.Contains(allowedRoutes, route.String()) {
			continue
		}
		for _, key := range []string{"k.img", "%6b%2fimg/", "a//b"} {
			if !strings.Contains(route.path, "*") && key != "k.img" {
				continue
			}
			u := g.Endpoint() + strings.NewReplacer(":bucket", "images", "*", key).Replace(route.path) + "?"
			query := url.Values{}
			for _, arg := range route.query {
				name, value, _ := strings.Cut(arg, "=")
				switch name {
				case "partNumber":
					value = "1"
				case "uploadId":
					value = upload
				}
				query.Set(name, value)
			}
			for _, body := range bodies {
				try(route, u+query.Encode(), body, "", "")
			}
			if key != "k.img" {
				continue
			}
			for _, value := range values {
				for _, name := range arguments {
					q := url.Values{}
					for k, v := range query {
						q[k] = v
					}
					q.Set(name, value)
					try(route, u+q.Encode(), "", "", "")
				}
				for _, name := range headers {
					try(route, u+query.Encode(), "", name, value)
				}
			}
		}
	}
	if s := logged.String(); s != "" {
		t.Errorf("logged: %s", s)
	}
}

func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// TestControlCharacters sends headers of objects with characters that a header must
// not have, by each operation that stores or returns them.
func TestControlCharacters(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir, uploader("images", ""))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "old.img", []byte("old"))
	refused := func(what string, code int, answer string) {
		t.Helper()
		if code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", what, code, answer)
		}
		if list := keys(t, r); len(list) != 1 {
			t.Errorf("%s: there are %q", what, list)
		}
	}
	for _, value := range []string{"/a\x00b", "/a\x01", "/a\x7fb", "/a\r\nX-Injected: b", "/a\nb"} {
		for _, field := range []string{"Content-Type", "Content-Disposition", "Cache-Control", "x-amz-meta-a", "success_action_redirect", "x-amz-website-redirect-location"} {
			code, answer := sendForm(t, g.Endpoint(), "form.img", field, value)
			refused(fmt.Sprintf("a form with %s %q", field, value), code, answer)
		}
		for _, field := range []string{"response-content-type", "response-content-disposition", "response-cache-control", "response-expires"} {
			code, answer := status(t, signed(t, "GET", g.Endpoint()+"/images/old.img?"+url.Values{field: {value}}.Encode(), "", nil))
			refused(fmt.Sprintf("%s %q", field, value), code, answer)
		}
		if strings.Contains(value, "\n") {
			continue // two headers, or none
		}
		for _, line := range []string{"PUT /images/new.img", "POST /images/new.img?uploads="} {
			c, err := net.Dial("tcp", g.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, line+" HTTP/1.1\r\nHost: x\r\nX-Amz-Meta-A: "+value+"\r\nContent-Length: 0\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			answer, _ := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusBadRequest {
				t.Errorf("%s with %q: %s %s", line, value, res.Status, answer)
			}
		}
	}
	for _, field := range []string{"x-amz-meta-\x01", "x-amz-meta-a b", "x-amz-meta-a:b", "x-amz-meta-\u00e4"} {
		code, answer := sendForm(t, g.Endpoint(), "form.img", field, "value")
		refused(fmt.Sprintf("a form with %q", field), code, answer)
	}
	if code, answer := sendForm(t, g.Endpoint(), "old.img", "x-amz-meta-a", "tab\tand \u00e4"); code != http.StatusNoContent {
		t.Errorf("a form with printable metadata: %d %s", code, answer)
	}

	// Headers that an older version stored are not sent.
	for name, value := range map[string]string{"user.content-type": "text/\x00plain", "user.X-Amz-Meta.a\x01": "b", "user.cache-control": "no\x01store"} {
		if err := xattr.Set(filepath.Join(dir, "images", "old.img"), name, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		res, err := http.DefaultClient.Do(signed(t, method, g.Endpoint()+"/images/old.img", "", nil))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		for name, values := range res.Header {
			for _, value := range values {
				if strings.ContainsAny(name+value, "\x00\x01") {
					t.Errorf("%s has %q: %q", method, name, value)
				}
			}
		}
	}
}

// TestMalformedConditions deletes, copies and aborts on conditions that do not
// parse, or that nothing meets.
func TestMalformedConditions(t *testing.T) {
	g := start(t, t.TempDir(), uploader("images", ""))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "old.img", []byte("old"))
	upload, err := r.CreateUpload(t.Context(), "old.img")
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour).UTC()
	for _, tt := range []struct {
		method, target, header string
		values                 []string
		status                 int
	}{
		{"DELETE", "old.img", "X-Amz-If-Match-Size", []string{"", "x", "-1", "1e3", "3.0", "0x3", "99999999999999999999"}, http.StatusBadRequest},
		{"DELETE", "old.img", "X-Amz-If-Match-Last-Modified-Time", []string{"", "x", "2020-01-01", "1577836800", "Wed, 01 Jan 2020 00:00:00 PST", "Wed Jan  1 00:00:00 2020", "Wednesday, 01-Jan-20 00:00:00 GMT"}, http.StatusBadRequest},
		{"DELETE", "old.img", "X-Amz-If-Match-Last-Modified-Time", []string{later.Format(http.TimeFormat), later.Format(time.RFC3339)}, http.StatusPreconditionFailed},
		{"DELETE", "old.img", "If-Match", []string{"", `""`}, http.StatusBadRequest},
		{"DELETE", "old.img?uploadId=" + upload, "X-Amz-If-Match-Initiated-Time", []string{"", "x"}, http.StatusBadRequest},
		{"PUT", "old.img", "If-Match", []string{"", `""`}, http.StatusBadRequest},
		{"PUT", "old.img", "If-None-Match", []string{"", `""`}, http.StatusBadRequest},
		{"PUT", "copy.img", "X-Amz-Copy-Source-If-Unmodified-Since", []string{"x", "Wed Jan  1 00:00:00 2020"}, http.StatusBadRequest},
		{"PUT", "copy.img", "X-Amz-Copy-Source-If-Match", []string{"", `""`}, http.StatusBadRequest},
		{"GET", "old.img", "If-Unmodified-Since", []string{"Wed Jan  1 00:00:00 2020", "Wednesday, 01-Jan-20 00:00:00 GMT"}, http.StatusBadRequest},
		{"GET", "old.img", "If-Modified-Since", []string{"x"}, http.StatusOK}, // as RFC 9110 says
		{"GET", "old.img", "If-Modified-Since", []string{"Wed, 01 Jan 2020 00:00:00 GMT"}, http.StatusOK},
	} {
		for _, value := range tt.values {
			header := http.Header{tt.header: {value}}
			if tt.target == "copy.img" {
				header.Set("X-Amz-Copy-Source", "images/old.img")
			}
			if code, answer := status(t, signed(t, tt.method, g.Endpoint()+"/images/"+tt.target, "", header)); code != tt.status {
				t.Errorf("%s %s if %s is %q: %d %s", tt.method, tt.target, tt.header, value, code, answer)
			}
			if data, _ := get(t, r, "old.img"); string(data) != "old" {
				t.Fatalf("%s %s if %s is %q: the object holds %q", tt.method, tt.target, tt.header, value, data)
			}
		}
	}
	if _, err := r.ListParts(t.Context(), "old.img", upload); err != nil {
		t.Errorf("the upload: %v", err)
	}
	if list := keys(t, r); len(list) != 1 {
		t.Errorf("there are %q", list)
	}
}

// TestDatesInTheFuture signs requests with a clock that is ahead.
func TestDatesInTheFuture(t *testing.T) {
	g := start(t, t.TempDir(), uploader("images", ""))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "a.img", []byte("a"))
	const payload = "UNSIGNED-PAYLOAD"
	creds := aws.Credentials{AccessKeyID: uploaderKey, SecretAccessKey: uploaderSecret}
	for ahead, want := range map[time.Duration]int{
		-5 * time.Minute: http.StatusOK, 10 * time.Minute: http.StatusOK,
		20 * time.Minute: http.StatusForbidden, 48 * time.Hour: http.StatusForbidden, 24 * 365 * time.Hour: http.StatusForbidden,
	} {
		at := time.Now().Add(ahead)
		for _, method := range []string{"GET", "PUT"} {
			req := request(t, method, g.Endpoint()+"/images/a.img?X-Amz-Expires=604800")
			u, _, err := v4.NewSigner().PresignHTTP(t.Context(), creds, req, payload, "s3", "us-east-1", at)
			if err != nil {
				t.Fatal(err)
			}
			if code, answer := status(t, request(t, method, u)); code != want {
				t.Errorf("a presigned %s, %v ahead: %d %s", method, ahead, code, answer)
			}
			req = request(t, method, g.Endpoint()+"/images/a.img")
			req.Header.Set("X-Amz-Content-Sha256", payload)
			if err := v4.NewSigner().SignHTTP(t.Context(), creds, req, payload, "s3", "us-east-1", at); err != nil {
				t.Fatal(err)
			}
			if code, answer := status(t, req); code != want {
				t.Errorf("a signed %s, %v ahead: %d %s", method, ahead, code, answer)
			}
		}
		body, contentType := formAt(t, at, uploaderKey, uploaderSecret, "a.img", []byte("a"), "x-ignore", "")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.Endpoint()+"/images", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		if code, answer := status(t, req); (code < 300) != (want == http.StatusOK) {
			t.Errorf("a form, %v ahead: %d %s", ahead, code, answer)
		}
	}
}
