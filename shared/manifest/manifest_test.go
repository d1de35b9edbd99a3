package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
)

var (
	sum256 = strings.Repeat("0a", 32)
	sum512 = strings.Repeat("0b", 64)
)

func size(n int64) *int64 { return &n }

const full = `# what we flash
version = 1

[[images]]
name = "debian-12.qcow2"
src = "https://example.org/debian-12.qcow2"
sha256 = "0A0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
format = "QCOW2"
size_bytes = 1_234

[[images]] # from a registry
src = 'oras://localhost:5000/os/pi@sha256:abc'
name = `

const described = `version = 1
[[images]]
name = "x.img"
title = "Debian for the lab"
description = """
Two
lines"""
src = "http://h/x"
system = "debian"
version = "12"
arch = "AArch64"
release_date = "2026-11-28"
icon = "https://h/i.svg"
devices = ["pi4-64bit", "pi5-64bit"]
init_format = "cloudinit"
home_page = "https://h/"
[images.labels]
channel = "stable"
"h/a.b" = ""
rack = "3"
[[images]]
name = "y.img"
src = "http://h/y"
labels = {a = "1", "b.c" = "2"}
[[images]]
name = "z.img"
src = "http://h/z"
architecture = "amd64"
labels.a = "1"
`

func TestParse(t *testing.T) {
	tests := []struct {
		name, doc string
		want      []Image
	}{
		{"no images", "version = 1\n", nil},
		{"an empty array", "version = 1\nimages = []\n", nil},
		{
			"all keys, comments, order", full + `"pi.img.xz"`, []Image{
				{Name: "debian-12.qcow2", Src: "https://example.org/debian-12.qcow2", SHA256: layout.SHA256(sum256), Format: "qcow2", SizeBytes: size(1234)},
				{Name: "pi.img.xz", Src: "oras://localhost:5000/os/pi@sha256:abc", Format: "img.xz"},
			},
		},
		{
			"an array of tables in one line", `version = 0x1
images = [{name = "a.img", src = "http://h/a", sha512 = "` + sum512 + `", size_bytes = 0}, {name = "b.img", src = "http://h/b"}]`,
			[]Image{
				{Name: "a.img", Src: "http://h/a", SHA512: sum512, Format: "img", SizeBytes: size(0)},
				{Name: "b.img", Src: "http://h/b", Format: "img"},
			},
		},
		{
			"BOM, CRLF, escapes, quoted keys", "\ufeffversion = 1\r\n[[\"images\"]]\r\n\"name\" = \"\\u00dc #1+2 50% \\\"x\\\".img\"\r\nsrc = \"HTTP://h/%20?q=1#f\"\r\n",
			[]Image{{Name: `Ü #1+2 50% "x".img`, Src: "HTTP://h/%20?q=1#f", Format: "img"}},
		},
		{
			"metadata", described, []Image{
				{Name: "x.img", Src: "http://h/x", Format: "img", Fields: metadata.Fields{
					Title: "Debian for the lab", Description: "Two\nlines", System: "debian", Version: "12", Architecture: "arm64", ReleaseDate: "2026-11-28",
					Icon: "https://h/i.svg", Devices: []string{"pi4-64bit", "pi5-64bit"}, InitFormat: "cloudinit", HomePage: "https://h/",
					Labels: map[string]string{"channel": "stable", "h/a.b": "", "rack": "3"},
				}},
				{Name: "y.img", Src: "http://h/y", Format: "img", Fields: metadata.Fields{Labels: map[string]string{"a": "1", "b.c": "2"}}},
				{Name: "z.img", Src: "http://h/z", Format: "img", Fields: metadata.Fields{Architecture: "amd64", Labels: map[string]string{"a": "1"}}},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Parse([]byte(tt.doc))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m.Images, tt.want) {
				t.Errorf("Parse = %+v, want %+v", m.Images, tt.want)
			}
			roundTrip(t, m)
		})
	}
}

func encode(images []Image) ([]byte, error) {
	var b bytes.Buffer
	err := Encode(&b, slices.Values(images))
	return b.Bytes(), err
}

