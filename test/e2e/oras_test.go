package e2e

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// added adds an oras URL, and checks that its row and its fetched bytes are
// those that were pushed.
func added(t *testing.T, s *Server, url, name string, want []byte) {
	t.Helper()
	s.AddEntry(t, url, "").Must(t, http.StatusCreated)
	var found *row
	for _, r := range s.Rows(t) {
		if slices.Contains(r.Sources, source{"url", url}) {
			found = &r
		}
	}
	if found == nil {
		t.Fatalf("no row has the source %s: %+v", url, s.Rows(t))
	}
	if found.SHA256 != sum(want) || found.SizeBytes == nil || *found.SizeBytes != int64(len(want)) {
		t.Errorf("%s: row %+v, want SHA-256 %s, size %d", url, found, sum(want), len(want))
	}
	if name != "" && !slices.Contains(found.Names, name) {
		t.Errorf("%s: names %q, want %q", url, found.Names, name)
	}
	s.Enqueue(t, downloads, "src", url).Must(t, http.StatusAccepted)
	eventually(t, within, "fetched "+url, func() error {
		r := s.get(t, "/images/"+sum(want), anonymous)
		if r.Status == 200 && sum(r.Body) == sum(want) {
			return nil
		}
		jobs, _ := s.Jobs(t, downloads)
		for _, j := range jobs {
			if j.Src == url && j.Status == "failed" {
				t.Fatalf("%+v", j)
			}
		}
		return &statusError{r}
	})
}

type statusError struct{ r *Reply }

func (e *statusError) Error() string { return e.r.String() }

func TestOras(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	reg := newRegistry(t, "127.0.0.1:0")
	at := func(ref string) string { return "oras://" + reg.Host + "/" + ref }

	t.Run("tag", func(t *testing.T) {
		b := content(1, 300_000)
		reg.Push(t, "lab/by-tag", "v1", layer{"by tag \u00fc.img", b})
		added(t, s, at("lab/by-tag:v1"), "by tag \u00fc.img", b)
		s.AddEntry(t, at("lab/by-tag:v1"), "").Problem(t, []int{409})
	})
	t.Run("manifest digest", func(t *testing.T) {
		b := content(2, 300_000)
		d := reg.Push(t, "lab/by-digest", "", layer{"by-digest.qcow2", b})
		added(t, s, at("lab/by-digest@"+d.Digest.String()), "by-digest.qcow2", b)
	})
	t.Run("blob digest", func(t *testing.T) {
		b := content(3, 300_000)
		d := pushBlob(t, reg.repo(t, "lab/blob.img"), "application/octet-stream", b)
		added(t, s, at("lab/blob.img@"+d.Digest.String()), "", b)
	})
	t.Run("side files", func(t *testing.T) {
		b := content(4, 50_000)
		reg.Push(t, "lab/sides", "v1",
			layer{"sides.img.sha256", []byte(sum(b))}, layer{"sides.img.sbom", content(5, 500_000)},
			layer{"sides.json", content(6, 400_000)}, layer{"sides.img", b}, layer{"sides.img.sig", content(7, 600_000)},
			layer{"small.img", content(8, 1000)}, layer{"sides.img.asc", content(9, 100)})
		added(t, s, at("lab/sides:v1"), "sides.img", b)
	})
	t.Run("only side files", func(t *testing.T) {
		reg.Push(t, "lab/no-image", "v1", layer{"a.json", content(6, 1000)}, layer{"a.sbom", content(7, 1000)})
		s.AddEntry(t, at("lab/no-image:v1"), "").Problem(t, []int{400, 422})
	})
	t.Run("tarball", func(t *testing.T) {
		reg.Push(t, "lab/tarball", "v1", layer{"root.tar.gz", content(6, 1000)})
		s.AddEntry(t, at("lab/tarball:v1"), "").Problem(t, []int{400, 422})
	})
	t.Run("hostile title", func(t *testing.T) {
		for i, title := range []string{"../../etc/cron.d/x.img", ".hidden.img", "a\x00b.img"} {
			tag := string(rune('a' + i))
			reg.Push(t, "lab/hostile", tag, layer{title, content(uint64(60+i), 1000)})
			r := s.AddEntry(t, at("lab/hostile:"+tag), "")
			if r.Status == http.StatusCreated {
				for _, row := range s.Rows(t) {
					if slices.Contains(row.Names, title) {
						t.Errorf("the title %q is a name in the catalog", title)
					}
				}
				continue
			}
			r.Problem(t, []int{400, 422})
		}
	})
	t.Run("index with platforms", func(t *testing.T) {
		b := map[string][]byte{}
		var manifests []ocispec.Descriptor
		for i, arch := range []string{"s390x", "amd64", "arm64", "riscv64"} {
			b[arch] = content(uint64(20+i), 10_000)
			d := reg.Push(t, "lab/index", "", layer{"disk-" + arch + ".img", b[arch]})
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
			manifests = append(manifests, d)
		}
		reg.PushIndex(t, "lab/index", "latest", manifests...)
		added(t, s, at("lab/index:latest"), "disk-"+runtime.GOARCH+".img", b[runtime.GOARCH])
	})
	t.Run("moved tag", func(t *testing.T) {
		old := content(30, 10_000)
		reg.Push(t, "lab/moved", "v1", layer{"moved.img", old})
		s.AddEntry(t, at("lab/moved:v1"), "").Must(t, http.StatusCreated)
		reg.Push(t, "lab/moved", "v1", layer{"moved.img", content(31, 20_000)})
		s.Enqueue(t, downloads, "src", at("lab/moved:v1")).Must(t, http.StatusAccepted)
		if j := s.WaitJob(t, downloads, "moved.img", "completed"); j.SHA256 != sum(old) {
			t.Errorf("the tag was resolved again: %+v, want SHA-256 %s", j, sum(old))
		}
	})
	t.Run("SHA URL is ignored", func(t *testing.T) {
		reg.Push(t, "lab/ignored", "v1", layer{"ignored.img", content(40, 1000)})
		s.AddEntry(t, at("lab/ignored:v1"), "http://127.0.0.1:1/nothing").Must(t, http.StatusCreated)
	})
	t.Run("missing", func(t *testing.T) {
		s.AddEntry(t, at("lab/by-tag:v999"), "").Problem(t, []int{400})
		s.AddEntry(t, at("lab/nothing:v1"), "").Problem(t, []int{400})
		s.AddEntry(t, at("lab/by-tag@sha256:"+sum(nil)), "").Problem(t, []int{400})
	})
}

