package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A fullPage is GET /catalog with the faults of the manifest in force.
type fullPage struct {
	catalogPage
	Warnings []string `json:"warnings"`
	Others   []struct{ Name, Reason string }
}

// catalog requests one page of the catalog.
func (s *Server) catalog(t testing.TB, query url.Values) fullPage {
	t.Helper()
	var p fullPage
	s.get(t, "/catalog?"+query.Encode()).Must(t, http.StatusOK).JSON(t, &p)
	return p
}

func (s *Server) putManifest(t testing.TB, toml string, mods ...mod) *Reply {
	t.Helper()
	return s.Do(t, http.MethodPut, "/catalog.toml", strings.NewReader(toml), mods...)
}

// accepted are the successful statuses of PUT /catalog.toml.
var accepted = []int{http.StatusOK, http.StatusCreated, http.StatusNoContent}

// manifestOf writes a manifest without a TOML library. Empty or negative fields
// are left out.
func manifestOf(images ...manifestImage) string {
	var b strings.Builder
	b.WriteString("version = 1\n")
	for _, m := range images {
		fmt.Fprintf(&b, "\n[[images]]\nname = %s\nsrc = %s\n", tomlString(m.Name), tomlString(m.Src))
		if m.SHA256 != "" {
			fmt.Fprintf(&b, "sha256 = %q\n", m.SHA256)
		}
		if m.Format != "" {
			fmt.Fprintf(&b, "format = %q\n", m.Format)
		}
		if m.SizeBytes != nil {
			fmt.Fprintf(&b, "size_bytes = %d\n", *m.SizeBytes)
		}
	}
	return b.String()
}

// tomlString quotes a string for TOML: as JSON without HTML escapes, which is
// enough for these tests.
func tomlString(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err)
	}
	return strings.TrimSpace(b.String())
}

func allNames(rows []row) []string {
	var names []string
	for _, r := range rows {
		names = append(names, r.Names...)
	}
	return names
}

// hasMembers tests that no member that clients rely on is missing.
// test/contract tests that other members are in docs/openapi.yaml.
func hasMembers(t testing.TB, what string, object json.RawMessage, members ...string) {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		t.Fatalf("%.200s: %v", object, err)
	}
	for _, name := range members {
		if _, ok := m[name]; !ok {
			t.Errorf("%s has no %s: %s", what, name, object)
		}
	}
}

