package quota

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Config of a [Listener]. All fields are required except Exempt.
type Config struct {
	// Total is the most connections that are open at once, and Each the most
	// of them from one network (see [Network]).
	Total, Each int
	// Exempt reports whether an address is that of a proxy, which connects for
	// many clients: Each does not apply to it. Nil is none.
	Exempt func(netip.Addr) bool
	Log    *slog.Logger
}

// unsentBytes is how much of an answer the kernel holds for a client that does
// not read. What is on its way is not counted, so the rate does not suffer.
const unsentBytes = 128 << 10

// logEvery is how often the log says that connections were refused.
const logEvery = time.Minute

// A Listener accepts TCP connections within the bounds of its [Config].
//
// A connection above Each is reset. One above Total takes the place of another
// one, of the network with the most connections: of the one on which no byte
// has moved for the longest time. So a client whose transfer moves keeps its
// connection, and a new client gets one, however many others stand still.
type Listener struct {
	net.Listener
	cfg     Config
	started time.Time

	mu      sync.Mutex
	open    map[*Conn]struct{}
	by      map[netip.Prefix]int // connections that Each applies to
	refused int                  // since the log said so
	said    time.Time
}

// NewListener returns a Listener over ln, whose connections must be TCP.
func NewListener(ln net.Listener, cfg Config) *Listener {
	return &Listener{Listener: ln, cfg: cfg, started: time.Now(), open: map[*Conn]struct{}{}, by: map[netip.Prefix]int{}}
}

// Accept implements [net.Listener]. What it returns is a [*Conn].
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

// admit gives c a place, if there is one for its network, and returns the
// connection that has to go for it.
func (l *Listener) admit(c *Conn) (ok bool, victim *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count(c) >= l.cfg.Each && c.network.IsValid() {
		l.refuse("connections from one address are refused: it has as many as it may", c)
		return false, nil
	}
	if len(l.open) >= l.cfg.Total {
		for o := range l.open {
			if victim == nil || l.count(o) > l.count(victim) || l.count(o) == l.count(victim) && o.moved.Load() < victim.moved.Load() {
				victim = o
			}
		}
		l.remove(victim)
		l.refuse("connections are closed for new ones: there are as many as there may be", victim)
	}
	l.open[c] = struct{}{}
	if c.network.IsValid() {
		l.by[c.network]++
	}
	return true, victim
}

// count returns how many connections the network of c has. Each connection of
// a proxy counts as another client's.
func (l *Listener) count(c *Conn) int {
	if !c.network.IsValid() {
		return 1
	}
	return l.by[c.network]
}

func (l *Listener) remove(c *Conn) {
	if _, ok := l.open[c]; !ok {
		return
	}
	delete(l.open, c)
	if l.by[c.network]--; l.by[c.network] <= 0 {
		delete(l.by, c.network)
	}
}

// refuse says now and then what strangers would otherwise fill the log with.
func (l *Listener) refuse(what string, c *Conn) {
	l.refused++
	if now := time.Now(); now.Sub(l.said) >= logEvery {
		l.cfg.Log.Warn(what, "listener", l.Addr().String(), "ip", c.RemoteAddr().String(), "refused", l.refused, "open", len(l.open))
		l.said, l.refused = now, 0
	}
}

// A Conn is a TCP connection that knows when a byte moved on it last.
type Conn struct {
	*net.TCPConn
	from    *Listener
	network netip.Prefix // invalid for a proxy
	moved   atomic.Int64 // nanoseconds since the listener started
}

func (c *Conn) touch() { c.moved.Store(int64(time.Since(c.from.started))) }

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

// ReadFrom implements [io.ReaderFrom]: the kernel moves the bytes of a file.
// They count as moved when it returns.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(r)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// Close implements [net.Conn] and gives the place back.
func (c *Conn) Close() error {
	c.from.mu.Lock()
	c.from.remove(c)
	c.from.mu.Unlock()
	return c.TCPConn.Close()
}

// reset closes the connection at once and drops what it has yet to send.
func (c *Conn) reset() error {
	_ = c.SetLinger(0) // it is closed anyway
	return c.Close()
}
