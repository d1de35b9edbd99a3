package e2e

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFetch(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 5<<20)
	src := p.File("/pub/a.img", b)
	sums := p.File("/pub/SHA256SUMS", []byte(sum(b)+"  a.img\n"))
	s.AddEntry(t, src, sums).Must(t, http.StatusCreated)
	s.get(t, "/images/"+sum(b)).Problem(t, []int{404})

	j := s.Fetch(t, "a.img")
	if j.SHA256 != sum(b) || j.BytesDownloaded != int64(len(b)) || j.BytesTotal == nil || *j.BytesTotal != int64(len(b)) ||
		j.Src != src || j.StartedAt == nil || j.FinishedAt == nil || j.Error != "" || j.Attempt < 1 {
		t.Errorf("completed job %+v", j)
	}
	r := s.WaitRow(t, "a.img", "cached", func(r row) bool { return r.Cached })
	if r.SHA256 != sum(b) {
		t.Errorf("row %+v", r)
	}
	for _, path := range []string{"/images/a.img", "/images/" + sum(b), "/images/" + sum(b) + "/a.img"} {
		if got := s.get(t, path, anonymous).Must(t, 200); sum(got.Body) != sum(b) {
			t.Errorf("%s: wrong bytes", path)
		}
	}
	if l, ok := s.Listed(t, "a.img"); !ok || !l.Cached || !strings.HasPrefix(l.URL, s.Pages+"/images/"+sum(b)) {
		t.Errorf("GET /images: %+v", l)
	}
	s.WaitEvent(t, "image.fetched", sum(b))

	// Cached bytes are not fetched again.
	gets := p.Hits("GET", "/pub/a.img")
	var again job
	s.Enqueue(t, downloads, "name", "a.img").Must(t, http.StatusAccepted, http.StatusOK).JSON(t, &again)
	if again.Status != "completed" || p.Hits("GET", "/pub/a.img") != gets {
		t.Errorf("enqueued when done: %+v, %d requests before, %d after", again, gets, p.Hits("GET", "/pub/a.img"))
	}
	s.Restart(t)
	if got := s.get(t, "/images/"+sum(b)).Must(t, 200); sum(got.Body) != sum(b) {
		t.Error("wrong bytes after a restart")
	}

	t.Run("drop the cached bytes", func(t *testing.T) {
		s.Do(t, http.MethodDelete, "/catalog/cache/"+sum(b), nil).Must(t, http.StatusNoContent)
		s.get(t, "/images/"+sum(b)).Problem(t, []int{404})
		r := s.WaitRow(t, "a.img", "no longer cached", func(r row) bool { return !r.Cached })
		if !slices.Contains(r.Sources, source{"url", src}) || r.SHA256 != sum(b) {
			t.Errorf("the entry is not what it was: %+v", r)
		}
		s.WaitEvent(t, "image.uncached", sum(b))
		s.Do(t, http.MethodDelete, "/catalog/cache/"+sum(b), nil).Problem(t, []int{404})
		s.Do(t, http.MethodDelete, "/catalog/cache/nonsense", nil).Problem(t, []int{400, 404, 422})
		// It can be fetched again, this time by its ref.
		s.Enqueue(t, downloads, "ref", sum(b)).Must(t, http.StatusAccepted)
		s.WaitRow(t, "a.img", "cached again", func(r row) bool { return r.Cached })
	})
	t.Run("establishes an unknown digest", func(t *testing.T) {
		b := content(2, 100_000)
		s.AddEntry(t, p.File("/unknown.img", b), "").Must(t, http.StatusCreated)
		if j := s.Fetch(t, "unknown.img"); j.SHA256 != sum(b) {
			t.Errorf("%+v", j)
		}
		s.WaitRow(t, "unknown.img", "hashed and cached", func(r row) bool { return r.SHA256 == sum(b) && r.Cached })
	})
	t.Run("does not undo a content encoding", func(t *testing.T) {
		b := bytes.Repeat([]byte("as it is on the disk "), 10_000)
		u := p.Handle("/encoded.img", func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
				whole(w, r, b, len(b))
				return
			}
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(b)
			_ = z.Close()
		})
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		if j := s.Fetch(t, "encoded.img"); j.SHA256 != sum(b) {
			t.Errorf("fetched %s, want %s", j.SHA256, sum(b))
		}
	})
	t.Run("refuses", func(t *testing.T) {
		s.Enqueue(t, downloads, "name", "nothing.img").Problem(t, []int{404})
		s.Enqueue(t, downloads, "ref", "zz").Problem(t, []int{400, 404, 422})
		s.Enqueue(t, downloads, "src", "http://127.0.0.1:1/unknown-to-us.img").Problem(t, []int{404})
		s.DoJSON(t, http.MethodPost, "/catalog/downloads", map[string]any{}).Problem(t, []int{400, 422})
		s.Cancel(t, downloads, "nothing.img").Problem(t, []int{404})
	})
}

