package web

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/problem"
)

// JSON answers with status and v, encoded as JSON. If encoding fails, it returns the
// error and writes nothing.
func JSON(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data) // the client may have disconnected
	return nil
}

// Decode decodes a request's body, which is JSON or a form, into v. It ignores fields
// that v does not have. [problem.From] translates its errors.
func Decode(_ http.ResponseWriter, r *http.Request, v any) error {
	if isForm(r) {
		return decodeForm(r, v)
	}
	if t := r.Header.Get("Content-Type"); t != "" {
		if mt, _, err := mime.ParseMediaType(t); err != nil || mt != "application/json" && mt != "text/json" {
			return problem.New(problem.Unsupported, "the body must be JSON (Content-Type: application/json) or a form (application/x-www-form-urlencoded)")
		}
	}
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return bodyError(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return jsonError(err)
	}
	return nil
}

func decodeForm(r *http.Request, v any) error {
	err := r.ParseForm()
	for name := range r.PostForm {
		if strings.HasPrefix(strings.TrimSpace(name), "{") { // as curl -d sends JSON
			return problem.New(problem.Unsupported, "the body looks like JSON, and was sent as a form: add the header Content-Type: application/json")
		}
	}
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return err
		}
		return problem.Wrap(problem.Malformed, "the form cannot be read", err)
	}
	fields := make(map[string]any, len(r.PostForm))
	for name, values := range r.PostForm {
		fields[name] = values[len(values)-1]
	}
	for {
		data, err := json.Marshal(fields)
		if err != nil {
			return err
		}
		err = json.Unmarshal(data, v)
		if err == nil {
			return nil
		}
		// The values of a form are strings, so parse one for a boolean of v.
		e, ok := errors.AsType[*json.UnmarshalTypeError](err)
		if !ok {
			return jsonError(err)
		}
		text, _ := fields[e.Field].(string)
		truth, perr := strconv.ParseBool(text)
		if perr != nil || e.Type.Kind() != reflect.Bool {
			return jsonError(err)
		}
		fields[e.Field] = truth
	}
}

// bodyError returns the error for a body that was not received completely.
func bodyError(err error) error {
	if problem.From(err).Code != problem.Internal {
		return err
	}
	return problem.Wrap(problem.Invalid, "the body did not arrive whole: send it again", err)
}

func jsonError(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return problem.Wrap(problem.Malformed, "the field "+e.Field+" cannot be a "+e.Value, err)
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return problem.Wrap(problem.Malformed, "the body is not JSON: "+e.Error(), err)
	}
	return problem.Wrap(problem.Malformed, "the body must be a JSON object of the fields that this needs", err)
}

// Answer answers a request that changed something. A program gets v as JSON, or no body
// if v is nil. A browser that sent a form is redirected to its page (see [Back]), which
// shows message.
func Answer(w http.ResponseWriter, r *http.Request, status int, v any, message string) error {
	if WantsPage(r) {
		SetNotice(w, r, message)
		http.Redirect(w, r, Back(r), http.StatusSeeOther)
		return nil
	}
	if v == nil {
		w.WriteHeader(status)
		return nil
	}
	return JSON(w, status, v)
}

// Back returns the URL of the page that a form was sent from, or [Pages.Home] if it is
// unknown or not below [Pages.Prefix]. The query parameter "_back" is a URL relative to
// that page, such as "#ID" for an element.
func Back(r *http.Request) string {
	u, err := url.Parse(r.Referer())
	if err == nil {
		u, err = u.Parse(r.URL.Query().Get("_back"))
	}
	pages := configOf(r).Pages
	if err != nil || u.Host != r.Host || pages.Prefix == "" || !strings.HasPrefix(u.Path, pages.Prefix) {
		return pages.Home
	}
	return (&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery, Fragment: u.Fragment}).String()
}

// WantsPage reports whether the client is a browser that navigates: its Accept lists
// HTML before JSON, and htmx did not send the request.
func WantsPage(r *http.Request) bool {
	if r.Header.Get("HX-Request") != "" {
		return false
	}
	for accepted := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		mt, params, err := mime.ParseMediaType(accepted)
		if err != nil {
			continue
		}
		if q, err := strconv.ParseFloat(params["q"], 64); err == nil && q == 0 {
			continue
		}
		switch mt {
		case "text/html":
			return true
		case "application/json", problem.MediaType:
			return false
		}
	}
	return false
}

const noticeCookie = "imageroot_notice"

// SetNotice makes the next page within a minute show message, cut to 1000 bytes.
func SetNotice(w http.ResponseWriter, r *http.Request, message string) {
	const most = 1000 // a cookie holds 4096 bytes
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + "..."
	}
	http.SetCookie(w, &http.Cookie{
		Name: noticeCookie, Value: base64.RawURLEncoding.EncodeToString([]byte(message)), Path: configOf(r).Pages.Prefix,
		MaxAge: 60, HttpOnly: true, Secure: IsTLS(r), SameSite: http.SameSiteStrictMode,
	})
}

// TakeNotice returns the message of [SetNotice], or "", and removes it.
func TakeNotice(w http.ResponseWriter, r *http.Request) string {
	c, err := r.Cookie(noticeCookie)
	if err != nil {
		return ""
	}
	http.SetCookie(w, &http.Cookie{Name: noticeCookie, Path: configOf(r).Pages.Prefix, MaxAge: -1, HttpOnly: true, Secure: IsTLS(r), SameSite: http.SameSiteStrictMode})
	b, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(b), "")
}

