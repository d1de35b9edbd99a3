package hash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/record/recordtest"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/web"
)

const mib = 1 << 20

var (
	imageA = noise(1, 12*mib+12345)
	imageB = noise(2, 10*mib)
	smallA = noise(3, 5000)
	smallB = noise(4, 6000)
)

// bubble runs a test on a fake clock.
func bubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newWorld(t)) })
}

func TestHash(t *testing.T) {
	for _, data := range [][]byte{imageA, smallA, {}} {
		bubble(t, func(w *world) {
			w.put(imageName, data)
			p := w.process("a", w.catalog)
			w.inspect(p, imageName)
			if sent := p.work.take(); len(sent) != 1 || sent[0] != `{"hash":"x.img"}` {
				t.Errorf("queued: %v", sent)
			}
			w.run(p)
			w.hashed(data)
			w.events(activity.ImageHashed)
			if p.tap.bytes != int64(len(data)) {
				t.Errorf("%d bytes read of %d", p.tap.bytes, len(data))
			}
			// A known image is not read again.
			w.inspect(p, imageName)
			w.run(p)
			if sent := p.work.take(); len(sent) != 0 || p.tap.bytes != int64(len(data)) {
				t.Errorf("hashed again: %v, %d bytes", sent, p.tap.bytes)
			}
			w.events(activity.ImageHashed)
		})
	}
}

// A fresh object is not hashed: it may still be written.
func TestSettle(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.process("a", w.catalog)
		if _, err := w.images.Put(w.t.Context(), imageName, bytes.NewReader(smallA), -1); err != nil {
			t.Fatal(err)
		}
		err := p.Handle(w.t.Context(), queue.InspectImage(imageName).Encode())
		if retry, ok := errors.AsType[*queue.Retry](err); !ok || !retry.Free || retry.After <= 0 || retry.After > Settle {
			t.Errorf("a fresh object: %v", err)
		}
		w.inspect(p, imageName)
		w.run(p)
		w.hashed(smallA)
	})
}

