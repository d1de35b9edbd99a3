package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// maxWhole is the largest part that is held in memory.
const maxWhole = 256 << 20

// copy stores the stream in parts and hashes it.
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
			s.allow(tr.sum.Offset() + max(length, s.AheadBytes))
			body = io.LimitReader(s, length)
			if tr.f.Whole && length <= maxWhole {
				part, err := store.ReadUpTo(s, int(length))
				if err != nil {
					return err
				}
				body = bytes.NewReader(part)
			}
		} else {
			// Later parts are larger, so that 10,000 are enough.
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

// ends returns an error if a source sends more than its known size.
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
		interrupt = func() {} // all of it was read: the stream continues
	}
	_, rerr := r.Stop(interrupt)
	switch {
	case rerr != nil && (err == nil || !errors.Is(rerr, digest.ErrStopped)):
		return rerr
	case errors.Is(err, store.ErrNotFound):
		// The parts were aborted, so there is nothing to resume from.
		return &queue.Retry{After: time.Second, Err: errors.New("the store no longer has the parts of this fetch")}
	case err != nil:
		return retryLater(err)
	}
	tr.parts = append(tr.parts, part)
	tr.cp.Parts, tr.cp.Hashed, tr.cp.At = n, tr.sum.State(), tr.f.Now().UTC()
	tr.cp.Mixed = tr.cp.Mixed || s.mixed.Load()
	return tr.save(ctx)
}

// An exactly reader fails if its source ends before its announced length.
type exactly struct {
	r         io.Reader
	left      int64
	end, size int64 // the offset in the source at which r ends, and the source's size
}

func (e *exactly) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		return n, fmt.Errorf("the source ended early: expected %d bytes, got %d", e.size, e.end-e.left)
	}
	return n, err
}

// verify compares what was received with the size and the digests of the target.
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

// assemble makes a blob of the parts. An earlier run may have stopped at any step
// of it.
func (tr *transfer) assemble(ctx context.Context) error {
	c, blob, size := tr.f.Catalog, layout.BlobKey(tr.sum.Sum256()), tr.sum.Offset()
	if tr.parts != nil {
		_, err := c.CompleteUpload(ctx, tr.cp.Key, tr.cp.UploadID, tr.parts)
		// If the store no longer has the upload, an earlier try succeeded and its
		// answer was lost. An object that was replaced has the same bytes, since
		// the key is their digest's or this fetch's own.
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrChanged) {
			return retryLater(err)
		}
	}
	there, err := c.Head(ctx, tr.cp.Key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		// It was moved to its key already, or it is lost.
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
	// A blob that exists has the same bytes.
	if _, err := c.Move(ctx, blob, tr.cp.Key, there.Version); err != nil && !errors.Is(err, store.ErrConflict) {
		return retryLater(err)
	}
	if err := c.Delete(ctx, tr.cp.Key); err != nil {
		return retryLater(err)
	}
	return nil
}

// publish stores the block map of what was fetched, records that, and returns the last changes
// to the job.
func (f *Function) publish(ctx context.Context, t *target, run *job.Run, sha256 layout.SHA256, size int64, v source.Validators, bmap []byte) (func(*job.Job), error) {
	if err := f.keepMap(ctx, sha256, bmap); err != nil {
		return nil, err
	}
	err := job.Publish(ctx, run, layout.FetchedKey(t.ref), size, func(rec *entry.Fetched) error {
		if t.entry {
			// A refreshed entry may describe other bytes.
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
