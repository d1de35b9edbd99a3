package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/need"
)

// TestIncus lists and exports an image with LXD's client, over TLS, from a server that is closed to others. The client
// downloads and verifies both files of an image as the daemon does, with the same code.
func TestIncus(t *testing.T) {
	t.Parallel()
	need.Programs(t, "lxc", "qemu-img", "tar")
	m, s := newMaker(t), Start(t, Options{Env: []string{"IMAGEROOT_PUBLIC_READ=false"}})
	token := s.token(t, "lab", "read")
	image := m.make("qemu-img convert -O qcow2 raw x")
	sha := s.Put(t, "debian-12-amd64.qcow2", image).SHA256
	s.Put(t, "other-amd64.img", m.make("cp raw x"))
	unknown := s.Put(t, "unknown.qcow2", m.make("qemu-img create -q -f qcow2 x 1M")).SHA256
	s.WaitRow(t, "unknown.qcow2", "checked", func(r row) bool { return r.RawSHA256 != "" })
	listed := func(sha256 string) {
		t.Helper()
		eventually(t, within, "the fingerprint", func() error {
			if list := s.get(t, "/streams/v1/images.json").Must(t, http.StatusOK).Body; !strings.Contains(string(list), sha256) {
				return fmt.Errorf("the list is %s", list)
			}
			return nil
		})
	}
	listed(sha)

	// lxc runs the client with a proxy of s that changes answers.
	lxc := func(change func(path string, body []byte), script string) error {
		t.Helper()
		to, err := url.Parse(s.Pages)
		if err != nil {
			t.Fatal(err)
		}
		proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if change == nil {
				httputil.NewSingleHostReverseProxy(to).ServeHTTP(w, r)
				return
			}
			body := s.Do(t, "GET", r.URL.Path, nil).Must(t, http.StatusOK).Body
			change(r.URL.Path, body)
			_, _ = w.Write(body)
		}))
		proxy.Config.ErrorLog = log.New(io.Discard, "", 0) // the client tries HTTP first
		proxy.StartTLS()
		defer proxy.Close()
		roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw})
		if err := os.WriteFile(m.path("roots.pem"), roots, 0o600); err != nil {
			t.Fatal(err)
		}
		return sh(t, m.dir, "rm -rf conf out; mkdir conf out; export HOME=$PWD LXD_CONF=$PWD/conf SSL_CERT_FILE=$PWD/roots.pem no_proxy=127.0.0.1; "+
			"lxc remote add lab '"+strings.Replace(proxy.URL, "//", "//lab:"+token+"@", 1)+"' --protocol simplestreams </dev/null 2>&1; "+script)
	}

	err := lxc(nil, "lxc image list lab: --format json >list; lxc image info lab:debian/12 >info; lxc image export lab:debian-12-amd64 out --vm 2>&1; "+
		"cat out/metadata.tar out/debian-12-amd64.qcow2 | sha256sum >fingerprint; tar -xOf out/metadata.tar metadata.yaml >yaml")
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(m.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var list []struct {
		Fingerprint, Architecture, Type string
		Aliases                         []struct{ Name string }
		Properties                      map[string]string
		Size                            int
	}
	if err := json.Unmarshal([]byte(read("list")), &list); err != nil {
		t.Fatal(err)
	}
	fingerprint := strings.Fields(read("fingerprint"))[0]
	if len(list) != 1 {
		t.Fatalf("the client lists %+v", list)
	}
	if in := list[0]; in.Fingerprint != fingerprint || in.Architecture != "x86_64" || in.Type != "virtual-machine" || in.Properties["os"] != "debian" || in.Properties["release"] != "12" || in.Size <= len(image) {
		t.Errorf("the client lists %+v, exported %s", in, fingerprint)
	}
	if info := read("info"); !strings.Contains(info, fingerprint) || !strings.Contains(info, "- debian-12-amd64/amd64\n") {
		t.Errorf("info of an alias: %s", info)
	}
	if got := read("out/debian-12-amd64.qcow2"); got != string(image) {
		t.Errorf("the disk has %d bytes, want %d", len(got), len(image))
	}
	if yaml := read("yaml"); !strings.HasPrefix(yaml, "architecture: x86_64\n") {
		t.Errorf("the metadata are %q", yaml)
	}

	for what, suffix := range map[string]string{"disk": ".qcow2", "tarball": ".tar", "list": "images.json"} {
		err := lxc(func(path string, body []byte) {
			switch {
			case !strings.HasSuffix(path, suffix):
			case what == "list":
				i := strings.Index(string(body), sha) // of the product, and then of the disk
				i += 64 + strings.Index(string(body[i+64:]), `"sha256":"`+sha) + len(`"sha256":"`)
				body[i] ^= 1
			default:
				body[len(body)/2]++
			}
		}, "lxc image export lab:debian-12-amd64 out --vm 2>&1")
		if err == nil || !strings.Contains(err.Error(), "Hash mismatch") {
			t.Errorf("a changed byte of the %s: %v", what, err)
		}
	}

	// The operator says the architecture of an image that says none.
	s.describe(t, unknown, map[string]any{"architecture": "arm64"}).Must(t, http.StatusOK)
	listed(unknown)
}
