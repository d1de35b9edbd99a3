package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"

	"imageroot/shared/checksum"
	"imageroot/shared/image"
)

// maxRedirects is how many redirects one request follows.
const maxRedirects = 10

type redirectError struct{ reason string }

func (e *redirectError) Error() string { return e.reason }

// checkRedirect is an [http.Client.CheckRedirect] of a client with that jar.
func checkRedirect(jar http.CookieJar, req *http.Request, via []*http.Request) error {
	first := via[0].URL.Host
	if s := req.URL.Scheme; s != "http" && s != "https" {
		return &redirectError{fmt.Sprintf("%s redirects to a %s: URL, which is not a source", first, s)}
	}
	if len(via) > maxRedirects {
		return &redirectError{fmt.Sprintf("%s redirects more than %d times", first, maxRedirects)}
	}
	cookies := len(jar.Cookies(req.URL)) // with which the same URL may answer otherwise
	for _, r := range via {
		if r.URL.String() == req.URL.String() && len(r.Cookies()) == cookies {
			return &redirectError{fmt.Sprintf("%s redirects in a loop, back to %s", first, req.URL.Host+req.URL.EscapedPath())}
		}
	}
	req.Header.Del("Referer") // it would tell the next host a signed URL
	return nil
}

// A doer sends requests: an [http.Client], or a client that signs them.
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

func (c *Client) resolveWeb(ctx context.Context, u URL, shaURL string) (*Resolved, error) {
	if shaURL = strings.TrimSpace(shaURL); shaURL != "" {
		// What is malformed is said before anything is asked.
		if _, err := parseWeb(shaURL); err != nil {
			return nil, malformed("the SHA URL is not usable: %v", err)
		}
	}
	web := c.session()
	r, final, err := c.probe(ctx, web, u)
	if err != nil {
		return nil, err
	}
	if shaURL == "" {
		return r, nil
	}
	sum, err := c.publishedSum(ctx, web, shaURL, u, final)
	if err != nil {
		return nil, err
	}
	switch sum.Algorithm {
	case checksum.SHA256:
		r.SHA256 = sum.Hex
	case checksum.SHA512:
		r.SHA512 = sum.Hex
	}
	return r, nil
}

// probe asks for an image without reading it: by HEAD, and where that does
// not say enough (signed URLs allow GET only, some servers give no length)
// for its first byte. final is the URL after redirects.
func (c *Client) probe(ctx context.Context, web doer, u URL) (r *Resolved, final *url.URL, err error) {
	if r, final, err = c.probeHead(ctx, web, u); err != nil || r != nil {
		return r, final, err
	}
	req, err := c.newRequest(ctx, http.MethodGet, u.Canonical)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Range", "bytes=0-0")
	resp, err := web.Do(req)
	if err != nil {
		return nil, nil, c.explain(ctx, u.Host, err)
	}
	defer resp.Body.Close()
	size := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		size = -1
		if cr, err := parseContentRange(resp.Header.Get("Content-Range")); err == nil && cr.start == 0 {
			size = cr.total
		}
	case http.StatusRequestedRangeNotSatisfiable: // there is no first byte
		if size, err = unsatisfiedTotal(resp.Header.Get("Content-Range")); err != nil || size > 0 {
			return nil, nil, c.status(resp, "image")
		}
	default:
		return nil, nil, c.status(resp, "image")
	}
	return c.resolved(resp, u, size)
}

