// Package hash reads each image once, records its SHA-256, and compares that with
// its sidecars. It also inspects contents, checks them, and expands their disks.
package hash

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/incus"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Settle is the minimum age of an object that is hashed. By then an upload through
// the API has recorded the digest that it computed, and a file that is copied in is
// more likely to be whole.
const Settle = 2 * time.Second

// Function is the hash function: its routes and its worker. All fields are required
// except Prefix and those about disks. It is safe for concurrent use.
type Function struct {
	Images, Catalog store.Root
	// Bucket and Prefix are those of the image root, as object events name them.
	Bucket, Prefix string
	// Jobs may have no queue of check jobs: then images are not checked.
	Jobs *job.Jobs
	// Inspections may be a queue of jobs, too. With a queue of its own, an
	// inspection does not wait for hash jobs.
	Inspections queue.Sender
	Inventory   *inventory.Inventory
	Metric      *metric.Set
	// Workers is the number of hash jobs that run at once, as lists show it.
	Workers int
	// DisksMax is the number of bytes in the store that disks may take together. Sparse
	// is true if the store keeps holes, so that zeros take none.
	DisksMax int64
	Sparse   bool
	// LinkTime is how long after its use was recorded a client may begin to read a disk from
	// the store; 0 if clients read from this program. Then virtual images are their own disks.
	LinkTime time.Duration
	// AllDisks is true if each image gets a disk, while there is room.
	AllDisks bool
	// Needed returns the images whose disks are not removed for others. It may be nil.
	Needed func(ctx context.Context) (map[layout.SHA256]bool, error)
	// Free returns the bytes that the store has room for, or a negative number if that is
	// unknown. It may be nil.
	Free func() int64
	Now  func() time.Time
	Log  *slog.Logger

	turns turns      // of checks
	heads sync.Mutex // held while the beginning of a disk is unpacked
}

// Runners returns the runners of the function's jobs.
func (f *Function) Runners() job.Runners {
	return job.Runners{
		{Kind: job.Hash, Jobs: f.Jobs, Work: f.hash, Then: f.hashed},
		{Kind: job.Check, Jobs: f.Jobs, Begin: f.beginCheck, Then: f.checked},
		{Kind: job.Disk, Jobs: f.Jobs, Work: f.makeDisk, Then: f.diskMade},
	}
}

func (f *Function) runner(k *job.Kind) *job.Runner { return f.Runners().Of(k) }

// Handle implements [queue.Handler] for inspections, hash jobs and check jobs.
func (f *Function) Handle(ctx context.Context, body []byte) error {
	tasks, err := queue.Tasks(body, f.Bucket, f.Prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		errs = append(errs, f.do(ctx, t))
	}
	// A record of a newer version is left to the processes of that version.
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, record.ErrNewer) })...)
}

func (f *Function) do(ctx context.Context, task queue.Task) error {
	switch t := task.(type) {
	case queue.Reconcile:
		return f.Reconcile(ctx)
	case queue.Poll:
		return f.Poll(ctx)
	case queue.Resume:
		return f.Runners().Resume(ctx, f.Inventory.Jobs)
	case queue.InspectImage:
		f.Inventory.TouchImage(store.Key(t)) // other processes may not have the event
		return f.inspectImage(ctx, store.Key(t))
	case queue.InspectContent:
		return f.inspectContent(ctx, layout.SHA256(t))
	}
	return f.Runners().Handle(ctx, task)
}

