package e2e

import (
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"imageroot/test/need"
)

// TestChecksumFiles verifies downloads with the checksum files beside them: sha256sum
// accepts them, and refuses an image or a list in which a byte has changed.
func TestChecksumFiles(t *testing.T) {
	t.Parallel()
	const pull = "/lib/systemd/systemd-pull"
	need.Programs(t, "curl", "sha256sum", pull)
	s, m := Start(t, Options{}), newMaker(t)
	for name, pack := range map[string]string{"a.img": "cp raw x", "again.img": "cp raw x", "b.img.gz": "gzip -c raw >x", "c.qcow2": "qemu-img convert -O qcow2 raw x"} {
		s.Put(t, name, m.make(pack))
		s.WaitRow(t, name, "checked", func(r row) bool { return r.RawSHA256 != "" })
	}
	for from, names := range map[string]string{"/images/": "a.img again.img b.img.gz c.qcow2", "/raw/": "b.img a.img again.img c.img"} {
		script := "set -e; mkdir -p d; cd d; rm -rf *; curl -sSf -O '" + s.Pages + from + "SHA256SUMS'; for f in " + names +
			"; do curl -sSf --retry 9 -O '" + s.Pages + from + "'$f -O '" + s.Pages + from + "'$f.sha256; sha256sum --quiet -c $f.sha256; grep -qF $f SHA256SUMS; done; sha256sum --quiet -c --ignore-missing SHA256SUMS"
		if err := sh(t, m.dir, script); err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		name := strings.Fields(names)[0]
		for what, change := range map[string]string{
			"image": "printf x | dd of=" + name + " bs=1 seek=1000 conv=notrunc status=none",
			"list":  "sed -i 'y/0123456789abcdef/123456789abcdef0/' SHA256SUMS",
		} {
			if err := sh(t, m.dir, "rm -rf e; cp -r d e; cd e; "+change); err != nil {
				t.Fatal(err)
			}
			if err := sh(t, m.dir, "cd e; sha256sum --quiet -c --ignore-missing SHA256SUMS"); err == nil {
				t.Errorf("%s, a changed %s: it is accepted", from, what)
			}
		}
	}

	pulp := "curl -sSf '" + s.Pages + "/images/PULP_MANIFEST' | while IFS=, read -r name sum size; do curl -sSf '" + s.Pages + "/images/'$name >x; echo $sum x | sha256sum --quiet -c; test $size = $(stat -c %s x); echo $name; done | wc -l"
	if err := sh(t, m.dir, "test $("+pulp+") = 4"); err != nil {
		t.Error(err)
	}

	// systemd-pull finds the checksum file by itself.
	get := func(from string) error {
		return sh(t, m.dir, pull+" raw --direct --verify=checksum --settings=no --roothash=no --verity=no --sync=no '"+from+"' \"$PWD/pulled\"")
	}
	b, _ := s.Row(t, "b.img.gz")
	for _, from := range []string{"/images/a.img", "/images/" + b.SHA256 + "/b.img.gz", "/raw/" + b.SHA256 + "/b.img"} {
		if err := get(s.Pages + from); err != nil {
			t.Errorf("systemd-pull of %s: %v", from, err)
		}
		list := s.Do(t, "GET", path.Dir(from)+"/SHA256SUMS", nil).Must(t, 200)
		if n := strings.Count(string(list.Body), "\n"); from != "/images/a.img" && n != 1 {
			t.Errorf("%s: the list beside it has %d lines", from, n)
		}
	}
	damaged := damaging(t, s, func(path string, body []byte) {
		if !strings.Contains(path, "sha256") {
			body[1000]++
		}
	})
	if err := get(damaged + "/images/a.img"); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("systemd-pull of a damaged image: %v", err)
	}
}

// damaging starts a proxy of s that changes the bodies of answers. It returns its URL.
func damaging(t *testing.T, s *Server, change func(path string, body []byte)) string {
	t.Helper()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := s.Do(t, "GET", r.URL.Path, nil).Must(t, 200).Body
		change(r.URL.Path, body)
		_, _ = w.Write(body)
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL
}
