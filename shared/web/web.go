// Package web serves the functions' routes over HTTP: it finds the route, checks
// access, bounds the body, turns errors into answers, and logs and counts
// requests. It does not know what the routes do.
package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"imageroot/shared/metric"
	"imageroot/shared/problem"
)

// An Access is the authentication that a route requires.
type Access int

const (
	// Always requires none: health, the log-in page and its files.
	Always Access = iota
	// Open requires none, or is [Operator] if [Config.PublicRead] is false.
	Open
	// Operator requires a session or the API token, else the answer is 401.
	Operator
	// Page is [Operator] for browsers, which are sent to the log-in page.
	Page
)

// A HandlerFunc answers a request, or returns an error before it has written
// anything, which is answered as [problem.From] says. An error after that breaks
// the connection, so that no client takes half an answer for a whole one.
type HandlerFunc func(w http.ResponseWriter, r *http.Request) error

// A Route is one entry of a function's route table.
type Route struct {
	Pattern string // of [http.ServeMux], with a method
	Access  Access
	Handle  HandlerFunc
	// MaxBody is the most bytes of the body; 0 means [MaxBody], or [MaxOpenBody]
	// if Access requires no authentication.
	MaxBody int64
	// Stream marks bodies of gigabytes in either direction: neither their size nor
	// their time is limited, only the time without progress (see [StallTimeout]).
	Stream bool
	// Quiet logs requests without an error at the level debug: health checks, and
	// the refreshes of pages.
	Quiet bool
}

const (
	// MaxBody and MaxOpenBody are the defaults of [Route.MaxBody], with and without
	// authentication.
	MaxBody, MaxOpenBody = 64 << 10, 8 << 10
	// MaxHeaderBytes and HeaderTimeout are settings for [http.Server]: the most
	// bytes of a request's head, and the time in which it must arrive.
	MaxHeaderBytes, HeaderTimeout = 8 << 10, 5 * time.Second
	// MaxFields is the most field lines of a head: a field takes many times its
	// bytes in memory.
	MaxFields = 100
	// StallTimeout is the longest time without progress of a stream.
	StallTimeout = 2 * time.Minute
	// leftTimeout bounds the wait for a body that the handler does not read:
	// net/http reads some of it before it closes the connection.
	leftTimeout = 5 * time.Second
	// timeout bounds a request that is not a stream.
	timeout = 2 * time.Minute
)

// An Authenticator authenticates the operator. It must be safe for concurrent
// use.
type Authenticator interface {
	// Authenticate returns nil if the request is the operator's. If it is not, the
	// error is a [problem.Error] of kind Unauthorized, whose detail says why and what
	// to do. Any other error says that this is not known.
	Authenticate(r *http.Request) error
}

// Config of a [Handler].
type Config struct {
	Auth       Authenticator
	PublicRead bool
	// Proxies are trusted to set X-Forwarded-For and X-Forwarded-Proto.
	Proxies Proxies
	// PublicURL is this server's URL for clients, without a slash at the end. If
	// it is empty, each client gets the one that it used.
	PublicURL string
	Pages     Pages
	// ErrorPage answers with a page about a problem. It writes the status.
	ErrorPage func(w http.ResponseWriter, r *http.Request, e *problem.Error, status int)
	Metric    *metric.Set
	Log       *slog.Logger
}

// Pages are the paths of pages for people. The zero Pages has none.
type Pages struct {
	Prefix string // of all pages, with a slash at the end
	Home   string // the page to return to if no other is known
	Login  string // the page that asks for the password
}

// configKey is the key of the [Config] in a request's context.
type configKey struct{}

// configOf returns the configuration of the handler of r, or an empty one
// outside of a handler.
func configOf(r *http.Request) *Config {
	if cfg, ok := r.Context().Value(configKey{}).(*Config); ok {
		return cfg
	}
	return &Config{}
}

// Handler returns a handler of all routes. It panics if two patterns conflict.
func Handler(cfg Config, routes ...[]Route) http.Handler {
	h := &handler{cfg: cfg, mux: http.NewServeMux(), routes: map[string]*Route{}}
	for _, table := range routes {
		for _, rt := range table {
			h.routes[rt.Pattern] = &rt
			h.mux.Handle(rt.Pattern, nothing{})
		}
	}
	return h
}

type handler struct {
	cfg    Config
	mux    *http.ServeMux // finds patterns and path values only
	routes map[string]*Route
	origin http.CrossOriginProtection
}

type nothing struct{}

