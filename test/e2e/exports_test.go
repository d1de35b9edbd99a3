package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
)

// A namedExport is an export as clients of nbdmux read it.
type namedExport struct {
	Name      string  `json:"name"`
	SrcURL    string  `json:"src_url"`
	File      *string `json:"file"`
	ReadOnly  bool    `json:"readonly"`
	Status    string  `json:"status"`
	Error     *string `json:"error"`
	SizeBytes *int64  `json:"size_bytes"`
	NBDPort   *int    `json:"nbd_port"`
}

const exportsRoute = "/nbdmux/exports"

func (s *Server) addExport(t testing.TB, name, src string, more ...any) *Reply {
	t.Helper()
	body := map[string]any{"name": name, "src_url": src}
	for i := 0; i < len(more); i += 2 {
		body[more[i].(string)] = more[i+1]
	}
	return s.DoJSON(t, http.MethodPost, exportsRoute, body)
}

func (s *Server) export(t testing.TB, name string) (x namedExport, ok bool) {
	t.Helper()
	var all []namedExport
	s.get(t, exportsRoute, anonymous).Must(t, 200).JSON(t, &all)
	for _, x := range all {
		if x.Name == name {
			return x, true
		}
	}
	return x, false
}

func (s *Server) waitExport(t testing.TB, name, status string) (x namedExport) {
	t.Helper()
	eventually(t, within, "the export "+name+" is "+status, func() error {
		if x, _ = s.export(t, name); x.Status != status {
			return fmt.Errorf("%+v", x)
		}
		return nil
	})
	return x
}

// refusedExport checks an error as clients of nbdmux read it.
func refusedExport(t testing.TB, r *Reply, status int, words ...string) {
	t.Helper()
	var e map[string]string
	r.Must(t, status).JSON(t, &e)
	for _, word := range words {
		if !strings.Contains(e["error"], word) {
			t.Errorf("%v does not say %q", r, word)
		}
	}
	if len(e) != 1 || e["error"] == "" {
		t.Errorf("%v", r)
	}
}