// inspectImage updates the records of the object at key, or queues its hash job.
func (f *Function) inspectImage(ctx context.Context, key store.Key) error {
	if of, _, ok := layout.ImageOfSidecar(key); ok {
		var errs []error
		for _, other := range layout.ImageKeys(of) {
			errs = append(errs, f.inspectImage(ctx, other))
		}
		return errors.Join(errs...)
	}
	if names := layout.ImagesOfBmap(key); names != nil {
		var errs []error
		for _, name := range names {
			errs = append(errs, f.inspectImage(ctx, layout.ImageKey(name)))
		}
		return errors.Join(errs...)
	}
	if key == layout.ManifestKey {
		_, err := f.Inventory.Snapshot(ctx) // keeps a copy of a good one
		return err
	}
	name, ok := layout.ImageName(key)
	if !ok {
		_, err := f.Inventory.Snapshot(ctx) // logs objects that are not images
		return err
	}
	info, err := f.Images.Head(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return f.forget(ctx, name)
	}
	if err != nil {
		return err
	}
	rec, _, err := record.Read[digest.Record](ctx, f.Catalog, layout.DigestKey(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err == nil && rec.Version.Equal(info.Version) {
		// Another process may have written it.
		f.Inventory.TouchCatalog(layout.DigestKey(name))
		need512, err := f.verify(ctx, name)
		if err != nil {
			return err
		}
		if need512 {
			_, err := f.enqueue(ctx, name, &info.Version, true, activity.System, "")
			return err
		}
		err = f.Jobs.Complete(ctx, layout.HashJobKey(name), func(j *job.Job) {
			j.SHA256, j.BytesDone, j.BytesTotal, j.Version = rec.SHA256, info.Size, &info.Size, &info.Version
		})
		if err != nil {
			return err
		}
		return f.inspect(ctx, rec.SHA256, f.imageAt(name, info.Version))
	}
	// A time in the future was copied with the file (cp -p), or a clock is wrong.
	if still := f.Now().Sub(info.LastModified); still < Settle && still > -time.Minute {
		return queue.RetryAfter(Settle-still, errors.New("the object is fresh"))
	}
	_, err = f.enqueue(ctx, name, &info.Version, false, activity.System, "")
	return err
}

// forget removes the records of an object that is gone.
func (f *Function) forget(ctx context.Context, name image.Name) error {
	if err := record.CheckVersion[digest.Record](ctx, f.Catalog, layout.DigestKey(name)); err != nil {
		return err
	}
	if _, err := f.runner(job.Hash).Cancel(ctx, string(name)); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return record.Delete[digest.Record](ctx, f.Catalog, layout.DigestKey(name))
}

// enqueue queues the hash job of that version of an image, unless it is active. A
// job of that version that was cancelled, or has failed and does not recover (see
// [job.Job.Recovers]), is queued again for an operator only. One that is completed
// is queued again for the system only, which does so because its outcome is
// missing: the digests, with the SHA-512 if with512 is true. It looks for them again, since
// another process may have recorded them, and completed the job, a moment ago.
func (f *Function) enqueue(ctx context.Context, name image.Name, version *store.Version, with512 bool, actor, ip string) (job.Job, error) {
	is := func(j job.Job) bool { return j.Version != nil && j.Version.Equal(*version) }
	keep := func(j job.Job) bool {
		switch {
		case !is(j):
			return false
		case j.Status != job.Completed:
			return actor == activity.System && !j.Recovers(f.Now())
		case actor != activity.System:
			return true
		}
		rec, _, err := record.Read[digest.Record](ctx, f.Catalog, layout.DigestKey(name))
		return err == nil && rec.Version.Equal(*version) && (rec.SHA512 != "" || !with512)
	}
	r := f.runner(job.Hash)
	for {
		j, _, err := r.Jobs.Enqueue(ctx, layout.HashJobKey(name), keep, func(j *job.Job) {
			j.Name, j.Version, j.Actor, j.SourceIP = name, version, actor, ip
			j.BytesTotal = &version.Size
		})
		switch {
		case err != nil || !j.Status.Active():
			return j, err
		case is(j) && j.Status == job.Queued:
			// If it was queued before, its task may be lost, or wait for another
			// process whose workers are busy.
			return j, r.Send(ctx, string(name), 0)
		case is(j):
			return j, nil
		}
		// The job reads a version that was replaced.
		if _, err := r.Cancel(ctx, string(name)); err != nil {
			return j, err
		}
	}
}

// A checkpoint is what the next run of a job resumes from.
type checkpoint struct {
	Version store.Version `json:"version"`
	// Metadata is the SHA-256 of the tarball before the bytes that are hashed; empty: none.
	Metadata layout.SHA256 `json:"metadata,omitempty"`
	State    digest.State  `json:"state"`
}

// resume returns a hasher that continues where the last run of a job ended, or begins with
// tarball, which may be nil.
func resume(r *job.Run, v store.Version, tarball *incus.Tarball, with512 bool) *digest.Hasher {
	var cp checkpoint
	if json.Unmarshal(r.Job().Checkpoint, &cp) == nil && cp.Version.Equal(v) && cp.Metadata == tarball.ID() {
		resumed, err := digest.Resume(cp.State)
		if err == nil && resumed.Offset() <= v.Size+tarball.Size() && (resumed.Sum512() != "" || !with512) {
			return resumed
		}
	}
	h := digest.New(with512)
	if tarball != nil {
		_, _ = h.Write(tarball.Bytes) // never fails
	}
	return h
}

// A checkpoint follows the last one after checkpointBytes or checkpointTime, whichever
// is first.
const (
	checkpointBytes = 256 << 20
	checkpointTime  = 5 * time.Second
)

// hashed verifies and inspects an image that was hashed.
func (f *Function) hashed(ctx context.Context, _ string, j job.Job) error {
	name := j.Name
	if j.Status != job.Completed {
		return nil
	}
	_, err := f.verify(ctx, name)
	if err == nil {
		err = f.inspect(ctx, j.SHA256, f.imageAt(name, *j.Version))
	}
	if err == nil {
		return nil
	}
	// The job is complete, so a redelivery would do nothing. Enqueue a new
	// inspection instead.
	f.Log.Warn("an image that was hashed is inspected again", "name", name, "error", err)
	return f.enqueueInspection(ctx, name)
}

// replaced returns the error of a run whose object is no longer the version that
// it reads.
func replaced() error {
	return &queue.Retry{After: Settle, Err: errors.New("the object was replaced while it was read")}
}

var errDeleted = errors.New("the image was deleted")

// hash reads the current version of an image and publishes its digest.
func (f *Function) hash(ctx context.Context, id string, r *job.Run) (func(*job.Job), error) {
	name := image.Name(id)
	info, err := f.Images.Head(ctx, layout.ImageKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, errDeleted
	}
	if err != nil {
		return nil, job.StoreFailed(err)
	}
	with512, err := f.wants512(ctx, name)
	if err != nil {
		return nil, job.StoreFailed(err)
	}
	h := resume(r, info.Version, nil, with512)
	if err := f.read(ctx, inventory.Place{Root: f.Images, Info: info}, h, nil, r, nil); err != nil {
		return nil, err
	}
	after, err := f.Images.Head(ctx, layout.ImageKey(name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, job.StoreFailed(err)
	}
	if err != nil || !after.Equal(info.Version) {
		return nil, replaced()
	}
	sum := h.Sum256()
	err = job.Publish(ctx, r, layout.DigestKey(name), info.Size, func(rec *digest.Record) error {
		*rec = rec.Next(name, info.Version, sum, digest.ByHash, f.Now())
		rec.SHA512 = h.Sum512()
		return nil
	})
	return func(j *job.Job) {
		j.SHA256, j.BytesDone, j.BytesTotal, j.Version = sum, info.Size, &info.Size, &info.Version
	}, err
}

// read reads the object at a place into h, behind tarball, which may be nil. turn may be nil,
// too.
func (f *Function) read(ctx context.Context, at inventory.Place, h *digest.Hasher, tarball *incus.Tarball, r *job.Run, turn *turn) error {
	size, read := at.Info.Size, func() int64 { return h.Offset() - tarball.Size() }
	if read() == size {
		return nil
	}
	body, got, err := at.Root.Get(ctx, at.Info.Key, store.Range{Offset: read(), Length: -1}, at.Info.ETag)
	if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
		return replaced()
	}
	if err != nil {
		return job.StoreFailed(err)
	}
	defer body.Close()
	if got.Size != size {
		return replaced()
	}
	next := read()
	var last time.Time // of a checkpoint
	for block, err := range blocks(body, blockBytes) {
		_, _ = h.Write(block) // a hash does not fail
		f.Metric.BytesHashed(len(block))
		lost := !turn.keep()
		if done, now := read(), f.Now(); done >= next || err != nil || lost || now.Sub(last) >= checkpointTime {
			next, last = done+checkpointBytes, now
			cp, cerr := json.Marshal(checkpoint{at.Info.Version, tarball.ID(), h.State()})
			if cerr != nil {
				return cerr
			}
			r.Report(done, size, cp)
		} else {
			r.Report(done, size, nil)
		}
		switch {
		case errors.Is(err, io.EOF) && read() != size:
			return replaced()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return job.StoreFailed(err)
		case lost:
			return &queue.Retry{After: turnTime, Err: errTurn, Free: true}
		}
	}
	return io.ErrUnexpectedEOF // blocks ends with an error
}