func TestCatalogMerges(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 50_000)
	size := int64(len(b))
	fromManifest := p.File("/m/from-manifest.img", b)
	fromEntry := p.File("/e/from-entry.img", b)

	s.Put(t, "local.img", b)
	s.putManifest(t, manifestOf(manifestImage{Name: "from-manifest.img", Src: fromManifest, SHA256: sum(b), SizeBytes: &size})).Must(t, accepted...)
	// Without a digest it has its own row.
	s.AddEntry(t, fromEntry, "").Must(t, http.StatusCreated)
	alone := s.WaitRow(t, "from-entry.img", "added", nil)
	if alone.SHA256 != "" || alone.Ref != "" || alone.Cached || alone.HashState != "unhashed" || len(s.Rows(t)) != 2 {
		t.Errorf("an entry without a digest: %+v among %+v", alone, s.Rows(t))
	}
	// A fetch shows that it is the same content.
	s.Fetch(t, "from-entry.img")
	s.WaitRow(t, "from-entry.img", "merged", func(r row) bool { return len(r.Sources) == 3 })
	page := s.catalog(t, nil)
	if page.Total != 1 || len(page.Images) != 1 || page.Next != nil {
		t.Fatalf("one content of three sources: %+v", page)
	}
	r := page.Images[0]
	if r.SHA256 != sum(b) || r.Ref != sum(b)[:12] || r.Format != "img" || r.SizeBytes == nil || *r.SizeBytes != size ||
		!r.Cached || r.HashState != "hashed" || len(r.Warnings) != 0 {
		t.Errorf("row %+v", r)
	}
	if got := slices.Sorted(slices.Values(r.Names)); !slices.Equal(got, []string{"from-entry.img", "from-manifest.img", "local.img"}) {
		t.Errorf("names %q", got)
	}
	if !slices.Contains(r.Sources, source{"manifest", fromManifest}) || !slices.Contains(r.Sources, source{"url", fromEntry}) ||
		!slices.ContainsFunc(r.Sources, func(s source) bool { return s.Kind == "local" && strings.HasSuffix(s.Location, "local.img") }) {
		t.Errorf("sources %+v", r.Sources)
	}
	for _, key := range []string{"local.img", "from-manifest.img", "from-entry.img", sum(b)} {
		if got := s.get(t, imageRoute(key), anonymous).Must(t, 200); sum(got.Body) != sum(b) {
			t.Errorf("%s: wrong bytes", key)
		}
	}

	// Sources are removed one by one, and the row with the last one.
	s.Do(t, http.MethodDelete, "/catalog/entries?src="+url.QueryEscape(fromEntry), nil).Must(t, 204)
	s.WaitGone(t, "from-entry.img")
	s.Do(t, http.MethodDelete, "/images/local.img", nil).Must(t, 204)
	s.WaitGone(t, "local.img")
	r = s.WaitRow(t, "from-manifest.img", "still listed", nil)
	if r.SHA256 != sum(b) || !slices.Equal(r.Sources, []source{{"manifest", fromManifest}}) || !slices.Equal(r.Names, []string{"from-manifest.img"}) {
		t.Errorf("what is left: %+v", r)
	}
	s.Do(t, http.MethodDelete, "/catalog.toml", nil).Must(t, 204)
	s.WaitGone(t, "from-manifest.img")
	if page := s.catalog(t, nil); page.Total != 0 || len(page.Images) != 0 {
		t.Errorf("nothing has a source any more: %+v", page)
	}

	t.Run("two local files of one content", func(t *testing.T) {
		b := content(2, 1000)
		s.Put(t, "twin-a.img", b)
		s.Put(t, "twin-b.raw", b)
		r := s.WaitRow(t, "twin-b.raw", "listed", nil)
		if len(r.Names) != 2 || len(r.Sources) != 2 || s.catalog(t, url.Values{"q": {"twin"}}).Total != 1 {
			t.Errorf("row %+v", r)
		}
		s.Do(t, http.MethodDelete, "/images/twin-a.img", nil).Must(t, 204)
		s.WaitGone(t, "twin-a.img")
		if got := s.get(t, "/images/"+sum(b), anonymous).Must(t, 200); sum(got.Body) != sum(b) {
			t.Error("the digest no longer leads to the other file")
		}
	})
	t.Run("one name, two contents", func(t *testing.T) {
		local, remote := content(3, 2000), content(4, 2000)
		s.Put(t, "same.img", local)
		s.putManifest(t, manifestOf(manifestImage{Name: "same.img", Src: p.File("/same.img", remote), SHA256: sum(remote)})).Must(t, accepted...)
		rows := s.catalog(t, url.Values{"q": {"same.img"}}).Images
		if len(rows) != 2 || rows[0].SHA256 == rows[1].SHA256 {
			t.Errorf("rows %+v, want one a content", rows)
		}
		// The name selects the file in the image root.
		if got := s.get(t, "/images/same.img", anonymous).Must(t, 200); sum(got.Body) != sum(local) {
			t.Error("the name does not serve the local file")
		}
	})
}

