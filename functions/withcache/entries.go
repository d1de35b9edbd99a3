package withcache

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// A request is the body of POST /withcache/catalog/entries, and its answer.
type request struct {
	Name        string `json:"name"`
	Src         string `json:"src"`
	ResolvedSrc string `json:"resolved_src,omitempty"`
	Format      string `json:"format,omitempty"`
	Arch        string `json:"arch,omitempty"`
	SHA256      string `json:"sha256,omitempty"`
	SizeBytes   *int64 `json:"size_bytes,omitempty"`
	Description string `json:"description,omitempty"`
	NetbootRef  string `json:"netboot_ref,omitempty"`
}

// decode reads a request. Unlike other routes, it refuses unknown members, as clients
// expect it.
func decode(w http.ResponseWriter, r *http.Request) (in request, err error) {
	var members map[string]json.RawMessage
	if err := web.Decode(w, r, &members); err != nil {
		return in, err
	}
	known := in.members()
	for _, key := range slices.Sorted(maps.Keys(members)) {
		field, ok := known[key]
		if !ok {
			return in, problem.Newf(problem.Invalid, "unknown key %.100q: known are %s", key, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if err := json.Unmarshal(members[key], field); err != nil {
			return in, problem.Newf(problem.Invalid, "%s must be a %s", key, map[bool]string{true: "whole number", false: "string"}[key == "size_bytes"])
		}
	}
	switch in.Name, in.Src = strings.TrimSpace(in.Name), strings.TrimSpace(in.Src); {
	case in.Name == "":
		return in, problem.New(problem.Invalid, "name is missing: give the image a name")
	case in.Src == "":
		return in, problem.New(problem.Invalid, "src is missing: give the URL of the image")
	case in.SizeBytes != nil && *in.SizeBytes < 0:
		return in, problem.New(problem.Invalid, "size_bytes is negative")
	}
	return in, nil
}

// members returns the fields of a request by their keys.
func (in *request) members() map[string]any {
	return map[string]any{
		"arch": &in.Arch, "description": &in.Description, "format": &in.Format, "name": &in.Name, "netboot_ref": &in.NetbootRef,
		"resolved_src": &in.ResolvedSrc, "sha256": &in.SHA256, "size_bytes": &in.SizeBytes, "src": &in.Src,
	}
}

// words returns the name and the metadata that a request gives an image.
func (in *request) words() (*metadata.Words, error) {
	name, format, err := image.Named(in.Name, in.Format)
	switch {
	case err != nil && in.Format != "":
		return nil, problem.New(problem.Invalid, err.Error())
	case err == nil && !format.Image():
		return nil, problem.Newf(problem.Invalid, "%s is no format of disk images: list the file in the manifest", format)
	}
	words := &metadata.Words{Name: name}
	if in.Name != string(name) {
		words.Title = in.Name // without a format, the source says the suffix
	}
	words.Description = in.Description
	labels := map[string]string{netbootRef: in.NetbootRef, resolvedSrc: in.ResolvedSrc}
	if a, ok := metadata.Architecture(in.Arch); ok {
		words.Architecture = a
	} else {
		labels["arch"] = in.Arch
	}
	for key, value := range labels {
		if value == "" {
			delete(labels, key)
		}
	}
	words.Labels = labels
	if err := words.Check(); err != nil {
		return nil, problem.New(problem.Invalid, err.Error())
	}
	return words, nil
}

// sourceTime bounds the time in which a source must answer. Its client may have left
// before: then the answer to its next request is quick.
const sourceTime = time.Minute

// patient returns r with a context that outlasts the client.
func patient(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), sourceTime)
	return r.WithContext(ctx), cancel
}

