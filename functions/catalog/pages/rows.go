package pages

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"imageroot/functions/catalog"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/source/scheme"
	"imageroot/templates"
)

const (
	// pageRows is the maximum number of rows on a page.
	pageRows = 100
	// keptRows is the maximum number of searches whose rows are cached until the
	// catalog changes.
	keptRows = 16
)

// rows returns the rows of a query.
func (p *Pages) rows(r *http.Request, s *inventory.Snapshot, v url.Values, jobs inventory.Listing) (templates.Fragment, error) {
	q, err := catalog.ParseQuery(v)
	if err != nil {
		return templates.Fragment{}, err
	}
	if q.Limit == 0 || q.Limit > pageRows {
		q.Limit = pageRows
	}
	fetching := fetching(jobs)
	key := fmt.Sprintf("%q %q %q", known(v).Encode(), r.Host, fetching)
	k := &p.kept.rows
	k.Lock()
	defer k.Unlock()
	if k.snapshot != s || len(k.byQuery) >= keptRows {
		k.snapshot, k.byQuery = s, map[string]templates.Fragment{}
	}
	if f, ok := k.byQuery[key]; ok {
		return f, nil
	}
	found, err := catalog.Search(s, q)
	if err != nil {
		return templates.Fragment{}, err
	}
	c := templates.Catalog{
		Problem: s.ManifestProblem(), Notes: s.ManifestWarnings(), Total: count(int64(found.Total)), One: found.Total == 1, Searched: strings.TrimSpace(q.Text) != "" || len(filtersOf(v)) > 0,
		Columns: columns(v, q.Sort), Chips: chips(s, v),
		Summary: templates.Summary{Stored: sizeOf(s.StoredBytes), Location: p.Location},
	}
	for _, row := range found.Rows {
		c.Rows = append(c.Rows, p.rowView(row, fetching))
	}
	if found.Next != "" {
		c.Next = imagesPath + "?" + with(known(v), "cursor", found.Next)
	}
	if q.Cursor != "" {
		c.First = imagesPath + "?" + with(known(v), "cursor", "")
	}
	if s.Len() == 0 {
		c.Begin = &templates.Begin{Location: p.Location, Shell: p.shell(r)}
		for _, f := range image.Formats() {
			c.Begin.Formats = append(c.Begin.Formats, string(f))
		}
	}
	f, err := templates.NewFragment(c)
	if err == nil {
		k.byQuery[key] = f
	}
	return f, err
}

// fetching returns the status of the active fetch jobs by their URLs.
func fetching(jobs inventory.Listing) map[string]job.Status {
	active := map[string]job.Status{}
	for i := range jobs.Jobs {
		if j := &jobs.Jobs[i]; j.Status.Active() && j.Src != "" {
			active[j.Src] = j.Status
		}
	}
	return active
}

// filters are the fields of the page's query that select rows, beside its words.
var filters = []string{"state", "os", "arch", "format", "label"}

// filtersOf returns the filters in a query.
func filtersOf(v url.Values) (list []templates.Detail) {
	for _, name := range filters {
		for _, value := range v[name] {
			if value != "" {
				list = append(list, templates.Detail{Name: name, Value: value})
			}
		}
	}
	return list
}

// known returns the fields of the page's query, without those that a refresh adds.
func known(v url.Values) url.Values {
	k := url.Values{}
	for _, name := range []string{"q", "sort", "limit", "cursor"} {
		if s := v.Get(name); s != "" {
			k.Set(name, s)
		}
	}
	for _, f := range filtersOf(v) {
		k.Add(f.Name, f.Value)
	}
	return k
}

// chips returns the links to the states of images, and those that remove a filter.
func chips(s *inventory.Snapshot, v url.Values) []templates.Chip {
	base := known(v)
	base.Del("cursor")
	var list []templates.Chip
	attention := "1 needs attention"
	if s.Attention != 1 {
		attention = count(int64(s.Attention)) + " need attention"
	}
	states := []struct{ value, text string }{
		{"", "All " + count(int64(s.Len()))},
		{"attention", attention},
		{"cached", "Cached"},
		{"available", "Available"},
	}
	for _, state := range states {
		on := base.Get("state") == state.value
		if state.value == "attention" && s.Attention == 0 && !on {
			continue
		}
		list = append(list, templates.Chip{ID: "state-" + cmp.Or(state.value, "all"), Text: state.text, URL: imagesPath + "?" + with(base, "state", state.value), On: on})
	}
	for _, f := range filtersOf(base) {
		if f.Name == "state" && slices.ContainsFunc(states, func(s struct{ value, text string }) bool { return s.value == f.Value }) {
			continue
		}
		without := known(base)
		without[f.Name] = slices.DeleteFunc(slices.Clone(without[f.Name]), func(value string) bool { return value == f.Value })
		list = append(list, templates.Chip{ID: "filter-" + shortHash(f.Name+"="+f.Value), Text: f.Name + ": " + f.Value, URL: imagesPath + "?" + without.Encode(), On: true, Remove: true})
	}
	return list
}