// TestCatalogShape tests which members clients get, and which of them may be
// null.
func TestCatalogShape(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	topLevel := func() map[string]json.RawMessage {
		var m map[string]json.RawMessage
		res := s.get(t, "/catalog").Must(t, 200)
		res.JSON(t, &m)
		hasMembers(t, "GET /catalog", res.Body, "images", "total", "next", "warnings", "others")
		return m
	}
	if m := topLevel(); string(m["images"]) != "[]" || string(m["total"]) != "0" || string(m["next"]) != "null" {
		t.Errorf("an empty catalog: %s", m)
	}
	if body := strings.TrimSpace(string(s.get(t, "/images", anonymous).Must(t, 200).Body)); body != "[]" {
		t.Errorf("GET /images of an empty catalog: %s", body)
	}

	b := content(1, 1000)
	s.Put(t, "a b\u00fc.img.xz", b)
	unknown := p.Handle("/unsized.img", func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush() // so that no length is known
		_, _ = w.Write(b)
	})
	s.AddEntry(t, unknown, "").Must(t, http.StatusCreated)
	s.putSlow(t, "unhashed.raw")
	s.WaitJob(t, hashes, "unhashed.raw", "running")

	m := topLevel()
	var rows []json.RawMessage
	if err := json.Unmarshal(m["images"], &rows); err != nil || len(rows) != 3 || string(m["total"]) != "3" {
		t.Fatalf("GET /catalog: %s (%v)", m, err)
	}
	for _, r := range rows {
		hasMembers(t, "a row", r, "cached", "content", "format", "hash_state", "names", "raw_sha256", "raw_size_bytes", "ref", "sha256",
			"size_bytes", "sources", "virtual_size_bytes", "warnings")
		var v map[string]json.RawMessage
		_ = json.Unmarshal(r, &v)
		for _, list := range []string{"names", "sources", "warnings"} {
			if !bytes.HasPrefix(v[list], []byte("[")) {
				t.Errorf("%s is %s, want a list", list, v[list])
			}
		}
		hashed := bytes.Contains(v["names"], []byte("xz"))
		if null := string(v["sha256"]) == "null" && string(v["ref"]) == "null"; null == hashed {
			t.Errorf("sha256 %s, ref %s of %s", v["sha256"], v["ref"], v["names"])
		}
		var sources []json.RawMessage
		_ = json.Unmarshal(v["sources"], &sources)
		for _, src := range sources {
			hasMembers(t, "a source", src, "kind", "location")
		}
	}

	var list []json.RawMessage
	s.get(t, "/images", anonymous).Must(t, 200).JSON(t, &list)
	if len(list) != 2 { // the unhashed local file is left out
		t.Fatalf("GET /images: %s", list)
	}
	for _, l := range list {
		hasMembers(t, "GET /images", l, "cached", "format", "name", "raw_url", "ref", "size_bytes", "url")
	}
	size := int64(len(b))
	ref, raw := sum(b)[:12], s.Pages+"/raw/"+sum(b)+"/a%20b%C3%BC.img"
	for _, want := range []listed{
		{"a b\u00fc.img.xz", "img.xz", &size, s.Pages + "/images/" + sum(b) + "/a%20b%C3%BC.img.xz", &ref, true, &raw},
		{"unsized.img", "img", nil, unknown, nil, false, nil},
	} {
		got, ok := s.Listed(t, want.Name)
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		if !ok || !bytes.Equal(g, w) {
			t.Errorf("GET /images:\n got %s\nwant %s", g, w)
		}
	}
	t.Run("the URL is of the host that was asked", func(t *testing.T) {
		var l []listed
		s.get(t, "/images", anonymous, func(r *http.Request) { r.Host = "disks.example:8080" }).Must(t, 200).JSON(t, &l)
		for _, i := range l {
			if i.Cached && !strings.HasPrefix(i.URL, "http://disks.example:8080/images/") {
				t.Errorf("url %q", i.URL)
			}
		}
	})
	s.Cancel(t, hashes, "unhashed.raw")
}