// add answers POST /withcache/catalog/entries.
func (f *Function) add(w http.ResponseWriter, r *http.Request) error {
	in, err := decode(w, r)
	if err != nil {
		return err
	}
	words, err := in.words()
	if err != nil {
		return err
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	if len(named(s, in.Name)) > 0 {
		return problem.Newf(problem.Conflict, "the catalog has an image with the name %s already", in.Name)
	}
	r, cancel := patient(r)
	defer cancel()
	e, _, err := f.Add(r, entry.Request{ImageURL: in.Src, SHA256: in.SHA256, SizeBytes: in.SizeBytes, Words: words})
	if err != nil {
		return err
	}
	in.Src, in.Format, in.SizeBytes, in.SHA256 = e.URL, e.Format, e.SizeBytes, string(e.SHA256)
	return web.JSON(w, http.StatusCreated, in)
}

// named returns the sources whose name for clients is name, those of entries first.
func named(s *inventory.Snapshot, name string) (found []origin) {
	formats := image.Formats()
	for h := range s.Heads() {
		if f := h.Format(); !slices.Contains(formats, f) {
			formats = append(formats, f)
		}
	}
	names := []image.Name{image.Name(name)}
	for _, format := range formats {
		if n := image.Titled(name, format); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, n := range names {
		for h := range s.AllNamed(n) {
			row := s.Row(h)
			for _, src := range row.Sources {
				if src.Name == n {
					found = append(found, origin{row, src})
				}
			}
		}
	}
	kinds := []string{inventory.URL, inventory.Manifest, inventory.Local}
	slices.SortStableFunc(found, func(a, b origin) int {
		return cmp.Compare(slices.Index(kinds, a.src.Kind), slices.Index(kinds, b.src.Kind))
	})
	return found
}

// An origin is a source and its row.
type origin struct {
	row *inventory.Row
	src inventory.Source
}

// remove answers DELETE /withcache/catalog/entries.
func (f *Function) remove(w http.ResponseWriter, r *http.Request) error {
	name := strings.TrimSpace(r.URL.Query().Get("name"))
	if name == "" {
		return problem.New(problem.Invalid, "name is missing: give the name of the entry in ?name=")
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	switch found := named(s, name); {
	case len(found) == 0:
		return problem.New(problem.NotFound, "there is no entry of this name")
	case found[0].src.Kind == inventory.Manifest:
		return problem.New(problem.Conflict, name+" is in the manifest: remove it there")
	case found[0].src.Kind == inventory.Local:
		return problem.New(problem.Conflict, name+" is an image in the image root: DELETE /images/"+name+" deletes it")
	case len(found) > 1 && found[1].src.Kind == inventory.URL:
		return problem.New(problem.Conflict, "several entries have the name "+name+": delete the one that you mean by its URL, with DELETE /catalog/entries?src=")
	default:
		if _, err := f.Remove(r, found[0].src.Location); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

// A download is the answer to a request to download an image.
type download struct {
	Name   string     `json:"name"`
	Src    string     `json:"src"`
	JobID  layout.Ref `json:"job_id"`
	Status job.Status `json:"status"`
}

// download answers POST /withcache/catalog/entries/{name}/download.
func (f *Function) download(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	found := named(s, name)
	if len(found) == 0 {
		return problem.New(problem.NotFound, "there is no entry of this name")
	}
	o := found[0]
	if o.src.Kind == inventory.Local {
		return web.JSON(w, http.StatusAccepted, download{name, web.BaseURL(r) + inventory.OwnPath(o.src.Name), "", job.Completed})
	}
	switch r.URL.Query().Get("force") {
	case "1", "true", "yes":
		if err := web.Require(r.Context(), web.Operator); err != nil { // as to drop fetched bytes
			return err
		}
		r, cancel := patient(r)
		defer cancel()
		if err := f.forget(r, o); err != nil {
			return err
		}
	}
	d, err := f.fetch(r, o.src.Ref)
	if err != nil {
		return err
	}
	d.Name = name
	return web.JSON(w, http.StatusAccepted, d)
}

// forget has the next fetch of a source bring its bytes here again.
func (f *Function) forget(r *http.Request, o origin) error {
	_, local := o.row.Local()
	fetched := !local && o.row.Blob
	if fetched {
		if err := f.Cancel(r.Context(), o.src.Ref); err != nil {
			return err
		}
	}
	if o.src.Kind == inventory.URL {
		if _, _, err := f.Add(r, entry.Request{ImageURL: o.src.Location, Refresh: true}); err != nil {
			return err
		}
	}
	if !fetched {
		return nil
	}
	if err := f.Uncache(r.Context(), o.row.Digest()); err != nil {
		return err
	}
	f.Activity.ByOperator(r, activity.ImageUncached, string(o.row.Digest()), "dropped the fetched bytes of "+string(o.row.Names[0]), nil)
	return nil
}

// fetch queues the fetch of a source, unless its bytes are here.
func (f *Function) fetch(r *http.Request, ref layout.Ref) (download, error) {
	f.Inventory.Expire() // another process may have added the entry just now
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return download{}, err
	}
	row, ok := s.BySource(ref)
	i := -1
	if ok {
		i = slices.IndexFunc(row.Sources, func(s inventory.Source) bool { return s.Ref == ref })
	}
	if i < 0 {
		return download{}, problem.New(problem.NotFound, "the catalog no longer has this image")
	}
	d := download{string(row.Sources[i].Name), row.Sources[i].Location, ref, job.Completed}
	if row.Cached {
		return d, nil
	}
	j, err := f.Fetch(r.Context(), row, ref, web.ClientIP(r))
	d.Status = j.Status
	return d, err
}

// want answers POST /withcache/misses: it adds an entry of a URL that a client has asked
// for, unless the catalog has it, and fetches the image.
func (f *Function) want(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Src string `json:"src"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	if in.Src == "" {
		return problem.New(problem.Invalid, "src is missing: give the URL of the image")
	}
	long, cancel := patient(r)
	defer cancel()
	ref, err := f.Ensure(long, in.Src)
	if err != nil {
		return err
	}
	d, err := f.fetch(long, ref)
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusAccepted, d, "fetch of "+d.Name+" queued")
}