func columns(v url.Values, sort string) []templates.Column {
	by, reverse := strings.CutPrefix(cmp.Or(sort, "name"), "-")
	list := []templates.Column{
		{ID: "state", Text: "Status"},
		{ID: "name", Text: "Image"},
		{Text: "System"},
		{ID: "format", Text: "Format"},
		{ID: "size", Text: "Size"},
		{Text: "Disk"},
		{ID: "added", Text: "Added"},
		{Text: "Actions"},
	}
	for i := range list {
		c := &list[i]
		if c.ID == "" {
			continue
		}
		next := c.ID
		c.Order = "none"
		if by == c.ID {
			if c.Order = "ascending"; reverse {
				c.Order = "descending"
			} else {
				next = "-" + c.ID
			}
		}
		q := known(v)
		q.Del("cursor")
		c.Sort = imagesPath + "?" + with(q, "sort", next)
	}
	return list
}

func sorts(selected string) []templates.Option {
	list := []templates.Option{
		{Value: "name", Text: "Name, A to Z"},
		{Value: "-name", Text: "Name, Z to A"},
		{Value: "-size", Text: "Size, largest first"},
		{Value: "size", Text: "Size, smallest first"},
		{Value: "-added", Text: "Added, newest first"},
		{Value: "added", Text: "Added, oldest first"},
		{Value: "format", Text: "Format"},
		{Value: "-format", Text: "Format, reversed"},
		{Value: "sha256", Text: "Digest"},
		{Value: "-sha256", Text: "Digest, reversed"},
		{Value: "state", Text: "State"},
		{Value: "-state", Text: "State, reversed"},
	}
	for i := range list {
		list[i].Selected = list[i].Value == cmp.Or(selected, "name")
	}
	return list
}

// imagePath returns the URL of the page of an image: by its SHA-256, or by a name and the
// URL of a source if it has none.
func imagePath(sha256 layout.SHA256, name image.Name, src string) string {
	if sha256 != "" {
		return imagesPath + "/" + string(sha256)
	}
	path := imagesPath + "/" + url.PathEscape(string(name))
	if src != "" {
		path += "?" + url.Values{"src": {src}}.Encode()
	}
	return path
}

// pageOf returns the URL of the page of a row.
func pageOf(row *inventory.Row) string {
	src := ""
	if first := row.Sources[0]; first.Kind != inventory.Local {
		src = first.Location
	}
	return imagePath(row.Digest(), row.Names[0], src)
}

// rowID returns the ID of the element of a row, which stays with its content.
func rowID(row *inventory.Row) string {
	first := row.Sources[0]
	return "r" + shortHash(cmp.Or(string(row.Digest()), first.Kind+" "+first.Location))
}

func (p *Pages) rowView(row *inventory.Row, fetching map[string]job.Status) templates.Row {
	v := templates.Row{
		ID: rowID(row), Page: pageOf(row), Name: row.Names[0], Format: string(row.Format),
		Actions: p.actions(row, fetching), Status: statusOf(row, fetching), Failed: hasFailed(row),
	}
	if row.SizeBytes != nil {
		s := sizeOf(*row.SizeBytes)
		v.Size = &s
	}
	if d := row.VirtualSizeBytes; d != nil {
		s := sizeOf(*d)
		v.Virtual = &s
	}
	if len(row.Warnings) > 0 {
		v.Warning = row.Warnings[0]
	}
	v.Title = row.Metadata.Title.Get()
	if m := &row.Metadata; m.System != nil {
		v.System = filterLink("os", m.System.Value, strings.TrimSpace(systemName(m.System.Value)+" "+m.Version.Get()))
	}
	if arch := row.Metadata.Architecture.Get(); arch != "" {
		v.Arch = filterLink("arch", arch, arch)
	}
	if !row.Added.IsZero() {
		v.Added = &templates.Time{At: row.Added}
	}
	if v.Failed {
		v.Dismiss = addBack(dismissPath(row), "#"+v.ID)
	}
	for _, s := range row.Sources {
		if fetching[s.Location] != "" {
			v.Fetching = s.Location
		}
	}
	v.Batch = batchOf(v, row)
	return v
}

// filterLink returns a link to the rows that a filter selects.
func filterLink(filter, value, text string) *templates.Link {
	return &templates.Link{Text: text, URL: imagesPath + "?" + url.Values{filter: {value}}.Encode()}
}

// systemName returns the ID of a system as people write it.
func systemName(id string) string {
	if id == "" {
		return ""
	}
	return strings.ToUpper(id[:1]) + id[1:]
}

// hasFailed reports whether the last try to hash or fetch an image has failed.
func hasFailed(row *inventory.Row) bool {
	return row.HashState == string(job.Failed) || row.FetchFailed
}

