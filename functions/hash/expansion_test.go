package hash

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/test/need"
)

// change changes the content record of an image.
func (w *world) change(sha256 layout.SHA256, change func(*content.Record)) {
	w.t.Helper()
	_, _, err := record.Change(w.t.Context(), w.catalog, layout.ContentKey(sha256), func(rec *content.Record, _ bool) error {
		change(rec)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// A function at AWS has a deadline. An expansion that it would end is given up as soon as
// that is known, and is not begun again.
func TestDiskDeadline(t *testing.T) {
	const limit = 15 * time.Minute
	tooLong := func(rec *content.Record) {
		rec.Check = &content.Check{Verdict: content.Unchecked, Reason: reasonTime}
	}
	size := int64(len(middling))
	for _, tt := range []struct {
		name     string
		limit    time.Duration // 0: none
		change   func(*content.Record)
		each     func(offset int64) time.Duration // that a piece of the image takes
		status   job.Status
		earliest time.Duration // that it takes
		latest   time.Duration
	}{
		{"in time", limit, nil, func(int64) time.Duration { return time.Minute }, job.Completed, 0, limit},
		{"no deadline", 0, nil, func(int64) time.Duration { return time.Hour }, job.Completed, time.Hour, 100 * time.Hour},
		{"slow", limit, nil, func(int64) time.Duration { return 3 * time.Minute }, job.Failed, 2 * time.Minute, 10 * time.Minute},
		{"slow, of a known size", limit, func(rec *content.Record) { rec.VirtualSize = &size }, func(int64) time.Duration { return 3 * time.Minute }, job.Failed, 2 * time.Minute, 10 * time.Minute},
		{"stuck at the end", limit, nil, func(offset int64) time.Duration {
			if offset < size*3/4 {
				return time.Second
			}
			return time.Hour
		}, job.Failed, limit, limit + time.Minute},
		{"stopped early", time.Minute, nil, func(int64) time.Duration { return time.Minute }, job.Queued, time.Minute, 2 * time.Minute},
		{"known to take too long", limit, tooLong, func(int64) time.Duration { return 0 }, job.Failed, 0, time.Second},
		{"known to take too long elsewhere", 0, tooLong, func(int64) time.Duration { return 0 }, job.Completed, 0, time.Second},
	} {
		bubble(t, func(w *world) {
			p, _ := w.expanding("a", w.catalog, 1<<30)
			sha := w.add(p, imageName, packed(t, middling))
			if tt.change != nil {
				w.change(sha, tt.change)
			}
			p.tap.read = func(ctx context.Context, offset int64) error {
				select {
				case <-time.After(tt.each(offset)):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if _, _, err := p.Jobs.RequestDisk(w.t.Context(), sha, imageName); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(w.t.Context())
			if tt.limit > 0 {
				ctx, cancel = context.WithTimeout(w.t.Context(), tt.limit)
			}
			defer cancel()
			began := time.Now()
			_ = p.Handle(ctx, job.Disk.Task(string(sha)).Encode()) // the job has the outcome
			took, j := time.Since(began), w.diskJob(sha)
			if j.Status != tt.status || took < tt.earliest || took > tt.latest {
				t.Errorf("%s: after %v: %+v", tt.name, took, j)
			}
			if j.Status == job.Failed && !strings.Contains(j.Error, "longer than a function at AWS may run") {
				t.Errorf("%s: %s", tt.name, j.Error)
			}
			if made := w.disk(sha) != nil; made != (tt.status == job.Completed) {
				t.Errorf("%s: there is a disk: %v", tt.name, made)
			}
		})
	}
}

// Where clients read disks from the store, the disk in a qcow2 image is an object, too.
func TestDiskOfQCOW2(t *testing.T) {
	need.Programs(t, "qemu-img")
	raw := holed(1)
	dir := t.TempDir()
	disk, guest := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(disk, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", disk, guest).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw = append(raw, make([]byte, -len(raw)&511)...) // a disk has whole sectors
	image, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", w.catalog, 1<<30)
		p.LinkTime, p.Sparse, p.AllDisks = time.Hour, false, true
		sha := w.add(p, imageName, image)
		if err := p.Reconcile(w.t.Context()); err != nil { // which queues it
			t.Fatal(err)
		}
		w.until(p, job.Disk.Task(string(sha)))
		if !bytes.Equal(w.disk(sha), raw) {
			t.Errorf("the disk has %d other bytes: %+v", len(w.disk(sha)), w.diskJob(sha))
		}
		rec := w.known(sha)
		if c, d := rec.Check, rec.Disk; c == nil || c.Verdict != content.Good || c.RawSHA256 != sum256(raw) || d == nil || d.StoredBytes != int64(len(raw)) {
			t.Errorf("%+v, %+v", c, d)
		}
		// A damaged one has no disk.
		bad := append(bytes.Clone(image[:len(image)/2]), make([]byte, 1000)...)
		sha = w.add(p, "bad.img", bad)
		if j := w.expand(p, sha); j.Status != job.Failed || w.disk(sha) != nil || w.known(sha).NoDisk() == "" {
			t.Errorf("%+v, %q", j, w.known(sha).NoDisk())
		}
	})
}

// A disk stays as long as its URLs are valid.
func TestDiskLinked(t *testing.T) {
	bubble(t, func(w *world) {
		const each = 6*mib + 1000
		p, _ := w.expanding("a", w.catalog, each)
		p.LinkTime, p.Sparse = time.Hour, false
		first, second := w.add(p, "1.img", packed(t, holed(1))), w.add(p, "2.img", packed(t, holed(2)))
		if j := w.expand(p, first); j.Status != job.Completed {
			t.Fatalf("%+v", j)
		}
		time.Sleep(69 * time.Minute) // a client may have begun with the last URL nine minutes ago
		if j := w.expand(p, second); j.Status != job.Failed || !strings.Contains(j.Error, "in use") || w.disk(first) == nil {
			t.Errorf("%+v", j)
		}
		time.Sleep(time.Hour) // no URL is valid any more
		if j := w.expand(p, second); j.Status != job.Completed || w.disk(first) != nil {
			t.Errorf("%+v, the first is there: %v", j, w.disk(first) != nil)
		}
		// A disk that is known to be too large is refused before any of it is written.
		p.DisksMax = mib
		third := w.add(p, "3.img", packed(t, middling))
		w.change(third, func(rec *content.Record) { size := int64(len(middling)); rec.VirtualSize = &size })
		if j := w.expand(p, third); j.Status != job.Failed || !strings.Contains(j.Error, "IMAGEROOT_DISKS_MAX") || j.BytesDone != 0 {
			t.Errorf("%+v", j)
		}
	})
}

// Reconcile removes the parts of disks that no job is making.
func TestReconcileParts(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", w.catalog, 1<<30)
		making, gone := w.add(p, imageName, packed(t, middling)), sum256([]byte("gone"))
		if _, _, err := p.Jobs.RequestDisk(w.t.Context(), making, imageName); err != nil {
			t.Fatal(err)
		}
		for _, key := range []store.Key{layout.DiskKey(making), layout.DiskKey(gone), layout.BlobKey(gone)} {
			if _, err := w.catalog.CreateUpload(w.t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		left := func() (keys []store.Key) {
			for u, err := range w.catalog.PendingUploads(w.t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				keys = append(keys, u.Key)
			}
			return keys
		}
		if err := p.Reconcile(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		if keys := left(); len(keys) != 2 {
			t.Errorf("left: %v", keys)
		}
		w.until(p, job.Disk.Task(string(making)))
		if err := p.Reconcile(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		if keys := left(); len(keys) != 1 || keys[0] != layout.BlobKey(gone) {
			t.Errorf("left: %v", keys)
		}
	})
}

// A store that fails anywhere leaves a disk that is right, or none, and no parts.
func TestDiskFaults(t *testing.T) {
	raw := noise(1, 100_000)
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; ; n++ {
			done := false
			bubble(t, func(w *world) {
				s := faultstore.New(w.catalog, faultstore.NthWrite(n, fault))
				p, _ := w.expanding("a", s, 1<<30)
				p.LinkTime, p.Sparse = time.Hour, false
				sha := w.add(p, imageName, packed(t, raw))
				for range 20 {
					if _, _, err := p.Jobs.RequestDisk(w.t.Context(), sha, imageName); err != nil {
						continue // the client asks again
					}
					w.until(p, job.Disk.Task(string(sha)))
					if w.known(sha).Disk != nil {
						break
					}
				}
				if err := p.Reconcile(w.t.Context()); err != nil && !errors.Is(err, faultstore.ErrInjected) {
					t.Error(err)
				}
				if d := w.known(sha).Disk; d == nil || !bytes.Equal(w.disk(sha), raw) {
					t.Fatalf("write %d, %v: %+v, %d bytes, %+v", n, fault, d, len(w.disk(sha)), w.diskJob(sha))
				}
				for u, err := range w.catalog.PendingUploads(w.t.Context(), "") {
					t.Errorf("write %d, %v: left: %+v, %v", n, fault, u, err)
				}
				done = s.Writes() < n
			})
			if done || t.Failed() {
				break
			}
		}
	}
	for seed := range uint64(10) {
		bubble(t, func(w *world) {
			sha := w.add(w.process("setup", w.catalog), imageName, packed(t, raw))
			s := faultstore.New(w.catalog, faultstore.Random(seed, 0.05, faultstore.Before, faultstore.After, faultstore.Late))
			p, _ := w.expanding("a", s, 1<<30)
			p.LinkTime, p.Sparse = time.Hour, false
			for range 100 {
				_, _, _ = p.Jobs.RequestDisk(w.t.Context(), sha, imageName)
				_ = p.Handle(w.t.Context(), job.Disk.Task(string(sha)).Encode()) // the queue redelivers it
				if w.known(sha).Disk != nil {
					break
				}
				time.Sleep(time.Minute) // the message comes again, and the lease of a run has ended
			}
			if w.known(sha).Disk == nil || !bytes.Equal(w.disk(sha), raw) {
				t.Errorf("seed %d: %+v, %d bytes, %+v", seed, w.known(sha).Disk, len(w.disk(sha)), w.diskJob(sha))
			}
		})
	}
}

// A connection to the store that breaks is opened again. If it breaks again and again, the
// job is tried later.
func TestDiskConnection(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", w.catalog, 1<<30)
		sha := w.add(p, imageName, packed(t, middling))
		broken := errors.New("connection reset by peer")
		last := int64(-1)
		p.tap.read = func(_ context.Context, offset int64) error {
			if offset == last {
				return nil
			}
			last = offset
			return broken // once at each offset
		}
		if j := w.expand(p, sha); j.Status != job.Completed || j.Attempt != 1 || !bytes.Equal(w.disk(sha), middling) {
			t.Errorf("%+v", j)
		}
		again := w.add(p, imageName, packed(t, holed(3)))
		repaired := time.Now().Add(time.Minute)
		p.tap.read = func(_ context.Context, offset int64) error {
			if offset > mib && time.Now().Before(repaired) {
				return broken
			}
			return nil
		}
		if j := w.expand(p, again); j.Status != job.Completed || j.Attempt < 2 {
			t.Errorf("%+v", j)
		}
	})
}
