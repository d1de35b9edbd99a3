package client

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imageroot/client/exit"
)

// TestPullHostile tests that a download by SHA-256 is verified against that SHA-256, whatever
// the server says, and that the .part file is not opened through a symbolic link.
func TestPullHostile(t *testing.T) {
	image := "these bytes"
	sum := digestOf([]byte(image))
	raw, err := hex.DecodeString(sum)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(raw)+":")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(image))
	}))
	defer s.Close()
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a.img"), filepath.Join(dir, "other")
	if _, code, err := command(t, s.URL, "pull", strings.Repeat("0", 64), "-o", path); code != exit.Mismatch {
		t.Errorf("another image than the one asked for: %d, %v", code, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was kept: %v", err)
	}
	if err := os.Symlink(other, partOf(path, sum)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, s.URL, "pull", "a.img", "-o", path); err == nil {
		t.Error("a link was followed")
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target of the link was made: %v", err)
	}
	if err := os.Remove(partOf(path, sum)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, s.URL, "pull", strings.ToUpper(sum), "-o", path); err != nil {
		t.Error(err)
	}
}
