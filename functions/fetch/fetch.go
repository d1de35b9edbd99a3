// Package fetch downloads the bytes of entries and of the manifest's images into
// the catalog root, and verifies them.
package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/store"
)

// Function is the fetch function: its routes and its worker. All fields are required
// except Whole, Connections and Limits. It is safe for concurrent use.
type Function struct {
	Catalog store.Root
	Sources *source.Client
	Jobs    *job.Jobs
	// Inspections is the queue for the contents that were fetched.
	Inspections queue.Sender
	Inventory   *inventory.Inventory
	Activity    *activity.Log
	Metric      *metric.Set
	// Free returns the bytes that the store has room for, or a negative number if
	// that is not known.
	Free func() int64
	// Workers is the number of jobs that run at once, as lists show it.
	Workers int
	// Whole reads each part into memory before it goes to the store, for stores
	// such as Amazon S3 that end a request that is idle for some seconds, which it
	// is while a source stalls. It takes memory for one part per worker.
	Whole bool
	// Connections is the maximum number of connections to one host, 16 if it is 0.
	// Each fetch has one, even if that are more.
	Connections int
	Limits      Limits
	Now         func() time.Time
	Log         *slog.Logger

	hosts hosts
}

// A target is a source to fetch and what the catalog knows of it.
type target struct {
	ref    layout.Ref // of the URL
	loc    source.Location
	size   int64 // negative if unknown
	sha256 layout.SHA256
	sha512 string
	// seen are the source's validators when the entry was added.
	seen  source.Validators
	entry bool // an operator's entry, which can be flagged
	added time.Time
}

// errGone ends the job of a source that the catalog no longer has.
var errGone = errors.New("the catalog no longer has this source")

// target reads what the catalog knows of a source.
func (f *Function) target(ctx context.Context, ref layout.Ref) (*target, error) {
	if err := record.CheckVersion[entry.Fetched](ctx, f.Catalog, layout.FetchedKey(ref)); err != nil {
		return nil, retryLater(err) // the fetch could not be published
	}
	e, _, err := record.Read[entry.Entry](ctx, f.Catalog, layout.EntryKey(ref))
	if err == nil {
		t := &target{
			ref: ref, loc: source.Location{URL: e.URL, Name: e.Name, Digest: e.Source.Digest}, size: -1,
			sha256: e.SHA256, sha512: e.SHA512, entry: true, added: e.AddedAt,
			seen: source.Validators{ETag: e.Source.ETag, LastModified: e.Source.LastModified},
		}
		if e.SizeBytes != nil {
			t.size = *e.SizeBytes
		}
		return t, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, retryLater(err)
	}
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return nil, retryLater(err)
	}
	row, ok := s.BySource(ref)
	if !ok {
		return nil, errGone
	}
	for _, src := range row.Sources {
		if src.Ref != ref || src.Kind != inventory.Manifest {
			continue
		}
		t := &target{ref: ref, loc: source.Location{URL: src.Location, Name: src.Name}, size: -1, sha256: src.SHA256, sha512: src.SHA512}
		if src.SizeBytes != nil {
			t.size = *src.SizeBytes
		}
		return t, f.resolve(ctx, t)
	}
	return nil, errGone
}

// resolve pins a source of the manifest; an entry was pinned when it was added.
func (f *Function) resolve(ctx context.Context, t *target) error {
	u, err := t.loc.Parse()
	if err != nil || !u.Pinned() {
		return err
	}
	r, err := f.Sources.Resolve(ctx, t.loc, "")
	if err != nil {
		return err
	}
	if t.sha256 != "" && r.SHA256 != "" && t.sha256 != r.SHA256 {
		return fmt.Errorf("the manifest says SHA-256 %s and %s now means %s", t.sha256, t.loc.URL, r.SHA256)
	}
	t.loc.Digest = r.Digest
	if t.sha256 == "" {
		t.sha256 = r.SHA256
	}
	if t.size < 0 {
		t.size = r.Size
	}
	return nil
}

// Handle implements [queue.Handler] for fetch jobs, and for reconciling and resuming
// them.
func (f *Function) Handle(ctx context.Context, body []byte) error {
	task, err := queue.Decode(body)
	if err != nil {
		return err
	}
	switch task.(type) {
	case queue.Reconcile:
		err = f.Reconcile(ctx)
	case queue.Resume:
		err = f.Runners().Resume(ctx, f.Inventory.Jobs)
	default:
		err = f.Runners().Handle(ctx, task)
	}
	if errors.Is(err, record.ErrNewer) {
		return nil // left to a process of the newer version
	}
	return err
}

// Runners returns the runners of the function's jobs.
func (f *Function) Runners() job.Runners {
	return job.Runners{{Kind: job.Fetch, Jobs: f.Jobs, Work: f.work, Then: f.fetched, Drop: f.drop}}
}

func (f *Function) runner() *job.Runner { return f.Runners().Of(job.Fetch) }

// work runs a fetch job.
func (f *Function) work(ctx context.Context, id string, r *job.Run) (func(*job.Job), error) {
	t, err := f.target(ctx, layout.Ref(id))
	if err != nil {
		return nil, f.leave(r.Job(), err)
	}
	finish, err := f.fetch(ctx, t, r)
	return finish, f.leave(r.Job(), err)
}

// fetched enqueues an inspection of fetched bytes.
func (f *Function) fetched(ctx context.Context, _ string, j job.Job) error {
	if j.Status != job.Completed {
		return nil
	}
	if err := f.Inspections.Send(ctx, queue.InspectContent(j.SHA256).Encode(), 0); err != nil {
		f.Log.Warn("fetched bytes are not inspected before the next reconciliation", "name", j.Name, "error", err)
	}
	return nil
}

