package web

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// X-Forwarded-* fields count only if the proxy is trusted.
func TestProxies(t *testing.T) {
	proxies, err := ParseProxies("192.0.2.1, 10.0.0.0/8, ::1")
	if err != nil {
		t.Fatal(err)
	}
	says := func(w http.ResponseWriter, r *http.Request) error {
		return JSON(w, http.StatusOK, ClientIP(r)+" "+BaseURL(r))
	}
	s := newSite(t, true)
	s.cfg.Proxies = proxies
	handler := Handler(s.cfg, []Route{{Pattern: "GET /{$}", Handle: says}})
	for _, tt := range []struct{ from, forwarded, want string }{
		{"192.0.2.1:5", "203.0.113.9", "203.0.113.9 https"},
		{"[::ffff:192.0.2.1]:5", "203.0.113.9", "203.0.113.9 https"},
		{"[::1]:5", "2001:db8::7", "2001:db8::7 https"},
		{"192.0.2.2:5", "203.0.113.9", "192.0.2.2 http"}, // not a trusted proxy
		{"192.0.2.1:5", "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9 https"},
		{"192.0.2.1:5", "198.51.100.1, made up, 10.1.2.3", "10.1.2.3 https"},
		{"192.0.2.1:5", "", "192.0.2.1 https"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tt.from
		r.Header.Set("X-Forwarded-For", tt.forwarded)
		r.Header.Set("X-Forwarded-Proto", "https")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if want := `"` + tt.want + `://example.com"`; strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("from %s, %q: %s, want %s", tt.from, tt.forwarded, w.Body, want)
		}
	}
	for _, bad := range []string{"proxy.lan", "10.0.0.0/33", "1.2.3"} {
		if _, err := ParseProxies(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Absolute URLs are valid whatever the Host is.
func TestPublicURL(t *testing.T) {
	says := func(w http.ResponseWriter, r *http.Request) error { return JSON(w, http.StatusOK, BaseURL(r)) }
	for _, tt := range []struct{ public, host, want string }{
		{"", "pi:8080", "http://pi:8080"},
		{"", "[fe80::1]:8080", "http://[fe80::1]:8080"},
		{"", "", "http://192.0.2.80:8080"},
		{"", "a'b", "http://192.0.2.80:8080"},
		{"", "user@evil.example", "http://192.0.2.80:8080"},
		{"", "x/y", "http://192.0.2.80:8080"},
		{"https://images.example.org", "evil.example", "https://images.example.org"},
		{"https://images.example.org", "", "https://images.example.org"},
	} {
		s := newSite(t, true)
		s.cfg.PublicURL = tt.public
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = tt.host
		local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 80), Port: 8080}
		w := httptest.NewRecorder()
		Handler(s.cfg, []Route{{Pattern: "GET /{$}", Handle: says}}).ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local)))
		if strings.TrimSpace(w.Body.String()) != `"`+tt.want+`"` {
			t.Errorf("public %q, host %q: %s, want %s", tt.public, tt.host, w.Body, tt.want)
		}
	}
}

// Long values from clients are cut in the log.
func TestLogIsCut(t *testing.T) {
	s := newSite(t, true)
	s.cfg.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{ReplaceAttr: CutAttr}))
	handler := Handler(s.cfg, []Route{{Pattern: "GET /x/{name}", Handle: func(_ http.ResponseWriter, r *http.Request) error {
		return errors.New("no " + r.PathValue("name"))
	}}})
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x/"+strings.Repeat("%5C", 20_000), nil))
	if n := s.log.Len(); n == 0 || n > 8000 {
		t.Errorf("%d bytes were logged", n)
	}
	// A value of a named string type is cut, too.
	type name string
	s.log.Reset()
	s.cfg.Log.Info("stored", "name", name(strings.Repeat("n", 20_000)))
	if n := s.log.Len(); n == 0 || n > 2000 {
		t.Errorf("%d bytes were logged of a name", n)
	}
}