func TestCatalogSearch(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := map[string][]byte{}
	for i, name := range []string{"debian-12.qcow2", "Debian-13.img", "ubuntu 24+04 100%_[x].img", "\u00dcbung.img"} {
		b[name] = content(uint64(i), 1000+i)
		s.Put(t, name, b[name])
	}
	s.AddEntry(t, p.File("/special-place/remote.iso", content(50, 1000)), "").Must(t, http.StatusCreated)
	s.WaitRow(t, "remote.iso", "added", nil)
	debian := sum(b["debian-12.qcow2"])
	for q, want := range map[string][]string{
		"debian":                  {"debian-12.qcow2", "Debian-13.img"},
		"DEBIAN-1":                {"debian-12.qcow2", "Debian-13.img"},
		"12.qcow2":                {"debian-12.qcow2"},
		"24+04":                   {"ubuntu 24+04 100%_[x].img"},
		"100%_[x]":                {"ubuntu 24+04 100%_[x].img"},
		"ubuntu 24":               {"ubuntu 24+04 100%_[x].img"},
		"\u00fcbung":              {"\u00dcbung.img"},
		debian:                    {"debian-12.qcow2"},
		debian[:12]:               {"debian-12.qcow2"},
		strings.ToUpper(debian):   {"debian-12.qcow2"},
		"special-place":           {"remote.iso"},
		p.URL:                     {"remote.iso"},
		"nothing like it":         nil,
		"100_":                    nil, // no wildcards
		".*":                      nil,
		strings.Repeat("a", 1000): nil,
	} {
		page := s.catalog(t, url.Values{"q": {q}})
		got := slices.Sorted(slices.Values(allNames(page.Images)))
		if slices.Sort(want); !slices.Equal(got, want) || page.Total != len(want) || page.Next != nil {
			t.Errorf("q=%s: %q, total %d, want %q", q, got, page.Total, want)
		}
	}
	if page := s.catalog(t, url.Values{"q": {""}}); page.Total != 5 || len(page.Images) != 5 {
		t.Errorf("q=: %d of %d rows", len(page.Images), page.Total)
	}
	var raw map[string]json.RawMessage
	s.get(t, "/catalog?q=nothing+like+it").Must(t, 200).JSON(t, &raw)
	if string(raw["images"]) != "[]" {
		t.Errorf("no match: images is %s", raw["images"])
	}
	page := s.catalog(t, url.Values{"q": {"img"}, "sort": {"-name"}, "limit": {"2"}})
	if page.Total != 3 || len(page.Images) != 2 || page.Next == nil {
		t.Fatalf("two of three: %+v", page)
	}
	rest := s.catalog(t, url.Values{"q": {"img"}, "sort": {"-name"}, "limit": {"2"}, "cursor": {*page.Next}})
	if got := allNames(append(page.Images, rest.Images...)); len(got) != 3 || got[0] == got[2] || rest.Next != nil {
		t.Errorf("pages of a search: %q", got)
	}
}

func TestCatalogSort(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	// Names, sizes and formats that each give another order; two rows have one
	// size.
	sizes := map[string]int64{"b.iso": 10, "a.qcow2": 40, "d.img": 20, "c.raw.xz": 30, "e.img": 20}
	var images []manifestImage
	for name, size := range sizes {
		images = append(images, manifestImage{Name: name, Src: "http://127.0.0.1:1/" + name, SHA256: sum([]byte(name)), SizeBytes: &size})
	}
	images = append(images, manifestImage{Name: "f.img", Src: "http://127.0.0.1:1/f.img"}) // no size, no digest
	s.putManifest(t, manifestOf(images...)).Must(t, accepted...)
	s.WaitRow(t, "f.img", "listed", nil)

	format := func(r row) string { return r.Format }
	name := func(r row) string { return r.Names[0] }
	size := func(r row) string {
		if r.SizeBytes == nil {
			return ""
		}
		return fmt.Sprintf("%020d", *r.SizeBytes)
	}
	for sort, key := range map[string]func(row) string{"name": name, "size": size, "format": format} {
		for _, descending := range []bool{false, true} {
			by := sort
			if descending {
				by = "-" + sort
			}
			whole := s.catalog(t, url.Values{"sort": {by}})
			if whole.Total != 6 || len(whole.Images) != 6 {
				t.Fatalf("sort=%s: %+v", by, whole)
			}
			var keys []string
			for _, r := range whole.Images {
				if k := key(r); k != "" {
					keys = append(keys, k)
				}
			}
			inOrder := slices.Clone(keys)
			if slices.Sort(inOrder); descending {
				slices.Reverse(inOrder)
			}
			if !slices.Equal(keys, inOrder) {
				t.Errorf("sort=%s: %q", by, keys)
			}
			// Page by page, the order is the same.
			var walked []string
			q := url.Values{"sort": {by}, "limit": {"1"}}
			for range 10 {
				p := s.catalog(t, q)
				if p.Total != 6 {
					t.Errorf("sort=%s: total %d, want 6", by, p.Total)
				}
				walked = append(walked, allNames(p.Images)...)
				if p.Next == nil {
					break
				}
				q.Set("cursor", *p.Next)
			}
			if !slices.Equal(walked, allNames(whole.Images)) {
				t.Errorf("sort=%s: %q one by one, %q at once", by, walked, allNames(whole.Images))
			}
		}
	}
	if got, want := allNames(s.catalog(t, nil).Images), allNames(s.catalog(t, url.Values{"sort": {"name"}}).Images); !slices.Equal(got, want) {
		t.Errorf("without a sort: %q, want by name", got)
	}
}

