package e2e

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/nginx"
	"imageroot/test/runner"
)

// nginx starts nginx in front of the pages, with its defaults except for the
// size of bodies, and returns the server at nginx's address.
func (s *Server) nginx(t testing.TB) *Server {
	t.Helper()
	addr := freeAddr(t, "127.0.0.6")
	dir := t.TempDir()
	stop, err := nginx.Start(t.Context(), dir, addr, "location / { proxy_pass "+s.Pages+"; }")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		if log, err := os.ReadFile(filepath.Join(dir, nginx.Log)); t.Failed() && err == nil {
			t.Logf("nginx:\n%s", tail(string(log)))
		}
	})
	front := &Server{Process: &runner.Process{Pages: "http://" + addr}, Token: s.Token}
	eventually(t, within, "nginx answers", func() error {
		_, err := front.try(http.MethodGet, "/healthz", nil)
		return err
	})
	return front
}

// TestRefusalThroughNginx tests that a client gets the reason for a refused
// upload through nginx, which sends the whole body before it reads the answer.
func TestRefusalThroughNginx(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	front := s.nginx(t)
	big := make([]byte, 40<<20)
	const tries = 6
	for _, tt := range []struct {
		what, path string
		status     int
		mods       []mod
	}{
		{"another token", "/images/x.img", http.StatusUnauthorized, []mod{anonymous, header("Authorization", "Bearer another")}},
		{"an encoding", "/images/x.img", http.StatusUnsupportedMediaType, []mod{header("Content-Encoding", "gzip")}},
		{"no image", "/images/x.txt", http.StatusUnprocessableEntity, nil},
		{"no upload", "/uploads/" + strings.Repeat("0", 32) + "/parts/1", http.StatusNotFound, nil},
	} {
		for range tries {
			if got := front.Do(t, http.MethodPut, tt.path, bytes.NewReader(big), tt.mods...); got.Status != tt.status {
				t.Errorf("%s: %v, want %d", tt.what, got, tt.status)
			}
		}
	}
	front.Put(t, "x.img", big)
}
