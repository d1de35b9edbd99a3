package upload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/checksum"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Runners returns the runners of the function's jobs.
func (f *Function) Runners() job.Runners {
	return job.Runners{{Kind: job.Rename, Jobs: f.Jobs, Work: f.rename}}
}

// postRename answers POST /images/{name}/rename. It is a job, since a store may have to
// copy the image.
func (f *Function) postRename(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var in struct {
		Name string `json:"name"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	next, err := image.ParseName(in.Name)
	if err != nil {
		return err
	}
	asked, err := image.ParseName(r.PathValue("name"))
	if err != nil {
		return problem.New(problem.NotFound, "there is no image of this name: "+err.Error())
	}
	key, _, err := store.HeadFirst(ctx, f.Images, layout.ImageKeys(asked))
	if errors.Is(err, store.ErrNotFound) {
		if j := f.repeated(ctx, asked, next); j.Status.Active() || j.Status == job.Completed {
			return answerRename(w, r, j)
		}
		return problem.New(problem.NotFound, "there is no image of this name in the image root")
	}
	if err != nil {
		return err
	}
	name, _ := layout.ImageName(key) // the spelling that the object has
	if next == name {
		return answerRename(w, r, job.Job{Name: name, NewName: name, Stage: job.Rename.Name, Status: job.Completed})
	}
	if err := f.settled(ctx, name); err != nil {
		return err
	}
	other, _, err := store.HeadFirst(ctx, f.Images, layout.ImageKeys(next))
	if err == nil && other != key {
		if j := f.repeated(ctx, name, next); j.Status.Active() {
			return answerRename(w, r, j)
		}
		return problem.New(problem.Conflict, taken(next).Error())
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for _, n := range []image.Name{name, next} {
		if err := record.CheckVersion[digest.Record](ctx, f.Catalog, layout.DigestKey(n)); err != nil {
			return err
		}
	}
	j, err := f.Runners().Of(job.Rename).Enqueue(ctx, string(name), func(job.Job) bool { return false }, func(j *job.Job) {
		j.Name, j.NewName, j.Stage, j.Actor, j.SourceIP = name, next, job.Rename.Name, activity.Actor(ctx), web.ClientIP(r)
	})
	if err != nil {
		return err
	}
	if j.NewName != next {
		return underway(j)
	}
	return answerRename(w, r, j)
}

// repeated returns the job of the same rename, or none: the client may repeat a request
// whose answer was lost, also when the job has written the new name already.
func (f *Function) repeated(ctx context.Context, name, next image.Name) job.Job {
	j, _, err := record.Read[job.Job](ctx, f.Catalog, layout.RenameJobKey(name))
	if err != nil || j.NewName != next {
		return job.Job{}
	}
	return j
}

// settled returns a problem if the rename that gave the image this name is active: if that
// job runs again after a kill, it undoes a later rename back.
func (f *Function) settled(ctx context.Context, name image.Name) error {
	active, err := f.Inventory.RecentJobs(ctx, 0, job.Rename)
	if err != nil {
		return err
	}
	for _, j := range active.Jobs {
		if j.NewName == name {
			return underway(j)
		}
	}
	return nil
}

func underway(j job.Job) error {
	return problem.Newf(problem.Conflict, "%s is being renamed to %s: wait for the end, or cancel that", j.Name, j.NewName)
}

func answerRename(w http.ResponseWriter, r *http.Request, j job.Job) error {
	return web.Answer(w, r, http.StatusAccepted, j.View(), string(j.Name)+" gets the name "+string(j.NewName))
}

func taken(name image.Name) error {
	return fmt.Errorf("there is another image named %s: choose another name, or delete that image first", name)
}

// listRenames answers GET /catalog/renames.
func (f *Function) listRenames(w http.ResponseWriter, r *http.Request) error {
	jobs, err := f.Inventory.Jobs(r.Context(), job.Rename)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]any{"renames": job.Views(jobs)})
}

// cancelRename answers DELETE /catalog/renames/{name}.
func (f *Function) cancelRename(w http.ResponseWriter, r *http.Request) error {
	name := image.Name(r.PathValue("name"))
	err := store.ErrNotFound
	if name.Valid() {
		_, err = f.Runners().Of(job.Rename).Cancel(r.Context(), string(name))
	}
	if errors.Is(err, store.ErrNotFound) {
		return problem.New(problem.NotFound, "there is no rename job for "+string(name))
	}
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "the rename of "+string(name)+" was cancelled")
}

// again is how long a rename job waits until what it needs has been found out.
const again = 2 * time.Second

// rename gives an image its new name. An earlier run may have stopped at any step: the
// image has the old name until it has the new one.
func (f *Function) rename(ctx context.Context, id string, r *job.Run) (func(*job.Job), error) {
	name, next := image.Name(id), r.Job().NewName
	old, err := f.known(ctx, name)
	if err != nil {
		return nil, job.StoreFailed(err)
	}
	now, err := f.known(ctx, next)
	switch {
	case err != nil:
		return nil, job.StoreFailed(err)
	case !old.exists && !now.exists:
		return nil, errors.New("the image was deleted")
	case !old.exists: // it has the new name
	case !now.exists:
		now.version, err = f.Images.Move(ctx, layout.ImageKey(next), layout.ImageKey(name), old.version)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
			return nil, queue.RetryAfter(again, errors.New("another image was stored meanwhile"))
		}
		if isFinal(err) {
			return nil, errors.New(reason(err))
		}
		if err != nil {
			return nil, job.StoreFailed(err)
		}
	case old.digests.SHA256 == "" || now.digests.SHA256 == "":
		// A run that was killed may have copied the image, or it is another one.
		return nil, queue.RetryAfter(again, fmt.Errorf("waiting for the digests of %s and %s, to compare them", name, next))
	case old.digests.SHA256 != now.digests.SHA256:
		return nil, taken(next)
	}
	if err := f.follow(ctx, name, next, old, now); err != nil {
		return nil, job.StoreFailed(err)
	}
	return func(j *job.Job) { j.SHA256 = cmp.Or(old.digests.SHA256, now.digests.SHA256) }, nil
}

// A known image has an object, if exists is true. Its digests are zero if they are of
// another version of the object.
type known struct {
	exists  bool
	version store.Version
	digests digest.Record
}

// known returns what is known of the image of that name. The digests of an object that no
// longer exists are those that it had.
func (f *Function) known(ctx context.Context, name image.Name) (k known, err error) {
	info, err := f.Images.Head(ctx, layout.ImageKey(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return k, err
	}
	k.exists, k.version = err == nil, info.Version
	rec, _, err := record.Read[digest.Record](ctx, f.Catalog, layout.DigestKey(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return k, err
	}
	if !k.exists {
		k.version = rec.Version
	}
	if rec.Version.Equal(k.version) {
		k.digests = rec
	}
	return k, nil
}

// follow makes what belongs to the old name belong to the new one, and removes the old
// object if the store has copied it.
func (f *Function) follow(ctx context.Context, name, next image.Name, old, now known) error {
	if old.digests.SHA256 != "" && now.digests.SHA256 == "" && (old.exists || old.version.Equal(now.version)) {
		_, _, err := record.Change(ctx, f.Catalog, layout.DigestKey(next), func(rec *digest.Record, _ bool) error {
			*rec = rec.Renamed(&old.digests, next, now.version)
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, algorithm := range []string{checksum.SHA256, checksum.SHA512} {
		if err := f.moveSidecar(ctx, name, next, algorithm); err != nil {
			return err
		}
	}
	if err := f.moveMaps(ctx, name, next); err != nil {
		return err
	}
	if sha := cmp.Or(old.digests.SHA256, now.digests.SHA256); sha != "" {
		_, _, err := record.Change(ctx, f.Catalog, layout.MetadataKey(sha), func(rec *metadata.Record, exists bool) error {
			if !exists || rec.Name != name {
				return record.ErrKeep
			}
			rec.Name, rec.ChangedAt = next, f.Now().UTC()
			return nil
		})
		if err != nil && !errors.Is(err, record.ErrNewer) {
			return err
		}
	}
	if info, err := f.Images.Head(ctx, layout.ImageKey(name)); err == nil && old.exists && info.Version.Equal(old.version) {
		if err := f.Images.Delete(ctx, layout.ImageKey(name)); err != nil {
			return err
		}
	} else if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return errors.Join(f.Inspections.Send(ctx, queue.InspectImage(name).Encode(), 0), f.Inspections.Send(ctx, queue.InspectImage(next).Encode(), 0))
}

// moveSidecar gives a sidecar the new name of its image, in the list that it is, too. One
// that cannot be used stays, and so does one beside another sidecar of the new name.
func (f *Function) moveSidecar(ctx context.Context, name, next image.Name, algorithm string) error {
	from, to := layout.SidecarKey(name, algorithm), layout.SidecarKey(next, algorithm)
	if image.CheckSegment(string(from)) != nil || image.CheckSegment(string(to)) != nil {
		return nil // too long for a name
	}
	sum, err := f.sidecar(ctx, from, name)
	if err != nil || sum.Hex == "" {
		return err
	}
	if _, err := f.Images.Head(ctx, to); errors.Is(err, store.ErrNotFound) {
		line := sum.Hex + "  " + string(next) + "\n"
		if _, err := f.Images.Put(ctx, to, strings.NewReader(line), int64(len(line))); err != nil {
			return err
		}
	}
	if other, err := f.sidecar(ctx, to, next); err != nil || other != sum {
		return err
	}
	return f.Images.Delete(ctx, from)
}

// sidecar returns the digest that a sidecar has for an image, or none.
func (f *Function) sidecar(ctx context.Context, key store.Key, name image.Name) (sum checksum.Sum, err error) {
	body, _, err := f.Images.Get(ctx, key, store.All, "")
	if errors.Is(err, store.ErrNotFound) {
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	defer body.Close()
	list, err := checksum.Parse(body, string(key))
	if err == nil {
		sum, err = list.Find(string(name))
	}
	if err != nil {
		f.Log.Info("a sidecar of a renamed image cannot be used, and stays", "key", key, "error", err)
	}
	return sum, nil
}
