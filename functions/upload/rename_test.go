package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/record/recordtest"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
)

const (
	oldName = "old disk+ü%41.img"
	newName = "new disk.qcow2"
)

var oldPath = "/images/old%20disk+%C3%BC%2541.img"

// rename requests a rename and returns the job.
func (w *world) asked(path, name string) job.View {
	w.t.Helper()
	return decode[job.View](w.t, w.must(http.StatusAccepted, http.MethodPost, path+"/rename", fmt.Appendf(nil, `{"name": %q}`, name)))
}

// renamed handles the tasks of rename jobs, and redeliveries, until the job has ended.
func (w *world) renamed(name image.Name) job.Job {
	w.t.Helper()
	for range 20 {
		for _, task := range append(w.renames.take(), string(job.Rename.Task(string(name)).Encode())) {
			_ = w.Handle(context.Background(), []byte(task)) // it is delivered again
		}
		j, _, err := record.Read[job.Job](context.Background(), w.catalog, layout.RenameJobKey(name))
		if err != nil {
			w.t.Fatal(err)
		}
		if !j.Status.Active() {
			return j
		}
		w.ahead += time.Minute
	}
	w.t.Fatal("the job does not end")
	return job.Job{}
}

// describe makes newName the primary name of the bytes if oldName is, and adds sidecars.
func (w *world) describe(data []byte, sidecar string) {
	w.t.Helper()
	sum := sum256(data)
	if _, err := w.images.Put(w.t.Context(), oldName+".sha256", strings.NewReader(sidecar), int64(len(sidecar))); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.images.Put(w.t.Context(), oldName+".bmap", strings.NewReader("map"), 3); err != nil {
		w.t.Fatal(err)
	}
	rec := metadata.Record{SHA256: sum, Words: metadata.Words{Name: oldName}}
	if _, err := record.Swap(w.t.Context(), w.catalog, layout.MetadataKey(sum), &rec, ""); err != nil {
		w.t.Fatal(err)
	}
}

// hasMoved checks that all that belonged to the old name belongs to the new one.
func (w *world) hasMoved(data []byte) {
	w.t.Helper()
	w.is(newName, data)
	if w.holds(oldName) != nil {
		w.t.Error("the old name is still there")
	}
	if w.honest(newName) == "" {
		w.t.Error("the digest is not known any more")
	}
	rec, _, err := record.Read[metadata.Record](w.t.Context(), w.catalog, layout.MetadataKey(sum256(data)))
	if err != nil || rec.Name != newName {
		w.t.Errorf("the primary name is %q, %v", rec.Name, err)
	}
	if got, want := string(w.holds(newName+".sha256")), string(sum256(data))+"  "+newName+"\n"; got != want {
		w.t.Errorf("the sidecar is %q, want %q", got, want)
	}
	if string(w.holds(newName+".bmap")) != "map" || w.holds(oldName+".bmap") != nil {
		w.t.Error("the block map has not moved")
	}
	if w.holds(oldName+".sha256") != nil {
		w.t.Error("the old sidecar is still there")
	}
}

func TestRename(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := content(1, 5000)
	w.must(http.StatusCreated, http.MethodPut, oldPath, data)
	before, _, err := record.Read[digest.Record](t.Context(), w.catalog, layout.DigestKey(oldName))
	if err != nil {
		t.Fatal(err)
	}
	w.describe(data, "# by its publisher\n"+string(sum256(data))+" *"+oldName+"\n")
	w.ahead = time.Hour
	w.looks.take()
	if v := w.asked(oldPath, newName); v.Name != oldName || v.NewName != newName || v.Stage != "rename" || v.Status != job.Queued {
		t.Errorf("the answer is %+v", v)
	}
	w.asked(oldPath, newName) // while it is queued
	if j := w.renamed(oldName); j.Status != job.Completed || j.SHA256 != sum256(data) {
		t.Fatalf("the job ended as %+v", j)
	}
	w.hasMoved(data)
	after, _, err := record.Read[digest.Record](t.Context(), w.catalog, layout.DigestKey(newName))
	if err != nil || !after.Since().Equal(before.Since()) || !after.HashedAt.Equal(before.HashedAt) {
		t.Errorf("the digest is of %v since %v, was of %v since %v (%v)", after.HashedAt, after.Since(), before.HashedAt, before.Since(), err)
	}
	for _, name := range []image.Name{oldName, newName} {
		if sent := w.looks.take(); len(sent) > 0 && !slices.Contains(sent, string(queue.InspectImage(name).Encode())) {
			t.Errorf("%s is not inspected: %v", name, sent)
		}
	}
	w.told(activity.ImageRenamed, activity.ImageUploaded)

	// Once more, after it.
	if v := w.asked(oldPath, newName); v.Status != job.Completed {
		t.Errorf("a repeated request: %+v", v)
	}
	if v := w.asked("/images/new%20disk.qcow2", newName); v.Status != job.Completed || v.Name != newName {
		t.Errorf("a rename to the same name: %+v", v)
	}
	w.hasMoved(data)
	w.told(activity.ImageRenamed, activity.ImageUploaded)
	if body := w.must(http.StatusOK, http.MethodGet, "/catalog/renames", nil).Body.String(); !strings.Contains(body, `"new_name":"new disk.qcow2"`) {
		t.Errorf("the list is %s", body)
	}
	// And back.
	w.asked("/images/new%20disk.qcow2", oldName)
	if j := w.renamed(newName); j.Status != job.Completed {
		t.Errorf("the job ended as %+v", j)
	}
	w.is(oldName, data)
}

func TestRenameRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := content(1, 100), content(2, 100)
	w.must(http.StatusCreated, http.MethodPut, "/images/a.img", a)
	w.must(http.StatusCreated, http.MethodPut, "/images/b.img", b)
	for _, r := range []struct {
		status     int
		path, body string
	}{
		{http.StatusNotFound, "/images/none.img", `{"name": "c.img"}`},
		{http.StatusNotFound, "/images/x.tar", `{"name": "c.img"}`},
		{http.StatusConflict, "/images/a.img", `{"name": "b.img"}`},
		{http.StatusUnprocessableEntity, "/images/a.img", `{"name": "c.txt"}`},
		{http.StatusUnprocessableEntity, "/images/a.img", `{"name": "d/c.img"}`},
		{http.StatusUnprocessableEntity, "/images/a.img", `{}`},
		{http.StatusUnprocessableEntity, "/images/a.img", `c.img`},
	} {
		w.must(r.status, http.MethodPost, r.path+"/rename", []byte(r.body))
	}
	w.asked("/images/a.img", "c.img")
	w.must(http.StatusConflict, http.MethodPost, "/images/a.img/rename", []byte(`{"name": "d.img"}`))
	w.must(http.StatusNoContent, http.MethodDelete, "/catalog/renames/a.img", nil)
	w.must(http.StatusNotFound, http.MethodDelete, "/catalog/renames/b.img", nil)
	if j := w.renamed("a.img"); j.Status != job.Cancelled {
		t.Errorf("the job ended as %+v", j)
	}
	w.is("a.img", a)
	w.is("b.img", b)

	// Another image gets the name before the job runs.
	w.asked("/images/a.img", "c.img")
	w.must(http.StatusCreated, http.MethodPut, "/images/c.img", b)
	if j := w.renamed("a.img"); j.Status != job.Failed || !strings.Contains(j.Error, "c.img") {
		t.Errorf("the job ended as %+v", j)
	}
	w.is("a.img", a)
	w.is("c.img", b)
	// A request that is repeated when the job has written the new name, but not ended, returns it.
	w.asked("/images/b.img", "e.img")
	w.must(http.StatusCreated, http.MethodPut, "/images/e.img", b)
	w.asked("/images/b.img", "e.img")
	w.must(http.StatusNoContent, http.MethodDelete, "/images/b.img", nil)
	if v := w.asked("/images/b.img", "e.img"); v.Status != job.Queued {
		t.Errorf("a repeated request: %+v", v)
	}
	w.must(http.StatusNotFound, http.MethodPost, "/images/b.img/rename", []byte(`{"name": "f.img"}`))
	// A request to rename it back is refused while that job is active.
	w.must(http.StatusConflict, http.MethodPost, "/images/e.img/rename", []byte(`{"name": "b.img"}`))
	w.renamed("b.img")
	w.asked("/images/e.img", "b.img")
	// Or the image is deleted.
	w.asked("/images/a.img", "d.img")
	w.must(http.StatusNoContent, http.MethodDelete, "/images/a.img", nil)
	if j := w.renamed("a.img"); j.Status != job.Failed {
		t.Errorf("the job ended as %+v", j)
	}
}

