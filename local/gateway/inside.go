package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// An inside listener accepts connections that this process dials. They are in its
// memory, so no other process can reach it.
type inside struct {
	dialled chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newInside() *inside {
	return &inside{dialled: make(chan net.Conn), closed: make(chan struct{})}
}

// dial opens a connection to the listener.
func (l *inside) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := pipe()
	var err error
	select {
	case l.dialled <- theirs:
		return ours, nil
	case <-l.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	ours.Close()
	theirs.Close()
	return nil, fmt.Errorf("connect to the S3 gateway inside: %w", err)
}

func (l *inside) Accept() (net.Conn, error) {
	select {
	case c := <-l.dialled:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *inside) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *inside) Addr() net.Addr { return ends{}.LocalAddr() }

// An ends is one end of a connection in memory.
type ends struct{ in, out net.Conn }

// pipe returns the two ends of a connection.
func pipe() (a, b ends) {
	var toA, toB, fromA, fromB net.Conn
	toA, fromB = net.Pipe()
	toB, fromA = net.Pipe()
	return ends{toA, fromA}, ends{toB, fromB}
}

func (e ends) Read(p []byte) (int, error)         { return e.in.Read(p) }
func (e ends) Write(p []byte) (int, error)        { return e.out.Write(p) }
func (e ends) CloseWrite() error                  { return e.out.Close() }
func (e ends) Close() error                       { return errors.Join(e.in.Close(), e.out.Close()) }
func (e ends) LocalAddr() net.Addr                { return &net.UnixAddr{Net: "unix"} }
func (e ends) RemoteAddr() net.Addr               { return e.LocalAddr() }
func (e ends) SetReadDeadline(t time.Time) error  { return e.in.SetReadDeadline(t) }
func (e ends) SetWriteDeadline(t time.Time) error { return e.out.SetWriteDeadline(t) }

func (e ends) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}
