package upload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
)

var (
	imageA = content(11, 2*testPart+12345)
	small  = content(13, 5000)
)

func TestParts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		order   []int32
		restart bool // of the server, between parts
		known   bool // the SHA-256 on completion
	}{
		{"in order", []int32{1, 2, 3}, false, true},
		{"in order, by two processes", []int32{1, 2, 3}, true, true},
		{"out of order", []int32{3, 1, 2}, false, false},
		{"backwards", []int32{3, 2, 1}, true, false},
		{"the next part twice", []int32{1, 2, 2, 3}, false, true},
		{"the first part again at the end", []int32{1, 2, 3, 1}, true, true},
		{"a later part early, and again in order", []int32{3, 1, 2, 3}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			v := w.begun("x.img", len(imageA))
			if len(v.Parts) != 3 || v.PartSize != testPart || v.Status != uploading {
				t.Fatalf("begun: %+v", v)
			}
			sent := map[int32]bool{}
			for i, n := range tt.order {
				if tt.restart && i > 0 {
					w.over(w.images, w.catalog)
				}
				w.send(v, imageA, n)
				sent[n] = true
				for _, p := range w.show(v.ID).Parts {
					if p.Done != sent[p.Number] {
						t.Errorf("after %v, part %d is done: %v", tt.order[:i+1], p.Number, p.Done)
					}
				}
			}
			if w.holds("x.img") != nil {
				t.Error("an upload that is not completed is there")
			}
			w.must(http.StatusAccepted, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
			if tt.restart {
				tasks := w.assembly.take()
				w.over(w.images, w.catalog)
				w.assembly.sent = tasks
			}
			got := w.assembled(v.ID)
			if got.Status != completed || got.Error != nil || (got.SHA256 != nil) != tt.known || tt.known && *got.SHA256 != sum256(imageA) {
				t.Errorf("completed: %+v", got)
			}
			w.is("x.img", imageA)
			if (w.honest("x.img") != "") != tt.known {
				t.Errorf("recorded %q", w.honest("x.img"))
			}
			if looks := w.looks.take(); !slices.Contains(looks, `{"image":"x.img"}`) {
				t.Errorf("the hash function was told %v", looks)
			}
			w.clean()
			w.told(activity.ImageUploaded)
		})
	}
}

func TestPartsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for body, status := range map[string]int{
		`{"name": "x.img", "size_bytes": 0}`:              422,
		`{"name": "x.img", "size_bytes": -1}`:             422,
		`{"name": "x.img", "size_bytes": 1.5}`:            422,
		`{"name": "x.img"}`:                               422,
		`{"name": "x.txt", "size_bytes": 1}`:              422,
		`{"name": "x.img", "size_bytes": 60000000000000}`: 413,
		`nonsense`: 422,
	} {
		w.must(status, http.MethodPost, "/uploads", []byte(body))
	}
	w.Free = func() int64 { return 100 }
	w.must(507, http.MethodPost, "/uploads", []byte(`{"name": "x.img", "size_bytes": 101}`))
	w.clean()
	w.Free = func() int64 { return -1 }

	v := w.begun("x.img", len(imageA))
	path := "/uploads/" + v.ID
	w.must(404, http.MethodGet, "/uploads/nonsense", nil)
	w.must(404, http.MethodGet, "/uploads/"+strings.Repeat("0", 32), nil)
	w.must(404, http.MethodPut, path+"/parts/0", small)
	w.must(404, http.MethodPut, path+"/parts/4", small)
	w.must(404, http.MethodPut, path+"/parts/x", small)
	w.must(422, http.MethodPut, path+"/parts/1", small)
	w.send(v, imageA, 2)
	if rec := w.must(409, http.MethodPost, path+"/complete", nil); !strings.Contains(rec.Body.String(), "1, 3") {
		t.Errorf("parts are missing: %s", rec.Body)
	}
	if list := w.must(200, http.MethodGet, "/uploads", nil).Body.String(); !strings.Contains(list, v.ID) {
		t.Errorf("listed: %s", list)
	}
	w.must(204, http.MethodDelete, path, nil)
	w.must(404, http.MethodGet, path, nil)
	w.must(404, http.MethodPut, path+"/parts/1", part(v, imageA, 1))
	w.clean()
	if list := w.must(200, http.MethodGet, "/uploads", nil).Body.String(); strings.Contains(list, v.ID) {
		t.Errorf("listed after it was abandoned: %s", list)
	}

	// During and after the assembly, it accepts no more parts.
	v = w.begun("x.img", len(small))
	path = "/uploads/" + v.ID
	w.send(v, small, 1)
	for range 2 { // the second request does nothing
		w.must(202, http.MethodPost, path+"/complete", nil)
	}
	w.must(409, http.MethodPut, path+"/parts/1", small)
	w.assembled(v.ID)
	w.must(409, http.MethodPut, path+"/parts/1", small)
	w.must(202, http.MethodPost, path+"/complete", nil)
	if tasks := w.assembly.take(); len(tasks) > 0 {
		t.Errorf("completed, and to be assembled again: %v", tasks)
	}
	w.is("x.img", small)
	w.told(activity.ImageUploaded)
}