// dismissPath returns the URL that dismisses the failure of a row.
func dismissPath(row *inventory.Row) string {
	j := job.Job{Name: row.Names[0]}
	if row.HashState != string(job.Failed) {
		j.Src = fetchFrom(row)
	}
	return cancelPath(&j)
}

// fetchFrom returns the location that an image that is not cached is fetched from, or "".
func fetchFrom(row *inventory.Row) string {
	i := slices.IndexFunc(row.Sources, func(s inventory.Source) bool { return s.Kind != inventory.Local })
	if i < 0 || row.Cached {
		return ""
	}
	return row.Sources[i].Location
}

// statusOf returns the state of an image in words.
func statusOf(row *inventory.Row, fetching map[string]job.Status) templates.Status {
	var fetch job.Status
	for _, s := range row.Sources {
		if status := fetching[s.Location]; status != "" && fetch != job.Running {
			fetch = status
		}
	}
	switch state := job.Status(row.HashState); {
	case fetch == job.Running:
		return templates.Status{Kind: "busy", Text: "fetching", Busy: true}
	case fetch == job.Queued:
		return templates.Status{Kind: "waiting", Text: "fetch queued"}
	case state == job.Running:
		return templates.Status{Kind: "busy", Text: "hashing", Busy: true}
	case state == job.Queued:
		return templates.Status{Kind: "waiting", Text: "hash queued"}
	case state == job.Failed:
		return templates.Status{Kind: "failed", Text: "hash failed"}
	case row.FetchFailed:
		return templates.Status{Kind: "failed", Text: "fetch failed"}
	case !row.Cached:
		return templates.Status{Kind: "missing", Text: "available"}
	case row.SHA256 == nil:
		return templates.Status{Kind: "waiting", Text: "unhashed"}
	}
	return templates.Status{Kind: "good", Text: "cached"}
}

// actions returns what can be done with an image.
func (p *Pages) actions(row *inventory.Row, fetching map[string]job.Status) templates.Actions {
	a := templates.Actions{Uncache: row.Blob}
	k := row.Known
	if k != nil && k.Check != nil && row.Cached && k.Check.Verdict != content.Good {
		a.Check = string(row.Names[0])
		if name, ok := row.Local(); ok {
			a.Check = string(name)
		}
	}
	if row.Cached && row.SHA256 != nil {
		a.Download, a.Flash = catalog.ImagePath(row.Digest(), row.Names[0]), row.Format.Image()
		if k != nil && !k.Kind.Raw() {
			a.Raw, a.Disk = p.RawPath(row.Head), string(image.DiskName(row.Names[0]))
			a.MakeDisk = p.CanMakeDisk(row.Head)
		}
	}
	if name, ok := row.Local(); ok && row.SHA256 == nil && !job.Status(row.HashState).Active() {
		a.Hash = string(name)
	}
	a.Fetch = fetchFrom(row)
	for _, s := range row.Sources {
		if s.Kind == inventory.URL && len(row.Warnings) > 0 {
			a.Refresh = s.Location
		}
		if fetching[s.Location] != "" {
			a.Fetch = ""
		}
	}
	return a
}

// sources returns the sources of a row.
func (p *Pages) sources(row *inventory.Row) (list []templates.Source) {
	id := rowID(row)
	for i, s := range row.Sources {
		src := templates.Source{ID: id + "-s" + strconv.Itoa(i), Kind: s.Kind, Location: s.Location, Name: s.Name}
		switch s.Kind {
		case inventory.Local:
			src.Location, src.What, src.Key = p.Location+string(s.Name), "image", string(s.Name)
			src.Rename = renamePath(s.Name)
			if row.Known != nil {
				src.Fitting = row.Known.Fitting(s.Name)
			}
		case inventory.URL:
			src.What, src.Key = "entry", s.Location
		}
		if s.Kind != inventory.Local {
			if scheme, _ := scheme.Of(s.Location); scheme.Browsable {
				src.Link = s.Location
			}
		}
		list = append(list, src)
	}
	return list
}

// A batch is what can be done with a row together with others: the forms that do it.
type batch struct {
	Name   image.Name `json:"name"`
	Fetch  string     `json:"fetch,omitempty"`  // the location
	Hash   string     `json:"hash,omitempty"`   // the name
	Delete []string   `json:"delete,omitempty"` // paths
}

func batchOf(v templates.Row, row *inventory.Row) string {
	b := batch{Name: v.Name, Fetch: v.Fetch, Hash: cmp.Or(v.Hash, v.Check)}
	for _, s := range row.Sources {
		switch s.Kind {
		case inventory.Local:
			b.Delete = append(b.Delete, deleteImage(s.Name))
		case inventory.URL:
			b.Delete = append(b.Delete, deleteEntry(s.Location))
		}
	}
	data, err := json.Marshal(b)
	if err != nil {
		return "{}"
	}
	return string(data)
}
