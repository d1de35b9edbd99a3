package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListingsWithCurl gets the listings in every coding, and not again while they are
// the same.
func TestListingsWithCurl(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	var manifest strings.Builder
	manifest.WriteString("version = 1\n")
	for i := range 500 {
		fmt.Fprintf(&manifest, "[[images]]\nname = \"image-%d.img\"\nsrc = \"https://images.example.org/image-%[1]d.img\"\n", i)
	}
	s.putManifest(t, manifest.String()).Must(t, accepted...)
	s.Put(t, "a.img", content(1, 10_000))
	s.WaitHashed(t, "a.img", sum(content(1, 10_000)))
	const host = "Host: pi.example:8080" // the same after a restart
	tags := t.TempDir()
	tag := func(path, coding string) string { return filepath.Join(tags, path[1:]+"."+coding) }
	codings := map[string][]string{
		"identity": nil, "gzip": {"-H", "Accept-Encoding: gzip"}, "zstd": {"-H", "Accept-Encoding: zstd"}, "compressed": {"--compressed"},
	}
	for _, path := range []string{"/images", "/catalog.toml"} {
		whole := s.curl(t, "-H", host, s.Pages+path).Reply(t)
		if !bytes.Contains(whole.Body, []byte("http://pi.example:8080/images/"+sum(content(1, 10_000)))) || whole.Header.Get("Content-Length") != fmt.Sprint(len(whole.Body)) {
			t.Errorf("%s: %v %.1000s", path, whole.Header, whole.Body)
		}
		for coding, args := range codings {
			c := s.curl(t, append(args, "-H", host, "--etag-save", tag(path, coding), s.Pages+path)...)
			body := c.Reply(t).Must(t, http.StatusOK).Body
			if tool := map[string]string{"gzip": "gzip", "zstd": "zstd"}[coding]; tool != "" {
				if len(body) > len(whole.Body)/4 {
					t.Errorf("%s: %d bytes in %s, of %d", path, len(body), coding, len(whole.Body))
				}
				body = []byte(run(t, nil, tool, "-dc", c.Body))
			}
			if !bytes.Equal(body, whole.Body) {
				t.Errorf("%s in %s: %d bytes, want %d", path, coding, len(body), len(whole.Body))
			}
		}
	}
	s.Restart(t)
	same := func(want int) {
		t.Helper()
		for _, path := range []string{"/images", "/catalog.toml"} {
			for coding, args := range codings {
				c := s.curl(t, append(args, "-H", host, "--etag-compare", tag(path, coding), s.Pages+path)...)
				body, _ := os.ReadFile(c.Body)
				if c.Status != want || want == http.StatusNotModified && len(body) > 0 {
					t.Errorf("%s in %s: %d, want %d, with %d bytes", path, coding, c.Status, want, len(body))
				}
			}
		}
	}
	same(http.StatusNotModified)
	s.Put(t, "b.img", content(2, 10_000))
	s.WaitHashed(t, "b.img", sum(content(2, 10_000)))
	same(http.StatusOK)
}