func TestOrasCredentials(t *testing.T) {
	t.Parallel()
	b := content(1, 200_000)
	start := func(t *testing.T, auth map[string]string) (*Server, *registry) {
		t.Helper()
		reg := newRegistry(t, "127.0.0.1:0")
		reg.Push(t, "lab/disk", "v1", layer{"disk.img", b})
		home := t.TempDir()
		if auth != nil {
			auths := map[string]any{}
			for user, pass := range auth {
				auths[reg.Host] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + pass))}
			}
			config, err := json.Marshal(map[string]any{"auths": auths})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(home, ".docker"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), config, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return Start(t, Options{Home: home}), reg
	}
	t.Run("token for anybody", func(t *testing.T) {
		t.Parallel()
		s, reg := start(t, nil)
		reg.Guard(false, "", "")
		added(t, s, "oras://"+reg.Host+"/lab/disk:v1", "disk.img", b)
		if reg.AnonymousTokens() == 0 {
			t.Error("no token was asked for")
		}
	})
	t.Run("private", func(t *testing.T) {
		t.Parallel()
		s, reg := start(t, map[string]string{"puller": "pass:word"})
		reg.Guard(true, "puller", "pass:word")
		added(t, s, "oras://"+reg.Host+"/lab/disk:v1", "disk.img", b)
		if reg.AnonymousTokens() != 0 {
			t.Error("a token was given without credentials")
		}
	})
	t.Run("private, none given", func(t *testing.T) {
		t.Parallel()
		s, reg := start(t, nil)
		reg.Guard(true, "puller", "password")
		s.AddEntry(t, "oras://"+reg.Host+"/lab/disk:v1", "").Problem(t, []int{400})
	})
	t.Run("bad ones on a public image", func(t *testing.T) {
		t.Parallel()
		s, reg := start(t, map[string]string{"left": "the company"})
		reg.Guard(false, "puller", "password")
		added(t, s, "oras://"+reg.Host+"/lab/disk:v1", "disk.img", b)
	})
}
