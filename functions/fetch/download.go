package fetch

import (
	"bytes"
	"context"
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

const (
	// partBytes is the size of the parts that an image is stored in, and the
	// most that a kill makes us fetch again. Images that would need more than
	// S3's most parts get larger ones.
	partBytes = 64 << 20
	// unknownPartBytes is that where nobody says how long the source is: a
	// part is then held in memory, since S3 wants to know its length first.
	unknownPartBytes = 16 << 20
	// maxRestarts is how often a source may change while it is fetched.
	maxRestarts = 3
)

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
}

// A transfer is one try to get a source whole.
type transfer struct {
	f   *Function
	t   *target
	run *job.Run

	cp    checkpoint
	sum   *digest.Hasher
	parts []store.Part
}

// fetch brings the target's bytes into the catalog root.
func (f *Function) fetch(ctx context.Context, t *target, run *job.Run) (func(*job.Job), error) {
	if t.sha256 != "" {
		// Another source of the same bytes may have been fetched before.
		info, err := f.Catalog.Head(ctx, layout.BlobKey(t.sha256))
		if err == nil {
			return f.publish(ctx, t, t.sha256, info.Size, source.Validators{})
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, retryLater(err)
		}
	}
	if free := f.Free(); t.size > 0 && free >= 0 && t.size > free {
		return nil, fmt.Errorf("the image has %d bytes and the store has room for %d: delete images that are not needed", t.size, free)
	}
	for restarts := 0; ; restarts++ {
		tr := &transfer{f: f, t: t, run: run}
		finish, err := tr.do(ctx, restarts == 0)
		again, ok := errors.AsType[*restartError](err)
		if !ok {
			return finish, err
		}
		if restarts == maxRestarts {
			return nil, again.err
		}
	}
}

