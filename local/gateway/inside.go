package gateway

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// An inside listener accepts connections that this process dials. It has no
// address, so no other process can reach it.
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
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("connect to the S3 gateway inside: %w", err)
	}
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

func (l *inside) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// socketPair returns the two ends of a connection.
func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	one, other := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	defer one.Close() // net.FileConn duplicates them
	defer other.Close()
	if a, err = net.FileConn(one); err != nil {
		return nil, nil, err
	}
	if b, err = net.FileConn(other); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}
