package fetch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/store"
)

// Limits are the sizes and waits of a fetch. A field that is zero has its
// default.
type Limits struct {
	// SegmentBytes is the length of one ranged request, 4 MiB by default. A
	// fetch holds as many segments in memory as it has connections.
	SegmentBytes int64
	// PartBytes is the size of the parts in which an image is stored, and the
	// most that is fetched again after a kill: 64 MiB by default. Images that
	// would need more than [store.MaxParts] of them get larger ones.
	PartBytes int64
	// UnknownPartBytes is the same for a source of unknown length, 16 MiB by
	// default. Such a part is held in memory: S3 needs its length first.
	UnknownPartBytes int64
	// FirstWait is the wait after the first of several failed requests, half a
	// second by default.
	FirstWait time.Duration
	// LeastBytes must come in each LeastWithin of waiting for a source, by
	// default 2 MiB in ten minutes. A source that sends less is asked over one
	// connection, then taken for one that is out of reach.
	LeastBytes  int64
	LeastWithin time.Duration
}

func (l Limits) withDefaults() Limits {
	return Limits{
		SegmentBytes:     cmp.Or(l.SegmentBytes, 4<<20),
		PartBytes:        cmp.Or(l.PartBytes, 64<<20),
		UnknownPartBytes: cmp.Or(l.UnknownPartBytes, 16<<20),
		FirstWait:        cmp.Or(l.FirstWait, 500*time.Millisecond),
		LeastBytes:       cmp.Or(l.LeastBytes, 2<<20),
		LeastWithin:      cmp.Or(l.LeastWithin, 10*time.Minute),
	}
}

// maxWhole is the largest part that is held in memory.
const maxWhole = 256 << 20

// maxRestarts is how often a source may change while it is fetched.
const maxRestarts = 3

// checkpoint is what a later run of the job goes on from. The parts are the
// store's to know.
type checkpoint struct {
	Key        string            `json:"key"` // of the upload
	UploadID   string            `json:"upload_id"`
	PartSize   int64             `json:"part_size"` // negative: lengths were not known
	Parts      int32             `json:"parts"`     // finished, from the first on
	Hashed     digest.State      `json:"hashed"`    // of those
	Size       int64             `json:"size"`      // of the source; negative: not known
	Validators source.Validators `json:"validators"`
	Mixed      bool              `json:"mixed,omitempty"` // the parts are of answers with different validators
	At         time.Time         `json:"at,omitzero"`     // when the last part was finished
	// Whole says that all parts are there and are what they should be: what is
	// left is to make a blob of them, and that may have been begun.
	Whole bool `json:"whole,omitempty"`
}

// A transfer is one try to get a source whole.
type transfer struct {
	f    *Function
	t    *target
	run  *job.Run
	from json.RawMessage // the checkpoint to go on from, if any
	pure bool            // joins nothing that different servers have

	cp    checkpoint
	sum   *digest.Hasher
	parts []store.Part
}