// slowly reads a mebibyte in two seconds.
func slowly(ctx context.Context, _ int64) error {
	select {
	case <-time.After(2 * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// After a shutdown, a hash resumes at the same byte, or begins again if the image was
// replaced meanwhile.
func TestShutdown(t *testing.T) {
	for _, changed := range []bool{false, true} {
		bubble(t, func(w *world) {
			w.put(imageName, imageA)
			a := w.process("a", w.catalog)
			a.tap.read = slowly
			w.inspect(a, imageName)
			ctx, shutdown := context.WithTimeout(w.t.Context(), 12500*time.Millisecond)
			defer shutdown()
			if err := a.Handle(ctx, job.Hash.Task(imageName).Encode()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("shut down: %v", err)
			}
			if j := w.job(); j.Status != job.Queued || j.BytesDone != a.tap.bytes || a.tap.bytes != 6*mib || w.record() != nil {
				t.Errorf("after a shutdown at %d bytes: %+v", a.tap.bytes, j)
			}
			data, want := imageA, int64(len(imageA))-a.tap.bytes
			if changed {
				w.put(imageName, imageB)
				data, want = imageB, int64(len(imageB))
			}
			b := w.process("b", w.catalog)
			w.inspect(b, imageName)
			w.run(b)
			w.hashed(data)
			if b.tap.bytes != want {
				t.Errorf("changed %v: %d bytes read, want %d", changed, b.tap.bytes, want)
			}
		})
	}
}

// A kill costs the bytes read in the last ten seconds at most.
func TestKill(t *testing.T) {
	for _, at := range []time.Duration{3 * time.Second, 9900 * time.Millisecond, 17 * time.Second, 23 * time.Second} {
		bubble(t, func(w *world) {
			w.put(imageName, imageA)
			z := &freezer{Root: w.catalog, hit: make(chan struct{}), thaw: make(chan struct{})}
			a := w.process("a", z)
			a.tap.read = slowly
			w.inspect(a, imageName)
			done := make(chan error, 1)
			go func() { done <- a.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) }()
			time.Sleep(at)
			go z.wait(true) // its writes no longer arrive
			synctest.Wait()
			a.tap.mu.Lock()
			read := a.tap.bytes
			a.tap.mu.Unlock()

			b := w.process("b", w.catalog)
			began := time.Now()
			w.run(b)
			w.hashed(imageA)
			if waited := time.Since(began); waited > 35*time.Second {
				t.Errorf("taken over after %v", waited)
			}
			if lost := read + b.tap.bytes - int64(len(imageA)); lost < 0 || lost > 5*mib {
				t.Errorf("killed after %d bytes: %d bytes were read twice", read, lost)
			}
			w.events(activity.ImageHashed)
			// The frozen process resumes, and changes nothing.
			before := w.record().Nonce
			close(z.thaw)
			<-done
			w.hashed(imageA)
			if w.record().Nonce != before {
				t.Error("the first owner wrote the record again")
			}
			w.events(activity.ImageHashed)
		})
	}
}

// TestReplacedWhileRead never records the digest of one version as another's.
func TestReplacedWhileRead(t *testing.T) {
	for _, at := range []int64{0, 5 * mib, 12 * mib} {
		bubble(t, func(w *world) {
			w.put(imageName, imageA)
			p := w.process("a", w.catalog)
			replaced := false
			p.tap.read = func(_ context.Context, offset int64) error {
				if !replaced && offset >= at {
					replaced = true
					w.put(imageName, imageB)
				}
				return nil
			}
			w.inspect(p, imageName)
			err := p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode())
			if retry, ok := errors.AsType[*queue.Retry](err); !ok || retry.After != Settle {
				t.Errorf("replaced at %d: %v", at, err)
			}
			if rec := w.record(); rec != nil {
				t.Errorf("replaced at %d: recorded %+v", at, rec)
			}
			w.run(p)
			w.hashed(imageB)
		})
	}
}

// An upload whose digest was computed as it arrived ends the job that reads it.
func TestHashedByAnother(t *testing.T) {
	bubble(t, func(w *world) {
		v := w.put(imageName, imageA)
		p := w.process("a", w.catalog)
		p.tap.read = slowly
		w.inspect(p, imageName)
		done := make(chan error, 1)
		go func() { done <- p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) }()
		time.Sleep(5 * time.Second)
		_, _, err := record.Change(w.t.Context(), w.catalog, layout.DigestKey(imageName), func(r *digest.Record, _ bool) error {
			*r = digest.Record{Name: imageName, Version: v, SHA256: sum256(imageA), By: digest.ByUpload}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w.inspect(w.process("b", w.catalog), imageName)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if j := w.job(); j.Status != job.Completed || j.SHA256 != sum256(imageA) || p.tap.bytes > 4*mib || w.record().By != digest.ByUpload {
			t.Errorf("the job is %+v after %d bytes", j, p.tap.bytes)
		}
		w.events() // the upload has an event of its own
	})
}

func TestDeletedMeanwhile(t *testing.T) {
	for _, after := range []time.Duration{0, 5 * time.Second} {
		bubble(t, func(w *world) {
			w.put(imageName, imageA)
			p := w.process("a", w.catalog)
			p.tap.read = slowly
			w.inspect(p, imageName)
			done := make(chan error, 1)
			if after > 0 {
				go func() { done <- p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) }()
				time.Sleep(after)
			}
			if err := w.images.Delete(w.t.Context(), imageName); err != nil {
				t.Fatal(err)
			}
			if after == 0 {
				done <- p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode())
			}
			w.inspect(w.process("b", w.catalog), imageName)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if j := w.job(); j.Status.Active() || j.Status == job.Completed || w.record() != nil {
				t.Errorf("deleted after %v: the job is %s: %s; the record is %+v", after, j.Status, j.Error, w.record())
			}
		})
	}
}

