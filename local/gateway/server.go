package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"reflect"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"github.com/gofiber/fiber/v3"
	"github.com/valyala/fasthttp"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
)

// listen binds addr.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("the S3 gateway cannot listen on %q: write it as HOST:PORT or :PORT", addr)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("the S3 gateway cannot listen on %s: address already in use; stop what uses it or choose another address", addr)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the S3 gateway cannot listen on %s: permission denied; choose a port above 1023", addr)
	}
	return nil, fmt.Errorf("the S3 gateway cannot listen on %s: %w", addr, err)
}

// newAPI builds versitygw's S3 handlers over b.
func newAPI(b *backend, cfg Config) (*s3api.S3ApiServer, error) {
	s3utils.SetBucketNameValidationStrict(true)
	program := auth.Account{Access: cfg.AccessKey, Secret: cfg.SecretKey, Role: auth.RoleAdmin}
	return s3api.New(b, middlewares.RootUserConfig{Access: cfg.AccessKey, Secret: cfg.SecretKey},
		region, accounts{auth.NewIAMServiceSingle(program), program, cfg.Uploader}, nil, nil, nil, nil,
		s3api.WithQuiet(), s3api.WithKeepAlive(), s3api.WithDisableACL(),
		s3api.WithConcurrencyLimiter(maxInside, connections+maxInside),
		s3api.WithMpMaxParts(10_000), s3api.WithMiddleware("/", guard(cfg.Log)), s3api.WithMiddleware("/", admit(cfg.HeadTimeout)), s3api.WithMiddleware("/", decline(cfg.Now)))
}

const (
	region = "us-east-1"
	// maxHead is versitygw's limit for the head of a request.
	maxHead = 8 << 10
	// connections limits the connections from the network, connectionsEach those
	// of one address.
	connections, connectionsEach = 1024, 256
	// maxInside limits the connections from within the process, far above what the
	// program opens.
	maxInside = 4096
	// idleTimeout ends a connection without a request.
	idleTimeout = 2 * time.Minute
	// stallTimeout ends a connection on which no byte moves in the middle of
	// a request. There is no limit on how long a transfer takes.
	stallTimeout = 10 * time.Minute
)

// A server answers HTTP on its listeners.
type server struct {
	http      *fasthttp.Server
	listeners []*listener
	ended     chan error // of each listener
}

func serve(b *backend, cfg Config, from ...net.Listener) (*server, error) {
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
		ended: make(chan error, len(from)),
	}
	s.http.Handler = func(ctx *fasthttp.RequestCtx) {
		handler(ctx)
		// An uploaded page must not act for its viewer: it may share the host of
		// imageroot's pages.
		ctx.Response.Header.Set("Content-Security-Policy", "default-src 'none'; sandbox")
		ctx.Response.Header.Set("X-Content-Type-Options", "nosniff")
		var stored []string // by older versions of this program, which did not check
		for name, value := range ctx.Response.Header.All() {
			if printable(string(name), string(value)) != nil {
				stored = append(stored, string(name))
			}
		}
		for _, name := range stored {
			ctx.Response.Header.Del(name)
		}
		if !isRead(&ctx.Request) {
			ctx.SetConnectionClose()
		}
	}
	s.http.IdleTimeout = idleTimeout
	s.http.ReadTimeout = cfg.HeadTimeout // ends with authentication: see conn.Read
	s.http.ReduceMemoryUsage = true      // a connection without a request has no buffers
	s.http.Name = "imageroot"
	// A form would be read whole before it is authenticated.
	s.http.DisablePreParseMultipartForm = true
	// The server reads this many bytes of a body before it calls the handlers,
	// which read the rest.
	s.http.MaxRequestBodySize = 1
	s.http.ErrorHandler = unreadable
	for _, ln := range from {
		l := &listener{Listener: ln, open: map[*conn]struct{}{}}
		s.listeners = append(s.listeners, l)
		go func() { s.ended <- s.http.Serve(l) }()
	}
	return s, nil
}

// unreadable answers bytes that are not a request. versitygw would print them.
func unreadable(ctx *fasthttp.RequestCtx, err error) {
	var answer s3err.S3Error = s3err.GetAPIError(s3err.ErrCannotParseHTTPRequest)
	_, large := errors.AsType[*fasthttp.ErrSmallBuffer](err)
	slow, ok := errors.AsType[net.Error](err)
	switch {
	case large:
		answer = s3err.GetRequestHeaderSectionTooLargeErr(maxHead)
	case ok && slow.Timeout():
		answer = apiError(fasthttp.StatusRequestTimeout, "RequestTimeout", "The request did not come in time.")
	}
	ctx.Response.Reset()
	ctx.SetStatusCode(answer.StatusCode())
	ctx.SetContentType("application/xml")
	ctx.SetBody(answer.XMLBody("", ""))
}

// guard returns the middleware that logs errors and panics of versitygw, which
// would print them to the terminal.
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
		if known, ok := errors.AsType[*fiber.Error](err); ok {
			return ctx.SendStatus(known.Code)
		}
		if err != nil {
			return fail("the S3 gateway failed", slog.Any("error", err))
		}
		return nil
	}
}

// close stops listening, waits for requests in flight for the duration grace, and
// then closes their connections.
func (s *server) close(grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	err := s.http.ShutdownWithContext(ctx)
	for _, l := range s.listeners {
		l.closeAll()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	// A handler whose connection is gone ends at its next read or write.
	late := time.After(grace / 2)
	for range s.listeners {
		select {
		case serveErr := <-s.ended:
			err = errors.Join(err, serveErr)
		case <-late:
			return err
		}
	}
	return err
}

// fiberOf returns the application inside api. versitygw exports no handler: it
// only listens by itself, does not report its port, and keeps connections open
// when it is stopped.
func fiberOf(api *s3api.S3ApiServer) (*fiber.App, error) {
	field := reflect.ValueOf(api).Elem().FieldByName("app")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*fiber.App]() || field.IsNil() {
		return nil, errors.New("this version of versitygw keeps its application elsewhere; use the version in go.mod")
	}
	return *(**fiber.App)(unsafe.Pointer(field.UnsafeAddr())), nil
}
