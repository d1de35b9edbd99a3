package hook_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"imageroot/shared/hook"
	"imageroot/shared/metric"
	"imageroot/shared/objectevent"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

const token = "webhook-token-0123456789"

// A refuser refuses every request.
type refuser struct{}

func (refuser) Authenticate(*http.Request) (web.Caller, error) {
	return web.Caller{}, problem.New(problem.Unauthorized, "refused")
}

type told struct {
	events     []objectevent.Event
	unreadable int
}

func handler(token string) (http.Handler, *told) {
	var got told
	h := &hook.Hook{Token: token, Event: func(e objectevent.Event) { got.events = append(got.events, e) }, Unreadable: func(error) { got.unreadable++ }}
	return web.Handler(web.Config{Auth: refuser{}, Metric: metric.New(), Log: slog.New(slog.DiscardHandler)}, h.Routes()), &got
}

func post(h http.Handler, body io.Reader, authorization ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/hooks/minio", body)
	r.Header.Set("Content-Type", "application/json")
	for _, a := range authorization {
		r.Header.Add("Authorization", a)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// message returns the message of MinIO's webhook target about an object.
func message(event, key string) string {
	return fmt.Sprintf(`{"EventName":%q,"Key":"images/plain","Records":[{"eventVersion":"2.0","eventSource":"minio:s3","eventName":%q,"eventTime":"2026-11-25T03:00:00.000Z","s3":{"bucket":{"name":"images"},"object":{"key":%q,"sequencer":"18"}}}]}`,
		event, event, url.QueryEscape(key))
}

func TestEvents(t *testing.T) {
	h, got := handler(token)
	for _, key := range []string{"a.img", "os/with space+plus 100%25.img", "\u00fc\U0001F680?#&.img"} {
		*got = told{}
		if w := post(h, strings.NewReader(message("s3:ObjectCreated:CompleteMultipartUpload", key)), "Bearer "+token); w.Code != http.StatusNoContent {
			t.Errorf("%q: %d %s", key, w.Code, w.Body)
		}
		if len(got.events) != 1 || got.events[0].Key != key || got.events[0].Bucket != "images" || got.events[0].Removed {
			t.Errorf("%q: told of %+v", key, got.events)
		}
	}
	*got = told{}
	post(h, strings.NewReader(message("s3:ObjectRemoved:Delete", "a.img")), "bearer  "+token)
	if len(got.events) != 1 || !got.events[0].Removed {
		t.Errorf("a removal: told of %+v", got.events)
	}
}

// A message that cannot be an event must not be redelivered forever. One that did not
// arrive completely must be redelivered.
func TestBodies(t *testing.T) {
	unreadable := strings.Replace(message("s3:ObjectCreated:Put", "a.img"), `"key":"a.img"`, `"key":"%zz"`, 1)
	for _, tt := range []struct {
		name, body string
		status     int
		unreadable int
	}{
		{"asks whether somebody is here", "", 204, 0},
		{"a test event", `{"Service":"Amazon S3","Event":"s3:TestEvent"}`, 204, 0},
		{"of another kind", message("s3:ObjectAccessed:Get", "a.img"), 204, 0},
		{"a key that is no key", unreadable, 204, 1},
		{"without records", `{}`, 204, 1},
		{"cut", message("s3:ObjectCreated:Put", "a.img")[:50], 422, 0},
		{"no JSON", "<xml/>", 422, 0},
		{"too large", `"` + strings.Repeat("x", 1<<20) + `"`, 413, 0},
	} {
		h, got := handler(token)
		w := post(h, strings.NewReader(tt.body), "Bearer "+token)
		if w.Code != tt.status || got.unreadable != tt.unreadable || len(got.events) > 0 {
			t.Errorf("%s: %d %s, told of %+v", tt.name, w.Code, w.Body, *got)
		}
	}
	h, got := handler(token)
	if w := post(h, io.MultiReader(strings.NewReader(message("s3:ObjectCreated:Put", "a.img")), broken{}), "Bearer "+token); w.Code < 300 || len(got.events) > 0 {
		t.Errorf("a body that breaks: %d, told of %+v", w.Code, got.events)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestTokens(t *testing.T) {
	h, got := handler(token)
	for _, a := range [][]string{nil, {""}, {token}, {"Bearer"}, {"Bearer "}, {"Bearer " + token[1:]}, {"Bearer " + token + "x"}, {"Basic " + token}, {"Bearer x", "Bearer " + token}} {
		w := post(h, strings.NewReader(message("s3:ObjectCreated:Put", "a.img")), a...)
		if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "IMAGEROOT_WEBHOOK_TOKEN") {
			t.Errorf("%q: %d %s", a, w.Code, w.Body)
		}
	}
	// If no token is configured, no token is accepted.
	h, _ = handler("")
	for _, a := range []string{"", "Bearer ", "Bearer " + token} {
		w := post(h, strings.NewReader(message("s3:ObjectCreated:Put", "a.img")), a)
		if w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "IMAGEROOT_WEBHOOK_TOKEN") {
			t.Errorf("%q: %d %s", a, w.Code, w.Body)
		}
	}
	if len(got.events) > 0 {
		t.Errorf("told of %+v", got.events)
	}
}
