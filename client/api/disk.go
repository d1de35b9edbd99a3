package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"imageroot/shared/layout"
)

// A Disk is the disk in an image, as GET /flash.sh?name= describes it.
type Disk struct {
	Size   int64  // in bytes
	SHA256 string // of the disk
	Path   string // from which it is downloaded
	Ranges bool   // whether it can be downloaded from any offset on
}

// Disk returns the disk in an image once the server can send it from an offset on. The error
// is a temporary [*Problem] while the server works on that, and one that is not if it cannot.
func (c *Client) Disk(ctx context.Context, name string, from int64) (d Disk, err error) {
	res, err := c.Send(ctx, Request{
		Method: http.MethodGet, Path: "/flash.sh", Header: http.Header{"Accept": {"text/plain"}},
		Query: url.Values{"name": {name}, "from": {strconv.FormatInt(from, 10)}},
	})
	if err != nil {
		return d, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return d, c.explain(ctx, err)
	}
	lines := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines[key] = value
	}
	switch lines["state"] {
	case "wait":
		return d, &Problem{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: lines["reason"]}
	case "fail":
		p := &Problem{Status: http.StatusConflict, Code: lines["code"], Detail: lines["reason"]}
		if p.Code == "not_found" {
			p.Status = http.StatusNotFound
		}
		return d, p
	}
	d = Disk{SHA256: lines["sha256"], Path: "/" + lines["path"], Ranges: lines["ranges"] == "yes"}
	d.Size, err = strconv.ParseInt(lines["size"], 10, 64)
	if err != nil || d.Size < 1 || !layout.SHA256(d.SHA256).Valid() || !strings.HasPrefix(d.Path, "/raw/") {
		return d, fmt.Errorf("%s does not say what the disk in %s is: it may be of an older version", c.URL(), name)
	}
	return d, nil
}

// Raw returns the bytes of a disk from an offset on. The caller closes them.
func (c *Client) Raw(ctx context.Context, d Disk, from int64) (io.ReadCloser, error) {
	q := Request{Method: http.MethodGet, Path: d.Path, Header: http.Header{"Accept": {"*/*"}}}
	if from > 0 {
		q.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	res, err := c.Send(ctx, q)
	if err != nil {
		return nil, err
	}
	if from > 0 && (res.StatusCode != http.StatusPartialContent || !strings.HasPrefix(res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from))) {
		res.Body.Close()
		return nil, fmt.Errorf("%s sends the disk from its beginning only", c.URL())
	}
	return res.Body, nil
}