func (nothing) ServeHTTP(http.ResponseWriter, *http.Request) {}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	h.cfg.Proxies.resolve(r)
	r = r.WithContext(context.WithValue(r.Context(), configKey{}, &h.cfg))
	id := requestID(r)
	rw := &responseWriter{ResponseWriter: w}
	body := &requestBody{ReadCloser: r.Body, left: r.ContentLength}
	if r.ContentLength != 0 { // net/http compares with http.NoBody
		r.Body = body
	}
	setHeaders(rw.Header(), id)
	rc := http.NewResponseController(w)
	// The recorders of tests have no deadlines.
	_ = rc.SetReadDeadline(started.Add(timeout))
	_ = rc.SetWriteDeadline(started.Add(timeout))
	override(r)
	pattern := "none"
	rt, err := h.find(rw, r)
	if rt != nil {
		pattern = rt.Pattern
	}
	defer func() {
		cut := false
		if v := recover(); v != nil {
			cut = true
			if v != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
				err = fmt.Errorf("panic: %v", v)
				rw.stack = debug.Stack()
				if rw.status == 0 {
					cut = false
					h.fail(rw, r, err)
				}
			}
		}
		took := time.Since(started)
		h.cfg.Metric.Request(methodLabel(r.Method), pattern, rw.code(), took)
		h.log(rt, r, rw, id, took, err, cut)
		if cut {
			abort(w, r)
		}
	}()
	if err == nil {
		err = h.serve(rt, rw, r)
	}
	if err != nil {
		if rw.status != 0 {
			panic(http.ErrAbortHandler)
		}
		rw.leave()
		if body.unread() {
			rw.Header().Set("Connection", "close")
		}
		h.fail(rw, r, err)
	}
	if rw.stopped || body.unread() {
		linger(rw)
	}
}

// abort breaks the connection of an answer that cannot be completed. In HTTP/1.0 a
// body ends with the connection, so that only a reset marks it as incomplete. A
// proxy that uses HTTP/1.0 would forward half a body as a whole one.
func abort(w http.ResponseWriter, r *http.Request) {
	if !r.ProtoAtLeast(1, 1) {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
				_ = tcp.SetLinger(0) // it is closed anyway
			}
			conn.Close()
			return
		}
	}
	panic(http.ErrAbortHandler)
}

// find returns the route of a request and sets its path values.
func (h *handler) find(w *responseWriter, r *http.Request) (*Route, error) {
	miss, pattern := h.mux.Handler(r)
	if rt, ok := h.routes[pattern]; ok {
		if _, ok := miss.(nothing); ok {
			h.mux.ServeHTTP(nil, r) // sets the path values
			return rt, nil
		}
	}
	// The answer of the mux distinguishes a wrong method from an unknown path.
	rec := Recorder{Fields: http.Header{}}
	miss.ServeHTTP(&rec, r)
	if rec.Status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", rec.Fields.Get("Allow"))
		return nil, problem.Newf(problem.Method, "%s is not possible here; %s is%s", methodLabel(r.Method), rec.Fields.Get("Allow"), h.near(r))
	}
	return nil, problem.New(problem.NotFound, "there is nothing at this path"+h.near(r))
}

// near lists the routes of a request's method below the first segment of its path,
// as a hint in an error.
func (h *handler) near(r *http.Request) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var near []string
	for pattern := range h.routes {
		if first != "" && strings.HasPrefix(pattern, r.Method+" /"+first+"/{") {
			near = append(near, pattern)
		}
	}
	if near == nil {
		return ""
	}
	slices.Sort(near)
	return "; there is " + strings.Join(near, ", ") + ", where {...} is one segment of the path"
}

func (h *handler) serve(rt *Route, w *responseWriter, r *http.Request) error {
	n := 0
	for _, lines := range r.Header {
		n += len(lines)
	}
	if n > MaxFields {
		return problem.Newf(problem.Invalid, "the request's head has %d fields, the most is %d", n, MaxFields)
	}
	if err := h.origin.Check(r); err != nil {
		return problem.Wrap(problem.Forbidden, "a page of another site made this request; open the page of this server and do it there", err)
	}
	if err := h.admit(rt, w, r); err != nil {
		return err
	}
	if rt.Stream {
		w.stall = http.NewResponseController(w)
		w.alive()
		_ = w.stall.SetReadDeadline(time.Time{}) // Body sets its own
		defer w.leave()
	} else {
		limit := int64(MaxBody)
		if rt.Access == Always || rt.Access == Open {
			limit = MaxOpenBody
		}
		r.Body = http.MaxBytesReader(w, r.Body, cmp.Or(rt.MaxBody, limit))
	}
	return rt.Handle(w, r)
}

