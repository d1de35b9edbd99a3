package fetch

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Routes returns the function's routes.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET /catalog/downloads", Access: web.Read, Handle: f.list, Quiet: true},
		{Pattern: "POST /catalog/downloads", Access: web.Upload, Handle: f.enqueue},
		{Pattern: "DELETE /catalog/downloads/{name}", Access: web.Operator, Handle: f.cancel},
		{Pattern: "DELETE /catalog/cache/{sha256}", Access: web.Operator, Handle: f.uncache},
	}
}

// list answers GET /catalog/downloads.
func (f *Function) list(w http.ResponseWriter, r *http.Request) error {
	jobs, err := f.Inventory.Jobs(r.Context(), job.Fetch)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]any{"downloads": job.Views(jobs), "max_parallel": f.Workers})
}

// enqueue answers POST /catalog/downloads.
func (f *Function) enqueue(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name image.Name `json:"name"`
		Ref  string     `json:"ref"`
		Src  string     `json:"src"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	f.Inventory.Expire() // another process may have added the entry just now
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	row, src, err := find(s, in.Name, in.Ref, in.Src)
	if err != nil {
		return err
	}
	ctx := r.Context()
	if row.Cached {
		// The bytes are here, whether a job fetched them or not.
		j := job.Job{Name: src.Name, Src: src.Location, Status: job.Completed, SHA256: row.Digest(), BytesTotal: row.SizeBytes}
		if row.SizeBytes != nil {
			j.BytesDone = *row.SizeBytes
		}
		jobs, err := f.Inventory.Jobs(ctx, job.Fetch)
		if err != nil {
			return err
		}
		for _, k := range jobs {
			if k.Src == src.Location && k.Status == job.Completed {
				j = k
			}
		}
		return web.Answer(w, r, http.StatusAccepted, j.View(), string(src.Name)+" is cached already")
	}
	keep := func(job.Job) bool { return false } // a job that ended stored no bytes, or they were dropped
	j, err := f.queue(ctx, row, src, keep, activity.Actor(ctx), web.ClientIP(r))
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusAccepted, j.View(), "fetch of "+string(src.Name)+" queued")
}

// queue queues the fetch job of a source of row.
func (f *Function) queue(ctx context.Context, row *inventory.Row, src inventory.Source, keep func(job.Job) bool, actor, ip string) (job.Job, error) {
	if err := record.CheckVersion[entry.Fetched](ctx, f.Catalog, layout.FetchedKey(src.Ref)); err != nil {
		return job.Job{}, err // the fetch could not be published
	}
	return f.runner().Enqueue(ctx, string(src.Ref), keep, func(j *job.Job) {
		j.Name, j.Ref, j.Src, j.BytesTotal, j.SHA256 = src.Name, src.Ref, src.Location, row.SizeBytes, row.Digest()
		j.Actor, j.SourceIP, j.Reach = actor, ip, f.Sources.Reach()
	})
}

// Request queues the fetch job of a source in a row whose bytes are not here. A job that
// has failed or was cancelled is queued again only for an operator, whose IP address is ip;
// ip is empty for the system. The job is the zero value if the catalog has no such source.
func (f *Function) Request(ctx context.Context, row *inventory.Row, ref layout.Ref, ip string) (job.Job, error) {
	i := slices.IndexFunc(row.Sources, func(s inventory.Source) bool { return s.Ref == ref })
	if i < 0 {
		return job.Job{}, nil // it was removed
	}
	actor, keep := activity.Actor(ctx), func(job.Job) bool { return false }
	if ip == "" {
		actor, keep = activity.System, func(j job.Job) bool { return j.Status != job.Completed }
	}
	return f.queue(ctx, row, row.Sources[i], keep, actor, ip)
}

// find returns the source that a request names.
func find(s *inventory.Snapshot, name image.Name, ref, src string) (*inventory.Row, inventory.Source, error) {
	var row *inventory.Row
	var wanted func(inventory.Source) bool
	ok := false
	switch {
	case src != "":
		key := layout.RefOf(src) // the URL in a manifest may not be canonical
		if row, ok = s.BySource(key); !ok {
			key = layout.RefOf(source.Canonical(src))
			row, ok = s.BySource(key)
		}
		if !ok {
			if _, err := source.ParseURL(src); err != nil {
				return nil, inventory.Source{}, err
			}
		}
		wanted = func(s inventory.Source) bool { return s.Ref == key }
	case ref != "":
		if len(ref) < inventory.MinRef {
			return nil, inventory.Source{}, problem.Newf(problem.Malformed, "a ref is at least the first %d digits of a SHA-256", inventory.MinRef)
		}
		row, ok = s.ByRef(strings.ToLower(ref))
		wanted = func(s inventory.Source) bool { return s.Ref != "" }
	case name != "":
		row, ok = s.ByName(name)
		spellings := image.Spellings(name)
		wanted = func(s inventory.Source) bool { return s.Ref != "" && slices.Contains(spellings, s.Name) }
	default:
		return nil, inventory.Source{}, problem.New(problem.Malformed, "say which image: by name, by ref (the beginning of its SHA-256), or by src (the URL it is known by)")
	}
	if !ok {
		return nil, inventory.Source{}, problem.New(problem.NotFound, "the catalog has no such image")
	}
	for _, any := range []func(inventory.Source) bool{wanted, func(s inventory.Source) bool { return s.Ref != "" }} {
		if i := slices.IndexFunc(row.Sources, any); i >= 0 {
			return row, row.Sources[i], nil
		}
	}
	return nil, inventory.Source{}, problem.New(problem.Conflict, string(row.Names[0])+" is in the image root: there is nothing to fetch")
}

// cancel answers DELETE /catalog/downloads/{name}.
func (f *Function) cancel(w http.ResponseWriter, r *http.Request) error {
	name, src := image.Name(r.PathValue("name")), r.URL.Query().Get("src")
	all, err := f.Inventory.Jobs(r.Context(), job.Fetch)
	if err != nil {
		return err
	}
	var jobs []job.Job
	for _, spelling := range image.Spellings(name) {
		// Several sources may have images of one name; ?src= picks one of them.
		for _, j := range all {
			if j.Name == spelling && (src == "" || j.Src == src) {
				jobs = append(jobs, j)
			}
		}
		if jobs != nil {
			break // the exact spelling has precedence, as in all routes
		}
	}
	if jobs == nil {
		return problem.New(problem.NotFound, "there is no download of "+string(name))
	}
	for _, j := range jobs {
		if !j.Status.Cancellable() {
			continue
		}
		if _, err := f.runner().Cancel(r.Context(), job.Fetch.ID(j)); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "download of "+string(name)+" cancelled")
}

// uncache answers DELETE /catalog/cache/{sha256}.
func (f *Function) uncache(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	sha, ok := layout.ParseSHA256(strings.ToLower(r.PathValue("sha256")))
	if !ok {
		return problem.New(problem.Malformed, "this is not a SHA-256: it has 64 hexadecimal digits")
	}
	info, err := f.Catalog.Head(ctx, layout.BlobKey(sha))
	if errors.Is(err, store.ErrNotFound) {
		return problem.New(problem.NotFound, "there are no fetched bytes with this SHA-256")
	}
	if err != nil {
		return err
	}
	if err := f.Uncache(ctx, sha); err != nil {
		return err
	}
	f.Activity.ByOperator(r, activity.ImageUncached, string(sha), "dropped the fetched bytes of "+nameOf(ctx, f.Inventory, sha), map[string]any{"size_bytes": info.Size})
	return web.Answer(w, r, http.StatusNoContent, nil, "the fetched bytes were dropped")
}
