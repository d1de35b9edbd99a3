package upload

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/store"
)

// A server that is killed while it removes the parts of an object that it has made
// lists the remaining ones after its restart. They must not be assembled, least of
// all over a newer object.
func TestRemainsOfParts(t *testing.T) {
	t.Parallel()
	for what, since := range map[string][]byte{"replaced": small, "deleted": nil} {
		w := newWorld(t)
		data := content(7, int(2*testPart)+100)
		v := w.begun("x.img", len(data))
		for n := range int32(3) {
			w.send(v, data, n+1)
		}
		w.must(http.StatusAccepted, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
		task := w.assembly.take()[0]
		if since != nil {
			w.must(http.StatusCreated, http.MethodPut, "/images/x.img", since)
		}
		w.over(&remains{w.images}, w.catalog)
		if err := w.Handle(t.Context(), []byte(task)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := w.show(v.ID); got.Status != failed || got.Error == nil {
			t.Errorf("%s: %+v", what, got)
		}
		w.is("x.img", since)
		w.clean()
		told := []string{activity.ImageUploadFailed}
		if since != nil {
			told = []string{activity.ImageUploadFailed, activity.ImageUploaded}
		}
		w.told(told...)
	}
}

// remains is a store that lists only the first part.
type remains struct{ store.Root }

func (r *remains) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	parts, err := r.Root.ListParts(ctx, key, id)
	return parts[:min(1, len(parts))], err
}

// An upload that can never be assembled fails with the reason. One that may be
// assembled later has the reason of the last failure, and can be cancelled.
func TestAssemblyFails(t *testing.T) {
	t.Parallel()
	begin := func(cause error) (*world, view, *failing) {
		w := newWorld(t)
		v := w.begun("x.img", len(small))
		w.send(v, small, 1)
		w.must(http.StatusConflict, http.MethodDelete, "/uploads/"+w.completed(v), nil)
		f := &failing{w.images, cause}
		w.over(f, w.catalog)
		task := queue.Assemble(v.ID).Encode()
		err := w.Handle(t.Context(), task)
		_ = w.assembly.Send(t.Context(), task, 0) // never fails
		if final := w.show(v.ID).Status == failed; (err == nil) != final {
			t.Errorf("%v: %v, and the upload is %+v", cause, err, w.show(v.ID))
		}
		return w, v, f
	}
	for _, cause := range []error{store.ErrOccupied, store.ErrRefused, store.ErrTooLarge} {
		w, v, _ := begin(cause)
		if got := w.show(v.ID); got.Status != failed || got.Error == nil || *got.Error != problem.From(cause).Detail {
			t.Errorf("%v: %+v", cause, got)
		}
		w.must(http.StatusNoContent, http.MethodDelete, "/uploads/"+v.ID, nil)
		w.clean()
	}
	for _, cause := range []error{store.ErrUnavailable, store.ErrDisk, store.ErrDenied, errors.New("unknown")} {
		w, v, f := begin(cause)
		if got := w.show(v.ID); got.Status != completing || got.Error == nil {
			t.Errorf("%v: %+v", cause, got)
		}
		f.err = nil
		if got := w.assembled(v.ID); got.Status != completed || got.Error != nil {
			t.Errorf("after %v: %+v", cause, got)
		}

		w, v, f = begin(cause)
		w.must(http.StatusNoContent, http.MethodDelete, "/uploads/"+v.ID, nil)
		f.err = nil
		if err := w.Handle(t.Context(), queue.Assemble(v.ID).Encode()); err != nil {
			t.Error(err)
		}
		w.is("x.img", nil)
		w.clean()

		w, v, _ = begin(cause)
		w.ahead += keep + time.Hour
		if got := w.assembled(v.ID); got.Status != failed || got.Error == nil {
			t.Errorf("a week after %v: %+v", cause, got)
		}
		w.clean()
	}
}

// completed completes an upload and returns its ID.
func (w *world) completed(v view) string {
	w.t.Helper()
	w.must(http.StatusAccepted, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
	w.assembly.take()
	return v.ID
}
