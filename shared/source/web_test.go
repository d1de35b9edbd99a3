package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/netpolicy"
)

var payload = bytes.Repeat([]byte("0123456789"), 1000)

const etag = `"v1"`

// serve answers like a correct server.
func serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", etag)
	http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(payload))
}

// A site is a server with a client that may dial it.
type site struct {
	*Client
	t *testing.T
	*httptest.Server

	mu       sync.Mutex
	requests []*http.Request
}

func newSite(t *testing.T, handle http.HandlerFunc) *site {
	s := &site{t: t}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		handle(w, r)
	}))
	s.Client = New(Config{Policy: netpolicy.Policy{Loopback: true}})
	t.Cleanup(func() {
		s.Client.Close()
		s.Server.CloseClientConnections()
		s.Server.Close()
	})
	return s
}

func (s *site) url(path string) string { return s.Server.URL + path }

// read opens x.img and reads it.
func (s *site) read(offset, length int64, v Validators) (*Body, []byte, error) {
	s.t.Helper()
	b, err := s.Open(s.t.Context(), Location{URL: s.url("/x.img")}, offset, length, v)
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(b)
	return b, data, errors.Join(err, b.Close(), b.Close())
}

// is returns the kind of an error.
func is(err error) string {
	_, bad := errors.AsType[*Malformed](err)
	_, no := errors.AsType[*Unresolvable](err)
	_, short := errors.AsType[*ShortBody](err)
	_, later := errors.AsType[*Retryable](err)
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrChanged):
		return "changed"
	case errors.Is(err, ErrRange):
		return "range"
	case short:
		return "short"
	case later:
		return "retryable"
	case no:
		return "unresolvable"
	case bad:
		return "malformed"
	}
	return err.Error()
}

