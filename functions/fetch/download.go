package fetch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/store"
)

// Limits are the sizes and waits of a fetch. A zero field has its default.
type Limits struct {
	// SegmentBytes is the maximum length of one ranged request, 16 MiB by default.
	SegmentBytes int64
	// MemoryBytes is the maximum that a fetch holds of segments that arrive before
	// their turn, 24 MiB by default.
	MemoryBytes int64
	// PartBytes is the size of the parts in which an image is stored, 32 MiB by
	// default. Images that would need more than [store.MaxParts] parts get larger
	// ones.
	PartBytes int64
	// AheadBytes is how far beyond the last stored part the source is requested, and
	// so the maximum that is fetched again after a kill: 96 MiB by default, and at
	// least a part.
	AheadBytes int64
	// UnknownPartBytes is the same for a source of unknown length: 16 MiB by
	// default, doubled after every 2,000 parts. Such a part is held in memory,
	// since S3 needs its length first.
	UnknownPartBytes int64
	// FirstWait is the wait after the first of several failed requests, half a
	// second by default.
	FirstWait time.Duration
	// LeastBytes is the minimum that a source must send in each LeastWithin of
	// waiting for it: 2 MiB in ten minutes by default. A slower source is read over
	// one connection, then treated as out of reach.
	LeastBytes  int64
	LeastWithin time.Duration
}

func (l Limits) withDefaults() Limits {
	return Limits{
		SegmentBytes:     cmp.Or(l.SegmentBytes, 16<<20),
		MemoryBytes:      cmp.Or(l.MemoryBytes, 24<<20),
		PartBytes:        cmp.Or(l.PartBytes, 32<<20),
		AheadBytes:       cmp.Or(l.AheadBytes, l.PartBytes, 96<<20),
		UnknownPartBytes: cmp.Or(l.UnknownPartBytes, 16<<20),
		FirstWait:        cmp.Or(l.FirstWait, 500*time.Millisecond),
		LeastBytes:       cmp.Or(l.LeastBytes, 2<<20),
		LeastWithin:      cmp.Or(l.LeastWithin, 10*time.Minute),
	}
}

// maxRestarts limits how often a run begins the transfer again.
const maxRestarts = 3

// A transfer is one try to fetch a whole source.
type transfer struct {
	f    *Function
	t    *target
	run  *job.Run
	from json.RawMessage // the checkpoint to resume from, if any
	pure bool            // does not join bytes of different servers

	cp    checkpoint
	sum   *digest.Hasher
	parts []store.Part

	mapKnown bool   // the source has said whether it has a block map
	bmap     []byte // nil if it has none
}

// fetch stores the target's bytes in the catalog root.
func (f *Function) fetch(ctx context.Context, t *target, run *job.Run) (func(*job.Job), error) {
	from := run.Job().Checkpoint
	if t.sha256 != "" {
		// Another source of the same bytes may have been fetched before.
		info, err := f.Catalog.Head(ctx, layout.BlobKey(t.sha256))
		if err == nil {
			f.drop(ctx, run.Job(), from)
			return f.publish(ctx, t, run, t.sha256, info.Size, source.Validators{}, f.findMap(ctx, t))
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, retryLater(err)
		}
		if from == nil {
			if from, err = f.inherit(ctx, t, run); err != nil {
				return nil, retryLater(err)
			}
		}
	}
	pure := false
	for restarts := 0; ; restarts++ {
		tr := &transfer{f: f, t: t, run: run, from: from, pure: pure}
		finish, err := tr.do(ctx)
		again, ok := errors.AsType[*restartError](err)
		if !ok {
			return finish, err
		}
		if restarts == maxRestarts {
			return nil, again.err
		}
		from, pure = nil, pure || again.pure
	}
}

// do fetches the whole source, from a checkpoint if that can be resumed. It aborts
// the parts of a try that cannot be resumed.
func (tr *transfer) do(ctx context.Context) (_ func(*job.Job), err error) {
	resumed, err := tr.resume(ctx)
	if err != nil {
		return nil, err
	}
	if !resumed {
		if err := tr.begin(ctx); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil && !tr.keeps(ctx, err) {
			tr.abort(ctx)
		}
	}()
	if !tr.cp.Whole {
		if err := tr.receive(ctx); err != nil {
			return nil, tr.outlast(err)
		}
	}
	if err := tr.assemble(ctx); err != nil {
		return nil, err
	}
	if !tr.mapKnown {
		tr.bmap = tr.f.findMap(ctx, tr.t)
	}
	return tr.f.publish(ctx, tr.t, tr.run, tr.sum.Sum256(), tr.sum.Offset(), tr.cp.Validators, tr.bmap)
}

