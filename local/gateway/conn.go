package gateway

import (
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"imageroot/shared/quota"
)

// A listener tracks its open connections.
type listener struct {
	net.Listener
	mu     sync.Mutex
	open   map[*conn]struct{}
	closed bool
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		s, ok := c.(socket)
		if !ok {
			c.Close()
			continue
		}
		tracked := &conn{socket: s, from: l}
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			c.Close()
			continue
		}
		l.open[tracked] = struct{}{}
		l.mu.Unlock()
		return tracked, nil
	}
}

func (l *listener) closeAll() {
	l.mu.Lock()
	l.closed = true
	open := slices.Collect(maps.Keys(l.open))
	l.mu.Unlock()
	for _, c := range open {
		c.end()
	}
}

// A socket is a TCP connection, or one of a [inside] listener.
type socket interface {
	net.Conn
	CloseWrite() error
}

// A conn is a connection that ends when no byte moves on it for stallTimeout, and
// that sends a file's bytes over TCP without copying them through the process.
type conn struct {
	socket
	from *listener

	mu      sync.Mutex
	readBy  time.Time // set by the server; zero means none
	writeBy time.Time
	closing bool

	authenticated func() bool // nil outside of handlers; see restrict
	credit        int
}

// restrict makes reads fail after n more bytes while authenticated reports
// false, until unrestrict is called.
func (c *conn) restrict(n int, authenticated func() bool) {
	c.authenticated, c.credit = authenticated, n
}

// unrestrict undoes restrict. admitted reports that the request was not refused:
// versitygw names the account before it compares the signature.
func (c *conn) unrestrict(admitted bool) {
	c.vouch(c.authenticated() && admitted)
	c.authenticated = nil
}

// known reports whether the client of the request is authenticated. Then its
// connection is not evicted for another client's.
func (c *conn) known() bool {
	known := c.authenticated()
	c.vouch(known)
	return known
}

func (c *conn) vouch(known bool) {
	if q, ok := c.socket.(*quota.Conn); ok {
		q.Vouch(known)
	}
}

// linger is how long a connection is still read after the last answer.
const linger = 3 * time.Second

// Close ends the connection so that the client receives the last answer. A
// client that is still sending a refused upload would otherwise get a reset.
func (c *conn) Close() error {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	if err := c.CloseWrite(); err != nil {
		return c.end()
	}
	_ = c.socket.SetReadDeadline(time.Now().Add(linger))
	go func() {
		_, _ = io.Copy(io.Discard, c.socket)
		c.end()
	}()
	return nil
}

// end closes the connection at once.
func (c *conn) end() error {
	c.from.mu.Lock()
	delete(c.from.open, c)
	c.from.mu.Unlock()
	return c.socket.Close()
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.readBy = t
	c.mu.Unlock()
	return c.socket.SetReadDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.writeBy = t
	c.mu.Unlock()
	return c.socket.SetWriteDeadline(t)
}

// deadline returns the time at which the next read or write fails: the earlier of
// the server's deadline and the stall's.
func (c *conn) deadline(asked *time.Time) time.Time {
	stall := time.Now().Add(stallTimeout)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !asked.IsZero() && asked.Before(stall) {
		return *asked
	}
	return stall
}

// Read implements net.Conn. The server's deadline is that of the request's head
// and does not apply once the client is authenticated.
func (c *conn) Read(p []byte) (int, error) {
	by, credit := c.deadline(&c.readBy), len(p)
	if c.authenticated != nil {
		switch {
		case c.known():
			by = time.Now().Add(stallTimeout)
		case c.credit <= 0:
			return 0, errUnauthenticated
		default:
			credit = min(credit, c.credit)
		}
	}
	if err := c.socket.SetReadDeadline(by); err != nil {
		return 0, err
	}
	n, err := c.socket.Read(p[:credit])
	c.credit -= n
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.socket.SetWriteDeadline(c.deadline(&c.writeBy)); err != nil {
		return 0, err
	}
	return c.socket.Write(p)
}

// sendfileChunk is the maximum number of bytes that one sendfile moves before the
// deadline is renewed.
const sendfileChunk = 8 << 20

// ReadFrom lets the kernel move a file's bytes.
func (c *conn) ReadFrom(r io.Reader) (total int64, err error) {
	body, isFile := r.(*fileBody)
	socket, sendsFiles := c.socket.(io.ReaderFrom)
	if !isFile || !sendsFiles {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	for body.left > 0 {
		if err := c.socket.SetWriteDeadline(c.deadline(&c.writeBy)); err != nil {
			return total, err
		}
		n, err := socket.ReadFrom(&io.LimitedReader{R: body.file, N: min(body.left, sendfileChunk)})
		total += n
		body.left -= n
		if err != nil {
			return total, err
		}
		if n == 0 {
			return total, io.ErrUnexpectedEOF // the file shrank under the reader
		}
	}
	return total, nil
}

// A fileBody is the rest of a response: left bytes of file from its current offset.
type fileBody struct {
	file *os.File
	left int64
}

func (b *fileBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	n, err := b.file.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *fileBody) Close() error { return b.file.Close() }