// handOver is how long a job that this process may not run is left to other
// processes.
const handOver = 30 * time.Second

// leave returns the outcome of a job whose source failed with err. If a process
// with other settings for sources queued the job, such a process may run it: the
// job stays queued for up to maxOutage. Otherwise the outcome is err.
func (f *Function) leave(j job.Job, err error) error {
	_, unresolvable := errors.AsType[*source.Unresolvable](err)
	if !unresolvable || j.Reach == "" || j.Reach == f.Sources.Reach() || f.Now().Sub(j.QueuedAt) > maxOutage {
		return err
	}
	return &queue.Retry{After: handOver, Free: true, Err: fmt.Errorf(
		"%w. A process with other settings (IMAGEROOT_ALLOW_NET, IMAGEROOT_PLAIN_HTTP) queued this download, and it is left to one with those", err)}
}

// retryLater returns the outcome of a job for an error of the store.
func retryLater(err error) error {
	switch {
	case errors.Is(err, store.ErrFull):
		return errors.New("the store has no room for the image: delete images that are not needed, or give it more space")
	case errors.Is(err, store.ErrTooLarge):
		return errors.New("the image is larger than the store takes")
	case errors.Is(err, store.ErrOccupied), errors.Is(err, store.ErrRefused):
		return fmt.Errorf("the store does not take the image: %w", err)
	}
	return job.StoreFailed(err)
}

// Reconcile sends the tasks of active fetch jobs again, and removes blobs and
// records that no source names, and parts that no job will resume, if they are
// older than a day.
func (f *Function) Reconcile(ctx context.Context) error {
	blobs, fetched, err := f.Inventory.Unnamed(ctx, abandonedAfter)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	jobs, err := f.Inventory.Jobs(ctx, job.Fetch)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := f.Runners().Resume(ctx, f.Inventory.Jobs); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	for _, sha := range blobs {
		if err := f.Uncache(ctx, sha); err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
		f.Log.Info("removed fetched bytes that no source stands for", "sha256", sha)
	}
	for _, ref := range fetched {
		if err := record.Delete[entry.Fetched](ctx, f.Catalog, layout.FetchedKey(ref)); err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
	}
	if f.Inventory.NewerFetchJobs() {
		return nil // only that version knows its parts
	}
	return f.sweepParts(ctx, f.inUse(jobs))
}

// used holds the keys and the IDs of the store's uploads that jobs use.
type used struct {
	keys    map[store.Key]bool
	uploads map[string]bool
}

// inUse returns the uploads of active jobs, and those that failed jobs have left for
// another.
func (f *Function) inUse(jobs []job.Job) used {
	u := used{map[store.Key]bool{}, map[string]bool{}}
	for _, j := range jobs {
		cp, ok := f.kept(j)
		if j.Status.Active() {
			ok = json.Unmarshal(j.Checkpoint, &cp) == nil
		}
		if ok {
			u.uploads[cp.UploadID], u.keys[cp.Key] = true, true
		}
	}
	return u
}

// sweepParts removes the parts and the staged objects of fetches that no job will
// resume.
func (f *Function) sweepParts(ctx context.Context, inUse used) error {
	for _, prefix := range []string{layout.BlobPrefix, layout.StagingPrefix} {
		for u, err := range f.Catalog.PendingUploads(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("reconcile: %w", err)
			}
			if !inUse.uploads[u.ID] && f.Now().Sub(u.Initiated) > abandonedAfter {
				if err := f.Catalog.AbortUpload(ctx, u.Key, u.ID); err != nil {
					return fmt.Errorf("reconcile: %w", err)
				}
			}
		}
	}
	for info, err := range f.Catalog.List(ctx, layout.StagingPrefix, "") {
		if err != nil {
			return fmt.Errorf("reconcile: %w", err)
		}
		if isStaging(info.Key) && !inUse.keys[info.Key] && f.Now().Sub(info.LastModified) > abandonedAfter {
			if err := f.Catalog.Delete(ctx, info.Key); err != nil {
				return fmt.Errorf("reconcile: %w", err)
			}
		}
	}
	return nil
}

// abandonedAfter is the age at which an upload that no job names is removed.
const abandonedAfter = 24 * time.Hour

// Uncache removes the blob with this SHA-256 and its block map. The records stay. It returns nil if there
// is no such blob.
func (f *Function) Uncache(ctx context.Context, sha256 layout.SHA256) error {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return err
	}
	if row, ok := s.BySHA256(sha256); ok {
		for _, src := range row.Sources {
			if err := f.Cancel(ctx, src.Ref); err != nil {
				return err
			}
		}
	}
	return entry.DeleteBytes(ctx, f.Catalog, sha256)
}

// Cancel cancels the job of a source, if it has not ended. It comes before the bytes of the source are
// dropped: the next request to fetch them would take that job for its own, which ends without the bytes.
func (f *Function) Cancel(ctx context.Context, ref layout.Ref) error {
	j, _, err := record.Read[job.Job](ctx, f.Catalog, layout.FetchJobKey(ref))
	if err != nil || !j.Status.Active() { // one that cannot be read is not run
		return nil
	}
	_, err = f.runner().Cancel(ctx, string(ref))
	return err
}

// nameOf returns the primary name of the bytes with that digest, or the beginning of
// the digest.
func nameOf(ctx context.Context, inv *inventory.Inventory, sha256 layout.SHA256) string {
	s, err := inv.Snapshot(ctx)
	if err == nil {
		if row, ok := s.BySHA256(sha256); ok {
			return string(row.Names[0])
		}
	}
	return sha256.Short()
}
