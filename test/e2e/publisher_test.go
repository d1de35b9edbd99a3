package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"
)

// A publisher is a web server that images are fetched from. Handlers of the
// test can make it misbehave.
type publisher struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string]http.Handler // by decoded path
	hits  map[string]int
}

// publish starts a publisher on loopback.
func publish(t testing.TB) *publisher { return publishOn(t, "127.0.0.1:0") }

func publishOn(t testing.TB, addr string) *publisher {
	t.Helper()
	p := &publisher{files: map[string]http.Handler{}, hits: map[string]int{}}
	p.Server = serveOn(t, addr, p)
	return p
}

// serveOn starts a server that ends with the test.
func serveOn(t testing.TB, addr string, h http.Handler) *httptest.Server {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{
		Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
	}}
	s.Start()
	t.Cleanup(func() {
		// Handlers that stall on purpose wait for their client to leave.
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	h := p.files[r.URL.Path]
	p.hits[r.Method+" "+r.URL.Path]++
	p.mu.Unlock()
	if h == nil {
		http.NotFound(w, r)
		return
	}
	h.ServeHTTP(w, r)
}

// At returns the URL of a path, escaped.
func (p *publisher) At(path string) string { return p.URL + (&url.URL{Path: path}).EscapedPath() }

// Handle serves path by h and returns its URL.
func (p *publisher) Handle(path string, h http.HandlerFunc) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[path] = h
	return p.At(path)
}

// File serves content at path, with ranges and validators, and returns its URL.
func (p *publisher) File(path string, content []byte) string {
	etag := `"` + sum(content)[:16] + `"`
	return p.Handle(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), bytes.NewReader(content))
	})
}

// Hits returns the number of requests with a method for a path.
func (p *publisher) Hits(method, path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits[method+" "+path]
}

// whole answers HEAD, or writes the first n bytes of content as if they were
// all, as a server without ranges does. It reports whether the request was for
// a body.
func whole(w http.ResponseWriter, r *http.Request, content []byte, n int) bool {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method == http.MethodHead {
		return false
	}
	_, _ = w.Write(content[:n])
	_ = http.NewResponseController(w).Flush()
	return true
}

// Short serves half of content and closes the connection.
func (p *publisher) Short(path string, content []byte) string {
	return p.Handle(path, func(w http.ResponseWriter, r *http.Request) {
		if whole(w, r, content, len(content)/2) {
			panic(http.ErrAbortHandler)
		}
	})
}

// Stall serves half of content and then nothing until the client leaves, which
// it reports on gone.
func (p *publisher) Stall(path string, content []byte, gone chan<- struct{}) string {
	return p.Handle(path, func(w http.ResponseWriter, r *http.Request) {
		if whole(w, r, content, len(content)/2) {
			<-r.Context().Done()
			select {
			case gone <- struct{}{}:
			default:
			}
		}
	})
}

// Gated serves half of content, and the rest when gate is closed; without a
// length if chunked.
func (p *publisher) Gated(path string, content []byte, gate <-chan struct{}, chunked bool) string {
	return p.Handle(path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			if !chunked {
				w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			}
			return
		}
		if !chunked {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		}
		half := len(content) / 2
		_, _ = w.Write(content[:half])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-gate:
			_, _ = w.Write(content[half:])
		case <-r.Context().Done():
		}
	})
}

// A trap listens at an address that must not be reached, and counts
// connections.
type trap struct {
	net.Listener
	mu sync.Mutex
	n  int
}

func newTrap(t testing.TB, addr string) *trap {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return trapOn(t, l)
}

func trapOn(t testing.TB, l net.Listener) *trap {
	t.Helper()
	tr := &trap{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tr.mu.Lock()
			tr.n++
			tr.mu.Unlock()
			_ = c.Close()
		}
	}()
	return tr
}

func (tr *trap) Port() int { return tr.Addr().(*net.TCPAddr).Port }

// Check fails the test if a connection was made.
func (tr *trap) Check(t testing.TB) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.n > 0 {
		t.Errorf("%d connections to an address that must not be dialled (%s)", tr.n, tr.Addr())
	}
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
