package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A cacheEntry is an entry as clients of withcache read it.
type cacheEntry struct {
	Name        string `json:"name"`
	Src         string `json:"src"`
	ResolvedSrc string `json:"resolved_src"`
	Format      string `json:"format"`
	Arch        string `json:"arch"`
	SHA256      string `json:"sha256"`
	SizeBytes   int64  `json:"size_bytes"`
	Description string `json:"description"`
	NetbootRef  string `json:"netboot_ref"`
}

// cache returns the entries by their names.
func (s *Server) cache(t testing.TB) map[string]cacheEntry {
	t.Helper()
	var c struct {
		LastError *string      `json:"last_error"`
		Entries   []cacheEntry `json:"entries"`
	}
	s.get(t, "/withcache/catalog", anonymous).Must(t, 200).JSON(t, &c)
	byName := map[string]cacheEntry{}
	for _, e := range c.Entries {
		byName[e.Name] = e
	}
	if len(byName) != len(c.Entries) || c.Entries == nil || c.LastError != nil {
		t.Errorf("%+v", c)
	}
	return byName
}

// cachedAt returns the path by which clients of withcache ask for the bytes of a URL.
func cachedAt(src string) string {
	name := "download"
	if u, err := url.Parse(src); err == nil {
		name = filepath.Base(u.Path)
	}
	return "/withcache/b/" + base64.RawURLEncoding.EncodeToString([]byte(src)) + "/" + url.PathEscape(name)
}

// Images are listed with a URL by which their bytes are served, whatever host name it has.
func TestWithcacheBytes(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s := Start(t, Options{})
	if got := s.cache(t); len(got) != 0 {
		t.Errorf("an empty catalog: %+v", got)
	}
	data, remote := content(1, 300_000), content(2, 200_000)
	const name = "lab disk+1 ü.img"
	s.Put(t, name, data)
	src := p.File("/remote.img", remote)
	s.AddEntry(t, src, "").Must(t, 201)
	if _, ok := s.cache(t)["remote.img"]; ok {
		t.Error("an entry that is not fetched is listed")
	}
	s.get(t, cachedAt(src), anonymous).Problem(t, []int{404})
	s.Fetch(t, "remote.img")

	entries := s.cache(t)
	own := entries[name]
	if own.SHA256 != sum(data) || own.SizeBytes != int64(len(data)) || own.Format != "img" || !strings.HasPrefix(own.Src, s.Pages+"/images/") {
		t.Errorf("%+v", own)
	}
	if e := entries["remote.img"]; e.Src != src || e.SHA256 != sum(remote) || len(entries) != 2 {
		t.Errorf("%+v", entries)
	}
	if got := s.get(t, strings.TrimPrefix(own.Src, s.Pages), anonymous).Must(t, 200); string(got.Body) != string(data) {
		t.Errorf("src: %v", got)
	}
	port := s.Pages[strings.LastIndexByte(s.Pages, ':'):]
	elsewhere := strings.Replace(own.Src, s.Pages, "http://cache.lab.example:8081", 1)
	for _, by := range []struct {
		src  string
		want []byte
	}{
		{own.Src, data},
		{elsewhere, data},
		{strings.Replace(own.Src, "http://", "https://", 1), data},
		{s.Pages + "/images/" + url.PathEscape(name), data},
		{"http://pi/images/" + sum(data) + "/x.img", data},
		{"http://pi/images/" + sum(remote), remote},
		{src, remote},
		{strings.ToUpper(src[:4]) + src[4:], remote},
		{"https://registry.example/v2/lab/os/blobs/sha256:" + sum(remote), remote},
	} {
		for _, path := range []string{cachedAt(by.src), "/withcache/blob?url=" + url.QueryEscape(by.src)} {
			got := s.get(t, path, anonymous).Must(t, 200)
			if string(got.Body) != string(by.want) || got.Header.Get("X-Withcache-Sha256") != sum(by.want) {
				t.Errorf("%s: %v", by.src, got)
			}
		}
		head := s.Do(t, http.MethodHead, cachedAt(by.src), nil, anonymous).Must(t, 200)
		if head.Header.Get("Content-Length") != fmt.Sprint(len(by.want)) || head.Header.Get("X-Withcache-Sha256") != sum(by.want) {
			t.Errorf("HEAD %s: %v", by.src, head.Header)
		}
	}
	// Another server's file of the same name is another image.
	s.get(t, cachedAt("http://other.example"+port+"/images/"+url.PathEscape(name)), anonymous).Problem(t, []int{404})

	part := s.get(t, cachedAt(src), anonymous, header("Range", "bytes=100-199")).Must(t, 206)
	if string(part.Body) != string(remote[100:200]) {
		t.Errorf("a range: %v", part)
	}
	s.get(t, cachedAt(src), anonymous, header("If-None-Match", part.Header.Get("ETag"))).Must(t, 304)
	s.get(t, cachedAt(src), anonymous, header("If-Match", `"other"`)).Problem(t, []int{412})
	if r := s.get(t, "/withcache/catalog", anonymous); s.get(t, "/withcache/catalog", anonymous, header("If-None-Match", r.Header.Get("ETag"))).Status != 304 {
		t.Error("the catalog is not conditional")
	}

	// curl resumes and names the file as the client of withcache expects it.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "remote.img"), remote[:50_000], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, ok := runIn(t, dir, "curl", "-fsSO", "-C", "-", s.Pages+cachedAt(src)); !ok {
		t.Errorf("curl: %s", out)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "remote.img")); string(got) != string(remote) {
		t.Errorf("curl wrote %d bytes, or wrong ones", len(got))
	}

	// A replaced image has its URL still.
	data = content(3, 100_000)
	s.Put(t, name, data)
	if got := s.get(t, cachedAt(own.Src), anonymous).Must(t, 200); string(got.Body) != string(data) || got.Header.Get("X-Withcache-Sha256") != sum(data) {
		t.Errorf("after it was replaced: %v", got)
	}
}

