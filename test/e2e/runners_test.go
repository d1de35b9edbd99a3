package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// partBytes is the size of the parts in which a fetch stores its image.
	partBytes = 32 << 20
	// aheadBytes is the most that a fetch requests beyond the parts in its checkpoint, and
	// so the most that is fetched again after a kill.
	aheadBytes = 96 << 20
)

// A dammed source serves its content only up to a point until it is opened. It
// serves ranges, and records the start of each requested range.
type dammed struct {
	URL  string
	dam  int64
	open chan struct{}
	once sync.Once
	mu   sync.Mutex
	from []int64
}

// Dammed serves content at path, up to dam at first.
func (p *publisher) Dammed(t testing.TB, path string, content []byte, dam int64) *dammed {
	t.Helper()
	d := &dammed{dam: dam, open: make(chan struct{})}
	t.Cleanup(d.Open)
	etag := `"` + sum(content)[:16] + `"`
	d.URL = p.Handle(path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			first, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
			from, _ := strconv.ParseInt(first, 10, 64) // without a range: from the start
			d.mu.Lock()
			d.from = append(d.from, from)
			d.mu.Unlock()
		}
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), &damReader{bytes.NewReader(content), d, r})
	})
	return d
}

// Open serves everything from now on.
func (d *dammed) Open() { d.once.Do(func() { close(d.open) }) }

// Asked returns the starts of the requested ranges, without the first since
// ones.
func (d *dammed) Asked(since int) []int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]int64{}, d.from[since:]...)
}

// WaitPast waits until a range so far ahead is requested that the first part is stored and
// in a checkpoint.
func (d *dammed) WaitPast(t testing.TB) {
	t.Helper()
	eventually(t, within, "the first part is stored", func() error {
		asked := d.Asked(0)
		for _, from := range asked {
			if from >= aheadBytes {
				return nil
			}
		}
		return fmt.Errorf("asked for bytes from %v on", asked)
	})
}

// resumed fails the test if a range before the second part was requested after
// the first since requests, or none at all.
func (d *dammed) resumed(t testing.TB, since int) {
	t.Helper()
	if len(d.Asked(since)) == 0 {
		t.Error("nothing was asked for after the interruption")
	}
	d.notAgain(t, since)
}

// notAgain fails the test if a range before the second part was requested after
// the first since requests.
func (d *dammed) notAgain(t testing.TB, since int) {
	t.Helper()
	asked := d.Asked(since)
	for _, from := range asked {
		if from < partBytes {
			t.Errorf("bytes from %d on were asked for again, want none before %d: %v", from, partBytes, asked)
		}
	}
}

// A damReader reads content up to the dam, and beyond it once it is open.
type damReader struct {
	*bytes.Reader
	d *dammed
	r *http.Request
}

func (b *damReader) Read(p []byte) (int, error) {
	at := b.Size() - int64(b.Len())
	if left := b.d.dam - at; left > 0 {
		return b.Reader.Read(p[:min(int64(len(p)), left)])
	}
	select {
	case <-b.d.open:
		return b.Reader.Read(p)
	case <-b.r.Context().Done():
		return 0, b.r.Context().Err()
	}
}

