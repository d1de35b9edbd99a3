package upload

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"imageroot/shared/activity"
	"imageroot/shared/store"
)

// TestCreateByParts uploads in parts under names that must be new.
func TestCreateByParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	begun := func(name string, data []byte, fields ...string) view {
		t.Helper()
		body := fmt.Appendf(nil, `{"name": %q, "size_bytes": %d}`, name, len(data))
		v := decode[view](t, w.must(201, http.MethodPost, "/uploads", body, fields...))
		w.send(v, data, 1)
		return v
	}
	complete := func(status int, v view, fields ...string) string {
		t.Helper()
		return w.must(status, http.MethodPost, "/uploads/"+v.ID+"/complete", nil, fields...).Body.String()
	}
	const condition, other = "If-None-Match", "another"

	// Of two that are completed at the same time, the first to be assembled succeeds.
	a, b := begun("x.img", small, condition, "*"), begun("x.img", []byte(other), condition, "*")
	complete(202, b)
	complete(202, a)
	if got := w.assembled(b.ID); got.Status != completed {
		t.Errorf("the first: %+v", got)
	}
	if got := w.assembled(a.ID); got.Status != failed || got.Error == nil || !strings.Contains(*got.Error, "nothing was changed") {
		t.Errorf("the second: %+v", got)
	}
	w.is("x.img", []byte(other))
	w.clean()
	w.told(activity.ImageUploadFailed, activity.ImageUploaded)

	w.must(412, http.MethodPost, "/uploads", []byte(`{"name": "x.img", "size_bytes": 1}`), condition, "*")
	w.must(501, http.MethodPost, "/uploads", []byte(`{"name": "y.img", "size_bytes": 1}`), condition, `"x"`)

	// One that is refused when it is completed loses nothing, and need not repeat the
	// condition. Another gets the condition only then.
	a = begun("y.img", small, condition, "*")
	b = begun("y.img", []byte(other), condition, "*")
	d := begun("y.img", []byte(other))
	w.must(201, http.MethodPut, "/images/y.img", []byte("first"))
	for what, detail := range map[string]string{"begun with it": complete(412, a), "completed with it": complete(412, d, condition, "*")} {
		if !strings.Contains(detail, "y.img") {
			t.Errorf("%s: %s", what, detail)
		}
	}
	w.is("y.img", []byte("first"))
	w.must(204, http.MethodDelete, "/uploads/"+d.ID, nil)
	w.must(204, http.MethodDelete, "/images/y.img", nil)
	complete(202, a)
	if got := w.assembled(a.ID); got.Status != completed || !got.Create {
		t.Errorf("the name is free again: %+v", got)
	}
	c := begun("y.img", []byte("third"))
	complete(202, c)
	if got := w.assembled(c.ID); got.Status != completed {
		t.Errorf("without the condition: %+v", got)
	}
	w.is("y.img", []byte("third"))
	w.must(202, http.MethodPost, "/uploads/"+b.ID+"/complete", []byte(`{"replace": true}`))
	if got := w.assembled(b.ID); got.Status != completed || got.Create {
		t.Errorf("not any more: %+v", got)
	}
	w.is("y.img", []byte(other))

	// The S3 client repeats a request whose answer was lost, and is refused.
	w.over(&repeating{w.images}, w.catalog)
	a = begun("z.img", small, condition, "*")
	complete(202, a)
	if got := w.assembled(a.ID); got.Status != completed {
		t.Errorf("the answer was lost: %+v", got)
	}
	w.is("z.img", small)
	w.clean()
}

// repeating is a store that refuses a creation which has succeeded.
type repeating struct{ store.Root }

func (r *repeating) CompleteNew(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	if _, err := r.Root.CompleteNew(ctx, key, id, parts); err != nil {
		return store.Version{}, err
	}
	return store.Version{}, store.ErrConflict
}