// A part that is sent again with other bytes never leaves the digest of the earlier
// bytes, even if it is stored late.
func TestPartReplaced(t *testing.T) {
	t.Parallel()
	other := content(14, len(small))
	for _, noted := range []bool{false, true} {
		w := newWorld(t)
		v := w.begun("x.img", len(small))
		w.send(v, small, 1)
		replace := func() {
			p, _, err := record.Read[pending](t.Context(), w.catalog, layout.UploadKey(v.ID))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.images.UploadPart(t.Context(), layout.ImageKey(p.Name), p.UploadID, 1, strings.NewReader(string(other)), int64(len(other))); err != nil {
				t.Fatal(err)
			}
		}
		if noted {
			w.send(v, other, 1)
		} else {
			replace() // a request in flight has reached the store, and no further
		}
		w.must(202, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
		if got := w.assembled(v.ID); got.Status != completed || got.SHA256 != nil && *got.SHA256 != sum256(other) {
			t.Errorf("noted %v: %+v", noted, got)
		}
		w.is("x.img", other)
	}
}

// TestPartsFaults fails each write of a whole upload once, in each way, in either
// root. The client retries each request that failed.
func TestPartsFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for _, inImages := range []bool{true, false} {
			for n := 1; n <= 10; n++ {
				w := newWorld(t)
				plan := faultstore.NthWrite(n, fault)
				images, catalog := faultstore.New(w.images, nil), faultstore.New(w.catalog, nil)
				if inImages {
					images.Reset(plan)
				} else {
					catalog.Reset(plan)
				}
				w.over(images, catalog)
				again := func(want int, method, target string, body []byte) string {
					t.Helper()
					for range 3 {
						if rec := w.do(method, target, body); rec.Code == want {
							return rec.Body.String()
						}
					}
					t.Fatalf("write %d, %s: %s %s never works", n, fault, method, target)
					return ""
				}
				again(201, http.MethodPost, "/uploads", fmt.Appendf(nil, `{"name": "x.img", "size_bytes": %d}`, len(small)))
				id := ""
				for _, p := range w.uploads() {
					id = p.ID // if there are two, the last one was answered
				}
				again(200, http.MethodPut, "/uploads/"+id+"/parts/1", small)
				again(202, http.MethodPost, "/uploads/"+id+"/complete", nil)
				if got := w.assembled(id); got.Status != completed || got.SHA256 != nil && *got.SHA256 != sum256(small) {
					t.Errorf("write %d, %s, in images %v: %+v", n, fault, inImages, got)
				}
				w.is("x.img", small)
				if looks := w.looks.take(); len(looks) == 0 {
					t.Errorf("write %d, %s: the hash function was told nothing", n, fault)
				}
				// An upload whose answer was lost is given up after a week.
				images.Reset(nil)
				catalog.Reset(nil)
				w.ahead += keep + time.Hour
				if err := w.Reconcile(t.Context()); err != nil {
					t.Error(err)
				}
				if all := w.uploads(); len(all) > 0 {
					t.Errorf("write %d, %s: a week later there is %+v", n, fault, all)
				}
				if inImages && fault == faultstore.After && n == 1 {
					continue // no record has this ID: the owner of the store sweeps it
				}
				w.clean()
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// While a store assembles, which can take minutes, it does not list the parts.
// Another process with the same task waits for the outcome.
func TestAssembledByAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.begun("x.img", len(small))
	w.send(v, small, 1)
	w.must(202, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
	tasks := w.assembly.take()
	if err := w.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := w.assembly.take(); !slices.Equal(again, tasks) {
		t.Fatalf("reconciled: %v, want %v", again, tasks)
	}
	first := w.Function
	busy := &assembling{Root: w.images, begun: make(chan struct{}), go1: make(chan struct{})}
	first.Images = busy
	done := make(chan error, 1)
	go func() { done <- first.Handle(context.Background(), []byte(tasks[0])) }()
	<-busy.begun
	w.over(busy, w.catalog)
	err := w.Handle(t.Context(), []byte(tasks[0]))
	if retry, ok := errors.AsType[*queue.Retry](err); !ok || retry.After < time.Second {
		t.Errorf("asked for the same: %v", err)
	}
	if got := w.show(v.ID); got.Status != completing {
		t.Errorf("while it is assembled: %+v", got)
	}
	w.must(409, http.MethodDelete, "/uploads/"+v.ID, nil)
	close(busy.go1)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := w.Handle(t.Context(), []byte(tasks[0])); err != nil {
		t.Errorf("asked for what is done: %v", err)
	}
	if got := w.show(v.ID); got.Status != completed || got.SHA256 == nil || *got.SHA256 != sum256(small) {
		t.Errorf("completed: %+v", got)
	}
	w.is("x.img", small)
	w.told(activity.ImageUploaded)
}

// The parts that two clients have sent to one upload never become an image if the
// client that completes it declares its ETags or the SHA-256.
func TestPartsOfTwoFiles(t *testing.T) {
	t.Parallel()
	other := content(15, len(imageA))
	etags := func(v view, data []byte) (tags []string) {
		w := newWorld(t)
		mine := w.begun("x.img", len(data))
		for n := range int32(len(v.Parts)) {
			w.send(mine, data, n+1)
		}
		for _, p := range w.show(mine.ID).Parts {
			tags = append(tags, *p.ETag)
		}
		return tags
	}
	for what, says := range map[string]func(v view) map[string]any{
		"etags":  func(v view) map[string]any { return map[string]any{"etags": etags(v, other)} },
		"sha256": func(view) map[string]any { return map[string]any{"sha256": sum256(other)} },
	} {
		w := newWorld(t)
		v := w.begun("x.img", len(other))
		w.send(v, imageA, 1)
		w.send(v, other, 2)
		w.send(v, other, 3)
		body := must(json.Marshal(says(v)))
		if rec := w.do(http.MethodPost, "/uploads/"+v.ID+"/complete", body); rec.Code != 409 && rec.Code != 400 {
			t.Fatalf("%s: %d %s", what, rec.Code, rec.Body)
		}
		if got := w.show(v.ID); got.Status != uploading {
			t.Errorf("%s: refused, and %s", what, got.Status)
		}
		// After the part is sent again, all parts are of one file.
		w.send(v, other, 1)
		rec := w.do(http.MethodPost, "/uploads/"+v.ID+"/complete", body)
		if what == "sha256" { // the hash of the parts is lost
			if rec.Code != 409 {
				t.Errorf("a SHA-256 that is not known: %d %s", rec.Code, rec.Body)
			}
			continue
		}
		if rec.Code != 202 {
			t.Fatalf("%s: %d %s", what, rec.Code, rec.Body)
		}
		// A part that was in flight is stored after the completion.
		p := w.uploads()[0]
		if _, err := w.images.UploadPart(t.Context(), layout.ImageKey(p.Name), p.UploadID, 2, bytes.NewReader(part(v, imageA, 2)), testPart); err != nil {
			t.Fatal(err)
		}
		if got := w.assembled(v.ID); got.Status != failed || got.Error == nil {
			t.Errorf("%s: a part was replaced: %+v", what, got)
		}
		w.is("x.img", nil)
		w.clean()
	}
}

// A SHA-256 that the client declares before or after its parts is compared.
func TestPartsVerified(t *testing.T) {
	t.Parallel()
	right, wrong := sum256(small), sum256(imageA)
	reprDigest := func(sum layout.SHA256) string { return "sha-256=:" + base64Of(t, string(sum)) + ":" }
	for _, tt := range []struct {
		name, begin, complete, field string
		status                       int
	}{
		{"right at the beginning", string(right), "", "", 202},
		{"wrong at the beginning", string(wrong), "", "", 400},
		{"right at the end", "", string(right), "", 202},
		{"wrong at the end", "", string(wrong), "", 400},
		{"Repr-Digest, right", "", "", reprDigest(right), 202},
		{"Repr-Digest, wrong", "", "", reprDigest(wrong), 400},
		{"contradicting", "", string(right), reprDigest(wrong), 400},
		{"no SHA-256", "", "nonsense", "", 422},
		{"of SHA-512 only", "", "", "sha-512=:" + strings.Repeat("A", 86) + "==:", 501},
	} {
		w := newWorld(t)
		v := decode[view](t, w.must(201, http.MethodPost, "/uploads", fmt.Appendf(nil, `{"name": "x.img", "size_bytes": %d, "sha256": %q}`, len(small), tt.begin)))
		w.send(v, small, 1)
		fields := []string{}
		if tt.field != "" {
			fields = append(fields, "Repr-Digest", tt.field)
		}
		var body []byte
		if tt.complete != "" {
			body = fmt.Appendf(nil, `{"sha256": %q}`, tt.complete)
		}
		if rec := w.do(http.MethodPost, "/uploads/"+v.ID+"/complete", body, fields...); rec.Code != tt.status {
			t.Errorf("%s: %d, want %d: %s", tt.name, rec.Code, tt.status, rec.Body)
		}
		if tt.status == 202 {
			w.assembled(v.ID)
			w.is("x.img", small)
		}
	}
	w := newWorld(t)
	w.must(400, http.MethodPost, "/uploads", fmt.Appendf(nil, `{"name": "x.img", "size_bytes": 5, "sha256": %q}`, right), "Repr-Digest", reprDigest(wrong))

	// That of a part is compared, too. A mismatch leaves the earlier part.
	v := w.begun("x.img", len(imageA))
	for n := range int32(3) {
		bytes := part(v, imageA, n+1)
		w.must(200, http.MethodPut, v.Parts[n].URL, bytes, "Repr-Digest", reprDigest(sum256(bytes)))
		w.must(400, http.MethodPut, v.Parts[n].URL, part(v, content(16, len(imageA)), n+1), "Repr-Digest", reprDigest(sum256(bytes)))
	}
	w.must(202, http.MethodPost, "/uploads/"+v.ID+"/complete", fmt.Appendf(nil, `{"sha256": %q}`, sum256(imageA)))
	w.assembled(v.ID)
	w.is("x.img", imageA)
}

// A client that resumes can determine whether its file is the one that the upload
// began with.
func TestPartsComparable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.begun("x.img", len(imageA))
	if v.Hashed != nil {
		t.Errorf("of nothing: %+v", v.Hashed)
	}
	w.send(v, imageA, 1)
	w.send(v, imageA, 3)
	want := hashed{testPart, sum256(imageA[:testPart])}
	if got := w.show(v.ID).Hashed; got == nil || *got != want {
		t.Errorf("of the first part: %+v, want %+v", got, want)
	}
	w.send(v, imageA, 2)
	want = hashed{2 * testPart, sum256(imageA[:2*testPart])}
	if got := w.show(v.ID).Hashed; got == nil || *got != want {
		t.Errorf("of two parts: %+v, want %+v", got, want)
	}
	w.send(v, content(17, len(imageA)), 1)
	if got := w.show(v.ID).Hashed; got != nil {
		t.Errorf("of parts that were replaced: %+v", got)
	}
}

// An upload is given up a week after its last part, not after its beginning.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	slow := &arriving{Root: w.images}
	w.over(slow, w.catalog)
	v := w.begun("x.img", len(imageA))
	w.send(v, imageA, 1)
	began := time.Now()
	// An upload of an S3 client, without a record.
	id := must(w.images.CreateUpload(t.Context(), "y.img"))
	must(w.images.UploadPart(t.Context(), "y.img", id, 1, bytes.NewReader(small), int64(len(small))))
	uploads := func() (n int) {
		for _, err := range w.images.PendingUploads(t.Context(), "") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	w.ahead = 30 * 24 * time.Hour
	slow.last = began.Add(w.ahead - keep + time.Hour)
	if err := w.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	if w.show(v.ID); uploads() != 2 {
		t.Errorf("%d uploads are left while parts arrive, want 2", uploads())
	}
	w.ahead += 2 * time.Hour
	if err := w.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	w.must(404, http.MethodGet, "/uploads/"+v.ID, nil)
	w.clean()
}

// arriving is a store whose parts have the time last.
type arriving struct {
	store.Root
	last time.Time
}

func (a *arriving) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	parts, err := a.Root.ListParts(ctx, key, id)
	for i := range parts {
		parts[i].LastModified = a.last
	}
	return parts, err
}

// assembling is a store whose assembly takes until go1 is closed.
type assembling struct {
	store.Root
	begun, go1 chan struct{}
}

func (a *assembling) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	close(a.begun)
	<-a.go1
	return a.Root.CompleteUpload(ctx, key, id, parts)
}

