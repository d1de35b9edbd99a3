package e2e

import (
	"net/http"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

type (
	manifestImage struct {
		Name      string `toml:"name"`
		Src       string `toml:"src"`
		SHA256    string `toml:"sha256"`
		Format    string `toml:"format"`
		SizeBytes *int64 `toml:"size_bytes"`
	}
	manifest struct {
		Version int             `toml:"version"`
		Images  []manifestImage `toml:"images"`
	}
)

// Manifest returns GET /catalog.toml, without credentials.
func (s *Server) Manifest(t testing.TB) manifest {
	t.Helper()
	var m manifest
	r := s.get(t, "/catalog.toml", anonymous).Must(t, http.StatusOK)
	if err := toml.Unmarshal(r.Body, &m); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	if m.Version != 1 {
		t.Errorf("GET /catalog.toml: version %d, want 1", m.Version)
	}
	return m
}
