package visible

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"debian-12 nonfree.img":      "debian-12 nonfree.img",
		"עברית 日本語 ä é.img":          "עברית 日本語 ä é.img",
		"a\u202egmi.exe.img":         "a[U+202E]gmi.exe.img",
		"a\u200b\u00a0b\ufeff\u2066": "a[U+200B][U+00A0]b[U+FEFF][U+2066]",
		"\x00\x1b[31m\ufffe\ue000":   "[U+0000][U+001B][31m[U+FFFE][U+E000]",
		"two\n\tlines\r\n":           "two\n\tlines\r\n",
	} {
		if got := Text(s); got != want || Text(got) != got {
			t.Errorf("%+q is shown as %+q, want %+q", s, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	for text, want := range map[string]string{
		`{"a": "debian ä 日本"}`:                "",
		"{\n  \"a\":\t[1]\r\n}":               "",
		"[\"a\u009b2Jb\u0080\u007f\u00a0c\"]": `["a\u009b2Jb\u0080\u007f\u00a0c"]`,
		"[\"\u202e\U000e0001\"]":              `["\u202e\udb40\udc01"]`,
		`["\u001b\n\\"]`:                      "",
		"[\"\x9b2J\"]":                        "[\"\ufffd2J\"]",
	} {
		if want == "" {
			want = text
		}
		got := JSON([]byte(text))
		var before, after any
		if json.Unmarshal([]byte(text), &before) != nil || json.Unmarshal(got, &after) != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%q means %q, not %q", got, after, before)
		}
		if string(got) != want {
			t.Errorf("%q is printed as %q, want %q", text, got, want)
		}
	}
}

func TestLine(t *testing.T) {
	if got := Line("a\nb\r\tc\u0085d"); got != "a␤b␤␤c[U+0085]d" {
		t.Errorf("%q", got)
	}
}
