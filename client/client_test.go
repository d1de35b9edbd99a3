package client

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestLabels(t *testing.T) {
	got, err := labels([]string{"a=b=c", "d=", "e-"})
	if want := map[string]any{"labels": map[string]any{"a": "b=c", "d": "", "e": nil}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"a", "=b", "-", ""} {
		if got, err := labels([]string{bad}); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

// TestState tests that what is kept of an upload is found again by another run, except a line
// that a crash has cut, and not for a file that has changed.
func TestState(t *testing.T) {
	dir := t.TempDir()
	head := stateHead{URL: "http://a", Name: "a.img", Path: "/a.img", Size: 3, Modified: time.Unix(1, 2)}
	open := func(h stateHead) *uploadState {
		t.Helper()
		s, err := openState(dir, h)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(head)
	s.begin("1")
	s.sent(sentPart{Number: 1, ETag: "x", SHA256: "y"})
	s.sent(sentPart{Number: 2, ETag: "x", SHA256: "y"})
	if _, err := openState(dir, head); err == nil {
		t.Error("two runs may use it at once")
	}
	path := s.f.Name()
	s.close(false)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(head)
	if s.head.ID != "1" || len(s.parts) != 1 || s.parts[1].ETag != "x" {
		t.Errorf("%+v %+v", s.head, s.parts)
	}
	s.close(false)
	changed := head
	changed.Modified = time.Unix(1, 3)
	s = open(changed)
	if s.head.ID != "" {
		t.Errorf("a changed file: %+v", s.head)
	}
	s.close(true)
	if left, err := filepath.Glob(filepath.Join(dir, "*/*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q %v", left, err)
	}
}

// TestWriteSparse tests that blocks of zeros are left out, wherever the pieces begin.
func TestWriteSparse(t *testing.T) {
	data := make([]byte, 100_000)
	copy(data[5_000:], "some")
	copy(data[50_000:], strings.Repeat("x", 9000))
	for _, piece := range []int{1000, 4096, 33_333, len(data)} {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(data); at += piece {
			if err := writeSparse(f, data[at:min(at+piece, len(data))], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(int64(len(data))); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("in pieces of %d: %v", piece, err)
		}
		_ = f.Close()
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	tab := table{heads: []string{"NAME", " SIZE"}}
	tab.add("日本.img", "1")
	tab.add("a\n\x1b[2J", "22")
	if err := tab.print(&out); err != nil {
		t.Fatal(err)
	}
	if want := "NAME           SIZE\n日本.img          1\na␤[U+001B][2J    22\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// TestSameInShells tests which names are completed: bash evaluates what it has completed.
func TestSameInShells(t *testing.T) {
	for name, want := range map[string]bool{
		"debian-13.1_arm64+x,@%.img": true, "Grüße.img": true, "e\u0301.img": true,
		"a$(id).img": false, "a`id`.img": false, "a;id.img": false, "a b.img": false, "a --url=b.img": false, "-o.img": false,
		"~root.img": false, "{a,b}.img": false, "a*.img": false, "a'.img": false, "a&.img": false, "a\u202e.img": false, "a\u00a0b.img": false,
	} {
		if got := sameInShells(name); got != want {
			t.Errorf("%q is completed: %v", name, got)
		}
	}
}