// A request for bytes that are not here is noted once, and fetches nothing.
func TestWithcacheMisses(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s := Start(t, Options{})
	src := p.File("/wanted.img", content(1, 1000))
	missed := func() []event { return s.Events(t, url.Values{"kind": {"image.missed"}, "limit": {"500"}}) }
	for range 3 {
		s.get(t, cachedAt(src), anonymous).Problem(t, []int{404})
		s.Do(t, http.MethodHead, cachedAt(src), nil, anonymous).Must(t, 404)
	}
	if got := missed(); len(got) != 1 || got[0].SubjectID != src || got[0].Actor != "client" || got[0].SourceIP != "127.0.0.1" {
		t.Errorf("%+v", got)
	}
	for _, bad := range []string{"b/%20%20/x", "b/!!/x", "b/", "blob", "blob?url="} {
		s.get(t, "/withcache/"+bad, anonymous).Problem(t, []int{400, 404})
	}
	for _, strange := range []string{"file:///etc/passwd", "x", "http://", "https://h.example/x.exe", "http://h.example/" + strings.Repeat("x", 3000) + ".img", "\x00\xff", "javascript:alert(1)", "http://u:secret@h.example/x.img"} {
		s.get(t, cachedAt(strange), anonymous).Problem(t, []int{404})
	}
	if got := missed(); len(got) != 1 {
		t.Errorf("%+v", got)
	}
	for i := range 300 {
		if status := s.from(t, fmt.Sprintf("127.0.1.%d", 1+i%15), http.MethodGet, cachedAt(fmt.Sprintf("https://h.example/%d.img", i)), nil, anonymous); status != 404 {
			t.Fatalf("status %d", status)
		}
	}
	if n := len(missed()); n < 20 || n > 100 {
		t.Errorf("%d events of 300 URLs", n)
	}
	if n := p.Hits(http.MethodGet, "/wanted.img") + p.Hits(http.MethodHead, "/wanted.img"); n != 0 || len(s.Rows(t)) != 0 {
		t.Errorf("the publisher was asked %d times, the catalog has %d images", n, len(s.Rows(t)))
	}
}

