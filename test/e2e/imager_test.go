package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"imageroot/test/need"
)

// An imagerList is what GET /os_list.json answers.
type imagerList struct {
	Systems []struct {
		Name           string   `json:"name"`
		Description    string   `json:"description"`
		Icon           string   `json:"icon"`
		URL            string   `json:"url"`
		ExtractSize    int64    `json:"extract_size"`
		ExtractSHA256  string   `json:"extract_sha256"`
		DownloadSize   int64    `json:"image_download_size"`
		DownloadSHA256 string   `json:"image_download_sha256"`
		ReleaseDate    string   `json:"release_date"`
		Devices        []string `json:"devices"`
		InitFormat     string   `json:"init_format"`
		Website        string   `json:"website"`
	} `json:"os_list"`
}

// startImager returns a server with an image of each kind, whose disks are the file raw,
// and the list of Raspberry Pi Imager.
func startImager(t testing.TB) (*Server, *maker, imagerList) {
	t.Helper()
	s, m := Start(t, Options{}), newMaker(t)
	for name, pack := range map[string]string{
		"plain.img": "cp raw x", "a.img.gz": "gzip -c raw >x", "b.img.xz": "xz -c raw >x", "c.img.bz2": "bzip2 -c raw >x",
		"d.img.zst": "zstd -qc raw >x", "e.qcow2": "qemu-img convert -O qcow2 raw x", "gzip.raw": "gzip -1c raw >x", "f.vmdk": "qemu-img convert -O vmdk raw x", "g.zip": "cp raw a.img; zip -q y a.img; mv y.zip x",
	} {
		s.Put(t, name, m.make(pack))
		s.WaitRow(t, name, "checked", func(r row) bool { return r.RawSHA256 != "" })
	}
	s.Put(t, "notes.img", []byte("<html><title>Not found</title>"))
	var list imagerList
	s.get(t, "/os_list.json").Must(t, http.StatusOK).JSON(t, &list)
	return s, m, list
}

// TestImager validates the list with the constraints of Imager's schema. Each download has
// the announced size and digest, and each image without a known disk is left out.
func TestImager(t *testing.T) {
	t.Parallel()
	need.Programs(t, "jsonschema", "zstd", "xz", "bzip2", "qemu-img")
	schema, err := filepath.Abs("testdata/imager.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	s, m, list := startImager(t)
	if len(list.Systems) != 9 {
		t.Fatalf("%d images, want 9: %+v", len(list.Systems), list)
	}
	raw := sum(m.make("cp raw x"))
	for _, e := range list.Systems {
		body := s.Do(t, http.MethodGet, e.URL[len(s.Pages):], nil).Must(t, http.StatusOK).Body
		if int64(len(body)) != e.DownloadSize || sum(body) != e.DownloadSHA256 {
			t.Errorf("%s: the download has %d bytes, SHA-256 %s; want %+v", e.Name, len(body), sum(body), e)
		}
		if e.ExtractSHA256 != raw || e.ExtractSize != 8<<20 || e.Icon == "" || e.Description == "" || len(e.ReleaseDate) != 10 {
			t.Errorf("the entry %+v", e)
		}
	}

	row, _ := s.Row(t, "a.img.gz")
	s.describe(t, row.SHA256, map[string]any{
		"title": "The \"lab\" </script> system", "description": "For all.", "devices": []string{"pi5-64bit"}, "init_format": "cloudinit",
		"release_date": "2026-01-02", "icon": "https://lab.example/icon.png", "home_page": "https://lab.example/",
	}).Must(t, http.StatusOK)
	text := s.get(t, "/os_list.json").Must(t, http.StatusOK).Body
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	described := false
	for _, e := range list.Systems {
		if e.Name == "The \"lab\" </script> system" {
			described = e.Description == "For all." && len(e.Devices) == 1 && e.Devices[0] == "pi5-64bit" && e.InitFormat == "cloudinit" &&
				e.ReleaseDate == "2026-01-02" && e.Icon == "https://lab.example/icon.png" && e.Website == "https://lab.example/"
		}
	}
	if !described {
		t.Errorf("the metadata are not in %s", text)
	}
	validate := func(list []byte) error {
		if err := os.WriteFile(m.path("list.json"), list, 0o600); err != nil {
			t.Fatal(err)
		}
		return sh(t, m.dir, "jsonschema -i list.json '"+schema+"'")
	}
	if err := validate(text); err != nil {
		t.Error(err)
	}
	if err := validate([]byte(`{"os_list":[{"name":"x"}]}`)); err == nil {
		t.Error("the schema accepts an entry with a name alone")
	}
	r := s.get(t, "/os_list.json")
	s.get(t, "/os_list.json", header("If-None-Match", r.Header.Get("ETag"))).Must(t, http.StatusNotModified)
}

// TestDeepImager writes each image of the list with the library of balenaEtcher. It gets
// compressed ones as files: over HTTP the library stops in the middle of them. Its decoder
// of bzip2 is not in the npm registry.
func TestDeepImager(t *testing.T) {
	need.Programs(t, "node", "curl")
	etcher, err := filepath.Abs("../../tools/bin/etcher/write.js")
	if err != nil {
		t.Fatal(err)
	}
	_, m, list := startImager(t)
	for _, e := range list.Systems {
		if e.Name == "c.img.bz2" {
			continue
		}
		script := "rm -f written; from='" + e.URL + "'; case $from in *.img | *.raw) ;; *) curl -sSfO \"$from\"; from=${from##*/};; esac; " +
			"timeout 100 node '" + etcher + "' \"$from\" written && cmp written raw"
		if err := sh(t, m.dir, script); err != nil {
			t.Errorf("%s: %.2000v", e.Name, err)
		}
	}
}
