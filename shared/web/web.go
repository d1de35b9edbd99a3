// Package web serves the functions' routes over HTTP. It finds the route, checks
// access, bounds the body, translates errors to answers, and logs and counts requests.
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
	"imageroot/shared/visible"
)

// An Access is the authentication that a route requires, or that a [Caller] has: each
// includes those before it. Without credentials, the answer is 401, and with those of less
// access 403.
type Access int

const (
	// Always requires none. It is for health, the log-in page and its files.
	Always Access = iota
	// Open requires none if [Config.PublicRead] is true, and is [Read] otherwise.
	Open
	// Read requires a token of any scope, the API token or a session.
	Read
	// Upload requires a token that may add images.
	Upload
	// Page is [Operator], but a GET or HEAD is redirected to the log-in page instead.
	Page
	// Operator requires a token that may do what the operator may.
	Operator
	// Admin requires the API token or a session: no token makes other tokens.
	Admin
)

// A Caller is who sent a request.
type Caller struct {
	// Token is the name of the token that the request has. It is empty for the operator.
	Token string
	// Access is at least [Read].
	Access Access
}

// A HandlerFunc answers a request or returns an error. If it has written nothing, the
// error is answered as [problem.From] says. Otherwise the connection is aborted, so
// that the client does not take the partial answer for a complete one.
type HandlerFunc func(w http.ResponseWriter, r *http.Request) error

// A Route is one entry of a function's route table.
type Route struct {
	Pattern string // of [http.ServeMux], with the method
	Access  Access
	Handle  HandlerFunc
	// MaxBody is the maximum size of the request's body in bytes. 0 means [MaxBody], or
	// [MaxOpenBody] if Access is [Always] or [Open]. Stream ignores it.
	MaxBody int64
	// Stream is for bodies of gigabytes in either direction. Their size and total time
	// are not limited, only the time without progress: see [StallTimeout].
	Stream bool
	// Quiet logs requests with a status below 400 at the level debug. It is for health
	// checks and the refreshes of pages.
	Quiet bool
}

const (
	// MaxBody and MaxOpenBody are the defaults of [Route.MaxBody], in bytes, with and
	// without authentication.
	MaxBody, MaxOpenBody = 64 << 10, 8 << 10
	// MaxHeaderBytes and HeaderTimeout are settings for [http.Server]: the maximum size
	// of a request's head in bytes, and the time in which it must arrive.
	MaxHeaderBytes, HeaderTimeout = 8 << 10, 5 * time.Second
	// MaxFields is the maximum number of field lines in a head. In memory, a field
	// takes many times its bytes.
	MaxFields = 100
	// StallTimeout is the maximum time without progress of a stream.
	StallTimeout = 2 * time.Minute
	// leftTimeout bounds the wait for a body that the handler has not read, some of
	// which net/http reads before it closes the connection.
	leftTimeout = 5 * time.Second
	// timeout bounds a request that is not a stream.
	timeout = 2 * time.Minute
)

// An Authenticator authenticates the operator and machines. It must be safe for concurrent
// use.
type Authenticator interface {
	// Authenticate returns who sent the request. If it has no credentials, or wrong ones, the
	// error is a [problem.Error] with the code Unauthorized, whose detail says why and
	// what to do. Any other error means that the request cannot be checked now.
	Authenticate(r *http.Request) (Caller, error)
}

// Config is the configuration of [Handler]. Auth, Metric and Log are required.
type Config struct {
	Auth       Authenticator
	PublicRead bool
	// Proxies are trusted to set X-Forwarded-For and X-Forwarded-Proto.
	Proxies Proxies
	// PublicURL is this server's URL for clients, without a trailing slash. If it is
	// empty, each client gets the URL that it used.
	PublicURL string
	Pages     Pages
	// ErrorPage, if not nil, answers browsers with status and a page about e.
	ErrorPage func(w http.ResponseWriter, r *http.Request, e *problem.Error, status int)
	// PlainErrors, if not empty, is the beginning of the paths whose errors are answered
	// as {"error": detail}, as clients of another program expect it.
	PlainErrors string
	Metric      *metric.Set
	Log         *slog.Logger
}

// Pages has the paths of pages. The zero Pages means that there are none.
type Pages struct {
	Prefix string // of all pages, with a trailing slash
	Home   string // the page to return to if no other is known
	Login  string // the page that asks for the password
}

// A state is what the context of a request has.
type state struct {
	cfg *Config
	// caller is the zero Caller if the route needs no credentials.
	caller Caller
}

type stateKey struct{}

// stateOf returns the state in a request's context, or an empty one outside of a handler.
func stateOf(ctx context.Context) *state {
	if s, ok := ctx.Value(stateKey{}).(*state); ok {
		return s
	}
	return &state{cfg: &Config{}}
}

