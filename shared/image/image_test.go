package image

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestParseName(t *testing.T) {
	tests := []struct {
		name string
		want Format
		err  string // part of the reason; empty if the name is good
	}{
		{"debian-12.qcow2", "qcow2", ""},
		{"x.img", "img", ""},
		{"X.IMG", "img", ""},
		{"x.raw.zst", "raw.zst", ""},
		{"x.Iso.Gz", "iso.gz", ""},
		{"x.img.bz2", "img.bz2", ""},
		{"core-image-base-raspberrypi4.rootfs.wic.bz2", "wic.bz2", ""},
		{"x.WIC", "wic", ""},
		{"2020-02-13-raspbian.zip", "zip", ""},
		{"x.img.zip", "zip", ""},
		{"x.qcow2.XZ", "qcow2.xz", ""},
		{"x.tar.img", "img", ""},
		{"x.img.img.xz", "img.xz", ""},
		{"x.iso.img", "img", ""},
		{" a+b 50% #1?&=;\"'<>.img", "img", ""},
		{"Übung 世界 🙂.raw", "raw", ""},
		{"-rf.img", "img", ""},
		{"x...img", "img", ""},
		{strings.Repeat("n", 251) + ".img", "img", ""},

		{"", "", "the name is empty"},
		{strings.Repeat("n", 252) + ".img", "", "the name has 256 bytes, the most is 255"},
		{strings.Repeat("ü", 126) + ".img", "", "the name has 256 bytes"},
		{"x\xff.img", "", "not valid UTF-8"},
		{".img", "", "must not start with a dot"},
		{".x.img", "", "must not start with a dot"},
		{"../x.img", "", "must not start with a dot"},
		{"a/x.img", "", "without '/'"},
		{`a\x.img`, "", `without '\\'`},
		{"a\nx.img", "", "control character U+000A"},
		{"a\x00x.img", "", "control character U+0000"},
		{"a\x7fx.img", "", "control character U+007F"},
		{"a\u0085x.img", "", "control character U+0085"},
		{"a\ufffex.img", "", "U+FFFE"},
		{"a\uffffx.img", "", "U+FFFF"},
		{"a\ufdd0\ufffdx.img", "img", ""},
		{"x.img ", "", "must end in one of .qcow2, .img"},
		{"x", "", "must end in one of"},
		{"x.vmdk.xz", "", "must end in one of"},
		{"x.img.Z", "", "must end in one of"},
		{"ximg", "", "must end in one of"},
		{"catalog.toml", "", "must end in one of"},
		{"x.img.sha256", "", "must end in one of"},
		// Lower case of U+0130 is i, but ".İMG" is not ".img".
		{"x.\u0130MG", "", "must end in one of"},
		{"x.i\u017fo", "", "must end in one of"},
		{"x.tar", "", "a tarball is not a disk image: extract it"},
		{"x.TAR.GZ", "", "a tarball"},
		{"x.tar.zst", "", "a tarball"},
		{"x.img.tgz", "", "a tarball"},
		{"x.txz", "", "a tarball"},
		{"x.tar.gz.sig", "", "must end in one of"},
	}
	for _, tt := range tests {
		name, err := ParseName(tt.name)
		got, _ := FormatOf(name)
		if tt.err == "" {
			if err != nil || got != tt.want || !Name(tt.name).Valid() {
				t.Errorf("ParseName(%q) = %q, %v; want %q", tt.name, got, err, tt.want)
			}
			continue
		}
		if bad, ok := errors.AsType[*NameError](err); !ok || !strings.Contains(bad.Reason, tt.err) || Name(tt.name).Valid() {
			t.Errorf("ParseName(%q) = %q, %v; want a NameError that says %q", tt.name, got, err, tt.err)
		}
	}
}

func TestFormats(t *testing.T) {
	fs := Formats()
	for _, f := range fs {
		if got, ok := FormatOf(Name("x." + string(f))); !ok || got != f {
			t.Errorf("FormatOf(x.%s) = %q, %v", f, got, ok)
		}
		if _, ok := FormatOf(Name("." + string(f))); ok {
			t.Errorf("FormatOf(.%s): a suffix alone has a format", f)
		}
		if !strings.Contains(FormatList(), "."+string(f)) {
			t.Errorf("FormatList lacks .%s", f)
		}
	}
	fs[0] = "changed"
	if Formats()[0] != "qcow2" {
		t.Error("the caller's copy of Formats is not its own")
	}
}

func TestDiskName(t *testing.T) {
	for name, want := range map[string]string{
		"a.img": "a.img", "a.IMG.XZ": "a.IMG", "a.iso.gz": "a.iso", "a.qcow2": "a.img", "a.Qcow2": "a.img", "a.raw.zst": "a.raw", "a.wic.gz": "a.wic", "a.vmdk": "a.img", "a.zip": "a.img", "a.iso.zip": "a.iso", "a.vdi.zip": "a.img", "a.img.xz.zip": "a.img.xz.img", "a.QCOW2.gz": "a.img", "a.VHDX": "a.img", "a.vdi": "a.img", "x": "x",
	} {
		if got := DiskName(Name(name)); string(got) != want {
			t.Errorf("DiskName(%q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{
		"debian-12.qcow2", "X.IMG.XZ", "a+b 50% #?.iso", "Ü.raw.zst", "x.tar.gz", ".img", "../x.img", "a\\b.img", "x.\u0130MG", "x\u0085.img", "\xff.img", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		parsed, err := ParseName(name)
		if err != nil {
			if bad, ok := errors.AsType[*NameError](err); !ok || bad.Reason == "" || len(bad.Reason) > 500 {
				t.Errorf("ParseName(%q) = %#v", name, err)
			}
			return
		}
		switch {
		case name == "" || len(name) > MaxNameBytes, !utf8.ValidString(name), name[0] == '.',
			strings.ContainsAny(name, `/\`), strings.ContainsFunc(name, unicode.IsControl):
			t.Errorf("ParseName accepts %q", name)
		}
		format, _ := FormatOf(parsed)
		suffix := name[len(name)-len(format)-1:]
		if asciiLower(suffix) != "."+string(format) {
			t.Errorf("ParseName(%q) = %q", name, format)
		}
		// Suffixes compare without case.
		upper, err := ParseName(name[:len(name)-len(suffix)] + strings.ToUpper(suffix))
		if got, _ := FormatOf(upper); err != nil || got != format {
			t.Errorf("in upper case: %q, %v", got, err)
		}
	})
}

func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// A store refuses a key that is too long for a name, in place of having no such object.
func TestSpellingsAreNames(t *testing.T) {
	for name, want := range map[Name]int{
		"a.img":      1,
		"\u00fc.img": 2,
		Name(strings.Repeat("\u00fc", 80) + ".img"):  2,
		Name(strings.Repeat("\u00fc", 125) + ".img"): 1, // decomposed, it has 379 bytes
	} {
		all := Spellings(name)
		if len(all) != want || all[0] != name {
			t.Errorf("%s has the spellings %q", name, all)
		}
	}
}
