package main

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"time"
)

// An operation is a kind of S3 request: its method, or LIST, and what it is about: images, or
// the first segment of a key or prefix of the catalog root, or nothing for a bucket.
type operation struct{ method, of string }

// requests counts S3 requests by operation.
type requests map[operation]int

// since returns the requests in r that are not in before.
func (r requests) since(before requests) requests {
	more := requests{}
	for op, n := range r {
		if n > before[op] {
			more[op] = n - before[op]
		}
	}
	return more
}

func (r requests) total() int {
	n := 0
	for _, count := range r {
		n += count
	}
	return n
}

// of returns the number of requests with one of the methods.
func (r requests) of(methods ...string) int {
	n := 0
	for op, count := range r {
		if slices.Contains(methods, op.method) {
			n += count
		}
	}
	return n
}

// String returns the counts, the highest first: "30 LIST journal, 2 GET events".
func (r requests) String() string {
	var list []string
	for _, op := range slices.SortedFunc(maps.Keys(r), func(a, b operation) int {
		return cmp.Or(r[b]-r[a], strings.Compare(a.method+a.of, b.method+b.of))
	}) {
		list = append(list, fmt.Sprintf("%d %s %s", r[op], op.method, cmp.Or(op.of, "bucket")))
	}
	return cmp.Or(strings.Join(list, ", "), "none")
}

// S3's prices in us-east-1, S3 Standard, in dollars a request, from
// https://aws.amazon.com/s3/pricing/ in November 2026. DELETE costs nothing.
const (
	priceOfWrites = 0.005 / 1000  // PUT, COPY, POST, LIST
	priceOfReads  = 0.0004 / 1000 // GET, and all other requests
)

// dollars returns the list price of the requests.
func (r requests) dollars() float64 {
	const writes = "LIST PUT POST"
	total := 0.0
	for op, n := range r {
		switch {
		case strings.Contains(writes, op.method):
			total += float64(n) * priceOfWrites
		case op.method != http.MethodDelete:
			total += float64(n) * priceOfReads
		}
	}
	return total
}

// A proxy in front of an S3 server delays each request, and counts it. Signatures stay valid,
// since the Host header is passed on.
type proxy struct {
	URL    string
	delay  time.Duration
	server *http.Server

	mu     sync.Mutex
	counts requests
	last   time.Time // of the last request
}

// newProxy starts a proxy of the server at HOST:PORT to, on a free port of
// loopback.
func newProxy(to string, delay time.Duration) (*proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{URL: "http://" + ln.Addr().String(), delay: delay, counts: requests{}}
	forward := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", to },
		FlushInterval: -1,
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256},
		// The client has ended, or sees the error itself.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	p.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.count(r)
		select {
		case <-time.After(p.delay):
			forward.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})}
	go func() { _ = p.server.Serve(ln) }() // returns when the proxy is closed
	return p, nil
}

func (p *proxy) count(r *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	op := operation{r.Method, key}
	q := r.URL.Query()
	if r.Method == http.MethodGet && (q.Has("list-type") || q.Has("uploads")) {
		op = operation{"LIST", q.Get("prefix")}
	}
	op.of, _, _ = strings.Cut(op.of, "/")
	if bucket == "images" {
		op.of = bucket
	}
	if q.Has("uploads") {
		op.of = "multipart uploads"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[op]++
	p.last = time.Now()
}

// sent returns the requests that have arrived so far.
func (p *proxy) sent() requests {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// quietFor returns the time since the last request.
func (p *proxy) quietFor() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.last)
}

func (p *proxy) close() { _ = p.server.Close() }