// A blocked read ends soon after the job is cancelled.
func TestCancel(t *testing.T) {
	bubble(t, func(w *world) {
		w.put(imageName, imageA)
		p := w.process("a", w.catalog)
		p.tap.read = func(ctx context.Context, offset int64) error {
			if offset < 3*mib {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		w.inspect(p, imageName)
		done := make(chan error, 1)
		go func() { done <- p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) }()
		time.Sleep(time.Minute)
		began := time.Now()
		page := w.process("page", w.catalog)
		h := web.Handler(web.Config{Auth: allowAll{}, Metric: page.Metric, Log: page.Log}, page.Routes())
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodDelete, "/catalog/hashes/x.img", nil))
		if err := <-done; err != nil || rec.Code != http.StatusNoContent {
			t.Errorf("cancel: %d %s, %v", rec.Code, rec.Body, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if j := w.job(); j.Status != job.Cancelled || w.record() != nil {
			t.Errorf("the job is %s", j.Status)
		}
		// It stays cancelled until an operator queues it again.
		p.tap.read = nil
		w.inspect(p, imageName)
		if j := w.job(); j.Status != job.Cancelled {
			t.Errorf("an inspection made a cancelled job %s", j.Status)
		}
		rec = httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/catalog/hashes", strings.NewReader(`{"name": "x.img"}`))
		if h.ServeHTTP(rec, r); rec.Code != http.StatusAccepted {
			t.Errorf("asked again: %d %s", rec.Code, rec.Body)
		}
		w.run(p)
		w.hashed(imageA)
	})
}

type allowAll struct{}

func (allowAll) Authenticate(*http.Request) (web.Caller, error) {
	return web.Caller{Access: web.Admin}, nil
}

func TestRace(t *testing.T) {
	bubble(t, func(w *world) {
		w.put(imageName, imageA)
		const runners = 4
		errs := make(chan error)
		var all []*process
		for i := range runners {
			p := w.process(fmt.Sprint(i), w.catalog)
			all = append(all, p)
			w.inspect(p, imageName)
		}
		for _, p := range all {
			go func() { errs <- p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) }()
		}
		var read int64
		for range runners {
			err := <-errs
			if _, ok := errors.AsType[*queue.Retry](err); err != nil && !ok {
				t.Error(err)
			}
		}
		for _, p := range all {
			read += p.tap.bytes
		}
		if read != int64(len(imageA)) {
			t.Errorf("%d bytes were read of %d", read, len(imageA))
		}
		w.hashed(imageA)
		w.events(activity.ImageHashed)
	})
}

// TestDamagedCheckpoint changes the checkpoint: the hash begins again.
func TestDamagedCheckpoint(t *testing.T) {
	good := digest.New(false)
	_, _ = good.Write(imageA[:3*mib]) // never fails
	longer := digest.New(false)
	_, _ = longer.Write(make([]byte, len(imageA)+1))
	for name, change := range map[string]func(cp *checkpoint) any{
		"good":            func(cp *checkpoint) any { return cp },
		"nothing":         func(*checkpoint) any { return nil },
		"a string":        func(*checkpoint) any { return "nonsense" },
		"empty":           func(*checkpoint) any { return struct{}{} },
		"another version": func(cp *checkpoint) any { cp.Version.Size++; return cp },
		"another offset":  func(cp *checkpoint) any { cp.State.Offset = 4 * mib; return cp },
		"a damaged hash":  func(cp *checkpoint) any { cp.State.SHA256[50] ^= 1; return cp },
		"beyond the end":  func(cp *checkpoint) any { cp.State = longer.State(); return cp },
	} {
		bubble(t, func(w *world) {
			v := w.put(imageName, imageA)
			p := w.process("a", w.catalog)
			w.inspect(p, imageName)
			_, _, err := record.Change(w.t.Context(), w.catalog, layout.HashJobKey(imageName), func(j *job.Job, _ bool) (err error) {
				j.Checkpoint, err = json.Marshal(change(&checkpoint{Version: v, State: good.State()}))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			w.run(p)
			w.hashed(imageA)
			want := int64(len(imageA))
			if name == "good" {
				want -= 3 * mib
			}
			if p.tap.bytes != want {
				t.Errorf("%s: %d bytes read, want %d", name, p.tap.bytes, want)
			}
		})
	}
}

// TestFrozenOwner stops a process at each of its writes, before and after the write
// takes effect. Another one claims the job, and then the first resumes.
func TestFrozenOwner(t *testing.T) {
	const most = 12
	reached := 0
	for at := 1; at <= most; at++ {
		for _, late := range []bool{false, true} {
			for _, changed := range []bool{false, true} {
				bubble(t, func(w *world) {
					w.put(imageName, smallA)
					w.inspect(w.process("inspector", w.catalog), imageName)
					z := &freezer{Root: w.catalog, at: at, after: late, hit: make(chan struct{}), thaw: make(chan struct{})}
					first := w.process("first", z)
					done := make(chan error, 1)
					go func() { done <- first.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) }()
					synctest.Wait()
					select {
					case <-z.hit:
						reached = max(reached, at)
					default:
						return // the hash has ended
					}
					data := smallA
					if changed {
						data = smallB
						w.put(imageName, smallB)
					}
					time.Sleep(time.Minute) // the lease lapses
					second := w.process("second", w.catalog)
					w.inspect(second, imageName)
					w.run(second)
					w.hashed(data)
					close(z.thaw)
					<-done
					w.hashed(data)
					if t.Failed() {
						t.Fatalf("at write %d, after %v, changed %v", at, late, changed)
					}
				})
			}
		}
	}
	if reached < 4 || reached == most {
		t.Errorf("a hash of %d writes", reached)
	}
}

// TestFaultAtEveryWrite fails each write once, in each way.
func TestFaultAtEveryWrite(t *testing.T) {
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for _, plain := range []bool{false, true} {
			for n := 1; ; n++ {
				done := false
				bubble(t, func(w *world) {
					w.put(imageName, smallA)
					w.put(imageName+".sha256", []byte(sum256(smallA)))
					s := faultstore.New(w.catalog, faultstore.NthWrite(n, fault))
					s.Plain = plain
					p := w.process("a", s)
					w.inspect(p, imageName)
					w.run(p)
					w.inspect(p, imageName)
					w.hashed(smallA)
					if rec := w.record(); len(rec.Publishers) != 1 || !rec.Publishers[0].Match {
						t.Errorf("the checksum file: %+v", rec.Publishers)
					}
					done = s.Writes() < n
				})
				if t.Failed() {
					t.Fatalf("write %d failed %s, plain %v", n, fault, plain)
				}
				if done {
					if n < 7 {
						t.Errorf("a hash of %d writes", n-1)
					}
					break
				}
			}
		}
	}
}

