package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imageroot/test/need"
)

// zeros4G is the SHA-256 of 4 GiB of zeros: a sparse file that takes seconds to
// hash, and no disk space.
const (
	zeros4G    = 4 << 30
	zeros4GSum = "8479e43911dc45e89f934fe48d01297e16f51d17aa561d4d1c216b1ae0fcddca"
)

// freeAddr returns a free port of a loopback address. Only the caller may use
// that address: then nothing takes the port before its server, or while the
// server is down.
func freeAddr(t testing.TB, ip string) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// later checks that an answer asks people and programs to try again.
func later(t testing.TB, r *Reply, statuses ...int) problem {
	t.Helper()
	p := r.Problem(t, statuses)
	if after, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || after < 1 {
		t.Errorf("%v: Retry-After is %q", r, r.Header.Get("Retry-After"))
	}
	return p
}

// TestDeepStoreDown stops the S3 server of a runner, and later takes it down
// for a while and starts it again at the same address.
func TestDeepStoreDown(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	addr := freeAddr(t, "127.0.0.5")
	// A's own workers are busy, so that B runs the jobs.
	a := Start(t, Options{Args: []string{"--s3-listen", addr, "--fetch-workers", "1"}})
	b := Start(t, Options{Over: a})
	p := publish(t)
	a.AddEntry(t, p.Stall("/busy.img", content(1, 1<<20), make(chan struct{}, 1)), "").Must(t, http.StatusCreated)
	a.Enqueue(t, downloads, "name", "busy.img").Must(t, http.StatusAccepted)
	a.WaitJob(t, downloads, "busy.img", "running")
	old := content(2, 300_000)
	b.Put(t, "old.img", old)
	image := content(3, aheadBytes+aheadBytes/2)
	during := func(t *testing.T, what string, down, up func(), statuses ...int) {
		t.Helper()
		name := what + ".img"
		src := p.Dammed(t, "/"+name, image, aheadBytes+8<<20)
		b.AddEntry(t, src.URL, "").Must(t, http.StatusCreated)
		b.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
		src.WaitPast(t)
		before := len(src.Asked(0))
		busy, raw := what+"-busy.raw", what+".raw"
		a.dropSparse(t, busy, vast)
		a.WaitJob(t, hashes, busy, "running")
		a.dropSparse(t, raw, zeros4G)
		// B may have found it by itself, and run it already.
		a.WaitJobUntil(t, hashes, raw, "queued or running", func(j job) bool { return j.Status == "queued" || j.Status == "running" })
		b.Enqueue(t, hashes, "name", raw).Must(t, http.StatusAccepted)
		a.WaitJobUntil(t, hashes, raw, "under way", func(j job) bool { return j.Status == "running" && j.BytesHashed > 0 })
		// Uploads whose first half has been sent: of a new image, and over an
		// old one.
		next := make(chan struct{})
		var uploads sync.WaitGroup
		fresh := content(4, 32<<20)
		for _, name := range []string{what + "-new.img", "old.img"} {
			body := &slowReader{rest: fresh, piece: 16 << 20, next: next}
			uploads.Go(func() {
				r, err := b.try(http.MethodPut, imageRoute(name), body, func(r *http.Request) { r.ContentLength = int64(len(fresh)) })
				if err != nil {
					t.Errorf("%s: PUT %s: no answer: %v", what, name, err)
				} else if r.Status != http.StatusCreated {
					later(t, r, http.StatusServiceUnavailable, http.StatusBadGateway)
				}
			})
			body.waitFirst(t)
		}
		u := b.beginUpload(t, what+"-parts.img", int64(len(fresh)))

		down()
		close(next)
		src.Open()
		// The process's threads stop a moment after the signal.
		var ready *Reply
		eventually(t, within, what+": the store is down", func() error {
			if ready = b.get(t, "/readyz"); ready.Status == http.StatusOK {
				return errors.New("B is still ready")
			}
			return nil
		})
		later(t, ready, http.StatusServiceUnavailable)
		b.get(t, "/healthz").Must(t, http.StatusOK)
		// In parallel: each may take as long as its timeout.
		requests := map[string]func() (*Reply, error){
			"image":  func() (*Reply, error) { return b.try(http.MethodGet, "/images/old.img", nil) },
			"upload": func() (*Reply, error) { return b.try(http.MethodPut, "/images/refused.img", bytes.NewReader(fresh)) },
			"delete": func() (*Reply, error) { return b.try(http.MethodDelete, "/images/old.img", nil) },
			"resume": func() (*Reply, error) { return b.try(http.MethodGet, "/uploads/"+u.ID, nil) },
			"events": func() (*Reply, error) { return b.try(http.MethodGet, "/events", nil) },
			"manifest": func() (*Reply, error) {
				return b.try(http.MethodPut, "/catalog.toml", strings.NewReader("version = 1\n"))
			},
			"part": func() (*Reply, error) {
				return b.try(http.MethodPut, b.partPath(u.Parts[0]), bytes.NewReader(u.Parts[0].of(fresh, u.PartSize)))
			},
			"hash": func() (*Reply, error) {
				return b.try(http.MethodPost, "/catalog/hashes", strings.NewReader(`{"name": "old.img"}`), header("Content-Type", "application/json"))
			},
			"entry": func() (*Reply, error) {
				return b.try(http.MethodPost, "/catalog/entries", strings.NewReader(fmt.Sprintf(`{"image_url": %q}`, src.URL+"?again")), header("Content-Type", "application/json"))
			},
		}
		var asked sync.WaitGroup
		begin := time.Now()
		for which, request := range requests {
			asked.Go(func() {
				r, err := request()
				if err != nil {
					t.Errorf("%s: %s: no answer: %v", what, which, err)
					return
				}
				later(t, r, statuses...)
				t.Logf("%s: %s: %d after %v", what, which, r.Status, time.Since(begin).Round(time.Millisecond))
			})
		}
		asked.Wait()
		if rest := 20*time.Second - time.Since(begin); rest > 0 {
			time.Sleep(rest) // the time that it is down
		}
		up()

		eventually(t, within, "B is ready again", func() error {
			r, err := b.try(http.MethodGet, "/readyz", nil)
			if err == nil && r.Status != http.StatusOK {
				err = errors.New(r.String())
			}
			return err
		})
		uploads.Wait()
		for kind, want := range map[string]struct{ name, sum string }{
			downloads: {name, sum(image)}, hashes: {raw, zeros4GSum},
		} {
			if j := a.WaitJob(t, kind, want.name, "completed"); j.SHA256 != want.sum {
				t.Errorf("%s: %+v, want SHA-256 %s", what, j, want.sum)
			}
		}
		src.resumed(t, before)
		for _, part := range u.Parts {
			b.Do(t, http.MethodPut, b.partPath(part), bytes.NewReader(part.of(fresh, u.PartSize))).Must(t, 200)
		}
		if u = b.finish(t, u.ID); u.Status != "completed" || u.SHA256 != sum(fresh) {
			t.Errorf("%s: %+v", what, u)
		}
		switch got := b.get(t, "/images/old.img").Must(t, 200); sum(got.Body) {
		case sum(old), sum(fresh):
		default:
			t.Errorf("%s: the overwritten object is neither the old one nor the new one", what)
		}
		b.Put(t, "old.img", old)
		if r := b.get(t, imageRoute(what+"-new.img")).Must(t, 200, 404); r.Status == 200 && sum(r.Body) != sum(fresh) {
			t.Errorf("%s: the new object is not what was sent", what)
		}
		// B may have taken it over.
		a.Cancel(t, hashes, busy).Must(t, http.StatusNoContent)
		a.WaitJob(t, hashes, busy, "cancelled")
	}
	t.Run("silent", func(t *testing.T) {
		signal := func(sig syscall.Signal) {
			if err := a.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		during(t, "silent", func() { signal(syscall.SIGSTOP) }, func() { signal(syscall.SIGCONT) }, http.StatusServiceUnavailable)
	})
	t.Run("gone", func(t *testing.T) {
		during(t, "gone", func() { a.Kill(t) }, func() { a.start(t) }, http.StatusServiceUnavailable, http.StatusBadGateway)
	})
	for _, r := range b.Rows(t) {
		if r.SHA256 != "" && r.Cached {
			// Some have gigabytes, which are not kept in memory.
			res, err := b.send(t.Context(), http.MethodGet, "/images/"+r.SHA256, nil)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			_, err = io.Copy(h, res.Body)
			_ = res.Body.Close()
			if got := hex.EncodeToString(h.Sum(nil)); err != nil || res.StatusCode != http.StatusOK || got != r.SHA256 {
				t.Errorf("%v: status %d, other bytes (%s) than its digest says: %v", r.Names, res.StatusCode, got, err)
			}
		}
	}
	a.blobs(t)
	a.Cancel(t, downloads, "busy.img")
	b.Stop(t)
}

// smallDisk mounts a file system of that size and returns its directory.
func smallDisk(t testing.TB, mib int) string {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", mib)); err != nil {
		t.Fatalf("mount a file system of %d MiB at %s: %v", mib, dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// readOnly makes dir read-only for accesses by its path until undo is called.
// Open files stay writable.
func readOnly(t testing.TB, dir string) (undo func()) {
	t.Helper()
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("mount %s over itself: %v", dir, err)
	}
	var once sync.Once
	undo = func() {
		once.Do(func() {
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
	}
	t.Cleanup(undo)
	if err := syscall.Mount("", dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatalf("make %s read-only: %v", dir, err)
	}
	return undo
}

// fill takes all space at dir except left bytes, and returns the file that it
// wrote.
func fill(t testing.TB, dir string, left int64) string {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		more := int64(st.Bavail)*st.Bsize - left
		if more <= 0 {
			return path
		}
		if _, err := f.Write(make([]byte, min(more, 1<<20))); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return path
			}
			t.Fatal(err)
		}
	}
}

// usedAgain waits until a directory takes no more disk than before, except for
// a few records.
func usedAgain(t testing.TB, what, dir string, before int64) {
	t.Helper()
	eventually(t, within, what+": no debris", func() error {
		if now := diskUse(t, dir); now > before+2<<20 {
			return fmt.Errorf("%d bytes of disk in use, %d before", now, before)
		}
		return nil
	})
}

func TestDeepDiskFull(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	disk := smallDisk(t, 300)
	s := Start(t, Options{Data: filepath.Join(disk, "data")})
	p := publish(t)
	old := content(1, 1<<20)
	s.Put(t, "old.img", old)
	oldIsThere := func(when string) {
		t.Helper()
		if got := s.get(t, "/images/old.img").Must(t, 200); sum(got.Body) != sum(old) {
			t.Errorf("%s: the old object is not what it was", when)
		}
	}
	before := diskUse(t, s.Data)

	// Refused before a byte is sent.
	huge := filepath.Join(t.TempDir(), "huge.img")
	sparse(t, huge, 400<<20)
	for _, name := range []string{"huge.img", "old.img"} {
		c := s.curl(t, "-T", huge, "-H", "Expect: 100-continue", s.Pages+imageRoute(name))
		later(t, c.Reply(t), http.StatusInsufficientStorage)
		if c.Uploaded > 0 {
			t.Errorf("%d bytes were sent of an upload that does not fit", c.Uploaded)
		}
	}
	later(t, s.DoJSON(t, http.MethodPost, "/uploads", map[string]any{"name": "huge.img", "size_bytes": 400 << 20}), http.StatusInsufficientStorage)
	// Without a length it is detected during the transfer.
	for _, name := range []string{"chunked.img", "old.img"} {
		later(t, s.putChunked(t, name, 320), http.StatusInsufficientStorage)
	}
	oldIsThere("after uploads that did not fit")
	s.get(t, "/images/chunked.img").Problem(t, []int{404})
	s.noHalves(t)
	usedAgain(t, "uploads", s.Data, before)
	s.WaitEvent(t, "image.upload_failed", "chunked.img")

	// The disk needs room for one copy of an upload, also during its assembly.
	s.putChunked(t, "chunked.img", 160).Must(t, http.StatusCreated)
	s.Do(t, http.MethodDelete, "/images/chunked.img", nil).Must(t, http.StatusNoContent)
	big := content(2, 200<<20)
	s.AddEntry(t, p.File("/known.img", big), "").Must(t, http.StatusCreated)
	if j := s.Fetch(t, "known.img"); j.SHA256 != sum(big) {
		t.Errorf("%+v", j)
	}
	s.Do(t, http.MethodDelete, "/catalog/cache/"+sum(big), nil).Must(t, http.StatusNoContent)
	usedAgain(t, "images that were deleted", s.Data, before)

	// A fetch of unknown length that runs out of space.
	s.AddEntry(t, p.Handle("/unknown.img", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = w.Write(big)
			_, _ = w.Write(big)
		}
	}), "").Must(t, http.StatusCreated)
	j := failing(t, s, "unknown.img", "room")
	t.Logf("unknown.img: %s", j.Error)
	usedAgain(t, "unknown.img", s.Data, before)
	s.noHalves(t)

	// Nearly full: images are refused, records are still written.
	keep := content(3, 120<<20)
	s.Put(t, "keep.img", keep)
	ballast := fill(t, disk, 30<<20)
	later(t, s.Do(t, http.MethodPut, "/images/new.img", bytes.NewReader(content(4, 5<<20))), http.StatusInsufficientStorage)
	s.AddEntry(t, p.File("/small.img", content(5, 10<<20)), "").Must(t, http.StatusCreated)
	s.WaitEvent(t, "catalog.entry.added", p.At("/small.img"))
	dropped := content(6, 500_000)
	s.drop(t, "dropped.img", dropped)
	s.WaitHashed(t, "dropped.img", sum(dropped))
	failing(t, s, "small.img", "room")
	s.WaitEvent(t, "image.fetch_failed", "small.img")

	// Full to the last byte, in the middle of a hash.
	s.dropSparse(t, "vast.raw", vast)
	s.WaitJobUntil(t, hashes, "vast.raw", "under way", func(j job) bool { return j.Status == "running" && j.BytesHashed > 0 })
	fill(t, disk, 0)
	if rows := s.Rows(t); len(rows) < 4 {
		t.Errorf("rows %+v", rows)
	}
	s.get(t, "/images").Must(t, 200)
	s.get(t, "/events").Must(t, 200)
	s.get(t, "/readyz").Must(t, 200)
	oldIsThere("on a full disk")
	later(t, s.Do(t, http.MethodPut, "/images/new.img", bytes.NewReader(content(4, 5<<20))), http.StatusInsufficientStorage)
	later(t, s.Do(t, http.MethodPut, "/images/new.img", bytes.NewReader(content(4, 100))), http.StatusInsufficientStorage)
	later(t, s.Enqueue(t, downloads, "name", "small.img"), http.StatusInsufficientStorage)
	later(t, s.AddEntry(t, p.File("/other.img", old), ""), http.StatusInsufficientStorage)
	later(t, s.DoJSON(t, http.MethodPost, "/uploads", map[string]any{"name": "a.img", "size_bytes": 1000}), http.StatusInsufficientStorage)
	done := s.WaitJobUntil(t, hashes, "vast.raw", "still there", func(j job) bool { return j.Status == "running" || j.Status == "queued" })

	// When something is deleted, everything resumes by itself.
	s.Do(t, http.MethodDelete, "/images/keep.img", nil).Must(t, http.StatusNoContent)
	s.Put(t, "new.img", content(4, 5<<20))
	s.WaitJobUntil(t, hashes, "vast.raw", "further on", func(j job) bool { return j.BytesHashed > done.BytesHashed })
	s.Cancel(t, hashes, "vast.raw").Must(t, http.StatusNoContent)
	if j := s.Fetch(t, "small.img"); j.SHA256 != sum(content(5, 10<<20)) {
		t.Errorf("%+v", j)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.Put(t, "keep.img", keep)
	oldIsThere("at the end")
	s.blobs(t)
	s.noHalves(t)
}

