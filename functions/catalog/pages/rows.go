package pages

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"imageroot/functions/catalog"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
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
func (p *Pages) rows(r *http.Request, s *inventory.Snapshot, v url.Values, downloads []job.Job) (templates.Fragment, error) {
	q, err := catalog.ParseQuery(v)
	if err != nil {
		return templates.Fragment{}, err
	}
	if q.Limit == 0 || q.Limit > pageRows {
		q.Limit = pageRows
	}
	fetching := map[string]string{}
	for i := range downloads {
		if j := &downloads[i]; j.Status.Active() {
			fetching[j.Src] = string(j.Status)
		}
	}
	key := fmt.Sprintf("%q %q", []string{q.Text, q.Sort, q.Cursor, strconv.Itoa(q.Limit), r.Host}, fetching)
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
		Problem: s.Problem, Total: count(int64(found.Total)), One: found.Total == 1, Searched: strings.TrimSpace(q.Text) != "",
		Columns: columns(v, q.Sort),
	}
	before := "catalog"
	for _, row := range found.Rows {
		view := p.rowView(row, fetching)
		view.Before, before = before, view.ID
		c.Rows = append(c.Rows, view)
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

// known returns the fields of the page's query, without those that a refresh adds.
func known(v url.Values) url.Values {
	k := url.Values{}
	for _, name := range []string{"q", "sort", "limit", "cursor"} {
		if s := v.Get(name); s != "" {
			k.Set(name, s)
		}
	}
	return k
}

func columns(v url.Values, sort string) []templates.Column {
	by, reverse := strings.CutPrefix(cmp.Or(sort, "name"), "-")
	list := []templates.Column{
		{ID: "name", Text: "Image"},
		{ID: "sha256", Text: "SHA-256"},
		{ID: "format", Text: "Format"},
		{ID: "size", Text: "Size"},
		{Text: "Sources"},
		{Text: "Bytes"},
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

func (p *Pages) rowView(row *inventory.Row, fetching map[string]string) templates.Row {
	first := row.Sources[0]
	id := "r" + shortHash(cmp.Or(string(row.Digest()), first.Kind+" "+first.Location))
	v := templates.Row{
		ID: id, Name: row.Names[0], Others: row.Names[1:], SHA256: row.Digest(), State: row.HashState,
		Format: string(row.Format), Cached: row.Cached, FetchFailed: row.FetchFailed, Warnings: row.Warnings, Uncache: row.Blob,
	}
	if row.Ref != nil {
		v.Ref = *row.Ref
	}
	if row.SizeBytes != nil {
		s := sizeOf(*row.SizeBytes)
		v.Size = &s
	}
	if k := row.Known; k != nil {
		if k.Kind != content.Unknown {
			v.Content = k.What
		}
		if d := row.VirtualSizeBytes; d != nil && (row.SizeBytes == nil || *d != *row.SizeBytes) {
			s := sizeOf(*d)
			v.Virtual = &s
		}
		if c := k.Check; c != nil && row.Cached && (c.Verdict == content.Cancelled || c.Verdict == content.Unchecked) {
			v.Check = string(row.Names[0])
		}
	}
	if row.Cached && row.SHA256 != nil {
		v.Download = catalog.ImagePath(row.Digest(), row.Names[0])
		if k := row.Known; k != nil && !k.Kind.Raw() {
			v.Raw, v.Disk = p.RawPath(row.Head), string(image.DiskName(row.Names[0]))
			v.MakeDisk = p.CanMakeDisk(row.Head)
		}
	}
	if name, ok := row.Local(); ok && row.SHA256 == nil && row.HashState != string(job.Queued) && row.HashState != string(job.Running) {
		v.Hash = string(name)
	}
	for i, s := range row.Sources {
		src := templates.Source{ID: id + "-s" + strconv.Itoa(i), Kind: s.Kind, Location: s.Location, Name: s.Name}
		switch s.Kind {
		case inventory.Local:
			src.Location, src.What, src.Key = p.Location+string(s.Name), "image", string(s.Name)
		case inventory.URL:
			src.What, src.Key = "entry", s.Location
			if len(row.Warnings) > 0 {
				v.Refresh = s.Location
			}
		}
		if s.Kind != inventory.Local {
			if scheme, _ := scheme.Of(s.Location); scheme.Browsable {
				src.Link = s.Location
			}
			if status := fetching[s.Location]; status != "" && v.Fetching != "running" {
				v.Fetching = status
			}
			if v.Fetch == "" && !row.Cached {
				v.Fetch = s.Location
			}
		}
		v.Sources = append(v.Sources, src)
	}
	if v.Fetching != "" {
		v.Fetch = ""
	}
	return v
}
