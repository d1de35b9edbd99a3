package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// Faults that were measured on another program of this kind (bty-web 0.8.9).
// Each has a test here.

func TestPeerUploadKilledMidway(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	s.Put(t, "old.img", content(1, 100_000))
	check := func(when string) {
		t.Helper()
		s.get(t, "/images/new.img").Problem(t, []int{404})
		if got := s.get(t, "/images/old.img").Must(t, 200); sum(got.Body) != sum(content(1, 100_000)) {
			t.Errorf("%s: the old object is not what it was", when)
		}
		if _, ok := s.Row(t, "new.img"); ok {
			t.Errorf("%s: half an upload is in the catalog", when)
		}
		if found := s.objects(t, s.ImageBucket, "new.img"); len(found) > 0 {
			t.Errorf("%s: half an upload is in the bucket: %q", when, found)
		}
	}
	// The client dies.
	for _, framing := range []string{"Content-Length: 33554432", "Transfer-Encoding: chunked"} {
		cutUpload(t, s, "new.img", framing, 16<<20)
		cutUpload(t, s, "old.img", framing, 16<<20)
	}
	check("after the client died")

	// The server dies.
	next := make(chan struct{})
	var clients sync.WaitGroup
	for _, name := range []string{"new.img", "old.img"} {
		body := &slowReader{rest: content(2, 32<<20), piece: 16 << 20, next: next}
		clients.Go(func() {
			if r, err := s.try(http.MethodPut, imageRoute(name), body); err == nil && r.Status < 300 {
				t.Errorf("an upload that was never sent whole: %v", r)
			}
		})
		body.waitFirst(t)
	}
	s.Kill(t)
	close(next)
	clients.Wait()
	s.start(t)
	check("after the server died")
	s.Put(t, "new.img", content(3, 1000))
	s.Put(t, "old.img", content(4, 1000))
}

// TestPeerOverwrittenImage never serves new bytes under the SHA-256 of old
// ones, however they arrive, at any time.
func TestPeerOverwrittenImage(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const name = "rolling.img"
	contents := make([][]byte, 4)
	for i := range contents {
		contents[i] = content(uint64(i), 1<<20) // of one size, so that the size does not differ
	}
	s.Put(t, name, contents[0])

	stop := make(chan struct{})
	var watchers sync.WaitGroup
	for range 2 {
		watchers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				want := sum(contents[i%len(contents)])
				r, err := s.try(http.MethodGet, "/images/"+want, nil)
				// A connection that breaks is a correct answer to an overwrite.
				if err == nil && r.Status == http.StatusOK && sum(r.Body) != want {
					t.Errorf("under %s came %s", want, sum(r.Body))
					return
				}
				r, err = s.try(http.MethodGet, "/images/"+name, nil)
				if err == nil && r.Status == http.StatusOK {
					if d := r.Header.Get("Repr-Digest"); d != "" && !strings.Contains(d, structuredDigest(sum(r.Body))) {
						t.Errorf("Repr-Digest %s of bytes with %s", d, structuredDigest(sum(r.Body)))
						return
					}
				}
			}
		})
	}
	put := func(b []byte) { s.Put(t, name, b) }
	drop := func(b []byte) { s.drop(t, name, b) }
	copied := func(b []byte) { s.s3Put(t, name, b) }
	ways := []func([]byte){put, copied, put, copied}
	if *s3Endpoint == "" {
		ways = append(ways, drop, put, drop, drop)
	}
	for i, way := range ways {
		b := contents[(i+1)%len(contents)]
		way(b)
		s.WaitHashed(t, name, sum(b))
		s.get(t, "/images/"+sum(contents[i%len(contents)])).Problem(t, []int{404})
	}
	close(stop)
	watchers.Wait()
}

func TestPeerTwoPutsOfOneName(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const name, rounds, writers = "contended.img", 5, 4
	for round := range rounds {
		var ways sync.WaitGroup
		sums := make([]string, writers)
		for w := range writers {
			b := content(uint64(round*writers+w), 6<<20+w*1000)
			sums[w] = sum(b)
			var body io.Reader = bytes.NewReader(b)
			if w%2 == 1 {
				body = io.MultiReader(body) // hides the length: chunked
			}
			ways.Go(func() {
				r, err := s.try(http.MethodPut, imageRoute(name), body)
				if err != nil {
					t.Error(err)
					return
				}
				// A writer that lost may get a conflict, or the answer for an
				// image that is replaced by now.
				switch r.Status {
				case http.StatusCreated:
					var u uploaded
					if r.JSON(t, &u); u.SHA256 != sums[w] {
						t.Errorf("told %s of bytes with %s", u.SHA256, sums[w])
					}
				case http.StatusConflict, http.StatusPreconditionFailed:
				default:
					t.Errorf("%v", r)
				}
			})
		}
		ways.Wait()
		got := s.get(t, imageRoute(name)).Must(t, 200)
		one := false
		for _, want := range sums {
			one = one || want == sum(got.Body)
		}
		if !one {
			t.Fatalf("round %d: what is served (%d bytes) is none of what was sent", round, len(got.Body))
		}
		s.WaitHashed(t, name, sum(got.Body))
		for _, other := range sums {
			if other != sum(got.Body) {
				s.get(t, "/images/"+other).Problem(t, []int{404})
			}
		}
	}
}

