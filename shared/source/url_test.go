package source

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"imageroot/shared/image"
	"imageroot/shared/source/scheme"
)

func TestParseURL(t *testing.T) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tt := range []struct {
		raw, canonical string
		name           image.Name
	}{
		{"https://example.org/x.img", "https://example.org/x.img", "x.img"},
		{" HTTPS://Example.ORG/Dir/X.IMG\n", "https://example.org/Dir/X.IMG", "X.IMG"},
		{"http://example.org:8080/x.img?token=A%2BB&x=1#frag", "http://example.org:8080/x.img?token=A%2BB&x=1", "x.img"},
		{"http://example.org:/x.img?", "http://example.org/x.img", "x.img"},
		{"https://example.org/a%20b+c%2541%23%3F.img", "https://example.org/a%20b+c%2541%23%3F.img", "a b+c%41#?.img"},
		{"https://example.org/ü.img", "https://example.org/%C3%BC.img", "ü.img"},
		{"https://example.org/x.img?a b=ü&sig=%2b+\"", "https://example.org/x.img?a%20b=%C3%BC&sig=%2b+%22", "x.img"},
		{"http://[::1]:80/x.iso", "http://[::1]:80/x.iso", "x.iso"},
		{"https://example.org/x.tar.img.xz", "https://example.org/x.tar.img.xz", "x.tar.img.xz"},
		{"oras://ghcr.io/a/b:v1", "oras://ghcr.io/a/b:v1", ""},
		{"ORAS://GHCR.io/a/b:V1", "oras://ghcr.io/a/b:V1", ""},
		{"oras://localhost:5000/b@sha256:" + hex, "oras://localhost:5000/b@sha256:" + hex, ""},
		{"oras://ghcr.io/a/b:v1@sha256:" + hex, "oras://ghcr.io/a/b@sha256:" + hex, ""},
	} {
		u, err := ParseURL(tt.raw)
		if err != nil || u.Canonical != tt.canonical || u.Name != tt.name {
			t.Errorf("ParseURL(%q) = %q with the name %q, %v; want %q with %q", tt.raw, u.Canonical, u.Name, err, tt.canonical, tt.name)
		}
		if again, err := ParseURL(u.Canonical); err != nil || again.Canonical != u.Canonical || again.Name != u.Name {
			t.Errorf("ParseURL(%q), which is canonical, = %q, %v", u.Canonical, again.Canonical, err)
		}
	}
	for _, tt := range []struct{ raw, reason string }{
		{"", "empty"},
		{"example.org/x.img", "must begin with"},
		{"ftp://example.org/x.img", scheme.List("")},
		{"file:///etc/x.img", scheme.List("")},
		{"https:///x.img", "no host"},
		{"https:x.img", "no host"},
		{"https://user:secret@example.org/x.img", "user name or password"},
		{"https://example.org", "file name"},
		{"https://example.org/", "file name"},
		{"https://example.org/x.img/", "file name"},
		{"https://example.org/dir?file=x.img", "file name"},
		{"https://example.org/x.tar.gz", "tarball"},
		{"https://example.org/a%2Fb.img", "path segment"},
		{"https://example.org/\xff/x.img", "UTF-8"},
		{"https://\xff.example/x.img", "UTF-8"},
		{"oras://\xff.example/a:v1", "UTF-8"},
		{"https://example.org/%00.img", "control character"},
		{"https://example.org/%zz.img", "cannot be read"},
		{"https://example.org:0/x.img", "port"},
		{"https://example.org:65536/x.img", "port"},
		{"https://example.org/" + strings.Repeat("x", 9000) + ".img", "bytes"},
		{"https://example.org/x.img?" + strings.Repeat("ü", 4000), "bytes"},
		{"oras://ghcr.io/a/b", ":TAG"},
		{"oras://ghcr.io/", "form"},
		{"oras://ghcr.io", "form"},
		{"oras:///a:b", "form"},
		{"oras://ghcr.io/A/b:v1", "lower case"},
		{"oras://user:secret@ghcr.io/a:v1", "user name or password"},
		{"oras://ghcr.io/a@sha256:abc", "form"},
		{"oras://ghcr.io/a@sha512:" + hex + hex, "sha256"},
		{"oras://ghcr.io:0/a:v1", "port"},
		{"oras://" + strings.Repeat("x", 9000), "bytes"},
	} {
		u, err := ParseURL(tt.raw)
		if bad, ok := errors.AsType[*Malformed](err); !ok || !strings.Contains(bad.Reason, tt.reason) {
			t.Errorf("ParseURL(%.60q) = %q, %v; want a Malformed about %q", tt.raw, u.Canonical, err, tt.reason)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error of %q repeats a password: %v", tt.raw, err)
		}
	}
}