// probeHead returns nothing where HEAD is no use and GET must tell.
func (c *Client) probeHead(ctx context.Context, web doer, u URL) (*Resolved, *url.URL, error) {
	req, err := c.newRequest(ctx, http.MethodHead, u.Canonical)
	if err != nil {
		return nil, nil, err
	}
	resp, err := web.Do(req)
	switch {
	case err != nil && ctx.Err() == nil && errors.Is(err, io.EOF):
		return nil, nil, nil // it does not know HEAD at all
	case err != nil:
		return nil, nil, c.explain(ctx, u.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength <= 0 || checkImage(resp, u.Name) != nil {
		return nil, nil, nil
	}
	return c.resolved(resp, u, resp.ContentLength)
}

func (c *Client) resolved(resp *http.Response, u URL, size int64) (*Resolved, *url.URL, error) {
	if err := checkImage(resp, u.Name); err != nil {
		return nil, nil, err
	}
	return &Resolved{Name: u.Name, Size: size, Validators: validators(resp)}, resp.Request.URL, nil
}

// locationOf is u as package checksum has it: a list and an image of one server
// are not told apart by scheme or query.
func locationOf(u *url.URL) string { return u.Host + path.Clean("/"+u.Path) }

// publishedSum is what the list at shaURL says of the image: at the operator's
// URL, or at the one that it redirects to ("latest.img").
func (c *Client) publishedSum(ctx context.Context, web doer, shaURL string, image URL, final *url.URL) (checksum.Sum, error) {
	u, err := parseWeb(shaURL)
	if err != nil {
		return checksum.Sum{}, malformed("the SHA URL is not usable: %v", err)
	}
	req, err := c.newRequest(ctx, http.MethodGet, u.String())
	if err != nil {
		return checksum.Sum{}, err
	}
	resp, err := web.Do(req)
	if err != nil {
		return checksum.Sum{}, c.explain(ctx, u.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return checksum.Sum{}, c.status(resp, "checksum list")
	}
	if enc := encoding(resp); enc != "" {
		return checksum.Sum{}, unresolvable(nil, "%s sends the checksum list with Content-Encoding %s though none was asked for", resp.Request.URL.Host, enc)
	}
	list, err := checksum.Parse(resp.Body, locationOf(u))
	if err != nil {
		return checksum.Sum{}, unresolvable(err, "the SHA URL at %s is no use: %v", resp.Request.URL.Host, err)
	}
	asked, err := parseWeb(image.Canonical)
	if err != nil {
		return checksum.Sum{}, err
	}
	sum, err := list.Find(locationOf(asked))
	if err != nil {
		if s, err2 := list.Find(locationOf(final)); err2 == nil {
			return s, nil
		}
	}
	if err != nil {
		return checksum.Sum{}, unresolvable(err, "the SHA URL does not help: %v", err)
	}
	return sum, nil
}

// checkImage refuses an answer whose body cannot be the image of that name.
func checkImage(resp *http.Response, name string) error {
	host := resp.Request.URL.Host
	if enc := encoding(resp); enc != "" && !compressedBy(name, enc) {
		return unresolvable(nil, "%s sends %s with Content-Encoding %s though none was asked for, so its bytes are not the image's", host, name, enc)
	}
	switch t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t {
	case "text/html", "application/xhtml+xml":
		return unresolvable(nil, "%s answers with a web page (%s) where %s should be: give the URL of the file itself", host, t, name)
	}
	return nil
}

// plainCodings are what servers say of bytes that are as they are: S3 clients
// store what was the framing of their upload, and others a charset or nothing.
var plainCodings = []string{"", "identity", "none", "binary", "utf-8", "utf8", "aws-chunked"}

// encoding is the content codings of an answer, in lower case and without those
// that do not change the bytes.
func encoding(resp *http.Response) string {
	var codings []string
	for c := range strings.SplitSeq(strings.Join(resp.Header.Values("Content-Encoding"), ","), ",") {
		if c = strings.ToLower(strings.TrimSpace(c)); !slices.Contains(plainCodings, c) {
			codings = append(codings, c)
		}
	}
	return strings.Join(codings, ", ")
}

// compressedBy reports whether enc is only another way to say what name's
// suffix says: web servers that know .gz send the file as it is, with
// Content-Encoding: x-gzip.
func compressedBy(name, enc string) bool {
	f, ok := image.FormatOf(name)
	if !ok {
		return false
	}
	switch strings.TrimPrefix(enc, "x-") {
	case "gzip":
		return path.Ext(string(f)) == ".gz"
	case "bzip2":
		return path.Ext(string(f)) == ".bz2"
	case "xz":
		return path.Ext(string(f)) == ".xz"
	case "zstd":
		return path.Ext(string(f)) == ".zst"
	}
	return false
}

// validators returns the fields of an answer that survive a record and can be
// sent back: JSON holds no other text than UTF-8, and RFC 9110 section 8.8.3
// lets an ETag have any byte from 0x80 on.
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

// Differ reports whether two validators are of different contents. Where they
// have nothing in common to compare they do not differ. ETags are compared
// weakly: a server that sends W/ still changes it with the content.
func (v Validators) Differ(w Validators) bool {
	if v.ETag != "" && w.ETag != "" {
		return strings.TrimPrefix(v.ETag, "W/") != strings.TrimPrefix(w.ETag, "W/")
	}
	return v.LastModified != "" && w.LastModified != "" && v.LastModified != w.LastModified
}

// ifRange is the value of an If-Range field: a strong ETag or a date, else
// nothing (RFC 9110 section 13.1.5).
func (v Validators) ifRange() string {
	if strings.HasPrefix(v.ETag, `"`) {
		return v.ETag
	}
	return v.LastModified
}
