package lambda

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"

	"imageroot/shared/problem"
)

// maxAnswer bounds the size of a response as JSON, in bytes. Lambda's limit is 6 MiB.
const maxAnswer = 6<<20 - 64<<10

// answer passes a request to the HTTP handler and returns its response.
func (f *Function) answer(ctx context.Context, e *events.APIGatewayV2HTTPRequest) (out *events.APIGatewayV2HTTPResponse) {
	w := &responseWriter{header: http.Header{}, head: e.RequestContext.HTTP.Method == http.MethodHead}
	r, err := request(ctx, e)
	if err != nil {
		return fail(r, problem.Wrap(problem.Malformed, "the request cannot be read", err))
	}
	defer func() {
		// The response is buffered, so it can be replaced.
		if v := recover(); v != nil {
			f.Log.Error("the handler of a request broke off", "path", e.RawPath, "panic", v, "stack", string(debug.Stack()))
			out = fail(r, problem.New(problem.Internal, ""))
		}
	}()
	f.HTTP.ServeHTTP(w, r)
	out = w.answer()
	if data, err := json.Marshal(out); err != nil || len(data) > maxAnswer {
		return fail(r, problem.Newf(problem.NotImplemented, "the answer has %d bytes, and no more than %d pass here: ask for less, or accept zstd", len(data), maxAnswer))
	}
	return out
}

func fail(r *http.Request, e *problem.Error) *events.APIGatewayV2HTTPResponse {
	w := &responseWriter{header: http.Header{}}
	w.header.Set("Cache-Control", "no-store")
	if r != nil {
		w.head = r.Method == http.MethodHead
	} else {
		r = &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{}}
	}
	problem.Write(w, r, problem.From(e))
	return w.answer()
}

// request converts an event to a request.
//
// It does not split header fields: the HTTP API joins the values of a repeated field with
// commas, and a single value may contain commas (Range, If-Match, Accept).
//
// The HTTP API decodes the path, including "%2F", and a function URL does not. request
// does not decode a decoded path again, which would change names with a percent sign.
func request(ctx context.Context, e *events.APIGatewayV2HTTPRequest) (*http.Request, error) {
	body := []byte(e.Body)
	if e.IsBase64Encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(e.Body); err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
	}
	u := &url.URL{Path: e.RawPath, RawQuery: e.RawQueryString}
	if strings.Contains(e.RequestContext.DomainName, ".lambda-url.") {
		p, err := url.PathUnescape(e.RawPath)
		if err != nil {
			return nil, fmt.Errorf("path: %w", err)
		}
		u.Path, u.RawPath = p, e.RawPath
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	r := (&http.Request{
		Method: e.RequestContext.HTTP.Method, URL: u, RequestURI: u.RequestURI(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		RemoteAddr: net.JoinHostPort(e.RequestContext.HTTP.SourceIP, "0"),
		TLS:        &tls.ConnectionState{}, // Lambda's endpoints serve HTTPS only
	}).WithContext(ctx)
	if len(body) == 0 {
		r.Body = http.NoBody
	}
	for name, value := range e.Headers {
		r.Header.Set(name, value)
	}
	if len(e.Cookies) > 0 {
		r.Header.Set("Cookie", strings.Join(e.Cookies, "; "))
	}
	r.Host = r.Header.Get("Host")
	r.Header.Del("Host")
	if r.Host == "" {
		r.Host = e.RequestContext.DomainName
	}
	return r, nil
}

// A responseWriter buffers a response.
type responseWriter struct {
	header http.Header
	sent   http.Header // the copy of header that WriteHeader made
	status int
	body   bytes.Buffer
	head   bool // the request is a HEAD, so that the body is dropped
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return // the API has no informational responses
	}
	w.status, w.sent = status, w.header.Clone()
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	if !w.head {
		w.body.Write(p)
	}
	return len(p), nil
}

// answer returns the response in the format of the API. As in net/http, the response of a
// handler that wrote nothing is 200 without a body.
func (w *responseWriter) answer() *events.APIGatewayV2HTTPResponse {
	w.WriteHeader(http.StatusOK)
	out := &events.APIGatewayV2HTTPResponse{StatusCode: w.status, Headers: map[string]string{}, Cookies: w.sent["Set-Cookie"]}
	body := w.body.Bytes()
	if len(body) > 0 && w.sent.Get("Content-Type") == "" && w.sent.Get("Content-Encoding") == "" {
		w.sent.Set("Content-Type", http.DetectContentType(body))
	}
	for name, values := range w.sent {
		switch name {
		case "Set-Cookie", "Connection", "Transfer-Encoding":
		case "Content-Length":
			// The API computes the length, except for a HEAD, which has no body to count.
			if w.head {
				out.Headers[name] = values[0]
			}
		default:
			out.Headers[name] = strings.Join(values, ", ")
		}
	}
	if isText(w.sent) && utf8.Valid(body) {
		out.Body = string(body)
	} else if len(body) > 0 {
		out.Body, out.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	}
	return out
}

// isText reports whether a body is text according to its Content-Type and
// Content-Encoding. Valid UTF-8 alone does not say so: binary data may be valid UTF-8.
func isText(h http.Header) bool {
	if enc := h.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return false
	}
	mt, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return false
	}
	texts := []string{"application/json", "application/javascript", "application/toml", "image/svg+xml"}
	return strings.HasPrefix(mt, "text/") || strings.HasSuffix(mt, "+json") || slices.Contains(texts, mt)
}
