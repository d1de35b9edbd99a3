package upload

import (
	"context"
	"net/http"
	"testing"

	"imageroot/shared/activity"
	"imageroot/shared/store"
)

// A server that is killed while it removes the parts of an object that it has
// made shows the rest of them when it is back. Nothing may be made of those:
// least of all over what somebody has put in the object's place since.
func TestRemainsOfParts(t *testing.T) {
	t.Parallel()
	for what, since := range map[string][]byte{"replaced": small, "deleted": nil} {
		w := newWorld(t)
		data := content(7, int(2*partBytes)+100)
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

// remains is a store that has only the first part left.
type remains struct{ store.Root }

func (r *remains) ListParts(ctx context.Context, key, id string) ([]store.Part, error) {
	parts, err := r.Root.ListParts(ctx, key, id)
	return parts[:min(1, len(parts))], err
}
