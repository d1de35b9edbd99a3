package fetch

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/entry"
	"imageroot/shared/source"
)

// many is an image that many connections can share.
var many = content(9, 60*testSegment+777)

// TestRefusedConnections has sources that refuse some of the connections.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	busy := func(limit int64, refusal behavior) behavior {
		var now atomic.Int64
		return func(o *origin, n int, w http.ResponseWriter, r *http.Request) {
			defer now.Add(-1)
			if now.Add(1) > limit {
				refusal(o, n, w, r)
				return
			}
			good(many)(o, n, w, r)
		}
	}
	each := func(k int) func(int) bool { return func(n int) bool { return n%k == 0 } }
	for name, b := range map[string]behavior{
		"429 beyond eight":           busy(8, status(http.StatusTooManyRequests)),
		"503 beyond eight":           busy(8, status(http.StatusServiceUnavailable)),
		"503 beyond one":             busy(1, status(http.StatusServiceUnavailable)),
		"429 now and then":           when(each(9), status(http.StatusTooManyRequests), good(many)),
		"429 with Retry-After, once": when(func(n int) bool { return n == 9 }, status(http.StatusTooManyRequests, "Retry-After", "1"), good(many)),
		"a reset before each ninth":  when(each(9), cut(good(many), 0, true), good(many)),
		"a reset within each ninth":  when(each(9), cut(good(many), 20_000, true), good(many)),
		"no ranges for each ninth":   when(each(9), unranged(good(many)), good(many)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, b)
			w := newWorld(t, o.url(), knows(many))
			f := w.process("a", w.root)
			f.Limits.PartBytes, f.Limits.AheadBytes = 20*testSegment, 40*testSegment
			w.enqueue()
			w.finish(f)
			w.has(many)
			w.clean()
		})
	}
}

// A listener that resets connections beyond a number.
type crowdedListener struct {
	net.Listener
	most int64
	open atomic.Int64
}

type crowdedConn struct {
	net.Conn
	once sync.Once
	l    *crowdedListener
}

func (l *crowdedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.most {
			return &crowdedConn{Conn: c, l: l}, nil
		}
		l.open.Add(-1)
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func (c *crowdedConn) Close() error {
	c.once.Do(func() { c.l.open.Add(-1) })
	return c.Conn.Close()
}

// A source that takes three connections at once is fetched over those.
func TestCrowdedSource(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, good(many))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(o.serve), ErrorLog: o.Server.Config.ErrorLog}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(&crowdedListener{Listener: ln, most: 3}) }()
	w := newWorld(t, "http://"+ln.Addr().String()+"/x.img", knows(many))
	w.enqueue()
	w.finish(w.process("a", w.root))
	w.has(many)
	w.clean()
}

// Fetches from one host share its connections, and none waits for another.
func TestSharedHost(t *testing.T) {
	t.Parallel()
	all := &hosts{}
	var lanes []*lane
	for range 3 {
		l := all.join("host", 5, 8, 0)
		defer l.leave()
		lanes = append(lanes, l)
	}
	l, other, third := lanes[0], lanes[1], lanes[2]
	l.width = 5
	for i, tt := range []struct {
		lane *lane
		ok   bool
	}{{l, true}, {l, true}, {l, false}, {other, true}, {other, true}, {other, false}, {third, true}, {third, false}} {
		l.mu.Lock()
		running := l.running
		tt.lane.waiting = []int{tt.lane.own}
		ok := tt.lane.mayConnect(tt.lane.own)
		l.mu.Unlock()
		if ok != tt.ok {
			t.Fatalf("step %d: a connection beside %d: %v", i, running, ok)
		}
		if ok {
			tt.lane.connect(t.Context(), tt.lane.own)
			tt.lane.waiting = nil
		}
	}
}

// Two fetches from one host at once complete, with fewer connections than they want.
func TestFetchesFromOneHost(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, good(many))
	var all hosts
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			w := newWorld(t, o.url(), knows(many))
			s, err := openStream(t.Context(), streamConfig{
				Limits: testLimits.withDefaults(), sources: w.sourcesOf("a", time.Minute), hosts: &all, most: 3,
				loc: source.Location{URL: o.url()}, size: -1, count: func(int) {}, progress: func(int64, int64) {},
			})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			s.allow(int64(len(many)))
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, many) {
				t.Errorf("read %d bytes of %d, %v", len(got), len(many), err)
			}
		})
	}
	wg.Wait()
	if len(all.byName) != 0 {
		t.Errorf("%d hosts are left", len(all.byName))
	}
}

