// Package api is a client of imageroot's HTTP API, as docs/openapi.yaml describes it.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"imageroot/client/exit"
	"imageroot/shared/auth"
	"imageroot/shared/visible"
)

// Config is the configuration of [New]. URL is required.
type Config struct {
	URL string // of the server, as ParseURL returns it
	// Token is the API token, Session the value of a session cookie. Both may be empty.
	// They are sent to the server only, whatever redirects say.
	Token, Session string
	Version        string // of this program, for User-Agent
	// Warn is called at most once, if credentials cross a public network unencrypted.
	Warn func(string)
}

// A Client makes requests of one server. It is safe for concurrent use.
type Client struct {
	cfg  Config
	base *url.URL
	http *http.Client
}

// ParseURL returns the URL of a server in its canonical form. Without a scheme it is http.
func ParseURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q is not the URL of a server, like http://imageroot.example:8080", s)
	case u.User != nil:
		return "", errors.New("the URL of the server must not contain a password: use imageroot login")
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

// readBuffer is the size from which a read of an answer copies no bytes twice.
const readBuffer = 64 << 10

// New returns a client. It makes no request.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// One connection for each part of an upload: streams of HTTP/2 would share one.
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	transport.DisableCompression = true // images are wanted as they are
	transport.MaxIdleConnsPerHost = 16
	transport.ReadBufferSize, transport.WriteBufferSize = readBuffer, 256<<10
	c := &Client{cfg: cfg, base: base}
	c.http = &http.Client{Transport: &credentials{Config: cfg, base: base, next: transport}}
	return c, nil
}

// URL returns the server's URL.
func (c *Client) URL() string { return c.cfg.URL }

// HasCredentials reports whether requests have credentials.
func (c *Client) HasCredentials() bool { return c.cfg.Token != "" || c.cfg.Session != "" }

// credentials adds the credentials to requests for the server, and to no others. They
// are not in the fields of the request, from which net/http copies them when it follows
// a redirect.
type credentials struct {
	Config
	base *url.URL
	next http.RoundTripper
	warn sync.Once
}

func (c *credentials) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", "imageroot/"+c.Version)
	if r.URL.Scheme != c.base.Scheme || !strings.EqualFold(r.URL.Host, c.base.Host) {
		r.Header.Del("Authorization")
		r.Header.Del("Cookie")
		return c.next.RoundTrip(r)
	}
	switch {
	case c.Token != "":
		r.Header.Set("Authorization", "Bearer "+c.Token)
	case c.Session != "":
		r.AddCookie(&http.Cookie{Name: auth.SessionCookie, Value: c.Session})
	default:
		return c.next.RoundTrip(r)
	}
	if r.URL.Scheme == "http" && c.Warn != nil {
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if public(i.Conn.RemoteAddr()) {
				c.warn.Do(func() {
					c.Warn("the credentials for " + c.URL + " cross a public network unencrypted: use https")
				})
			}
		}}))
	}
	return c.next.RoundTrip(r)
}

// shared is the network of carriers and overlays (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// public reports whether an address is neither on this machine nor in a private network.
func public(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := tcp.AddrPort().Addr().Unmap()
	return !ip.IsLoopback() && !ip.IsPrivate() && !ip.IsLinkLocalUnicast() && !shared.Contains(ip)
}

// A Problem is an error answer of the server.
type Problem struct {
	Status     int    // of HTTP
	Code       string // of docs/openapi.yaml, or empty
	Detail     string // a sentence for people
	RetryAfter time.Duration
}

func (p *Problem) Error() string { return visible.Line(p.Detail) }

// ExitCode returns the exit status for the problem; see [exit.Code].
func (p *Problem) ExitCode() int {
	switch p.Status {
	case http.StatusNotFound:
		return exit.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return exit.Refused
	}
	return exit.Failure
}

