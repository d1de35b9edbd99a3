package hash

import (
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"slices"
	"testing"

	"imageroot/shared/incus"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store/faultstore"
)

// emptyQCOW2 returns a qcow2 image with a disk of zeros and, behind its tables, bytes that
// nothing refers to.
func emptyQCOW2() []byte {
	b := make([]byte, 4*mib)
	copy(b[2*mib:], middling)
	copy(b, "QFI\xfb\x00\x00\x00\x02")
	binary.BigEndian.PutUint32(b[20:], 16)    // cluster bits
	binary.BigEndian.PutUint64(b[24:], mib)   // disk
	binary.BigEndian.PutUint32(b[36:], 1)     // entries of the L1 table
	binary.BigEndian.PutUint64(b[40:], 1<<16) // L1 table
	binary.BigEndian.PutUint64(b[48:], 2<<16) // refcount table
	binary.BigEndian.PutUint32(b[56:], 1)     // clusters of the refcount table
	binary.BigEndian.PutUint64(b[2<<16:], 3<<16)
	return b
}

// say has the operator say the architecture of a content.
func (w *world) say(p *process, sha256 layout.SHA256, architecture string) {
	w.t.Helper()
	_, _, err := record.Change(w.t.Context(), p.Catalog, layout.MetadataKey(sha256), func(rec *metadata.Record, _ bool) error {
		rec.SHA256, rec.Architecture = sha256, architecture
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// fingerprinted reports an error unless the record has the fingerprint of data with the
// tarball of another SHA-256 than not.
func (w *world) fingerprinted(data []byte, not layout.SHA256) layout.SHA256 {
	w.t.Helper()
	got := w.known(sum256(data)).Fingerprint
	if got == nil || got.GivenUp || got.Metadata == not || got.SHA256 != sum256(slices.Concat(incus.Find(got.Metadata).Bytes, data)) {
		w.t.Fatalf("the fingerprint is %+v", got)
	}
	return got.Metadata
}

// A check computes the fingerprint once the architecture is known, and again if that changes.
func TestFingerprint(t *testing.T) {
	bubble(t, func(w *world) {
		p, checks := w.checking("a", w.catalog)
		data := emptyQCOW2()
		sha := w.hashAndInspect(p, data)
		task := job.Check.Task(string(sha))
		w.until(p, task)
		checks.take()
		w.until(p, queue.Reconcile{})
		if got, sent := w.known(sha).Fingerprint, checks.take(); got != nil || len(sent) > 0 {
			t.Errorf("without an architecture: %+v, queued %v", got, sent)
		}
		last := layout.SHA256("")
		for _, architecture := range []string{"amd64", "arm64"} {
			w.say(p, sha, architecture)
			w.until(p, queue.Reconcile{})
			if len(checks.take()) == 0 {
				t.Errorf("%s: nothing was queued", architecture)
			}
			w.until(p, task)
			w.until(p, task) // delivered twice
			last = w.fingerprinted(data, last)
			q, again := w.checking("b", w.catalog) // the next start
			w.until(q, queue.Reconcile{})
			if sent := append(checks.take(), again.take()...); len(sent) > 0 {
				t.Errorf("%s: queued again: %v", architecture, sent)
			}
		}
		w.say(p, sha, "riscv64")
		w.until(p, queue.Reconcile{})
		if sent := checks.take(); len(sent) > 0 {
			t.Errorf("queued for an architecture without virtual machines: %v", sent)
		}
	})
}

// A run that is cut off is continued, not begun again.
func TestFingerprintResumes(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		data := emptyQCOW2()
		sha := w.hashAndInspect(p, data)
		w.say(p, sha, "s390x")
		read := p.tap.bytes
		p.tap.read = func(_ context.Context, offset int64) error {
			if offset >= 3*mib {
				p.tap.read = nil
				return errors.New("the connection broke")
			}
			return nil
		}
		w.until(p, job.Check.Task(string(sha)))
		w.fingerprinted(data, "")
		if n := p.tap.bytes - read; n > int64(len(data))+mib {
			t.Errorf("%d bytes were read for %d", n, len(data))
		}
	})
}

// A write that fails anywhere, before or after it took effect, delays a fingerprint only.
func TestFingerprintFaults(t *testing.T) {
	data := emptyQCOW2()
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; ; n++ {
			done := false
			bubble(t, func(w *world) {
				inspector, _ := w.checking("inspector", w.catalog)
				sha := w.hashAndInspect(inspector, data)
				w.say(inspector, sha, "amd64")
				s := faultstore.New(w.catalog, faultstore.NthWrite(n, fault))
				p, _ := w.checking("a", s)
				for range 20 {
					w.until(p, job.Check.Task(string(sha)))
					w.until(p, queue.Reconcile{})
					if !w.checkJob(sha).Status.Active() {
						break
					}
				}
				w.fingerprinted(data, "")
				done = s.Writes() < n
			})
			if done || t.Failed() {
				break
			}
		}
	}
}

// A fingerprint that the operator cancels is computed when the operator asks for it.
func TestFingerprintCancelled(t *testing.T) {
	bubble(t, func(w *world) {
		p, checks := w.checking("a", w.catalog)
		data := emptyQCOW2()
		sha := w.hashAndInspect(p, data)
		task := job.Check.Task(string(sha))
		w.until(p, task)
		w.say(p, sha, "amd64")
		w.until(p, queue.Reconcile{})
		if code := w.ask(p, "DELETE", "/catalog/hashes/"+imageName, ""); code != http.StatusNoContent {
			t.Fatal(code)
		}
		checks.take()
		w.until(p, queue.Reconcile{})
		if sent := checks.take(); len(sent) > 0 || !w.known(sha).Fingerprint.GivenUp || w.checkJob(sha).Status != job.Cancelled {
			t.Errorf("it came back: %v", sent)
		}
		if code := w.ask(p, "POST", "/catalog/hashes", `{"name": "`+imageName+`"}`); code != http.StatusAccepted {
			t.Fatal(code)
		}
		w.until(p, task)
		w.fingerprinted(data, "")
	})
}