// If the store fails, a job is redelivered after the wait that its work returned,
// and counts as a failure only if it made no progress.
func TestComesBackLater(t *testing.T) {
	bubble(t, func(w *world) {
		w.put(imageName, imageA)
		p := w.process("a", w.catalog)
		p.tap.read = func(_ context.Context, offset int64) error {
			if offset >= 3*mib {
				return errors.New("out of reach")
			}
			return nil
		}
		w.inspect(p, imageName)
		for i, free := range []bool{true, false} {
			err := p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode())
			if retry, ok := errors.AsType[*queue.Retry](err); !ok || retry.After != 5*time.Second || retry.Free != free {
				t.Errorf("run %d: %v, %+v", i, err, retry)
			}
		}
	})
}

// Random failures of the store only make a hash slower.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(20) {
		bubble(t, func(w *world) {
			w.put(imageName, smallA)
			s := faultstore.New(w.catalog, faultstore.Random(seed, 0.1, faultstore.Before, faultstore.After, faultstore.Late))
			p := w.process("a", s)
			f := faultstore.New(w.images, faultstore.Random(seed+100, 0.1, faultstore.Before))
			p.tap.Root = f
			w.inspect(p, imageName)
			w.run(p)
			w.hashed(smallA)
		})
	}
}

// An image that cannot be read, such as one on a bad sector, fails its job after a
// day. Reconciling queues it again a day later.
func TestFailsAfterADay(t *testing.T) {
	bubble(t, func(w *world) {
		w.put(imageName, imageA)
		p := w.process("a", w.catalog)
		bad := errors.New("input/output error")
		p.tap.read = func(_ context.Context, offset int64) error {
			if offset >= 3*mib {
				return bad
			}
			return nil
		}
		w.inspect(p, imageName)
		began := time.Now()
		for w.job().Status == job.Queued {
			_ = p.Handle(w.t.Context(), job.Hash.Task(imageName).Encode()) // the queue would redeliver it
			time.Sleep(time.Minute)
		}
		j, took := w.job(), time.Since(began)
		if j.Status != job.Failed || !strings.Contains(j.Error, bad.Error()) || took < 24*time.Hour || took > 25*time.Hour {
			t.Errorf("after %v: %+v", took, j)
		}
		w.events(activity.ImageHashFailed)

		w.inspect(p, imageName)
		if j := w.job(); j.Status != job.Failed {
			t.Errorf("inspected when it has just failed: %+v", j)
		}
		p.tap.read = nil
		time.Sleep(25 * time.Hour)
		w.until(p, queue.Reconcile{})
		if sent := p.inspections.take(); !slices.Equal(sent, []string{`{"image":"` + imageName + `"}`}) {
			t.Errorf("reconciling queues %v", sent)
		}
		w.inspect(p, imageName)
		w.run(p)
		w.hashed(imageA)
	})
}

