package hash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// expanding returns a process that makes disks, within a budget, in a store that keeps
// holes.
func (w *world) expanding(owner string, catalog store.Root, most int64) (*process, *sender) {
	p, disks := w.process(owner, catalog), new(sender)
	p.Jobs.Queues[job.Disk] = disks
	p.DisksMax, p.Sparse = most, true
	return p, disks
}

// put and hash an image of any name.
func (w *world) add(p *process, name image.Name, data []byte) layout.SHA256 {
	w.t.Helper()
	w.put(name, data)
	w.inspect(p, name)
	w.until(p, job.Hash.Task(string(name)))
	return sum256(data)
}

// expand makes the disk of a content and returns its job.
func (w *world) expand(p *process, sha256 layout.SHA256) job.Job {
	w.t.Helper()
	if _, _, err := p.Jobs.RequestDisk(w.t.Context(), sha256, imageName); err != nil {
		w.t.Fatal(err)
	}
	w.until(p, job.Disk.Task(string(sha256)))
	return w.diskJob(sha256)
}

func (w *world) diskJob(sha256 layout.SHA256) job.Job {
	w.t.Helper()
	j, _, err := record.Read[job.Job](context.Background(), w.catalog, layout.DiskJobKey(sha256))
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

// disk returns the bytes of a disk, or nil if there is none.
func (w *world) disk(sha256 layout.SHA256) []byte { return w.object(layout.DiskKey(sha256)) }

// object returns the bytes of an object of the catalog root, or nil if there is none.
func (w *world) object(key store.Key) []byte {
	w.t.Helper()
	body, _, err := w.catalog.Get(context.Background(), key, store.All, "")
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// holed returns a disk with a hole.
func holed(seed uint64) []byte {
	return slices.Concat(noise(seed, mib), make([]byte, 4*mib), noise(seed+1, mib+1000))
}

func TestDisk(t *testing.T) {
	bubble(t, func(w *world) {
		p, queued := w.expanding("a", w.catalog, 1<<30)
		raw := holed(1)
		sha := w.add(p, imageName, packed(t, raw))
		queued.take()
		time.Sleep(time.Second) // events of the same time have no order
		j := w.expand(p, sha)
		if sent := queued.take(); len(sent) != 1 || sent[0] != string(`{"disk":"`+sha)+`"}` {
			t.Errorf("queued: %v", sent)
		}
		if j.Status != job.Completed || j.Stage != job.Disk.Name || j.BytesDone != int64(len(raw)) || *j.BytesTotal != j.BytesDone || j.Name != imageName {
			t.Errorf("job: %+v", j)
		}
		if !bytes.Equal(w.disk(sha), raw) {
			t.Error("the disk has other bytes")
		}
		rec := w.known(sha)
		if d := rec.Disk; d == nil || d.SizeBytes != int64(len(raw)) || d.StoredBytes != 2*mib+1000 || d.MadeAt.IsZero() || d.UsedAt != d.MadeAt {
			t.Errorf("disk: %+v", rec.Disk)
		}
		// It was verified, so nothing is left to check.
		if c := rec.Check; c == nil || c.Verdict != content.Good || c.RawSHA256 != sum256(raw) {
			t.Errorf("verdict: %+v", rec.Check)
		}
		w.events(activity.ImageDiskMade, activity.ImageHashed)
	})
}

// An image that cannot be expanded, or not to what the check found, leaves no disk.
func TestDiskFails(t *testing.T) {
	good := packed(t, middling)
	for _, tt := range []struct {
		name    string
		data    []byte
		change  func(*content.Record)
		verdict content.Verdict
		reason  string
	}{
		{"cut", good[:1_000_000], nil, content.Truncated, "cut short"},
		{"cut, which no check has found", good[:1_000_000], func(rec *content.Record) {
			rec.Check = &content.Check{Verdict: content.Cancelled, Reason: "the check was cancelled"}
		}, content.Truncated, "cut short"},
		{"damaged", append(slices.Clone(good[:len(good)-8]), "12345678"...), nil, content.Damaged, "damaged"},
		{"a tar", packed(t, slices.Concat(make([]byte, 257), []byte("ustar"), make([]byte, 2*mib))), nil, "", "tar"},
		{"faulty", good, func(rec *content.Record) {
			size := int64(len(middling))
			rec.Check = &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum256(good)}
		}, content.Good, "faulty"},
	} {
		bubble(t, func(w *world) {
			p, _ := w.expanding("a", w.catalog, 1<<30)
			sha := w.add(p, imageName, tt.data)
			if tt.change != nil {
				_, _, err := record.Change(w.t.Context(), w.catalog, layout.ContentKey(sha), func(rec *content.Record, _ bool) error {
					tt.change(rec)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second) // events of the same time have no order
			j := w.expand(p, sha)
			if j.Status != job.Failed || !strings.Contains(j.Error, tt.reason) {
				t.Errorf("%s: %+v", tt.name, j)
			}
			rec := w.known(sha)
			if w.disk(sha) != nil || rec.Disk != nil {
				t.Errorf("%s: there is a disk: %+v", tt.name, rec.Disk)
			}
			if got := rec.Check; (got == nil) != (tt.verdict == "") || got != nil && got.Verdict != tt.verdict {
				t.Errorf("%s: verdict %+v, want %q", tt.name, got, tt.verdict)
			}
			w.events(activity.ImageDiskFailed, activity.ImageHashed)
			// A request does not try it again and again, an operator may.
			if active, _, err := p.Jobs.RequestDisk(w.t.Context(), sha, imageName); err != nil || active {
				t.Errorf("%s: requested again: %v, %v", tt.name, active, err)
			}
		})
	}
}

// Disks that are not in use make room, those used longest ago first.
func TestDisksMakeRoom(t *testing.T) {
	bubble(t, func(w *world) {
		const each = 2*mib + 1000 // stored of each
		p, _ := w.expanding("a", w.catalog, 3*each)
		var shas []layout.SHA256
		for i := range 4 {
			shas = append(shas, w.add(p, image.Name(fmt.Sprintf("%d.img", i)), packed(t, holed(uint64(i+1)))))
		}
		there := func() (names string) {
			for i, sha := range shas {
				if w.disk(sha) != nil {
					names += fmt.Sprint(i)
				}
				if has := w.known(sha).Disk != nil; has != (w.disk(sha) != nil) {
					t.Errorf("disk %d: recorded %v", i, has)
				}
			}
			return names
		}
		for _, i := range []int{0, 1, 2} {
			if j := w.expand(p, shas[i]); j.Status != job.Completed {
				t.Fatalf("disk %d: %+v", i, j)
			}
			time.Sleep(time.Minute) // the next one is used later
		}
		if got := there(); got != "012" {
			t.Fatalf("disks %s, want 012", got)
		}
		// All three were used within ten minutes.
		if j := w.expand(p, shas[3]); j.Status != job.Failed || !strings.Contains(j.Error, "IMAGEROOT_DISKS_MAX") || !strings.Contains(j.Error, "in use") {
			t.Errorf("%+v", j)
		}
		if got := there(); got != "012" {
			t.Errorf("disks %s, want 012", got)
		}
		time.Sleep(2 * time.Hour) // none is in use any more
		_, _, err := record.Change(w.t.Context(), w.catalog, layout.ContentKey(shas[0]), func(rec *content.Record, _ bool) error {
			rec.Disk.UsedAt = time.Now()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if j := w.expand(p, shas[3]); j.Status != job.Completed {
			t.Errorf("%+v", j)
		}
		if got := there(); got != "03" && got != "023" {
			t.Errorf("disks %s, want 03 or 023", got)
		}
		p.DisksMax = mib
		if err := p.makeRoom(w.t.Context(), shas[3], each); err == nil || !strings.Contains(err.Error(), "IMAGEROOT_DISKS_MAX") {
			t.Errorf("a disk that is larger than all may be together: %v", err)
		}
	})
}

// Disks that exports need stay, however long they are not used.
func TestNeededDisksStay(t *testing.T) {
	bubble(t, func(w *world) {
		const each = 2*mib + 1000 // stored of each
		p, _ := w.expanding("a", w.catalog, 2*each)
		var shas []layout.SHA256
		for i := range 4 {
			shas = append(shas, w.add(p, image.Name(fmt.Sprintf("%d.img", i)), packed(t, holed(uint64(i+1)))))
		}
		needed := map[layout.SHA256]bool{shas[0]: true}
		p.Needed = func(context.Context) (map[layout.SHA256]bool, error) { return needed, nil }
		for i := range 3 {
			if j := w.expand(p, shas[i]); j.Status != job.Completed {
				t.Fatalf("disk %d: %+v", i, j)
			}
			time.Sleep(time.Hour) // it is not in use any more
		}
		if w.disk(shas[0]) == nil || w.disk(shas[1]) != nil || w.disk(shas[2]) == nil {
			t.Error("the disk that is needed was removed for another, or that was not made")
		}
		needed[shas[2]] = true
		if j := w.expand(p, shas[3]); j.Status != job.Failed || !strings.Contains(j.Error, "exported") {
			t.Errorf("%+v", j)
		}
	})
}

// A fullRoot has no room for objects.
type fullRoot struct{ store.Root }

func (fullRoot) Put(_ context.Context, _ store.Key, body io.Reader, _ int64) (store.Version, error) {
	_, _ = io.CopyN(io.Discard, body, 1000) // a disk is full later than at the first byte
	return store.Version{}, store.ErrFull
}

// A store without room fails the job with both sizes.
func TestDiskFull(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", fullRoot{w.catalog}, 1<<30)
		p.Free = func() int64 { return 12_345 }
		sha := w.add(p, imageName, packed(t, middling))
		_, _, err := record.Change(w.t.Context(), w.catalog, layout.ContentKey(sha), func(rec *content.Record, _ bool) error {
			size := int64(len(middling))
			rec.VirtualSize = &size
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if j := w.expand(p, sha); j.Status != job.Failed || !strings.Contains(j.Error, "12345 bytes free") || !strings.Contains(j.Error, fmt.Sprintf("disk of %d bytes", len(middling))) {
			t.Errorf("%+v", j)
		}
	})
}

// A process that stops anywhere leaves a disk that is right, or none.
func TestDiskKilled(t *testing.T) {
	raw := holed(1)
	for writes := 1; ; writes++ {
		finished := false
		bubble(t, func(w *world) {
			a, _ := w.expanding("a", w.catalog, 1<<30)
			sha := w.add(a, imageName, packed(t, raw))
			z := &freezer{Root: w.catalog, at: writes, after: writes%2 == 0, hit: make(chan struct{}), thaw: make(chan struct{})}
			b, _ := w.expanding("b", z, 1<<30)
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _, _ = b.Jobs.RequestDisk(context.Background(), sha, imageName)
				_ = b.Handle(context.Background(), job.Disk.Task(string(sha)).Encode())
			}()
			select {
			case <-z.hit:
			case <-done:
				finished = true
			}
			// Another process ends the job, if there is one, once the lease has ended.
			time.Sleep(time.Minute)
			if j := w.expand(a, sha); j.Status != job.Completed {
				t.Errorf("stopped at write %d: %+v", writes, j)
			}
			if err := a.Reconcile(w.t.Context()); err != nil {
				t.Fatal(err)
			}
			close(z.thaw)
			<-done
			if !bytes.Equal(w.disk(sha), raw) || w.known(sha).Disk == nil {
				t.Errorf("stopped at write %d: disk of %d bytes, recorded: %+v", writes, len(w.disk(sha)), w.known(sha).Disk)
			}
		})
		if finished {
			if writes < 4 {
				t.Errorf("%d writes", writes)
			}
			return
		}
	}
}

// Reconcile removes the disks that no record has or whose image is gone, and no others.
func TestReconcileDisks(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", w.catalog, 1<<30)
		kept, gone := w.add(p, imageName, packed(t, holed(1))), w.add(p, "gone.img", packed(t, holed(5)))
		w.expand(p, kept)
		w.expand(p, gone)
		stray := sum256([]byte("stray"))
		if _, err := w.catalog.Put(w.t.Context(), layout.DiskKey(stray), strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
		p.Inventory.TouchCatalog(layout.DiskKey(stray))
		if err := w.images.Delete(w.t.Context(), "gone.img"); err != nil {
			t.Fatal(err)
		}
		p.Inventory.TouchImage("gone.img")
		w.inspect(p, "gone.img")
		time.Sleep(time.Hour)
		if err := p.Reconcile(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.disk(kept) == nil || w.disk(gone) != nil || w.disk(stray) != nil {
			t.Errorf("kept %v, of a deleted image %v, stray %v", w.disk(kept) != nil, w.disk(gone) != nil, w.disk(stray) != nil)
		}
	})
}

// If each image is to have a disk, they are made one after the other, while there is room.
func TestAllDisks(t *testing.T) {
	bubble(t, func(w *world) {
		p, queued := w.expanding("a", w.catalog, 1<<30)
		checks := new(sender)
		p.Jobs.Queues[job.Check] = checks
		p.AllDisks = true
		var shas []layout.SHA256
		for i := range 3 {
			shas = append(shas, w.add(p, image.Name(fmt.Sprintf("%d.img", i)), packed(t, holed(uint64(i+1)))))
			w.until(p, job.Check.Task(string(shas[i])))
		}
		w.put("plain.img", noise(9, mib))
		for range 5 {
			for _, sha := range shas {
				w.until(p, job.Disk.Task(string(sha)))
			}
		}
		if sent := queued.take(); len(sent) != 3 {
			t.Errorf("queued: %v", sent)
		}
		for i, sha := range shas {
			if w.disk(sha) == nil {
				t.Errorf("there is no disk of image %d", i)
			}
		}
	})
}

func TestDiskRoutes(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", w.catalog, 1<<30)
		sha := w.add(p, imageName, packed(t, middling))
		plain := w.add(p, "plain.img", noise(3, mib))
		post := func(body string, status int, words ...string) {
			t.Helper()
			r := httptest.NewRequest("POST", "/catalog/disks", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			rec := httptest.NewRecorder()
			err := p.postDisk(rec, r)
			got := rec.Body.String()
			if err != nil {
				got = err.Error()
			}
			if (err == nil) != (status == http.StatusAccepted) || !strings.Contains(got, words[0]) {
				t.Errorf("%s: %v, %s", body, err, got)
			}
		}
		post(`{"name":"none.img"}`, 404, "no image")
		post(`{}`, 422, "name or the sha256")
		post(`{"sha256":"xy"}`, 422, "64")
		post(fmt.Sprintf(`{"sha256":%q}`, plain), 422, "its own disk")
		post(`{"name":"x.img"}`, 202, `"status":"queued"`)
		w.until(p, job.Disk.Task(string(sha)))
		post(fmt.Sprintf(`{"sha256":%q}`, sha), 202, `"status":"completed"`)

		rec := httptest.NewRecorder()
		if err := p.listDisks(rec, httptest.NewRequest("GET", "/catalog/disks", nil)); err != nil || !strings.Contains(rec.Body.String(), fmt.Sprintf(`"stored_bytes":%d`, len(middling))) {
			t.Errorf("%v, %s", err, rec.Body)
		}
		remove := func(key string) error {
			r := httptest.NewRequest("DELETE", "/catalog/disks/"+key, nil)
			r.SetPathValue("sha256", key)
			return p.deleteDisk(httptest.NewRecorder(), r)
		}
		if err := remove(string(sha)); err != nil || w.disk(sha) != nil || w.known(sha).Disk != nil {
			t.Errorf("%v, disk %v, recorded %+v", err, w.disk(sha) != nil, w.known(sha).Disk)
		}
		for _, key := range []string{string(sha), "x", string(plain)} {
			if err := remove(key); err == nil || !strings.Contains(err.Error(), "no disk") {
				t.Errorf("DELETE %s: %v", key, err)
			}
		}
		// A job that has not run is cancelled.
		post(`{"name":"x.img"}`, 202, `"status":"queued"`)
		if err := remove(string(sha)); err != nil || w.diskJob(sha).Status != job.Cancelled {
			t.Errorf("%v, %+v", err, w.diskJob(sha))
		}
	})
}
