package quota

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// A site accepts connections and echoes what they send.
type site struct {
	t       *testing.T
	addr    *net.TCPAddr
	vouched string // an address whose connections are vouched for
	echoed  chan struct{}
}

func newSite(t *testing.T, cfg Config) *site {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	ln := NewListener(inner, cfg)
	t.Cleanup(func() { ln.Close() })
	s := &site{t: t, addr: inner.Addr().(*net.TCPAddr), vouched: "127.0.0.8", echoed: make(chan struct{}, 1)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			c.(*Conn).Vouch(host == s.vouched)
			go func() {
				defer c.Close()
				for p := make([]byte, 1); ; s.echoed <- struct{}{} {
					if _, err := io.ReadFull(c, p); err != nil {
						return
					}
					if _, err := c.Write(p); err != nil {
						return
					}
				}
			}()
		}
	}()
	return s
}

// dial connects from an address and returns once the connection is accepted
// or refused.
func (s *site) dial(from string) (c net.Conn, accepted bool) {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", s.addr.String())
	if errors.Is(err, syscall.ECONNRESET) {
		return nil, false
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c, s.echoes(c)
}

// echoes reports whether a connection is open. When it returns, the server has recorded
// the traffic.
func (s *site) echoes(c net.Conn) bool {
	s.t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, err := c.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) {
		s.t.Fatal(err)
	}
	if err == nil {
		<-s.echoed
	}
	return err == nil
}

func TestEachAddressHasItsShare(t *testing.T) {
	s := newSite(t, Config{Total: 10, Each: 2, Still: time.Hour, Exempt: func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.9") }})
	first, _ := s.dial("127.0.0.2")
	if _, ok := s.dial("127.0.0.2"); !ok {
		t.Error("the second connection of an address is refused")
	}
	if _, ok := s.dial("127.0.0.2"); ok {
		t.Error("a third connection of an address is accepted")
	}
	if _, ok := s.dial("127.0.0.3"); !ok {
		t.Error("another address is refused")
	}
	for range 4 {
		if _, ok := s.dial("127.0.0.9"); !ok {
			t.Error("a connection of a proxy is refused")
		}
	}
	_ = first.(*net.TCPConn).CloseWrite()
	if _, err := io.Copy(io.Discard, first); err != nil { // until the server has closed it
		t.Fatal(err)
	}
	if _, ok := s.dial("127.0.0.2"); !ok {
		t.Error("a place that was given back is not given again")
	}
}

// At Total, a new client replaces the longest idle connection of the network with the
// most connections.
func TestNewClientGetsPlaceOfStillOne(t *testing.T) {
	s := newSite(t, Config{Total: 5, Each: 3})
	known, _ := s.dial(s.vouched)
	moving, _ := s.dial("127.0.0.2")
	still, _ := s.dial("127.0.0.2")
	alone, _ := s.dial("127.0.0.3")
	other, _ := s.dial("127.0.0.4")
	if !s.echoes(moving) {
		t.Fatal("a connection is closed though there is room")
	}
	if _, ok := s.dial("127.0.0.5"); !ok {
		t.Error("a new client is refused")
	}
	if s.echoes(still) {
		t.Error("the connection that stood still is there yet")
	}
	if !s.echoes(alone) || !s.echoes(other) || !s.echoes(moving) {
		t.Error("another connection was closed")
	}
	// Now each network has one connection. other and moving had traffic later than
	// alone.
	if !s.echoes(other) || !s.echoes(moving) {
		t.Error("a connection is closed without a new one")
	}
	if _, ok := s.dial("127.0.0.6"); !ok {
		t.Error("a new client is refused")
	}
	if !s.echoes(moving) || !s.echoes(other) {
		t.Error("a connection that moves was closed")
	}
	if !s.echoes(known) {
		t.Error("a connection that is vouched for was closed")
	}
}

// At Each, a new connection replaces an idle one of its network.
func TestNewConnectionGetsPlaceOfStillOne(t *testing.T) {
	s := newSite(t, Config{Total: 10, Each: 2, Still: time.Nanosecond})
	still, _ := s.dial("127.0.0.2")
	other, _ := s.dial("127.0.0.3")
	moving, _ := s.dial("127.0.0.2")
	if _, ok := s.dial("127.0.0.2"); !ok {
		t.Error("the new connection is refused")
	}
	if s.echoes(still) {
		t.Error("the connection that stood still is there yet")
	}
	if !s.echoes(moving) || !s.echoes(other) {
		t.Error("another connection was closed")
	}
}

// A lasting connection stays, unless its network has more than that of a new client.
func TestLastingConnectionsStay(t *testing.T) {
	s := newSite(t, Config{Total: 4, Each: 2, Still: time.Nanosecond, Lasting: true})
	mounted, _ := s.dial(s.vouched)
	second, _ := s.dial(s.vouched)
	if _, ok := s.dial(s.vouched); ok {
		t.Error("a third connection of an address is accepted")
	}
	if !s.echoes(mounted) || !s.echoes(second) {
		t.Error("it has replaced a lasting one")
	}
	for _, from := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} {
		if _, ok := s.dial(from); !ok {
			t.Errorf("%s is refused", from) // the last one replaces one that nobody vouches for
		}
	}
	if !s.echoes(mounted) || !s.echoes(second) {
		t.Error("a lasting connection was closed")
	}
}

func TestNetwork(t *testing.T) {
	for a, b := range map[string]string{"2001:db8::1": "2001:db8::2", "::ffff:192.0.2.1": "192.0.2.1", "fe80::1%eth0": "fe80::2"} {
		if Network(netip.MustParseAddr(a)) != Network(netip.MustParseAddr(b)) {
			t.Errorf("%s and %s are two networks", a, b)
		}
	}
	if Network(netip.MustParseAddr("192.0.2.1")) == Network(netip.MustParseAddr("192.0.2.2")) {
		t.Error("two addresses are one network")
	}
}