func TestCatalogRefusesQueries(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	s.Put(t, "a.img", content(1, 100))
	for _, query := range []string{
		"sort=nonsense", "sort=--name", "sort=name,size", "sort=-", "sort=names%3B",
		"limit=0", "limit=-1", "limit=many", "limit=1.5", "limit=99999999999999999999",
		"cursor=nonsense", "cursor=%00", "cursor=AAAA", "cursor=%7B%7D", "cursor=" + strings.Repeat("x", 4000),
	} {
		name, _, _ := strings.Cut(query, "=")
		s.get(t, "/catalog?"+query).Problem(t, []int{400}, name)
	}
	s.get(t, "/catalog?sort=nonsense").Problem(t, []int{400}, "name", "size")
	// A limit may be larger than a page.
	if r := s.get(t, "/catalog?limit=1000000"); r.Status != http.StatusOK {
		r.Problem(t, []int{400}, "limit")
	}
}

// rowsOf makes a manifest of rows whose name, size and digest are derived from
// their numbers.
func rowsOf(numbers []int) string {
	images := make([]manifestImage, len(numbers))
	for i, n := range numbers {
		size := int64(1000 + n%7)
		name := fmt.Sprintf("row-%05d.img", n)
		images[i] = manifestImage{Name: name, Src: "http://127.0.0.1:1/" + name, SHA256: sum([]byte(name)), SizeBytes: &size}
	}
	return manifestOf(images...)
}

// TestCatalogCursor pages through many rows while rows are added and removed: a
// row that exists all the time is returned exactly once, and no row twice.
func TestCatalogCursor(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	var odd, all []int
	for n := range 600 {
		if n%2 == 1 {
			odd = append(odd, n)
		}
		all = append(all, n)
	}
	for _, sort := range []string{"", "name", "-name", "size", "-size", "-format"} {
		t.Run("sort="+sort, func(t *testing.T) {
			s.putManifest(t, rowsOf(odd)).Must(t, accepted...)
			seen := map[string]int{}
			q := url.Values{"limit": {"29"}}
			if sort != "" {
				q.Set("sort", sort)
			}
			pages := 0
			for ; pages < 100; pages++ {
				p := s.catalog(t, q)
				if len(p.Images) > 29 {
					t.Fatalf("a page of %d rows, want 29 at most", len(p.Images))
				}
				for _, n := range allNames(p.Images) {
					seen[n]++
				}
				if p.Next == nil {
					break
				}
				q.Set("cursor", *p.Next)
				// Half as many rows more, or twice as many: before and after
				// the cursor.
				numbers := odd
				if pages%2 == 0 {
					numbers = all
				}
				s.putManifest(t, rowsOf(numbers)).Must(t, accepted...)
			}
			if pages < len(odd)/29 || pages == 100 {
				t.Errorf("the walk took %d pages", pages+1)
			}
			for _, n := range all {
				name := fmt.Sprintf("row-%05d.img", n)
				if seen[name] > 1 || n%2 == 1 && seen[name] != 1 {
					t.Errorf("%s came %d times", name, seen[name])
				}
			}
		})
	}
	t.Run("the row of the cursor is gone", func(t *testing.T) {
		s.putManifest(t, rowsOf(all)).Must(t, accepted...)
		p := s.catalog(t, url.Values{"limit": {"10"}})
		s.putManifest(t, rowsOf(all[500:])).Must(t, accepted...)
		p = s.catalog(t, url.Values{"limit": {"10"}, "cursor": {*p.Next}})
		if len(p.Images) != 10 || p.Images[0].Names[0] != "row-00500.img" {
			t.Errorf("after it: %q", allNames(p.Images))
		}
	})
}

