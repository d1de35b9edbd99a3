// Package scheme names the URL schemes of sources. It is separate from package source,
// so that programs that only check or show URLs link no client.
package scheme

import (
	"slices"
	"strings"
)

// A Scheme is a kind of source. In its URLs, url.Parse must find a host and no user
// name. The manifest checks this. The parser of the scheme checks the rest when the
// source is fetched.
type Scheme struct {
	Name      string // in lower case
	Browsable bool   // a browser can open such a URL
}

// All are the schemes that package source reads, in the order in which messages
// list them.
var All = []Scheme{
	{Name: "https", Browsable: true},
	{Name: "http", Browsable: true},
	{Name: "oras"},
}

// Of returns the scheme of a URL. ok is false if sources have no such scheme.
func Of(url string) (s Scheme, ok bool) {
	name, _, found := strings.Cut(url, ":")
	i := slices.IndexFunc(All, func(s Scheme) bool { return strings.EqualFold(s.Name, name) })
	if !found || i < 0 {
		return Scheme{}, false
	}
	return All[i], true
}

// List returns the names for a sentence, each with suffix: "https, http or oras".
func List(suffix string) string {
	var names []string
	for _, s := range All {
		names = append(names, s.Name+suffix)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