// answer sends a status, fields and a body.
func answer(status int, body string, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(fields); i += 2 {
			w.Header().Set(fields[i], fields[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestOpenRanges(t *testing.T) {
	s := newSite(t, serve)
	for _, tt := range []struct{ offset, length, end int64 }{
		{0, -1, 10000}, {0, 10, 10}, {0, 10000, 10000}, {1, -1, 10000}, {5000, 100, 5100}, {9990, 100, 10000}, {9999, 1, 10000},
	} {
		b, data, err := s.read(tt.offset, tt.length, Validators{ETag: etag})
		if err != nil || !bytes.Equal(data, payload[tt.offset:tt.end]) {
			t.Errorf("%d+%d: %d bytes, %v", tt.offset, tt.length, len(data), err)
			continue
		}
		if ranged := tt.offset > 0 || tt.length > 0; b.Size != 10000 || b.Offset != tt.offset || b.Ranged != ranged || b.Validators.ETag != etag {
			t.Errorf("%d+%d: the body says %d bytes from %d, ranged %v, %+v", tt.offset, tt.length, b.Size, b.Offset, b.Ranged, b.Validators)
		}
	}
	// A read from the end returns no bytes and no error.
	b, data, err := s.read(10000, -1, Validators{ETag: etag})
	if err != nil || len(data) != 0 || b.Size != 10000 || b.Offset != 10000 || !b.Ranged {
		t.Errorf("from the end: %d bytes, %v, %+v", len(data), err, b)
	}
	if _, _, err := s.read(10001, -1, Validators{}); is(err) != "changed" {
		t.Errorf("from beyond the end: %v", err)
	}
	for _, bad := range [][2]int64{{-1, -1}, {0, 0}} {
		if _, _, err := s.read(bad[0], bad[1], Validators{}); is(err) != "malformed" {
			t.Errorf("%v: %v", bad, err)
		}
	}
	for _, r := range s.requests {
		if r.Header.Get("Accept-Encoding") != "identity" || r.Header.Get("User-Agent") != "imageroot" {
			t.Errorf("a request has the fields %v", r.Header)
		}
	}
}

func TestOpenValidators(t *testing.T) {
	s := newSite(t, serve)
	date := time.Unix(1e9, 0).UTC().Format(http.TimeFormat)
	for _, tt := range []struct {
		v       Validators
		ifRange string
		want    string
	}{
		{Validators{}, "", "ok"},
		{Validators{ETag: etag}, etag, "ok"},
		{Validators{ETag: etag, LastModified: date}, etag, "ok"},
		{Validators{LastModified: date}, date, "ok"},
		{Validators{ETag: "W/" + etag}, "", "ok"}, // weak: not sent in If-Range, but compared
		{Validators{ETag: `"v0"`}, `"v0"`, "changed"},
		{Validators{LastModified: "Sat, 01 Jan 2000 00:00:00 GMT"}, "Sat, 01 Jan 2000 00:00:00 GMT", "changed"},
		{Validators{ETag: etag, LastModified: "Sat, 01 Jan 2000 00:00:00 GMT"}, etag, "ok"}, // a mirror with another time
	} {
		s.requests = nil
		_, _, err := s.read(100, -1, tt.v)
		if is(err) != tt.want {
			t.Errorf("%+v: %v, want %s", tt.v, err, tt.want)
		}
		if got := s.requests[0].Header.Get("If-Range"); got != tt.ifRange {
			t.Errorf("%+v: If-Range is %q, want %q", tt.v, got, tt.ifRange)
		}
		if _, _, err := s.read(0, -1, tt.v); is(err) != tt.want {
			t.Errorf("%+v, the whole: %v, want %s", tt.v, err, tt.want)
		}
	}
}

// A validator can be stored in a record and sent back.
func TestValidatorsSurvive(t *testing.T) {
	for _, field := range []string{
		`"v1"`, `W/"v1"`, "v1", "\"caf\xc3\xa9\"", "\"caf\xe9\"", "\"\xff\xfe\"", "\"a\x01b\"", "\"a\x7f\"", `"` + strings.Repeat("x", 9000) + `"`,
	} {
		s := newSite(t, answer(200, "bytes", "ETag", field, "Last-Modified", field))
		b, _, err := s.read(0, -1, Validators{})
		if err != nil {
			continue // not an answer at all
		}
		data, err := json.Marshal(b.Validators)
		var v Validators
		if err = errors.Join(err, json.Unmarshal(data, &v)); err != nil || v != b.Validators {
			t.Errorf("%q: %+v, from a record %+v (%v)", field, b.Validators, v, err)
		}
		if _, _, err := s.read(0, 5, v); err != nil {
			t.Errorf("%q, sent back: %v", field, err)
		}
	}
}

func TestOpenOddServers(t *testing.T) {
	whole := string(payload)
	for _, tt := range []struct {
		name           string
		handle         http.HandlerFunc
		offset, length int64
		want           string
		got            int  // bytes
		ranged         bool // if ok
	}{
		{"ranges ignored", answer(200, whole), 100, 10, "ok", 10000, false},
		{"a part of the whole", answer(206, whole, "Content-Range", "bytes 0-9999/10000"), 0, -1, "range", 0, false},
		{"another part", answer(206, whole[:10], "Content-Range", "bytes 0-9/10000"), 100, 10, "range", 0, false},
		{"too much", answer(206, whole[:100], "Content-Range", "bytes 100-199/10000"), 100, 10, "range", 0, false},
		{"no Content-Range", answer(206, whole[:10]), 100, 10, "range", 0, false},
		{"a bad Content-Range", answer(206, whole[:10], "Content-Range", "bytes 109-100/10000"), 100, 10, "range", 0, false},
		{"a body of another length", answer(206, whole[:9], "Content-Range", "bytes 100-109/10000", "Content-Length", "9"), 100, 10, "range", 0, false},
		{"less than asked", answer(206, whole[:5], "Content-Range", "bytes 100-104/10000"), 100, 10, "short", 5, false},
		{"less than the rest", answer(206, whole[:5], "Content-Range", "bytes 100-104/10000"), 100, -1, "short", 5, false},
		{"an unknown total", answer(206, whole[:10], "Content-Range", "bytes 100-109/*"), 100, 10, "ok", 10, true},
		{"416 though there is more", answer(416, "", "Content-Range", "bytes */10000"), 100, 10, "changed", 0, false},
		{"416 with less than before", answer(416, "", "Content-Range", "bytes */50"), 100, 10, "changed", 0, false},
		{"416 without a total", answer(416, ""), 100, 10, "changed", 0, false},
		{"416 to a range from the first byte on", answer(416, "", "Content-Range", "bytes */10000"), 0, 10, "range", 0, false},
		{"416 to a request for the whole", answer(416, "", "Content-Range", "bytes */0"), 0, -1, "unresolvable", 0, false},
		{"gzip that was not asked for", answer(200, whole, "Content-Encoding", "gzip"), 0, -1, "unresolvable", 0, false},
		{"identity", answer(200, whole, "Content-Encoding", "identity"), 0, -1, "ok", 10000, false},
		{"an uploader's framing", answer(200, whole, "Content-Encoding", "aws-chunked"), 0, -1, "ok", 10000, false},
		{"none", answer(200, whole, "Content-Encoding", "None"), 0, -1, "ok", 10000, false},
		{"binary", answer(200, whole, "Content-Encoding", "binary"), 0, -1, "ok", 10000, false},
		{"a charset", answer(200, whole, "Content-Encoding", "UTF-8"), 0, -1, "ok", 10000, false},
		{"an empty coding", answer(200, whole, "Content-Encoding", ""), 0, -1, "ok", 10000, false},
		{"gzip in an uploader's framing", answer(200, whole, "Content-Encoding", "gzip,aws-chunked"), 0, -1, "unresolvable", 0, false},
		{"an unknown coding", answer(200, whole, "Content-Encoding", "br"), 0, -1, "unresolvable", 0, false},
		{"a page", answer(200, "<html>", "Content-Type", "text/html; charset=utf-8"), 0, -1, "unresolvable", 0, false},
		{"not found", answer(404, ""), 0, -1, "unresolvable", 0, false},
		{"gone", answer(410, ""), 0, -1, "unresolvable", 0, false},
		{"forbidden", answer(403, ""), 0, -1, "unresolvable", 0, false},
		{"no content", answer(204, ""), 0, -1, "unresolvable", 0, false},
		{"not implemented", answer(501, ""), 0, -1, "unresolvable", 0, false},
		{"overloaded", answer(503, ""), 0, -1, "retryable", 0, false},
		{"too many", answer(429, ""), 0, -1, "retryable", 0, false},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10000")
			_, _ = w.Write(payload[:7000])
			panic(http.ErrAbortHandler)
		}, 0, -1, "short", 7000, false},
		{"cut, of unknown length", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(payload[:7000])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, 0, -1, "short", 7000, false},
		{"ends, of unknown length", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(payload[:7000])
			_ = http.NewResponseController(w).Flush()
		}, 0, -1, "ok", 7000, false},
		{"closes without an answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, -1, "retryable", 0, false},
	} {
		s := newSite(t, tt.handle)
		b, data, err := s.read(tt.offset, tt.length, Validators{})
		if is(err) != tt.want || len(data) != tt.got {
			t.Errorf("%s: %d bytes, %s (%v); want %d, %s", tt.name, len(data), is(err), err, tt.got, tt.want)
		}
		if err == nil && (b.Ranged != tt.ranged || !tt.ranged && b.Offset != 0) {
			t.Errorf("%s: the body is ranged: %v, from %d", tt.name, b.Ranged, b.Offset)
		}
		if _, ok := MayRetry(err); ok != (tt.want == "retryable" || tt.want == "short") {
			t.Errorf("%s: MayRetry(%v) = %v", tt.name, err, ok)
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("%s: %v reads as the end of the source", tt.name, err)
		}
	}
}

// In TestLyingBody, a server sends more than its Content-Range says. The excess is not
// part of the image.
func TestLyingBody(t *testing.T) {
	s := newSite(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", "bytes 100-109/10000")
		w.WriteHeader(206)
		_, _ = w.Write(payload[100:110])
		_ = http.NewResponseController(w).Flush() // so that there is no Content-Length
		_, _ = w.Write(payload)
	})
	b, data, err := s.read(100, 10, Validators{})
	if err != nil || !bytes.Equal(data, payload[100:110]) || !b.Ranged {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestCompressedName(t *testing.T) {
	for _, coding := range []string{"x-gzip", "gzip,aws-chunked"} {
		s := newSite(t, answer(200, "bytes", "Content-Encoding", coding))
		for name, want := range map[string]string{"x.img.gz": "ok", "x.img": "unresolvable", "x.img.xz": "unresolvable"} {
			b, err := s.Open(t.Context(), Location{URL: s.url("/" + name)}, 0, -1, Validators{})
			if is(err) != want {
				t.Errorf("%s with Content-Encoding %s: %v, want %s", name, coding, err, want)
			}
			if err == nil {
				b.Close()
			}
		}
	}
}

// A source stalls if it sends nothing during a read. A slow reader does not stall it.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := func(sent []byte) *Body {
			r, w := io.Pipe()
			ctx, cancel := context.WithCancelCause(t.Context())
			context.AfterFunc(ctx, func() { w.CloseWithError(context.Canceled) }) // as a connection does
			go func() {
				if _, err := w.Write(sent); err == nil && len(sent) == len(payload) {
					w.Close()
				}
			}()
			b := newBody(t.Context(), ctx, cancel, &http.Response{Request: &http.Request{URL: &url.URL{Host: "h"}}, Body: r}, time.Minute)
			b.want = int64(len(payload))
			return b
		}
		b := open(payload)
		defer b.Close()
		if _, err := io.ReadFull(b, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if data, err := io.ReadAll(iotest.OneByteReader(b)); err != nil || !bytes.Equal(data, payload[10:]) {
			t.Errorf("after a pause: %d bytes, %v", len(data), err)
		}
		b = open(payload[:5000])
		defer b.Close()
		data, err := io.ReadAll(b)
		if is(err) != "retryable" || !bytes.Equal(data, payload[:5000]) || errors.Is(err, io.EOF) {
			t.Errorf("a source that stalls: %d bytes, %v", len(data), err)
		}
	})
}

