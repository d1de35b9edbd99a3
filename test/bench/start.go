package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"imageroot/shared/layout"
	"imageroot/test/runner"
)

const (
	// warmRequests is the number of requests whose median is a warm time.
	warmRequests = 20
	// builtOver is the largest number of images whose first index is built over the store that
	// is far away: it takes a request for each record.
	builtOver = 10_000
	// refreshEvery is the interval at which the page asks for changes, as in app.js.
	refreshEvery                 = 2 * time.Second
	startPatience, quietPatience = 10 * time.Minute, 10 * time.Minute
)

// Paths whose first answer after a start is measured.
var firstPaths = []string{"/images", "/catalog?limit=100", "/ui/images"}

// start measures starts of the program over stores of different sizes, over the gateway inside
// and over a store that is far away: the time to the first answer, the requests sent for it and
// for a page that stays open, and memory.
func (b *bench) start(ctx context.Context) error {
	for _, count := range b.counts {
		if err := b.startAt(ctx, count); err != nil {
			return fmt.Errorf("%d images: %w", count, err)
		}
	}
	return nil
}

func (b *bench) startAt(ctx context.Context, count int) (err error) {
	began := time.Now()
	f, err := b.fill(ctx, fmt.Sprintf("store-%d", count), count)
	if err != nil {
		return err
	}
	b.say("%d images and their records written in %.1f s", count, time.Since(began).Seconds())
	defer func() { err = errors.Join(err, f.close(), os.RemoveAll(f.dir)) }()
	far, err := newProxy(f.gateway.Addr(), b.delay)
	if err != nil {
		return err
	}
	defer far.close()
	if err := b.buildIndex(ctx, f, far, count); err != nil {
		return err
	}
	here := b.serverIn(f.dir)
	if err := b.starts(ctx, here, nil, fmt.Sprintf("%d images", count), count); err != nil {
		return err
	}
	over := b.serverOver("over-far", far.URL, accessKey, secretKey)
	over.launch.Env = append(over.launch.Env, "IMAGEROOT_EVENTS=off")
	if err := b.starts(ctx, over, far, fmt.Sprintf("%d images, %v away", count, b.delay), count); err != nil {
		return err
	}
	return b.catalogFunction(ctx, far, count)
}

