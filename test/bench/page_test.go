package main

import (
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const docs = "../../docs"

// TestPage tests that the page and its plots are those of the numbers beside them.
func TestPage(t *testing.T) {
	runs, err := readResults(filepath.Join(docs, "benchmarks.json"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := pageOf(runs, "benchmarks")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(docs, name)); err != nil || string(got) != text {
			t.Errorf("docs/%s is not what its numbers make (%v): run go run ./test/bench -page docs/benchmarks.json", name, err)
		}
	}
	plots, err := filepath.Glob(filepath.Join(docs, "benchmarks-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range plots {
		if want[filepath.Base(path)] == "" {
			t.Errorf("%s is not in the page: remove it", path)
		}
	}
}

// TestPageShowsAll tests that the page has each measurement, and that names with special
// characters spoil neither a table nor a plot.
func TestPageShowsAll(t *testing.T) {
	const name = `cat "a" | wc -c > <b> & *c*`
	r := &report{Command: "go run ./test/bench -only 'a|b'"}
	for _, m := range measurements {
		r.faster(m.name, "work "+m.name, series{"imageroot", "s", []float64{1, 2, 4}}, series{name, "s", []float64{3}}, atLeast(1))
		r.absolute(m.name, name, "MiB", []float64{1}, nil)
	}
	files, err := pageOf([]*report{r}, "page")
	if err != nil {
		t.Fatal(err)
	}
	again, err := pageOf([]*report{r}, "page")
	if err != nil || !maps.Equal(files, again) {
		t.Errorf("the same numbers make another page (%v)", err)
	}
	for _, m := range measurements {
		if !strings.Contains(files["page.md"], "| work "+m.name+" |") {
			t.Errorf("the page leaves out %s", m.name)
		}
		for d := xml.NewDecoder(strings.NewReader(files["page-"+m.name+".svg"])); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("the plot of %s: %v", m.name, err)
			}
		}
	}
	const escaped = `| cat "a" \| wc -c > &lt;b> & \*c\* |`
	if !strings.Contains(files["page.md"], escaped) {
		t.Errorf("the page has no %s:\n%s", escaped, files["page.md"])
	}
}

// TestPageOfTwoMachines tests that a page does not mix the numbers of machines.
func TestPageOfTwoMachines(t *testing.T) {
	if _, err := pageOf([]*report{{Machine: machine{Cores: 2}}, {Machine: machine{Cores: 4}}}, "page"); err == nil {
		t.Error("there is a page of two machines")
	}
}

// TestSave tests that the numbers of a run replace those of the same measurements.
func TestSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "numbers.json")
	for _, r := range []*report{
		{Command: "first", Measurements: []string{"hash", "serve"}, Rows: []row{{Measurement: "hash"}, {Measurement: "serve"}}},
		{Command: "second", Measurements: []string{"hash"}, Rows: []row{{Measurement: "hash"}}},
		{Command: "third", Measurements: []string{"hash", "raw"}, Rows: []row{{Measurement: "hash"}, {Measurement: "raw"}}},
	} {
		if err := r.save(path); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := readResults(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range runs {
		for _, row := range r.Rows {
			got = append(got, r.Command+" "+row.Measurement)
		}
	}
	if want := []string{"first serve", "third hash", "third raw"}; !slices.Equal(got, want) {
		t.Errorf("the file has %q, want %q", got, want)
	}
}