// A damaged digest record is removed if there is no image of its name.
func TestDamagedDigests(t *testing.T) {
	bubble(t, func(w *world) {
		w.put(imageName, smallA)
		for _, name := range []string{imageName, "gone.img"} {
			if _, err := w.catalog.CreateRecord(w.t.Context(), layout.DigestKey(image.Name(name)), []byte("{")); err != nil {
				t.Fatal(err)
			}
		}
		p := w.process("a", w.catalog)
		w.until(p, queue.Reconcile{})
		inspections := []string{`{"image":"gone.img"}`, `{"image":"` + imageName + `"}`}
		if sent := p.inspections.take(); !slices.Equal(sent, inspections) {
			t.Errorf("reconciling queues %v", sent)
		}
		w.inspect(p, imageName)
		w.inspect(p, "gone.img")
		w.run(p)
		w.hashed(smallA)
		if _, _, err := w.catalog.ReadRecord(w.t.Context(), layout.DigestKey("gone.img")); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the damaged record of an image that is gone: %v", err)
		}
	})
}

func TestChecksumFiles(t *testing.T) {
	other := noise(9, 10)
	for _, tt := range []struct {
		name     string
		files    map[string]string // by suffix
		verdicts []string
		has512   bool
	}{
		{"none", nil, nil, false},
		{"right", map[string]string{".sha256": string(sum256(smallA) + "  x.img\n")}, []string{"sha256 true"}, false},
		{"bare", map[string]string{".sha256": string(sum256(smallA))}, []string{"sha256 true"}, false},
		{"wrong", map[string]string{".sha256": string(sum256(other) + "  x.img\n")}, []string{"sha256 false"}, false},
		{"SHA-512", map[string]string{".sha512": sum512(smallA) + "  x.img\n"}, []string{"sha512 true"}, true},
		{"wrong SHA-512", map[string]string{".sha512": sum512(other) + "  x.img\n"}, []string{"sha512 false"}, true},
		{"both", map[string]string{".sha256": string(sum256(smallA)), ".sha512": sum512(other)}, []string{"sha256 true", "sha512 false"}, true},
		{"SHA-512 in the other's place", map[string]string{".sha256": sum512(smallA)}, []string{"sha512 true"}, true},
		{"of another algorithm", map[string]string{".sha256": string("SHA3-256 (x.img) = " + sum256(smallA) + "\n")}, []string{"sha256 error"}, false},
		{"with a directory of the build", map[string]string{".sha256": string(sum256(smallA) + "  build/out/x.img\n")}, []string{"sha256 true"}, false},
		{"with a prefix", map[string]string{".sha256": string("sha256:" + sum256(smallA) + "\n")}, []string{"sha256 true"}, false},
		{"of another file", map[string]string{".sha256": string(sum256(smallA) + "  y.img\n")}, []string{"sha256 error"}, false},
		{"nonsense", map[string]string{".sha256": "nonsense\n"}, []string{"sha256 error"}, false},
	} {
		// The files exist before the image is hashed, or are created after an
		// upload has recorded its digest. Then they are removed.
		for _, late := range []bool{false, true} {
			bubble(t, func(w *world) {
				p := w.process("a", w.catalog)
				v := w.put(imageName, smallA)
				if late {
					_, _, err := record.Change(w.t.Context(), w.catalog, layout.DigestKey(imageName), func(r *digest.Record, _ bool) error {
						*r = digest.Record{Meta: r.Meta, Name: imageName, Version: v, SHA256: sum256(smallA), By: digest.ByUpload}
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
				}
				for suffix, text := range tt.files {
					w.put(image.Name(imageName+suffix), []byte(text))
				}
				w.inspect(p, imageName)
				for suffix := range tt.files {
					w.inspect(p, image.Name(imageName+suffix))
				}
				if len(p.work.take()) > 0 {
					w.run(p)
				}
				rec := w.record()
				if rec == nil || rec.SHA256 != sum256(smallA) || (rec.SHA512 != "") != tt.has512 || tt.has512 && rec.SHA512 != sum512(smallA) {
					t.Fatalf("%s, late %v: the record is %+v", tt.name, late, rec)
				}
				var got []string
				for _, pub := range rec.Publishers {
					verdict := fmt.Sprintf("%s %v", pub.Algorithm, pub.Match)
					if pub.Error != "" {
						verdict = pub.Algorithm + " error"
					}
					got = append(got, verdict)
					if (pub.Warning(imageName, "") == "") != strings.HasSuffix(verdict, "true") {
						t.Errorf("%s: the warning of %s is %q", tt.name, verdict, pub.Warning(imageName, ""))
					}
				}
				if !slices.Equal(got, tt.verdicts) {
					t.Errorf("%s, late %v: %v, want %v", tt.name, late, got, tt.verdicts)
				}
				for suffix := range tt.files {
					if err := w.images.Delete(w.t.Context(), store.Key(imageName+suffix)); err != nil {
						t.Fatal(err)
					}
					w.inspect(p, image.Name(imageName+suffix))
				}
				if rec := w.record(); len(rec.Publishers) != 0 || rec.SHA256 != sum256(smallA) {
					t.Errorf("%s: without them the record is %+v", tt.name, rec)
				}
				w.honest()
			})
		}
	}
}

// An inspection that has found no digest does not hash an image again that another process has hashed meanwhile.
func TestHashedMeanwhile(t *testing.T) {
	bubble(t, func(w *world) {
		q := w.process("b", w.catalog)
		w.put(imageName, smallA)
		w.inspect(q, imageName)
		hashed := false
		p := w.process("a", faultstore.New(w.catalog, func(c faultstore.Call) faultstore.Fault {
			if c.Op == "ReadRecord" && c.Key == layout.HashJobKey(imageName) && !hashed {
				hashed = true
				w.run(q)
			}
			return faultstore.None
		}))
		w.inspect(p, imageName)
		if j := w.job(); !hashed || j.Status != job.Completed || len(p.work.take()) > 0 {
			t.Errorf("hashed: %v, the job is %+v", hashed, j)
		}
	})
}

// An inspection that has read a sidecar before it changed does not replace the verdict of another one that has read
// it afterwards.
func TestChecksumFileChangesMeanwhile(t *testing.T) {
	bubble(t, func(w *world) {
		p, q := w.process("a", w.catalog), w.process("b", w.catalog)
		const sidecar = imageName + ".sha256"
		says := func(data []byte) { w.put(sidecar, []byte(sum256(data))) }
		w.put(imageName, smallA)
		w.inspect(p, imageName)
		w.run(p)
		says(noise(9, 10))
		changed := false
		p.Images = faultstore.New(p.tap, func(c faultstore.Call) faultstore.Fault {
			if c.Op == "Get" && c.Key == imageName+".sha512" && !changed { // which is read behind the other one
				changed = true
				says(smallA)
				w.inspect(q, sidecar)
			}
			return faultstore.None
		})
		w.inspect(p, sidecar)
		if rec := w.record(); !changed || len(rec.Publishers) != 1 || !rec.Publishers[0].Match {
			t.Errorf("changed: %v, the record is %+v", changed, rec)
		}
	})
}

// A sidecar applies to the image whose name looks the same, in either Unicode form.
func TestChecksumFileComposedOtherwise(t *testing.T) {
	for _, names := range [][2]string{{"\u00fc.img", "u\u0308.img"}, {"u\u0308.img", "\u00fc.img"}} {
		bubble(t, func(w *world) {
			p := w.process("a", w.catalog)
			w.put(image.Name(names[0]), smallA)
			w.inspect(p, image.Name(names[0]))
			w.until(p, job.Hash.Task(names[0]))
			w.put(image.Name(names[1]+".sha256"), []byte(string(sum256(smallA)+"  ")+names[1]+"\n"))
			w.inspect(p, image.Name(names[1]+".sha256"))
			rec, _, err := record.Read[digest.Record](w.t.Context(), w.catalog, layout.DigestKey(image.Name(names[0])))
			if err != nil || len(rec.Publishers) != 1 || !rec.Publishers[0].Match {
				t.Errorf("%+q beside %+q: %+v, %v", names[1], names[0], rec, err)
			}
			if unsettled, err := p.Inventory.Unsettled(w.t.Context()); err != nil || len(unsettled) > 0 {
				t.Errorf("%q are unsettled, %v", unsettled, err)
			}
		})
	}
}

// A job is queued and cancelled by any spelling of the image's name.
func TestJobSpelledOtherwise(t *testing.T) {
	bubble(t, func(w *world) {
		const there, asked = "u\u0308.img", "\u00fc.img"
		p := w.process("a", w.catalog)
		w.put(there, smallA)
		if code := w.ask(p, "POST", "/catalog/hashes", `{"name": "`+asked+`"}`); code != http.StatusAccepted {
			t.Errorf("asked for: %d", code)
		}
		if code := w.ask(p, "DELETE", "/catalog/hashes/"+url.PathEscape(asked), ""); code != http.StatusNoContent {
			t.Errorf("cancelled: %d", code)
		}
		j, _, err := record.Read[job.Job](w.t.Context(), w.catalog, layout.HashJobKey(there))
		if err != nil || j.Name != there || j.Status != job.Cancelled {
			t.Errorf("the job: %+v, %v", j, err)
		}
	})
}

// A job that waits for the workers of one process runs at once in another process
// that receives the request for it.
func TestQueuedElsewhere(t *testing.T) {
	bubble(t, func(w *world) {
		w.put(imageName, smallA)
		for _, owner := range []string{"busy", "free"} {
			p := w.process(owner, w.catalog)
			if code := w.ask(p, "POST", "/catalog/hashes", `{"name": "`+imageName+`"}`); code != http.StatusAccepted {
				t.Errorf("asked for: %d", code)
			}
			if tasks := p.work.take(); len(tasks) != 1 {
				t.Errorf("the %s process has the tasks %v", owner, tasks)
			}
		}
	})
}

func TestReconcile(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.process("a", w.catalog)
		for _, name := range []string{"hashed.img", "changed.img", "gone.img", "unhashed.img", "no image.txt"} {
			v := w.put(image.Name(name), []byte(name))
			if name == "unhashed.img" || name == "no image.txt" {
				continue
			}
			_, _, err := record.Change(w.t.Context(), w.catalog, layout.DigestKey(image.Name(name)), func(r *digest.Record, _ bool) error {
				*r = digest.Record{Meta: r.Meta, Name: image.Name(name), Version: v, SHA256: sum256([]byte(name)), By: digest.ByHash}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		w.put("changed.img", []byte("by somebody"))
		if err := w.images.Delete(w.t.Context(), "gone.img"); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-30 * 24 * time.Hour)
		for name, set := range map[string]func(j *job.Job){
			"queued.img":  func(j *job.Job) { j.Status = job.Queued },
			"dead.img":    func(j *job.Job) { j.Status, j.LeaseUntil = job.Running, time.Now().Add(-time.Second) },
			"running.img": func(j *job.Job) { j.Status, j.LeaseUntil = job.Running, time.Now().Add(20*time.Second) },
			"done.img":    func(j *job.Job) { j.Status, j.FinishedAt = job.Completed, new(time.Now()) },
			"old.img":     func(j *job.Job) { j.Status, j.FinishedAt = job.Failed, &old },
		} {
			_, _, err := record.Change(w.t.Context(), w.catalog, layout.HashJobKey(image.Name(name)), func(j *job.Job, _ bool) error {
				j.Name, j.Generation = image.Name(name), 1
				set(j)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		w.until(p, queue.Reconcile{})
		inspections := []string{string(`{"content":"` + sum256([]byte("hashed.img")) + `"}`), `{"image":"changed.img"}`, `{"image":"gone.img"}`, `{"image":"unhashed.img"}`}
		if got := p.inspections.take(); !slices.Equal(got, inspections) {
			t.Errorf("inspections: %v, want %v", got, inspections)
		}
		work := []string{`{"hash":"dead.img"}`, `{"hash":"queued.img"}`, `{"hash":"running.img"} in 20s`}
		if got := p.work.take(); !slices.Equal(got, work) {
			t.Errorf("work: %v, want %v", got, work)
		}
		for name, want := range map[string]bool{"done.img": true, "old.img": false} {
			if _, _, err := w.catalog.ReadRecord(w.t.Context(), layout.HashJobKey(image.Name(name))); (err == nil) != want {
				t.Errorf("the job of %s: %v", name, err)
			}
		}
		// Two inspections do the work once.
		for range 2 {
			w.inspect(p, "unhashed.img")
		}
		j, _, err := record.Read[job.Job](w.t.Context(), w.catalog, layout.HashJobKey("unhashed.img"))
		if err != nil || j.Status != job.Queued || j.Generation != 1 {
			t.Errorf("looked at twice: %+v, %v", j, err)
		}
		w.inspect(p, "gone.img")
		if _, _, err := w.catalog.ReadRecord(w.t.Context(), layout.DigestKey("gone.img")); err == nil {
			t.Error("a digest outlives its image")
		}
	})
}

// A request or task that finds a record of a newer version changes no other record.
func TestNewerRecords(t *testing.T) {
	for what, tt := range map[string]struct {
		key    func(sha256 layout.SHA256) store.Key
		before func(w *world, sha256 layout.SHA256) // prepares the other records, one of which do might change
		do     func(w *world, p *process)
	}{
		"deleted, with a newer digest": {
			func(layout.SHA256) store.Key { return layout.DigestKey(imageName) },
			func(w *world, _ layout.SHA256) {
				w.enqueueHash()
				if err := w.images.Delete(w.t.Context(), imageName); err != nil {
					w.t.Fatal(err)
				}
			},
			func(w *world, p *process) { w.inspect(p, imageName) },
		},
		"hash asked for, with a newer digest": {
			func(layout.SHA256) store.Key { return layout.DigestKey(imageName) },
			func(w *world, _ layout.SHA256) { w.put(imageName, smallA) },
			func(w *world, p *process) { w.refuses(p, "POST", "/catalog/hashes", `{"name": "`+imageName+`"}`) },
		},
		"check asked for, with a newer check job": {
			layout.CheckJobKey, (*world).checkCancelled,
			func(w *world, p *process) { w.refuses(p, "POST", "/catalog/hashes", `{"name": "`+imageName+`"}`) },
		},
		"check asked for, with a newer content": {
			layout.ContentKey, (*world).checkCancelled,
			func(w *world, p *process) { w.refuses(p, "POST", "/catalog/hashes", `{"name": "`+imageName+`"}`) },
		},
		"check cancelled, with a newer hash job": {
			func(layout.SHA256) store.Key { return layout.HashJobKey(imageName) },
			func(*world, layout.SHA256) {},
			func(w *world, p *process) { w.refuses(p, "DELETE", "/catalog/hashes/"+imageName, "") },
		},
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(w *world) {
				p, _ := w.checking("a", w.catalog)
				sha := w.hashAndInspect(p, packed(t, smallA))
				tt.before(w, sha)
				recordtest.Refused(w.t, w.catalog, tt.key(sha), func() { tt.do(w, p) })
			})
		})
	}
}

// enqueueHash requests the hash of the image again.
func (w *world) enqueueHash() {
	w.t.Helper()
	jobs := &job.Jobs{Records: w.catalog, Now: time.Now}
	if _, _, err := jobs.Enqueue(w.t.Context(), layout.HashJobKey(imageName), func(job.Job) bool { return false }, func(j *job.Job) { j.Name = imageName }); err != nil {
		w.t.Fatal(err)
	}
}

// checkCancelled cancels the check of the image.
func (w *world) checkCancelled(sha256 layout.SHA256) {
	w.t.Helper()
	p, _ := w.checking("page", w.catalog)
	if code := w.ask(p, "DELETE", "/catalog/hashes/"+imageName, ""); code != http.StatusNoContent || w.checkJob(sha256).Status != job.Cancelled {
		w.t.Fatalf("cancelled: %d", code)
	}
}

// refuses sends a request that p refuses because of a newer record.
func (w *world) refuses(p *process, method, target, body string) {
	w.t.Helper()
	if _, err := w.send(p, method, target, body); !errors.Is(err, record.ErrNewer) {
		w.t.Errorf("%s %s: %v", method, target, err)
	}
}
