// Package docs compares the documents with the repository: every relative link
// and anchor has a target, every page can be reached from the README, the
// settings and make targets that pages name exist, and all schemes of sources
// and suffixes of compressed images are named.
package docs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/config"
	"imageroot/shared/image"
	"imageroot/shared/source/scheme"
)

const root = "../.." // of the module

// A document is one Markdown file.
type document struct {
	text    string // without code
	whole   string
	anchors []string
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	span    = regexp.MustCompile("`[^`\n]*`")
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	link    = regexp.MustCompile(`(?:\]\(|<img src=")([^()\s"]+)[)"]`)
)

// documents returns the Markdown files by path, without those of builds.
func documents(t *testing.T) map[string]document {
	t.Helper()
	all := map[string]document{}
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains([]string{".git", "bin", "data", "dist", "out", "tools/bin"}, name) || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir(), path.Ext(name) != ".md":
			return nil
		}
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		whole := string(b)
		text := fence.ReplaceAllString(whole, "")
		doc := document{text: span.ReplaceAllString(text, ""), whole: whole}
		for _, m := range heading.FindAllStringSubmatch(text, -1) {
			doc.anchors = append(doc.anchors, anchor(m[1]))
		}
		all[name] = doc
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// anchor returns the fragment that GitHub derives from a heading.
func anchor(heading string) string {
	keep := func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', r >= 'a' && r <= 'z', r >= '0' && r <= '9', r > 127:
			return r
		}
		return -1
	}
	return strings.Map(keep, strings.ToLower(heading))
}

func TestLinks(t *testing.T) {
	all := documents(t)
	reached := map[string]bool{"README.md": true}
	todo := []string{"README.md"}
	targets := map[string][]string{}
	for name, d := range all {
		for _, m := range link.FindAllStringSubmatch(d.text, -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Scheme != "" {
				continue
			}
			to := name
			if u.Path != "" {
				to = path.Join(path.Dir(name), u.Path)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s links to %s, which does not exist", name, m[1])
				continue
			}
			targets[name] = append(targets[name], to)
			if u.Fragment != "" && !slices.Contains(all[to].anchors, u.Fragment) {
				t.Errorf("%s links to %s, and %s has no such heading: %q", name, m[1], to, all[to].anchors)
			}
		}
	}
	for len(todo) > 0 {
		for _, to := range targets[todo[0]] {
			if _, ok := all[to]; ok && !reached[to] {
				reached[to] = true
				todo = append(todo, to)
			}
		}
		todo = todo[1:]
	}
	for name := range all {
		if strings.HasPrefix(name, "docs/") && !reached[name] {
			t.Errorf("no link leads from the README to %s", name)
		}
	}
}

// TestNames tests that the make targets, settings and files that documents name
// exist.
func TestNames(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	var help strings.Builder
	if _, err := config.Load([]string{"--help"}, &help); !errors.Is(err, config.ErrHelp) {
		t.Fatalf("--help: %v", err)
	}
	settings := map[string]bool{"IMAGEROOT_URL": true} // which only commands read
	for _, m := range regexp.MustCompile(`(?m)^  --([a-z0-9-]+)`).FindAllStringSubmatch(help.String(), -1) {
		settings["IMAGEROOT_"+strings.ToUpper(strings.ReplaceAll(m[1], "-", "_"))] = true
	}
	target := regexp.MustCompile("`make ([a-z0-9]+)`")
	variable := regexp.MustCompile(`\bIMAGEROOT_[A-Z0-9_]*[A-Z0-9]`)
	file := regexp.MustCompile("`((?:functions|shared|local|templates|test|infra|tools|docs)/[A-Za-z0-9_./-]+)`")
	all := documents(t)
	for name, d := range all {
		for _, m := range target.FindAllStringSubmatch(d.whole, -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s: make %s is no target", name, m[1])
			}
		}
		for _, v := range variable.FindAllString(d.whole, -1) {
			if !settings[v] && !strings.HasPrefix(name, "test/") {
				t.Errorf("%s: %s is no setting", name, v)
			}
		}
		for _, m := range file.FindAllStringSubmatch(d.whole, -1) {
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s: there is no %s", name, m[1])
			}
		}
	}
	reference := all["docs/settings.md"].whole
	for _, v := range slices.Sorted(maps.Keys(settings)) {
		if !strings.Contains(reference, fmt.Sprintf("`%s`", v)) && v != "IMAGEROOT_VERSION" {
			t.Errorf("docs/settings.md leaves out %s", v)
		}
	}
}

// TestSuffixes tests that the guide to putting images in names the suffix of
// each compression.
func TestSuffixes(t *testing.T) {
	const guide = "docs/put-images-in.md"
	text := documents(t)[guide].whole
	for _, c := range image.Compressions {
		if !strings.Contains(text, "`"+c.Suffix+"`") {
			t.Errorf("%s leaves out %s", guide, c.Suffix)
		}
	}
}

// TestSchemes tests that the documents for users name each scheme of sources.
func TestSchemes(t *testing.T) {
	all := documents(t)
	for _, name := range []string{"README.md", "docs/put-images-in.md"} {
		for _, s := range scheme.All {
			if text := all[name].whole; !strings.Contains(text, "`"+s.Name+"`") && !strings.Contains(text, "`"+s.Name+"://") {
				t.Errorf("%s leaves out the scheme %s of sources", name, s.Name)
			}
		}
	}
}

// TestPackages tests that ARCHITECTURE.md names each package, except those
// below a function's or another package's.
func TestPackages(t *testing.T) {
	text := documents(t)["ARCHITECTURE.md"].whole
	for _, dir := range []string{"functions", "shared"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() && !strings.Contains(text, "`"+dir+"/"+e.Name()+"`") && !strings.Contains(text, "`"+e.Name()+"`") {
				t.Errorf("ARCHITECTURE.md says nothing of %s/%s", dir, e.Name())
			}
		}
	}
}