// Each scheme that other packages accept can be read.
func TestSchemes(t *testing.T) {
	for _, s := range scheme.All {
		if parsers[s.Name] == nil {
			t.Errorf("scheme.All has %s, and parsers in url.go has no row for it", s.Name)
		}
		if got, ok := scheme.Of(strings.ToUpper(s.Name) + "://h/x"); !ok || got != s {
			t.Errorf("the scheme of a URL of %s is %+v", s.Name, got)
		}
	}
	for name := range parsers {
		if _, ok := scheme.Of(name + ":"); !ok {
			t.Errorf("parsers has %s, and All in shared/source/scheme has no row for it", name)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"https://example.org/x.img", "HTTP://EXAMPLE.org:80/a%20b+c.img?q=1#f", "https://[::1]/x.iso", "http://x/%C3%BC.qcow2", "https://h/a;b.img",
		"oras://ghcr.io/a/b:v1", "https://u:p@h/x.img", "https://h:/x.img?", "//h/x.img", "https://h//x.img", "https://h/%2e%2e/x.img", "http://ü/x.raw",
		"https://h/x.img?\x7f", "https://h/%5c.img", "https://h/x.img?a b", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := ParseURL(raw)
		if err != nil {
			if bad, ok := errors.AsType[*Malformed](err); !ok || bad.Reason == "" {
				t.Fatalf("ParseURL(%q): %v is no Malformed with a reason", raw, err)
			}
			return
		}
		if len(u.Canonical) > maxURLBytes+len("oras://") || !utf8.ValidString(u.Canonical) || strings.ContainsAny(u.Canonical, " \t\r\n#") || u.Host == "" {
			t.Errorf("ParseURL(%q) is %+v", raw, u)
		}
		if !u.Pinned() && !u.Name.Valid() {
			t.Errorf("ParseURL(%q) has the name %q", raw, u.Name)
		}
		again, err := ParseURL(u.Canonical)
		if err != nil || again != u {
			t.Errorf("ParseURL(%q) = %+v, and of that %+v, %v", raw, u, again, err)
		}
	})
}

func FuzzParseORAS(f *testing.F) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, s := range []string{
		"ghcr.io/a/b:v1", "localhost:5000/b@sha256:" + hex, "h/a:v1@sha256:" + hex, "GHCR.io/a:V", "[::1]:5000/a:b", "h/a", "h:/a:b", "h/a:b#c",
		"u@h/a:b", "docker.io/ubuntu:latest", "h/a@sha512:" + hex + hex, "h/A:b", "h/a//b:c", "h%41/a:b", "h/a:b?c", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		raw := "oras://" + rest
		u, err := ParseURL(raw)
		if err != nil {
			if bad, ok := errors.AsType[*Malformed](err); !ok || bad.Reason == "" {
				t.Fatalf("ParseURL(%q): %v is no Malformed with a reason", raw, err)
			}
			return
		}
		ref := u.place.(oras).ref
		if !u.Pinned() || u.Name != "" || ref.Registry != u.Host || ref.Repository == "" || ref.Reference == "" {
			t.Errorf("ParseURL(%q) = %+v", raw, u)
		}
		if d, err := ref.Digest(); err == nil && d.Algorithm() != "sha256" {
			t.Errorf("ParseURL(%q) takes the digest %s", raw, d)
		}
		again, err := ParseURL(u.Canonical)
		if err != nil || again != u {
			t.Errorf("ParseURL(%q) = %+v, and of that %+v, %v", raw, u, again, err)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	for _, tt := range []struct {
		field string
		want  contentRange
		ok    bool
	}{
		{"bytes 0-9/10", contentRange{0, 9, 10}, true},
		{"BYTES  5-9/*", contentRange{5, 9, -1}, true},
		{"bytes 0-9/9", contentRange{}, false},
		{"bytes 5-4/10", contentRange{}, false},
		{"bytes -5-9/10", contentRange{}, false},
		{"bytes 0-9", contentRange{}, false},
		{"bytes */10", contentRange{}, false},
		{"items 0-9/10", contentRange{}, false},
		{"bytes 0-9/99999999999999999999", contentRange{}, false},
		{"bytes 0-9223372036854775807/*", contentRange{}, false},
		{"", contentRange{}, false},
	} {
		got, err := parseContentRange(tt.field)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("parseContentRange(%q) = %+v, %v", tt.field, got, err)
		}
	}
}
