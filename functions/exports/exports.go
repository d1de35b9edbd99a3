// Package exports keeps the exports that operators name: names by which the NBD port serves
// disks in images of the catalog. It adds, fetches and expands the images. Its routes are
// those of nbdmux, so that programs that know nbdmux can use this server.
package exports

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/export"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Config configures a [Function]. All fields are required except Expand and Port.
type Config struct {
	Catalog   store.Root
	Inventory *inventory.Inventory
	// Add returns the ref of the source with this URL, for which it adds an entry unless
	// the catalog has it.
	Add func(r *http.Request, url string) (layout.Ref, error)
	// Fetch and Expand queue the job that brings the bytes of a source here, and the one
	// that makes the disk of an image. One that has failed or was cancelled is queued again
	// at once for an operator, whose IP address is ip. For the system, ip is empty.
	// Expand is nil if no disks are made.
	Fetch  func(ctx context.Context, row *inventory.Row, ref layout.Ref, ip string) (job.Job, error)
	Expand func(ctx context.Context, sha256 layout.SHA256, name image.Name, ip string) error
	// Port is that of NBD, or 0 if it is off.
	Port     int
	Activity *activity.Log
	Now      func() time.Time
	Log      *slog.Logger
}

// A Function has the routes of exports, and moves them on. It is safe for concurrent use.
type Function struct {
	Config
	added chan struct{} // wakes Run
}

// New returns a function.
func New(cfg Config) *Function { return &Function{cfg, make(chan struct{}, 1)} }

// Prefix is the path below which the routes are. Clients of nbdmux take it as a part of
// the URL of their server.
const Prefix = "/nbdmux/"

// Routes returns the routes of f.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET " + Prefix + "healthz", Access: web.Always, Handle: f.healthz, Quiet: true},
		{Pattern: "GET " + Prefix + "exports", Access: web.Open, Handle: f.list, Stream: true, Quiet: true},
		{Pattern: "POST " + Prefix + "exports", Access: web.Operator, Handle: f.add},
		{Pattern: "DELETE " + Prefix + "exports/{name}", Access: web.Operator, Handle: f.remove},
	}
}

func (f *Function) healthz(w http.ResponseWriter, _ *http.Request) error {
	return web.JSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// list answers GET /nbdmux/exports. It encodes one export after the other, so that it
// holds the answer to no client in memory.
func (f *Function) list(w http.ResponseWriter, r *http.Request) error {
	s, err := f.states(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	to := bufio.NewWriter(w)
	before := "["
	for x := range s.each() {
		data, err := json.Marshal(f.view(x, s.of(x)))
		if err != nil {
			return err
		}
		_, _ = to.WriteString(before)
		if _, err := to.Write(data); err != nil {
			return nil // the client has left
		}
		before = ",\n"
	}
	if before == "[" {
		_, _ = to.WriteString(before)
	}
	_, _ = to.WriteString("]\n")
	_ = to.Flush()
	return nil
}

// addTime bounds the time in which a source must answer. Its client may have left before:
// then the answer to its next request is quick.
const addTime = time.Minute

func (f *Function) add(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name     string `json:"name"`
		SrcURL   string `json:"src_url"`
		File     string `json:"file"`
		ReadOnly *bool  `json:"readonly"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	name, ok := layout.ParseExportName(in.Name)
	switch {
	case f.Port == 0:
		return problem.New(problem.NotImplemented, "this server has no NBD port: set IMAGEROOT_NBD_LISTEN (--nbd-listen)")
	case !ok:
		return problem.New(problem.Invalid, "the name of an export is up to 64 letters, digits, dots, hyphens and underscores, and begins with a letter or digit")
	case in.SrcURL == "" && in.File != "":
		return problem.New(problem.Invalid, "an export names an image of the catalog, not a file: give src_url, which may be the URL of an image on this server")
	case in.SrcURL == "":
		return problem.New(problem.Invalid, "src_url is missing: give the URL of an image")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), addTime)
	defer cancel()
	want, err := f.target(r.WithContext(ctx), in.SrcURL)
	if err != nil {
		return err
	}
	want.Name, want.SrcURL, want.ReadOnly, want.AddedAt = name, in.SrcURL, in.ReadOnly == nil || *in.ReadOnly, f.Now().UTC()
	changed := false
	x, _, err := record.Change(ctx, f.Catalog, layout.ExportKey(name), func(x *export.Record, exists bool) error {
		want.Meta = x.Meta
		if changed = !exists || x.SrcURL != want.SrcURL || x.Ref != want.Ref || x.SHA256 != want.SHA256 || x.ReadOnly != want.ReadOnly; !changed {
			return record.ErrKeep
		}
		*x = want
		return nil
	})
	if err != nil {
		return err
	}
	if changed {
		f.Activity.ByOperator(r, activity.ExportAdded, string(name), "exported "+x.SrcURL+" as "+string(name), map[string]any{"src_url": x.SrcURL, "readonly": x.ReadOnly})
	}
	s, err := f.states(ctx)
	if err != nil {
		return err
	}
	if err := f.advance(ctx, x, s.of(x), web.ClientIP(r)); err != nil {
		return err
	}
	select {
	case f.added <- struct{}{}:
	default:
	}
	if s, err = f.states(ctx); err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, f.view(x, s.of(x)))
}

func (f *Function) remove(w http.ResponseWriter, r *http.Request) error {
	missing := problem.New(problem.NotFound, "there is no export of this name")
	name, ok := layout.ParseExportName(r.PathValue("name"))
	if !ok {
		return missing
	}
	x, _, err := record.Read[export.Record](r.Context(), f.Catalog, layout.ExportKey(name))
	if errors.Is(err, store.ErrNotFound) && !errors.Is(err, record.ErrDamaged) {
		return missing
	}
	if err := record.Delete[export.Record](r.Context(), f.Catalog, layout.ExportKey(name)); err != nil {
		return err
	}
	f.Activity.ByOperator(r, activity.ExportDeleted, string(name), "deleted the export "+string(name), map[string]any{"src_url": x.SrcURL})
	w.WriteHeader(http.StatusNoContent)
	return nil
}
