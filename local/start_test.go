package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imageroot/shared/config"
)

// A bucket that is removed while imageroot runs is reported, and created again.
func TestMissingBucket(t *testing.T) {
	dir := t.TempDir()
	cfg, err := config.Load([]string{"--data", dir, "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--token", "0123456789abcdef"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	ask := func(method, path, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer 0123456789abcdef")
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, r)
		return w
	}
	for _, bucket := range []string{"images", "catalog"} {
		if w := ask(http.MethodGet, "/readyz", ""); w.Code != http.StatusOK {
			t.Fatalf("ready: %d %s", w.Code, w.Body)
		}
		if err := os.RemoveAll(filepath.Join(dir, bucket)); err != nil {
			t.Fatal(err)
		}
		if w := ask(http.MethodGet, "/readyz", ""); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "bucket") {
			t.Errorf("ready without %s: %d %s", bucket, w.Code, w.Body)
		}
		if w := ask(http.MethodPut, "/images/a.img", "bytes"); bucket == "images" && (w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "bucket")) {
			t.Errorf("an upload without %s: %d %s", bucket, w.Code, w.Body)
		}
		s.restoreBuckets(t.Context())
		if w := ask(http.MethodPut, "/images/a.img", "bytes"); w.Code != http.StatusCreated {
			t.Errorf("with %s made again: %d %s", bucket, w.Code, w.Body)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "catalog")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the catalog was made again as %v (%v)", info, err)
	}
}

// The first start over another S3 server generates a password if none is given, and
// prints it once. Later starts use its hash.
func TestGeneratedPassword(t *testing.T) {
	l := newLab(t)
	begin := func() (s *server, printed string) {
		t.Helper()
		s, _, err := l.open()
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`(?m)^  password +(\S+) \(`).FindStringSubmatch(s.banner()); m != nil {
			printed = m[1]
		}
		return s, printed
	}
	first, printed := begin()
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	if len(printed) < 12 {
		t.Fatalf("the first start printed %q", first.banner())
	}
	second, again := begin()
	defer func() {
		if err := second.stop(); err != nil {
			t.Error(err)
		}
	}()
	if again != "" {
		t.Errorf("the second start printed the password %q", again)
	}
	for password, want := range map[string]int{printed: http.StatusSeeOther, "another one": http.StatusUnauthorized} {
		r := httptest.NewRequest(http.MethodPost, "/ui/login", strings.NewReader(url.Values{"password": {password}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Accept", "text/html")
		w := httptest.NewRecorder()
		second.http.Handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("a log-in with %q: %d, want %d", password, w.Code, want)
		}
	}
}
