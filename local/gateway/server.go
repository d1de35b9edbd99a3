package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"runtime/debug"
	"sync"
	"time"
	"unsafe"

	"github.com/gofiber/fiber/v3"
	"github.com/valyala/fasthttp"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3err"
)

const (
	// maxConnections is far above what one machine's clients open.
	maxConnections = 4096
	// idleTimeout ends a connection that no request comes on.
	idleTimeout = 2 * time.Minute
	// stallTimeout ends a connection on which no byte moves in the middle of
	// a request. There is no limit on how long a transfer takes.
	stallTimeout = 10 * time.Minute
)

// A server answers HTTP on one listener.
type server struct {
	http  *fasthttp.Server
	conns *listener
	ended chan error
}

func serve(ln net.Listener, b *backend, cfg Config) (*server, error) {
	api, err := newAPI(b, cfg)
	if err != nil {
		return nil, err
	}
	app, err := fiberOf(api)
	if err != nil {
		return nil, err
	}
	handler := app.Handler()
	s := &server{
		http:  app.Server(),
		conns: &listener{Listener: ln, open: map[*conn]struct{}{}},
		ended: make(chan error, 1),
	}
	s.http.Handler = handler
	s.http.IdleTimeout = idleTimeout
	s.http.Name = "imageroot"
	// A form would be read whole, before anybody asked who sends it.
	s.http.DisablePreParseMultipartForm = true
	s.http.ErrorHandler = unreadable
	go func() { s.ended <- s.http.Serve(s.conns) }()
	return s, nil
}

// unreadable answers what is no request. versitygw would print it.
func unreadable(ctx *fasthttp.RequestCtx, err error) {
	var answer s3err.S3Error = s3err.GetAPIError(s3err.ErrCannotParseHTTPRequest)
	var small *fasthttp.ErrSmallBuffer
	var slow net.Error
	switch {
	case errors.As(err, &small):
		answer = s3err.GetRequestHeaderSectionTooLargeErr(ctx.Request.Header.Len())
	case errors.As(err, &slow) && slow.Timeout():
		answer = s3err.APIError{Code: "RequestTimeout", Description: "The request did not come in time.", HTTPStatusCode: fasthttp.StatusRequestTimeout}
	}
	ctx.Response.Reset()
	ctx.SetStatusCode(answer.StatusCode())
	ctx.SetContentType("application/xml")
	ctx.SetBody(answer.XMLBody("", ""))
}

// guard is the middleware that keeps what goes wrong inside versitygw out of
// the terminal, where it would print it, and in the log.
func guard(log *slog.Logger) fiber.Handler {
	return func(ctx fiber.Ctx) (err error) {
		fail := func(what string, args ...any) error {
			log.Error(what, append(args, slog.String("method", ctx.Method()))...)
			failed := s3err.GetAPIError(s3err.ErrInternalError)
			ctx.Response().Header.SetContentType(fiber.MIMEApplicationXML)
			return ctx.Status(failed.StatusCode()).Send(failed.XMLBody("", ""))
		}
		defer func() {
			if r := recover(); r != nil {
				err = fail("panic in the S3 gateway", slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			}
		}()
		err = ctx.Next()
		var known *fiber.Error
		if errors.As(err, &known) {
			return ctx.SendStatus(known.Code)
		}
		if err != nil {
			return fail("the S3 gateway failed", slog.Any("error", err))
		}
		return nil
	}
}

// close stops listening, gives requests that are under way the time grace,
// and then closes their connections.
func (s *server) close(grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	err := s.http.ShutdownWithContext(ctx)
	s.conns.closeAll()
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	// A handler whose connection is gone ends at its next read or write.
	select {
	case serveErr := <-s.ended:
		return errors.Join(err, serveErr)
	case <-time.After(grace / 2):
		return err
	}
}

// fiberOf returns the application inside api. versitygw only listens by
// itself: on an address, never telling which port it got, and not letting go
// of connections when told to stop. There is no way to its handlers but this.
func fiberOf(api *s3api.S3ApiServer) (*fiber.App, error) {
	field := reflect.ValueOf(api).Elem().FieldByName("app")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*fiber.App]() || field.IsNil() {
		return nil, errors.New("this version of versitygw keeps its application elsewhere; use the version in go.mod")
	}
	return *(**fiber.App)(unsafe.Pointer(field.UnsafeAddr())), nil
}

// A listener knows its open connections.
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
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			c.Close()
			continue
		}
		tracked := &conn{TCPConn: tcp, from: l}
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
	open := make([]*conn, 0, len(l.open))
	for c := range l.open {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		c.end()
	}
}

// A conn is a TCP connection that ends when nothing moves on it for too long,
// and that sends a file's bytes without copying them through the process.
type conn struct {
	*net.TCPConn
	from *listener

	mu      sync.Mutex
	readBy  time.Time // asked for by the server; zero is none
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

func (c *conn) unrestrict() { c.authenticated = nil }

// linger is how long a connection is read from after the last answer.
const linger = 3 * time.Second

// Close ends the connection in the way that lets the other side see the last
// answer: one that is still sending, because its upload was refused before it
// was read, would find the connection reset instead.
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
	_ = c.TCPConn.SetReadDeadline(time.Now().Add(linger))
	go func() {
		_, _ = io.Copy(io.Discard, c.TCPConn)
		c.end()
	}()
	return nil
}

// end closes the connection at once.
func (c *conn) end() error {
	c.from.mu.Lock()
	delete(c.from.open, c)
	c.from.mu.Unlock()
	return c.TCPConn.Close()
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.readBy = t
	c.mu.Unlock()
	return c.TCPConn.SetReadDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.writeBy = t
	c.mu.Unlock()
	return c.TCPConn.SetWriteDeadline(t)
}

// deadline is when the next read or write is given up: the server's deadline
// or the stall's, whichever comes first.
func (c *conn) deadline(asked *time.Time) time.Time {
	stall := time.Now().Add(stallTimeout)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !asked.IsZero() && asked.Before(stall) {
		return *asked
	}
	return stall
}

func (c *conn) Read(p []byte) (int, error) {
	if err := c.TCPConn.SetReadDeadline(c.deadline(&c.readBy)); err != nil {
		return 0, err
	}
	if c.authenticated == nil || c.authenticated() {
		return c.TCPConn.Read(p)
	}
	if c.credit <= 0 {
		return 0, errUnauthenticated
	}
	n, err := c.TCPConn.Read(p[:min(len(p), c.credit)])
	c.credit -= n
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.TCPConn.SetWriteDeadline(c.deadline(&c.writeBy)); err != nil {
		return 0, err
	}
	return c.TCPConn.Write(p)
}

// sendfileChunk is how much one sendfile may move before the stall is looked
// at again.
const sendfileChunk = 8 << 20

// ReadFrom lets the kernel move a file's bytes.
func (c *conn) ReadFrom(r io.Reader) (total int64, err error) {
	body, ok := r.(*fileBody)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	for body.left > 0 {
		if err := c.TCPConn.SetWriteDeadline(c.deadline(&c.writeBy)); err != nil {
			return total, err
		}
		n, err := c.TCPConn.ReadFrom(&io.LimitedReader{R: body.file, N: min(body.left, sendfileChunk)})
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

// A fileBody is the rest of a response: left bytes of file from where it is.
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