func roundTrip(t *testing.T, m *Manifest) {
	t.Helper()
	data, err := encode(m.Images)
	if err != nil {
		t.Fatalf("Encode(%+v): %v", m, err)
	}
	again, err := Parse(data)
	if err != nil {
		if len(data) > MaxBytes {
			return // Encode adds members that the original omitted
		}
		t.Fatalf("Parse of what Encode wrote: %v\n%s", err, data)
	}
	if !reflect.DeepEqual(m.Images, again.Images) {
		t.Errorf("Parse(Encode(%+v)) = %+v", m, again)
	}
}

func TestParseErrors(t *testing.T) {
	row := func(keys string) string {
		return "version = 1\n[[images]]\nname = \"x.img\"\nsrc = \"http://h/x\"\n" + keys
	}
	tests := []struct {
		name, doc string
		want      []string // the beginning of each problem, as "line N: reason"
	}{
		{"a wrong type of metadata", row("title = 1\ndevices = 'pi5'\nlabels = []\nversion = 12"), []string{
			"line 5: images[0] \"x.img\": title must be a string", "line 6: images[0] \"x.img\": devices must be an array of strings",
			"line 7: images[0] \"x.img\": labels must be a table of strings", "line 8: images[0] \"x.img\": version must stand before",
		}},
		{"metadata that are not valid", row("\nicon = 'x'"), []string{"line 6: images[0] \"x.img\": icon must be "}},
		{"arch and architecture", row("arch = 'arm64'\narchitecture = 'arm64'"), []string{"line 6: images[0] \"x.img\": architecture is given twice"}},
		{"labels", row("labels.a = 1\nlabels.b.c = 'x'\nlabels.d = 'x'\nlabels.d = 'y'\n[images.labels]\n[images.labels]"), []string{
			"line 5: images[0] \"x.img\": the label \"a\" must be a string", "line 6: images[0] \"x.img\": put the key of a label that has a dot in quotes",
			"line 8: images[0] \"x.img\": the label \"d\" is given twice", "line 10: unknown table \"images.labels\"",
		}},
		{"a label with a key that is none", row("labels = {' ' = 'x'}"), []string{"line 5: images[0] \"x.img\": labels has the key"}},
		{"labels of no image", "version = 1\n[images.labels]\na = 'x'", []string{"line 2: unknown table \"images.labels\""}},
		{"empty", "", []string{"line 1: the key version is missing"}},
		{"other version", "\nversion = 2", []string{"line 2: version must be 1"}},
		{"version as a string", `version = "1"`, []string{"line 1: version must be 1"}},
		{"version twice", "version = 1\nversion = 1", []string{"line 2: version is given twice"}},
		{"not TOML", "version = 1\n\nimages: []\n", []string{"line 3: not TOML: "}},
		{"cut off", "version = 1\n[[images]]\nname = \"x", []string{"line 2: images[0]: name is missing", "line 2: images[0]: src is missing", "line 3: not TOML: "}},
		{"nested too deep", "version = 1\nimages = " + strings.Repeat("[", 500_000), []string{"line 2: not TOML: "}},
		{"not UTF-8", "version = 1\n# \xff", []string{"line 1: the manifest is not UTF-8 text"}},
		{"binary", "\x00\x01", []string{"line 1: not TOML: "}},
		{"single brackets", "version = 1\n[images]\nname = 1", []string{"line 2: images must be [[images]], with two brackets"}},
		{"images is no array", "version = 1\nimages = 1", []string{"line 2: images must be an array of tables"}},
		{"images of numbers", "version = 1\nimages = [1]", []string{"line 2: images must be an array of tables"}},
		{"images twice", "version = 1\nimages = []\nimages = []\n[[images]]", []string{"line 3: images is given twice", "line 4: images was given already"}},
		{"version below", "[[images]]\nname = \"x.img\"\nsrc = \"http://h/x\"\nversion = 1", []string{"line 1: the key version is missing", `line 4: images[0] "x.img": version must stand before`}},
		{"key twice", row("src = \"http://h/y\""), []string{`line 5: images[0] "x.img": src is given twice`}},
		{"no name, no src", "version = 1\n\n[[images]]\n", []string{"line 3: images[0]: name is missing", "line 3: images[0]: src is missing"}},
		{"empty strings", "version = 1\n[[images]]\nname = \"\"\nsrc = ''\nsha256 = ''", []string{"line 3: images[0]: name is empty", "line 4: images[0]: src is empty", "line 5: images[0]: sha256 is empty"}},
		{"wrong types", row("sha256 = 1\nsize_bytes = \"1\"\nformat = true"), []string{`line 5: images[0] "x.img": sha256 must be a string`, `line 6: images[0] "x.img": size_bytes must be a whole number`, `line 7: images[0] "x.img": format must be a string`}},
		{"sha256 of 63 digits", row("sha256 = \"" + sum256[1:] + "\""), []string{`line 5: images[0] "x.img": sha256 has 63 digits, needs 64`}},
		{"sha512 of 64 digits", row("sha512 = \"" + sum256 + "\""), []string{`line 5: images[0] "x.img": sha512 has 64 digits, needs 128`}},
		{"not hexadecimal", row("sha256 = \"" + strings.Repeat("g", 64) + "\""), []string{`line 5: images[0] "x.img": sha256 must be hexadecimal digits`}},
		{"format disagrees", row("format = \"iso\""), []string{`line 5: images[0] "x.img": format is "iso", but the name says "img"`}},
		{"negative size", row("size_bytes = -1"), []string{`line 5: images[0] "x.img": size_bytes must be a whole number, 0 or more`}},
		{"fractional size", row("size_bytes = 1.0"), []string{`line 5: images[0] "x.img": size_bytes must be`}},
		{"size beyond 64 bits", row("size_bytes = 9223372036854775808"), []string{`line 5: images[0] "x.img": size_bytes must be`}},
		{"unknown suffix", "version = 1\n[[images]]\nname = \"x.exe\"\nsrc = \"http://h/x\"", []string{`line 3: images[0] "x.exe": the name must end in one of .qcow2`}},
		{"path", "version = 1\n[[images]]\nname = \"../x.img\"\nsrc = \"http://h/x\"", []string{`line 3: images[0] "../x.img": the name must not start with a dot`}},
		{
			"same name without case", row("\n[[images]]\nsrc = \"http://h/y\"\nname = \"X.IMG\""),
			[]string{`line 8: images[1] "X.IMG": images[0] has that name already`},
		},
		{
			"problems in the order of lines, in one array", "version = 1\nimages = [\n  {name = \"x.img\", src = \"http://h/x\"},\n  {src = \"x\"},\n  {name = \"y.img\",\n   src = \"http://\"},\n]",
			[]string{"line 4: images[1]: src must be an absolute", "line 4: images[1]: name is missing", `line 6: images[2] "y.img": src names no host`},
		},
		{"larger than the limit", strings.Repeat("#", MaxBytes+1), []string{"line 1: the manifest is larger than 1 MiB"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.doc))
			bad, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("Parse = %v, want an *Error", err)
			}
			if len(bad.Problems) != len(tt.want) {
				t.Fatalf("%d problems, want %d:\n%v", len(bad.Problems), len(tt.want), bad)
			}
			for i, line := range strings.Split(bad.Error(), "\n") {
				if !strings.HasPrefix(line, tt.want[i]) {
					t.Errorf("problem %q, want %q", line, tt.want[i])
				}
			}
		})
	}
}