func (a *assembling) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	select {
	case <-a.begun:
		return nil, store.ErrNotFound
	default:
		return a.Root.ListParts(ctx, key, id)
	}
}

// An upload whose parts the store has removed fails in time, with the reason.
func TestPartsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.begun("x.img", len(small))
	w.send(v, small, 1)
	lose := func() {
		for u, err := range w.images.PendingUploads(t.Context(), "") {
			if err != nil || w.images.AbortUpload(t.Context(), u.Key, u.ID) != nil {
				t.Fatal(err)
			}
		}
	}
	w.must(202, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
	lose()
	task := w.assembly.take()[0]
	if _, ok := errors.AsType[*queue.Retry](w.Handle(t.Context(), []byte(task))); !ok {
		t.Error("it does not wait")
	}
	w.ahead += assembleTime
	if err := w.Handle(t.Context(), []byte(task)); err != nil {
		t.Error(err)
	}
	if got := w.show(v.ID); got.Status != failed || got.Error == nil {
		t.Errorf("lost: %+v", got)
	}
	if w.holds("x.img") != nil {
		t.Error("an image of nothing")
	}
	w.told(activity.ImageUploadFailed)

	v = w.begun("y.img", len(small))
	lose()
	w.must(404, http.MethodGet, "/uploads/"+v.ID, nil)
	w.must(404, http.MethodPut, "/uploads/"+v.ID+"/parts/1", small)
	w.must(404, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
}

// The record of an upload of a newer version stays, and so do all parts that may
// belong to it.
func TestReconcileNewer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.begun("x.img", len(small))
	w.send(v, small, 1)
	key := layout.UploadKey(v.ID)
	data, tag, err := w.catalog.ReadRecord(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(data), `"schema":1`, `"schema":2`, 1)
	if _, err := w.catalog.ReplaceRecord(t.Context(), key, []byte(newer), tag); err != nil {
		t.Fatal(err)
	}
	other := w.begun("other.img", len(small))
	w.ahead += 10 * keep
	for _, task := range []queue.Task{queue.Reconcile{}, queue.Assemble(v.ID)} {
		if err := w.Handle(t.Context(), task.Encode()); err != nil {
			t.Error(err)
		}
	}
	w.must(409, http.MethodDelete, "/uploads/"+v.ID, nil)
	w.must(404, http.MethodGet, "/uploads/"+other.ID, nil)
	parts := 0
	for range w.images.PendingUploads(t.Context(), "") {
		parts++
	}
	if now, _, err := w.catalog.ReadRecord(t.Context(), key); err != nil || string(now) != newer || parts != 1 {
		t.Errorf("%d uploads and the record %s are left (%v)", parts, now, err)
	}
}