func TestEndOfContext(t *testing.T) {
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10000")
		_, _ = w.Write(payload[:10])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	stop := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	b, err := s.Open(ctx, Location{URL: s.url("/x.img")}, 0, -1, Validators{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := io.ReadFull(b, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel(stop)
	if _, err := io.ReadAll(b); !errors.Is(err, stop) {
		t.Errorf("the end of the context in the body: %v", err)
	}
	if _, err := s.Open(ctx, Location{URL: s.url("/x.img")}, 0, -1, Validators{}); !errors.Is(err, stop) {
		t.Errorf("the end of the context before: %v", err)
	}
	if _, ok := MayRetry(err); ok {
		t.Error("what was stopped is to be tried again")
	}
}

func TestRedirects(t *testing.T) {
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		var n int
		if _, err := fmt.Sscanf(r.URL.Path, "/hop/%d/", &n); err == nil && n > 1 {
			http.Redirect(w, r, fmt.Sprintf("/hop/%d/x.img", n-1), http.StatusFound)
			return
		}
		switch {
		case strings.HasPrefix(r.URL.Path, "/loop/"):
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/pair/a/"):
			http.Redirect(w, r, "/pair/b/x.img", http.StatusTemporaryRedirect)
		case strings.HasPrefix(r.URL.Path, "/pair/b/"):
			http.Redirect(w, r, "/pair/a/x.img", http.StatusTemporaryRedirect)
		case strings.HasPrefix(r.URL.Path, "/file/"):
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/metadata/"):
			http.Redirect(w, r, "http://169.254.169.254/x.img", http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/nowhere/"):
			w.WriteHeader(http.StatusFound)
		default:
			serve(w, r)
		}
	})
	open := func(path string) error {
		b, err := s.Open(t.Context(), Location{URL: s.url(path)}, 5, -1, Validators{ETag: etag})
		if err == nil {
			var data []byte
			if data, err = io.ReadAll(b); !bytes.Equal(data, payload[5:]) {
				t.Errorf("%s gave %d bytes", path, len(data))
			}
			b.Close()
		}
		return err
	}
	for _, tt := range []struct{ path, want, reason string }{
		{"/hop/1/x.img", "ok", ""},
		{"/hop/11/x.img", "ok", ""}, // ten redirects
		{"/hop/12/x.img", "unresolvable", "more than 10 times"},
		{"/loop/x.img", "unresolvable", "in a loop"},
		{"/pair/a/x.img", "unresolvable", "in a loop"},
		{"/file/x.img", "unresolvable", "not a source"},
		{"/metadata/x.img", "unresolvable", "not a permitted source"},
		{"/nowhere/x.img", "", ""}, // any error
	} {
		s.requests = nil
		err := open(tt.path)
		_, rerr := s.Resolve(t.Context(), Location{URL: s.url(tt.path)}, "")
		for _, err := range []error{err, rerr} {
			if tt.want == "" && err == nil || tt.want != "" && is(err) != tt.want {
				t.Errorf("%s: %s (%v), want %s", tt.path, is(err), err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("%s: the reason is %q, want %q", tt.path, err, tt.reason)
			}
		}
		for _, r := range s.requests {
			if r.Header.Get("Referer") != "" {
				t.Errorf("%s: the next host gets the Referer %s", tt.path, r.Header.Get("Referer"))
			}
		}
	}
}

// A cookie that a redirect sets is sent to its host until the operation ends.
func TestRedirectCookies(t *testing.T) {
	has := func(r *http.Request) bool { _, err := r.Cookie("pass"); return err == nil }
	var other string
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/other/x.img" && !has(r):
			http.SetCookie(w, &http.Cookie{Name: "pass", Value: "1", Path: "/"})
			http.Redirect(w, r, other, http.StatusFound)
		case r.URL.Path == "/never/x.img":
			http.SetCookie(w, &http.Cookie{Name: "pass", Value: "1", Path: "/"})
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case strings.HasPrefix(r.Host, "localhost") || has(r):
			serve(w, r)
		case r.URL.Path == "/gate/x.img":
			http.SetCookie(w, &http.Cookie{Name: "pass", Value: "1", Path: "/"})
			http.Redirect(w, r, "/behind/x.img", http.StatusFound)
		case r.URL.Path == "/self/x.img":
			http.SetCookie(w, &http.Cookie{Name: "pass", Value: "1", Path: "/"})
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	})
	other = strings.Replace(s.url("/x.img"), "127.0.0.1", "localhost", 1)
	for path, want := range map[string]string{
		"/gate/x.img": "ok", "/self/x.img": "ok", "/other/x.img": "ok", "/never/x.img": "unresolvable", "/behind/x.img": "unresolvable",
	} {
		s.requests = nil
		b, err := s.Open(t.Context(), Location{URL: s.url(path)}, 5, -1, Validators{})
		if err == nil {
			b.Close()
		}
		_, rerr := s.Resolve(t.Context(), Location{URL: s.url(path)}, "")
		if is(err) != want || is(rerr) != want {
			t.Errorf("%s: %s (%v) and %s (%v), want %s", path, is(err), err, is(rerr), rerr, want)
		}
		for _, r := range s.requests {
			if strings.HasPrefix(r.Host, "localhost") && has(r) {
				t.Errorf("%s: the cookie of another host was sent to %s", path, r.Host)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	get := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return false
		}
		return true
	}
	for _, tt := range []struct {
		name   string
		handle http.HandlerFunc
		want   string
		size   int64
		etag   string
	}{
		{"a good server", serve, "ok", 10000, etag},
		{"no HEAD", func(w http.ResponseWriter, r *http.Request) {
			if get(w, r) {
				serve(w, r)
			}
		}, "ok", 10000, etag},
		{"a connection closed at HEAD", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				panic(http.ErrAbortHandler)
			}
			serve(w, r)
		}, "ok", 10000, etag},
		{"no HEAD and no ranges", func(w http.ResponseWriter, r *http.Request) {
			if get(w, r) {
				w.Header().Set("Content-Length", "10000")
				_, _ = w.Write(payload)
			}
		}, "ok", 10000, ""},
		{"no length", func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(payload)
		}, "ok", -1, ""},
		{"an unknown total", func(w http.ResponseWriter, r *http.Request) {
			if get(w, r) {
				answer(206, "0", "Content-Range", "bytes 0-0/*")(w, r)
			}
		}, "ok", -1, ""},
		{"empty", answer(200, "", "Content-Length", "0"), "unresolvable", 0, ""},
		{"empty, by 416", func(w http.ResponseWriter, r *http.Request) {
			if get(w, r) {
				answer(416, "", "Content-Range", "bytes */0")(w, r)
			}
		}, "unresolvable", 0, ""},
		{"a page", answer(200, "<html></html>", "Content-Type", "text/html"), "unresolvable", 0, ""},
		{"gzip that was not asked for", answer(200, "x", "Content-Encoding", "gzip"), "unresolvable", 0, ""},
		{"not found", http.NotFound, "unresolvable", 0, ""},
		{"an ETag without end", func(w http.ResponseWriter, r *http.Request) {
			answer(200, "x", "ETag", `"`+strings.Repeat("x", 1000)+`"`)(w, r)
		}, "ok", 1, ""},
	} {
		s := newSite(t, tt.handle)
		r, err := s.Resolve(t.Context(), Location{URL: s.url("/dir/x.img?sig=1")}, "")
		if is(err) != tt.want {
			t.Errorf("%s: %s (%v), want %s", tt.name, is(err), err, tt.want)
			continue
		}
		if err == nil && (r.Size != tt.size || r.ETag != tt.etag || r.Name != "x.img" || r.Format != "img" || r.URL != s.url("/dir/x.img?sig=1")) {
			t.Errorf("%s: resolved to %+v", tt.name, r)
		}
	}
	// An overloaded server can be tried again after the delay that it requests.
	s := newSite(t, answer(503, "", "Retry-After", "17"))
	_, err := s.Resolve(t.Context(), Location{URL: s.url("/x.img")}, "")
	if after, ok := MayRetry(err); !ok || after != 17*time.Second {
		t.Errorf("an overloaded server: %v, wait %v, %v", err, after, ok)
	}
}