// putChunked uploads that many MiB without a length.
func (s *Server) putChunked(t testing.TB, name string, mib int) *Reply {
	t.Helper()
	mebi := content(uint64(mib), 1<<20)
	var bodies []io.Reader
	for range mib {
		bodies = append(bodies, bytes.NewReader(mebi))
	}
	return s.Do(t, http.MethodPut, imageRoute(name), io.MultiReader(bodies...), header("Expect", "100-continue"))
}

// TestDeepDiskReadOnly refuses writes while the disk is read-only; reading
// works, jobs wait, and everything resumes when it is writable.
func TestDeepDiskReadOnly(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	disk := smallDisk(t, 700)
	s := Start(t, Options{Data: filepath.Join(disk, "data")})
	writesStop(t, s, func(dir string) (undo func()) { return readOnly(t, dir) })
	s.Stop(t)

	undo := readOnly(t, disk)
	refusedToStart(t, Options{Data: s.Data}, s.Data, "read-only")
	refusedToStart(t, Options{Data: filepath.Join(disk, "other")}, filepath.Join(disk, "other"), "read-only")
	undo()
	s.start(t)
	s.get(t, "/readyz").Must(t, 200)
}

// writesStop makes DATA/images, then DATA/catalog, then all of DATA read-only,
// and writable again.
func writesStop(t *testing.T, s *Server, take func(dir string) (undo func())) {
	t.Helper()
	p := publish(t)
	old := content(1, 200_000)
	s.Put(t, "old.img", old)
	s.AddEntry(t, p.File("/idle.img", content(2, 100_000)), "").Must(t, http.StatusCreated)
	image := content(3, aheadBytes+16<<20)
	for _, dir := range []string{s.ImageBucket, s.CatalogBuck, ""} {
		what := "DATA/" + dir
		name := "fetch-" + dir + ".img"
		want := image[len(dir):] // contents differ
		src := p.Dammed(t, "/"+name, want, aheadBytes+8<<20)
		fetched := s.metrics(t).value(bytesFetched)
		s.AddEntry(t, src.URL, "").Must(t, http.StatusCreated)
		s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
		src.WaitPast(t)
		before := len(src.Asked(0))
		raw := "hash-" + dir + ".raw"
		s.dropSparse(t, raw, vast)
		s.WaitJobUntil(t, hashes, raw, "under way", func(j job) bool { return j.Status == "running" && j.BytesHashed > 0 })

		undo := take(filepath.Join(s.Data, dir))
		src.Open()
		images, catalog := dir != s.CatalogBuck, dir != s.ImageBucket // not written to any more
		if images {
			for _, name := range []string{"new.img", "old.img"} {
				d := later(t, s.Do(t, http.MethodPut, imageRoute(name), bytes.NewReader(content(4, 1<<20))), 503, 507)
				t.Logf("%s: upload: %d %s", what, d.Status, d.Detail)
			}
			later(t, s.Do(t, http.MethodDelete, "/images/old.img", nil), 503, 507)
			later(t, s.DoJSON(t, http.MethodPost, "/uploads", map[string]any{"name": "parts.img", "size_bytes": 1000}), 503, 507)
		}
		if catalog {
			d := later(t, s.Enqueue(t, downloads, "name", "idle.img"), 503, 507)
			t.Logf("%s: enqueue: %d %s", what, d.Status, d.Detail)
			later(t, s.AddEntry(t, p.File("/other.img", old), ""), 503, 507)
		}
		if got := s.get(t, "/images/old.img").Must(t, 200); sum(got.Body) != sum(old) {
			t.Errorf("%s: the old object is not what it was", what)
		}
		s.Rows(t)
		s.get(t, "/events").Must(t, 200)
		s.get(t, "/readyz").Must(t, 200)
		if catalog {
			// The fetch has all bytes, and cannot store the last part.
			eventually(t, within, what+": all bytes have come", func() error {
				if n := s.metrics(t).value(bytesFetched) - fetched; n < float64(len(want)) {
					return fmt.Errorf("%.0f of %d bytes", n, len(want))
				}
				return nil
			})
		}
		undo()

		s.Put(t, "new.img", content(4, 1<<20))
		if j := s.WaitJob(t, downloads, name, "completed"); j.SHA256 != sum(want) {
			t.Errorf("%s: %+v", what, j)
		} else {
			t.Logf("%s: fetched at attempt %d", what, j.Attempt)
		}
		src.notAgain(t, before)
		j, _ := s.Job(t, hashes, raw)
		s.WaitJobUntil(t, hashes, raw, "further on", func(k job) bool { return k.BytesHashed > j.BytesHashed })
		s.Cancel(t, hashes, raw).Must(t, http.StatusNoContent)
		s.WaitJob(t, hashes, raw, "cancelled")
		s.Do(t, http.MethodDelete, imageRoute("new.img"), nil).Must(t, http.StatusNoContent)
		if j := s.Fetch(t, "idle.img"); j.SHA256 != sum(content(2, 100_000)) {
			t.Errorf("%s: %+v", what, j)
		}
		s.Do(t, http.MethodDelete, "/catalog/cache/"+sum(content(2, 100_000)), nil).Must(t, http.StatusNoContent)
		s.Do(t, http.MethodDelete, "/catalog/cache/"+sum(want), nil).Must(t, http.StatusNoContent)
	}
	s.noHalves(t)
}

