// Package nbd serves disks by the NBD protocol, as doc/proto.md of
// github.com/NetworkBlockDevice/nbd describes it; comments name its sections. It does
// not know where disks come from.
//
// The handshake is fixed newstyle, with LIST, INFO, GO, STARTTLS, structured replies and
// the metadata context base:allocation.
//
// Clients are not trusted. A connection without a disk has 8 KiB of buffers and must
// choose its disk within ten seconds; one that stands still in the data of a write is
// closed after two minutes. A connection with a disk may be idle for as long as it
// likes, since a mounted disk is. The buffers of all requests in flight have 32 MiB
// together: connections that get none of them are served in smaller pieces.
package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"sync"
	"time"
)

// A Disk is what a client reads. Its methods are safe for concurrent use, but for Close.
type Disk interface {
	// ReadAt reads len(p) bytes within the disk, or returns an error.
	io.ReaderAt
	Size() int64 // bytes
	// Extent describes the bytes from off to limit at most, which are within the disk
	// and not empty: it returns the length of a run of them that are all stored, or
	// all a hole, which is known to be zero. The run may continue behind it.
	Extent(off, limit int64) (n int64, hole bool, err error)
	// Close is called once, after all other calls have returned.
	Close() error
}

// A Refusal is an error whose reason the client is told.
type Refusal struct {
	Reason  string // a sentence
	Unknown bool   // there is no such export
}

func (e *Refusal) Error() string { return e.Reason }

// Config configures a [Server]. All fields are required except TLS.
type Config struct {
	// Open opens the disk of an export. ctx ends with the connection. A client is told
	// the reason of a [Refusal]; other errors are logged.
	Open func(ctx context.Context, name string) (Disk, error)
	// Names yields the names of exports, of at most 4096 bytes each. An error is
	// yielded last.
	Names func(ctx context.Context) iter.Seq2[string, error]
	// TLS, if not nil, is required of every client (section "FORCEDTLS mode").
	TLS *tls.Config
	// Sent is called with the number of bytes of disks that were sent.
	Sent func(n int)
	Log  *slog.Logger
}

const (
	// handshakeTime is the time for the handshake, with TLS.
	handshakeTime = 10 * time.Second
	// stallTime is the time in which a piece of a message must be sent or received.
	stallTime = 2 * time.Minute
	// acceptAgain is the wait after a connection could not be accepted.
	acceptAgain = 100 * time.Millisecond
	// maxInFlight is the number of requests of one connection that are answered at
	// once, besides the one that is answered by the connection's own goroutine.
	maxInFlight = 16
	// slots is the number of requests of all connections that are answered with a
	// buffer of bigPiece bytes, each on a goroutine of its own. The others are answered
	// one after the other on the goroutine of their connection, in pieces of smallPiece
	// bytes.
	slots, bigPiece, smallPiece = 128, 256 << 10, 16 << 10
)

// A Server serves disks to the connections of a listener.
type Server struct {
	cfg     Config
	slots   chan struct{}
	buffers sync.Pool // of *[]byte

	mu     sync.Mutex
	open   map[*conn]struct{}
	ln     net.Listener
	closed bool
	active sync.WaitGroup // of open
}

// New returns a server.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, open: map[*conn]struct{}{}, slots: make(chan struct{}, slots),
		buffers: sync.Pool{New: func() any { b := make([]byte, maxHeader+bigPiece); return &b }},
	}
}

// Serve accepts connections until [Server.Shutdown], and then returns nil. It must be
// called once. If a connection has a method Vouch(bool), Serve calls it once the client
// has a disk.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	s.ln = ln
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return ln.Close()
	}
	for {
		raw, err := ln.Accept()
		if err != nil && s.isClosed() {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			// The system has no room for another connection, which may change.
			s.cfg.Log.Warn("nbd", "error", err)
			<-time.After(acceptAgain)
			continue
		}
		c := &conn{s: s, raw: raw}
		if !s.add(c) {
			_ = raw.Close()
			return nil
		}
		go c.serve()
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// add records an open connection. It returns false after Shutdown.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = struct{}{}
	s.active.Add(1)
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	s.active.Done()
}

// Connections returns the number of open connections.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Shutdown closes the listener, and each connection once its requests in flight are
// answered. When ctx ends, it closes the remaining ones at once.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	if s.ln != nil {
		_ = s.ln.Close()
	}
	for c := range s.open {
		_ = c.raw.SetReadDeadline(time.Unix(1, 0)) // ends the reading of requests
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.active.Wait(); close(done) }()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.open {
		_ = c.raw.Close()
	}
	s.mu.Unlock()
}

// setReadDeadline sets the deadline for reading from c, unless Shutdown has.
func (s *Server) setReadDeadline(c *conn, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_ = c.raw.SetReadDeadline(t)
	}
}

// errViolation ends a connection whose client violates the protocol.
var errViolation = errors.New("not the NBD protocol")
