package hash

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Routes returns the function's routes.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET /catalog/hashes", Access: web.Read, Handle: f.list, Quiet: true},
		{Pattern: "POST /catalog/hashes", Access: web.Operator, Handle: f.post},
		{Pattern: "DELETE /catalog/hashes/{name}", Access: web.Operator, Handle: f.cancel},
		{Pattern: "GET /catalog/disks", Access: web.Read, Handle: f.listDisks, Quiet: true},
		{Pattern: "POST /catalog/disks", Access: web.Operator, Handle: f.postDisk},
		{Pattern: "DELETE /catalog/disks/{sha256}", Access: web.Operator, Handle: f.deleteDisk},
	}
}

func (f *Function) list(w http.ResponseWriter, r *http.Request) error {
	jobs, err := f.Inventory.Jobs(r.Context(), job.Hash, job.Check)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]any{"hashes": job.Views(jobs), "max_parallel": f.Workers})
}

func (f *Function) post(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name string `json:"name"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	asked, err := image.ParseName(in.Name)
	if err != nil {
		return problem.New(problem.Malformed, err.Error())
	}
	key, info, err := store.HeadFirst(r.Context(), f.Images, layout.ImageKeys(asked))
	if errors.Is(err, store.ErrNotFound) {
		if j, ok, err := f.checkFetched(r, asked); ok || err != nil {
			if err != nil {
				return err
			}
			return web.Answer(w, r, http.StatusAccepted, j.View(), "check of "+in.Name+" queued")
		}
		return problem.New(problem.NotFound, "there is no image "+in.Name+" in the image root")
	}
	if err != nil {
		return err
	}
	name, _ := layout.ImageName(key) // the spelling that the object has
	rec, _, err := record.Read[digest.Record](r.Context(), f.Catalog, layout.DigestKey(name))
	hashed := err == nil && rec.Version.Equal(info.Version)
	if hashed {
		err = f.checkVersions(r.Context(), rec.SHA256)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	j, err := f.enqueue(r.Context(), name, &info.Version, false, activity.Actor(r.Context()), web.ClientIP(r))
	if err == nil && hashed {
		_, err = f.checkAgain(r, rec.SHA256, name, info.Size)
	}
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusAccepted, j.View(), "hash of "+string(name)+" queued")
}

// checkFetched queues the check of fetched bytes of that name, and reports whether
// there are any to check.
func (f *Function) checkFetched(r *http.Request, name image.Name) (job.Job, bool, error) {
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return job.Job{}, false, err
	}
	row, ok := s.ByName(name)
	if !ok || !row.Blob || row.Known == nil || !row.Known.Checkable() || f.runner(job.Check).Off() {
		return job.Job{}, false, nil
	}
	j, err := f.checkAgain(r, row.Known.SHA256, name, row.Known.SizeBytes)
	return j, true, err
}

// checkAgain queues the check of bytes that were not found good, for an operator.
// It returns the last check job if there is nothing to do.
func (f *Function) checkAgain(r *http.Request, sha256 layout.SHA256, name image.Name, size int64) (job.Job, error) {
	ctx := r.Context()
	if f.runner(job.Check).Off() {
		return job.Job{}, nil
	}
	if err := f.checkVersions(ctx, sha256); err != nil {
		return job.Job{}, err
	}
	anew := false // the fingerprint
	rec, _, err := record.Change(ctx, f.Catalog, layout.ContentKey(sha256), func(rec *content.Record, exists bool) error {
		anew = exists && rec.Fingerprint != nil && rec.Fingerprint.GivenUp
		switch {
		case anew:
			rec.Fingerprint = nil
		case !exists || rec.Check == nil || rec.Check.Verdict == content.Good:
			return record.ErrKeep
		default:
			rec.Check = nil
		}
		return nil
	})
	if err != nil {
		return job.Job{}, err
	}
	if !rec.Pending() && !anew {
		j, _, err := record.Read[job.Job](ctx, f.Catalog, layout.CheckJobKey(sha256))
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return j, err
	}
	return f.enqueueCheck(ctx, sha256, name, size, activity.Actor(r.Context()), web.ClientIP(r))
}

// checkVersions calls [record.CheckVersion] for the records of a check.
func (f *Function) checkVersions(ctx context.Context, sha256 layout.SHA256) error {
	return errors.Join(record.CheckVersion[content.Record](ctx, f.Catalog, layout.ContentKey(sha256)),
		record.CheckVersion[job.Job](ctx, f.Catalog, layout.CheckJobKey(sha256)))
}

func (f *Function) cancel(w http.ResponseWriter, r *http.Request) error {
	name := image.Name(r.PathValue("name"))
	if !name.Valid() {
		return problem.New(problem.NotFound, "there is no hash job for "+string(name))
	}
	for _, spelling := range image.Spellings(name) {
		if err := record.CheckVersion[job.Job](r.Context(), f.Catalog, layout.HashJobKey(spelling)); err != nil {
			return err
		}
	}
	checks, err := f.cancelChecks(r, name)
	if err != nil {
		return err
	}
	for _, spelling := range image.Spellings(name) {
		if _, err = f.runner(job.Hash).Cancel(r.Context(), string(spelling)); !errors.Is(err, store.ErrNotFound) {
			break
		}
	}
	if errors.Is(err, store.ErrNotFound) && checks {
		err = nil
	}
	if errors.Is(err, store.ErrNotFound) {
		return problem.New(problem.NotFound, "there is no hash job for "+string(name))
	}
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "hash of "+string(name)+" cancelled")
}

// cancelChecks ends the checks of the image of that name, and keeps the system
// from queueing them again. It reports whether there are any, ended or not.
func (f *Function) cancelChecks(r *http.Request, name image.Name) (found bool, err error) {
	ctx := r.Context()
	jobs, err := f.Inventory.Jobs(ctx, job.Check)
	if err != nil {
		return false, err
	}
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return false, err
	}
	var sha layout.SHA256 // of the image with that name; a check job has only one of its image's names
	if row, ok := s.ByName(name); ok {
		sha = row.Digest()
	}
	jobs = slices.DeleteFunc(jobs, func(j job.Job) bool { return j.Name != name && (sha == "" || j.SHA256 != sha) })
	found = len(jobs) > 0
	jobs = slices.DeleteFunc(jobs, func(j job.Job) bool { return !j.Status.Cancellable() })
	for _, j := range jobs {
		if err := f.checkVersions(ctx, j.SHA256); err != nil {
			return found, err
		}
	}
	for _, j := range jobs {
		if _, err := f.recordVerdict(ctx, j.SHA256, content.Check{Verdict: content.Cancelled, Reason: "the check was cancelled"}); err != nil {
			return found, err
		}
		if _, err := f.runner(job.Check).Cancel(ctx, job.Check.ID(j)); err != nil && !errors.Is(err, store.ErrNotFound) {
			return found, err
		}
	}
	return found, nil
}

var _ queue.Handler = (*Function)(nil).Handle
