package visible

import "testing"

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
