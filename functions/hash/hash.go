// Package hash finds out what images contain: it reads each once and records
// its SHA-256, and compares that with what the publisher says.
package hash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Settle is how long an object must have been left alone before it is hashed.
// It gives an upload through the API the time to record the digest that it
// computed on the way, and a file that is copied in the time to be whole.
const Settle = 2 * time.Second

// Function is the hash function: its routes and its worker.
type Function struct {
	Images, Catalog store.Root
	// Bucket and Prefix are where the image root is, as object events name it.
	Bucket, Prefix string
	Jobs           *job.Jobs
	// Queue carries what to look at, Work the jobs that a look has queued.
	// They can be one queue; apart, looking does not wait for hashing.
	Queue, Work queue.Sender
	// Checks carries the check jobs that are queued; nil: images are not
	// checked.
	Checks    queue.Sender
	Inventory *inventory.Inventory
	Activity  *activity.Log
	Metric    *metric.Set
	Workers   int
	Now       func() time.Time
	Log       *slog.Logger

	turns turns // of checks
}

// Handle does the work of one message of the hash queue.
func (f *Function) Handle(ctx context.Context, body []byte) error {
	tasks, err := queue.Tasks(body, f.Bucket, f.Prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tasks {
		switch {
		case t.Reconcile:
			errs = append(errs, f.Reconcile(ctx))
		case t.Poll:
			errs = append(errs, f.Poll(ctx))
		case t.Resume:
			errs = append(errs, f.resume(ctx))
		case t.Hash != "":
			errs = append(errs, f.run(ctx, t.Hash))
		case t.Image != "":
			errs = append(errs, f.look(ctx, t.Image))
		case t.Content != "":
			errs = append(errs, f.lookInto(ctx, t.Content))
		case t.Check != "":
			errs = append(errs, f.runCheck(ctx, t.Check))
		}
	}
	// What a newer version keeps of an image, that version sees to.
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, record.ErrNewer) })...)
}

// look does what the object of that name needs now.
func (f *Function) look(ctx context.Context, name string) error {
	if of, _, ok := layout.ImageOfSidecar(name); ok {
		var errs []error
		for _, spelling := range image.Spellings(of) {
			errs = append(errs, f.look(ctx, spelling))
		}
		return errors.Join(errs...)
	}
	if name == layout.ManifestKey {
		// Who told of it may be another process.
		f.Inventory.TouchImage(name)
		_, err := f.Inventory.Snapshot(ctx) // keeps a copy of a good one
		return err
	}
	if !image.IsName(name) {
		_, err := f.Inventory.Snapshot(ctx) // logs what is not an image
		return err
	}
	info, err := f.Images.Head(ctx, name)
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
		// Who wrote it may be another process.
		f.Inventory.TouchCatalog(layout.DigestKey(name))
		need512, err := f.verify(ctx, name)
		if err != nil {
			return err
		}
		if need512 {
			return f.queue(ctx, name, &info.Version)
		}
		err = f.Jobs.Complete(ctx, layout.HashJobKey(name), func(j *job.Job) {
			j.SHA256, j.BytesDone, j.BytesTotal, j.Version = rec.SHA256, info.Size, &info.Size, &info.Version
		})
		if err != nil {
			return err
		}
		return f.inspect(ctx, rec.SHA256, place{f.Images, name, info, name})
	}
	// A time in the future is the file's own (cp -p, a clock that was wrong).
	if still := f.Now().Sub(info.LastModified); still < Settle && still > -time.Minute {
		return queue.RetryAfter(Settle-still, errors.New("the object is fresh"))
	}
	return f.queue(ctx, name, &info.Version)
}

// queue has an image hashed because its record lacks something.
func (f *Function) queue(ctx context.Context, name string, version *store.Version) error {
	j, err := f.enqueue(ctx, name, version, activity.System, "")
	if err != nil || j.Status != job.Queued {
		return err
	}
	return f.Work.Send(ctx, queue.Task{Hash: name}.Encode(), 0)
}

// forget removes what is known of an object that is gone.
func (f *Function) forget(ctx context.Context, name string) error {
	if _, err := f.Jobs.Cancel(ctx, layout.HashJobKey(name)); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return record.Delete[digest.Record](ctx, f.Catalog, layout.DigestKey(name))
}