// Coding returns the content coding for an answer (RFC 9110 §12.5.3): of those in offered
// that Accept-Encoding names, the one with the highest weight, or the first of several.
// It returns "" for no coding: if none is acceptable, or identity has a higher weight.
// Many clients that send "*" decode nothing, so it only selects a coding if identity is
// refused.
func Coding(r *http.Request, offered ...string) string {
	weights := map[string]float64{}
	for field := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, params, weighted := strings.Cut(field, ";")
		weight := 1.0
		if weighted {
			key, value, _ := strings.Cut(strings.TrimSpace(params), "=")
			q, err := strconv.ParseFloat(value, 64)
			if err != nil || !strings.EqualFold(key, "q") || !(q >= 0 && q <= 1) {
				q = 0
			}
			weight = q
		}
		weights[strings.ToLower(strings.TrimSpace(name))] = weight
	}
	others, rest := weights["*"]
	identity, named := weights["identity"]
	refused := named && identity == 0 || !named && rest && others == 0
	best, most := "", 0.0
	for _, coding := range offered {
		weight, ok := weights[coding]
		if !ok && refused {
			weight = others
		}
		if weight > most && weight >= identity {
			best, most = coding, weight
		}
	}
	return best
}

// Bearer returns the bearer token of a request (RFC 6750 section 2.1), which may be
// empty. ok is false if the request has none.
func Bearer(r *http.Request) (token string, ok bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), strings.EqualFold(scheme, "Bearer")
}

// Password returns the token of a request, as a bearer token or as the password of HTTP Basic
// (RFC 7617) with any user name, which basic reports. ok is false if the request has none.
func Password(r *http.Request) (token string, basic, ok bool) {
	if token, ok = Bearer(r); ok {
		return token, false, true
	}
	_, token, basic = r.BasicAuth()
	return token, basic, basic
}

// TokenName returns the name of the token that a request has, from its context. It is empty
// for the operator, and for a request that needed no credentials.
func TokenName(ctx context.Context) string { return stateOf(ctx).caller.Token }

// Require returns a problem if the credentials of a request, from its context, are of less
// access. It is for a part of what a route does, which needs more than the route.
func Require(ctx context.Context, access Access) error {
	caller := stateOf(ctx).caller
	if access > caller.Access {
		return problem.Newf(problem.Forbidden, "the scope of the token %s does not include this: use a token of another scope, or log in", caller.Token)
	}
	return nil
}

// ClientIP returns the IP address of the client, which may be behind trusted [Proxies].
func ClientIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// IsTLS reports whether the client uses TLS, to this server or to a trusted proxy.
func IsTLS(r *http.Request) bool {
	return r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// BaseURL returns [Config.PublicURL], or else the URL that the client used, without a
// trailing slash. If the request has no usable Host (HTTP/1.0 needs none), the URL has
// the address that the client connected to.
func BaseURL(r *http.Request) string {
	if base := configOf(r).PublicURL; base != "" {
		return base
	}
	host := r.Host
	if !hosts.MatchString(host) {
		host = "localhost"
		if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			host = addr.String()
		}
	}
	if IsTLS(r) {
		return "https://" + host
	}
	return "http://" + host
}

// hosts matches the values of Host that may be part of a URL.
var hosts = regexp.MustCompile(`^([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)

// Body returns the request's body for a [Route] with Stream. A read fails if the client
// sends nothing for [StallTimeout].
func Body(w http.ResponseWriter, r *http.Request) io.Reader {
	return &stallReader{body: r.Body, rc: http.NewResponseController(w)}
}

type stallReader struct {
	body  io.Reader
	rc    *http.ResponseController
	still time.Time
}

func (s *stallReader) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(s.still) > StallTimeout/8 {
		_ = s.rc.SetReadDeadline(now.Add(StallTimeout))
		s.still = now
	}
	return s.body.Read(p)
}

// StopBody makes a blocked read of the body fail. The connection is closed after the
// answer.
func StopBody(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	w.Header().Set("Connection", "close")
	if rw, ok := w.(*responseWriter); ok {
		rw.stopped = true
	}
}

// A requestBody records whether it was read to its end.
type requestBody struct {
	io.ReadCloser
	left  int64 // unread bytes; negative if the length is unknown
	ended bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	b.ended = b.ended || errors.Is(err, io.EOF)
	return n, err
}

// unread reports whether the unread rest is so long that net/http would close the
// connection: it reads up to 256 KiB.
func (b *requestBody) unread() bool {
	const most = 256 << 10
	return !b.ended && (b.left < 0 || b.left > most)
}

// lingerTime bounds the time for which linger reads.
const lingerTime = 3 * time.Second

// linger closes the connection such that a client that is still sending receives the
// answer (RFC 9112 §9.6): it closes its own direction, then reads for up to lingerTime.
// net/http would close both directions at once, which resets the connection.
func linger(w http.ResponseWriter) {
	if w.Header().Get("Content-Length") == "" {
		return // only net/http knows where the answer ends
	}
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	conn, _, err := rc.Hijack()
	if err != nil {
		return // the request has no connection of its own (HTTP/2)
	}
	defer conn.Close()
	if c, ok := conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, conn)
}