// admit returns an error if a request may not use a route.
func (h *handler) admit(rt *Route, w http.ResponseWriter, r *http.Request) error {
	if rt.Access == Always || rt.Access == Open && h.cfg.PublicRead {
		return nil
	}
	err := h.cfg.Auth.Authenticate(r)
	refused, ok := errors.AsType[*problem.Error](err)
	switch {
	case !ok || refused.Code != problem.Unauthorized:
		return err
	case rt.Access == Page && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return &loginRequired{next: r.URL.RequestURI()}
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="imageroot"`)
	return problem.New(problem.Unauthorized, refused.Detail+"; the page to log in is "+h.cfg.Pages.Login)
}

// loginRequired is the error that is answered with the log-in page.
type loginRequired struct{ next string }

func (*loginRequired) Error() string { return "log-in required" }

// fail answers with an error.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if login, ok := errors.AsType[*loginRequired](err); ok {
		w.Header().Set("Cache-Control", "no-store")
		if r.Header.Get("HX-Request") != "" {
			w.Header().Set("HX-Redirect", h.cfg.Pages.Login)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		const most = 2048 // fits into a head and a form
		target := h.cfg.Pages.Login
		if len(login.next) <= most {
			target += "?next=" + url.QueryEscape(login.next)
		}
		http.Redirect(w, r, target, http.StatusSeeOther)
		return
	}
	e := problem.From(err)
	if WantsPage(r) && h.cfg.ErrorPage != nil {
		h.cfg.ErrorPage(w, r, e, problem.Prepare(w, e))
		return
	}
	problem.Write(w, r, e)
}

func (h *handler) log(rt *Route, r *http.Request, w *responseWriter, id string, took time.Duration, err error, cut bool) {
	level := slog.LevelInfo
	if rt != nil && rt.Quiet && w.code() < 400 {
		level = slog.LevelDebug
	}
	attrs := []any{
		"id", id, "method", methodLabel(r.Method), "path", r.URL.EscapedPath(), "status", w.code(),
		"bytes", w.bytes, "seconds", took.Seconds(), "ip", ClientIP(r),
	}
	if cut {
		attrs = append(attrs, "cut", true)
	}
	if w.stack != nil {
		attrs = append(attrs, "stack", string(w.stack))
	}
	if err != nil {
		attrs = append(attrs, "error", err.Error())
		if _, login := errors.AsType[*loginRequired](err); !login && problem.From(err).Code == problem.Internal {
			level = slog.LevelError
		}
	}
	h.cfg.Log.Log(r.Context(), level, "request", attrs...)
}

// setHeaders sets the fields of every answer. Handlers may change them.
func setHeaders(h http.Header, id string) {
	h.Set(problem.RequestIDHeader, id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
}

// requestID returns the client's ID, so that its log and this server's can be
// compared, if the ID is harmless in a log, or else a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get(problem.RequestIDHeader)
	ok := id != "" && len(id) <= 64
	for _, c := range []byte(id) {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.')
	}
	if ok {
		return id
	}
	return rand.Text()[:16]
}

// override sets the method of a form, which can only POST, to that of its
// parameter "_method". The cross-origin check is the same for both.
func override(r *http.Request) {
	if r.Method != http.MethodPost || !isForm(r) {
		return
	}
	switch m := r.URL.Query().Get("_method"); m {
	case http.MethodDelete, http.MethodPut:
		r.Method = m
	}
}

// methodLabel returns a method for logs and labels: unknown ones are "other".
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch:
		return m
	}
	return "other"
}

func isForm(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
}

// A responseWriter records what was written.
type responseWriter struct {
	http.ResponseWriter
	status  int
	bytes   int64
	stopped bool                     // see StopBody
	stack   []byte                   // of a panic
	stall   *http.ResponseController // of streams
	still   time.Time                // time of setting the write deadline
}

// leave bounds the wait for the rest of the body.
func (w *responseWriter) leave() {
	if !w.stopped {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(leftTimeout))
	}
}

func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.alive()
	w.ResponseWriter.WriteHeader(status)
}

// alive extends the write deadline of a stream, not at each write, since it costs
// as much as a small one.
func (w *responseWriter) alive() {
	if now := time.Now(); w.stall != nil && now.Sub(w.still) > StallTimeout/8 {
		_ = w.stall.SetWriteDeadline(now.Add(StallTimeout))
		w.still = now
	}
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.alive()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

func (w *responseWriter) code() int { return cmp.Or(w.status, http.StatusOK) }

// A Recorder is an [http.ResponseWriter] that drops the body.
type Recorder struct {
	Fields http.Header
	Status int
}

// Header implements [http.ResponseWriter].
func (r *Recorder) Header() http.Header { return r.Fields }

// Write implements [http.ResponseWriter].
func (r *Recorder) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements [http.ResponseWriter].
func (r *Recorder) WriteHeader(status int) { r.Status = status }