// enqueue makes the hash job of that version of an image queued, unless there
// is one. A job of that version that has failed or been cancelled waits for
// somebody other than the system to ask again; one that is completed is enough
// for those, while the system asks because its outcome is missing.
func (f *Function) enqueue(ctx context.Context, name string, version *store.Version, actor, ip string) (job.Job, error) {
	key := layout.HashJobKey(name)
	is := func(j job.Job) bool { return j.Version != nil && j.Version.Equal(*version) }
	keep := func(j job.Job) bool {
		return is(j) && (j.Status == job.Completed) == (actor != activity.System) && !j.Recovers(f.Now())
	}
	for {
		j, _, err := f.Jobs.Enqueue(ctx, key, keep, func(j *job.Job) {
			j.Name, j.Version, j.Actor, j.SourceIP = name, version, actor, ip
			j.BytesTotal = &version.Size
		})
		if err != nil || !j.Status.Active() || is(j) {
			return j, err
		}
		// It reads what is no longer there.
		if _, err := f.Jobs.Cancel(ctx, key); err != nil {
			return j, err
		}
	}
}

// checkpoint is what a later run of the job goes on from.
type checkpoint struct {
	Version store.Version `json:"version"`
	State   digest.State  `json:"state"`
}

// What a kill may cost, at the most: checkpointBytes read, or what was read in
// checkpointTime.
const (
	checkpointBytes = 256 << 20
	checkpointTime  = 5 * time.Second
)

// run hashes an image whose job is queued.
func (f *Function) run(ctx context.Context, name string) error {
	started := f.Now()
	var claimed int64
	j, err := f.Jobs.Work(ctx, layout.HashJobKey(name), func(ctx context.Context, r *job.Run) (func(*job.Job), error) {
		claimed = r.Job().Generation
		return f.hash(ctx, name, r)
	})
	if err != nil {
		return job.Redeliver(err, f.Now())
	}
	if j.Status.Active() || j.Status != job.Cancelled && j.Generation != claimed {
		return nil // another process has it, or has ended it
	}
	f.Metric.JobEnded(metric.Hash, string(j.Status))
	f.Log.Info("hash job", "name", name, "status", j.Status, "bytes", j.BytesDone, "sha256", j.SHA256,
		"seconds", f.Now().Sub(started).Seconds(), "attempt", j.Attempt, "error", j.Error)
	switch j.Status {
	case job.Completed:
		f.Activity.Add(ctx, activity.Event{
			Kind: activity.ImageHashed, SubjectKind: activity.SubjectImage, SubjectID: name, Actor: activity.System,
			Summary: "hashed " + name, Details: map[string]any{"sha256": j.SHA256, "size_bytes": j.BytesDone},
		})
		if _, err := f.verify(ctx, name); err != nil {
			return err
		}
		if err := f.inspect(ctx, j.SHA256, place{f.Images, name, store.Info{Key: name, Version: *j.Version}, name}); err != nil {
			// This task has no more to do for whom it comes back to.
			f.Log.Warn("look into an image again", "name", name, "error", err)
			return f.notice(ctx, name)
		}
		return nil
	case job.Failed:
		f.tellFailed(ctx, j)
	}
	return nil
}

func (f *Function) tellFailed(ctx context.Context, j job.Job) {
	f.Activity.Add(ctx, activity.Event{
		Kind: activity.ImageHashFailed, SubjectKind: activity.SubjectImage, SubjectID: j.Name, Actor: activity.System,
		Summary: "could not hash " + j.Name, Details: map[string]any{"error": j.Error},
	})
}

// GiveUp ends the job that a message is for, which came too often without its
// work getting done.
func (f *Function) GiveUp(ctx context.Context, body []byte) error {
	tasks, err := queue.Tasks(body, f.Bucket, f.Prefix)
	if err != nil {
		return nil // of nothing that anybody waits for
	}
	for _, t := range tasks {
		if t.Check != "" {
			if err := f.giveUpCheck(ctx, t.Check); err != nil {
				return err
			}
		}
		if t.Hash == "" {
			continue // reconciling looks at it again
		}
		j, failed, err := f.Jobs.Fail(ctx, layout.HashJobKey(t.Hash), "given up after several tries")
		if err != nil || !failed {
			return err
		}
		f.Metric.JobEnded(metric.Hash, string(j.Status))
		f.tellFailed(ctx, j)
	}
	return nil
}