// TestExports adds an export of a compressed image that is not here, and reads it as
// programs do. It survives a kill at any time.
func TestExports(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s, exports := nbdServer(t, Options{})
	m := newMaker(t)
	src := p.File("/a.img.gz", m.make("gzip -1 -c raw >x"))
	copied := func(name string) {
		t.Helper()
		if err := sh(t, m.dir, "nbdcopy '"+exports+name+"' disk; cmp disk raw; rm disk"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var x namedExport
	s.addExport(t, "lab-disk", src).Must(t, 200).JSON(t, &x)
	if x.Name != "lab-disk" || x.SrcURL != src || !x.ReadOnly || x.Error != nil || x.NBDPort == nil || !strings.Contains(exports, fmt.Sprint(*x.NBDPort)) {
		t.Errorf("%+v", x)
	}
	x = s.waitExport(t, "lab-disk", "ready")
	if x.File == nil || *x.File != "a.img.gz" || x.SizeBytes == nil || *x.SizeBytes != 8<<20 {
		t.Errorf("ready: %+v", x)
	}
	copied("lab-disk")
	if list, _ := runIn(t, m.dir, "nbdinfo", "--list", exports); !strings.Contains(list, `export="lab-disk"`) || !strings.Contains(list, `export="a.img.gz"`) {
		t.Errorf("listed: %s", list)
	}

	// Adding the export again changes nothing, and another export of the image fetches nothing.
	s.addExport(t, "lab-disk", src).Must(t, 200).JSON(t, &x)
	if x.Status != "ready" {
		t.Errorf("added again: %+v", x)
	}
	gets := p.Hits(http.MethodGet, "/a.img.gz")
	s.addExport(t, "other", src, "readonly", false).Must(t, 200)
	s.waitExport(t, "other", "ready")
	if got := p.Hits(http.MethodGet, "/a.img.gz"); got != gets {
		t.Errorf("a second name for the same image: %d requests to the publisher, %d before", got, gets)
	}
	// It can be written to, each client for itself; the first one cannot.
	if out, ok := runIn(t, m.dir, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", exports+"other"); !ok || strings.Contains(out, "failed") {
		t.Errorf("a write: %s", out)
	}
	if out, _ := runIn(t, m.dir, "qemu-io", "-f", "raw", "-c", "write 0 4k", exports+"lab-disk"); strings.Contains(out, "wrote ") {
		t.Errorf("a write to what is read-only: %s", out)
	}
	copied("other")
	copied("cow/lab-disk")

	// Exports of images of this server.
	row, _ := s.Row(t, "a.img.gz")
	for i, own := range []string{"/images/" + row.SHA256 + "/a.img.gz", "/images/a.img.gz", "/raw/a.img", "/raw/" + row.SHA256} {
		name := fmt.Sprintf("own-%d", i)
		s.addExport(t, name, s.Pages+own).Must(t, 200).JSON(t, &x)
		if x.Status != "ready" || x.SrcURL != s.Pages+own {
			t.Errorf("%s: %+v", own, x)
		}
		copied(name)
	}
	refusedExport(t, s.addExport(t, "own", s.Pages+"/images/nothing.img"), 400, "no image")
	if len(s.Rows(t)) != 1 {
		t.Errorf("the catalog has %+v", s.Rows(t))
	}

	s.Kill(t)
	s.start(t)
	exports = nbdLine.FindStringSubmatch(s.Stdout())[1] + "/"
	s.waitExport(t, "lab-disk", "ready")
	copied("lab-disk")

	// An export has precedence over an image of its name.
	other := content(1, 1<<20)
	s.Put(t, "lab-disk.img", other)
	s.addExport(t, "lab-disk.img", src).Must(t, 200)
	copied("lab-disk.img")
	s.Do(t, http.MethodDelete, exportsRoute+"/lab-disk.img", nil).Must(t, 204)
	if err := os.WriteFile(m.path("other"), other, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sh(t, m.dir, "nbdcopy '"+exports+"lab-disk.img' disk; cmp disk other; rm disk"); err != nil {
		t.Error(err)
	}

	// The image stays when its exports go, and exports say so when it is gone.
	refusedExport(t, s.Do(t, http.MethodDelete, exportsRoute+"/lab-disk", nil, anonymous), 401)
	s.Do(t, http.MethodDelete, exportsRoute+"/lab-disk", nil).Must(t, 204)
	refusedExport(t, s.Do(t, http.MethodDelete, exportsRoute+"/lab-disk", nil), 404)
	if _, ok := s.export(t, "lab-disk"); ok {
		t.Error("it is still there")
	}
	if r, ok := s.Row(t, "a.img.gz"); !ok || !r.Cached {
		t.Errorf("the image: %+v", r)
	}
	if out, ok := runIn(t, m.dir, "nbdinfo", exports+"lab-disk"); ok {
		t.Errorf("it is still served: %s", out)
	}
	s.Do(t, http.MethodDelete, "/catalog/entries?src="+src, nil).Must(t, 204)
	if x := s.waitExport(t, "other", "failed"); x.Error == nil || !strings.Contains(*x.Error, "no longer") || x.File != nil {
		t.Errorf("without its image: %+v", x)
	}
	s.addExport(t, "other", src).Must(t, 200)
	s.waitExport(t, "other", "ready")
}

// TestExportsKilled kills the server in the middle of a fetch for an export.
func TestExportsKilled(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s, _ := nbdServer(t, Options{})
	m := newMaker(t)
	data := m.make("gzip -1 -c raw >x")
	gone := make(chan struct{}, 1)
	s.addExport(t, "disk", p.Stall("/a.img.gz", data, gone)).Must(t, 200)
	s.waitExport(t, "disk", "fetching")
	s.Kill(t)
	p.File("/a.img.gz", data)
	s.start(t)
	s.waitExport(t, "disk", "ready")
	if err := sh(t, m.dir, "nbdcopy '"+nbdLine.FindStringSubmatch(s.Stdout())[1]+"/disk' disk; cmp disk raw"); err != nil {
		t.Error(err)
	}
}

// TestExportsFail tests what cannot be exported.
func TestExportsFail(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s, _ := nbdServer(t, Options{})
	src := p.File("/a.img", content(1, 100_000))
	for _, name := range []string{"", "../x", "a b", "cow/a.img", "-a", "ä", strings.Repeat("n", 65), "a\n", "a\x00"} {
		refusedExport(t, s.addExport(t, name, src), 400, "name")
	}
	refusedExport(t, s.DoJSON(t, http.MethodPost, exportsRoute, map[string]any{"name": "a"}), 400, "src_url")
	refusedExport(t, s.DoJSON(t, http.MethodPost, exportsRoute, map[string]any{"name": "a", "file": "/etc/passwd"}), 400, "src_url")
	refusedExport(t, s.DoJSON(t, http.MethodPost, exportsRoute, []int{1}), 422)
	refusedExport(t, s.Do(t, http.MethodPut, exportsRoute, nil), 405)
	refusedExport(t, s.Do(t, http.MethodPost, exportsRoute, nil, anonymous), 401)
	for _, bad := range []string{"a.img", "file:///etc/a.img", p.URL + "/"} {
		refusedExport(t, s.addExport(t, "a", bad), 422)
	}
	refusedExport(t, s.addExport(t, "a", p.URL+"/missing.img"), 400, "404")
	refusedExport(t, s.addExport(t, "a", "http://169.254.169.254/a.img"), 400, "169.254")
	if x, ok := s.export(t, "a"); ok {
		t.Errorf("%+v", x)
	}
	// An image that turns out to hold no disk, and one whose source dies.
	s.addExport(t, "text", p.File("/text.img.gz", []byte("this is no gzip"))).Must(t, 200)
	if x := s.waitExport(t, "text", "failed"); x.Error == nil {
		t.Errorf("%+v", x)
	}
	short := content(2, 1<<20)
	s.addExport(t, "short", p.Short("/short.img", short)).Must(t, 200)
	if x := s.waitExport(t, "short", "failed"); x.Error == nil {
		t.Errorf("%+v", x)
	}
	s.addExport(t, "short", p.File("/short.img", short)).Must(t, 200)
	s.waitExport(t, "short", "ready")
	// Another source takes the name.
	s.addExport(t, "short", src).Must(t, 200)
	if x := s.waitExport(t, "short", "ready"); x.SrcURL != src {
		t.Errorf("%+v", x)
	}
	// Without NBD there are no exports to add.
	off := Start(t, Options{})
	refusedExport(t, off.addExport(t, "a", src), 501, "--nbd-listen")
	if got := strings.TrimSpace(string(off.get(t, exportsRoute, anonymous).Must(t, 200).Body)); got != "[]" {
		t.Errorf("no exports: %s", got)
	}
	closed := Start(t, Options{Env: []string{"IMAGEROOT_PUBLIC_READ=false"}})
	refusedExport(t, closed.get(t, exportsRoute, anonymous), 401)
}

// TestExportsAtOnce adds one export by many requests at once.
func TestExportsAtOnce(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s, _ := nbdServer(t, Options{})
	src := p.File("/a.img", content(1, 100_000))
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			body, _ := json.Marshal(map[string]string{"name": "a", "src_url": src})
			r, err := s.try(http.MethodPost, exportsRoute, strings.NewReader(string(body)), header("Content-Type", "application/json"))
			if err != nil || r.Status != 200 {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	clients.Wait()
	s.waitExport(t, "a", "ready")
	if len(s.Rows(t)) != 1 {
		t.Errorf("%+v", s.Rows(t))
	}
}
