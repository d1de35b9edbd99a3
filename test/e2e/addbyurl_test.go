package e2e

import (
	"crypto/md5"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// checksumForms are the forms in which publishers give checksums. %[1]s is the
// file name, %[2]s the digest in the list's algorithm, %[3]s another digest of
// the same length.
var checksumForms = map[string]struct {
	algorithm, list string
}{
	"Ubuntu SHA256SUMS":     {"sha256", "%[3]s *noble-server-cloudimg-arm64.img\n%[2]s *%[1]s\n%[3]s *zz.squashfs\n"},
	"Debian SHA512SUMS":     {"sha512", "%[3]s  debian-12-generic-amd64.json\n%[2]s  %[1]s\n%[3]s  debian-12-generic-amd64.raw\n"},
	"Alpine .sha512":        {"sha512", "%[2]s  %[1]s\n"},
	"Raspberry Pi .sha256":  {"sha256", "%[2]s  %[1]s\n"},
	"Arch":                  {"sha256", "%[3]s  Arch-Linux-x86_64-basic.qcow2\n%[2]s  %[1]s\n"},
	"FreeBSD":               {"sha256", "SHA256 (FreeBSD-14.1-RELEASE-amd64.raw.xz) = %[3]s\nSHA256 (%[1]s) = %[2]s\n"},
	"Fedora CHECKSUM":       {"sha256", fedora},
	"Rocky CHECKSUM":        {"sha256", "# Rocky-9-GenericCloud.latest.x86_64.qcow2: 609550336 bytes\nSHA256 (Rocky-9.latest.x86_64.qcow2) = %[3]s\n# %[1]s: 12 bytes\nSHA256 (%[1]s) = %[2]s\n"},
	"a bare digest":         {"sha256", "%[2]s"},
	"a bare digest, line":   {"sha256", "%[2]s\n"},
	"a bare SHA-512":        {"sha512", "%[2]s\n"},
	"./ and directories":    {"sha256", "%[3]s  ./other/dir/other.img\n%[2]s  ./some/dir/%[1]s\n"},
	"CRLF, BOM, upper case": {"sha256", "\ufeff# made on another system\r\n%[3]s *other.img\r\n%[2]s *%[1]s\r\n"},
	"BSD SHA512":            {"sha512", "SHA512 (%[1]s) = %[2]s\n"},
}

const fedora = `-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base-Generic-40-1.14.x86_64.qcow2: 397475840 bytes
SHA256 (Fedora-Cloud-Base-Generic-40-1.14.x86_64.qcow2) = %[3]s
# %[1]s: 12 bytes
SHA256 (%[1]s) = %[2]s
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEEEVx2V4vFZTdAiL4mBlhKYKFfTg8FAmYfxZQACgkQBlhKYKFf
=abcd
-----END PGP SIGNATURE-----
`

func digest(algorithm string, b []byte) string {
	if algorithm == "sha512" {
		h := sha512.Sum512(b)
		return hex.EncodeToString(h[:])
	}
	return sum(b)
}

// TestAddByURLChecksumForms reads every form and compares it with the bytes:
// the same list with another digest fails the fetch.
func TestAddByURLChecksumForms(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	i := 0
	for form, f := range checksumForms {
		i++
		good, bad := fmt.Sprintf("good-%d.img", i), fmt.Sprintf("bad-%d.img", i)
		t.Run(form, func(t *testing.T) {
			for _, name := range []string{good, bad} {
				b := content(uint64(i), 10_000)
				if name == bad {
					b = content(uint64(1000+i), 10_000) // else the bytes would be cached already
				}
				said, other := digest(f.algorithm, b), digest(f.algorithm, []byte("something else"))
				if name == bad {
					b[5000] ^= 1
				}
				if strings.Contains(form, "upper case") {
					said = strings.ToUpper(said)
				}
				image := p.File("/dist/"+name, b)
				list := p.File("/dist/"+name+".sums", fmt.Appendf(nil, f.list, name, said, other))
				s.AddEntry(t, image, list).Must(t, http.StatusCreated)
				r := s.WaitRow(t, name, "added", nil)
				if f.algorithm == "sha256" && r.SHA256 != strings.ToLower(said) {
					t.Errorf("row %+v, want SHA-256 %s", r, said)
				}
				s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
				if name == good {
					if j := s.WaitJob(t, downloads, name, "completed"); j.SHA256 != sum(b) {
						t.Errorf("fetched as %s, want %s", j.SHA256, sum(b))
					}
					continue
				}
				j := s.WaitJob(t, downloads, name, "failed")
				if !strings.Contains(j.Error, strings.ToLower(said)) || !strings.Contains(j.Error, digest(f.algorithm, b)) {
					t.Errorf("the error names not both %s and %s: %s", said, digest(f.algorithm, b), j.Error)
				}
			}
		})
	}
}

func TestAddByURLChecksumRefused(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	image := p.File("/a.img", content(1, 1000))
	hex64 := strings.Repeat("ab", 32)
	md := md5.Sum(nil)
	for name, c := range map[string]struct {
		list  string
		words []string
	}{
		"not listed":  {hex64 + "  first.img\n" + hex64 + " *second.img\n", []string{"a.img", "first.img", "second.img"}},
		"HTML":        {"<!DOCTYPE html><title>404</title>", nil},
		"empty":       {"", nil},
		"MD5":         {hex.EncodeToString(md[:]) + "  a.img\n", nil},
		"short hex":   {"abcdef  a.img\n", nil},
		"over 1 MiB":  {strings.Repeat(hex64+"  other.img\n", 16_000) + hex64 + "  a.img\n", []string{"1 MiB"}},
		"two answers": {hex64 + "  a.img\n" + strings.Repeat("cd", 32) + "  a.img\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			list := p.File("/"+url.PathEscape(name), []byte(c.list))
			s.AddEntry(t, image, list).Problem(t, []int{400}, c.words...)
		})
	}
	t.Run("404", func(t *testing.T) {
		s.AddEntry(t, image, p.URL+"/none").Problem(t, []int{400}, "404")
	})
	if rows := s.Rows(t); len(rows) != 0 {
		t.Errorf("what was refused is in the catalog: %+v", rows)
	}
	s.WaitEvent(t, "catalog.entry.add_failed", image)
}

