package hash

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// A kept disk is an object and what its record says.
type kept struct {
	sha256 layout.SHA256
	content.Disk
}

// inUse reports whether a client may read the disk.
func (f *Function) inUse(d *content.Disk) bool { return d.InUse(f.Now().Add(-f.LinkTime)) }

// expands reports whether images of this kind are expanded into disks.
func (f *Function) expands(k content.Kind) bool {
	return k.Compressed() || k.Virtual() && f.LinkTime > 0
}

// keepsVirtual reports whether the virtual image in a compressed one is kept decompressed,
// so that its disk can be read: where clients read disks from this program.
func (f *Function) keepsVirtual() bool {
	return !f.runner(job.Disk).Off() && f.DisksMax > 0 && f.LinkTime == 0
}

// disks returns the disks in the catalog root, the least recently used ones first, and
// the digests of objects that no record knows.
func (f *Function) disks(ctx context.Context) (disks []kept, unknown []layout.SHA256, err error) {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return nil, nil, err
	}
	for info, err := range f.Catalog.List(ctx, layout.DiskPrefix, "") {
		if err != nil {
			return nil, nil, err
		}
		sha256, ok := layout.DiskSHA256(info.Key)
		if !ok {
			continue
		}
		if row, ok := s.BySHA256(sha256); ok && row.Known != nil && row.Known.Disk != nil && row.Known.Disk.SizeBytes == info.Size {
			disks = append(disks, kept{sha256, *row.Known.Disk}) // without a request
			continue
		}
		rec, _, err := record.Read[content.Record](ctx, f.Catalog, layout.ContentKey(sha256))
		switch {
		case errors.Is(err, record.ErrNewer), errors.Is(err, record.ErrDamaged):
			continue // it may know the disk
		case err != nil && !errors.Is(err, store.ErrNotFound):
			return nil, nil, err
		case err != nil || rec.Disk == nil || rec.Disk.SizeBytes != info.Size:
			unknown = append(unknown, sha256)
		default:
			disks = append(disks, kept{sha256: sha256, Disk: *rec.Disk})
		}
	}
	slices.SortFunc(disks, func(a, b kept) int {
		return cmp.Or(a.UsedAt.Compare(b.UsedAt), cmp.Compare(a.sha256, b.sha256))
	})
	return disks, unknown, nil
}

// makeRoom removes disks that are not in use, the least recently used ones first, until
// there is room for a disk that takes that many bytes.
func (f *Function) makeRoom(ctx context.Context, sha256 layout.SHA256, stored int64) error {
	if stored > f.DisksMax {
		return f.tooLarge()
	}
	disks, _, err := f.disks(ctx)
	if err != nil {
		return job.StoreFailed(err)
	}
	var needed map[layout.SHA256]bool
	if f.Needed != nil {
		if needed, err = f.Needed(ctx); err != nil {
			return job.StoreFailed(err)
		}
	}
	disks = slices.DeleteFunc(disks, func(d kept) bool { return d.sha256 == sha256 })
	total, idle := stored, int64(0)
	for _, d := range disks {
		total += d.StoredBytes
		if !f.inUse(&d.Disk) && !needed[d.sha256] {
			idle += d.StoredBytes
		}
	}
	disks = slices.DeleteFunc(disks, func(d kept) bool { return needed[d.sha256] })
	for _, d := range disks {
		if total <= f.DisksMax || total-idle > f.DisksMax {
			break
		}
		dropped, err := f.dropDisk(ctx, d.sha256, f.inUse)
		if err != nil {
			return job.StoreFailed(err)
		}
		if dropped {
			total -= d.StoredBytes
		}
	}
	if total > f.DisksMax {
		return fmt.Errorf("the disks in use or exported and this one take more than the %d bytes that disks may take together: try again when they are not in use, or raise IMAGEROOT_DISKS_MAX", f.DisksMax)
	}
	return nil
}

func (f *Function) tooLarge() error {
	return fmt.Errorf("the disk takes more than the %d bytes that disks may take together: raise IMAGEROOT_DISKS_MAX", f.DisksMax)
}