var badManifests = map[string]struct {
	toml  string
	words []string
}{
	"not TOML":          {"version = 1\n[[images]\nname = \"a.img\"\n", []string{"line 2"}},
	"HTML":              {"<!DOCTYPE html>\n<title>404</title>\n", []string{"line 1"}},
	"empty":             {"", []string{"version"}},
	"no version":        {"[[images]]\nname = \"a.img\"\nsrc = \"http://127.0.0.1:1/a.img\"\n", []string{"version"}},
	"another version":   {"version = 2\n", []string{"line 1", "version"}},
	"short digest":      {badRow(`sha256 = "abcd"`), []string{"line 8", "64"}},
	"digest of no hex":  {badRow(`sha256 = "` + strings.Repeat("xy", 32) + `"`), []string{"line 8", "sha256"}},
	"negative size":     {badRow(`size_bytes = -1`), []string{"line 8", "size_bytes"}},
	"size in words":     {badRow(`size_bytes = "many"`), []string{"line 8", "size_bytes"}},
	"another format":    {badRow(`format = "iso"`), []string{"line 8", "iso"}},
	"key twice":         {badRow(`name = "c.img"`), []string{"line 8", "name"}},
	"no src":            {"version = 1\n[[images]]\nname = \"a.img\"\n", []string{"line 2", "src"}},
	"no name":           {"version = 1\n[[images]]\nsrc = \"http://127.0.0.1:1/a.img\"\n", []string{"line 2", "name"}},
	"file source":       {badSrc("file:///etc/hostname.img"), []string{"line 4", "file"}},
	"relative source":   {badSrc("a.img"), []string{"line 4"}},
	"source of no host": {badSrc("http:///a.img"), []string{"line 4"}},
	"no suffix":         {badName("readme"), []string{"line 3", ".qcow2"}},
	"name with a slash": {badName("below/a.img"), []string{"line 3"}},
	"hidden name":       {badName(".a.img"), []string{"line 3", "dot"}},
	"one name twice":    {badRow("[[images]]\nname = \"A.IMG\"\nsrc = \"http://127.0.0.1:1/c.img\""), []string{"line 9"}},
	"not UTF-8":         {"version = 1\n# \xff\xfe\n", []string{"UTF-8"}},
}

// badRow is a manifest of two good rows with line added to the second one, as
// line 8.
func badRow(line string) string {
	return "version = 1\n[[images]]\nname = \"a.img\"\nsrc = \"http://127.0.0.1:1/a.img\"\n" +
		"[[images]]\nname = \"b.img\"\nsrc = \"http://127.0.0.1:1/b.img\"\n" + line + "\n"
}

func badSrc(src string) string {
	return fmt.Sprintf("version = 1\n[[images]]\nname = \"a.img\"\nsrc = %q\n", src)
}

func badName(name string) string {
	return fmt.Sprintf("version = 1\n[[images]]\nname = %q\nsrc = \"http://127.0.0.1:1/a.img\"\n", name)
}

func TestManifestRefused(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	good := manifestOf(manifestImage{Name: "good.img", Src: "http://127.0.0.1:1/good.img"})
	s.putManifest(t, good).Must(t, accepted...)
	for name, bad := range badManifests {
		t.Run(name, func(t *testing.T) {
			s.putManifest(t, bad.toml).Problem(t, []int{422}, append(bad.words, "line")...)
			// It is refused whole.
			p := s.catalog(t, nil)
			if !slices.Equal(allNames(p.Images), []string{"good.img"}) || len(p.Warnings) > 0 {
				t.Errorf("the catalog after it: %+v", p)
			}
		})
	}
	t.Run("larger than 1 MiB", func(t *testing.T) {
		s.putManifest(t, good+strings.Repeat("# "+strings.Repeat("x", 100)+"\n", 11_000)).Problem(t, []int{413, 422}, "larger")
	})
	if b, err := s.s3Get(t, "catalog.toml"); err != nil || string(b) != good {
		t.Errorf("the object is not what was put last: %q (%v)", b, err)
	}
	for _, e := range s.Events(t, url.Values{"kind": {"catalog.manifest.replaced"}, "limit": {"100"}}) {
		if e.Actor != "operator" {
			t.Errorf("%+v", e)
		}
	}
}