func TestResolveTimeout(t *testing.T) {
	s := newSite(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s.config.ResolveTimeout = 50 * time.Millisecond
	_, err := s.Resolve(t.Context(), Location{URL: s.url("/x.img")}, "")
	no, unresolvable := errors.AsType[*Unresolvable](err)
	if _, ok := MayRetry(err); !ok || !unresolvable || !strings.Contains(no.Reason, "50ms") {
		t.Errorf("a server that does not answer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Resolve(ctx, Location{URL: s.url("/x.img")}, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("the end of the context: %v", err)
	}
}

// In TestSlowDocuments, the documents before an answer (of a redirect, with a token)
// arrive a byte at a time. The time limit includes them.
func TestSlowDocuments(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request, status int) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Length", "2000")
		w.WriteHeader(status)
		for range 2000 {
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	}
	var s *site
	s = newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/redirect/"):
			w.Header().Set("Location", "/x.img")
			drip(w, r, http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/v2/token/"):
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.url("/token")+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/v2/manifest/"):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			drip(w, r, http.StatusOK)
		case r.URL.Path == "/token" || r.URL.Path == "/SHA256SUMS":
			drip(w, r, http.StatusOK)
		default:
			serve(w, r)
		}
	})
	s.config.ResolveTimeout = 100 * time.Millisecond
	registry := "oras://" + strings.TrimPrefix(s.Server.URL, "http://")
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, loc := range []Location{
		{URL: s.url("/redirect/x.img")}, {URL: registry + "/token/x:v1", Digest: digest},
	} {
		_, err := s.Open(t.Context(), loc, 0, -1, Validators{})
		if is(err) != "retryable" || !strings.Contains(err.Error(), "did not answer within 100ms") {
			t.Errorf("opening %s: %s: %v", loc.URL, is(err), err)
		}
	}
	for _, urls := range [][2]string{
		{s.url("/redirect/x.img"), ""},
		{s.url("/x.img"), s.url("/SHA256SUMS")},
		{registry + "/token/x:v1", ""},
		{registry + "/manifest/x:v1", ""},
	} {
		_, err := s.Resolve(t.Context(), Location{URL: urls[0]}, urls[1])
		if is(err) != "retryable" || !strings.Contains(err.Error(), "did not answer within 100ms") {
			t.Errorf("resolving %s: %s: %v", urls, is(err), err)
		}
	}
}