func TestAddByURL(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 123_456)
	image := p.File("/os/a.img.xz", b)
	r := s.AddEntry(t, image, "")
	r.Must(t, http.StatusCreated)
	got := s.WaitRow(t, "a.img.xz", "added", nil)
	if got.SHA256 != "" || got.Cached || got.Format != "img.xz" || got.SizeBytes == nil || *got.SizeBytes != int64(len(b)) {
		t.Errorf("row %+v", got)
	}
	if !slices.Equal(got.Sources, []source{{"url", image}}) {
		t.Errorf("sources %+v", got.Sources)
	}
	if l, ok := s.Listed(t, "a.img.xz"); !ok || l.URL != image || l.Ref != nil || l.Cached {
		t.Errorf("GET /images: %+v, want the publisher's URL", l)
	}
	s.AddEntry(t, image, "").Problem(t, []int{409}, "already")
	if body := string(s.get(t, "/catalog/entries").Must(t, 200).Body); !strings.Contains(body, image) {
		t.Errorf("GET /catalog/entries: %s", body)
	}
	s.WaitEvent(t, "catalog.entry.added", image)

	for range 2 {
		del := s.Do(t, http.MethodDelete, "/catalog/entries?src="+url.QueryEscape(image), nil)
		if _, found := s.Row(t, "a.img.xz"); found {
			t.Fatal("a deleted entry is in the catalog")
		}
		if del.Status == http.StatusNotFound {
			del.Problem(t, []int{404})
			s.WaitEvent(t, "catalog.entry.deleted", image)
			return
		}
		del.Must(t, http.StatusNoContent)
	}
	t.Error("DELETE of an entry that is not there: not 404")
}

func TestAddByURLRefuses(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	p.File("/a.img", content(1, 1000))
	for _, body := range []string{
		``, `{`, `[]`, `{}`, `{"image_url": 7}`, `{"image_url": ""}`, `{"image_url": "a.img"}`, `{"image_url": "//host/a.img"}`,
		`{"image_url": "ftp://127.0.0.1/a.img"}`, `{"image_url": "file:///etc/hostname.img"}`, `{"image_url": "http:///a.img"}`,
		`{"image_url": "` + p.URL + `/"}`, `{"image_url": "` + p.URL + `"}`, `{"image_url": "` + p.URL + `/root.tar.gz"}`,
		`{"image_url": "` + p.URL + `/a.vma"}`, `{"image_url": "` + p.URL + `/%ff.img"}`, `{"image_url": "` + p.URL + `/a%2Fb.img"}`,
		`{"image_url": "oras://"}`, `{"image_url": "oras://127.0.0.1:5/UPPER:tag"}`, `{"image_url": "javascript:alert(1).img"}`,
		`{"image_url": "` + p.URL + `/a.img", "sha_url": "file:///etc/passwd"}`,
		`{"image_url": "` + p.URL + `/a.img", "sha_url": "nonsense"}`,
	} {
		s.Do(t, http.MethodPost, "/catalog/entries", strings.NewReader(body), header("Content-Type", "application/json")).
			Problem(t, []int{400, 422})
	}
	if n := p.Hits("GET", "/root.tar.gz") + p.Hits("HEAD", "/root.tar.gz"); n > 0 {
		t.Error("a tarball was asked for")
	}
	for path, h := range map[string]http.HandlerFunc{
		"/404.img": http.NotFound,
		"/403.img": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) },
		"/500.img": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
	} {
		s.AddEntry(t, p.Handle(path, h), "").Problem(t, []int{400}, path[1:4])
	}
	t.Run("self-signed", func(t *testing.T) {
		bad := newTLSPublisher(t)
		s.AddEntry(t, bad.URL+"/a.img", "").Problem(t, []int{400}, "certificate")
	})
	t.Run("nobody there", func(t *testing.T) {
		closed := newTrap(t, "127.0.0.1:0")
		addr := closed.Addr().String()
		_ = closed.Close()
		s.AddEntry(t, "http://"+addr+"/a.img", "").Problem(t, []int{400})
	})
	if rows := s.Rows(t); len(rows) != 0 {
		t.Errorf("what was refused is in the catalog: %+v", rows)
	}
}