// fetch brings the target's bytes into the catalog root.
func (f *Function) fetch(ctx context.Context, t *target, run *job.Run) (func(*job.Job), error) {
	from := run.Job().Checkpoint
	if t.sha256 != "" {
		// Another source of the same bytes may have been fetched before.
		info, err := f.Catalog.Head(ctx, layout.BlobKey(t.sha256))
		if err == nil {
			var cp checkpoint
			if json.Unmarshal(from, &cp) == nil && cp.UploadID != "" {
				f.abandon(ctx, t.name, cp)
			}
			return f.publish(ctx, t, run, t.sha256, info.Size, source.Validators{})
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

// inherit takes over what a failed fetch of the same bytes, from whatever
// source, has left to go on from. It returns nil if there is none.
func (f *Function) inherit(ctx context.Context, t *target, run *job.Run) (json.RawMessage, error) {
	jobs, err := f.Inventory.Jobs(ctx, job.Fetch)
	if err != nil {
		return nil, err
	}
	var from job.Job
	for _, j := range jobs {
		if cp, ok := f.kept(j); ok && cp.Key == t.key() && j.BytesDone >= from.BytesDone {
			from = j
		}
	}
	if from.Checkpoint == nil {
		return nil, nil
	}
	taken := false
	_, _, err = record.Change(ctx, f.Catalog, job.Fetch.Key(from.Ref), func(j *job.Job, exists bool) error {
		taken = exists && j.Status == job.Failed && bytes.Equal(j.Checkpoint, from.Checkpoint)
		if !taken {
			return record.ErrKeep // another fetch has it
		}
		j.Checkpoint = nil
		return nil
	})
	if err != nil || !taken {
		return nil, err
	}
	return from.Checkpoint, run.Save(ctx, from.BytesDone, t.size, from.Checkpoint)
}

// kept returns the checkpoint that a failed job has left, unless it is so old
// that its parts may be swept.
func (f *Function) kept(j job.Job) (cp checkpoint, ok bool) {
	err := json.Unmarshal(j.Checkpoint, &cp)
	return cp, err == nil && j.Status == job.Failed && f.Now().Sub(cp.At) < abandonedAfter
}

// do gets the whole, going on from a checkpoint if it may. The parts of a try
// that cannot be gone on with are given up.
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
	return tr.f.publish(ctx, tr.t, tr.run, tr.sum.Sum256(), tr.sum.Offset(), tr.cp.Validators)
}

// receive gets what is missing of the source into parts.
func (tr *transfer) receive(ctx context.Context) error {
	s, err := openStream(ctx, streamConfig{
		Limits:  tr.f.Limits.withDefaults(),
		sources: tr.f.Sources, loc: tr.t.loc, offset: tr.sum.Offset(), size: tr.size(), validators: tr.cp.Validators,
		verified: tr.t.verified() && !tr.pure, whole: tr.pure,
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
	return tr.save(ctx)
}

// outlast keeps the job queued over a source that is out of reach, where some
// of the image is here and can be gone on from. Over a source that answers, and
// not with the rest, it fails the job and keeps the parts for another URL.
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
	return &job.Retry{After: after, Free: true, Err: fmt.Errorf("%w; the first %d bytes are kept, and it is tried again in %v", err, tr.sum.Offset(), after)}
}

// resumable reports whether somebody could tell that the rest of the source is
// of the same image.
func (tr *transfer) resumable() bool {
	return tr.cp.Validators != (source.Validators{}) || tr.t.verified()
}

// verified reports whether a digest tells that the bytes are the right ones.
func (t *target) verified() bool { return t.sha256 != "" || t.sha512 != "" }

// size is what the stream must have: what the source said when the transfer
// began, else what was said of it when it was added.
func (tr *transfer) size() int64 {
	if tr.cp.Size >= 0 {
		return tr.cp.Size
	}
	return tr.t.size
}

// resume takes up a checkpoint and reports whether that is possible. The parts
// of one that is of no use are given up.
func (tr *transfer) resume(ctx context.Context) (bool, error) {
	var cp checkpoint
	if json.Unmarshal(tr.from, &cp) != nil || cp.UploadID == "" {
		return false, nil
	}
	tr.cp = cp
	parts, err := tr.f.Catalog.ListParts(ctx, cp.Key, cp.UploadID)
	gone := errors.Is(err, store.ErrNotFound)
	if err != nil && !gone {
		return false, retryLater(err)
	}
	sum, err := digest.Resume(cp.Hashed)
	switch {
	case err != nil || !tr.t.assembles(cp.Key) || tr.t.sha512 != "" && sum.Sum512() == "":
	case cp.Whole && (gone || sameBytes(parts, sum.Offset())):
		tr.sum, tr.parts = sum, parts
		if tr.verify() == nil && (cp.Size < 0 || sum.Offset() == cp.Size) {
			return true, nil
		}
	case gone || cp.Whole || !tr.resumable():
	case cp.continues(parts, sum.Offset()):
		tr.sum, tr.parts = sum, parts[:cp.Parts]
		return true, nil
	}
	tr.abort(ctx)
	return false, nil
}

// continues reports whether the first of parts are those of the checkpoint,
// whose hash has come to offset.
func (cp *checkpoint) continues(parts []store.Part, offset int64) bool {
	if cp.PartSize <= 0 || cp.Parts < 0 || int(cp.Parts) > len(parts) {
		return false
	}
	for i, p := range parts[:cp.Parts] {
		at := int64(i) * cp.PartSize
		if p.Number != int32(i+1) || p.Size != min(cp.PartSize, offset-at) {
			return false
		}
	}
	return sameBytes(parts[:cp.Parts], offset)
}

// sameBytes reports whether parts have size bytes together.
func sameBytes(parts []store.Part, size int64) bool {
	for _, p := range parts {
		size -= p.Size
	}
	return size == 0
}

// key returns where to assemble the bytes: at their place if the digest is
// known, else where no other transfer does.
func (t *target) key() string {
	if t.sha256 != "" {
		return layout.BlobKey(t.sha256)
	}
	return layout.StagingKey(layout.Ref(rand.Text()))
}

// assembles reports whether key can be what [target.key] returned.
func (t *target) assembles(key string) bool {
	if t.sha256 != "" {
		return key == layout.BlobKey(t.sha256)
	}
	return isStaging(key)
}

func isStaging(key string) bool {
	_, ok := layout.StagingRef(key)
	return ok
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
	// Whoever goes on with the job can give the parts up if not go on with them.
	if err := tr.save(ctx); err != nil {
		tr.abort(ctx)
		return err
	}
	return nil
}

// keeps reports whether the parts are of use to a later run, or are another
// owner's by now.
func (tr *transfer) keeps(ctx context.Context, err error) bool {
	_, retry := errors.AsType[*job.Retry](err)
	_, kept := errors.AsType[*job.Kept](err)
	if (retry || kept) && ctx.Err() == nil {
		return true
	}
	cause := context.Cause(ctx)
	if cause == nil {
		cause = tr.save(ctx)
		return errors.Is(cause, job.ErrLost)
	}
	return !errors.Is(cause, job.ErrCancelled)
}

// patience is how long giving something up may take.
const patience = 10 * time.Second

// abort gives up what has come.
func (tr *transfer) abort(ctx context.Context) {
	tr.f.abandon(ctx, tr.t.name, tr.cp)
}

// abandon gives up the bytes that a checkpoint names.
func (f *Function) abandon(ctx context.Context, name string, cp checkpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := f.Catalog.AbortUpload(ctx, cp.Key, cp.UploadID)
	if cp.Whole && isStaging(cp.Key) {
		err = errors.Join(err, f.Catalog.Delete(ctx, cp.Key))
	}
	if err != nil {
		f.Log.Warn("the bytes of a fetch could not be given up; they are swept later", "name", name, "error", err)
	}
}

// compare holds what the source says now against what it said when the entry
// was added.
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

// flag warns of an entry whose source has changed.
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

// copy moves the stream into parts, hashing on the way.
func (tr *transfer) copy(ctx context.Context, s *stream) error {
	size := tr.size()
	if tr.cp.PartSize == 0 {
		tr.cp.PartSize = -1
		if size >= 0 {
			tr.cp.PartSize = store.PartSize(size, s.PartBytes, store.MaxParts)
		}
	}
	for {
		n := int32(len(tr.parts) + 1)
		if n > store.MaxParts {
			return errors.New("the image is larger than the store takes")
		}
		var body io.Reader
		var length int64
		if size >= 0 {
			left := size - tr.sum.Offset()
			if length = min(tr.cp.PartSize, left); length == 0 {
				return ends(s, size)
			}
			// Nothing beyond this part is asked for before it is safe.
			s.allow(tr.sum.Offset() + length)
			body = io.LimitReader(s, length)
			if tr.f.Whole && length <= maxWhole {
				part, err := store.ReadUpTo(s, int(length))
				if err != nil {
					return err
				}
				body = bytes.NewReader(part)
			}
		} else {
			// Larger parts later on, so that 10,000 are enough.
			part, err := store.ReadUpTo(s, int(s.UnknownPartBytes<<(n/2000)))
			if err != nil {
				return err
			}
			if length = int64(len(part)); length == 0 {
				return nil
			}
			body = bytes.NewReader(part)
		}
		if err := tr.putPart(ctx, s, n, body, length); err != nil {
			return err
		}
	}
}

// ends makes sure that a source of a known size has no more than that.
func ends(s *stream, size int64) error {
	var one [1]byte
	switch n, err := s.Read(one[:]); {
	case n > 0:
		return fmt.Errorf("the source sends more than the %d bytes that it announced", size)
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

func (tr *transfer) putPart(ctx context.Context, s *stream, n int32, body io.Reader, length int64) error {
	exact := &exactly{r: body, left: length, end: tr.sum.Offset() + length, size: tr.size()}
	r := digest.NewReader(exact, tr.sum, nil, nil)
	part, err := tr.f.Catalog.UploadPart(ctx, tr.cp.Key, tr.cp.UploadID, n, r, length)
	interrupt := s.interrupt
	if err == nil {
		interrupt = func() {} // all of it was read: the stream goes on
	}
	_, rerr := r.Stop(interrupt)
	switch {
	case rerr != nil && (err == nil || !errors.Is(rerr, digest.ErrStopped)):
		return rerr
	case errors.Is(err, store.ErrNotFound):
		// Somebody has given the parts up; without them there is nothing to go on from.
		return &job.Retry{After: time.Second, Err: errors.New("the store has given the parts of this fetch up")}
	case err != nil:
		return retryLater(err)
	}
	tr.parts = append(tr.parts, part)
	tr.cp.Parts, tr.cp.Hashed, tr.cp.At = n, tr.sum.State(), tr.f.Now().UTC()
	tr.cp.Mixed = tr.cp.Mixed || s.mixed.Load()
	return tr.save(ctx)
}

// save is [job.Run.Save].
func (tr *transfer) save(ctx context.Context) error {
	cp, err := json.Marshal(tr.cp)
	if err != nil {
		return err
	}
	return tr.run.Save(ctx, tr.sum.Offset(), tr.size(), cp)
}

// exactly makes a source that ends before its announced length an error: what
// is stored must not be short.
type exactly struct {
	r         io.Reader
	left      int64
	end, size int64 // where r ends in the source, and the size of that
}

func (e *exactly) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		return n, fmt.Errorf("the source ended early: expected %d bytes, got %d", e.size, e.end-e.left)
	}
	return n, err
}

// verify holds what came against what was promised.
func (tr *transfer) verify() error {
	t, got := tr.t, tr.sum
	switch {
	case got.Offset() == 0:
		return errors.New("the source is empty")
	case t.size >= 0 && got.Offset() != t.size:
		return fmt.Errorf("expected %d bytes, got %d", t.size, got.Offset())
	case t.sha256 != "" && got.Sum256() != t.sha256:
		return fmt.Errorf("wrong digest: expected SHA-256 %s, got %s", t.sha256, got.Sum256())
	case t.sha512 != "" && got.Sum512() != t.sha512:
		return fmt.Errorf("wrong digest: expected SHA-512 %s, got %s", t.sha512, got.Sum512())
	}
	return nil
}

// assemble makes the parts a blob named by its SHA-256. An earlier run may
// have come to any point of that.
func (tr *transfer) assemble(ctx context.Context) error {
	c, blob, size := tr.f.Catalog, layout.BlobKey(tr.sum.Sum256()), tr.sum.Offset()
	if tr.parts != nil {
		_, err := c.CompleteUpload(ctx, tr.cp.Key, tr.cp.UploadID, tr.parts)
		// Where the store has no such upload any more, an earlier try was
		// answered to nobody. What was replaced already was by the same bytes:
		// nobody writes others to this key.
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrChanged) {
			return retryLater(err)
		}
	}
	there, err := c.Head(ctx, tr.cp.Key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		// Put in its place already, or gone.
		if there, err = c.Head(ctx, blob); errors.Is(err, store.ErrNotFound) || err == nil && there.Size != size {
			return &restartError{err: errors.New("the store has lost the bytes that were fetched")}
		}
		if err != nil {
			return retryLater(err)
		}
		return nil
	case err != nil:
		return retryLater(err)
	case there.Size != size:
		return &restartError{err: fmt.Errorf("the store has %d bytes of the %d that were sent to it", there.Size, size)}
	case tr.cp.Key == blob:
		return nil
	}
	if err := c.Copy(ctx, blob, tr.cp.Key, size); err != nil {
		return retryLater(err)
	}
	if err := c.Delete(ctx, tr.cp.Key); err != nil {
		return retryLater(err)
	}
	return nil
}

// publish records what the source is, and returns what becomes of the job.
func (f *Function) publish(ctx context.Context, t *target, run *job.Run, sha256 string, size int64, v source.Validators) (func(*job.Job), error) {
	err := job.Publish(ctx, run, layout.FetchedKey(t.ref), size, func(rec *entry.Fetched) error {
		if t.entry {
			// What was fetched is of the source as it was when the entry was added.
			e, _, err := record.Read[entry.Entry](ctx, f.Catalog, layout.EntryKey(t.ref))
			switch {
			case errors.Is(err, store.ErrNotFound):
				return errGone
			case err != nil:
				return retryLater(err)
			case !e.AddedAt.Equal(t.added):
				return errors.New("the entry was refreshed while it was fetched: fetch it again")
			}
		}
		old := *rec
		*rec = entry.Fetched{
			Meta: old.Meta, Src: t.loc.URL, SHA256: sha256, SizeBytes: size, At: f.Now().UTC(),
			Source: entry.Source{ETag: v.ETag, LastModified: v.LastModified, Digest: t.loc.Digest},
		}
		if old.SHA256 == sha256 {
			rec.KnownAt = old.Since()
		}
		return nil
	})
	return func(j *job.Job) {
		j.SHA256, j.BytesDone, j.BytesTotal = sha256, size, &size
	}, err
}