func configOf(r *http.Request) *Config { return stateOf(r.Context()).cfg }

// Handler returns a handler of all routes, which is safe for concurrent use. It panics
// if two patterns conflict.
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
	r = r.WithContext(context.WithValue(r.Context(), stateKey{}, &state{cfg: &h.cfg}))
	id := requestID(r)
	rw := &responseWriter{ResponseWriter: w, ending: endingOf(r)}
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
			rw.ending.reset()
			panic(http.ErrAbortHandler)
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
	rw.complete()
	if rw.stopped || body.unread() {
		linger(rw)
	}
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
		_ = w.stall.SetReadDeadline(time.Time{}) // Body sets deadlines itself
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

// admit returns an error if the request may not use the route.
func (h *handler) admit(rt *Route, w http.ResponseWriter, r *http.Request) error {
	if rt.Access == Always || rt.Access == Open && h.cfg.PublicRead {
		return nil
	}
	caller, err := h.cfg.Auth.Authenticate(r)
	stateOf(r.Context()).caller = caller
	refused, ok := errors.AsType[*problem.Error](err)
	switch {
	case err == nil:
		return Require(r.Context(), rt.Access)
	case !ok || refused.Code != problem.Unauthorized:
		return err
	case rt.Access == Page && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		return &loginRequired{next: r.URL.RequestURI()}
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="imageroot"`)
	if !strings.HasPrefix(r.UserAgent(), "Mozilla/") {
		// Tools such as wget send a password only when asked for one, and browsers, which all
		// call themselves Mozilla, would open a dialog.
		w.Header().Add("WWW-Authenticate", `Basic realm="imageroot", charset="UTF-8"`)
	}
	return problem.New(problem.Unauthorized, refused.Detail+"; the page to log in is "+h.cfg.Pages.Login)
}

// loginRequired is answered with a redirect to the log-in page.
type loginRequired struct{ next string }

func (*loginRequired) Error() string { return "log-in required" }

// fail answers with an error.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if login, ok := errors.AsType[*loginRequired](err); ok {
		w.Header().Set("Cache-Control", "no-store")
		part, next := r.Header.Get("HX-Request") != "", login.next
		if part { // the page that it is a part of
			u, err := url.Parse(r.Header.Get("HX-Current-URL"))
			if err != nil || u.Host != r.Host {
				u = &url.URL{Path: h.cfg.Pages.Home}
			}
			next = u.RequestURI()
		}
		const most = 2048 // fits in a head and a form
		target := h.cfg.Pages.Login
		if len(next) <= most {
			target += "?next=" + url.QueryEscape(next)
		}
		if part {
			w.Header().Set("HX-Redirect", target)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, target, http.StatusSeeOther)
		return
	}
	e := problem.From(err)
	if h.cfg.PlainErrors != "" && strings.HasPrefix(r.URL.Path, h.cfg.PlainErrors) {
		_ = JSON(w, problem.Prepare(w, e), map[string]string{"error": visible.Text(e.Detail)}) // always encodes
		return
	}
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
	if token := TokenName(r.Context()); token != "" {
		attrs = append(attrs, "token", token)
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

// requestID returns the client's request ID, so that both logs can be compared, or a
// new one if the client's is missing or unsafe in a log.
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

// override sets the method of a form, which can only POST, to the query parameter
// "_method": DELETE, PUT or PATCH. The cross-origin check is the same for both.
func override(r *http.Request) {
	if r.Method != http.MethodPost || !isForm(r) {
		return
	}
	switch m := r.URL.Query().Get("_method"); m {
	case http.MethodDelete, http.MethodPut, http.MethodPatch:
		r.Method = m
	}
}

// methodLabel returns a method for logs and labels, and "other" for an unknown one.
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
	still   time.Time                // when the write deadline was set
	failed  bool                     // a write has
	ending  ending
}

// leave bounds the wait for the rest of the request's body.
func (w *responseWriter) leave() {
	if !w.stopped {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(leftTimeout))
	}
}

func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		if w.stall != nil {
			w.ending.reset()
		}
	}
	w.alive()
	w.ResponseWriter.WriteHeader(status)
}

// alive extends the write deadline of a stream. It does so at intervals, since it costs
// as much as a small write.
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
	w.failed = w.failed || err != nil
	return n, err
}

// complete tells the client that nothing is missing, if so.
func (w *responseWriter) complete() {
	if w.stall == nil || w.failed {
		return
	}
	if w.bytes > 0 && w.stall.Flush() != nil {
		return
	}
	w.ending.close()
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