func TestFetchProgress(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 40<<20)
	for _, chunked := range []bool{false, true} {
		name := fmt.Sprintf("chunked-%v.img", chunked)
		gate := make(chan struct{})
		s.AddEntry(t, p.Gated("/"+name, b, gate, chunked), "").Must(t, http.StatusCreated)
		s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
		j := s.WaitJobUntil(t, downloads, name, "half way", func(j job) bool {
			return j.Status == "running" && j.BytesDownloaded > 0
		})
		switch {
		case chunked && j.BytesTotal != nil:
			t.Errorf("%s: total is %d, which nobody said", name, *j.BytesTotal)
		case !chunked && (j.BytesTotal == nil || *j.BytesTotal != int64(len(b))):
			t.Errorf("%s: running job %+v, want total %d", name, j, len(b))
		}
		close(gate)
		if j := s.WaitJob(t, downloads, name, "completed"); j.SHA256 != sum(b) || j.BytesDownloaded != int64(len(b)) {
			t.Errorf("completed job %+v", j)
		}
	}
}

func TestFetchTwoAtATime(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	gone := make(chan struct{}, 10)
	names := []string{"a.img", "b.img", "c.img"}
	for i, n := range names {
		s.AddEntry(t, p.Stall("/"+n, content(uint64(i), 1<<20), gone), "").Must(t, http.StatusCreated)
		s.Enqueue(t, downloads, "name", n).Must(t, http.StatusAccepted)
	}
	states := func() (running, queued []string) {
		jobs, most := s.Jobs(t, downloads)
		if most != 2 {
			t.Fatalf("max_parallel is %d, want 2", most)
		}
		for _, j := range jobs {
			switch j.Status {
			case "running":
				running = append(running, j.Name)
			case "queued":
				queued = append(queued, j.Name)
			}
		}
		if len(running) > 2 {
			t.Fatalf("%d jobs are running: %+v", len(running), jobs)
		}
		return running, queued
	}
	var running, queued []string
	eventually(t, within, "two running, one queued", func() error {
		if running, queued = states(); len(running) != 2 || len(queued) != 1 {
			return fmt.Errorf("running %q, queued %q", running, queued)
		}
		return nil
	})
	s.Cancel(t, downloads, running[0]).Must(t, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	s.WaitJob(t, downloads, running[0], "cancelled")
	s.WaitJob(t, downloads, queued[0], "running")
	select {
	case <-gone:
	case <-time.After(within):
		t.Error("the connection of a cancelled job is still open")
	}
}

// failing runs the fetch of a source, which must fail with an error that has
// words, and checks that it stored nothing.
func failing(t *testing.T, s *Server, name string, words ...string) job {
	t.Helper()
	s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
	j := s.WaitJob(t, downloads, name, "failed")
	for _, w := range words {
		if !strings.Contains(strings.ToLower(j.Error), strings.ToLower(w)) {
			t.Errorf("%s: the error does not mention %q: %s", name, w, j.Error)
		}
	}
	if j.FinishedAt == nil || j.Error == "" {
		t.Errorf("%s: failed job %+v", name, j)
	}
	if r := s.get(t, imageRoute(name)); r.Status != http.StatusNotFound {
		t.Errorf("%s: it is served after a failed fetch: %v", name, r)
	}
	if r, ok := s.Row(t, name); !ok || r.Cached {
		t.Errorf("%s: row after a failed fetch: %+v", name, r)
	}
	if blobs := s.objects(t, s.CatalogBuck, "blobs/"); len(blobs) > 0 {
		t.Errorf("%s: blobs after a failed fetch: %q", name, blobs)
	}
	return j
}

func TestFetchFails(t *testing.T) {
	t.Parallel()
	tlsSource := newTLSPublisher(t)
	tlsSource.Turn(true)
	s := Start(t, Options{Env: []string{"SSL_CERT_FILE=" + tlsSource.Roots}})
	p := publish(t)
	b := content(1, 1<<20)

	t.Run("wrong digest", func(t *testing.T) {
		said := sum([]byte("another file"))
		sums := p.File("/wrong.sums", []byte(said+"  wrong.img\n"))
		s.AddEntry(t, p.File("/wrong.img", b), sums).Must(t, http.StatusCreated)
		failing(t, s, "wrong.img", said, sum(b))
		for _, sha := range []string{said, sum(b)} {
			s.get(t, "/images/"+sha).Problem(t, []int{404})
		}
		s.WaitEvent(t, "image.fetch_failed", said)
	})
	t.Run("404 by now", func(t *testing.T) {
		u := p.File("/vanished.img", b)
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		p.Handle("/vanished.img", http.NotFound)
		failing(t, s, "vanished.img", "404")
	})
	t.Run("redirect loop by now", func(t *testing.T) {
		u := p.File("/loop.img", b)
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		p.Handle("/loop.img", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop.img", http.StatusFound) })
		failing(t, s, "loop.img", "redirect")
	})
	t.Run("TLS", func(t *testing.T) {
		u := tlsSource.File("/tls.img", b)
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		tlsSource.Turn(false)
		failing(t, s, "tls.img", "certificate")
	})
	t.Run("more than the disk holds", func(t *testing.T) {
		const huge = 1 << 50
		u := p.Handle("/huge.img", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(int64(huge)))
			if r.Method == http.MethodHead {
				return
			}
			for {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		})
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		begin := time.Now()
		j := failing(t, s, "huge.img")
		if !strings.Contains(j.Error, "space") && !strings.Contains(j.Error, "room") && !strings.Contains(j.Error, "full") {
			t.Errorf("the error does not say that there is no room: %s", j.Error)
		}
		t.Logf("failed after %v, %d bytes fetched", time.Since(begin), j.BytesDownloaded)
		if j.BytesDownloaded > 1<<30 {
			t.Errorf("%d bytes were fetched that the disk would not hold", j.BytesDownloaded)
		}
	})
	t.Run("longer than it said", func(t *testing.T) {
		u := p.Handle("/longer.img", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Length", "1000")
				return
			}
			_, _ = w.Write(b) // chunked
		})
		sums := p.File("/longer.sums", []byte(sum(b[:1000])+"  longer.img\n"))
		s.AddEntry(t, u, sums).Must(t, http.StatusCreated)
		failing(t, s, "longer.img")
	})
	t.Run("an empty body", func(t *testing.T) {
		sums := p.File("/empty.sums", []byte(sum(b)+"  empty.img\n"))
		s.AddEntry(t, p.File("/empty.img", nil), sums).Problem(t, []int{400}, "empty")
		s.AddEntry(t, p.File("/empty.img", b), sums).Must(t, http.StatusCreated)
		p.File("/empty.img", nil) // by now
		failing(t, s, "empty.img")
	})
	// After that, both workers still work.
	tlsSource.Turn(true)
	for i := range 3 {
		name := fmt.Sprintf("well-%d.img", i)
		s.AddEntry(t, tlsSource.File("/"+name, content(uint64(10+i), 1000)), "").Must(t, http.StatusCreated)
		if j := s.Fetch(t, name); j.SHA256 != sum(content(uint64(10+i), 1000)) {
			t.Errorf("%+v", j)
		}
	}
	// A failed job can be requested again, and then completes.
	p.File("/vanished.img", b)
	if j := s.Fetch(t, "vanished.img"); j.SHA256 != sum(b) {
		t.Errorf("%+v", j)
	}
}