// Temporary reports whether the request may succeed later.
func (p *Problem) Temporary() bool {
	switch p.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// IsStatus reports whether err is a [Problem] with that status.
func IsStatus(err error, status int) bool {
	p, ok := errors.AsType[*Problem](err)
	return ok && p.Status == status
}

// A Request is a request for [Client.Send]. Method and Path are required.
type Request struct {
	Method string
	Path   string // escaped, or a URL if the server gave one
	Query  url.Values
	Header http.Header
	Body   io.Reader
	Length int64 // of Body; -1: unknown
	// NoRedirect returns a redirect as the answer.
	NoRedirect bool
}

// Send makes a request. The caller closes the body of the answer. The error is a
// [*Problem] if the server answers with a status from 400 on.
func (c *Client) Send(ctx context.Context, q Request) (*http.Response, error) {
	target, err := c.base.Parse(q.Path)
	if err != nil {
		return nil, fmt.Errorf("%s gave a URL that does not parse: %w", c.URL(), err)
	}
	if q.Query != nil {
		target.RawQuery = q.Query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, q.Method, target.String(), q.Body)
	if err != nil {
		return nil, err
	}
	if q.Body != nil {
		r.ContentLength = q.Length
	}
	for name, values := range q.Header {
		r.Header[name] = values
	}
	if r.Header.Get("Accept") == "" {
		r.Header.Set("Accept", "application/json")
	}
	client := c.http
	if q.NoRedirect {
		client = &http.Client{Transport: c.http.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, c.problem(res)
}

// explain returns err without the URL of the request, which may be presigned.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	host := c.URL()
	if u, ok := errors.AsType[*url.Error](err); ok {
		if at, perr := url.Parse(u.URL); perr == nil && at.Host != "" {
			host = at.Scheme + "://" + at.Host
		}
		err = u.Err
	}
	return &Unreachable{Host: host, Err: err}
}

// Unreachable is the error if no answer comes.
type Unreachable struct {
	Host string
	Err  error
}

func (u *Unreachable) Error() string { return fmt.Sprintf("cannot reach %s: %v", u.Host, u.Err) }

// Unwrap returns the cause.
func (u *Unreachable) Unwrap() error { return u.Err }

// problem reads an error answer.
func (c *Client) problem(res *http.Response) *Problem {
	p := &Problem{Status: res.StatusCode}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s >= 0 {
		p.RetryAfter = time.Duration(s) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var in struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
	}
	if json.Unmarshal(body, &in) == nil {
		p.Code, p.Detail = in.Code, in.Detail
	}
	from := res.Request.URL.Scheme + "://" + res.Request.URL.Host
	switch {
	case p.Status == http.StatusUnauthorized && from != c.URL():
		p.Detail = fmt.Sprintf("%s redirects to %s, where its credentials are not sent: imageroot login %[2]s", c.URL(), from)
	case p.Detail == "":
		p.Detail = fmt.Sprintf("%s answered %s, which is not an answer of imageroot", from, res.Status)
		if res.StatusCode == http.StatusRequestEntityTooLarge {
			p.Detail = "a proxy in front of " + c.URL() + " refuses requests of this size: allow larger ones in its settings (nginx: client_max_body_size 0)"
		}
	case p.Status == http.StatusUnauthorized:
		p.Detail = fmt.Sprintf("%s (imageroot login %s)", p.Detail, c.URL())
	}
	return p
}

// maxAnswer limits what is read of a JSON answer: a listing of a million images.
const maxAnswer = 512 << 20

// JSON makes a request whose body is in as JSON, unless in is nil, and decodes the answer
// into out, unless out is nil or there is none. A *json.RawMessage gets the answer as it is.
func (c *Client) JSON(ctx context.Context, method, path string, query url.Values, in, out any) error {
	return c.send(ctx, Request{Method: method, Path: path, Query: query, Header: http.Header{}}, in, out)
}

// send makes a request, which has a header, as [Client.JSON] does.
func (c *Client) send(ctx context.Context, q Request, in, out any) error {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		q.Body, q.Length = bytes.NewReader(b), int64(len(b))
		q.Header.Set("Content-Type", "application/json")
		if q.Method == http.MethodPatch {
			q.Header.Set("Content-Type", "application/merge-patch+json")
		}
	}
	res, err := c.Send(ctx, q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c.explain(ctx, err)
	}
	if out == nil || len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s did not answer as imageroot does: %w", c.URL(), err)
	}
	return nil
}

// ImagePath returns the path of an image by its name or SHA-256.
func ImagePath(key string) string { return "/images/" + url.PathEscape(key) }

// LogIn opens a session with the operator's password, and returns the value of its cookie.
func (c *Client) LogIn(ctx context.Context, password string) (string, error) {
	body, err := json.Marshal(map[string]string{"password": password})
	if err != nil {
		return "", err
	}
	res, err := c.Send(ctx, Request{
		Method: http.MethodPost, Path: "/ui/login", Body: bytes.NewReader(body), Length: int64(len(body)),
		Header: http.Header{"Content-Type": {"application/json"}}, NoRedirect: true,
	})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	for _, cookie := range res.Cookies() {
		if cookie.Name == auth.SessionCookie && cookie.Value != "" {
			return cookie.Value, nil
		}
	}
	return "", fmt.Errorf("%s did not answer as imageroot does: it opened no session", c.URL())
}