func TestManifest(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	if m := s.Manifest(t); len(m.Images) != 0 {
		t.Errorf("an empty catalog: %+v", m)
	}
	r := s.Do(t, http.MethodDelete, "/catalog.toml", nil)
	if r.Status != http.StatusNoContent {
		r.Problem(t, []int{404})
	}
	b := content(1, 4000)
	size := int64(len(b))
	s.Put(t, "local.img", b)
	remote := manifestImage{Name: "\u00fc \"quoted\" 'x'.iso", Src: "https://images.example/x.iso?sig=1&y=2", SHA256: sum([]byte("r")), SizeBytes: &size}
	s.putManifest(t, "\ufeff# mine\r\n"+strings.ReplaceAll(manifestOf(remote), "\n", "\r\n")).Must(t, accepted...)

	got := s.get(t, "/catalog.toml", anonymous).Must(t, 200)
	if ct := got.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/toml") && !strings.HasPrefix(ct, "text/plain") {
		t.Errorf("Content-Type is %q", ct)
	}
	want := map[string]manifestImage{
		"local.img": {"local.img", s.Pages + "/images/" + sum(b) + "/local.img", sum(b), "img", &size},
		remote.Name: {remote.Name, remote.Src, remote.SHA256, "iso", &size},
	}
	images := s.Manifest(t).Images
	for _, m := range images {
		g, _ := json.Marshal(m)
		w, _ := json.Marshal(want[m.Name])
		if !bytes.Equal(g, w) {
			t.Errorf("catalog.toml:\n got %s\nwant %s", g, w)
		}
	}
	if len(images) != len(want) {
		t.Errorf("catalog.toml has %d images, want %d:\n%s", len(images), len(want), got.Body)
	}
	s.Do(t, http.MethodDelete, "/catalog.toml", nil).Must(t, http.StatusNoContent)
	s.WaitGone(t, remote.Name)
	if left := s.objects(t, s.ImageBucket, "catalog.toml"); len(left) > 0 {
		t.Errorf("deleted, and still in the bucket: %q", left)
	}
	s.Restart(t)
	if rows := s.Rows(t); len(rows) != 1 {
		t.Errorf("after a restart: %+v", rows)
	}
}

// TestManifestByS3 writes the manifest by S3, which cannot be refused: a bad
// one leaves the last good one in force, and is reported.
func TestManifestByS3(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	one := manifestOf(manifestImage{Name: "one.img", Src: "http://127.0.0.1:1/one.img"})
	two := manifestOf(manifestImage{Name: "two.img", Src: "http://127.0.0.1:1/two.img"})
	inForce := func(what, name string, warned bool) {
		t.Helper()
		eventually(t, within, what, func() error {
			p := s.catalog(t, nil)
			var want []string
			if name != "" {
				want = []string{name}
			}
			if !slices.Equal(allNames(p.Images), want) || (len(p.Warnings) > 0) != warned {
				return fmt.Errorf("names %q, warnings %q", allNames(p.Images), p.Warnings)
			}
			return nil
		})
	}
	bad := func() { t.Helper(); s.s3Put(t, "catalog.toml", []byte(badRow("sha256 = \"x\""))) }

	bad() // before any good one
	inForce("a bad first manifest is told of", "", true)
	s.s3Put(t, "catalog.toml", []byte(one))
	inForce("the first good one", "one.img", false)
	bad()
	inForce("the last good one, with a warning", "one.img", true)
	if w := strings.Join(s.catalog(t, nil).Warnings, "\n"); !strings.Contains(w, "catalog.toml") || !strings.Contains(w, "line 8") || !strings.Contains(w, "sha256") {
		t.Errorf("the warning does not say what is wrong where: %s", w)
	}
	if m := s.Manifest(t); len(m.Images) != 1 || m.Images[0].Name != "one.img" {
		t.Errorf("GET /catalog.toml meanwhile: %+v", m)
	}
	s.Restart(t)
	inForce("the last good one after a restart", "one.img", true)
	s.s3Put(t, "catalog.toml", []byte(two))
	inForce("the mended one", "two.img", false)
	bad()
	inForce("bad again", "two.img", true)
	s.s3Delete(t, "catalog.toml")
	inForce("none", "", false)
	bad()
	inForce("a bad one after none", "", true)
	s.putManifest(t, one).Must(t, accepted...)
	inForce("mended by PUT", "one.img", false)
	if *s3Endpoint == "" {
		s.drop(t, "catalog.toml", []byte(two))
		inForce("dropped as a file", "two.img", false)
	}
}

