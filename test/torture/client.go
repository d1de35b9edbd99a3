package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"imageroot/shared/store"
)

// A client performs random actions, one after another.
type client struct {
	*world
	number int
	rng    *rand.Rand
}

// An action is a row of the table of actions. do returns the outcome in a word or two, for
// the report.
type action struct {
	name   string
	weight int
	do     func(*client, context.Context) string
}

var actions = []action{
	{"put", 20, (*client).put},
	{"put cut off", 5, (*client).putCut},
	{"put with a wrong digest", 3, (*client).putWrongDigest},
	{"delete", 6, (*client).delete},
	{"get", 14, (*client).get},
	{"resumable upload", 5, (*client).resumable},
	{"s3 put", 8, (*client).s3Put},
	{"s3 put cut off", 3, (*client).s3PutCut},
	{"s3 multipart", 5, (*client).s3Multipart},
	{"s3 delete", 3, (*client).s3Delete},
	{"copied file", 6, (*client).copyFile},
	{"moved file", 6, (*client).moveFile},
	{"removed file", 3, (*client).removeFile},
	{"add by URL", 8, (*client).addEntry},
	{"delete entry", 2, (*client).deleteEntry},
	{"fetch", 10, (*client).fetch},
	{"cancel fetch", 4, (*client).cancelFetch},
	{"drop cache", 3, (*client).dropCache},
	{"hash", 3, (*client).hash},
	{"cancel hash", 3, (*client).cancelHash},
	{"manifest", 3, (*client).putManifest},
	{"bad manifest", 2, (*client).putBadManifest},
	{"manifest by s3", 2, (*client).s3Manifest},
	{"list", 4, (*client).list},
}

// patience is the longest time of one action, including the pause of a runner.
func (c *client) patience() time.Duration {
	if c.pauses() {
		return asleep + 35*time.Second
	}
	return 25 * time.Second
}

// work performs actions until ctx ends, and completes the last one.
func (c *client) work(ctx context.Context) {
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	for ctx.Err() == nil {
		n := c.rng.IntN(total)
		for _, a := range actions {
			if n -= a.weight; n >= 0 {
				continue
			}
			actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.patience())
			how := a.do(c, actx)
			cancel()
			c.count(a.name, how)
			break
		}
		pause(ctx, time.Duration(c.rng.IntN(200))*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// runner chooses the runner that receives a request.
func (c *client) runner() *node {
	if nodes := c.nodes(); c.rng.IntN(2) == 0 {
		if n := nodes[c.rng.IntN(len(nodes))]; n.up() {
			return n
		}
	}
	return c.first
}

func (c *client) image() string { return imageNames[c.rng.IntN(len(imageNames))] }

// imageNames are few, so that writes conflict, and hard to encode.
var imageNames = []string{
	"a.img", "b.img", "c.qcow2", "d.iso", "e.raw", "f.img.zst", "g.iso.xz", "h.raw.gz", "i.img.bz2",
	"with space+plus.img", "%41%2F.img", "ü ñ 雪.iso", `quote"'<b>&.img`, "#hash?query=1.img", "UPPER.IMG", "j.img", "k.img", "l.img",
	"a-name-of-very-many-bytes-" + string(bytes.Repeat([]byte("0123456789"), 22)) + ".qcow2",
}

// content returns a new content, which is usually small.
func (c *client) content() *content {
	var size int64
	switch n := c.rng.IntN(100); {
	case n < 60:
		size = 1 + c.rng.Int64N(256<<10)
	case n < 85:
		size = 1 + c.rng.Int64N(4<<20)
	case n < 97:
		size = 1 + c.rng.Int64N(20<<20)
	default:
		size = 40<<20 + c.rng.Int64N(60<<20)
	}
	return newContent(c.rng.Uint64(), size)
}

// request sends a request as the operator. After an error, the response is lost and it is
// unknown whether the request took effect.
func (c *client) request(ctx context.Context, n *node, method, path string, body io.Reader, size int64, header ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, n.pages+path, body)
	if err != nil {
		return nil, nil, err
	}
	if body != nil {
		req.ContentLength = size
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode == http.StatusInternalServerError {
		c.violate("%s %s: an internal error: %.300s", method, path, data)
	}
	return res, data, err
}

// sendJSON sends in as JSON, decodes the response into out and returns the status.
func (c *client) sendJSON(ctx context.Context, n *node, method, path string, in, out any) (int, error) {
	var body io.Reader
	var size int64
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body, size = bytes.NewReader(data), int64(len(data))
	}
	res, data, err := c.request(ctx, n, method, path, body, size, "Content-Type", "application/json")
	if err != nil {
		return 0, err
	}
	if out != nil && res.StatusCode < 300 {
		err = json.Unmarshal(data, out)
	}
	return res.StatusCode, err
}

func imagePath(key string) string { return "/images/" + url.PathEscape(key) }

// settle records the outcome of a write from the response to it.
func (c *client) settle(w *write, status int, err error) string {
	switch {
	case err != nil:
		c.model.end(w, lost)
		return "lost"
	case status < 300:
		c.model.end(w, acked)
		return "done"
	case status < 500:
		c.model.end(w, refused)
		return fmt.Sprint(status)
	}
	c.model.end(w, lost)
	return fmt.Sprint(status)
}

// outcome is [client.settle] for an error of the store.
func (c *client) outcome(w *write, err error) string {
	switch {
	case err == nil:
		c.model.end(w, acked)
		return "done"
	case errors.Is(err, store.ErrChanged):
		c.model.replaced(w)
		return "replaced"
	}
	c.model.end(w, lost)
	return "lost"
}

// brief returns the outcome of an action that changes no image.
func brief(status int, err error) string {
	if err != nil {
		return "lost"
	}
	if status < 300 {
		return "done"
	}
	return fmt.Sprint(status)
}