var errReplaced = errors.New("the object was replaced while it was read")

// hash reads the image as it is now and publishes its digest.
func (f *Function) hash(ctx context.Context, name string, r *job.Run) (func(*job.Job), error) {
	info, err := f.Images.Head(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errors.New("the image was deleted")
	}
	if err != nil {
		return nil, retryLater(err)
	}
	with512, err := f.wants512(ctx, name)
	if err != nil {
		return nil, retryLater(err)
	}
	h := digest.New(with512)
	var cp checkpoint
	if json.Unmarshal(r.Job().Checkpoint, &cp) == nil && cp.Version.Equal(info.Version) {
		resumed, err := digest.Resume(cp.State)
		if err == nil && resumed.Offset() <= info.Size && (resumed.Sum512() != "" || !with512) {
			h = resumed
		}
	}
	if err := f.read(ctx, name, info, h, r); err != nil {
		return nil, err
	}
	after, err := f.Images.Head(ctx, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, retryLater(err)
	}
	if err != nil || !after.Equal(info.Version) {
		return nil, &job.Retry{After: Settle, Err: errReplaced}
	}
	sum := h.Sum256()
	if err := f.publish(ctx, r, name, info.Version, h); err != nil {
		return nil, err
	}
	return func(j *job.Job) {
		j.SHA256, j.BytesDone, j.BytesTotal, j.Version = sum, info.Size, &info.Size, &info.Version
	}, nil
}

func (f *Function) read(ctx context.Context, name string, info store.Info, h *digest.Hasher, r *job.Run) error {
	if h.Offset() == info.Size {
		return nil
	}
	body, got, err := f.Images.Get(ctx, name, store.Range{Offset: h.Offset(), Length: -1}, info.ETag)
	if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
		return &job.Retry{After: Settle, Err: errReplaced}
	}
	if err != nil {
		return retryLater(err)
	}
	defer body.Close()
	if got.Size != info.Size {
		return &job.Retry{After: Settle, Err: errReplaced}
	}
	next := h.Offset()
	var last time.Time // of a checkpoint
	for block, err := range blocks(body) {
		_, _ = h.Write(block) // a hash does not fail
		f.Metric.BytesHashed(len(block))
		if done, now := h.Offset(), f.Now(); done >= next || err != nil || now.Sub(last) >= checkpointTime {
			next, last = done+checkpointBytes, now
			cp, cerr := json.Marshal(checkpoint{info.Version, h.State()})
			if cerr != nil {
				return cerr
			}
			r.Report(done, info.Size, cp)
		} else {
			r.Report(done, info.Size, nil)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return retryLater(err)
		}
	}
	if h.Offset() != info.Size {
		return &job.Retry{After: Settle, Err: errReplaced}
	}
	return nil
}

// retryLater keeps the job queued over a failure that is not the image's.
func retryLater(err error) error {
	if errors.Is(err, record.ErrNewer) {
		return err // for good
	}
	return &job.Retry{After: 5 * time.Second, Err: fmt.Errorf("the store failed, will try again: %w", err)}
}

// publish records the digest of one version of an image. An owner that slept
// until another one took over records nothing: its record is for one that the
// other has not written yet.
func (f *Function) publish(ctx context.Context, r *job.Run, name string, version store.Version, h *digest.Hasher) error {
	key := layout.DigestKey(name)
	rec, tag, err := record.Read[digest.Record](ctx, f.Catalog, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return retryLater(err)
	}
	// Whoever takes over from here on writes after the record that was read.
	err = r.Save(ctx, version.Size, version.Size, nil)
	if err != nil && (ctx.Err() != nil || errors.Is(err, job.ErrLost) || errors.Is(err, job.ErrCancelled)) {
		return err
	}
	if err != nil {
		return retryLater(err)
	}
	rec = rec.Next(name, version, h.Sum256(), digest.ByHash, f.Now())
	rec.SHA512 = h.Sum512()
	if _, err := record.Swap(ctx, f.Catalog, key, &rec, tag); err != nil {
		return retryLater(err)
	}
	return nil
}
