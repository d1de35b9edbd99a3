package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"text/template"
)

//go:embed page.md.tmpl
var pageText string

// A page is what the template of the page is executed with.
type page struct {
	Runs    []*report
	Machine machine

	name  string // of the files, without a suffix
	files map[string]string
	shown []string // measurements
}

// writePage reads a file of -json, and writes the page and the plots of its numbers beside it.
func writePage(from string) error {
	runs, err := readResults(from)
	if err != nil {
		return err
	}
	base := strings.TrimSuffix(filepath.Base(from), ".json")
	files, err := pageOf(runs, base)
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(from), name), []byte(text), 0o644))
	}
	return err
}

// pageOf returns the files of the page by name: NAME.md and its plots. They depend on the
// arguments alone.
func pageOf(runs []*report, name string) (map[string]string, error) {
	if len(runs) == 0 {
		return nil, errors.New("there are no numbers: run the bench with -json")
	}
	p := &page{Runs: runs, Machine: runs[0].Machine, name: name, files: map[string]string{}}
	for _, r := range runs {
		if !reflect.DeepEqual(r.Machine, p.Machine) {
			return nil, fmt.Errorf("%v and %v were measured on different machines, or with different tools: measure all of them again",
				runs[0].Measurements, r.Measurements)
		}
	}
	t, err := template.New("page").Funcs(template.FuncMap{"cell": cell, "join": strings.Join}).Parse(pageText)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := t.Execute(&text, p); err != nil {
		return nil, err
	}
	for _, r := range p.all() {
		if !slices.Contains(p.shown, r.Measurement) {
			return nil, fmt.Errorf("page.md.tmpl does not show the measurement %s", r.Measurement)
		}
	}
	p.files[name+".md"] = text.String()
	return p.files, nil
}

func (p *page) all() []row {
	var all []row
	for _, r := range p.Runs {
		all = append(all, r.Rows...)
	}
	return all
}

// Show returns the plot and the tables of a measurement.
func (p *page) Show(measurement string) string {
	p.shown = append(p.shown, measurement)
	rows := slices.DeleteFunc(p.all(), func(r row) bool { return r.Measurement != measurement })
	if len(rows) == 0 {
		return "Not measured."
	}
	var compared, absolute string
	for _, r := range rows {
		if r.Peer == nil {
			absolute += fmt.Sprintf("| %s | %s | %s |\n", cell(r.What), r.Ours, r.limit())
			continue
		}
		mark := ""
		if r.noisy() {
			mark = " \\~"
		}
		compared += fmt.Sprintf("| %s | %s | %s | %s | %.2f%s | %s |\n", cell(r.What), r.Ours, cell(r.Peer.Name), r.Peer, r.speed(), mark, r.limit())
	}
	text := ""
	if compared != "" {
		file := p.name + "-" + measurement + ".svg"
		p.files[file] = plot(measurement, groups(rows))
		text += `<img src="` + file + `" width="100%" alt="Bars of the times in the table below">` + "\n\n" +
			"| | imageroot | instead | | speed | bound |\n|---|---|---|---|---|---|\n" + compared
	}
	if absolute != "" {
		table := "\n| | imageroot | bound |\n|---|---|---|\n" + absolute
		if n := strings.Count(absolute, "\n"); n > 20 {
			table = fmt.Sprintf("<details>\n<summary>All %d rows</summary>\n%s\n</details>\n", n, table)
		}
		text += table
	}
	return strings.Trim(text, "\n")
}

// speed returns the speed of imageroot, as a multiple of that of the other tool.
func (r row) speed() float64 { return r.Peer.median() / r.Ours.median() }

// noisy reports whether a side is.
func (r row) noisy() bool { return r.Ours.noisy() || r.Peer.noisy() }

// limit returns the bound as text.
func (r row) limit() string {
	if r.Bound == nil {
		return ""
	}
	text := r.Bound.Kind + " " + format(r.Bound.Value)
	if r.Of == "time" {
		text += " of the time"
	}
	if !*r.Met {
		text += ", **missed**"
	}
	return text
}

// Compared returns the comparisons by their speed: at least a tenth faster or slower, or between.
func (p *page) Compared() (c struct{ All, Faster, Equal, Slower, Noisy []string }) {
	for _, r := range p.all() {
		if r.Peer == nil {
			continue
		}
		name := fmt.Sprintf("%s, %s: %.2f of the speed of %s", r.Measurement, r.What, r.speed(), r.Peer.Name)
		c.All = append(c.All, name)
		if r.noisy() {
			c.Noisy = append(c.Noisy, name)
		}
		switch s := r.speed(); {
		case s >= 1.1:
			c.Faster = append(c.Faster, name)
		case s > 1/1.1:
			c.Equal = append(c.Equal, name)
		default:
			c.Slower = append(c.Slower, name)
		}
	}
	return c
}

// cell returns text for a cell of a Markdown table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`, "`", "\\`", "~", `\~`).Replace(text)
}