// TestManifestFederates gives GET /catalog.toml of one server to another one as
// its manifest, and fetches its images from the first.
func TestManifestFederates(t *testing.T) {
	t.Parallel()
	first, second := Start(t, Options{}), Start(t, Options{})
	p := publish(t)
	want := map[string]string{}
	for i, name := range hostileNames() {
		b := content(uint64(i), 1000+i)
		first.Put(t, name, b)
		want[name] = sum(b)
	}
	fetched := content(60, 70_000)
	first.AddEntry(t, p.File("/dist/fetched.iso", fetched), "").Must(t, http.StatusCreated)
	first.Fetch(t, "fetched.iso")
	want["fetched.iso"] = sum(fetched)
	remote := content(61, 70_000)
	sums := p.File("/sums", []byte(sum(remote)+"  remote.iso\n"))
	first.AddEntry(t, p.File("/dist/remote.iso", remote), sums).Must(t, http.StatusCreated)
	want["remote.iso"] = sum(remote)

	export := func() string {
		return string(first.get(t, "/catalog.toml", anonymous).Must(t, 200).Body)
	}
	second.putManifest(t, export()).Must(t, accepted...)
	if rows := second.Rows(t); len(rows) != len(want) {
		t.Errorf("the second server has %d rows, want %d", len(rows), len(want))
	}
	for name, sha := range want {
		r := second.WaitRow(t, name, "of the first server", nil)
		if r.SHA256 != sha || r.Cached || len(r.Sources) != 1 || r.Sources[0].Kind != "manifest" {
			t.Errorf("%q: %+v", name, r)
		}
		if j := second.Fetch(t, name); j.SHA256 != sha {
			t.Errorf("%q: fetched as %+v, want SHA-256 %s", name, j, sha)
		}
	}
	checkNames(t, second, want)

	t.Run("back to where it came from", func(t *testing.T) {
		before := first.Rows(t)
		first.putManifest(t, export()).Must(t, accepted...)
		again := export()
		first.putManifest(t, again).Must(t, accepted...)
		after := first.Rows(t)
		if len(after) != len(before) {
			t.Errorf("%d rows before, %d after", len(before), len(after))
		}
		if export() != again {
			t.Error("the export of its own export differs")
		}
		first.Do(t, http.MethodDelete, "/catalog.toml", nil).Must(t, 204)
	})
	// Names in a manifest compare without case, files do not.
	t.Run("names that differ by case", func(t *testing.T) {
		a, b := content(70, 1000), content(71, 1000)
		first.Put(t, "Case.img", a)
		first.Put(t, "case.img", b)
		// Adding a letter to these names does not make them unique.
		first.Put(t, strings.Repeat("C", 251)+".img", content(72, 1000))
		first.Put(t, strings.Repeat("c", 251)+".img", content(73, 1000))
		second.putManifest(t, export()).Must(t, accepted...)
		_, upper := second.Row(t, "Case.img")
		_, lower := second.Row(t, "case.img")
		if !upper && !lower {
			t.Error("neither of them is in the export")
		}
	})
	t.Run("one name, two contents", func(t *testing.T) {
		first.putManifest(t, manifestOf(manifestImage{Name: "Case.img", Src: "http://127.0.0.1:1/x.img", SHA256: sum([]byte("x"))})).Must(t, accepted...)
		second.putManifest(t, export()).Must(t, accepted...)
	})
}

// TestManifestOfTenThousand reads a manifest of ten thousand rows, and the
// catalog still answers.
func TestManifestOfTenThousand(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	var toml strings.Builder
	toml.WriteString("version = 1\n")
	for n := range 10_000 {
		fmt.Fprintf(&toml, "[[images]]\nname=\"%d.img\"\nsrc=\"http://h/%d.img\"\n", n, n)
	}
	s.putManifest(t, toml.String()).Must(t, accepted...)
	p := s.catalog(t, url.Values{"limit": {"1"}})
	if p.Total != 10_000 {
		t.Errorf("total %d", p.Total)
	}
	if l := s.Listing(t); len(l) != 10_000 {
		t.Errorf("GET /images has %d", len(l))
	}
	s.putManifest(t, toml.String()+"[[images]]\nname=\"more.img\"\nsrc=\"http://h/more.img\"\n").Problem(t, []int{422}, "line", strconv.Itoa(10_000))
	if rows := len(s.Rows(t)); rows != 10_000 {
		t.Errorf("%d rows after a manifest that was refused", rows)
	}
}