func TestPeerForgedSHA256(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	b, forged := content(1, 10_000), sum([]byte("what it is not"))
	s.s3Put(t, "a.img", b)
	s.s3Put(t, "a.img.sha256", []byte(forged+"  a.img\n"))
	r := s.WaitRow(t, "a.img", "hashed, with a warning", func(r row) bool { return r.HashState == "hashed" && len(r.Warnings) > 0 })
	if r.SHA256 != sum(b) {
		t.Errorf("the forged digest is believed: %+v", r)
	}
	if w := strings.Join(r.Warnings, "\n"); !strings.Contains(w, forged[:12]) {
		t.Errorf("the warning does not name what was expected: %s", w)
	}
	s.get(t, "/images/"+forged).Problem(t, []int{404})
	if got := s.get(t, "/images/"+sum(b)).Must(t, 200); sum(got.Body) != sum(b) {
		t.Error("wrong bytes")
	}
}

func TestPeerStalledSource(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Args: []string{"--fetch-workers", "1"}})
	p := publish(t)
	gone := make(chan struct{}, 1)
	s.AddEntry(t, p.Stall("/stalled.img", content(1, 1<<20), gone), "").Must(t, http.StatusCreated)
	s.AddEntry(t, p.File("/waiting.img", content(2, 1<<20)), "").Must(t, http.StatusCreated)
	s.Enqueue(t, downloads, "name", "stalled.img").Must(t, http.StatusAccepted)
	s.WaitJob(t, downloads, "stalled.img", "running")
	s.Enqueue(t, downloads, "name", "waiting.img").Must(t, http.StatusAccepted)
	begin := time.Now()
	s.Cancel(t, downloads, "stalled.img").Must(t, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	s.WaitJob(t, downloads, "stalled.img", "cancelled")
	t.Logf("cancelled after %v", time.Since(begin))
	s.WaitJob(t, downloads, "waiting.img", "completed")
	select {
	case <-gone:
	case <-time.After(within):
		t.Error("the stalled connection is still open")
	}
}

func TestPeerSourceClosesEarly(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 1<<20)
	sums := p.File("/sums", []byte(sum(b)+"  short.img\n"))
	s.AddEntry(t, p.Short("/short.img", b), sums).Must(t, http.StatusCreated)
	s.Enqueue(t, downloads, "name", "short.img").Must(t, http.StatusAccepted)
	j := s.WaitJob(t, downloads, "short.img", "failed")
	if strings.Contains(j.Error, "SHA") || strings.Contains(j.Error, "digest") {
		t.Errorf("a short body is called a wrong digest: %s", j.Error)
	}
	for _, n := range []int{len(b), len(b) / 2} {
		if !strings.Contains(strings.NewReplacer(",", "", "\u202f", "", "_", "").Replace(j.Error), fmt.Sprint(n)) {
			t.Errorf("the error does not name %d bytes: %s", n, j.Error)
		}
	}
	s.get(t, "/images/short.img").Problem(t, []int{404})
}

func TestPeerEntriesCanBeFetched(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 10_000)
	s.AddEntry(t, p.File("/a.img", b), "").Must(t, http.StatusCreated)
	s.Fetch(t, "a.img")
	if got := s.get(t, "/images/a.img").Must(t, 200); sum(got.Body) != sum(b) {
		t.Error("wrong bytes")
	}
}

func TestPeerFileSources(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	path := tempFile(t, content(1, 1000))
	for _, u := range []string{"file://" + path + ".img", "FILE:///etc/passwd.img", "file:/etc/passwd.img", "/etc/passwd.img"} {
		s.AddEntry(t, u, "").Problem(t, []int{400, 422})
		s.Do(t, http.MethodPut, "/catalog.toml", strings.NewReader(fmt.Sprintf(
			"version = 1\n[[images]]\nname = \"a.img\"\nsrc = %q\n", u))).Problem(t, []int{422}, "line")
		s.Enqueue(t, downloads, "src", u).Problem(t, []int{400, 404, 422})
	}
	if rows := s.Rows(t); len(rows) != 0 {
		t.Errorf("in the catalog: %+v", rows)
	}
}

// TestPeerServing tests that URLs in the listing are percent-encoded, that HEAD
// and If-None-Match work, and that names of 250 bytes and more are valid.
func TestPeerServing(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	for i, name := range []string{"a b%20c#d?e\u00fc.img", strings.Repeat("n", 246) + ".img", strings.Repeat("n", 251) + ".img"} {
		b := content(uint64(i), 1000)
		s.Put(t, name, b)
		l, ok := s.Listed(t, name)
		if !ok {
			t.Fatalf("%q is not listed", name)
		}
		for _, c := range []byte(l.URL) {
			if c <= ' ' || c >= 0x7f || c == '#' || c == '?' {
				t.Errorf("byte %q in url %q", c, l.URL)
			}
		}
		path := strings.TrimPrefix(l.URL, s.Pages)
		head := s.Do(t, http.MethodHead, path, nil, anonymous).Must(t, 200)
		etag := head.Header.Get("ETag")
		if etag == "" || head.Header.Get("Content-Length") != "1000" {
			t.Errorf("HEAD: %v", head.Header)
		}
		s.get(t, path, anonymous, header("If-None-Match", etag)).Must(t, http.StatusNotModified)
	}
	long := strings.Repeat("n", 252) + ".img"
	s.Do(t, http.MethodPut, imageRoute(long), strings.NewReader("x")).Problem(t, []int{400, 422}, "255")
	s.get(t, imageRoute(long)).Problem(t, []int{400, 404})
	s.get(t, imageRoute(strings.Repeat("n", 5000)+".img")).Problem(t, []int{400, 404, 414})
}
