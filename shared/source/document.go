package source

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
)

// A Document is a text at an http or https URL that is read again and again. It is not
// safe for concurrent use.
type Document struct {
	// URL is where the text is. What says what it is, for errors.
	URL, What string
	// MaxBytes is the size of the longest text that is read.
	MaxBytes int64

	text       []byte
	validators Validators // of text
}

// Document reads d. If the server says that the text is the one that was read last, that is
// returned. The errors are those of [Client.Resolve], and an [*Unresolvable] for a text that
// is too long.
func (c *Client) Document(ctx context.Context, d *Document) ([]byte, error) {
	u, err := parseWeb(d.URL)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, c.config.ResolveTimeout)
	defer cancel()
	data, err := c.document(limited, u, d)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = c.late(u.Host)
	}
	return data, err
}

func (c *Client) document(ctx context.Context, u *url.URL, d *Document) ([]byte, error) {
	resp, err := c.text(ctx, c.session(), u, d.What, d.validators)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		return d.text, nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, d.MaxBytes+1))
	switch {
	case err != nil:
		return nil, c.explain(ctx, u.Host, err)
	case int64(len(data)) > d.MaxBytes:
		return nil, unresolvable(nil, "the %s at %s is larger than %d bytes", d.What, u.Host, d.MaxBytes)
	}
	d.text, d.validators = data, validators(resp)
	return data, nil
}

// text requests a text. If there are validators, the answer may have the status 304.
func (c *Client) text(ctx context.Context, client doer, u *url.URL, what string, v Validators) (*http.Response, error) {
	req, err := c.newRequest(ctx, http.MethodGet, u.String())
	if err != nil {
		return nil, err
	}
	conditional := v != Validators{}
	if v.ETag != "" {
		req.Header.Set("If-None-Match", v.ETag)
	}
	if v.LastModified != "" {
		req.Header.Set("If-Modified-Since", v.LastModified) // servers ignore it beside the other: RFC 9110 section 13.1.3
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, c.explain(ctx, req.URL.Host, err)
	}
	switch enc := encoding(resp); {
	case resp.StatusCode == http.StatusNotModified && conditional:
		return resp, nil
	case resp.StatusCode != http.StatusOK:
		err = c.status(resp, what)
	case enc != "":
		err = unresolvable(nil, "%s sends the %s with Content-Encoding %s though none was asked for", resp.Request.URL.Host, what, enc)
	default:
		return resp, nil
	}
	return nil, errors.Join(err, resp.Body.Close())
}
