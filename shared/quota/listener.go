package quota

import (
	"cmp"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Config configures a [Listener]. All fields are required except Exempt and Lasting.
type Config struct {
	// Total is the maximum number of open connections, and Each the maximum from one
	// network: see [Network].
	Total, Each int
	// Exempt reports whether an address is a proxy's, to which Each does not apply. Nil
	// means that there is no proxy.
	Exempt func(netip.Addr) bool
	// Still is the time without traffic after which a connection may be closed in
	// favour of another one of its network.
	Still time.Duration
	// Lasting means that a connection that is vouched for is in use even while it is
	// idle. A new one replaces it only if it is above Total and the network of the
	// replaced one keeps as many connections as the new one's has then.
	Lasting bool
	Log     *slog.Logger
}

// unsentBytes bounds the unsent data that the kernel buffers for a client that does not
// read. Data in flight does not count, so the rate is not reduced.
const unsentBytes = 128 << 10

// logEvery is the minimum time between two log lines about refused connections.
const logEvery = time.Minute

// A Listener accepts TCP connections within the bounds of its [Config].
//
// A connection above Each replaces the longest idle one of its network, and one above
// Total the longest idle one of the network with the most connections. Those that are
// idle for Still and not vouched for (see [Conn.Vouch]) are replaced first. So a client
// whose transfer progresses keeps its connection, and a new client gets one however
// many others are idle. A connection above Each is reset if no other one of its network
// is idle for Still.
type Listener struct {
	net.Listener
	cfg     Config
	started time.Time

	mu      sync.Mutex
	open    map[*Conn]struct{}
	by      map[netip.Prefix]*int // the number of connections of each network
	refused int                   // since the last log line
	said    time.Time
}

// NewListener returns a Listener over ln, which must be a TCP listener.
func NewListener(ln net.Listener, cfg Config) *Listener {
	return &Listener{Listener: ln, cfg: cfg, started: time.Now(), open: map[*Conn]struct{}{}, by: map[netip.Prefix]*int{}}
}

// now returns the nanoseconds since the listener started.
func (l *Listener) now() int64 { return int64(time.Since(l.started)) }

// Accept implements [net.Listener]. It returns a [*Conn].
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			c.Close()
			return nil, errors.New("quota: the listener is not of TCP")
		}
		conn := &Conn{TCPConn: tcp, from: l}
		if addr, ok := tcp.RemoteAddr().(*net.TCPAddr); ok {
			if ip := addr.AddrPort().Addr().Unmap(); l.cfg.Exempt == nil || !l.cfg.Exempt(ip) {
				conn.network = Network(ip)
			}
		}
		conn.touch()
		admitted, victim := l.admit(conn)
		if victim != nil {
			_ = victim.reset()
		}
		if !admitted {
			_ = conn.reset()
			continue
		}
		if raw, err := tcp.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
			})
		}
		return conn, nil
	}
}

// admit adds c if its network may have another connection, and returns the connection
// that c replaces, if any.
func (l *Listener) admit(c *Conn) (ok bool, victim *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.peers = new(int)
	if c.network.IsValid() {
		if peers, ok := l.by[c.network]; ok {
			c.peers = peers
		}
	}
	crowded := *c.peers >= l.cfg.Each
	if crowded || len(l.open) >= l.cfg.Total {
		now := l.now()
		victim = l.stillest(now, func(o *Conn) bool { return !crowded || o.peers == c.peers })
		if crowded && (!victim.still(now) || l.keeps(victim, c)) {
			l.refuse("connections from one address are refused: it has as many as it may", c)
			return false, nil
		}
		if l.keeps(victim, c) {
			l.refuse("connections are refused: there are as many as there may be", c)
			return false, nil
		}
		l.remove(victim)
		l.refuse("connections are closed for new ones: there are as many as there may be", victim)
	}
	l.open[c] = struct{}{}
	*c.peers++
	if c.network.IsValid() {
		l.by[c.network] = c.peers
	}
	return true, victim
}

// keeps reports whether a lasting connection stays although there is no room for c.
func (l *Listener) keeps(o, c *Conn) bool {
	return l.cfg.Lasting && o.vouched.Load() && *o.peers <= *c.peers+1
}

// stillest returns the connection to replace among those for which may returns true.
func (l *Listener) stillest(now int64, may func(*Conn) bool) (found *Conn) {
	idle := func(c *Conn) int {
		if !c.vouched.Load() && c.still(now) {
			return 1
		}
		return 0
	}
	for o := range l.open {
		if !may(o) {
			continue
		}
		if found == nil || cmp.Or(
			cmp.Compare(idle(found), idle(o)),
			cmp.Compare(*found.peers, *o.peers),
			cmp.Compare(o.moved.Load(), found.moved.Load()),
		) < 0 {
			found = o
		}
	}
	return found
}

func (l *Listener) remove(c *Conn) {
	if _, ok := l.open[c]; !ok {
		return
	}
	delete(l.open, c)
	if *c.peers--; *c.peers == 0 {
		delete(l.by, c.network)
	}
}

// refuse logs that a connection was refused or closed, at most once in logEvery.
func (l *Listener) refuse(what string, c *Conn) {
	l.refused++
	if now := time.Now(); now.Sub(l.said) >= logEvery {
		l.cfg.Log.Warn(what, "listener", l.Addr().String(), "ip", c.RemoteAddr().String(), "refused", l.refused, "open", len(l.open))
		l.said, l.refused = now, 0
	}
}

// A Conn is a TCP connection that records the time of its last traffic.
type Conn struct {
	*net.TCPConn
	from    *Listener
	network netip.Prefix // invalid for a proxy, each of whose connections counts as another client
	peers   *int         // the number of connections of the network
	moved   atomic.Int64 // see Listener.now
	vouched atomic.Bool
}

// Vouch sets whether the client of the connection is authenticated.
func (c *Conn) Vouch(known bool) { c.vouched.Store(known) }

func (c *Conn) touch() { c.moved.Store(c.from.now()) }

// still reports whether there was no traffic for Still.
func (c *Conn) still(now int64) bool { return now-c.moved.Load() >= int64(c.from.cfg.Still) }

// Read implements [net.Conn].
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// Write implements [net.Conn].
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// fileBytes is the number of bytes that the kernel sends before ReadFrom records
// traffic.
const fileBytes = 1 << 20

// ReadFrom implements [io.ReaderFrom], so that the kernel sends files.
func (c *Conn) ReadFrom(r io.Reader) (total int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: r, N: math.MaxInt64}
	}
	for limited.N > 0 {
		some := io.LimitedReader{R: limited.R, N: min(limited.N, fileBytes)}
		n, err := c.TCPConn.ReadFrom(&some)
		total += n
		limited.N -= n
		if err != nil || n == 0 {
			return total, err
		}
		c.touch()
	}
	return total, nil
}

// Close implements [net.Conn], and frees the connection's share.
func (c *Conn) Close() error {
	c.from.mu.Lock()
	c.from.remove(c)
	c.from.mu.Unlock()
	return c.TCPConn.Close()
}

// reset closes the connection at once and drops its unsent data.
func (c *Conn) reset() error {
	_ = c.SetLinger(0) // the connection is closed anyway
	return c.Close()
}
