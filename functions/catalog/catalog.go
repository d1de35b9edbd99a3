// Package catalog serves the catalog in its forms (rows, the listing for flash
// clients, the manifest), the bytes of images and of disks, and the activity.
// Package catalog/pages shows them to people.
package catalog

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"imageroot/functions/catalog/feed"
	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/problem"
	"imageroot/shared/served"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Function is the catalog function. All fields are required except ImageLinks,
// CatalogLinks, MaxAnswer, SigningKey, DisksMax, MakeDisk, CheckPending and ManifestURL. It is safe for concurrent use.
type Function struct {
	Images, Catalog store.Root
	// ImageLinks and CatalogLinks presign URLs of objects in the two roots. If
	// they are not nil, clients get the bytes of images and disks from the store.
	ImageLinks, CatalogLinks store.Presigner
	// MaxAnswer is the size in bytes above which a listing is an object that the client
	// is redirected to with CatalogLinks, or 0 if there is no limit.
	MaxAnswer int64
	// SigningKey returns the key that signs checksum files, or nil if there is none.
	SigningKey func() (Signer, error)
	// DisksMax is what disks may take together in the store, in bytes; 0 if none are made.
	DisksMax int64
	// MakeDisk has the disk of an image made, and returns whether it is in the making, and
	// how many bytes of it are written. Nil: a request for a disk that is not there makes
	// none.
	MakeDisk func(ctx context.Context, sha256 layout.SHA256, name image.Name) (active bool, written int64, err error)
	// CheckPending queues the check that a content may need since its metadata were changed.
	// Nil: the next reconciliation does.
	CheckPending func(ctx context.Context, sha256 layout.SHA256) error
	// ManifestURL is where the manifest is that [Function.Subscribe] reads, or "".
	ManifestURL string
	Inventory   *inventory.Inventory
	Auth        *auth.Operator
	Activity    *activity.Log
	Served      *served.Log
	Metric      *metric.Set
	Version     string
	// Ready returns an error if a bucket cannot be reached, and [store.ErrNoBucket]
	// if one is known not to exist.
	Ready func(context.Context) error
	Now   func() time.Time
	Log   *slog.Logger

	places     places          // GET /raw
	disks      disks           // that OpenDisk has opened
	signatures feed.Signatures // of feeds
}

// Routes returns the function's routes.
func (f *Function) Routes() []web.Route {
	return append(f.feedRoutes(), []web.Route{
		{Pattern: "GET /healthz", Access: web.Always, Handle: f.healthz, Quiet: true},
		{Pattern: "GET /readyz", Access: web.Open, Handle: f.readyz, Quiet: true},
		{Pattern: "GET /version", Access: web.Open, Handle: f.version},

		{Pattern: "GET /images", Access: web.Open, Handle: f.Document("application/json", f.encodeListing)},
		{Pattern: "GET /images/{key}", Access: web.Open, Handle: f.image, Stream: true},
		{Pattern: "GET /images/{key}/{name}", Access: web.Open, Handle: f.image, Stream: true},
		{Pattern: "GET /raw/{key}", Access: web.Open, Handle: f.raw, Stream: true},
		{Pattern: "GET /raw/{key}/{name}", Access: web.Open, Handle: f.raw, Stream: true},

		{Pattern: "GET /flash.sh", Access: web.Open, Handle: f.flash},
		{Pattern: "GET /boot.ipxe", Access: web.Open, Handle: f.bootMenu},
		{Pattern: "GET /boot/{key}", Access: web.Open, Handle: f.bootImage},

		{Pattern: "GET /catalog", Access: web.Read, Handle: f.rows},
		{Pattern: "GET /catalog/images/{sha256}", Access: web.Read, Handle: f.describe},
		{Pattern: "PATCH /catalog/images/{sha256}", Access: web.Operator, Handle: f.patch},
		{Pattern: "GET /catalog.toml", Access: web.Open, Handle: f.Document("application/toml; charset=utf-8", encodeManifest)},
		{Pattern: "PUT /catalog.toml", Access: web.Operator, Handle: f.replaceManifest, MaxBody: maxManifestBody},
		{Pattern: "DELETE /catalog.toml", Access: web.Operator, Handle: f.removeManifest},

		{Pattern: "GET /events", Access: web.Operator, Handle: f.events},

		{Pattern: "GET /tokens", Access: web.Operator, Handle: f.listTokens},
		{Pattern: "POST /tokens", Access: web.Admin, Handle: f.addToken},
		{Pattern: "DELETE /tokens/{name}", Access: web.Admin, Handle: f.removeToken},
	}...)
}

