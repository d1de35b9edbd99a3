package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// roundTrip is the round-trip time of the slow link.
	roundTrip = 100 * time.Millisecond
	// linkRate is the rate of one connection, in bytes per second.
	linkRate = 10_000_000
)

// A slowLink forwards TCP connections to a server as a long link does: data arrives half a
// round trip later, opening a connection takes a round trip, and each connection is limited to
// linkRate.
type slowLink struct {
	listener net.Listener
	to       string
	most     int64 // connections at once, beyond which it resets them; 0 is no limit
	open     atomic.Int64
	// delivered counts the bytes that have reached clients.
	delivered atomic.Int64

	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	over  bool
}

// openLink opens a slow link to the server at serverURL. It resets connections beyond most,
// unless that is 0.
func openLink(serverURL string, most int64) (*slowLink, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &slowLink{listener: ln, to: u.Host, most: most, conns: map[net.Conn]struct{}{}}
	l.wg.Go(l.accept)
	return l, nil
}

// URL returns the server's URL over the link.
func (l *slowLink) URL() string { return "http://" + l.listener.Addr().String() }

func (l *slowLink) close() {
	l.mu.Lock()
	l.over = true
	for c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.listener.Close()
	l.wg.Wait()
}

// hold registers a connection to be closed with the link. If the link is closed already, it
// closes the connection and returns false.
func (l *slowLink) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		c.Close()
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *slowLink) drop(c net.Conn) {
	c.Close()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

func (l *slowLink) accept() {
	for {
		c, err := l.listener.Accept()
		if err != nil {
			return // the link is closed
		}
		if l.most > 0 && l.open.Load() >= l.most {
			_ = c.(*net.TCPConn).SetLinger(0) // a reset
			c.Close()
		} else if l.hold(c) {
			l.open.Add(1)
			l.wg.Go(func() {
				defer l.open.Add(-1)
				l.connect(c)
			})
		}
	}
}

func (l *slowLink) connect(client net.Conn) {
	defer l.drop(client)
	time.Sleep(roundTrip) // the TCP handshake
	server, err := net.Dial("tcp", l.to)
	if err != nil || !l.hold(server) {
		return
	}
	defer l.drop(server)
	var wg sync.WaitGroup
	end := func() { client.Close(); server.Close() } // one direction ends both
	wg.Go(func() { defer end(); carry(server, client, nil) })
	wg.Go(func() { defer end(); carry(client, server, &l.delivered) })
	wg.Wait()
}

// A packet is data in flight.
type packet struct {
	data []byte
	due  time.Time
}

// carry copies bytes from one side to the other at the link's rate. It bounds the bytes in
// flight by twice the bandwidth-delay product.
func carry(to, from net.Conn, delivered *atomic.Int64) {
	const size = 16 << 10
	inFlight := make(chan packet, 2*linkRate/size*int(roundTrip/time.Millisecond)/1000)
	done := make(chan struct{})
	defer close(done)
	go func() {
		defer close(inFlight)
		for {
			buf := make([]byte, size)
			n, err := from.Read(buf)
			if n > 0 {
				select {
				case inFlight <- packet{buf[:n], time.Now().Add(roundTrip / 2)}:
				case <-done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	var free time.Time // the time at which the link can send more
	for p := range inFlight {
		// Do not add the excess of earlier sleeps: a link has no gaps while data is waiting.
		if free.Before(p.due) {
			free = p.due
		}
		at := free
		free = free.Add(time.Duration(len(p.data)) * time.Second / linkRate)
		time.Sleep(time.Until(at))
		n, err := to.Write(p.data)
		if delivered != nil {
			delivered.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

// link compares a fetch job over a slow link, which uses several connections, with curl, which
// uses one, and with aria2c, which is told how many. It does so again with a server that takes
// eight connections at most.
func (b *bench) link(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	if f, err = f.head(ctx, min(f.size, max(b.scaled(256*mib), 64*mib))); err != nil {
		return err
	}
	origin := f.publish()
	defer origin.Close()
	s, err := b.server(ctx, "link")
	if err != nil {
		return err
	}
	defer s.remove()
	const eight = "aria2c -x8"
	if err := b.overLink(ctx, s, f, origin.URL, 0, map[string]*bound{
		"curl": atLeast(7), eight: atLeast(1), "aria2c -x16": atLeast(1),
	}); err != nil {
		return err
	}
	return b.overLink(ctx, s, f, origin.URL, 8, map[string]*bound{eight: atLeast(0.8)})
}

// overLink compares fetches of f over a slow link to a server that takes most connections, or
// any number if most is 0. The bounds are those of the ratios to the tools that they name.
func (b *bench) overLink(ctx context.Context, s *server, f *sample, serverURL string, most int64, bounds map[string]*bound) error {
	// A link for each side: imageroot keeps connections that it may use again.
	var urls [2]string
	for i := range urls {
		l, err := openLink(serverURL, most)
		if err != nil {
			return err
		}
		defer l.close()
		urls[i] = l.URL() + "/large.img"
	}
	imageURL := urls[0]
	ours := func(int) (float64, error) {
		if err := s.add(ctx, imageURL, true); err != nil {
			return 0, err
		}
		if err := settle(f.path); err != nil {
			return 0, err
		}
		took, _, err := s.fetchOnce(ctx, imageURL, f)
		if err != nil {
			return 0, err
		}
		return took, s.forget(ctx, imageURL, f.sha256)
	}
	names := slices.Sorted(maps.Keys(bounds))
	took := map[string][]float64{}
	peers := func(round int) (float64, error) {
		for _, name := range names {
			if err := settle(f.path); err != nil {
				return 0, err
			}
			t, err := downloader(name, b.dir, urls[1]).time(ctx, b.dir)
			if err != nil {
				return 0, err
			}
			b.say("round %d: %s %s", round+1, name, format(t))
			took[name] = append(took[name], t)
		}
		return took[names[0]][round], nil
	}
	o, _, err := b.turns(ours, peers)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s, %v away, %d MB/s a connection", formatBytes(f.size), roundTrip, linkRate/1_000_000)
	if most > 0 {
		what += fmt.Sprintf(", %d connections at most", most)
	}
	for _, name := range names {
		b.report.faster("link", what, series{"imageroot", unitSeconds, o}, series{name, unitSeconds, took[name]}, bounds[name])
	}
	return nil
}

// downloader returns the command by which the named tool downloads a URL: curl, or aria2c and its
// number of connections.
func downloader(name, dir, imageURL string) tool {
	if name == "curl" {
		return tool{args: []string{"curl", "-sS", "--fail", "-o", "/dev/null", imageURL}}
	}
	connections := strings.TrimPrefix(name, "aria2c -x")
	return tool{args: []string{
		"aria2c", "-q", "-x" + connections, "-s" + connections, "-k1M", "--file-allocation=none", "--allow-overwrite=true",
		"-d", dir, "-o", "aria2c.img", imageURL,
	}}
}