// Entries are added, downloaded and deleted by names, as clients of withcache do it.
func TestWithcacheEntries(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s := Start(t, Options{})
	const route = "/withcache/catalog/entries"
	post := func(v any, mods ...mod) *Reply { t.Helper(); return s.DoJSON(t, http.MethodPost, route, v, mods...) }
	download := func(name, query string) *Reply {
		t.Helper()
		return s.Do(t, http.MethodPost, route+"/"+url.PathEscape(name)+"/download"+query, nil)
	}
	remove := func(name string) *Reply {
		t.Helper()
		return s.Do(t, http.MethodDelete, route+"?name="+url.QueryEscape(name), nil)
	}
	const title = "nosi debian/13 (x86_64, latest)"
	data := content(1, 200_000)
	src := p.File("/latest", data)
	full := map[string]any{
		"name": title, "src": src, "format": "img", "arch": "x86_64", "description": "Debian 13 without a desktop", "netboot_ref": "debian netboot",
		"resolved_src": "https://registry.example/v2/x/blobs/sha256:" + sum(data), "sha256": sum(data), "size_bytes": len(data),
	}
	post(full, anonymous).Problem(t, []int{401})
	var got map[string]any
	post(full).Must(t, 201).JSON(t, &got)
	for key, want := range full {
		if fmt.Sprint(got[key]) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", key, got[key], want)
		}
	}
	post(full).Problem(t, []int{409})
	post(map[string]any{"name": title, "src": p.File("/other.img", data)}).Problem(t, []int{409})
	post(map[string]any{"name": "another", "src": src, "format": "img"}).Problem(t, []int{409})
	for _, bad := range []any{
		map[string]any{"name": "x", "src": src, "notes": "typo"},
		map[string]any{"src": src},
		map[string]any{"name": " ", "src": src},
		map[string]any{"name": "x"},
		map[string]any{"name": "x", "src": ""},
		map[string]any{"name": 1, "src": src},
		map[string]any{"name": "x", "src": p.URL + "/y.img", "size_bytes": -1},
		map[string]any{"name": "x", "src": p.URL + "/y.img", "size_bytes": "1"},
		map[string]any{"name": "x", "src": p.URL + "/missing.img"},
		map[string]any{"name": "x", "src": src + "2", "format": "exe"},
		map[string]any{"name": "x.img", "src": src + "2", "format": "iso"},
		map[string]any{"name": "a\u202eb", "src": src, "format": "img"},
		map[string]any{"name": "x", "src": p.URL + "/y.img", "description": strings.Repeat("x", 5000)},
		map[string]any{"name": "x", "src": "http://169.254.169.254/x.img"},
	} {
		if r := post(bad).Problem(t, []int{400, 409}); r.Detail == "" {
			t.Errorf("%v: %+v", bad, r)
		}
	}
	post([]int{1}).Problem(t, []int{422})
	if _, ok := s.cache(t)[title]; ok || len(s.Rows(t)) != 1 {
		t.Errorf("before the download: %+v", s.Rows(t))
	}
	var job struct{ Name, Src, Status string }
	download(title, "").Must(t, 202).JSON(t, &job)
	if job.Name != title || job.Src != src || job.Status != "queued" && job.Status != "running" && job.Status != "completed" {
		t.Errorf("%+v", job)
	}
	ready := func(name, want string) cacheEntry {
		t.Helper()
		var e cacheEntry
		eventually(t, within, name+" is in the catalog", func() error {
			if e = s.cache(t)[name]; e.SHA256 != want {
				return fmt.Errorf("%+v", s.cache(t))
			}
			return nil
		})
		return e
	}
	e := ready(title, sum(data))
	if e.Src != src || e.Format != "img" || e.Arch != "x86_64" || e.Description != full["description"] || e.NetbootRef != "debian netboot" || e.ResolvedSrc != full["resolved_src"] || e.SizeBytes != int64(len(data)) {
		t.Errorf("%+v", e)
	}
	if r := s.get(t, cachedAt(src), anonymous).Must(t, 200); string(r.Body) != string(data) || !strings.Contains(r.Header.Get("Content-Disposition"), "(x86_64, latest).img") {
		t.Errorf("%v", r)
	}
	s.get(t, cachedAt(e.ResolvedSrc), anonymous).Must(t, 200)
	download(title, "").Must(t, 202).JSON(t, &job)
	if job.Status != "completed" {
		t.Errorf("again: %+v", job)
	}
	download("none", "").Problem(t, []int{404})

	// Without a format, the source says it. Forced, the bytes of the source now are fetched.
	rolling := p.File("/rolling.img", content(2, 1000))
	post(map[string]any{"name": "rolling", "src": rolling, "arch": "sparc"}).Must(t, 201)
	download("rolling", "").Must(t, 202)
	if e := ready("rolling", sum(content(2, 1000))); e.Arch != "" || e.Format != "img" {
		t.Errorf("%+v", e)
	}
	p.File("/rolling.img", content(3, 2000))
	download("rolling", "?force=1").Must(t, 202).JSON(t, &job)
	ready("rolling", sum(content(3, 2000)))
	download("rolling", "?force=1").Must(t, 202) // of the same bytes
	ready("rolling", sum(content(3, 2000)))

	machine := header("Authorization", "Bearer "+s.token(t, "machine", "upload"))
	if r := s.Do(t, http.MethodPost, route+"/rolling/download?force=1", nil, anonymous, machine); r.Status != 403 || s.cache(t)["rolling"].SHA256 == "" {
		t.Errorf("a token that may not drop bytes has them dropped: %v", r)
	}
	s.Do(t, http.MethodPost, route+"/rolling/download", nil, anonymous, machine).Must(t, 202)

	// Only entries are deleted.
	s.Put(t, "own.img", content(4, 1000))
	download("own.img", "").Must(t, 202).JSON(t, &job)
	if job.Status != "completed" || job.Src != s.cache(t)["own.img"].Src {
		t.Errorf("%+v", job)
	}
	remove("own.img").Problem(t, []int{409})
	s.putManifest(t, manifestOf(manifestImage{Name: "listed.img", Src: p.File("/listed.img", content(5, 1000))})).Must(t, accepted...)
	download("listed", "").Must(t, 202)
	ready("listed.img", sum(content(5, 1000)))
	download("listed.img", "?force=true").Must(t, 202)
	ready("listed.img", sum(content(5, 1000)))
	remove("listed.img").Problem(t, []int{409})
	s.Do(t, http.MethodDelete, route, nil).Problem(t, []int{400})
	s.Do(t, http.MethodDelete, route+"?name=rolling", nil, anonymous).Problem(t, []int{401})
	remove("rolling").Must(t, 204)
	remove("rolling").Problem(t, []int{404})
	if _, ok := s.cache(t)["rolling"]; ok {
		t.Error("it is still listed")
	}
	s.get(t, cachedAt(rolling), anonymous).Problem(t, []int{404})

	// What survives a restart is all.
	listed := func() string { return strings.ReplaceAll(fmt.Sprint(s.cache(t)), s.Pages, "http://pi") }
	before := listed()
	s.Kill(t)
	s.start(t)
	eventually(t, within, "the catalog is as before the kill", func() error {
		if after := listed(); after != before {
			return fmt.Errorf("%s, before %s", after, before)
		}
		return nil
	})

	// One click on a miss fetches the image.
	wanted := p.File("/wanted.img", content(6, 1000))
	s.get(t, cachedAt(wanted), anonymous).Problem(t, []int{404})
	session := s.Login(t, password)
	page := s.get(t, "/ui/events?kind=image.missed", withCookie(session), anonymous).Must(t, 200)
	if !strings.Contains(string(page.Body), `action="/withcache/misses"`) || !strings.Contains(string(page.Body), `value="`+wanted+`"`) {
		t.Errorf("%s", page.Body)
	}
	form := url.Values{"src": {wanted}}.Encode()
	s.Do(t, http.MethodPost, "/withcache/misses", strings.NewReader(form), withCookie(session), anonymous, header("Content-Type", "application/x-www-form-urlencoded"), header("Accept", "text/html")).Must(t, 303)
	ready("wanted.img", sum(content(6, 1000)))
}