func (f *Function) healthz(w http.ResponseWriter, _ *http.Request) error {
	return web.JSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (f *Function) readyz(w http.ResponseWriter, r *http.Request) error {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := f.Ready(ctx); errors.Is(err, store.ErrNoBucket) {
		return err
	} else if err != nil {
		return problem.Wrap(problem.Unavailable, "the store cannot be reached", err)
	}
	return web.JSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

func (f *Function) version(w http.ResponseWriter, _ *http.Request) error {
	return web.JSON(w, http.StatusOK, map[string]string{"version": f.Version})
}

func (f *Function) rows(w http.ResponseWriter, r *http.Request) error {
	q, err := ParseQuery(r.URL.Query())
	if err != nil {
		return err
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	page, err := Search(s, q)
	if err != nil {
		return err
	}
	answer := struct {
		Images   []*inventory.Row  `json:"images"`
		Total    int               `json:"total"`
		Next     *string           `json:"next"`
		Warnings []string          `json:"warnings"`
		Others   []inventory.Other `json:"others"`
	}{append([]*inventory.Row{}, page.Rows...), page.Total, nil, []string{}, append([]inventory.Other{}, s.Others...)} // [] rather than null
	if page.Next != "" {
		answer.Next = &page.Next
	}
	if p := s.ManifestProblem(); p != "" {
		answer.Warnings = append(answer.Warnings, p)
	}
	for _, w := range s.ManifestWarnings() {
		answer.Warnings = append(answer.Warnings, string(layout.ManifestKey)+", "+w)
	}
	return web.JSON(w, http.StatusOK, answer)
}

// Search runs a query on s. It wraps an [inventory.QueryError] in a problem for the
// client.
func Search(s *inventory.Snapshot, q inventory.Query) (inventory.Page, error) {
	page, err := s.Query(q)
	if e, ok := errors.AsType[*inventory.QueryError](err); ok {
		err = problem.Wrap(problem.Invalid, e.Reason, err)
	}
	return page, err
}

// ParseQuery reads a query on rows from the query of a URL. It returns a problem if the
// limit is not a positive number.
func ParseQuery(v url.Values) (inventory.Query, error) {
	q := inventory.Query{Text: v.Get("q"), Sort: v.Get("sort"), Cursor: v.Get("cursor"), Filter: inventory.Filter{
		Architectures: v["arch"], Systems: v["os"], Labels: v["label"], Formats: v["format"], States: v["state"],
	}}
	if l := v.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 {
			return q, problem.Newf(problem.Invalid, "the limit must be a number from 1 to %d", inventory.MaxLimit)
		}
		q.Limit = n
	}
	return q, nil
}

// A listed is an image in GET /images.
type listed struct {
	Name      image.Name `json:"name"`
	Format    string     `json:"format"`
	SizeBytes *int64     `json:"size_bytes"`
	URL       string     `json:"url"`
	Ref       *string    `json:"ref"`
	Cached    bool       `json:"cached"`
	// RawURL is the URL of the disk in the image; see [Function.RawPath].
	RawURL *string `json:"raw_url"`
}

// encodeListing writes GET /images: each content once, by its primary name.
func (f *Function) encodeListing(to io.Writer, s *inventory.Snapshot, base string) error {
	return web.WriteList(to, "[", func(yield func(listed) bool) {
		for h := range s.Heads() {
			src, ok := publicURL(base, h)
			if !ok || !h.Format().Image() {
				continue
			}
			l := listed{Name: h.Name, Format: string(h.Format()), URL: src, Cached: h.Cached}
			if h.SizeBytes >= 0 {
				l.SizeBytes = &h.SizeBytes
			}
			if h.SHA256 != "" {
				ref := h.SHA256.Short()
				l.Ref = &ref
			}
			if path := f.RawPath(h); path != "" {
				raw := base + path
				l.RawURL = &raw
			}
			if !yield(l) {
				return
			}
		}
	}, "]\n")
}

// publicURL returns the URL of a row's bytes: on this server if it has them, else
// at a source. It returns false for a local image without a digest: clients could
// not verify it.
func publicURL(base string, h *inventory.Head) (string, bool) {
	if h.Cached {
		return base + ImagePath(h.SHA256, h.Name), h.SHA256 != ""
	}
	_, location := h.Source()
	return location, true
}

// ImagePath returns the path of an image by its SHA-256. The name gives clients
// the suffix.
func ImagePath(sha256 layout.SHA256, name image.Name) string {
	return "/images/" + string(sha256) + "/" + url.PathEscape(string(name))
}

// RawPath returns the path of the disk in a row's image, or "" if /raw does not
// serve one now. It ends in the disk's name, not the image's, by whose suffix clients
// would decompress.
func (f *Function) RawPath(h *inventory.Head) string {
	if !hasDisk(h) || f.ImageLinks != nil && (!h.Inspected || f.expandedFirst(h)) {
		return ""
	}
	return "/raw/" + string(h.SHA256) + "/" + url.PathEscape(string(image.DiskName(h.Name)))
}

// CanMakeDisk reports whether there may be an expanded disk of a row's image, and is none.
func (f *Function) CanMakeDisk(h *inventory.Head) bool {
	return f.DisksMax > 0 && hasDisk(h) && f.expandedFirst(h)
}

// hasDisk reports whether the image of a row is here, and no reason is known that there is
// no disk in it.
func hasDisk(h *inventory.Head) bool { return h.Cached && h.SHA256 != "" && !h.NoDisk }

// expandedFirst reports whether no range of a disk can be read before it is expanded.
func (f *Function) expandedFirst(h *inventory.Head) bool {
	return !h.Disk && (h.Packed || h.Virtual && f.ImageLinks != nil)
}

func (f *Function) events(w http.ResponseWriter, r *http.Request) error {
	filter, err := ParseFilter(r.URL.Query())
	if err != nil {
		return err
	}
	events, older, err := f.Activity.List(r.Context(), filter)
	if err != nil {
		return err
	}
	var next *layout.EventID
	if older != "" {
		next = &older
	}
	return web.JSON(w, http.StatusOK, map[string]any{"events": events, "next": next})
}

// DefaultEvents and MaxEvents are the default and the maximum of the limit in a
// query on events.
const DefaultEvents, MaxEvents = 50, 500

// ParseFilter reads a query on events from the query of a URL. It returns a problem if
// a field is invalid.
func ParseFilter(v url.Values) (activity.Filter, error) {
	filter := activity.Filter{
		Kind: v.Get("kind"), SubjectKind: v.Get("subject_kind"), SubjectID: v.Get("subject_id"),
		Actor: v.Get("actor"), SourceIP: v.Get("source_ip"), Limit: DefaultEvents,
	}
	for _, c := range []struct {
		field, value string
		known        []string
	}{
		{"kind", filter.Kind, activity.Kinds()},
		{"subject_kind", filter.SubjectKind, activity.SubjectKinds()},
	} {
		if err := oneOf(c.field, c.value, c.known); err != nil {
			return filter, err
		}
	}
	if !strings.HasPrefix(filter.Actor, activity.TokenPrefix) {
		if err := oneOf("actor", filter.Actor, append(activity.Actors(), activity.TokenPrefix+"NAME")); err != nil {
			return filter, err
		}
	}
	if _, err := netip.ParseAddr(filter.SourceIP); filter.SourceIP != "" && err != nil {
		return filter, problem.New(problem.Invalid, "source_ip must be an IP address")
	}
	if s := v.Get("failed"); s != "" {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return filter, problem.New(problem.Invalid, "failed must be true or false")
		}
		filter.Failed = &b
	}
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > MaxEvents {
			return filter, problem.Newf(problem.Invalid, "the limit must be a number from 1 to %d", MaxEvents)
		}
		filter.Limit = n
	}
	if s := v.Get("before"); s != "" {
		id, err := parseBefore(s)
		if err != nil {
			return filter, err
		}
		filter.Before = id
	}
	return filter, nil
}

func oneOf(field, value string, known []string) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	return problem.Newf(problem.Invalid, "%s must be one of %s", field, strings.Join(known, ", "))
}

// parseBefore parses an event's ID or an RFC 3339 time.
func parseBefore(s string) (layout.EventID, error) {
	if _, ok := layout.EventID(s).Time(); ok {
		return layout.EventID(s), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return "", problem.New(problem.Invalid, "before must be the id of an event, or a time like 2026-01-02T15:04:05Z")
	}
	// After every event of that microsecond.
	return layout.NewEventID(t, "ffffffffffffffff"), nil
}

// notFound reports whether err is [store.ErrNotFound].
func notFound(err error) bool { return errors.Is(err, store.ErrNotFound) }
