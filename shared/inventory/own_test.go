package inventory_test

import (
	"strings"
	"testing"

	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
)

// A URL of this server is known whatever the host, unless the path could be that of another
// server.
func TestByOwnURL(t *testing.T) {
	b := newBench(t)
	const name = "a+b ü#1.img"
	b.hashed(name, b.image(name, "x"), sha("a"))
	s := b.snapshot()
	path, digest := inventory.OwnPath(name), strings.Repeat("a", 64)
	for _, tt := range []struct {
		url  string
		want bool
	}{
		{"http://here" + path, true},
		{"https://any.example:8443" + path, true},
		{"http://any.example/images/" + digest, true},
		{"http://any.example/images/" + strings.ToUpper(digest) + "/other.img", true},
		{"http://here/images/a+b%20%C3%BC%231.img", true},
		{"http://HERE/images/a+b%20%C3%BC%231.img/x.img", true},
		{"http://any.example/images/a+b%20%C3%BC%231.img", false},
		{"http://any.example/images/a+b%20%C3%BC%231.img/x.img", false},
		{"http://any.example/pub/images" + path, false},
		{"http://any.example/raw/" + digest, false},
		{"http://here/images/", false},
		{"http://here/images", false},
		{"http://here/images/none.img", false},
		{"http://here/images/%zz", false},
		{"ftp://here" + path, false},
		{path, false},
		{"http://" + path, false},
		{"", false},
	} {
		row, ok := s.ByOwnURL(tt.url, "other", "here")
		if ok != tt.want || ok && row.Digest() != layout.SHA256(digest) {
			t.Errorf("%s: %v %v", tt.url, row, ok)
		}
	}
}

func TestTitledNames(t *testing.T) {
	for title, want := range map[string]string{
		"nosi debian-13 (x86_64, latest)": "nosi debian-13 (x86_64, latest).img.gz", "disk.IMG.gz": "disk.img.gz", "../etc/\x00p\\w": "-etc--p-w.img.gz",
		"": "image.img.gz", "...": "image.img.gz", ".img.gz": "img.gz.img.gz", "\xff\ufffe": "--.img.gz",
		strings.Repeat("ü", 200): strings.Repeat("ü", 124) + ".img.gz",
	} {
		got := image.Titled(title, "img.gz")
		if string(got) != want || !got.Valid() {
			t.Errorf("%q: %q, want %q", title, got, want)
		}
	}
}
