package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/source"
	"imageroot/shared/store"
)

// A checkpoint is what the next run of a job resumes from. The store lists the parts.
type checkpoint struct {
	Key        store.Key         `json:"key"` // of the upload
	UploadID   string            `json:"upload_id"`
	PartSize   int64             `json:"part_size"` // negative if the size was unknown
	Parts      int32             `json:"parts"`     // number of finished parts
	Hashed     digest.State      `json:"hashed"`    // of these parts
	Size       int64             `json:"size"`      // of the source; negative if unknown
	Validators source.Validators `json:"validators"`
	Mixed      bool              `json:"mixed,omitempty"` // the parts are from answers with different validators
	At         time.Time         `json:"at,omitzero"`     // when the last part was finished
	// Whole is true if all parts are stored and verified. The blob remains to be
	// assembled, which an earlier run may have begun.
	Whole bool `json:"whole,omitempty"`
}

// inherit takes over the checkpoint of a failed fetch of the same bytes from any
// source. It returns nil if there is none.
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
	_, _, err = record.Change(ctx, f.Catalog, layout.FetchJobKey(from.Ref), func(j *job.Job, exists bool) error {
		taken = exists && j.Status == job.Failed && bytes.Equal(j.Checkpoint, from.Checkpoint)
		if !taken {
			return record.ErrKeep // another fetch has taken it
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

// resumable reports whether validators or a digest can confirm that the rest of the
// source belongs to the same image.
func (tr *transfer) resumable() bool {
	return tr.cp.Validators != (source.Validators{}) || tr.t.verified()
}

// resume loads the checkpoint and reports whether the transfer can resume from it.
// If not, it aborts the checkpoint's parts.
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

// continues reports whether parts begins with the parts of the checkpoint, which
// end at offset.
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

// key returns the key at which to assemble the bytes: the blob's if the SHA-256 is
// known, else a new one for staging.
func (t *target) key() store.Key {
	if t.sha256 != "" {
		return layout.BlobKey(t.sha256)
	}
	return layout.StagingKey(layout.NewStagingID())
}

// assembles reports whether key can be what [target.key] returned.
func (t *target) assembles(key store.Key) bool {
	if t.sha256 != "" {
		return key == layout.BlobKey(t.sha256)
	}
	return isStaging(key)
}

func isStaging(key store.Key) bool {
	_, ok := layout.StagingID(key)
	return ok
}

// save saves the checkpoint and the progress; see [job.Run.Save].
func (tr *transfer) save(ctx context.Context) error {
	cp, err := json.Marshal(tr.cp)
	if err != nil {
		return err
	}
	return tr.run.Save(ctx, tr.sum.Offset(), tr.size(), cp)
}

// keeps reports whether to keep the parts of a transfer that failed with err: a
// later run can use them, or another owner has them.
func (tr *transfer) keeps(ctx context.Context, err error) bool {
	_, retry := errors.AsType[*queue.Retry](err)
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

// patience limits the time for aborting.
const patience = 10 * time.Second

// abort removes the parts.
func (tr *transfer) abort(ctx context.Context) {
	tr.f.abandon(ctx, tr.t.loc.Name, tr.cp)
}

// drop removes the bytes that the checkpoint of a job names, if it names any.
func (f *Function) drop(ctx context.Context, j job.Job, data json.RawMessage) {
	var cp checkpoint
	if json.Unmarshal(data, &cp) == nil && cp.UploadID != "" {
		f.abandon(ctx, j.Name, cp)
	}
}

// abandon removes the bytes that a checkpoint names.
func (f *Function) abandon(ctx context.Context, name image.Name, cp checkpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := f.Catalog.AbortUpload(ctx, cp.Key, cp.UploadID)
	if cp.Whole && isStaging(cp.Key) {
		err = errors.Join(err, f.Catalog.Delete(ctx, cp.Key))
	}
	if err != nil {
		f.Log.Warn("the parts of a fetch could not be removed; they are swept later", "name", name, "error", err)
	}
}
