package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// get downloads an image. A complete body must have the digest of the response.
func (c *client) get(ctx context.Context) string {
	name, n := c.image(), c.runner()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.pages+imagePath(name), nil)
	if err != nil {
		return err.Error()
	}
	res, err := c.http.Do(req)
	if err != nil {
		return "lost"
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Sprint(res.StatusCode)
	}
	h := sha256.New()
	got, err := io.Copy(h, res.Body)
	if err != nil || got != res.ContentLength {
		return "lost"
	}
	said, ok := reprDigest(res.Header)
	if !ok {
		return "unhashed"
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != said {
		c.violate("GET %q gave %s (%d bytes) and said that it is %s", name, sum, got, said)
	}
	return "done"
}

// reprDigest returns the SHA-256 in Repr-Digest.
func reprDigest(h http.Header) (string, bool) {
	value, ok := strings.CutPrefix(h.Get("Repr-Digest"), "sha-256=:")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(value, ":"))
	return hex.EncodeToString(raw), ok && err == nil
}

func (c *client) source() *source { return c.publisher.sources[c.rng.IntN(len(c.publisher.sources))] }

func (c *client) addEntry(ctx context.Context) string {
	s := c.source()
	in := map[string]any{"image_url": c.publisher.url(s), "refresh": c.rng.IntN(3) == 0}
	if s.shaURL != "" {
		in["sha_url"] = s.shaURL
	}
	return brief(c.sendJSON(ctx, c.runner(), http.MethodPost, "/catalog/entries", in, nil))
}

func (c *client) deleteEntry(ctx context.Context) string {
	s := c.source()
	// Its blob is removed too if no other source has these bytes.
	c.note(&c.deleted, s.path)
	status, err := c.sendJSON(ctx, c.runner(), http.MethodDelete, "/catalog/entries?src="+url.QueryEscape(c.publisher.url(s)), nil, nil)
	c.trace("client %d: delete entry %s: %s", c.number, s.path, brief(status, err))
	return brief(status, err)
}

func (c *client) fetch(ctx context.Context) string {
	s := c.source()
	status, err := c.sendJSON(ctx, c.runner(), http.MethodPost, "/catalog/downloads", map[string]any{"src": c.publisher.url(s)}, nil)
	return brief(status, err)
}

func (c *client) cancelFetch(ctx context.Context) string {
	s := c.source()
	status, err := c.sendJSON(ctx, c.runner(), http.MethodDelete, "/catalog/downloads/"+url.PathEscape(s.name), nil, nil)
	c.trace("client %d: cancel fetch %s: %s", c.number, s.path, brief(status, err))
	return brief(status, err)
}

func (c *client) dropCache(ctx context.Context) string {
	s := c.source()
	sum := s.contents[0].sum
	c.note(&c.dropped, sum)
	status, err := c.sendJSON(ctx, c.runner(), http.MethodDelete, "/catalog/cache/"+sum, nil, nil)
	c.trace("client %d: drop cache %.12s: %s", c.number, sum, brief(status, err))
	return brief(status, err)
}

func (c *client) hash(ctx context.Context) string {
	return brief(c.sendJSON(ctx, c.runner(), http.MethodPost, "/catalog/hashes", map[string]any{"name": c.image()}, nil))
}

// cancelHash cancels a running hash job, if there is one.
func (c *client) cancelHash(ctx context.Context) string {
	n := c.runner()
	name := c.image()
	var l jobs
	if _, err := c.sendJSON(ctx, n, http.MethodGet, "/catalog/hashes", nil, &l); err == nil {
		for _, j := range l.Hashes {
			if j.active() {
				name = j.Name
			}
		}
	}
	c.note(&c.cancelled, name)
	status, err := c.sendJSON(ctx, n, http.MethodDelete, "/catalog/hashes/"+url.PathEscape(name), nil, nil)
	c.trace("client %d: cancel hash %q: %s", c.number, name, brief(status, err))
	return brief(status, err)
}

const manifestName = "catalog.toml"

// manifest returns a random manifest of a few sources.
func (c *client) manifest(good bool) (text string, is *content) {
	var b strings.Builder
	fmt.Fprintf(&b, "# %d\nversion = 1\n", c.rng.Uint64())
	for range c.rng.IntN(4) {
		s := c.source()
		if !s.honest || strings.Contains(b.String(), s.path) {
			continue
		}
		fmt.Fprintf(&b, "[[images]]\nname = %q\nsrc = %q\nsha256 = %q\n", s.name, c.publisher.url(s), s.contents[0].sum)
	}
	if !good {
		b.WriteString("[[images]]\nname = \"no suffix\"\n")
	}
	text = b.String()
	return text, &content{size: int64(len(text)), sum: sumOf(text)}
}

func sumOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func (c *client) putManifest(ctx context.Context) string {
	text, is := c.manifest(true)
	return c.replaceManifest(ctx, c.runner(), text, is)
}

// replaceManifest replaces the manifest with a good one.
func (c *client) replaceManifest(ctx context.Context, n *node, text string, is *content) string {
	c.goodManifests.Store(is.sum, true)
	w := c.model.begin(manifestName, "PUT", n.number, is)
	res, _, err := c.request(ctx, n, http.MethodPut, "/"+manifestName, strings.NewReader(text), is.size)
	status := 0
	if err == nil {
		status = res.StatusCode
	}
	return c.settle(w, status, err)
}

func (c *client) putBadManifest(ctx context.Context) string {
	text, is := c.manifest(false)
	res, data, err := c.request(ctx, c.runner(), http.MethodPut, "/"+manifestName, strings.NewReader(text), is.size)
	if err != nil {
		return "lost"
	}
	if res.StatusCode < 300 {
		c.violate("a bad manifest was taken: %s %s", res.Status, data)
	}
	return fmt.Sprint(res.StatusCode)
}

// s3Manifest replaces the manifest through S3, sometimes with a bad one.
func (c *client) s3Manifest(ctx context.Context) string {
	good := c.rng.IntN(2) == 0
	text, is := c.manifest(good)
	if good {
		c.goodManifests.Store(is.sum, true)
	}
	w := c.model.begin(manifestName, "S3 put", c.first.number, is)
	_, err := c.images.Put(ctx, manifestName, strings.NewReader(text), is.size)
	return c.outcome(w, err)
}

// list sends the requests of pages and flash clients.
func (c *client) list(ctx context.Context) string {
	n := c.runner()
	paths := []string{"/catalog", "/images", "/catalog.toml", "/events", "/catalog/hashes", "/catalog/downloads", "/catalog/entries", "/uploads", "/metrics", "/readyz"}
	res, _, err := c.request(ctx, n, http.MethodGet, paths[c.rng.IntN(len(paths))], nil, 0)
	if err != nil {
		return "lost"
	}
	return fmt.Sprint(res.StatusCode)
}

// A job is a job, as the API returns it.
type job struct {
	Name     string `json:"name"`
	Status   string `json:"status"`
	SHA256   string `json:"sha256"`
	Src      string `json:"src"`
	Error    string `json:"error"`
	Attempt  int    `json:"attempt"`
	Finished string `json:"finished_at"`
}

func (j job) active() bool { return j.Status == "queued" || j.Status == "running" }

type jobs struct {
	Hashes    []job `json:"hashes"`
	Downloads []job `json:"downloads"`
}