// A manifest that a publisher wrote for withcache and bty is taken unchanged.
func TestWithcacheManifest(t *testing.T) {
	t.Parallel()
	p := publish(t)
	s := Start(t, Options{})
	m := newMaker(t)
	disk, bundle := m.make("gzip -1 -c raw >x"), m.make("tar -czf x raw")
	src, bundled := p.File("/latest", disk), p.File("/netboot", bundle)
	const title, boot = "nosi debian-13-headless (x86_64, latest)", "nosi debian-13 netboot"
	var put struct {
		Images   int
		Warnings []string
	}
	s.putManifest(t, fmt.Sprintf(`version = 1

# nosi image catalog, bty-compatible (schema v1).

[[images]]
name = %q
src = %q
format = "img.gz"
arch = "x86_64"
description = "Debian 13 \"headless\""
netboot_ref = %q
variant = "headless"

[[images]]
name = %q
src = %q
format = "tar.gz"
`, title, src, boot, boot, bundled)).Must(t, accepted...).JSON(t, &put)
	if put.Images != 2 || len(put.Warnings) != 2 || !strings.Contains(put.Warnings[0], `unknown key "variant"`) || !strings.Contains(put.Warnings[1], "tar.gz") {
		t.Errorf("%+v", put)
	}
	for _, name := range []string{title, boot} {
		s.Do(t, http.MethodPost, "/withcache/catalog/entries/"+url.PathEscape(name)+"/download", nil).Must(t, 202)
	}
	eventually(t, within, "both are fetched", func() error {
		if got := s.cache(t); len(got) != 2 {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	got := s.cache(t)
	if e := got[title]; e.Src != src || e.Format != "img.gz" || e.Arch != "x86_64" || e.NetbootRef != boot || e.Description != `Debian 13 "headless"` || e.SHA256 != sum(disk) {
		t.Errorf("%+v", e)
	}
	if e := got[boot]; e.Src != bundled || e.Format != "tar.gz" || e.SHA256 != sum(bundle) {
		t.Errorf("%+v", e)
	}
	if r := s.get(t, cachedAt(bundled), anonymous).Must(t, 200); string(r.Body) != string(bundle) {
		t.Errorf("%v", r)
	}

	// What is no disk image is in the catalog, and in nothing that is for flashing.
	row := s.WaitRow(t, boot+".tar.gz", "inspected", nil)
	if row.Format != "tar.gz" || len(row.Warnings) == 0 {
		t.Errorf("%+v", row)
	}
	for _, path := range []string{"/images", "/images/SHA256SUMS", "/raw/SHA256SUMS", "/os_list.json", "/boot.ipxe"} {
		if r := s.get(t, path, anonymous).Must(t, 200); strings.Contains(string(r.Body), "netboot") && !strings.Contains(path, "os_list") || strings.Contains(string(r.Body), sum(bundle)) {
			t.Errorf("%s: %s", path, r.Body)
		}
	}
	session := s.Login(t, password)
	page := string(s.get(t, "/ui/images", withCookie(session), anonymous).Must(t, 200).Body)
	if strings.Contains(page, "Flash "+boot) || !strings.Contains(page, "Download "+boot) || !strings.Contains(page, "Flash "+title) || !strings.Contains(page, "variant") {
		t.Errorf("%s", page)
	}
	if page := string(s.get(t, "/ui/images/"+sum(bundle), withCookie(session), anonymous).Must(t, 200).Body); strings.Contains(page, "flash.sh") || !strings.Contains(page, "no format of disk images") {
		t.Errorf("%s", page)
	}
	// Another imageroot takes the catalog.
	exported := string(s.get(t, "/catalog.toml", anonymous).Must(t, 200).Body)
	other := Start(t, Options{})
	other.putManifest(t, exported).Must(t, accepted...)
	if r, ok := other.Row(t, title+".img.gz"); !ok || len(other.Rows(t)) != 2 {
		t.Errorf("%+v of %s", r, exported)
	}
}

// A manifest that is subscribed to by URL is in force, and follows its publisher.
func TestSubscription(t *testing.T) {
	t.Parallel()
	p := publish(t)
	first := manifestOf(manifestImage{Name: "first.img", Src: p.At("/first.img")})
	at := p.File("/lab/catalog.toml", []byte(first))
	s := Start(t, Options{Env: []string{"IMAGEROOT_MANIFEST_URL=" + at}})
	s.WaitRow(t, "first.img", "of the subscription", nil)
	e := s.WaitEvent(t, "catalog.manifest.replaced", "catalog.toml")
	if e.Actor != "system" || !strings.Contains(e.Summary, at) {
		t.Errorf("%+v", e)
	}
	s.putManifest(t, "version = 1\n").Problem(t, []int{409})
	s.Do(t, http.MethodDelete, "/catalog.toml", nil).Problem(t, []int{409})
	subscription := func() (c struct {
		URL       string  `json:"url"`
		FetchedAt *string `json:"fetched_at"`
		LastError *string `json:"last_error"`
	},
	) {
		s.get(t, "/withcache/catalog", anonymous).Must(t, 200).JSON(t, &c)
		return c
	}
	if c := subscription(); c.URL != at || c.FetchedAt == nil || c.LastError != nil {
		t.Errorf("%+v", c)
	}
	// What has an error, or is not there, leaves it in force.
	for _, bad := range []string{"version = 2\n", "<html>", strings.Repeat("#", 2<<20)} {
		p.File("/lab/catalog.toml", []byte(bad))
		s.Restart(t)
		s.WaitRow(t, "first.img", "still in force", nil)
		eventually(t, within, "clients, operators and the log are told", func() error {
			c, page := subscription(), s.get(t, "/catalog").Must(t, 200)
			if c.FetchedAt == nil || c.LastError == nil || !strings.Contains(string(page.Body), "not in force") || !strings.Contains(s.Log(), "not in force") {
				return fmt.Errorf("%+v; %v; %s", c, page, s.Log())
			}
			return nil
		})
	}
	p.File("/lab/catalog.toml", []byte(manifestOf(manifestImage{Name: "second.img", Src: p.At("/second.img")})))
	s.Restart(t)
	s.WaitRow(t, "second.img", "of the new manifest", nil)
	s.WaitGone(t, "first.img")
	if c := subscription(); c.LastError != nil {
		t.Errorf("%s", *c.LastError)
	}
}