func TestReconcile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.begun("old.img", len(small))
	w.send(old, small, 1)
	done := w.begun("done.img", len(small))
	w.send(done, small, 1)
	w.must(202, http.MethodPost, "/uploads/"+done.ID+"/complete", nil)
	w.assembled(done.ID)

	w.ahead += keep - time.Hour
	fresh := w.begun("fresh.img", len(small))
	half := w.begun("half.img", len(small))
	w.send(half, small, 1)
	w.must(202, http.MethodPost, "/uploads/"+half.ID+"/complete", nil)
	w.over(w.images, w.catalog) // a kill, which loses the queue

	ids := func() []string {
		var ids []string
		for _, p := range w.uploads() {
			ids = append(ids, p.ID)
		}
		slices.Sort(ids)
		return ids
	}
	want := func(all ...string) []string { slices.Sort(all); return all }
	for _, tt := range []struct {
		later time.Duration
		left  []string
	}{
		{0, want(old.ID, done.ID, fresh.ID, half.ID)},
		{2 * time.Hour, want(fresh.ID, half.ID)},
	} {
		w.ahead += tt.later
		if err := w.Handle(t.Context(), queue.Reconcile{}.Encode()); err != nil {
			t.Error(err)
		}
		if got := ids(); !slices.Equal(got, tt.left) {
			t.Errorf("after %v: %v, want %v", tt.later, got, tt.left)
		}
		if tasks := w.assembly.take(); !slices.Equal(tasks, []string{string(queue.Assemble(half.ID).Encode())}) {
			t.Errorf("after %v: to be assembled: %v", tt.later, tasks)
		}
	}
	w.must(404, http.MethodGet, "/uploads/"+old.ID, nil)
	if err := w.Handle(t.Context(), queue.Assemble(half.ID).Encode()); err != nil {
		t.Error(err)
	}
	w.is("half.img", small)
	w.is("done.img", small)
	w.must(204, http.MethodDelete, "/uploads/"+fresh.ID, nil)
	w.clean()

	for _, bad := range []string{"", "nonsense", "{}", `{"image":"x.img"}`} {
		if err := w.Handle(t.Context(), []byte(bad)); err == nil {
			t.Errorf("%q is a task", bad)
		}
	}
	if err := w.Handle(t.Context(), queue.Assemble(old.ID).Encode()); err != nil {
		t.Errorf("an upload that is gone: %v", err)
	}
}

// A damaged hash state in the record is not used.
func TestDamagedHash(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(p *pending){
		"another offset": func(p *pending) { p.Hashed.Offset = 1 },
		"another state":  func(p *pending) { p.Hashed.SHA256[40] ^= 1 },
		"another image": func(p *pending) {
			h := digest.New(false)
			_, _ = h.Write(content(9, len(small)))
			p.Hashed = h.State()
			p.HashedParts = "x"
		},
	} {
		w := newWorld(t)
		v := w.begun("x.img", len(small))
		w.send(v, small, 1)
		_, _, err := record.Change(t.Context(), w.catalog, layout.UploadKey(v.ID), func(p *pending, _ bool) error { change(p); return nil })
		if err != nil {
			t.Fatal(err)
		}
		w.must(202, http.MethodPost, "/uploads/"+v.ID+"/complete", nil)
		if got := w.assembled(v.ID); got.Status != completed || got.SHA256 != nil {
			t.Errorf("%s: %+v", name, got)
		}
		w.is("x.img", small)
	}
}