// WriteTo must not bypass the dam.
func (b *damReader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

// addSummed adds the image at imageURL with a published checksum.
func (s *Server) addSummed(t testing.TB, p *publisher, imageURL string, content []byte) {
	t.Helper()
	u, err := url.Parse(imageURL)
	if err != nil {
		t.Fatal(err)
	}
	sums := p.File(u.Path+".sums", []byte(sum(content)+"  "+filepath.Base(u.Path)+"\n"))
	s.AddEntry(t, imageURL, sums).Must(t, http.StatusCreated)
}

// TestRunnersShareTheWork runs two runners over the same buckets: one hosts the
// gateway, the other gets no events.
func TestRunnersShareTheWork(t *testing.T) {
	t.Parallel()
	a := Start(t, Options{})
	b := Start(t, Options{Over: a})
	p := publish(t)
	servers := map[string]*Server{"a": a, "b": b}

	// A fetch that is queued at A and run by A; B sees and cancels it.
	gone := make(chan struct{}, 1)
	a.AddEntry(t, p.Stall("/stalled.img", content(1, 1<<20), gone), "").Must(t, http.StatusCreated)
	a.Enqueue(t, downloads, "name", "stalled.img").Must(t, http.StatusAccepted)
	began := time.Now()
	a.WaitJob(t, downloads, "stalled.img", "running")

	// A fetch that a third runner leaves behind, and that is not requested
	// again.
	c := Start(t, Options{Over: a})
	left := content(2, aheadBytes+aheadBytes/2)
	src := p.Dammed(t, "/left.img", left, aheadBytes+1<<20)
	c.AddEntry(t, src.URL, "").Must(t, http.StatusCreated)
	c.Enqueue(t, downloads, "name", "left.img").Must(t, http.StatusAccepted)
	src.WaitPast(t)
	a.WaitJob(t, downloads, "left.img", "running") // C has told the others
	c.Kill(t)
	killed, before := time.Now(), len(src.Asked(0))
	src.Open()

	// Fetches that are queued at both are run once each.
	type one struct{ at, name string }
	var all []one
	asked := map[string]int{}
	for at, s := range servers {
		for i := range 4 {
			o := one{at, fmt.Sprintf("%s-%d.img", at, i)}
			path := "/" + o.name
			s.AddEntry(t, p.File(path, content(uint64(10+len(all)), 100_000)), "").Must(t, http.StatusCreated)
			asked[o.name] = p.Hits(http.MethodGet, path)
			all = append(all, o)
		}
	}
	for _, o := range all {
		servers[o.at].Enqueue(t, downloads, "name", o.name).Must(t, http.StatusAccepted)
	}
	for i, o := range all {
		j := servers[o.at].WaitJob(t, downloads, o.name, "completed")
		if want := sum(content(uint64(10+i), 100_000)); j.SHA256 != want || j.Attempt != 1 {
			t.Errorf("%+v, want SHA-256 %s at the first attempt", j, want)
		}
	}
	// An upload through B, and a dropped file at A.
	up, dropped := content(30, 200_000), content(31, 300_000)
	b.Put(t, "up.img", up)
	if a.front == nil {
		a.drop(t, "dropped.img", dropped)
	} else {
		a.s3Put(t, "dropped.img", dropped)
	}
	a.WaitHashed(t, "up.img", sum(up))
	b.WaitHashed(t, "up.img", sum(up))
	a.WaitHashed(t, "dropped.img", sum(dropped))

	eventually(t, within, "B sees the job that A runs", func() error {
		if j, ok := b.Job(t, downloads, "stalled.img"); !ok || j.Status != "running" {
			return fmt.Errorf("job %+v", j)
		}
		return nil
	})
	t.Logf("seen after %v", time.Since(began).Round(time.Millisecond))
	begin := time.Now()
	b.Cancel(t, downloads, "stalled.img").Must(t, http.StatusNoContent)
	select {
	case <-gone:
		t.Logf("the connection to the source was closed %v after the cancel", time.Since(begin).Round(time.Millisecond))
	case <-time.After(within):
		t.Error("after the cancel at B, A continues the fetch")
	}
	for _, s := range servers {
		s.WaitJob(t, downloads, "stalled.img", "cancelled")
	}

	// By now B has seen everything, and both have searched for jobs that were
	// left behind: no work was done twice.
	eventually(t, within, "B sees what was dropped at A", func() error {
		if r, ok := b.Row(t, "dropped.img"); !ok || r.SHA256 != sum(dropped) {
			return fmt.Errorf("row %+v", r)
		}
		return nil
	})
	eventually(t, within, "what C has left is done", func() error {
		if j, ok := b.Job(t, downloads, "left.img"); !ok || j.Status != "completed" || j.SHA256 != sum(left) || j.Attempt != 2 {
			return fmt.Errorf("job %+v", j)
		}
		return nil
	})
	t.Logf("what C has left is seen as done %v after the kill", time.Since(killed).Round(time.Second))
	src.resumed(t, before)
	for i, o := range all {
		if got := p.Hits(http.MethodGet, "/"+o.name) - asked[o.name]; got != 1 {
			t.Errorf("%s was asked for %d times, want once", o.name, got)
		}
		for at, s := range servers {
			if got := s.get(t, "/images/"+sum(content(uint64(10+i), 100_000))).Must(t, 200); sum(got.Body) != sum(content(uint64(10+i), 100_000)) {
				t.Errorf("%s at %s: wrong bytes", o.name, at)
			}
		}
	}
	if am, bm := a.metrics(t), b.metrics(t); am.value(bytesHashed)+bm.value(bytesHashed) != float64(len(dropped)) {
		t.Errorf("%.0f bytes were hashed at A and %.0f at B, want only the dropped file's %d", am.value(bytesHashed), bm.value(bytesHashed), len(dropped))
	}
	if n := len(a.blobs(t)); n != len(all)+1 {
		t.Errorf("%d blobs, want %d", n, len(all)+1)
	}
	a.noHalves(t)
}

// TestRunnersSeeEachOther tests that each of three runners sees the changes of
// the others: of images, digests, entries, cached bytes and the manifest, and
// jobs that are queued, start, end, fail and are cancelled. A hosts the gateway,
// which reports events to it; B and C get no events and see each other by the
// index alone. The log has the delays.
func TestRunnersSeeEachOther(t *testing.T) {
	t.Parallel()
	one := []string{"--fetch-workers", "1"}
	a := Start(t, Options{Args: one})
	b, c := Start(t, Options{Over: a, Args: one}), Start(t, Options{Over: a, Args: one})
	p := publish(t)
	// seen waits until every runner shows a change.
	seen := func(what string, wait func(s *Server)) {
		t.Helper()
		began := time.Now()
		for _, s := range []*Server{c, b, a} {
			wait(s)
		}
		t.Logf("%s: seen after %v", what, time.Since(began).Round(time.Millisecond))
	}
	status := func(kind, name, status string) func(s *Server) {
		return func(s *Server) { s.WaitJob(t, kind, name, status) }
	}

	// Downloads at B: one that is cancelled at C, and one behind it. A and C are
	// busy, so they leave it to B.
	for i, s := range []*Server{a, c} {
		name := fmt.Sprintf("busy-%d.img", i)
		s.AddEntry(t, p.Stall("/"+name, content(1, 1<<20), nil), "").Must(t, http.StatusCreated)
		s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
		s.WaitJob(t, downloads, name, "running")
	}
	gone, gate := make(chan struct{}, 1), make(chan struct{})
	fetched := content(2, 100_000)
	next := p.Gated("/next.img", fetched, gate, false)
	b.AddEntry(t, p.Stall("/stalled.img", content(1, 1<<20), gone), "").Must(t, http.StatusCreated)
	seen("an entry", func(s *Server) { s.WaitRow(t, "stalled.img", "is there", nil) })
	b.Enqueue(t, downloads, "name", "stalled.img").Must(t, http.StatusAccepted)
	seen("a download that runs", status(downloads, "stalled.img", "running"))
	b.AddEntry(t, next, "").Must(t, http.StatusCreated)
	b.Enqueue(t, downloads, "name", "next.img").Must(t, http.StatusAccepted)
	seen("a download that is queued", status(downloads, "next.img", "queued"))
	c.Cancel(t, downloads, "stalled.img").Must(t, http.StatusNoContent)
	seen("a cancelled download", status(downloads, "stalled.img", "cancelled"))
	select {
	case <-gone:
	case <-time.After(within):
		t.Error("after the cancel at C, B continues the fetch")
	}
	seen("a download that starts", status(downloads, "next.img", "running"))
	close(gate)
	b.WaitJob(t, downloads, "next.img", "completed")
	seen("a download that has ended", status(downloads, "next.img", "completed"))
	seen("its bytes", func(s *Server) {
		s.WaitRow(t, "next.img", "is cached", func(r row) bool { return r.Cached })
	})
	b.AddEntry(t, p.File("/fails.img", content(1, 1000)), "").Must(t, http.StatusCreated)
	p.Handle("/fails.img", http.NotFound)
	b.Enqueue(t, downloads, "name", "fails.img").Must(t, http.StatusAccepted)
	b.WaitJob(t, downloads, "fails.img", "failed")
	seen("a download that has failed", status(downloads, "fails.img", "failed"))

	// Images, and a hash at A that is cancelled at C.
	a.putSlow(t, "slow.raw")
	a.WaitJob(t, hashes, "slow.raw", "running")
	seen("a hash that runs", status(hashes, "slow.raw", "running"))
	seen("an image without a digest", func(s *Server) { s.WaitRow(t, "slow.raw", "is there", nil) })
	c.Cancel(t, hashes, "slow.raw").Must(t, http.StatusNoContent)
	seen("a cancelled hash", status(hashes, "slow.raw", "cancelled"))
	up, dropped := content(3, 200_000), content(4, 300_000)
	b.Put(t, "up.img", up)
	seen("an upload", func(s *Server) { s.WaitHashed(t, "up.img", sum(up)) })
	if a.front == nil {
		a.drop(t, "dropped.img", dropped)
	} else {
		a.awsPut(t, "dropped.img", dropped)
	}
	a.WaitHashed(t, "dropped.img", sum(dropped))
	seen("the digest of a file", func(s *Server) { s.WaitHashed(t, "dropped.img", sum(dropped)) })

	b.putManifest(t, manifestOf(manifestImage{Name: "listed.img", Src: p.File("/listed.img", up)})).Must(t, accepted...)
	seen("a manifest", func(s *Server) { s.WaitRow(t, "listed.img", "is there", nil) })
	b.Do(t, http.MethodDelete, "/catalog/cache/"+sum(fetched), nil).Must(t, http.StatusNoContent)
	seen("bytes that are dropped", func(s *Server) {
		s.WaitRow(t, "next.img", "is not cached", func(r row) bool { return !r.Cached })
	})
	c.Do(t, http.MethodDelete, "/catalog/entries?src="+url.QueryEscape(next), nil).Must(t, http.StatusNoContent)
	seen("the deletion of an entry", func(s *Server) { s.WaitGone(t, "next.img") })
	c.Do(t, http.MethodDelete, "/images/up.img", nil).Must(t, http.StatusNoContent)
	seen("the deletion of an image", func(s *Server) { s.WaitGone(t, "up.img") })
}

// TestDeepRunnersTakeOver runs four runners: A hosts the gateway and is busy; C
// is killed in the middle of a fetch, D paused for longer than its lease in the
// middle of two, and B takes over.
func TestDeepRunnersTakeOver(t *testing.T) {
	t.Parallel()
	a := Start(t, Options{Args: []string{"--fetch-workers", "1"}})
	p := publish(t)
	a.AddEntry(t, p.Stall("/busy.img", content(1, 1<<20), make(chan struct{}, 1)), "").Must(t, http.StatusCreated)
	a.Enqueue(t, downloads, "name", "busy.img").Must(t, http.StatusAccepted)
	a.WaitJob(t, downloads, "busy.img", "running")
	c, d := Start(t, Options{Over: a}), Start(t, Options{Over: a})

	// D knows the digest of one of its images, and not of the other.
	type fetch struct {
		at     *Server
		name   string
		summed bool
		src    *dammed
		before int // requests of the first owner
	}
	image := content(2, 2*aheadBytes+12345)
	fetches := []*fetch{{at: c, name: "killed.img"}, {at: d, name: "paused-1.img", summed: true}, {at: d, name: "paused-2.img"}}
	bytesOf := func(i int) []byte { return image[i:] } // different content for each
	for i, f := range fetches {
		f.src = p.Dammed(t, "/"+f.name, bytesOf(i), aheadBytes+8<<20)
		if f.summed {
			f.at.addSummed(t, p, f.src.URL, bytesOf(i))
		} else {
			f.at.AddEntry(t, f.src.URL, "").Must(t, http.StatusCreated)
		}
		f.at.Enqueue(t, downloads, "name", f.name).Must(t, http.StatusAccepted)
	}
	for _, f := range fetches {
		f.src.WaitPast(t)
	}
	// B starts last, and finds jobs that other runners own.
	b := Start(t, Options{Over: a})
	c.Kill(t)
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for _, f := range fetches {
		f.before = len(f.src.Asked(0))
	}
	fetches[0].src.Open()
	fetches[1].src.Open()
	for i, f := range fetches {
		var j job
		if last := i == len(fetches)-1; last {
			// D resumes while B is at the part that D was at, and finds that it
			// owns none of these jobs any more.
			eventually(t, within, f.name+" is taken over", func() error {
				if len(f.src.Asked(f.before)) == 0 {
					return errors.New("not yet")
				}
				return nil
			})
			if err := d.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			f.src.Open()
		}
		eventually(t, within, f.name+" is taken over and completed", func() error {
			j, _ = a.Job(t, downloads, f.name)
			if j.Status != "completed" {
				return fmt.Errorf("job %+v", j)
			}
			return nil
		})
		t.Logf("%s completed %v after its owner went, attempt %d", f.name, time.Since(begin).Round(time.Second), j.Attempt)
		if j.SHA256 != sum(bytesOf(i)) || j.Attempt != 2 || j.BytesDownloaded != int64(len(bytesOf(i))) {
			t.Errorf("%+v, want SHA-256 %s at the second attempt", j, sum(bytesOf(i)))
		}
	}
	if took := time.Since(begin); took < 20*time.Second {
		t.Errorf("all done after %v, before the lease of 30 s can have ended", took)
	}
	for _, f := range fetches {
		f.src.resumed(t, f.before)
	}
	after := content(3, 100_000)
	d.AddEntry(t, p.File("/after.img", after), "").Must(t, http.StatusCreated)
	if j := d.Fetch(t, "after.img"); j.SHA256 != sum(after) {
		t.Errorf("%+v", j)
	}
	eventually(t, within, "D has let go of its jobs", func() error {
		// The gauge counts all jobs; D itself has ended only its own.
		if n := d.metrics(t).value(jobsEnded, "kind", "fetch"); n != 1 {
			return fmt.Errorf("%.0f fetches ended at D, want that of after.img only", n)
		}
		return nil
	})
	want := map[string]bool{sum(after): true}
	for i := range fetches {
		want[sum(bytesOf(i))] = true
	}
	names := a.blobs(t)
	for _, n := range names {
		if !want[n] {
			t.Errorf("blob %s is of no image", n)
		}
	}
	if len(names) != len(want) {
		t.Errorf("%d blobs, want %d", len(names), len(want))
	}
	for i, f := range fetches {
		n := 0
		for _, e := range a.Events(t, url.Values{"kind": {"image.fetched"}}) {
			if e.SubjectID == sum(bytesOf(i)) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d events of %s fetched, want 1", n, f.name)
		}
		if j, _ := a.Job(t, downloads, f.name); j.Status != "completed" || j.Attempt != 2 {
			t.Errorf("after D woke up: %+v", j)
		}
		// Two owners, and the ranges of each are of 1 MiB at least.
		if n, most := len(f.src.Asked(0)), 2*len(image)>>20; n > most {
			t.Errorf("%s was asked for %d times, want %d at most", f.name, n, most)
		}
	}
	a.Cancel(t, downloads, "busy.img").Must(t, http.StatusNoContent)
	a.WaitJob(t, downloads, "busy.img", "cancelled")
	eventually(t, within, "busy.img's parts are given up", func() error {
		if left := a.pending(t, a.CatalogBuck); len(left) > 0 {
			return fmt.Errorf("%q are left", left)
		}
		return nil
	})
	a.noHalves(t)
	b.Stop(t)
	d.Stop(t)
}
