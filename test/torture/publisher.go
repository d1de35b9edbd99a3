package main

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A publisher is a web server on loopback from which images are fetched. The path determines
// how it misbehaves. Once it is polite, it no longer injects random faults.
type publisher struct {
	*httptest.Server
	polite atomic.Bool

	mu      sync.Mutex
	rng     *rand.Rand
	sources []*source
	byPath  map[string]*source
}

// A source is one image of the publisher.
type source struct {
	name     string // of the image
	path     string
	manners  string
	contents []*content // its past, present and future contents, in order
	shaURL   string
	// neverCompletes says that no fetch of it may succeed, and honest that a fetch must
	// succeed once the publisher is polite.
	neverCompletes, honest bool

	mu      sync.Mutex
	current int
	asked   int
}

func (s *source) has(sum string) bool {
	for _, c := range s.contents {
		if c.sum == sum {
			return true
		}
	}
	return false
}

// changeEvery is the number of requests after which a changing source changes.
const changeEvery = 7

// now counts a request and returns the content of the source at it.
func (s *source) now() *content {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked++; s.asked%changeEvery == 0 && s.current < len(s.contents)-1 {
		s.current++
	}
	return s.contents[s.current]
}

func publish(rng *rand.Rand) *publisher {
	p := &publisher{rng: rng, byPath: map[string]*source{}}
	p.Server = &httptest.Server{Listener: listenLoopback(), Config: &http.Server{
		Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
	}}
	p.Start()
	size := func(least, most int64) int64 { return least + rng.Int64N(most-least) }
	one := func(size int64) []*content { return []*content{newContent(rng.Uint64(), size)} }
	several := func(least, most int64) []*content {
		var all []*content
		for range 12 {
			all = append(all, newContent(rng.Uint64(), size(least, most)))
		}
		return all
	}
	sameSize := func(n int64) []*content {
		var all []*content
		for range 12 {
			all = append(all, newContent(rng.Uint64(), n))
		}
		return all
	}
	add := func(manners string, s *source) *source {
		s.manners, s.name = manners, fmt.Sprintf("%s-%d.img", manners, len(p.sources))
		s.path = fmt.Sprintf("/pub/%d/%s", len(p.sources), s.name)
		p.sources = append(p.sources, s)
		p.byPath[s.path] = s
		return s
	}
	good := add("good", &source{contents: one(size(1<<20, 12<<20)), honest: true})
	add("good", &source{contents: good.contents, honest: true}) // the same bytes from elsewhere
	add("drops", &source{contents: one(size(20<<20, 40<<20)), honest: true})
	add("drops", &source{contents: one(size(130<<20, 150<<20)), honest: true}).withSHA(p)
	add("drops", &source{contents: one(size(65<<20, 90<<20)), honest: true})
	add("noranges", &source{contents: one(size(5<<20, 20<<20)), honest: true})
	add("nolength", &source{contents: one(size(5<<20, 40<<20)), honest: true})
	add("redirects", &source{contents: one(size(5<<20, 20<<20)), honest: true})
	add("changes", &source{contents: several(10<<20, 30<<20)})
	add("changes", &source{contents: sameSize(20 << 20)})
	add("blind", &source{contents: sameSize(12 << 20)})
	add("badranges", &source{contents: one(size(20<<20, 40<<20))}).withSHA(p)
	add("stalls", &source{contents: one(size(5<<20, 10<<20)), neverCompletes: true})
	add("short", &source{contents: one(size(1<<20, 10<<20)), neverCompletes: true})
	add("liar", &source{contents: one(size(1<<20, 10<<20)), neverCompletes: true}).withSHA(p)
	return p
}

// withSHA makes the publisher serve a sidecar with the digest of a source. The digest of the
// liar is wrong.
func (s *source) withSHA(p *publisher) {
	s.shaURL = p.URL + s.path + ".sha256"
	p.byPath[s.path+".sha256"] = s
}

func (p *publisher) url(s *source) string { return p.URL + s.path }

// chance returns true once in n calls on average, and false once the publisher is polite.
func (p *publisher) chance(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rng.IntN(n) == 0 && !p.polite.Load()
}