func TestAddByURLSizeAndRedirects(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 54_321)
	file := p.File("/real.img", b)
	serve := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, file, http.StatusFound) }

	// A server without HEAD gives the size in the answer to a one-byte range.
	noHead := p.Handle("/no-head.img", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		p.files["/real.img"].ServeHTTP(w, r)
	})
	p.Handle("/hop-1.img", serve)
	for i := 2; i <= 11; i++ {
		p.Handle(fmt.Sprintf("/hop-%d.img", i), func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, fmt.Sprintf("/hop-%d.img", i-1), http.StatusMovedPermanently)
		})
	}
	for name, u := range map[string]string{"no-head.img": noHead, "hop-10.img": p.At("/hop-10.img")} {
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		if r := s.WaitRow(t, name, "added", nil); r.SizeBytes == nil || *r.SizeBytes != int64(len(b)) {
			t.Errorf("%s: row %+v, want size %d", name, r, len(b))
		}
		if j := s.Fetch(t, name); j.SHA256 != sum(b) {
			t.Errorf("%s fetched as %+v", name, j)
		}
	}
	s.AddEntry(t, p.At("/hop-11.img"), "").Problem(t, []int{400}, "redirect")
	loop := p.Handle("/loop.img", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/loop.img", http.StatusFound)
	})
	s.AddEntry(t, loop, "").Problem(t, []int{400}, "redirect")
	if n := p.Hits("HEAD", "/loop.img") + p.Hits("GET", "/loop.img"); n > 30 {
		t.Errorf("a redirect loop was asked for %d times", n)
	}
}

func TestAddByURLNames(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	want := map[string]string{}
	for i, name := range hostileNames() {
		b := content(uint64(700+i), 3000+i)
		want[name] = sum(b)
		s.AddEntry(t, p.File("/dist/"+name, b), "").Must(t, http.StatusCreated)
		s.WaitRow(t, name, "added", nil)
	}
	for name, sha := range want {
		if j := s.Fetch(t, name); j.SHA256 != sha {
			t.Errorf("%q fetched as %+v, want SHA-256 %s", name, j, sha)
		}
	}
	checkNames(t, s, want)
	// A query is not part of the name.
	p.File("/q.img", content(1, 100))
	s.AddEntry(t, p.URL+"/q.img?sig=a/b.iso&x=%2F", "").Must(t, http.StatusCreated)
	s.WaitRow(t, "q.img", "added", nil)
}

// TestAddByURLRefresh resolves an entry again after its publisher has replaced
// the file.
func TestAddByURLRefresh(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	old, next := content(1, 10_000), content(2, 20_000)
	image := p.File("/latest.img", old)
	sums := p.File("/SHA256SUMS", []byte(sum(old)+" *latest.img\n"))
	s.AddEntry(t, image, sums).Must(t, http.StatusCreated)
	s.WaitRow(t, "latest.img", "added", nil)
	if j := s.Fetch(t, "latest.img"); j.SHA256 != sum(old) {
		t.Fatalf("%+v", j)
	}
	p.File("/latest.img", next)
	p.File("/SHA256SUMS", []byte(sum(next)+" *latest.img\n"))
	s.AddEntry(t, image, sums).Problem(t, []int{409}, "refresh")
	if r, _ := s.Row(t, "latest.img"); r.SHA256 != sum(old) {
		t.Errorf("an entry changed without being asked to: %+v", r)
	}
	s.DoJSON(t, http.MethodPost, "/catalog/entries", map[string]any{"image_url": image, "sha_url": sums, "refresh": true}).
		Must(t, http.StatusOK, http.StatusCreated)
	eventually(t, within, "the refreshed entry", func() error {
		for _, r := range s.Rows(t) {
			if r.SHA256 == sum(next) && slices.Contains(r.Names, "latest.img") && *r.SizeBytes == int64(len(next)) {
				return nil
			}
		}
		return fmt.Errorf("rows %+v", s.Rows(t))
	})
	s.Enqueue(t, downloads, "ref", sum(next)).Must(t, http.StatusAccepted)
	eventually(t, within, "the new bytes", func() error {
		if r := s.get(t, "/images/"+sum(next)); r.Status != 200 || sum(r.Body) != sum(next) {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
}

// TestAddByURLSourceChanged replaces a source of unknown digest after it was
// added.
func TestAddByURLSourceChanged(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	image := p.File("/rolling.img", content(1, 10_000))
	s.AddEntry(t, image, "").Must(t, http.StatusCreated)
	p.File("/rolling.img", content(2, 20_000))
	s.Enqueue(t, downloads, "src", image).Must(t, http.StatusAccepted)
	s.WaitJobUntil(t, downloads, "rolling.img", "ended", ended)
	s.WaitRow(t, "rolling.img", "flagged", func(r row) bool { return len(r.Warnings) > 0 })
}
