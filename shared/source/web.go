package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"imageroot/shared/checksum"
	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// A web is a file on a web server, with http or https.
type web struct {
	url  string
	name image.Name
}

func parseFile(raw string, name image.Name) (URL, error) {
	u, err := parseWeb(raw)
	if err != nil {
		return URL{}, err
	}
	escaped := u.EscapedPath()
	last, err := url.PathUnescape(escaped[strings.LastIndexByte(escaped, '/')+1:])
	var own image.Name
	if err == nil {
		own, err = image.ParseName(last)
	}
	switch {
	case err == nil:
		name = own // the server's content coding depends on it
	case name == "":
		return URL{}, malformed("the URL must end in an image's file name: %v", err)
	}
	return URL{Canonical: u.String(), Host: u.Host, Name: name, place: web{u.String(), name}}, nil
}

// parseWeb returns the canonical form of an http or https URL of any file.
func parseWeb(raw string) (*url.URL, error) {
	raw = strings.TrimSpace(raw)
	if err := checkText(raw); err != nil {
		return nil, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, malformed("the URL cannot be read: %v", cause(err)) // without the URL, which may hold a password
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, malformed("the URL must begin with https:// or http://")
	case u.Hostname() == "" || u.Opaque != "":
		return nil, malformed("the URL names no host")
	case u.User != nil:
		return nil, malformed("the URL holds a user name or password, which the catalog would show: use a URL that needs none")
	}
	if err := checkPort(u.Port()); err != nil {
		return nil, err
	}
	u.Host = strings.TrimSuffix(strings.ToLower(u.Host), ":")
	u.Fragment, u.RawFragment = "", ""
	u.ForceQuery = false
	u.RawQuery = escapeQuery(u.RawQuery)
	if len(u.String()) > maxURLBytes {
		return nil, malformed("the URL has more than %d bytes when its special characters are encoded", maxURLBytes)
	}
	return u, nil
}

// escapeQuery encodes bytes that url.Parse accepts but a query must not have (RFC 3986
// section 3.4): a space would end the request line. It leaves the rest unchanged, since
// signatures cover it.
func escapeQuery(q string) string {
	var b strings.Builder
	for _, c := range []byte(q) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (web) Pinned() bool { return false }

func (w web) open(ctx context.Context, c *Client, _ string, offset, length int64, v Validators) (*Body, error) {
	return c.open(ctx, c.session(), w.url, w.name, offset, length, v)
}

func (w web) resolve(ctx context.Context, c *Client, shaURL string) (*Resolved, error) {
	var list *url.URL
	if strings.TrimSpace(shaURL) != "" {
		var err error
		if list, err = parseWeb(shaURL); err != nil { // before any request
			return nil, malformed("the SHA URL is not usable: %v", err)
		}
	}
	client := c.session()
	r, final, err := w.probe(ctx, c, client)
	if err != nil || list == nil {
		return r, err
	}
	sum, err := w.publishedSum(ctx, c, client, list, final)
	if err != nil {
		return nil, err
	}
	r.learn(sum)
	return r, nil
}

// learn sets the publisher's digest.
func (r *Resolved) learn(sum checksum.Sum) {
	switch sum.Algorithm {
	case checksum.SHA256:
		r.SHA256 = layout.SHA256(sum.Hex)
	case checksum.SHA512:
		r.SHA512 = sum.Hex
	}
}

// probe describes the image without reading it. It uses HEAD, or a GET of the first
// byte if HEAD says too little (signed URLs may allow GET only, some servers give no
// length). final is the URL after redirects.
func (w web) probe(ctx context.Context, c *Client, client doer) (r *Resolved, final *url.URL, err error) {
	resp, err := c.ask(ctx, client, http.MethodHead, w.url, "")
	switch {
	case ctx.Err() == nil && errors.Is(err, io.ErrUnexpectedEOF): // the server does not support HEAD
	case err != nil:
		return nil, nil, err
	default:
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK && resp.ContentLength > 0 && checkImage(resp, w.name) == nil {
			return w.described(resp, resp.ContentLength)
		}
	}
	if resp, err = c.ask(ctx, client, http.MethodGet, w.url, "bytes=0-0"); err != nil {
		return nil, nil, err
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
	case http.StatusRequestedRangeNotSatisfiable: // an empty file has no first byte
		if size = unsatisfiedTotal(resp); size != 0 {
			return nil, nil, c.status(resp, "image")
		}
	default:
		return nil, nil, c.status(resp, "image")
	}
	return w.described(resp, size)
}

func (w web) described(resp *http.Response, size int64) (*Resolved, *url.URL, error) {
	if err := checkImage(resp, w.name); err != nil {
		return nil, nil, err
	}
	return &Resolved{Location: Location{Name: w.name}, Size: size, Validators: validators(resp)}, resp.Request.URL, nil
}

// publishedSum returns the digest in a checksum list of the image at the operator's
// URL, or at the URL that it redirects to ("latest.img").
func (w web) publishedSum(ctx context.Context, c *Client, client doer, list, final *url.URL) (checksum.Sum, error) {
	resp, err := c.text(ctx, client, list, "checksum list", Validators{})
	if err != nil {
		return checksum.Sum{}, err
	}
	defer resp.Body.Close()
	sums, err := checksum.Parse(resp.Body, locationOf(list))
	if err != nil {
		return checksum.Sum{}, unresolvable(err, "the SHA URL at %s is no use: %v", resp.Request.URL.Host, err)
	}
	asked, err := parseWeb(w.url)
	if err != nil {
		return checksum.Sum{}, err
	}
	sum, err := sums.Find(locationOf(asked))
	if err != nil {
		if s, err2 := sums.Find(locationOf(final)); err2 == nil {
			return s, nil
		}
		return checksum.Sum{}, unresolvable(err, "the SHA URL does not help: %v", err)
	}
	return sum, nil
}

// locationOf returns u as a location of package checksum, without scheme and query, in
// which a list and an image of one server may differ.
func locationOf(u *url.URL) string { return u.Host + path.Clean("/"+u.Path) }