// A host that asks for a pause gets no request meanwhile, also of other segments.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	l := (&hosts{}).join("host", 16, 8, 0)
	defer l.leave()
	cuts, _ := l.connect(t.Context(), 0)
	l.refused(cuts, time.Hour)
	l.disconnect(false)
	l.waiting = []int{1}
	if l.mayConnect(1) {
		t.Error("a request before the host wants one")
	}
	l.until = time.Time{}
	if !l.mayConnect(1) {
		t.Error("no request after the pause")
	}
}

// A fetch with few buffers completes over many connections.
func TestFewBuffers(t *testing.T) {
	t.Parallel()
	for _, buffers := range []int64{1, 2, 5} {
		o := newOrigin(t, good(many))
		w := newWorld(t, o.url(), entry.Entry{})
		f := w.process("a", w.root)
		f.Limits.MemoryBytes = buffers * testSegment
		f.Limits.AheadBytes = int64(len(many))
		w.enqueue()
		w.finish(f)
		w.has(many)
		w.clean()
	}
}

// A host that is far away gets more connections from the start, as far as it may.
func TestFarHost(t *testing.T) {
	t.Parallel()
	all := &hosts{}
	width := func(name string, most int, lag time.Duration) int {
		l := all.join(name, most, 8, lag)
		defer l.leave()
		return l.width
	}
	near, far, few := width("near", 16, time.Millisecond), width("far", 16, time.Second), width("few", 2, time.Second)
	if near >= far || far > 16 || few != 2 {
		t.Errorf("%d connections to a near host, %d to a far one, %d to one that may get 2", near, far, few)
	}
}

// The place of a connection whose end is near is free for the next request, unless the host
// has refused connections. The setting and the width bound those that are open.
func TestEnds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		width, most int
		cautious    bool
		open        int
	}{
		{"half as many more", 4, 24, false, 6},
		{"the setting", 4, 5, false, 5},
		{"a host that has refused", 4, 24, true, 4},
		{"one connection", 1, 24, false, 1},
	} {
		var all hosts
		l := all.join("host", tt.most, 8, time.Second)
		l.width, l.cautious = tt.width, tt.cautious
		open := 0
		connects := func() bool {
			l.mu.Lock()
			l.waiting = []int{open}
			ok := l.mayConnect(open)
			l.waiting = nil
			l.mu.Unlock()
			if ok {
				l.connect(t.Context(), open)
				open++
			}
			return ok
		}
		for connects() {
		}
		if open != tt.width {
			t.Errorf("%s: %d connections before one ends, want %d", tt.name, open, tt.width)
		}
		for range tt.width {
			l.ends()
			for connects() {
			}
		}
		if open != tt.open {
			t.Errorf("%s: %d connections are open, want %d", tt.name, open, tt.open)
		}
		for i := range open {
			l.disconnect(i < tt.width)
		}
		if l.running != 0 || l.host.ending != 0 || l.own != 0 || l.ending != 0 {
			t.Errorf("%s: connections are left: %+v", tt.name, l.host)
		}
		l.leave()
	}
}

// Connections of all fetches from a host whose end is near leave their places, so that none
// of them waits for the others.
func TestEndsOfSharedHost(t *testing.T) {
	t.Parallel()
	var all hosts
	lanes := []*lane{all.join("host", 24, 8, time.Second), all.join("host", 24, 8, time.Second)}
	lanes[0].width = 4
	connects := func(l *lane) bool {
		l.mu.Lock()
		l.waiting = []int{l.own}
		ok := l.mayConnect(l.own)
		l.waiting = nil
		l.mu.Unlock()
		if ok {
			l.connect(t.Context(), l.own)
		}
		return ok
	}
	for _, l := range lanes {
		for connects(l) {
		}
	}
	for _, l := range lanes {
		l.ends()
	}
	for i, l := range lanes {
		if !connects(l) {
			t.Errorf("fetch %d gets no connection in place of the one that ends", i)
		}
	}
}
