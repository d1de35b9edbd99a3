// Package templates renders the pages: it has the html/template files, the structs
// that they show, and the styles and scripts. It does not know where the structs
// come from.
package templates

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
)

//go:embed page
var pageFiles embed.FS

//go:embed static
var staticFiles embed.FS

// static is the directory of styles and scripts.
var static, _ = fs.Sub(staticFiles, "static") // a valid path is no error

// pages are all templates, parsed once. A file that does not parse fails every
// test that links this package.
var pages = template.Must(template.New("").Option("missingkey=error").Funcs(template.FuncMap{
	"static": staticURL,
	"cut":    cutOf,
}).ParseFS(pageFiles, "page/*.tmpl"))

// A View is a struct with a template.
type View interface {
	template() string // its name
}

// Render returns a view as HTML, in memory, so that an error can still be answered
// with a status.
func Render(v View) ([]byte, error) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, v.template(), v); err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return showAll(b.Bytes()), nil
}

// A Fragment is a part of a page that is sent again when it changes.
type Fragment struct {
	ID string
	// Version is another one for each content.
	Version string
	HTML    template.HTML
	// OOB marks a fragment that is sent without its page (htmx: hx-swap-oob).
	OOB bool
}

// NewFragment renders a view as a fragment, whose ID is the name of its template.
func NewFragment(v View) (Fragment, error) {
	b, err := Render(v)
	if err != nil {
		return Fragment{}, err
	}
	sum := sha256.Sum256(b)
	return Fragment{ID: v.template(), Version: hex.EncodeToString(sum[:8]), HTML: template.HTML(b)}, nil //nolint:gosec // html/template made it
}

func (Login) template() string     { return "login" }
func (Images) template() string    { return "images" }
func (AddPage) template() string   { return "add" }
func (ImagePage) template() string { return "image" }
func (About) template() string     { return "about" }
func (Live) template() string      { return "live" }
func (Confirm) template() string   { return "confirm" }
func (Events) template() string    { return "events" }
func (Tokens) template() string    { return "tokens" }
func (Problem) template() string   { return "problem" }
func (Catalog) template() string   { return "catalog" }
func (Running) template() string   { return "running" }
func (Ended) template() string     { return "ended" }
func (Disks) template() string     { return "disks" }
func (Recent) template() string    { return "recent" }
func (Others) template() string    { return "others" }
