package hash

import (
	"context"
	"errors"
	"fmt"

	"imageroot/shared/bmap"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// makeDisk expands the disk in the image with this SHA-256. It is the Work of a
// [job.Runner]. Each run begins at the first byte: nothing of a run that stops before
// the end is kept.
func (f *Function) makeDisk(ctx context.Context, id string, r *job.Run) (func(*job.Job), error) {
	sha256 := layout.SHA256(id)
	rec, _, err := record.Read[content.Record](ctx, f.Catalog, layout.ContentKey(sha256))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, errDeleted
	case err != nil:
		return nil, job.StoreFailed(err)
	case rec.NoDisk() != "":
		return nil, errors.New(rec.NoDisk())
	case limited(ctx) && rec.Check != nil && rec.Check.Reason == reasonTime:
		return nil, errTooLong
	case r.Job().Attempt > maxRuns:
		return nil, fmt.Errorf("given up after %d runs, none of which got to the end", maxRuns)
	}
	if there, err := f.Catalog.Head(ctx, layout.DiskKey(sha256)); err == nil && rec.Disk != nil && there.Size == rec.Disk.SizeBytes {
		return made(rec.Disk.SizeBytes), nil
	}
	at, err := f.find(ctx, sha256)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errDeleted
	}
	if err != nil {
		return nil, job.StoreFailed(err)
	}
	started := f.Now()
	verdict, disk, err := f.expand(ctx, at, &rec, r)
	if fault, ok := faultVerdict(err); ok {
		if verdict, err = f.replaceVerdict(ctx, sha256, fault, nil, nil, unfinished); err == nil {
			err = errors.New(verdict.Reason)
		}
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && f.Now().Sub(started) > enoughTime:
		// The next run would begin at the first byte, too. This is not an error of the run,
		// which would be retried since ctx has ended.
		return func(j *job.Job) { j.Status, j.Error = job.Failed, errTooLong.Error() }, nil
	case errors.Is(err, store.ErrChanged), errors.Is(err, store.ErrNotFound):
		f.Inventory.Touch(at.Place) // the other root may have the same bytes
		return nil, replaced()
	case err != nil:
		return nil, err
	}
	err = job.Publish(ctx, r, layout.ContentKey(sha256), disk.SizeBytes, func(rec *content.Record) error {
		if rec.SHA256 == "" {
			return errDeleted
		}
		rec.Disk = &disk
		if rec.Check == nil || unfinished(rec.Check) {
			verdict.At = disk.MadeAt
			rec.Check = &verdict
		}
		return nil
	})
	return made(disk.SizeBytes), err
}

// unfinished reports whether a check did not get to the end of the image.
func unfinished(c *content.Check) bool {
	return c.Verdict == content.Unchecked || c.Verdict == content.Cancelled || outerOnly(c)
}

// outerOnly reports whether a good check was of compressed data alone, and not of the virtual
// image in them.
func outerOnly(c *content.Check) bool { return c.Verdict == content.Good && c.RawSizeBytes == nil }

// diskMade has the disk inspected, and queues the job of another one, if each image is to have
// one.
func (f *Function) diskMade(ctx context.Context, _ string, j job.Job) error {
	if j.Status == job.Completed {
		if err := f.Inspections.Send(ctx, queue.InspectContent(j.SHA256).Encode(), 0); err != nil {
			return err
		}
	}
	return f.fillDisks(ctx)
}

// maxRuns is how often a disk job may begin, since each run may be what ends this program.
const maxRuns = 20

func made(size int64) func(*job.Job) {
	return func(j *job.Job) { j.BytesDone, j.BytesTotal = size, &size }
}

