package templates

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"text/template/parse"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/visible"
)

// views are all structs that have a template.
func views() []View {
	return []View{
		&Login{}, &Problem{}, &Images{}, &Events{}, &Tokens{}, &Live{}, &Confirm{}, &AddPage{}, &ImagePage{}, &About{},
		&Catalog{}, &Running{}, &Ended{}, &Disks{}, &Recent{}, &Others{},
	}
}

const hostile = `"'<b>&` + "\u202e" + `.img`

// fill sets every field to something, and lists to two of it.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_700_000_000, 0)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
		fill(v.Index(1))
	case reflect.String:
		if v.Type() == reflect.TypeFor[template.HTML]() {
			v.SetString("<p>fragment</p>")
			return
		}
		v.SetString(hostile)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	}
}

// valueAttribute finds what is for programs: it stays as it is.
var valueAttribute = regexp.MustCompile(`(value|data-copy|data-batch)="[^"]*"`)

// Every template renders its struct, whichever of its fields are set.
func TestEveryViewRenders(t *testing.T) {
	for _, v := range views() {
		if _, err := Render(v); err != nil {
			t.Errorf("empty %T: %v", v, err)
		}
		fill(reflect.ValueOf(v).Elem())
		out, err := Render(v)
		if err != nil {
			t.Errorf("full %T: %v", v, err)
		}
		if bytes.Contains(out, []byte("<b>")) || bytes.Contains(out, []byte("ZgotmplZ")) {
			t.Errorf("%T lets markup through, or has a value where none may be:\n%s", v, out)
		}
		for line := range strings.Lines(valueAttribute.ReplaceAllString(string(out), "")) {
			if visible.Text(line) != line {
				t.Errorf("%T has characters that are not seen: %+q", v, line)
			}
		}
		for _, status := range []string{"running", "queued", "failed", "completed"} {
			setStatus(v, status)
			if _, err := Render(v); err != nil {
				t.Errorf("%T with jobs that are %s: %v", v, status, err)
			}
		}
	}
}

// Every page has a struct.
func TestEveryTemplateIsUsed(t *testing.T) {
	used := map[string]bool{"": true}
	var visit func(name string)
	visit = func(name string) {
		if used[name] {
			return
		}
		used[name] = true
		tmpl := pages.Lookup(name)
		if tmpl == nil {
			t.Errorf("there is no template %q", name)
			return
		}
		called(tmpl.Tree.Root, visit)
	}
	for _, v := range views() {
		visit(v.template())
	}
	for _, tmpl := range pages.Templates() {
		if !used[tmpl.Name()] && !strings.HasSuffix(tmpl.Name(), ".tmpl") {
			t.Errorf("nothing uses the template %q", tmpl.Name())
		}
	}
}

// called calls visit with the name of every template that a tree calls.
func called(n parse.Node, visit func(string)) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, c := range n.Nodes {
				called(c, visit)
			}
		}
	case *parse.IfNode:
		called(n.List, visit)
		called(n.ElseList, visit)
	case *parse.RangeNode:
		called(n.List, visit)
		called(n.ElseList, visit)
	case *parse.WithNode:
		called(n.List, visit)
		called(n.ElseList, visit)
	case *parse.TemplateNode:
		visit(n.Name)
	}
}

func setStatus(v View, status string) {
	set := func(jobs []Job) {
		for i := range jobs {
			jobs[i].Status = status
		}
	}
	switch v := v.(type) {
	case *Running:
		set(v.List)
	case *Ended:
		set(v.Failed)
		set(v.List)
	case *About:
		set(v.Jobs)
		v.Flash = nil
	case *Catalog:
		v.Begin = nil
	}
}

