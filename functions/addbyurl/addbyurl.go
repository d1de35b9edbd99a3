// Package addbyurl adds, lists and removes entries, the images that operators name by
// URL. Adding resolves the URL; the bytes are fetched by package fetch.
package addbyurl

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/source/scheme"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// A Resolver describes what a URL names: see the methods of [source.Client].
type Resolver interface {
	Resolve(ctx context.Context, l source.Location, shaURL string) (*source.Resolved, error)
	FindChecksums(ctx context.Context, imageURL string) (shaURL string, r *source.Resolved, err error)
}

// A Function handles the routes of entries. All fields are required. It is safe for
// concurrent use.
type Function struct {
	Catalog   store.Root
	Sources   Resolver
	Inventory *inventory.Inventory
	// Uncache deletes the blob with this SHA-256, which no source names any more.
	Uncache  func(ctx context.Context, sha256 layout.SHA256) error
	Activity *activity.Log
	Now      func() time.Time
	Log      *slog.Logger
}

// Routes returns the routes of f.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET /catalog/entries", Access: web.Read, Handle: f.list},
		{Pattern: "POST /catalog/entries", Access: web.Upload, Handle: f.add},
		{Pattern: "DELETE /catalog/entries", Access: web.Operator, Handle: f.remove},
		{Pattern: "POST /catalog/sources", Access: web.Upload, Handle: f.describe, Quiet: true},
	}
}

// A view is an entry in the API.
type view struct {
	Ref       *string        `json:"ref"`
	Name      image.Name     `json:"name"`
	Src       string         `json:"src"`
	SHAURL    *string        `json:"sha_url"`
	Format    string         `json:"format"`
	SizeBytes *int64         `json:"size_bytes"`
	SHA256    *layout.SHA256 `json:"sha256"`
	SHA512    *string        `json:"sha512"`
	AddedAt   time.Time      `json:"added_at"`
	Warning   *string        `json:"warning"`
}

func viewOf(e entry.Entry) view {
	v := view{
		Name: e.Name, Src: e.URL, SHAURL: optional(e.SHAURL), Format: e.Format, SizeBytes: e.SizeBytes,
		SHA256: optional(e.SHA256), SHA512: optional(e.SHA512), AddedAt: e.AddedAt, Warning: optional(e.Changed),
	}
	if e.SHA256 != "" {
		v.Ref = optional(e.SHA256.Short())
	}
	return v
}

func optional[T ~string](s T) *T {
	if s == "" {
		return nil
	}
	return &s
}

// list answers GET /catalog/entries, sorted by name.
func (f *Function) list(w http.ResponseWriter, r *http.Request) error {
	entries, err := f.Inventory.Entries(r.Context())
	if err != nil {
		return err
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	views := make([]view, len(entries))
	for i, e := range entries {
		if row, ok := s.BySource(layout.RefOf(e.URL)); ok {
			e.SHA256 = row.Digest() // a fetch may have established it
		}
		views[i] = viewOf(e)
	}
	slices.SortFunc(views, func(a, b view) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Src, b.Src)) })
	return web.JSON(w, http.StatusOK, map[string]any{"entries": views})
}

// errNoURL is the problem of a request without a URL.
var errNoURL = problem.New(problem.Malformed, "image_url is missing: give the "+scheme.List("://")+" URL of an image")