// expand writes the disk in the image at a place to the catalog root. The error is that
// of a job's work, or of the store, or one for [faultVerdict].
func (f *Function) expand(ctx context.Context, at place, rec *content.Record, r *job.Run) (verdict content.Check, disk content.Disk, err error) {
	p, err := open(ctx, at, rec.Kind, rec.Inner)
	if err != nil {
		return verdict, disk, err
	}
	defer p.close()
	src := &expansion{diskSource: p, ctx: ctx, total: -1, most: maxWork(at.Info.Size), image: at.Info.Size, began: f.Now(), now: f.Now, sparse: f.Sparse}
	src.room = func(stored int64) error { return f.makeRoom(ctx, rec.SHA256, stored) }
	counted, sum := rec.Raw()
	if rec.Inner != "" {
		counted, sum = nil, "" // they are of the disk in what is written
	} else if size := rec.Virtual(); size != nil {
		src.total = *size
	}
	switch {
	case src.total > src.most:
		return verdict, disk, src.tooMuch()
	case f.Sparse: // how much it takes is not known
	case src.total > f.DisksMax:
		return verdict, disk, f.tooLarge()
	case counted != nil:
		if err := src.reserve(*counted); err != nil {
			return verdict, disk, err
		}
	}
	stream := digest.NewReader(src, digest.New(false), func(h *digest.Hasher) error {
		verdict = p.verdict(h, src.ends)
		switch {
		case verdict.NoDisk != "":
			return errors.New(verdict.NoDisk)
		case sum != "" && (sum != verdict.RawSHA256 || *counted != *verdict.RawSizeBytes):
			return fmt.Errorf("it expands to %d bytes with the SHA-256 %s, and the check counted %d with %s: this machine or its disk is faulty", *verdict.RawSizeBytes, verdict.RawSHA256, *counted, sum)
		}
		if err := src.room(src.stored); err != nil {
			return err
		}
		return at.Unchanged(ctx)
	}, func(int) { r.Report(src.size, src.total, nil) })
	_, err = f.Catalog.Put(ctx, layout.DiskKey(rec.SHA256), stream, -1)
	_, rerr := stream.Stop(p.stop)
	switch {
	case rerr != nil && !errors.Is(rerr, digest.ErrStopped):
		return verdict, disk, rerr
	case ctx.Err() != nil:
		return verdict, disk, context.Cause(ctx)
	case errors.Is(err, store.ErrFull):
		return verdict, disk, f.full(src.stored, src.total)
	case err != nil && !errors.Is(err, store.ErrChanged): // one that was replaced has the same bytes
		return verdict, disk, job.StoreFailed(err)
	}
	if rec.Inner != "" {
		if verdict, p.holes, err = f.examineInner(ctx, at, rec, verdict.Warnings, r); err != nil {
			return verdict, disk, err
		}
	}
	if err := f.storeMap(ctx, rec.SHA256, p.holes, nil); err != nil {
		return verdict, disk, err
	}
	now := f.Now().UTC()
	return verdict, content.Disk{SizeBytes: src.size, StoredBytes: src.stored, MadeAt: now, UsedAt: now}, nil
}

// A faulty error has the verdict on an image.
type faulty struct{ content.Check }

func (e *faulty) Error() string { return e.Reason }

// examineInner reads the disk in the virtual image that a compressed one held, and deletes
// that if it has a fault. warnings are those about the compressed data.
func (f *Function) examineInner(ctx context.Context, at place, rec *content.Record, warnings []string, r *job.Run) (content.Check, *bmap.Map, error) {
	info, err := f.Catalog.Head(ctx, layout.DiskKey(rec.SHA256))
	if err != nil {
		return content.Check{}, nil, unlessChanged(err)
	}
	at.Place = inventory.Place{Root: f.Catalog, Info: info}
	verdict, holes, err := f.examineDisk(ctx, at, rec.Inner, nil, r, nil)
	if err != nil {
		return verdict, nil, unlessChanged(err)
	}
	verdict.Warnings = append(warnings, verdict.Warnings...)
	_, known := rec.Raw()
	switch {
	case verdict.Verdict == content.Good && known != "" && known != verdict.RawSHA256:
		err = fmt.Errorf("the disk in it has the SHA-256 %s, and %s before: this machine or its disk is faulty", verdict.RawSHA256, known)
	case verdict.Verdict != content.Good && verdict.Verdict != content.Unchecked:
		verdict.Reason = "once decompressed, " + verdict.Reason
		err = &faulty{verdict}
	default:
		return verdict, holes, nil
	}
	if gone := f.Catalog.Delete(ctx, layout.DiskKey(rec.SHA256)); gone != nil {
		err = job.StoreFailed(gone)
	}
	return verdict, nil, err
}

// unlessChanged is [job.StoreFailed] for an error that does not say that the object has
// changed.
func unlessChanged(err error) error {
	if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
		return err
	}
	return job.StoreFailed(err)
}

// full returns the error of a store without room for a disk of which stored bytes were
// written. total is its size, negative if it is unknown.
func (f *Function) full(stored, total int64) error {
	what := "the disk"
	if total >= 0 {
		what = fmt.Sprintf("the disk of %d bytes", total)
	}
	left := ""
	if f.Free != nil && f.Free() >= 0 {
		left = fmt.Sprintf(", which has %d bytes free", f.Free())
	}
	return fmt.Errorf("%s does not fit into the store%s; %d bytes were written: delete images or disks that are not needed", what, left, stored)
}