func (p *publisher) upTo(n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rng.Int64N(n + 1)
}

func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := p.byPath[r.URL.Path]
	switch {
	case s == nil:
		http.NotFound(w, r)
		return
	case strings.HasSuffix(r.URL.Path, ".sha256"):
		sum := s.contents[0].sum
		if s.manners == "liar" {
			sum = strings.Repeat("ab", 32)
		}
		fmt.Fprintf(w, "%s  %s\n", sum, s.name)
		return
	}
	c := s.now()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if s.manners != "blind" && s.manners != "nolength" {
		h.Set("ETag", `"`+c.sum[:20]+`"`)
	}
	if s.manners == "drops" && p.chance(8) {
		h.Set("Retry-After", "1")
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	slow := &throttled{ResponseWriter: w, left: -1}
	if s.manners == "drops" && p.chance(3) {
		slow.left = p.upTo(8 << 20)
	}
	switch s.manners {
	case "noranges", "short", "stalls":
		h.Set("Content-Length", strconv.FormatInt(c.size, 10))
		if r.Method == http.MethodHead {
			return
		}
		n := c.size
		switch {
		case s.manners != "noranges":
			n = c.size / 2
		case p.chance(3):
			n = p.upTo(c.size)
		}
		_, _ = io.Copy(slow, c.part(0, n))
		if s.manners == "stalls" {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
		if n < c.size {
			panic(http.ErrAbortHandler)
		}
	case "nolength":
		if r.Method == http.MethodHead {
			return
		}
		n := c.size
		if p.chance(3) {
			n = p.upTo(c.size)
		}
		_ = http.NewResponseController(w).Flush() // chunked from here on
		_, _ = io.Copy(slow, c.part(0, n))
		if n < c.size {
			panic(http.ErrAbortHandler)
		}
	case "redirects":
		// The URL that it redirects to expires soon.
		if stamp := r.URL.Query().Get("until"); stamp == "" {
			until := time.Now().Add(300 * time.Millisecond).UnixMilli()
			http.Redirect(w, r, fmt.Sprintf("%s?until=%d", r.URL.Path, until), http.StatusFound)
			return
		} else if t, _ := strconv.ParseInt(stamp, 10, 64); time.Now().UnixMilli() > t {
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
		http.ServeContent(slow, r, "", time.Time{}, c.reader(0))
	case "badranges":
		if offset := rangeOffset(r); offset > 0 && p.chance(4) {
			// Send other bytes than Content-Range says.
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, c.size-1, c.size))
			h.Set("Content-Length", strconv.FormatInt(c.size-offset, 10))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.Copy(slow, c.part(0, c.size-offset))
			return
		} else if offset > 0 && p.chance(4) {
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset/2, c.size-1, c.size))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.Copy(slow, c.part(offset/2, c.size))
			return
		}
		http.ServeContent(slow, r, "", time.Time{}, c.reader(0))
	default:
		http.ServeContent(slow, r, "", time.Time{}, c.reader(0))
	}
}

// rangeOffset returns the offset at which the requested range begins.
func rangeOffset(r *http.Request) int64 {
	spec, _ := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	first, _, _ := strings.Cut(spec, "-")
	n, _ := strconv.ParseInt(first, 10, 64) // 0 without a range
	return n
}

// bytesPerSecond is the rate of one connection: fetches must last long enough to be
// interrupted.
const bytesPerSecond = 16 << 20

// A throttled response limits the rate of a body. If left is not negative, it drops the
// connection after that number of bytes.
type throttled struct {
	http.ResponseWriter
	left int64
}

func (t *throttled) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *throttled) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / bytesPerSecond)
	if t.left < 0 {
		return t.ResponseWriter.Write(p)
	}
	if int64(len(p)) < t.left {
		t.left -= int64(len(p))
		return t.ResponseWriter.Write(p)
	}
	_, _ = t.ResponseWriter.Write(p[:t.left])
	_ = http.NewResponseController(t.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

func listenLoopback() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // without loopback there is nothing to test
	}
	return l
}