// unprivileged returns options for a server that runs as a user without privileges,
// over a directory of that user.
func unprivileged(t *testing.T) Options {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	o := Options{Data: data, Home: data}
	if os.Getuid() != 0 {
		return o
	}
	const nobody = 65534
	for _, dir := range []string{filepath.Dir(filepath.Dir(data)), filepath.Dir(data), filepath.Dir(binary)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(data, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	o.Via = []string{"setpriv", "--reuid", strconv.Itoa(nobody), "--regid", strconv.Itoa(nobody), "--clear-groups", "--pdeathsig", "KILL"}
	return o
}

func TestMissingRights(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	o := unprivileged(t)
	s := Start(t, o)
	writesStop(t, s, func(dir string) func() {
		// A directory and everything below it.
		was := map[string]fs.FileMode{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			fi, err := d.Info()
			if err == nil {
				was[path], err = fi.Mode().Perm(), os.Chmod(path, fi.Mode().Perm()&0o555)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			for path, mode := range was {
				if err := os.Chmod(path, mode); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		}
	})

	// A file without read permission: its job waits, says so, and resumes.
	b := content(5, 100_000)
	s.drop(t, "secret.img", b)
	forbid := func(path string, mode fs.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	forbid(s.imagePath("secret.img"), 0)
	s.WaitRow(t, "secret.img", "listed", nil)
	r := s.get(t, "/images/secret.img")
	later(t, r, 503)
	forbid(s.imagePath("secret.img"), 0o644)
	s.WaitHashed(t, "secret.img", sum(b))
	s.Stop(t)

	// Permissions that prevent the start.
	for _, dir := range []string{"", s.ImageBucket, s.CatalogBuck} {
		path := filepath.Join(s.Data, dir)
		for _, mode := range []fs.FileMode{0o555, 0} {
			forbid(path, mode)
			refusedToStart(t, o, path, "permission denied")
			forbid(path, 0o755)
		}
	}
	inner := o
	inner.Data = filepath.Join(s.Data, "not", "there")
	forbid(s.Data, 0o555)
	refusedToStart(t, inner, filepath.Dir(inner.Data), "permission denied")
	forbid(s.Data, 0o755)
	s.start(t)
	s.WaitHashed(t, "secret.img", sum(b))
}

// jobRecords returns the records of jobs in the gateway's directory.
func (s *Server) jobRecords(t testing.TB) (jobs []job) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(s.Data, s.CatalogBuck, "jobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var j job
		if err := json.Unmarshal(b, &j); err != nil {
			return err
		}
		jobs = append(jobs, j)
		return nil
	})
	if err != nil || len(jobs) == 0 {
		t.Fatalf("records of jobs: %+v, %v", jobs, err)
	}
	return jobs
}

// TestDeepStopHandsJobsBack releases running jobs on Ctrl-C: the next start
// resumes them from their checkpoints without waiting for the end of the lease.
func TestDeepStopHandsJobsBack(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	p := publish(t)
	image := content(1, aheadBytes+aheadBytes/2)
	src := p.Dammed(t, "/fetched.img", image, aheadBytes+8<<20)
	s.AddEntry(t, src.URL, "").Must(t, http.StatusCreated)
	s.Enqueue(t, downloads, "name", "fetched.img").Must(t, http.StatusAccepted)
	src.WaitPast(t)
	s.dropSparse(t, "hashed.raw", zeros4G)
	done := s.WaitJobUntil(t, hashes, "hashed.raw", "under way", func(j job) bool { return j.BytesHashed > 0 })
	s.Stop(t)
	before := len(src.Asked(0))
	for _, j := range s.jobRecords(t) {
		if j.Status != "queued" {
			t.Errorf("after the stop: %+v, want a queued job", j)
		}
	}

	s.start(t)
	s.WaitJobUntil(t, hashes, "hashed.raw", "running again", func(j job) bool { return j.Status == "running" || j.Status == "completed" })
	s.WaitJobUntil(t, downloads, "fetched.img", "running again", func(j job) bool { return j.Status == "running" })
	eventually(t, within, "the source is asked again", func() error {
		if len(src.Asked(before)) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	src.Open()
	if j := s.WaitJob(t, downloads, "fetched.img", "completed"); j.SHA256 != sum(image) || j.Attempt != 2 {
		t.Errorf("%+v, want SHA-256 %s", j, sum(image))
	}
	src.resumed(t, before)
	if j := s.WaitJob(t, hashes, "hashed.raw", "completed"); j.SHA256 != zeros4GSum || j.BytesHashed != zeros4G || j.Attempt != 2 {
		t.Errorf("%+v, want SHA-256 %s", j, zeros4GSum)
	}
	// Bytes before the checkpoint are not hashed again.
	m := s.metrics(t)
	if n := m.value(bytesHashed); n > float64(zeros4G-done.BytesHashed) {
		t.Errorf("%.0f bytes were hashed after the start, want at most the %d after the checkpoint", n, zeros4G-done.BytesHashed)
	}
	if n := m.value(bytesFetched); n > float64(len(image)-partBytes) {
		t.Errorf("%.0f bytes were fetched after the start, want at most the %d after the first part", n, len(image)-partBytes)
	}
	if n := len(s.blobs(t)); n != 1 {
		t.Errorf("%d blobs, want 1", n)
	}
	s.noHalves(t)
}

// TestEventsTwice sends the same event twice: the work is done once.
func TestEventsTwice(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	b := content(1, 400_000)
	hashedOnce := func(what, name string) {
		t.Helper()
		s.WaitHashed(t, name, sum(b))
		s.WaitJob(t, hashes, name, "completed")
		// Later work waits behind the queued tasks.
		marker := name + "-marker.img"
		s.drop(t, marker, content(2, 1000))
		s.WaitHashed(t, marker, sum(content(2, 1000)))
		if j, _ := s.Job(t, hashes, name); j.Attempt != 1 {
			t.Errorf("%s: %+v", what, j)
		}
		n := 0
		for _, e := range s.Events(t, url.Values{"kind": {"image.hashed"}}) {
			if e.SubjectID == name {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s: %d events, want 1", what, n)
		}
	}

	// The server misses all changes before the last one.
	before := s.metrics(t)
	s.pause(t)
	s.drop(t, "written.img", b)
	s.drop(t, "written.img", b)
	now := time.Now()
	if err := os.Chtimes(s.imagePath("written.img"), now, now); err != nil {
		t.Fatal(err)
	}
	s.resume(t)
	hashedOnce("written twice and touched", "written.img")
	if n := s.metrics(t).value(bytesHashed) - before.value(bytesHashed); n != float64(len(b)+1000) {
		t.Errorf("written twice: %.0f bytes were hashed, want %d", n, len(b)+1000)
	}

	// Setting permissions or times may hide an edit: the file is hashed once
	// more, however many events report it.
	before = s.metrics(t)
	s.pause(t)
	for _, mode := range []fs.FileMode{0o600, 0o644} {
		if err := os.Chmod(s.imagePath("written.img"), mode); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(s.imagePath("written.img"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.imagePath("written.img"), fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	s.resume(t)
	for range 3 {
		s.Enqueue(t, hashes, "name", "written.img").Must(t, http.StatusAccepted, http.StatusOK)
	}
	s.drop(t, "other.img", content(3, 1000))
	s.WaitHashed(t, "other.img", sum(content(3, 1000)))
	s.WaitHashed(t, "written.img", sum(b))
	if n := s.metrics(t).value(bytesHashed) - before.value(bytesHashed); n != float64(len(b)+1000) {
		t.Errorf("%.0f bytes were hashed, want %d", n, len(b)+1000)
	}

	// Two S3 events of the same bytes, while the worker is busy.
	s.dropSparse(t, "busy.raw", vast)
	s.WaitJob(t, hashes, "busy.raw", "running")
	for range 2 {
		s.s3Put(t, "sent.img", b)
	}
	s.Do(t, http.MethodDelete, imageRoute("busy.raw"), nil).Must(t, http.StatusNoContent)
	hashedOnce("sent twice", "sent.img")

	// A start compares everything, and repeats no work.
	s.Restart(t)
	s.drop(t, "last.img", content(4, 1000))
	s.WaitHashed(t, "last.img", sum(content(4, 1000)))
	if n := s.metrics(t).value(bytesHashed); n != 1000 {
		t.Errorf("%.0f bytes were hashed after a start, though only 1000 are new", n)
	}
}
