package source

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"

	"imageroot/shared/image"
)

// parse is [Location.Parse], but asks the server for the file name if neither l nor its URL
// has one.
func (c *Client) parse(ctx context.Context, l Location) (URL, error) {
	u, err := l.Parse()
	if err == nil || l.Name != "" {
		return u, err
	}
	l.Name = "any.img"
	nameless, perr := l.Parse()
	w, ok := nameless.place.(web)
	if perr != nil || !ok || tarball(w.url) {
		return u, err
	}
	name, nerr := w.fileName(ctx, c)
	if nerr != nil {
		says := nerr.Error()
		if _, ok := errors.AsType[*image.NameError](nerr); ok {
			says = "its server says no other one"
		}
		return u, malformed("%v (%s): give the image a name", err, says)
	}
	l.Name = name
	return l.Parse()
}

// tarball reports whether a URL is that of a tarball.
func tarball(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	_, format, err := image.Named(path.Base(u.Path), "")
	return err == nil && !format.Image()
}

// fileName returns the name that the server gives the file: that of Content-Disposition (RFC
// 6266), or that at the end of the URL to which it redirects.
func (w web) fileName(ctx context.Context, c *Client) (image.Name, error) {
	resp, err := c.ask(ctx, c.session(), http.MethodGet, w.url, "bytes=0-0")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return "", c.status(resp, "image")
	}
	name := path.Base(resp.Request.URL.Path)
	if _, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil && params["filename"] != "" {
		name = path.Base(strings.ReplaceAll(params["filename"], `\`, "/")) // section 4.3: the last segment only
	}
	return image.ParseName(name)
}