// do gets the whole, going on from the job's checkpoint if it may. The parts
// of a try that cannot be gone on with are given up.
func (tr *transfer) do(ctx context.Context, resume bool) (_ func(*job.Job), err error) {
	f, t := tr.f, tr.t
	if !resume || !tr.resume(ctx) {
		if err := tr.begin(ctx); err != nil {
			return nil, retryLater(err)
		}
	}
	defer func() {
		if err != nil && !tr.keeps(ctx, err) {
			tr.abort(ctx)
		}
	}()
	s, err := openStream(ctx, streamConfig{
		sources: f.Sources, loc: t.loc, offset: tr.sum.Offset(), size: tr.size(), validators: tr.cp.Validators,
		verified: t.sha256 != "" || t.sha512 != "",
		count:    f.Metric.BytesFetched, progress: func(done, total int64) { tr.run.Report(done, total, nil) },
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := tr.compare(ctx, s); err != nil {
		return nil, err
	}
	if err := tr.copy(ctx, s); err != nil {
		return nil, err
	}
	if err := tr.verify(); err != nil {
		return nil, err
	}
	if err := tr.complete(ctx); err != nil {
		return nil, err
	}
	return f.publish(ctx, t, tr.sum.Sum256(), tr.sum.Offset(), tr.cp.Validators)
}

// size is what the stream must have: what the source said when the transfer
// began, else what was said of it when it was added.
func (tr *transfer) size() int64 {
	if tr.cp.Size >= 0 {
		return tr.cp.Size
	}
	return tr.t.size
}

// resume takes up the job's checkpoint and reports whether that is possible.
func (tr *transfer) resume(ctx context.Context) bool {
	var cp checkpoint
	if json.Unmarshal(tr.run.Job().Checkpoint, &cp) != nil || cp.UploadID == "" || cp.Key != tr.t.key() {
		return false
	}
	tr.cp = cp
	sum, err := digest.Resume(cp.Hashed)
	if err == nil && (cp.PartSize <= 0 || (tr.t.sha512 != "" && sum.Sum512() == "")) {
		err = errors.New("nothing that helps")
	}
	var parts []store.Part
	if err == nil {
		parts, err = tr.f.Catalog.ListParts(ctx, cp.Key, cp.UploadID)
	}
	if err == nil && int32(len(parts)) >= cp.Parts && wholeParts(parts[:cp.Parts], cp.PartSize) && sum.Offset() == int64(cp.Parts)*cp.PartSize {
		tr.sum, tr.parts = sum, parts[:cp.Parts]
		return true
	}
	tr.abort(ctx)
	return false
}

func wholeParts(parts []store.Part, size int64) bool {
	for i, p := range parts {
		if p.Number != int32(i+1) || p.Size != size {
			return false
		}
	}
	return true
}

// key is where the bytes are assembled: at their place if the digest is known.
func (t *target) key() string {
	if t.sha256 != "" {
		return layout.BlobKey(t.sha256)
	}
	return layout.StagingKey(t.ref)
}

func (tr *transfer) begin(ctx context.Context) error {
	id, err := tr.f.Catalog.CreateUpload(ctx, tr.t.key())
	if err != nil {
		return err
	}
	tr.sum = digest.New(tr.t.sha512 != "")
	tr.parts = nil
	tr.cp = checkpoint{Key: tr.t.key(), UploadID: id, Size: -1, Hashed: tr.sum.State()}
	return nil
}

// keeps reports whether the parts are of use to a later run.
func (tr *transfer) keeps(ctx context.Context, err error) bool {
	if cause := context.Cause(ctx); cause != nil {
		return !errors.Is(cause, job.ErrCancelled)
	}
	_, retry := errors.AsType[*job.Retry](err)
	return retry
}

func (tr *transfer) abort(ctx context.Context) {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err := tr.f.Catalog.AbortUpload(ctx, tr.cp.Key, tr.cp.UploadID); err != nil {
		tr.f.Log.Warn("parts of a fetch could not be given up; they are swept later", "name", tr.t.name, "error", err)
	}
}

// compare holds what the source says now against what it said when the entry
// was added.
func (tr *transfer) compare(ctx context.Context, s *stream) error {
	t := tr.t
	tr.cp.Validators, tr.cp.Size = s.validators, s.size
	sizeDiffers := t.size >= 0 && s.size >= 0 && s.size != t.size
	if !sizeDiffers && !t.seen.Differ(s.validators) {
		return nil
	}
	if t.entry {
		tr.f.flag(ctx, t.ref, "the source is not what it was when it was added: refresh the entry to take what is there now")
	}
	if sizeDiffers {
		return fmt.Errorf("the source has %d bytes and the catalog says %d: refresh the entry if the publisher has replaced the image", s.size, t.size)
	}
	return nil
}

// flag warns of an entry whose source has changed.
func (f *Function) flag(ctx context.Context, ref, warning string) {
	_, _, err := record.Change(ctx, f.Catalog, layout.EntryKey(ref), func(e *entry.Entry, exists bool) error {
		if !exists || e.Changed == warning {
			return record.ErrKeep
		}
		e.Changed = warning
		return nil
	})
	if err != nil {
		f.Log.Warn("an entry could not be flagged", "ref", ref, "error", err)
	}
}

// copy moves the stream into parts, hashing on the way.
func (tr *transfer) copy(ctx context.Context, s *stream) error {
	size := tr.size()
	if tr.cp.PartSize == 0 {
		tr.cp.PartSize = -1
		if size >= 0 {
			tr.cp.PartSize = partSize(size)
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
		} else {
			// Larger parts later on, so that 10,000 are enough.
			part, err := readUpTo(s, unknownPartBytes<<(n/2000))
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

// partSize is the least multiple of partBytes that makes do with S3's most
// parts.
func partSize(size int64) int64 {
	const most = store.MaxParts * int64(partBytes)
	return partBytes * max(1, (size+most-1)/most)
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

func readUpTo(r io.Reader, n int) ([]byte, error) {
	buf := make([]byte, n)
	got := 0
	for got < n {
		m, err := r.Read(buf[got:])
		got += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return buf[:got], nil
}

func (tr *transfer) putPart(ctx context.Context, s *stream, n int32, body io.Reader, length int64) error {
	exact := &exactly{r: body, left: length}
	r := digest.NewReader(exact, tr.sum, nil, nil)
	part, err := tr.f.Catalog.UploadPart(ctx, tr.cp.Key, tr.cp.UploadID, n, r, length)
	_, rerr := r.Stop(s.interrupt)
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
	tr.cp.Parts, tr.cp.Hashed = n, tr.sum.State()
	cp, err := json.Marshal(tr.cp)
	if err != nil {
		return err
	}
	return tr.run.Save(ctx, tr.sum.Offset(), tr.size(), cp)
}

// exactly makes a source that ends before its announced length an error: what
// is stored must not be short.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		return n, fmt.Errorf("the source ended %d bytes before the length that it announced", e.left)
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

// complete makes the parts a blob named by its SHA-256.
func (tr *transfer) complete(ctx context.Context) error {
	c := tr.f.Catalog
	_, err := c.CompleteUpload(ctx, tr.cp.Key, tr.cp.UploadID, tr.parts)
	if err != nil && !errors.Is(err, store.ErrChanged) {
		return retryLater(err)
	}
	blob := layout.BlobKey(tr.sum.Sum256())
	if tr.cp.Key == blob {
		return nil
	}
	if err := c.Copy(ctx, blob, tr.cp.Key, tr.sum.Offset()); err != nil {
		return retryLater(err)
	}
	if err := c.Delete(ctx, tr.cp.Key); err != nil {
		return retryLater(err)
	}
	return nil
}

// publish records what the source is, and returns what becomes of the job.
func (f *Function) publish(ctx context.Context, t *target, sha256 string, size int64, v source.Validators) (func(*job.Job), error) {
	_, _, err := record.Change(ctx, f.Catalog, layout.FetchedKey(t.ref), func(rec *entry.Fetched, _ bool) error {
		*rec = entry.Fetched{
			Meta: rec.Meta, Src: t.loc.URL, SHA256: sha256, SizeBytes: size, At: f.Now().UTC(),
			Source: entry.Source{ETag: v.ETag, LastModified: v.LastModified, Digest: t.loc.Digest},
		}
		return nil
	})
	if err != nil {
		return nil, retryLater(err)
	}
	return func(j *job.Job) {
		j.SHA256, j.BytesDone, j.BytesTotal = sha256, size, &size
	}, nil
}