// dropDisk removes a disk and returns true, unless stay returns true. The record goes
// first, so that a disk that is known is there. stay may be nil.
func (f *Function) dropDisk(ctx context.Context, sha256 layout.SHA256, stay func(*content.Disk) bool) (bool, error) {
	stays := false
	_, _, err := record.Change(ctx, f.Catalog, layout.ContentKey(sha256), func(rec *content.Record, exists bool) error {
		stays = false
		if !exists || rec.Disk == nil {
			return record.ErrKeep
		}
		if stays = stay != nil && stay(rec.Disk); stays {
			return record.ErrKeep
		}
		rec.Disk = nil
		return nil
	})
	if err != nil || stays {
		return false, err
	}
	return true, f.Catalog.Delete(ctx, layout.DiskKey(sha256))
}

// reconcileDisks removes objects that runs have left when they were killed, and disks of
// images that are gone. It does nothing where no disks are made.
func (f *Function) reconcileDisks(ctx context.Context) error {
	if f.DisksMax == 0 {
		return nil
	}
	disks, unknown, err := f.disks(ctx)
	if err != nil {
		return err
	}
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if row, ok := s.BySHA256(d.sha256); (!ok || !row.Cached) && !f.Inventory.Incomplete(s) && !f.inUse(&d.Disk) {
			unknown = append(unknown, d.sha256)
		}
	}
	for _, sha256 := range unknown {
		making, err := f.making(ctx, sha256) // and about to record it
		if err == nil && !making {
			_, err = f.dropDisk(ctx, sha256, nil)
		}
		if err != nil {
			return err
		}
	}
	if err := f.abortExpansions(ctx); err != nil {
		return err
	}
	return f.fillDisks(ctx)
}

// making reports whether a run may be making the disk of the image with this SHA-256.
func (f *Function) making(ctx context.Context, sha256 layout.SHA256) (bool, error) {
	j, _, err := record.Read[job.Job](ctx, f.Catalog, layout.DiskJobKey(sha256))
	switch {
	case errors.Is(err, record.ErrNewer):
		return true, nil
	case errors.Is(err, store.ErrNotFound), errors.Is(err, record.ErrDamaged):
		return false, nil
	}
	return j.Status.Active(), err
}