func TestResolveRefused(t *testing.T) {
	s := newSite(t, serve)
	c := New(Config{}) // public addresses only
	defer c.Close()
	_, err := c.Resolve(t.Context(), Location{URL: s.url("/x.img")}, "")
	if _, ok := errors.AsType[*netpolicy.Refused](err); !ok || is(err) != "unresolvable" || len(s.requests) != 0 {
		t.Errorf("a server on loopback: %v, after %d requests", err, len(s.requests))
	}
}

// If a host cannot be reached and other programs would use a proxy, the error says that
// this program does not.
func TestUnusedProxy(t *testing.T) {
	gone := newSite(t, serve)
	gone.Server.Close()
	for _, name := range []string{"", "HTTPS_PROXY"} {
		c := New(Config{Policy: netpolicy.Policy{Loopback: true}, UnusedProxy: name})
		defer c.Close()
		for _, err := range []error{
			&net.DNSError{Name: "images.example", IsNotFound: true}, &net.DNSError{Name: "images.example", IsTimeout: true},
			syscall.ECONNREFUSED, syscall.ENETUNREACH, os.ErrDeadlineExceeded,
		} {
			if said := c.explain(t.Context(), "images.example", err).Error(); strings.Contains(said, "HTTPS_PROXY is set") != (name != "") {
				t.Errorf("with %q: %s", name, said)
			}
		}
		if _, err := c.Resolve(t.Context(), Location{URL: gone.url("/x.img")}, ""); err == nil || strings.Contains(err.Error(), "HTTPS_PROXY is set") != (name != "") {
			t.Errorf("with %q: %v", name, err)
		}
	}
}