// What the Content-Security-Policy forbids is not in the templates.
func TestNothingInline(t *testing.T) {
	bad := regexp.MustCompile(`(?i)<style|<script(?: defer)?>|\sstyle=|\son[a-z]+=|hx-on|hx-vals="js|javascript:`)
	err := fs.WalkDir(pageFiles, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(pageFiles, name)
		if m := bad.Find(data); m != nil {
			t.Errorf("%s has %q", name, m)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Names in all places show all that is in them, and move nothing about.
func TestNamesAreShown(t *testing.T) {
	const name, hebrew = "a\u202egmi.exe.img", "\u05d0\u05d1.img"
	out, err := Render(Confirm{
		Frame: Frame{Title: name, Notice: hebrew}, Question: "Delete " + name + "?", Done: name + " was deleted.",
		Facts: []Detail{{Name: "Also", Value: hebrew}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<title>a[U+202E]gmi.exe.img", ">Delete a[U+202E]gmi.exe.img?<", `data-done="a[U+202E]gmi.exe.img was deleted."`,
		`<dd><bdi dir="ltr">` + hebrew + `</bdi></dd>`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the page lacks %+q:\n%s", want, out)
		}
	}
	c, err := Render(Catalog{Rows: []Row{{Name: name, Batch: `{"name":"` + name + `"}`}}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(c), `data-batch="{&#34;name&#34;:&#34;`+name+`&#34;}"`) {
		t.Errorf("the form names another image:\n%+q", c)
	}
}

func TestCut(t *testing.T) {
	for name, want := range map[image.Name]string{
		"debian-12-generic-arm64.qcow2.img": "debian-12-generic-a|rm64.qcow2.img",
		"short.img.zst":                     "|short.img.zst",
		"14-letters.img":                    "|14-letters.img",
		"combined-e\u0301-arm64.img.xz":     "combined-|e\u0301-arm64.img.xz",
		"\u05d0-right-to-left-name.img":     "\u05d0-right-to-left-name.img|",
		"":                                  "|",
	} {
		if c := cutOf(name); c.Start+"|"+c.End != want {
			t.Errorf("%q is cut into %q and %q, want %q", name, c.Start, c.End, want)
		}
	}
}

func TestFragmentVersion(t *testing.T) {
	a, err := NewFragment(Recent{Events: []Event{{Summary: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := NewFragment(Recent{})
	again, _ := NewFragment(Recent{Events: []Event{{Summary: "1"}}})
	if a.Version == b.Version || a.Version != again.Version || a.ID != "recent" {
		t.Errorf("versions %q, %q, %q of %q", a.Version, b.Version, again.Version, a.ID)
	}
}

// The table in the vendor folder says what is there.
func TestVendored(t *testing.T) {
	readme, err := fs.ReadFile(static, "vendor/README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\S+) \| .+ \| .+\((\S+)\) \| ([0-9a-f]{64}) \|$`).FindAllStringSubmatch(string(readme), -1)
	inTable := map[string]bool{"vendor/README.md": true}
	for _, row := range rows {
		inTable["vendor/"+row[1]], inTable["vendor/"+row[2]] = true, true
		data, err := fs.ReadFile(static, "vendor/"+row[1])
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != row[3] {
			t.Errorf("%s has the SHA-256 %x, the table says %s", row[1], sum, row[3])
		}
		if _, err := fs.Stat(static, "vendor/"+row[2]); err != nil {
			t.Errorf("licence of %s: %v", row[1], err)
		}
	}
	err = fs.WalkDir(static, "vendor", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !inTable[name] {
			t.Errorf("%s is not in the table", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestServeStatic(t *testing.T) {
	get := func(target, accept string) *http.Response {
		r := httptest.NewRequest(http.MethodGet, target, nil)
		r.Header.Set("Accept-Encoding", accept)
		w := httptest.NewRecorder()
		if !ServeStatic(w, r, strings.TrimPrefix(r.URL.Path, "/static/")) {
			return nil
		}
		return w.Result()
	}
	want, err := fs.ReadFile(static, "app.css")
	if err != nil {
		t.Fatal(err)
	}
	target, err := staticURL("app.css")
	if err != nil {
		t.Fatal(err)
	}
	res := get(target, "")
	if got, _ := io.ReadAll(res.Body); !bytes.Equal(got, want) || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/css") {
		t.Errorf("%v, %d bytes", res.Header, len(got))
	}
	if !strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("the URL names its content, but Cache-Control is %q", res.Header.Get("Cache-Control"))
	}
	zipped := get("/static/app.css", "br, gzip;q=0.8")
	if zipped.Header.Get("Content-Encoding") != "gzip" || zipped.Header.Get("Cache-Control") != "no-cache" || zipped.Header.Get("ETag") == res.Header.Get("ETag") {
		t.Errorf("%v", zipped.Header)
	}
	z, err := gzip.NewReader(zipped.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if res := get("/static/app.css", "gzip;q=0"); res.Header.Get("Content-Encoding") != "" {
		t.Error("gzip for a client that refuses it")
	}
	for _, name := range []string{"/static/", "/static/none.css", "/static/../templates.go", "/static/vendor"} {
		if get(name, "") != nil {
			t.Errorf("%s is served", name)
		}
	}
	if _, err := staticURL("none.css"); err == nil {
		t.Error("a URL for a file that is not there")
	}
}