// abortExpansions removes the parts of disks whose runs were killed.
func (f *Function) abortExpansions(ctx context.Context) error {
	for u, err := range f.Catalog.PendingUploads(ctx, layout.DiskPrefix) {
		if err != nil {
			return err
		}
		sha256, _ := layout.DiskSHA256(u.Key)
		making, err := f.making(ctx, sha256)
		if err == nil && !making {
			err = f.Catalog.AbortUpload(ctx, u.Key, u.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fillDisks queues a job for one of the images without a disk, if each is to have one
// and there is room for it, or if the check was of compressed data around a virtual image,
// which the job checks.
func (f *Function) fillDisks(ctx context.Context) error {
	if f.runner(job.Disk).Off() {
		return nil
	}
	jobs, err := f.Inventory.Jobs(ctx, job.Disk)
	if err != nil {
		return err
	}
	tried := map[layout.SHA256]bool{}
	for _, j := range jobs {
		if j.Status.Active() {
			return nil
		}
		tried[j.SHA256] = true
	}
	disks, _, err := f.disks(ctx)
	if err != nil {
		return err
	}
	left := f.DisksMax
	for _, d := range disks {
		left -= d.StoredBytes
	}
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return err
	}
	for h := range s.Heads() {
		if !h.Cached || h.SHA256 == "" || h.NoDisk || tried[h.SHA256] {
			continue
		}
		known := s.Row(h).Known
		if known == nil || !f.expands(known.Kind) || known.Disk != nil {
			continue
		}
		halfChecked := known.Check != nil && outerOnly(known.Check)
		if size := known.Virtual(); !halfChecked && (!f.AllDisks || size == nil || *size > left) {
			continue // of a size that is not known, the check will tell
		}
		_, _, err := f.Jobs.RequestDisk(ctx, h.SHA256, h.Name)
		if !errors.Is(err, record.ErrNewer) {
			return err
		}
	}
	return nil
}

// A diskView is a disk in the API.
type diskView struct {
	SHA256      layout.SHA256 `json:"sha256"`
	Name        *image.Name   `json:"name"` // null if the image is gone
	SizeBytes   int64         `json:"size_bytes"`
	StoredBytes int64         `json:"stored_bytes"`
	MadeAt      time.Time     `json:"made_at"`
	UsedAt      time.Time     `json:"used_at"`
}

// listDisks answers GET /catalog/disks.
func (f *Function) listDisks(w http.ResponseWriter, r *http.Request) error {
	jobs, err := f.Inventory.Jobs(r.Context(), job.Disk)
	if err != nil {
		return err
	}
	disks, _, err := f.disks(r.Context())
	if err != nil {
		return err
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	views, stored := []diskView{}, int64(0)
	for _, d := range slices.Backward(disks) {
		v := diskView{SHA256: d.sha256, SizeBytes: d.SizeBytes, StoredBytes: d.StoredBytes, MadeAt: d.MadeAt, UsedAt: d.UsedAt}
		if row, ok := s.BySHA256(d.sha256); ok {
			v.Name = &row.Names[0]
		}
		views, stored = append(views, v), stored+d.StoredBytes
	}
	return web.JSON(w, http.StatusOK, map[string]any{"disks": views, "stored_bytes": stored, "max_bytes": f.DisksMax, "jobs": job.Views(jobs)})
}

// postDisk answers POST /catalog/disks.
func (f *Function) postDisk(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name   string `json:"name"`
		SHA256 string `json:"sha256"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	if f.runner(job.Disk).Off() {
		return problem.New(problem.NotImplemented, "this server makes no disks")
	}
	row, err := f.rowOf(r.Context(), in.Name, in.SHA256)
	if err != nil {
		return err
	}
	sha256, name := row.Digest(), row.Names[0]
	switch known := row.Known; {
	case !row.Cached:
		return problem.Newf(problem.NotFound, "%s is available, but not cached: fetch it first", name)
	case sha256 == "" || known == nil:
		return problem.Newf(problem.Conflict, "%s is not hashed yet: try again when it is", name)
	case known.NoDisk() != "":
		return problem.New(problem.Malformed, known.NoDisk())
	case !f.expands(known.Kind):
		return problem.Newf(problem.Malformed, "%s is its own disk: /raw serves any part of it already", name)
	}
	if err := errors.Join(record.CheckVersion[content.Record](r.Context(), f.Catalog, layout.ContentKey(sha256)),
		record.CheckVersion[job.Job](r.Context(), f.Catalog, layout.DiskJobKey(sha256))); err != nil {
		return err
	}
	_, err = f.Catalog.Head(r.Context(), layout.DiskKey(sha256))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	there := func(j job.Job) bool { return j.Status == job.Completed && err == nil && row.Known.Disk != nil }
	j, err := f.Jobs.EnqueueDisk(r.Context(), sha256, name, there, activity.Actor(r.Context()), web.ClientIP(r))
	if err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusAccepted, j.View(), "disk of "+string(name)+" queued")
}

// rowOf returns the row with a name or a SHA-256, of which one must be given.
func (f *Function) rowOf(ctx context.Context, name, sha256 string) (*inventory.Row, error) {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if (name == "") == (sha256 == "") {
		return nil, problem.New(problem.Malformed, "give the name or the sha256 of an image")
	}
	if name != "" {
		n, err := image.ParseName(name)
		if err != nil {
			return nil, problem.New(problem.Malformed, err.Error())
		}
		if row, ok := s.ByName(n); ok {
			return row, nil
		}
		return nil, problem.New(problem.NotFound, "there is no image "+name)
	}
	sha, ok := layout.ParseSHA256(sha256)
	if !ok {
		return nil, problem.New(problem.Malformed, "a sha256 has 64 lower-case hexadecimal digits")
	}
	if row, ok := s.BySHA256(sha); ok {
		return row, nil
	}
	return nil, problem.New(problem.NotFound, "there is no image with the SHA-256 "+sha256)
}

// deleteDisk answers DELETE /catalog/disks/{sha256}: it cancels the job of a disk, and
// removes the disk.
func (f *Function) deleteDisk(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	sha256, ok := layout.ParseSHA256(r.PathValue("sha256"))
	missing := problem.New(problem.NotFound, "there is no disk of "+r.PathValue("sha256"))
	if !ok {
		return missing
	}
	if err := errors.Join(record.CheckVersion[content.Record](ctx, f.Catalog, layout.ContentKey(sha256)),
		record.CheckVersion[job.Job](ctx, f.Catalog, layout.DiskJobKey(sha256))); err != nil {
		return err
	}
	j, err := f.runner(job.Disk).Cancel(ctx, string(sha256))
	cancelled := err == nil && j.Status == job.Cancelled
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	_, err = f.Catalog.Head(ctx, layout.DiskKey(sha256))
	switch {
	case errors.Is(err, store.ErrNotFound) && !cancelled:
		return missing
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	case err == nil:
		if _, err := f.dropDisk(ctx, sha256, nil); err != nil {
			return err
		}
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "disk removed")
}
