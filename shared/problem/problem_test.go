package problem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/store"
)

// A header has the detail as one line of ASCII, for clients that drop the body.
func TestDetailHeader(t *testing.T) {
	for detail, want := range map[string]string{
		`the image "a" is cut short`:        `the image "a" is cut short`,
		"\u00fc\u202e.img\r\nSet-Cookie: x": `\u00fc[U+202E].img\r\nSet-Cookie: x`,
		strings.Repeat("x", 5000):           strings.Repeat("x", 1000) + "...",
	} {
		w := httptest.NewRecorder()
		Write(w, httptest.NewRequest(http.MethodHead, "/", nil), New(Malformed, detail))
		if got := w.Header().Get(DetailHeader); got != want {
			t.Errorf("%.40q: the header is %.60q, want %.60q", detail, got, want)
		}
	}
}

func TestFrom(t *testing.T) {
	_, nameErr := image.ParseName("a.tar.gz")
	for _, c := range []struct {
		err    error
		code   Code
		status int
		words  string
	}{
		{New(Invalid, "do this"), Invalid, 400, "do this"},
		{fmt.Errorf("handler: %w", Newf(Range, "only %d bytes", 7)), Range, 416, "only 7 bytes"},
		{fmt.Errorf("x: %w", nameErr), Malformed, 422, "tarball"},
		{fmt.Errorf("get: %w (no such key)", store.ErrNotFound), NotFound, 404, ""},
		{fmt.Errorf("put: %w", store.ErrNoBucket), Unavailable, 503, "bucket"},
		{fmt.Errorf("put: %w", store.ErrFull), Full, 507, "room"},
		{fmt.Errorf("put: %w (%w)", store.ErrFull, context.Canceled), Full, 507, "room"},
		{store.ErrDenied, BadGateway, 502, "credentials"},
		{store.ErrConflict, Conflict, 409, ""},
		{store.ErrChanged, Conflict, 409, ""},
		{store.ErrUnknown, Unavailable, 503, ""},
		{store.ErrTooLarge, TooLarge, 413, ""},
		{store.ErrBadDigest, BadGateway, 502, "again"},
		{context.Canceled, Unavailable, 503, "cancelled"},
		{context.DeadlineExceeded, Unavailable, 503, "too long"},
		{&http.MaxBytesError{Limit: 77}, TooLarge, 413, "77"},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), Timeout, 408, "stalled"},
		{errors.New("dial 10.0.0.1: secret"), Internal, 500, "request ID"},
		{New(Internal, "the secret is x"), Internal, 500, "request ID"},
		{Wrap("nonsense", "the secret is x", nil), Internal, 500, "request ID"},
	} {
		got := From(c.err)
		if got.Code != c.code || got.Code.Status() != c.status || !strings.Contains(got.Detail, c.words) || got.Detail == "" {
			t.Errorf("From(%v) = %s %d %q, want %s %d with %q", c.err, got.Code, got.Code.Status(), got.Detail, c.code, c.status, c.words)
		}
		if strings.Contains(got.Detail, "secret") {
			t.Errorf("From(%v) shows the inside: %q", c.err, got.Detail)
		}
		if again := From(got); again.Code != got.Code || again.Detail != got.Detail {
			t.Errorf("From(From(%v)) = %+v, not %+v", c.err, again, got)
		}
	}
	if From(nil) != nil {
		t.Error("From(nil) is not nil")
	}
	cause := errors.New("cause")
	if got := From(cause); !errors.Is(got, cause) {
		t.Error("an internal error lost its cause")
	}
}

func TestEveryCodeHasAStatus(t *testing.T) {
	for code, status := range statuses {
		if http.StatusText(status) == "" {
			t.Errorf("%s: status %d has no text", code, status)
		}
	}
}

func TestWrite(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		w := httptest.NewRecorder()
		w.Header().Set(RequestIDHeader, "REQ1")
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Content-Length", "5368709120")
		e := New(Unavailable, "later <b>")
		e.RetryAfter = 1500 * time.Millisecond
		Write(w, httptest.NewRequest(method, "/images/x", nil), fmt.Errorf("wrapped: %w", e))
		if w.Code != 503 || w.Header().Get("Retry-After") != "2" || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %v", method, w.Code, w.Header())
		}
		if w.Header().Get("ETag") != "" {
			t.Errorf("%s: the problem has the ETag of what it is instead of", method)
		}
		if method == http.MethodHead {
			if w.Body.Len() != 0 {
				t.Errorf("HEAD has a body: %q", w.Body)
			}
			continue
		}
		var got map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		for k, want := range map[string]any{
			"type": "about:blank", "title": "Service Unavailable", "status": 503.0,
			"detail": "later <b>", "instance": "REQ1", "code": "unavailable",
		} {
			if got[k] != want {
				t.Errorf("%s is %v, want %v", k, got[k], want)
			}
		}
	}
}