// describe answers POST /catalog/sources: what a URL names, and the checksum list beside
// it. It changes nothing.
func (f *Function) describe(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		ImageURL string `json:"image_url"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	if in.ImageURL == "" {
		return errNoURL
	}
	shaURL, found, err := f.Sources.FindChecksums(r.Context(), in.ImageURL)
	if err != nil {
		return err
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Name      image.Name     `json:"name"`
		Src       string         `json:"src"`
		Format    string         `json:"format"`
		SizeBytes *int64         `json:"size_bytes"`
		SHAURL    *string        `json:"sha_url"`
		SHA256    *layout.SHA256 `json:"sha256"`
		SHA512    *string        `json:"sha512"`
		Known     bool           `json:"known"`
	}{Name: found.Name, Src: found.URL, Format: string(found.Format), SHAURL: optional(shaURL), SHA256: optional(found.SHA256), SHA512: optional(found.SHA512)}
	if found.Size >= 0 {
		answer.SizeBytes = &found.Size
	}
	_, answer.Known = s.BySource(layout.RefOf(found.URL))
	return web.JSON(w, http.StatusOK, answer)
}

func (f *Function) add(w http.ResponseWriter, r *http.Request) error {
	var in entry.Request
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	e, refreshed, err := f.Add(r, in)
	if err != nil {
		return err
	}
	status := http.StatusCreated
	if refreshed {
		status = http.StatusOK
	}
	return web.Answer(w, r, status, viewOf(e), summary(e, refreshed))
}

func summary(e entry.Entry, refreshed bool) string {
	if refreshed {
		return "refreshed " + e.URL
	}
	return "added " + e.URL
}

// Ensure returns the ref of the source with this URL. It adds an entry unless the catalog
// has the source.
func (f *Function) Ensure(r *http.Request, imageURL string) (layout.Ref, error) {
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return "", err
	}
	canonical := source.Canonical(imageURL)
	for _, url := range []string{imageURL, canonical} { // the URL in a manifest may not be canonical
		if _, ok := s.BySource(layout.RefOf(url)); ok {
			return layout.RefOf(url), nil
		}
	}
	_, _, err = f.Add(r, entry.Request{ImageURL: imageURL})
	if errors.Is(err, errAlready) { // another request has added it
		err = nil
	}
	return layout.RefOf(canonical), err
}

// Add resolves a URL and writes its entry, and an event. refreshed is true if the entry
// existed.
func (f *Function) Add(r *http.Request, in entry.Request) (e entry.Entry, refreshed bool, err error) {
	if in.ImageURL == "" {
		return e, false, errNoURL
	}
	if in.SHA256 = strings.ToLower(strings.TrimSpace(in.SHA256)); in.SHA256 != "" && !layout.SHA256(in.SHA256).Valid() {
		return e, false, problem.New(problem.Malformed, "sha256 is not a SHA-256: it has 64 hexadecimal digits")
	}
	e, refreshed, err = f.write(r.Context(), in)
	if err != nil {
		f.Activity.ByOperator(r, activity.EntryAddFailed, in.ImageURL, "could not add "+in.ImageURL, map[string]any{"error": problem.From(err).Detail})
		return e, false, err
	}
	f.Activity.ByOperator(r, activity.EntryAdded, e.URL, summary(e, refreshed), map[string]any{"name": e.Name, "sha256": e.SHA256, "refreshed": refreshed})
	return e, refreshed, nil
}

func (f *Function) write(ctx context.Context, in entry.Request) (_ entry.Entry, refreshed bool, err error) {
	shaURL, refresh := in.SHAURL, in.Refresh
	key := layout.EntryKey(layout.RefOf(source.Canonical(in.ImageURL)))
	old, _, err := record.Read[entry.Entry](ctx, f.Catalog, key)
	switch {
	case err == nil && !refresh:
		return entry.Entry{}, false, already(old.URL)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return entry.Entry{}, false, err
	}
	if shaURL == "" && refresh {
		shaURL = old.SHAURL
	}
	if in.Words == nil {
		in.Words = old.Words
	}
	if in.Name != "" {
		words := metadata.Words{}
		if in.Words != nil {
			words = *in.Words
		}
		if words.Name, err = image.ParseName(in.Name); err != nil {
			return entry.Entry{}, false, problem.Wrap(problem.Malformed, "name: "+err.Error(), err)
		}
		in.Words = &words
	}
	loc := source.Location{URL: in.ImageURL}
	if in.Words != nil {
		loc.Name = in.Words.Name
	}
	u, err := source.Location{URL: in.ImageURL, Name: cmp.Or(loc.Name, "any.img")}.Parse() // the source may say the name
	if err != nil {
		return entry.Entry{}, false, err
	}
	found, err := f.Sources.Resolve(ctx, loc, shaURL)
	if err != nil {
		return entry.Entry{}, false, err
	}
	if w := in.Words; w != nil && w.Name == "" { // a title, of which this is the first time that the format is known
		words := *w
		words.Name = image.Titled(w.Title, found.Format)
		in.Words, found.Name = &words, words.Name
	}
	if given := layout.SHA256(in.SHA256); given != "" {
		if found.SHA256 != "" && found.SHA256 != given {
			return entry.Entry{}, false, problem.New(problem.Invalid, "the publisher says that the SHA-256 is "+string(found.SHA256)+", not the one that was given: find out which one is right")
		}
		found.SHA256, found.SHA512 = given, "" // at most one is kept
	}
	if u.Pinned() {
		shaURL = "" // a pinned source needs no checksum list
	}
	// The record of an earlier fetch may not describe the source's current bytes.
	if err := record.Delete[entry.Fetched](ctx, f.Catalog, layout.FetchedKey(layout.RefOf(u.Canonical))); err != nil {
		return entry.Entry{}, false, err
	}
	existed := false
	e, _, err := record.Change(ctx, f.Catalog, key, func(e *entry.Entry, exists bool) error {
		if exists && !refresh {
			return already(u.Canonical)
		}
		existed = exists
		old := *e
		*e = entry.Entry{
			Meta: old.Meta, URL: found.URL, SHAURL: shaURL, Name: found.Name, Format: string(found.Format),
			SHA256: found.SHA256, SHA512: found.SHA512, AddedAt: f.Now().UTC(),
			Source:   entry.Source{ETag: found.ETag, LastModified: found.LastModified, Digest: found.Digest},
			Words:    in.Words,
			Metadata: metadata.FromAnnotations(found.About.Annotations, found.About.Architecture, found.About.Variant),
		}
		e.SizeBytes = in.SizeBytes
		if found.Size >= 0 {
			e.SizeBytes = &found.Size
		}
		if exists && old.Name == e.Name && old.SHA256 == e.SHA256 {
			e.KnownAt = old.Since()
		}
		return nil
	})
	if err != nil {
		return entry.Entry{}, false, err
	}
	return e, existed, nil
}

// errAlready is in the problem of an entry that exists.
var errAlready = errors.New("the entry exists")

func already(url string) error {
	return problem.Wrap(problem.Conflict, url+` is in the catalog already; send it with "refresh": true to resolve it again`, errAlready)
}

// remove answers DELETE /catalog/entries.
func (f *Function) remove(w http.ResponseWriter, r *http.Request) error {
	src := r.URL.Query().Get("src")
	if src == "" {
		return problem.New(problem.Malformed, "src is missing: give the URL of the entry, percent-encoded, in ?src=")
	}
	name, err := f.Remove(r, src)
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "the entry "+string(name)+" was deleted")
}

// Remove deletes the entry with this URL, and its bytes unless another source has them. It
// returns the name of the image.
func (f *Function) Remove(r *http.Request, src string) (image.Name, error) {
	ctx := r.Context()
	src = source.Canonical(src)
	ref := layout.RefOf(src)
	e, _, err := record.Read[entry.Entry](ctx, f.Catalog, layout.EntryKey(ref))
	switch {
	case errors.Is(err, record.ErrDamaged):
		e.URL, e.Name = src, image.Name(src)
	case errors.Is(err, store.ErrNotFound):
		return "", problem.New(problem.NotFound, "there is no entry with this URL")
	case err != nil:
		return "", err
	}
	if err := record.CheckVersion[entry.Fetched](ctx, f.Catalog, layout.FetchedKey(ref)); err != nil {
		return "", err
	}
	before, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	if err := record.Delete[entry.Entry](ctx, f.Catalog, layout.EntryKey(ref)); err != nil {
		return "", err
	}
	after, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	if _, ok := after.BySource(ref); !ok {
		if err := record.Delete[entry.Fetched](ctx, f.Catalog, layout.FetchedKey(ref)); err != nil {
			return "", err
		}
	}
	f.Activity.ByOperator(r, activity.EntryDeleted, e.URL, "deleted the entry "+e.URL, map[string]any{"name": e.Name})
	if row, ok := before.BySource(ref); ok && row.Blob && !f.Inventory.Incomplete(after) {
		if _, named := after.BySHA256(row.Digest()); !named {
			if err := f.Uncache(ctx, row.Digest()); err != nil { // reconciling deletes them later
				f.Log.Warn("fetched bytes of a deleted entry could not be deleted", "src", e.URL, "error", err)
			}
		}
	}
	return e.Name, nil
}