func TestSHAURL(t *testing.T) {
	hex := func(c string, n int) string { return strings.Repeat(c, n) }
	list := hex("a", 64) + "  other.img\n" + hex("b", 64) + " *./x.img\n" + hex("c", 64) + "  final-1.2.img\n"
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/latest.img":
			http.Redirect(w, r, "/final-1.2.img", http.StatusFound)
		case "/SHA256SUMS":
			_, _ = io.WriteString(w, list)
		case "/SHA512SUMS":
			_, _ = io.WriteString(w, hex("d", 128)+"  x.img\n")
		case "/images/SHA256SUMS":
			_, _ = io.WriteString(w, hex("e", 64)+"  ./netboot/gtk/mini.iso\n"+hex("f", 64)+"  ./my netboot/mini.iso\n")
		case "/SHA3-256SUMS":
			_, _ = io.WriteString(w, hex("d", 64)+"  x.img\n")
		case "/large":
			_, _ = io.WriteString(w, strings.Repeat("#\n", 1<<20))
		case "/gzip":
			answer(200, list, "Content-Encoding", "gzip")(w, r)
		case "/page":
			answer(200, "<html>no sums</html>", "Content-Type", "text/html")(w, r)
		case "/none":
			http.NotFound(w, r)
		default:
			serve(w, r)
		}
	})
	for _, tt := range []struct {
		image, sha, want string
		sha256           layout.SHA256
		sha512, reason   string
	}{
		{"/x.img", "/SHA256SUMS", "ok", layout.SHA256(hex("b", 64)), "", ""},
		{"/x.img", "/SHA512SUMS", "ok", "", hex("d", 128), ""},
		{"/latest.img", "/SHA256SUMS", "ok", layout.SHA256(hex("c", 64)), "", ""}, // by the name that it redirects to
		{"/images/netboot/gtk/mini.iso", "/images/SHA256SUMS", "ok", layout.SHA256(hex("e", 64)), "", ""},
		{"/images/my%20netboot/mini.iso?x=1", "/images/SHA256SUMS", "ok", layout.SHA256(hex("f", 64)), "", ""},
		{"/images/netboot/mini.iso", "/images/SHA256SUMS", "unresolvable", "", "", "does not name"},
		{"/x.img", "/SHA3-256SUMS", "unresolvable", "", "", "not known"},
		{"/missing.img", "/SHA256SUMS", "unresolvable", "", "", "other.img"},
		{"/x.img", "/none", "unresolvable", "", "", "checksum list"},
		{"/x.img", "/large", "unresolvable", "", "", ""},
		{"/x.img", "/gzip", "unresolvable", "", "", "gzip"},
		{"/x.img", "/page", "unresolvable", "", "", ""},
	} {
		r, err := s.Resolve(t.Context(), Location{URL: s.url(tt.image)}, " "+s.url(tt.sha)+" ")
		if is(err) != tt.want || err != nil && !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("%s with %s: %s (%v), want %s about %q", tt.image, tt.sha, is(err), err, tt.want, tt.reason)
			continue
		}
		if err == nil && (r.SHA256 != tt.sha256 || r.SHA512 != tt.sha512) {
			t.Errorf("%s with %s: %+v", tt.image, tt.sha, r)
		}
	}
	// A malformed URL is refused before any request.
	s.requests = nil
	if _, err := s.Resolve(t.Context(), Location{URL: s.url("/x.img")}, "ftp://h/sums"); is(err) != "malformed" || len(s.requests) != 0 {
		t.Errorf("a malformed SHA URL: %v, after %d requests", err, len(s.requests))
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := New(Config{Now: func() time.Time { return now }})
	for field, want := range map[string]time.Duration{
		"": 0, "0": 0, "120": 2 * time.Minute, "-1": 0, "soon": 0, "99999999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
	} {
		if got := c.retryAfter(field); got != want {
			t.Errorf("Retry-After %q is %v, want %v", field, got, want)
		}
	}
}
