// Package withcache has the API of withcache, a cache of images by URL, over the catalog,
// so that clients of withcache (bty is one) can use this server: the catalog of the images
// whose bytes are here, the bytes by the URL of their source, and entries.
package withcache

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/web"
)

// Config configures a [Function]. All fields are required except ManifestURL.
type Config struct {
	Inventory *inventory.Inventory
	// Document returns a handler that answers with a document about all images, which
	// encode writes for each snapshot, one image in each Write.
	Document func(contentType string, encode func(to io.Writer, s *inventory.Snapshot, base string) error) web.HandlerFunc
	// Serve answers with the bytes of the row that find returns.
	Serve func(w http.ResponseWriter, r *http.Request, find func(*inventory.Snapshot) (*inventory.Row, error)) error
	// Add adds an entry, or resolves it again, and Remove deletes the one with a URL.
	// Ensure returns the ref of the source with a URL, for which it adds an entry unless
	// the catalog has it.
	Add    func(r *http.Request, in entry.Request) (e entry.Entry, refreshed bool, err error)
	Remove func(r *http.Request, src string) (image.Name, error)
	Ensure func(r *http.Request, src string) (layout.Ref, error)
	// Fetch queues the job that brings the bytes of a source here, for an operator whose IP
	// address is ip, and Uncache deletes fetched bytes.
	Fetch   func(ctx context.Context, row *inventory.Row, ref layout.Ref, ip string) (job.Job, error)
	Uncache func(ctx context.Context, sha256 layout.SHA256) error
	// Cancel cancels the job of a source, before its bytes are deleted.
	Cancel func(ctx context.Context, ref layout.Ref) error
	// ManifestURL is where the manifest is that this server subscribes to, or "".
	ManifestURL string
	Version     string
	Activity    *activity.Log
	Now         func() time.Time
}

// A Function has the routes. It is safe for concurrent use.
type Function struct {
	Config
	misses misses
}

// New returns a function.
func New(cfg Config) *Function { return &Function{Config: cfg} }

// Prefix is the path below which the routes are. Clients take it as a part of the URL of
// their server.
const Prefix = "/withcache/"

// Routes returns the routes of f.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET " + Prefix + "healthz", Access: web.Always, Handle: f.healthz, Quiet: true},
		{Pattern: "GET " + Prefix + "catalog", Access: web.Open, Handle: f.catalog()},
		{Pattern: "GET " + Prefix + "b/{source}/{name...}", Access: web.Open, Handle: f.bytes, Stream: true},
		{Pattern: "GET " + Prefix + "blob", Access: web.Open, Handle: f.bytes, Stream: true},
		{Pattern: "POST " + Prefix + "catalog/entries", Access: web.Upload, Handle: f.add},
		{Pattern: "DELETE " + Prefix + "catalog/entries", Access: web.Operator, Handle: f.remove},
		{Pattern: "POST " + Prefix + "catalog/entries/{name}/download", Access: web.Upload, Handle: f.download},
		{Pattern: "POST " + Prefix + "misses", Access: web.Upload, Handle: f.want},
	}
}

func (f *Function) healthz(w http.ResponseWriter, _ *http.Request) error {
	return web.JSON(w, http.StatusOK, map[string]string{"status": "ok", "service": "withcache", "version": f.Version})
}

// An item is an entry of the catalog: a source whose bytes are here.
type item struct {
	Name        string        `json:"name"`
	Src         string        `json:"src"`
	ResolvedSrc string        `json:"resolved_src,omitempty"`
	Format      image.Format  `json:"format"`
	Arch        string        `json:"arch,omitempty"`
	SHA256      layout.SHA256 `json:"sha256"`
	SizeBytes   int64         `json:"size_bytes"`
	Description string        `json:"description,omitempty"`
	NetbootRef  string        `json:"netboot_ref,omitempty"`
}

// Labels that are members of an item.
const netbootRef, resolvedSrc = "netboot_ref", "resolved_src"

// machines are the architectures whose name that uname prints, as in an item, is another
// one in metadata.
var machines = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "armhf": "armv7l", "i386": "i686", "ppc64el": "ppc64le", "loong64": "loongarch64"}

func machine(architecture string) string {
	if m, ok := machines[architecture]; ok {
		return m
	}
	return architecture
}

// catalog returns the handler of GET /withcache/catalog.
func (f *Function) catalog() web.HandlerFunc {
	if f.Document == nil {
		return nil // of a function that only tells its routes
	}
	return f.Document("application/json", f.encode)
}

func (f *Function) encode(to io.Writer, s *inventory.Snapshot, base string) error {
	var lastError *string
	if p := s.ManifestProblem(); p != "" {
		lastError = &p
	}
	var fetchedAt *time.Time
	if t, ok := s.ManifestTime(); ok {
		t = t.UTC().Truncate(time.Second)
		fetchedAt = &t
	}
	head, err := json.Marshal(struct {
		URL       string     `json:"url"`
		EnvURL    string     `json:"env_url"`
		FetchedAt *time.Time `json:"fetched_at"`
		LastError *string    `json:"last_error"`
	}{f.ManifestURL, f.ManifestURL, fetchedAt, lastError})
	if err != nil {
		return err
	}
	return web.WriteList(to, string(head[:len(head)-1])+`,"entries":[`, func(yield func(item) bool) {
		for h := range s.Heads() {
			if !h.Cached || h.SHA256 == "" {
				continue
			}
			said := s.Said(h)
			seen := ""
			for _, src := range s.Sources(h) {
				if src.Kind != inventory.Local && src.Location == seen {
					continue // an entry that the manifest has, too
				}
				seen = src.Location
				if !yield(itemOf(h, src, said, base)) {
					return
				}
			}
		}
	}, "]}\n")
}

// itemOf returns the item of a source of a row whose bytes are here.
func itemOf(h *inventory.Head, src inventory.Source, said metadata.Fields, base string) item {
	_, format, _ := image.Named(string(src.Name), "")
	if format == "" {
		format = h.Format()
	}
	it := item{
		Name: nameOf(src, format), Src: src.Location, Format: format, Arch: machine(said.Architecture), SHA256: h.SHA256, SizeBytes: h.SizeBytes,
		Description: said.Description, NetbootRef: said.Labels[netbootRef],
	}
	if src.Kind == inventory.Local {
		it.Src = base + inventory.OwnPath(src.Name)
	} else {
		it.ResolvedSrc = said.Labels[resolvedSrc]
	}
	return it
}

// nameOf returns the name of a source for a client: its title, if the name was made of
// that.
func nameOf(src inventory.Source, format image.Format) string {
	if src.Title != "" && image.Titled(src.Title, format) == src.Name {
		return src.Title
	}
	return string(src.Name)
}
