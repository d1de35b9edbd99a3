package source

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"imageroot/shared/netpolicy"
)

// A list beside an image is found by its name and verified to name the image.
func TestFindChecksums(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for _, tt := range []struct {
		files map[string]string // beside the image
		want  string            // the list, or ""
	}{
		{map[string]string{"SHA256SUMS": sum + "  disk 1+%.img\n"}, "SHA256SUMS"},
		{map[string]string{"SHA256SUMS": sum + "  another.img\n"}, ""},
		{map[string]string{"SHA256SUMS": sum + "  disk 1+%.img\n", "disk 1+%.img.sha256": sum + "\n"}, "disk%201+%25.img.sha256"},
		{map[string]string{"SHA512SUMS": sum + sum + "  disk 1+%.img\n"}, "SHA512SUMS"},
		{map[string]string{"SHA256SUMS": "<html>not found</html>"}, ""},
		{nil, ""},
	} {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name := strings.TrimPrefix(r.URL.Path, "/a/")
			if r.URL.RawQuery != "" && name != "disk 1+%.img" {
				http.Error(w, "a list has no query", http.StatusBadRequest)
				return
			}
			text, ok := tt.files[name]
			if name == "disk 1+%.img" {
				text, ok = "image", true
			}
			if !ok {
				http.NotFound(w, r)
				return
			}
			_, _ = w.Write([]byte(text))
		}))
		c := New(Config{Policy: netpolicy.Policy{Loopback: true, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
		list, r, err := c.FindChecksums(t.Context(), h.URL+"/a/disk%201+%25.img?token=1")
		h.Close()
		if err != nil || r.Size != 5 {
			t.Fatalf("%v: %+v, %v", tt.files, r, err)
		}
		if got := strings.TrimPrefix(list, h.URL+"/a/"); got != tt.want || (r.SHA256+"" != "" || r.SHA512 != "") != (tt.want != "") {
			t.Errorf("%v: %q, %+v", tt.files, got, r)
		}
	}
}
