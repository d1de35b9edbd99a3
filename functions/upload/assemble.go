package upload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Handle implements [queue.Handler] for the assemblies queue and that of rename jobs.
func (f *Function) Handle(ctx context.Context, body []byte) error {
	task, err := queue.Decode(body)
	if err != nil {
		return err
	}
	switch t := task.(type) {
	case queue.Reconcile, queue.Resume:
		return f.Reconcile(ctx)
	case queue.Assemble:
		return f.handle(ctx, string(t))
	}
	return f.Runners().Handle(ctx, task)
}

// handle assembles a resumable upload whose parts are all stored.
func (f *Function) handle(ctx context.Context, id string) error {
	p, err := f.read(ctx, id)
	if err == nil && p.Status == completing && p.Error != "" {
		p, err = f.note(ctx, p.ID, "") // from now on it cannot be cancelled
	}
	if err != nil || p.Status != completing {
		return ignoreGone(err)
	}
	version, err := f.assemble(ctx, &p)
	if isFinal(err) || err != nil && f.Now().Sub(p.CompletingAt) > keep {
		return f.end(ctx, &p, reason(err))
	}
	if err == nil {
		err = f.finish(ctx, &p, version)
	}
	if err != nil && !queue.Outcome(err).Free { // otherwise another process may be assembling it
		_, nerr := f.note(ctx, p.ID, reason(err))
		err = errors.Join(err, ignoreGone(nerr))
	}
	return err
}

// finish records the digest of an assembled upload if it is known, else queues an
// inspection, and ends the upload.
func (f *Function) finish(ctx context.Context, p *pending, version store.Version) error {
	if sum, err := digest.Resume(p.Hashed); err == nil && sum.Offset() == p.SizeBytes {
		p.SHA256 = sum.Sum256()
		if err := f.publish(ctx, p.Name, version, p.SHA256); err != nil {
			return err
		}
	} else if err := f.Inspections.Send(ctx, queue.InspectImage(p.Name).Encode(), 0); err != nil {
		return err
	}
	return f.end(ctx, p, "")
}

// reason returns the sentence about err for the record of an upload.
func reason(err error) string {
	p := problem.From(err)
	if p.Code == problem.Internal {
		return "the store failed; the server's log has the reason"
	}
	return p.Detail
}

// isFinal reports whether assembling the upload again would fail again.
func isFinal(err error) bool {
	final := []error{store.ErrChanged, store.ErrNotFound, store.ErrFull, store.ErrTooLarge, store.ErrOccupied, store.ErrRefused}
	return slices.ContainsFunc(final, func(target error) bool { return errors.Is(err, target) })
}

// note records why the last try to assemble an upload failed, or, if failure is
// empty, that another try begins.
func (f *Function) note(ctx context.Context, id, failure string) (pending, error) {
	p, _, err := record.Change(ctx, f.Catalog, layout.UploadKey(id), func(cur *pending, exists bool) error {
		switch {
		case !exists:
			return store.ErrNotFound
		case cur.Status != completing || cur.Error == failure:
			return record.ErrKeep
		}
		cur.Error = failure
		return nil
	})
	return p, err
}

func ignoreGone(err error) error {
	if errors.Is(err, record.ErrNewer) || problem.From(err) != nil && problem.From(err).Code == problem.NotFound {
		return nil
	}
	return err
}

