package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"imageroot/local/gateway"
)

// TestStrangersHoldNoMemory sends endless bodies without a signature.
func TestStrangersHoldNoMemory(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	const size = 64 << 20
	form := "POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
	field := "--x\r\nContent-Disposition: form-data; name=\"a%d\"\r\n\r\n"
	long := strings.Repeat("A", 64<<10)
	line := strings.Repeat("A", 1000) + "\r\n"
	for what, sent := range map[string]struct{ head, begin, again string }{
		"a line without end":     {form, "", long},
		"a value without end":    {form, fmt.Sprintf(field, 1), long},
		"a value of many lines":  {form, fmt.Sprintf(field, 1), strings.Repeat(line, 64)},
		"headers without end":    {form, "--x\r\n", "X: " + long},
		"many headers":           {form, "--x\r\n", "X: y\r\n"},
		"many fields":            {form, "", fmt.Sprintf(field, 1) + "value\r\n"},
		"a form in chunks":       {form + "Transfer-Encoding: chunked\r\n", "", "10000\r\n" + long + "\r\n"},
		"keys to delete":         {"POST /images?delete HTTP/1.1\r\nHost: x\r\n", "<Delete>", long},
		"parts of an upload":     {"POST /images/a.img?uploadId=x HTTP/1.1\r\nHost: x\r\n", "<CompleteMultipartUpload>", long},
		"a policy":               {"PUT /images?policy HTTP/1.1\r\nHost: x\r\n", "", long},
		"a bucket":               {"PUT /bucket HTTP/1.1\r\nHost: x\r\n", "", long},
		"an object":              {"PUT /images/a.img HTTP/1.1\r\nHost: x\r\n", "", long},
		"a chunked object":       {"PUT /images/a.img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", "", "10000\r\n" + long + "\r\n"},
		"aws-chunked":            {"POST /images?delete HTTP/1.1\r\nHost: x\r\nX-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nTransfer-Encoding: chunked\r\n", "", "10000\r\n" + long + "\r\n"},
		"the body of a download": {"GET /images/a.img HTTP/1.1\r\nHost: x\r\n", "", long},
		"an admin's request":     {"PATCH /create-user HTTP/1.1\r\nHost: x\r\n", "", long},
	} {
		t.Run(what, func(t *testing.T) {
			head := sent.head
			if !strings.Contains(head, "chunked") {
				head += fmt.Sprintf("Content-Length: %d\r\n", size)
			}
			again := bytes.Repeat([]byte(sent.again), 1+(64<<10)/len(sent.again))
			c, err := net.Dial("tcp", g.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			answered := make(chan int, 1)
			go func() {
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					answered <- 0
					return
				}
				answered <- res.StatusCode
			}()
			_, err = io.WriteString(c, head+"\r\n"+sent.begin)
			for left := size; left > 0 && err == nil; left -= len(again) {
				_, err = c.Write(again)
			}
			if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Error(err)
			}
			if status := <-answered; status < 400 || status >= 500 {
				t.Errorf("the answer is %d", status)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// TestPagesDoNotAct requests a page that a client uploaded, as a browser would.
func TestPagesDoNotAct(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	c := raw(g.Endpoint())
	in := &s3.PutObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img"), Body: strings.NewReader("<script>"), ContentType: aws.String("text/html")}
	if _, err := c.PutObject(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	u, err := s3.NewPresignClient(c).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: in.Bucket, Key: in.Key})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(u.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK || res.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(res.Header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("the answer is %s with %v", res.Status, res.Header)
	}
}

func TestMalformedPath(t *testing.T) {
	g := start(t, t.TempDir())
	many := "/images?" + strings.Repeat("a=b&", 101)
	for _, path := range []string{"/im%ages", "/images/%zz", "/images/a%", "/%", many} {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s is answered %s", path, res.Status)
		}
	}
}

// TestRefusalsAreBrief sends a wrong signature over a long query. The answer ends
// the connection and is no longer than what was sent.
func TestRefusalsAreBrief(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	signed, err := s3.NewPresignClient(raw(g.Endpoint())).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img")})
	if err != nil {
		t.Fatal(err)
	}
	url := signed.URL + strings.Repeat("&"+strings.Repeat("a", 60)+"=", 80)
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusForbidden || !bytes.Contains(body, []byte("<Code>SignatureDoesNotMatch</Code>")) {
		t.Fatalf("the answer is %s: %s", res.Status, body)
	}
	if len(body) > len(url) || !res.Close {
		t.Errorf("the answer to %d bytes has %d; the connection closes: %t", len(url), len(body), res.Close)
	}
}

// TestForm uploads as a browser does.
func TestForm(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	data := pattern(1, 3<<20)
	for _, padding := range []int{0, 16 << 10} {
		body, contentType := form(t, accessKey, secretKey, "a.img", data, "x-ignore-padding", strings.Repeat("p", padding))
		res, err := http.Post(g.Endpoint()+"/images", contentType, body)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode >= 300 {
			t.Fatalf("the answer is %s", res.Status)
		}
		if got, _ := get(t, r, "a.img"); !bytes.Equal(got, data) {
			t.Error("the object holds other bytes")
		}
	}
}

// form returns a form that uploads data, signed with the access key, with one
// more field, and its type.
func form(t testing.TB, access, secret, key string, data []byte, field, value string) (io.Reader, string) {
	t.Helper()
	return formAt(t, time.Now(), access, secret, key, data, field, value)
}

// formAt is form, signed at a time.
func formAt(t testing.TB, now time.Time, access, secret, key string, data []byte, field, value string) (io.Reader, string) {
	t.Helper()
	now = now.UTC()
	day := now.Format("20060102")
	credential := access + "/" + day + "/us-east-1/s3/aws4_request"
	name, err := json.Marshal("$" + strings.ToLower(field))
	if err != nil {
		t.Fatal(err)
	}
	policy := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"expiration": %q, "conditions": [
		{"bucket": "images"}, {"key": %q}, {"x-amz-algorithm": "AWS4-HMAC-SHA256"}, {"x-amz-credential": %q}, {"x-amz-date": %q}, ["starts-with", %s, ""]]}`,
		now.Add(time.Hour).Format(time.RFC3339), key, credential, now.Format("20060102T150405Z"), name))
	sign := []byte("AWS4" + secret)
	for _, s := range []string{day, "us-east-1", "s3", "aws4_request", policy} {
		mac := hmac.New(sha256.New, sign)
		mac.Write([]byte(s))
		sign = mac.Sum(nil)
	}
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, f := range [][2]string{
		{"key", key},
		{"x-amz-algorithm", "AWS4-HMAC-SHA256"},
		{"x-amz-credential", credential},
		{"x-amz-date", now.Format("20060102T150405Z")},
		{field, value},
		{"policy", policy},
		{"x-amz-signature", hex.EncodeToString(sign)},
	} {
		if err := w.WriteField(f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	part, err := w.CreateFormFile("file", key)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(data) // into memory
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b, w.FormDataContentType()
}

// TestLongDocuments sends overlong documents of each kind that the gateway holds in
// memory, under each spelling of a path.
func TestLongDocuments(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	for _, line := range []string{
		"POST /images?delete", "POST /images/?delete", "POST /images?%64elete",
		"POST /images/a.img?uploadId=x", "POST /images%2Fa.img?uploadId=x", "POST /images%2fa.img?uploads",
		"PUT /images%2Fa.img?tagging", "PUT /images", "PUT /images%2F",
	} {
		method, target, _ := strings.Cut(line, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, g.Endpoint()+target, bytes.NewReader(make([]byte, 5<<20)))
		if err != nil {
			t.Fatal(err)
		}
		if code, body := status(t, req); code != http.StatusBadRequest || !strings.Contains(body, "MaxMessageLengthExceeded") {
			t.Errorf("%s: %d %s", line, code, body)
		}
	}
}

// TestUploadersHoldFewDocuments sends documents with the uploaders' key, without
// their last byte.
func TestUploadersHoldFewDocuments(t *testing.T) {
	g := start(t, t.TempDir(), uploader("images", ""), func(cfg *gateway.Config) { cfg.HeadTimeout = 2 * time.Second })
	root(t, g.Endpoint(), "images")
	body := []byte("<Delete>" + strings.Repeat(" ", 1<<20) + "<Object><Key>a.img</Key></Object></Delete>")
	sum := md5.Sum(body)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.Endpoint()+"/images?delete=", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	req.Header.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
	creds := aws.Credentials{AccessKeyID: uploaderKey, SecretAccessKey: uploaderSecret}
	if err := v4.NewSigner().SignHTTP(t.Context(), creds, req, "UNSIGNED-PAYLOAD", "s3", "us-east-1", time.Now()); err != nil {
		t.Fatal(err)
	}
	var sent bytes.Buffer
	if err := req.Write(&sent); err != nil {
		t.Fatal(err)
	}
	const clients = 8
	last := sent.Len() - 1
	codes := make(chan int, clients)
	finish := make(chan struct{})
	for range clients {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			_, _ = c.Write(sent.Bytes()[:last]) // the write may be refused
			<-finish
			_, _ = c.Write(sent.Bytes()[last:])
		}()
		go func() {
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				codes <- 0
				return
			}
			res.Body.Close()
			codes <- res.StatusCode
		}()
	}
	for range clients - 2 {
		if code := <-codes; code != http.StatusServiceUnavailable {
			t.Errorf("a document more is answered with %d", code)
		}
	}
	close(finish)
	for range 2 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("a document is answered with %d", code)
		}
	}
}