// buildIndex measures the first start over a catalog without an index.
func (b *bench) buildIndex(ctx context.Context, f *filled, far *proxy, count int) error {
	s, what := b.serverOver("over-far", far.URL, accessKey, secretKey), fmt.Sprintf("%d images, %v away", count, b.delay)
	s.launch.Env = append(s.launch.Env, "IMAGEROOT_EVENTS=off")
	if count > builtOver {
		s, far, what = b.serverIn(f.dir), nil, fmt.Sprintf("%d images", count)
	}
	took, sent, err := s.firstAnswer(ctx, far, firstPaths[0])
	if err != nil {
		return err
	}
	defer func() { _ = s.Kill() }()
	b.report.absolute("start", what+", no index: GET /images", unitSeconds, []float64{took}, nil)
	if far != nil {
		b.report.absolute("start", what+", no index: requests until GET /images is answered", unitRequests, []float64{float64(sent.total())}, nil)
	}
	b.say("%s, no index: %.1f s: %v", what, took, sent)
	if err := s.mustList(ctx, count); err != nil {
		return err
	}
	err = until(ctx, time.Minute, 100*time.Millisecond, "checkpoint", func() (bool, error) {
		_, err := os.Stat(filepath.Join(f.dir, "catalog", string(layout.IndexKey)))
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	if err := b.peakMemory(s.PID(), what+", no index", count); err != nil {
		return err
	}
	return s.Stop(time.Minute)
}

// peakMemory adds the row of the peak memory of a process.
func (b *bench) peakMemory(pid int, what string, count int) error {
	peak, err := runner.Memory(pid, "VmHWM")
	if err != nil {
		return err
	}
	limit := atMost(80)
	if count >= 100_000 {
		limit = atMost(250)
	}
	b.report.absolute("start", what+": peak memory", unitMiB, []float64{peak}, limit)
	b.say("%s: peak memory %.0f MiB", what, peak)
	return nil
}

// mustList returns an error unless the catalog has count rows.
func (s *server) mustList(ctx context.Context, count int) error {
	total, err := s.total(ctx, "")
	if err == nil && total != count {
		err = fmt.Errorf("the catalog has %d rows, want %d", total, count)
	}
	return err
}

// total returns the number of rows of the catalog that a search finds.
func (s *server) total(ctx context.Context, search string) (int, error) {
	data, err := s.do(ctx, http.MethodGet, "/catalog?limit=1&q="+url.QueryEscape(search), nil)
	if err != nil {
		return 0, err
	}
	var page struct{ Total int }
	err = json.Unmarshal(data, &page)
	return page.Total, err
}

// firstAnswer starts the server. It returns the seconds until the whole answer of a GET of path,
// and the requests sent over p until then.
func (s *server) firstAnswer(ctx context.Context, p *proxy, path string) (took float64, sent requests, err error) {
	var before requests
	if p != nil {
		before = p.sent()
	}
	s.launch.Answers = func(ctx context.Context, pages string) bool {
		if _, err := s.getFrom(ctx, pages, path); err != nil {
			return false
		}
		if p != nil {
			sent = p.sent().since(before)
		}
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	s.Process, err = runner.Start(ctx, s.launch)
	if err != nil {
		return 0, nil, err
	}
	return s.Ready.Seconds(), sent, nil
}

// getFrom sends a GET with the session's cookie if there is one, and the token otherwise.
func (s *server) getFrom(ctx context.Context, pages, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, pages+path, nil)
	if err != nil {
		return nil, err
	}
	if len(s.http.Jar.Cookies(req.URL)) == 0 {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return s.answer(req)
}

// starts measures a server with count images. p is the proxy that it uses, or nil.
func (b *bench) starts(ctx context.Context, s *server, p *proxy, what string, count int) error {
	if _, _, err := s.firstAnswer(ctx, p, "/readyz"); err != nil {
		return err
	}
	defer func() { _ = s.Kill() }()
	if err := s.login(ctx); err != nil {
		return err
	}
	for _, path := range firstPaths {
		var all []first
		for range b.rounds {
			if err := s.Stop(time.Minute); err != nil {
				return err
			}
			took, sent, err := s.firstAnswer(ctx, p, path)
			if err != nil {
				return err
			}
			used, err := cpuTime(s.PID())
			if err != nil {
				return err
			}
			all = append(all, first{took, used, sent})
		}
		b.reportFirst(what, path, firstBound(count, path, p != nil), all)
	}
	if err := s.mustList(ctx, count); err != nil {
		return err
	}
	if p != nil {
		if err := b.openPage(ctx, s, p, what); err != nil {
			return err
		}
		if err := b.second(ctx, s, p, what); err != nil {
			return err
		}
	}
	if err := b.warm(ctx, s, what, count); err != nil {
		return err
	}
	if err := b.peakMemory(s.PID(), what, count); err != nil {
		return err
	}
	return s.Stop(time.Minute)
}

// A first is the first answer after a start.
type first struct {
	took float64       // seconds
	used time.Duration // of the processor, by the process
	sent requests      // until then, over the proxy; nil without one
}

// reportFirst adds the rows of the first answers to a path.
func (b *bench) reportFirst(what, path string, limit *bound, all []first) {
	const most = 40
	var times, used, counts []float64
	for _, f := range all {
		times, used, counts = append(times, f.took), append(used, f.used.Seconds()), append(counts, float64(f.sent.total()))
		b.say("%s: start to GET %s: %.2f s, %.2f s of the processor, requests: %v", what, path, f.took, f.used.Seconds(), f.sent)
	}
	b.report.absolute("start", what+": start to GET "+path, unitSeconds, times, limit)
	b.report.absolute("start", what+": processor time until then", unitSeconds, used, nil)
	if all[0].sent != nil {
		b.report.absolute("start", what+": requests until GET "+path+" is answered", unitRequests, counts, atMost(most))
	}
}

// firstBound returns the bound of the first answer.
func firstBound(count int, path string, far bool) *bound {
	switch {
	case count >= 100_000 && path == "/ui/images" && !far:
		return atMost(2)
	case count >= 100_000:
		return atMost(2.5)
	}
	return atMost(1)
}

// warm measures answers of a running server.
func (b *bench) warm(ctx context.Context, s *server, what string, count int) error {
	for _, path := range []string{"/ui/images", "/ui/images?q=fedora+arm64", "/ui/images?sort=-size", "/catalog?limit=100", "/images"} {
		var times []float64
		var body []byte
		for range warmRequests {
			began := time.Now()
			var err error
			if body, err = s.getFrom(ctx, s.Pages, path); err != nil {
				return err
			}
			times = append(times, time.Since(began).Seconds()*1000)
		}
		var limit *bound
		if path != "/images" {
			limit = atMost(50)
		}
		b.report.absolute("start", what+": GET "+path+", warm", unitMillis, times, limit)
		b.say("%s: GET %s, warm: %v, %d KiB", what, path, series{Unit: unitMillis, Samples: times}, len(body)/kib)
		if path == "/ui/images" {
			rows := bytes.Count(body, []byte("<tr"))
			if rows == 0 {
				return fmt.Errorf("the page has no rows of a table: %.300s", body)
			}
			b.report.absolute("start", what+": rows in the page", unitRows, []float64{float64(rows)}, atMost(300))
		}
	}
	return nil
}

// quiet waits until the server has sent no request for a while.
func (p *proxy) quiet(ctx context.Context) error {
	const calm = 5 * time.Second
	return until(ctx, quietPatience, 100*time.Millisecond, "quiet store", func() (bool, error) { return p.quietFor() > calm, nil })
}

// openPage counts the requests that a server sends to the store without clients, and with
// one open page.
func (b *bench) openPage(ctx context.Context, s *server, p *proxy, what string) error {
	counted := func(name string, during func() error) (requests, error) {
		if err := p.quiet(ctx); err != nil {
			return nil, err
		}
		before := p.sent()
		if err := during(); err != nil {
			return nil, err
		}
		sent := p.sent().since(before)
		b.say("%s: %v of %s: %v", what, b.minute, name, sent)
		return sent, nil
	}
	idle, err := counted("nothing", func() error { return wait(ctx, b.minute) })
	if err != nil {
		return err
	}
	b.report.absolute("start", what+": requests a minute while nobody asks", unitRequests, []float64{b.aMinute(idle.total())}, nil)
	open, err := counted("an open page", func() error { return s.watchPage(ctx, b.minute) })
	if err != nil {
		return err
	}
	for _, methods := range [][]string{{"LIST"}, {"GET", "HEAD"}, {"PUT", "POST"}} {
		b.report.absolute("start", what+": "+methods[0]+" a minute while a page is open", unitRequests, []float64{b.aMinute(open.of(methods...))}, nil)
	}
	b.report.absolute("start", what+": price of an hour of that", unitCents, []float64{100 * open.dollars() * float64(time.Hour) / float64(b.minute)}, nil)
	return nil
}

// second measures the time after which a runner that is asked shows what another one, over the
// same store, has changed.
func (b *bench) second(ctx context.Context, s *server, p *proxy, what string) error {
	other := b.serverOver("over-far-too", p.URL, accessKey, secretKey)
	other.launch.Env = append(other.launch.Env, "IMAGEROOT_EVENTS=off")
	if err := other.start(ctx); err != nil {
		return err
	}
	defer func() { _ = other.Kill() }()
	const name = "of-another-runner.img"
	seen := func(total int) (float64, error) {
		began := time.Now()
		err := until(ctx, time.Minute, 50*time.Millisecond, "change of another runner", func() (bool, error) {
			n, err := s.total(ctx, name)
			return n == total, err
		})
		return time.Since(began).Seconds(), err
	}
	var added, removed []float64
	for range b.rounds {
		if err := other.uploadZeros(ctx, name, mib); err != nil {
			return err
		}
		took, err := seen(1)
		if err != nil {
			return err
		}
		added = append(added, took)
		if _, err := other.do(ctx, http.MethodDelete, "/images/"+name, nil); err != nil {
			return err
		}
		if took, err = seen(0); err != nil {
			return err
		}
		removed = append(removed, took)
	}
	b.report.absolute("start", what+": an upload to another runner, until it is seen", unitSeconds, added, atMost(2))
	b.report.absolute("start", what+": its deletion, until it is seen", unitSeconds, removed, atMost(2))
	b.say("%s: seen after %v, and %v", what, series{Unit: unitSeconds, Samples: added}, series{Unit: unitSeconds, Samples: removed})
	return nil
}

// aMinute returns the number of requests a minute, if n were sent in b.minute.
func (b *bench) aMinute(n int) float64 { return float64(n) * float64(time.Minute) / float64(b.minute) }

var versionOf = regexp.MustCompile(`id="([a-z]+)" data-version="([0-9a-f]+)"`)

// watchPage opens the page of images and refreshes it as its script does, for a time.
func (s *server) watchPage(ctx context.Context, d time.Duration) error {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	versions := url.Values{}
	path := "/ui/images"
	for {
		body, err := s.getFrom(ctx, s.Pages, path)
		if err != nil {
			return err
		}
		for _, m := range versionOf.FindAllSubmatch(body, -1) {
			versions.Set("v-"+string(m[1]), string(m[2]))
		}
		path = "/ui/images/live?" + versions.Encode()
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