// TestFetchManifestImage fetches two images of one URL path, and one content
// from two sources.
func TestFetchManifestImage(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 100_000)
	src := p.File("/m.img", b)
	s.Do(t, http.MethodPut, "/catalog.toml", strings.NewReader(fmt.Sprintf(
		"version = 1\n[[images]]\nname = \"from manifest.img\"\nsrc = %q\nsha256 = %q\nformat = \"img\"\nsize_bytes = %d\n", src, sum(b), len(b)))).
		Must(t, http.StatusOK, http.StatusCreated, http.StatusNoContent)
	r := s.WaitRow(t, "from manifest.img", "listed", nil)
	if r.Cached || r.SHA256 != sum(b) || !slices.Contains(r.Sources, source{"manifest", src}) {
		t.Errorf("row %+v", r)
	}
	if l, ok := s.Listed(t, "from manifest.img"); !ok || l.URL != src || l.Cached || l.Ref == nil || *l.Ref != sum(b)[:12] {
		t.Errorf("GET /images: %+v", l)
	}
	s.Fetch(t, "from manifest.img")
	s.WaitRow(t, "from manifest.img", "cached", func(r row) bool { return r.Cached })
	if got := s.get(t, imageRoute("from manifest.img")).Must(t, 200); sum(got.Body) != sum(b) {
		t.Error("wrong bytes")
	}
	s.Do(t, http.MethodDelete, "/catalog.toml", nil).Must(t, http.StatusNoContent)
	eventually(t, within, "the manifest's source is gone", func() error {
		if r, ok := s.Row(t, "from manifest.img"); ok && slices.ContainsFunc(r.Sources, func(s source) bool { return s.Kind == "manifest" }) {
			return errors.New("still there")
		}
		return nil
	})
}