// What publishers write for other programs is accepted, and warned of.
func TestParseWarnings(t *testing.T) {
	m, err := Parse([]byte(`version = 1
publisher = "lab"
[meta]
version = 2
[[images]]
name = "nosi debian-13/headless (x86_64, latest)"
src = "oras://ghcr.io/safl/nosi/debian-13-headless:latest"
format = "img.gz"
arch = "x86_64"
description = "A \"sysdev\" image"
netboot_ref = "debian-13-netboot"
sha_256 = "abc"
stable = true
a.b = 2
tags = ["x"]
"not a label!" = "x"
labels.stable = "the operator's"
[images.other]
name = "ignored.img"
[images.labels]
rack = "3"
[[images]]
name = "netboot bundle"
src = "oras://ghcr.io/safl/nosi/netboot:latest"
format = "TAR.GZ"
[[images]]
name = "rootfs.tar.xz"
src = "https://h/rootfs"
arch = "sparc"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Image{
		{Name: "nosi debian-13-headless (x86_64, latest).img.gz", Src: "oras://ghcr.io/safl/nosi/debian-13-headless:latest", Format: "img.gz"},
		{Name: "netboot bundle.tar.gz", Src: "oras://ghcr.io/safl/nosi/netboot:latest", Format: "tar.gz"},
		{Name: "rootfs.tar.xz", Src: "https://h/rootfs", Format: "tar.xz"},
	}
	want[0].Fields = metadata.Fields{
		Title: "nosi debian-13/headless (x86_64, latest)", Description: `A "sysdev" image`, Architecture: "amd64",
		Labels: map[string]string{"netboot_ref": "debian-13-netboot", "sha_256": "abc", "stable": "the operator's", "a.b": "2", "rack": "3"},
	}
	want[1].Title = "netboot bundle"
	want[2].Labels = map[string]string{"arch": "sparc"}
	if !reflect.DeepEqual(m.Images, want) {
		t.Errorf("%+v, want\n%+v", m.Images, want)
	}
	var got []string
	for _, w := range m.Warnings {
		got = append(got, w.String())
	}
	for i, w := range []string{
		`line 2: unknown key "publisher"`, `line 3: unknown table "meta"`, `line 12: images[0] "nosi debian-13/headless (x86_64, latest)": unknown key "sha_256"`,
		`line 13: `, `line 14: `, `line 15: `, `line 16: `, `line 18: images[0] "nosi debian-13/headless (x86_64, latest)": unknown table "images.other"`,
		`line 25: images[1] "netboot bundle": tar.gz is no format of disk images`, `line 27: images[2] "rootfs.tar.xz": tar.xz is no format`,
	} {
		if i >= len(got) || !strings.HasPrefix(got[i], w) {
			t.Errorf("%q, where a warning begins with %q", got, w)
		}
	}
	if len(got) != maxProblems {
		t.Errorf("%q", got)
	}
	for i := range m.Images {
		m.Images[i].Title = "" // which is as the name says
	}
	m.Images[0].Title = want[0].Title
	roundTrip(t, m)
}

func TestParseSources(t *testing.T) {
	tests := []struct{ src, want string }{
		{"http://h/x.img", ""},
		{"https://[2001:db8::1]:8443/a b/x.img?a=b&c=d#e", ""},
		{"oras://ghcr.io/org/os:1.2", ""},
		{"oras://localhost:5000/os@sha256:" + sum256, ""},
		{"file:///etc/passwd", "not file"},
		{"ftp://h/x.img", "not ftp"},
		{"javascript:alert(1)", "not javascript"},
		{"//h/x.img", "must be an absolute"},
		{"/x.img", "must be an absolute"},
		{"x.img", "must be an absolute"},
		{"https:///x.img", "names no host"},
		{"http://:80/x.img", "names no host"},
		{"http:x.img", "names no host"},
		{"https://user:secret@h/x.img", "holds a user name or password"},
		{"http://user@h/x.img", "holds a user name or password"},
		{"oras://user:secret@h/r:t", "holds a user name or password"},
		{"http://h:port/x.img", "not a URL"},
		{"http://h/%zz", "not a URL"},
	}
	for _, tt := range tests {
		m := Manifest{Images: []Image{{Name: "x.img", Src: tt.src, Format: "img"}}}
		data, err := encode(m.Images)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(data)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("src %q: %v, want %q", tt.src, err, tt.want)
		}
	}
}

func TestParseReportsTenProblems(t *testing.T) {
	_, err := Parse([]byte("version = 1\n" + strings.Repeat("[[images]]\n", 100)))
	bad, ok := errors.AsType[*Error](err)
	if !ok || len(bad.Problems) != maxProblems {
		t.Fatalf("Parse = %v, want %d problems", err, maxProblems)
	}
	if p := bad.Problems[9]; p.Line != 6 || !strings.HasPrefix(p.Reason, "images[4]") {
		t.Errorf("the last problem is %+v", p)
	}
}

func TestLimits(t *testing.T) {
	var m Manifest
	for i := range MaxImages {
		m.Images = append(m.Images, Image{Name: image.Name(fmt.Sprintf("n%d.img", i)), Src: "http://h/", Format: "img"})
	}
	roundTrip(t, &m)
	m.Images = append(m.Images, Image{Name: "one-more.img", Src: "http://h/", Format: "img"})
	data, err := encode(m.Images)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(data); err == nil || !strings.Contains(err.Error(), "more than 10000 images") {
		t.Errorf("Parse of %d images = %v", len(m.Images), err)
	}
}

// go-toml's decoder takes 15 seconds for the worst of these documents, the walk a
// fraction of a second for each.
func TestHostileDocuments(t *testing.T) {
	var keys, tables, rowKeys strings.Builder
	keys.WriteString("version = 1\n")
	for i := 0; keys.Len() < MaxBytes-20; i++ {
		fmt.Fprintf(&keys, "a%d=1\n", i)
	}
	for i := 0; tables.Len() < MaxBytes-20; i++ {
		fmt.Fprintf(&tables, "[a%d]\n", i)
	}
	rowKeys.WriteString("images=[{")
	for i := 0; rowKeys.Len() < MaxBytes-20; i++ {
		fmt.Fprintf(&rowKeys, "a%d=1,", i)
	}
	rowKeys.WriteString("}]")
	for _, doc := range []string{
		keys.String(), tables.String(), rowKeys.String(),
		strings.Repeat("a.", MaxBytes/2-4) + "a=1",
		"[" + strings.Repeat("a.", MaxBytes/2-4) + "a]",
		"images=[" + strings.Repeat("{a=", 9_000) + "1" + strings.Repeat("}", 9_000) + "]",
		"images=[" + strings.Repeat("{},", MaxBytes/3-5) + "]",
		"images=[" + strings.Repeat("\n", MaxBytes/2) + strings.Repeat("{},\n", MaxBytes/10) + "]",
	} {
		start := time.Now()
		_, err := Parse([]byte(doc))
		if took := time.Since(start); took > time.Minute {
			t.Errorf("Parse(%.40q...) took %v", doc, took)
		}
		if err == nil {
			continue
		} else if n := len(err.Error()); n > 20_000 {
			t.Errorf("Parse(%.40q...): an error of %d bytes", doc, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full + `"pi.img.xz"`))
	f.Add([]byte("version = 1\nimages = [{name = \"a.img\", src = \"http://h/a\", size_bytes = 0x10}]"))
	f.Add([]byte("\ufeffversion = 1\r\n[[images]]\r\nname = '''a''b.img'''\r\nsrc = \"oras://h/\\u00fc\"\r\nsha512 = \"" + sum512 + "\""))
	f.Add([]byte("version = 1\n[[images]]\nname = \"Ü 1+2 #3?.img\"\nsrc = \"https://h/%20%2B\"\nsize_bytes = +1_0\n"))
	f.Add([]byte("version = 1\n[images]\n[[images.x]]\nx.y.z = {a = [1, 2.5, 1979-05-27]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			if bad, ok := errors.AsType[*Error](err); !ok || len(bad.Problems) == 0 || len(bad.Problems) > maxProblems {
				t.Errorf("Parse = %#v", err)
			}
			return
		}
		roundTrip(t, m)
		if len(m.Warnings) > 0 {
			return // the walk does not check what it does not know
		}

		// go-toml's decoder reads the same from what the walk accepts.
		var want struct {
			Version int64
			Images  []struct {
				Name                        image.Name
				Src, SHA256, SHA512, Format string
				SizeBytes                   *int64 `toml:"size_bytes"`
			}
		}
		dec := toml.NewDecoder(strings.NewReader(strings.TrimPrefix(string(data), "\ufeff")))
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("go-toml refuses what Parse accepts: %v", err)
		}
		if len(want.Images) != len(m.Images) {
			t.Fatalf("go-toml reads %d images, Parse %d", len(want.Images), len(m.Images))
		}
		for i, w := range want.Images {
			got := m.Images[i]
			if n, _, err := image.Named(string(w.Name), w.Format); err == nil {
				w.Name = n
			}
			if got.Name != w.Name || got.Src != w.Src || string(got.SHA256) != strings.ToLower(w.SHA256) ||
				got.SHA512 != strings.ToLower(w.SHA512) || !reflect.DeepEqual(got.SizeBytes, w.SizeBytes) {
				t.Errorf("images[%d]: go-toml reads %+v, Parse %+v", i, w, got)
			}
			if f, ok := image.FormatOf(got.Name); !got.Name.Valid() || !ok || f != got.Format {
				t.Errorf("images[%d]: format %q of %q", i, got.Format, got.Name)
			}
		}
	})
}
