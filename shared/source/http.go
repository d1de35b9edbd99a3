package source

import (
	"context"
	"crypto/tls"
	"mime"
	"net/http"
	"net/http/cookiejar"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/publicsuffix"

	"imageroot/shared/image"
)

// newTransport returns a transport for HTTP/1.1 only: CDNs reset long HTTP/2 streams,
// and parallel ranges need parallel connections.
func newTransport(config Config) *http.Transport {
	t := config.Policy.Transport()
	t.DisableCompression = true
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ResponseHeaderTimeout = config.HeaderTimeout
	t.MaxIdleConnsPerHost = 64
	t.ReadBufferSize = 64 << 10
	t.TLSClientConfig = &tls.Config{RootCAs: config.RootCAs, Time: config.Now}
	return t
}

// session returns an HTTP client for the requests of one operation. Cookies that a
// redirect sets are sent to their hosts until the operation ends.
func (c *Client) session() *http.Client {
	jar, _ := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List}) // never fails
	return &http.Client{
		Transport: c.transport, Jar: jar,
		CheckRedirect: func(req *http.Request, via []*http.Request) error { return checkRedirect(jar, req, via) },
	}
}

// maxRedirects is the number of redirects that one request follows.
const maxRedirects = 10

// checkRedirect is the [http.Client.CheckRedirect] of a client with that jar. Its
// errors are [*Unresolvable].
func checkRedirect(jar http.CookieJar, req *http.Request, via []*http.Request) error {
	first := via[0].URL.Host
	if s := req.URL.Scheme; s != "http" && s != "https" {
		return unresolvable(nil, "%s redirects to a %s: URL, which is not a source", first, s)
	}
	if len(via) > maxRedirects {
		return unresolvable(nil, "%s redirects more than %d times", first, maxRedirects)
	}
	cookies := len(jar.Cookies(req.URL)) // with one more cookie, the same URL may have another answer
	for _, r := range via {
		if r.URL.String() == req.URL.String() && len(r.Cookies()) == cookies {
			return unresolvable(nil, "%s redirects in a loop, back to %s", first, req.URL.Host+req.URL.EscapedPath())
		}
	}
	req.Header.Del("Referer") // it would disclose a signed URL to the next host
	return nil
}

// A doer sends requests: an [http.Client], or a client that authorizes them.
type doer interface {
	Do(*http.Request) (*http.Response, error)
}

func (c *Client) newRequest(ctx context.Context, method, target string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, malformed("the URL cannot be read: %v", cause(err))
	}
	req.Header.Set("User-Agent", c.config.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	return req, nil
}

// ask sends a request for a range of target, given as a Range field, or for the whole
// if rang is empty. Its errors are those of explain.
func (c *Client) ask(ctx context.Context, client doer, method, target, rang string) (*http.Response, error) {
	req, err := c.newRequest(ctx, method, target)
	if err != nil {
		return nil, err
	}
	if rang != "" {
		req.Header.Set("Range", rang)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, c.explain(ctx, req.URL.Host, err)
	}
	return resp, nil
}

// checkImage returns an error if the body of an answer cannot be the image of this
// name.
func checkImage(resp *http.Response, name image.Name) error {
	host := resp.Request.URL.Host
	if enc := encoding(resp); enc != "" && !compressedBy(name, enc) {
		return unresolvable(nil, "%s sends %s with Content-Encoding %s though none was asked for, so its bytes are not the image's", host, name, enc)
	}
	switch t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t {
	case "text/html", "application/xhtml+xml":
		return unresolvable(nil, "%s answers with a web page (%s) instead of %s: give the URL of the file itself", host, t, name)
	}
	return nil
}

// plainCodings are the content codings that servers name although the bytes have none:
// S3 clients store the framing of their upload, others a charset or nothing.
var plainCodings = []string{"", "identity", "none", "binary", "utf-8", "utf8", "aws-chunked"}

// encoding returns the content codings of an answer in lower case, without those that
// do not change the bytes.
func encoding(resp *http.Response) string {
	var codings []string
	for c := range strings.SplitSeq(strings.Join(resp.Header.Values("Content-Encoding"), ","), ",") {
		if c = strings.ToLower(strings.TrimSpace(c)); !slices.Contains(plainCodings, c) {
			codings = append(codings, c)
		}
	}
	return strings.Join(codings, ", ")
}

// compressedBy reports whether the content coding enc is the compression of name's
// suffix. Some web servers send a .gz file unchanged with Content-Encoding: x-gzip.
func compressedBy(name image.Name, enc string) bool {
	f, _ := image.FormatOf(name)
	c, ok := f.Compression()
	return ok && strings.TrimPrefix(enc, "x-") == c.Name
}

// validators returns the validators of an answer that can be stored in a record and
// sent back. JSON holds UTF-8 only, but an ETag may have any byte from 0x80 on (RFC
// 9110 section 8.8.3).
func validators(resp *http.Response) Validators {
	get := func(name string) string {
		const most = 512
		v := resp.Header.Get(name)
		if len(v) > most || !utf8.ValidString(v) || !httpguts.ValidHeaderFieldValue(v) {
			return ""
		}
		return v
	}
	return Validators{ETag: get("ETag"), LastModified: get("Last-Modified")}
}