// assemble completes the store's upload. If an earlier try did, the object that
// it made is the outcome.
func (f *Function) assemble(ctx context.Context, p *pending) (store.Version, error) {
	parts, err := f.Images.ListParts(ctx, layout.ImageKey(p.Name), p.UploadID)
	// All parts were stored. A server removes them after it has made the object,
	// and may be killed when it has removed only some.
	remains := err == nil && missingParts(p.withParts(parts)) != ""
	if remains {
		err = problem.Wrap(problem.Conflict,
			"it was put together, and replaced or deleted before that could be noted", store.ErrNotFound)
	}
	if err == nil {
		if err := p.verify(parts); err != nil {
			return store.Version{}, errors.Join(err, store.ErrRefused)
		}
		if p.HashedParts != chainOf(parts) {
			p.Hashed = digest.State{Offset: -1}
		}
		complete := f.Images.CompleteUpload
		if p.Create {
			complete = f.Images.CompleteNew
		}
		var v store.Version
		if v, err = complete(ctx, layout.ImageKey(p.Name), p.UploadID, parts); err == nil {
			return v, nil
		}
	}
	if p.Create && errors.Is(err, store.ErrConflict) {
		// If the parts are gone, the object may be theirs: the answer to that was lost.
		if _, err = f.Images.ListParts(ctx, layout.ImageKey(p.Name), p.UploadID); err == nil {
			err = errors.Join(errTaken(p.Name), store.ErrRefused)
		}
	}
	gone := errors.Is(err, store.ErrNotFound)
	if !gone && !errors.Is(err, store.ErrChanged) {
		return store.Version{}, err
	}
	info, herr := f.Images.Head(ctx, layout.ImageKey(p.Name))
	switch {
	case herr != nil && !errors.Is(herr, store.ErrNotFound):
		return store.Version{}, herr
	case herr == nil && info.Size == p.SizeBytes && !info.LastModified.Before(p.CreatedAt.Truncate(time.Second)):
		p.Hashed = digest.State{Offset: -1} // it may be another object, so it is hashed
		return info.Version, nil
	case gone && !remains && f.Now().Sub(p.CompletingAt) < assembleTime:
		return store.Version{}, queue.RetryAfter(30*time.Second, problem.New(problem.Unavailable, "the store may still be assembling the parts"))
	}
	return store.Version{}, err
}

// end records the end of an upload. It removes the parts of one that failed; if
// that fails, [Function.Reconcile] does.
func (f *Function) end(ctx context.Context, p *pending, failure string) error {
	ended := false
	_, _, err := record.Change(ctx, f.Catalog, layout.UploadKey(p.ID), func(cur *pending, exists bool) error {
		if ended = exists && cur.Status == completing; !ended {
			return record.ErrKeep
		}
		cur.Status, cur.SHA256, cur.Hashed, cur.Error = completed, p.SHA256, digest.State{}, ""
		if failure != "" {
			cur.Status, cur.Error = failed, failure
		}
		return nil
	})
	if err != nil || !ended {
		return err
	}
	e := activity.Event{
		Kind: activity.ImageUploaded, SubjectKind: activity.SubjectImage, SubjectID: string(p.Name), Actor: p.Actor, SourceIP: p.SourceIP,
		Summary: "uploaded " + string(p.Name), Details: map[string]any{"size_bytes": p.SizeBytes, "sha256": p.SHA256},
	}
	if failure != "" {
		e.Kind, e.Summary, e.Details = activity.ImageUploadFailed, "upload of "+string(p.Name)+" failed", map[string]any{"error": failure}
		if err := f.Images.AbortUpload(ctx, layout.ImageKey(p.Name), p.UploadID); err != nil {
			f.Log.Warn("the parts of an upload that failed are left for now", "name", p.Name, "error", err)
		}
	}
	f.Activity.Add(ctx, e)
	f.Log.Info("upload assembled", "name", p.Name, "bytes", p.SizeBytes, "sha256", p.SHA256, "error", failure)
	return nil
}

// GiveUp sets the upload or the job of a message to failed. The queue calls it if that has
// failed too often.
func (f *Function) GiveUp(ctx context.Context, body []byte) error {
	task, _ := queue.Decode(body)
	id, ok := task.(queue.Assemble)
	if !ok {
		return f.Runners().GiveUp(ctx, body)
	}
	p, err := f.read(ctx, string(id))
	if err != nil {
		return ignoreGone(err)
	}
	return f.end(ctx, &p, fmt.Sprintf("%s could not be put together, although it was tried again and again: send it once more", p.Name))
}

var _ queue.Handler = (*Function)(nil).Handle
