package content_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"imageroot/shared/content"
)

// archive returns a ZIP archive of empty files.
func archive(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range names {
		if _, err := w.Create(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestZipDirectory(t *testing.T) {
	many := make([]string, 20_000)
	for i := range many {
		many[i] = fmt.Sprintf("a-directory-of-a-long-name/%d.txt", i)
	}
	hostile := archive(t, "../../etc/a.img")
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"a path out of the archive": {hostile, ""},
		"Windows' path":             {archive(t, `C:\images\a.VMDK`), ""},
		"macOS's second file":       {archive(t, "a.img", "__MACOSX/._a.img"), ""},
		"a directory named as one":  {archive(t, "a.img/", "a.img/b.txt"), "no image"},
		"a compressed one":          {archive(t, "a.img.xz"), "no image"},
		"two":                       {archive(t, "a.img", "b.iso"), "2 images"},
		"more names than are read":  {archive(t, append(many, "a.img")...), "more than 1 MiB"},
		"no end":                    {hostile[:len(hostile)-22], "no directory"},
	} {
		c2, err := content.Sniff(bytes.NewReader(c.data), int64(len(c.data)), 100)
		if err != nil || c2.Kind != content.Zip || (c2.Unreadable == "") != (c.says == "") || !strings.Contains(c2.Unreadable, c.says) {
			t.Errorf("%s: %+v, %v", name, c2, err)
		}
	}
}

func FuzzZipDirectory(f *testing.F) {
	f.Add(archive(f, "a.img", "b.txt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := content.Sniff(bytes.NewReader(b), int64(len(b)), 10)
		if err != nil || c.VirtualSize != nil && *c.VirtualSize < 0 {
			t.Errorf("%+v, %v", c, err)
		}
	})
}