// A record of a newer version of this program is left to that.
func TestRenameBesideNewerRecords(t *testing.T) {
	t.Parallel()
	for _, key := range []store.Key{layout.DigestKey("a.img"), layout.DigestKey("b.img"), layout.RenameJobKey("a.img")} {
		w := newWorld(t)
		w.must(http.StatusCreated, http.MethodPut, "/images/a.img", content(1, 100))
		recordtest.Refused(t, w.catalog, key, func() {
			w.must(http.StatusConflict, http.MethodPost, "/images/a.img/rename", []byte(`{"name": "b.img"}`))
		})
		w.must(http.StatusOK, http.MethodGet, "/catalog/renames", nil)
	}
}

// An image without a digest is renamed, too.
func TestRenameUnhashed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := content(1, 100)
	if _, err := w.images.Put(t.Context(), "a.img", bytes.NewReader(data), 100); err != nil {
		t.Fatal(err)
	}
	w.asked("/images/a.img", "b.img")
	if j := w.renamed("a.img"); j.Status != job.Completed || j.SHA256 != "" {
		t.Errorf("the job ended as %+v", j)
	}
	w.is("b.img", data)
	w.is("a.img", nil)
}

// A process may be killed before and after each of its writes: the image has one of the two
// names, or both, and another process finishes the job.
func TestRenameKilled(t *testing.T) {
	t.Parallel()
	data := content(1, 5000)
	kill := func(t *testing.T, at int, fault faultstore.Fault) (writes int) {
		w := newWorld(t)
		w.must(http.StatusCreated, http.MethodPut, oldPath, data)
		w.describe(data, string(sum256(data))+"  "+oldName+"\n")
		w.asked(oldPath, newName)
		// From this write on, the process writes nothing.
		n := 0
		plan := func(c faultstore.Call) faultstore.Fault {
			if c.Write == 0 {
				return faultstore.None
			}
			n++
			switch {
			case n < at:
				return faultstore.None
			case n == at:
				return fault
			}
			return faultstore.Before
		}
		w.over(faultstore.New(w.images, plan), faultstore.New(w.catalog, plan))
		_ = w.Handle(t.Context(), job.Rename.Task(oldName).Encode())
		if w.holds(oldName) == nil && w.holds(newName) == nil {
			t.Fatalf("killed %v write %d: the image is lost", fault, at)
		}
		w.honest(newName)
		w.over(w.images, w.catalog)
		w.ahead = time.Hour
		if err := w.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The hash function finds the digest of a copy that has none.
		if v, err := w.images.Head(t.Context(), newName); err == nil && w.honest(newName) == "" {
			if err := w.publish(t.Context(), newName, v.Version, sum256(data)); err != nil {
				t.Fatal(err)
			}
		}
		if j := w.renamed(oldName); j.Status != job.Completed {
			t.Errorf("killed %v write %d: %+v", fault, at, j)
		}
		w.hasMoved(data)
		return n
	}
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After} {
		for at, last := 1, false; !last; at++ {
			synctest.Test(t, func(t *testing.T) { last = kill(t, at, fault) < at })
		}
	}
}

// Two images that are renamed to one name: one gets it, and the other keeps its own.
func TestRenameRace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	images := map[image.Name][]byte{"a.img": content(1, 100), "b.img": content(2, 100)}
	for name, data := range images {
		w.must(http.StatusCreated, http.MethodPut, "/images/"+string(name), data)
	}
	for name := range images {
		w.asked("/images/"+string(name), "c.img")
	}
	done := make(chan image.Name)
	for name := range images {
		go func() {
			_ = w.Handle(context.Background(), job.Rename.Task(string(name)).Encode())
			done <- name
		}()
	}
	<-done
	<-done
	got := w.holds("c.img")
	for name, data := range images {
		j := w.renamed(name)
		if won := bytes.Equal(got, data); won != (j.Status == job.Completed) {
			t.Errorf("%s: it has the name: %v; the job: %+v", name, won, j)
		} else if !won {
			w.is(string(name), data)
		}
	}
	_, err := w.images.Head(t.Context(), store.Key("c.img"))
	if got == nil || errors.Is(err, store.ErrNotFound) {
		t.Error("no image got the name")
	}
}