// receive stores the missing bytes of the source in parts and verifies the whole.
func (tr *transfer) receive(ctx context.Context) error {
	s, err := openStream(ctx, streamConfig{
		Limits:  tr.f.Limits.withDefaults(),
		sources: tr.f.Sources, hosts: &tr.f.hosts, most: cmp.Or(tr.f.Connections, connections), loc: tr.t.loc, offset: tr.sum.Offset(), size: tr.size(), validators: tr.cp.Validators,
		verified: tr.t.verified() && !tr.pure, whole: tr.pure, last: tr.requestMap,
		count: tr.f.Metric.BytesFetched, progress: func(done, total int64) { tr.run.Report(done, total, nil) },
	})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := tr.compare(ctx, s); err != nil {
		return err
	}
	if err := tr.copy(ctx, s); err != nil {
		return err
	}
	if err := tr.verify(); err != nil {
		if tr.t.seen.Differ(tr.cp.Validators) {
			tr.f.flag(ctx, tr.t)
		}
		if tr.cp.Mixed || s.mixed.Load() {
			return &restartError{err: err, pure: true} // one of the mirrors may be out of date
		}
		return err
	}
	tr.cp.Whole = true
	if err := tr.save(ctx); err != nil {
		return err
	}
	s.drain()
	return nil
}

// outlast returns the outcome of a transfer that failed with err. If it can be
// resumed and the source is out of reach, the job stays queued. If it can be
// resumed and the source does not send the rest, the job fails and its parts are
// kept for another URL. Otherwise the outcome is err.
func (tr *transfer) outlast(err error) error {
	asked, passes := source.MayRetry(err)
	down := tr.f.Now().Sub(tr.cp.At)
	if !passes && !mayPass(err) || tr.cp.Parts == 0 || down+asked > maxOutage || !tr.resumable() {
		return err
	}
	if _, restart := errors.AsType[*restartError](err); restart {
		return err
	}
	if _, short := errors.AsType[*source.ShortBody](err); short || !passes {
		return &job.Kept{Err: fmt.Errorf("%w; the first %d bytes are kept for a day, for another fetch of the same content", err, tr.sum.Offset())}
	}
	after := max(asked, min(max(down, minOutageWait), maxOutageWait)).Round(time.Second)
	return &queue.Retry{After: after, Free: true, Err: fmt.Errorf("%w; the first %d bytes are kept, and it is tried again in %v", err, tr.sum.Offset(), after)}
}

// verified reports whether the catalog has a digest to verify the bytes with.
func (t *target) verified() bool { return t.sha256 != "" || t.sha512 != "" }

// size returns the size that the stream must have: the source's when the transfer
// began, else the catalog's.
func (tr *transfer) size() int64 {
	if tr.cp.Size >= 0 {
		return tr.cp.Size
	}
	return tr.t.size
}

func (tr *transfer) begin(ctx context.Context) error {
	t := tr.t
	if free := tr.f.Free(); t.size > 0 && free >= 0 && t.size > free {
		return fmt.Errorf("the image has %d bytes and the store has room for %d: delete images that are not needed", t.size, free)
	}
	key := t.key()
	id, err := tr.f.Catalog.CreateUpload(ctx, key)
	if err != nil {
		return retryLater(err)
	}
	tr.sum = digest.New(t.sha512 != "")
	tr.parts = nil
	tr.cp = checkpoint{Key: key, UploadID: id, Size: -1, Hashed: tr.sum.State()}
	// Save, so that the next owner of the job can resume or abort the parts.
	if err := tr.save(ctx); err != nil {
		tr.abort(ctx)
		return err
	}
	return nil
}

// compare flags the entry if the size or, without a digest, the validators of the
// source have changed since it was added. It returns an error if the size has.
func (tr *transfer) compare(ctx context.Context, s *stream) error {
	t := tr.t
	tr.cp.Validators, tr.cp.Size = s.validators, s.size
	sizeDiffers := t.size >= 0 && s.size >= 0 && s.size != t.size
	if sizeDiffers || !t.verified() && t.seen.Differ(s.validators) {
		tr.f.flag(ctx, t)
	}
	if sizeDiffers {
		return fmt.Errorf("the source has %d bytes and the catalog says %d: refresh the entry if the publisher has replaced the image", s.size, t.size)
	}
	return nil
}

// flag adds a warning to an entry whose source has changed.
func (f *Function) flag(ctx context.Context, t *target) {
	if !t.entry {
		return
	}
	const warning = "the source is not what it was when it was added: refresh the entry to take what is there now"
	_, _, err := record.Change(ctx, f.Catalog, layout.EntryKey(t.ref), func(e *entry.Entry, exists bool) error {
		if !exists || e.Changed == warning {
			return record.ErrKeep
		}
		e.Changed = warning
		return nil
	})
	if err != nil {
		f.Log.Warn("an entry could not be flagged", "ref", t.ref, "error", err)
	}
}
