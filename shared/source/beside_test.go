package source

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"imageroot/shared/bmap"
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

// A block map beside an image is found under the names that bmaptool tries.
func TestFindBmap(t *testing.T) {
	const text = "<?xml?><bmap/>"
	for _, tt := range []struct {
		image string
		files map[string]string // by the path of a block map
		want  string            // the path of the one that is found, or ""
		asked int
	}{
		{"/a/x%201.wic.gz?token=1", map[string]string{"/a/x 1.wic.gz.bmap": text, "/a/x 1.wic.bmap": text}, "/a/x 1.wic.gz.bmap", 1},
		{"/a/x.wic.gz", map[string]string{"/a/x.wic.bmap": text}, "/a/x.wic.bmap", 2},
		{"/a/x.wic.gz", map[string]string{"/a/x.wic.gz.bmap": "<html>there is no such file", "/a/x.bmap": text}, "/a/x.bmap", 3},
		{"/a/x.qcow2", map[string]string{"/a/x.bmap": text}, "/a/x.bmap", 2},
		{"/a/x.img", nil, "", 2},
		{"/a/x.img", map[string]string{"/a/x.img.bmap": "<bmap>" + strings.Repeat(" ", bmap.MaxBytes)}, "too long", 1},
		{"/download?id=5", nil, "", 0},
	} {
		asked, last := 0, ""
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			if last = r.URL.Path; tt.files[last] == "" || r.URL.RawQuery != "" {
				http.NotFound(w, r)
				return
			}
			_, _ = w.Write([]byte(tt.files[last]))
		}))
		c := New(Config{Policy: netpolicy.Policy{Loopback: true}})
		got, err := c.FindBmap(t.Context(), Location{URL: h.URL + tt.image, Name: "named.img"})
		c.Close()
		h.Close()
		switch {
		case tt.want == "too long" && err == nil, tt.want != "too long" && err != nil:
			t.Errorf("%s: %v", tt.image, err)
		case (got != nil) != strings.HasPrefix(tt.want, "/"), got != nil && last != tt.want, asked != tt.asked:
			t.Errorf("%s: %q from %s, after %d requests, want %s after %d", tt.image, got, last, asked, tt.want, tt.asked)
		}
	}
	if got, err := New(Config{}).FindBmap(t.Context(), Location{URL: "oras://127.0.0.1:1/x:1", Name: "x.img"}); got != nil || err != nil {
		t.Errorf("a registry: %q, %v", got, err)
	}
}
