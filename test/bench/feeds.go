package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"time"

	"imageroot/functions/catalog/feed"
	"imageroot/functions/withcache"
	"imageroot/shared/image"
)

// feedImages is the number of images that the feeds are about.
const feedImages = 10_000

// feeds measures the documents about all images: answers of a running server, answers to
// clients that have the current version, and the first one after a change.
func (b *bench) feeds(ctx context.Context) (err error) {
	count := feedImages
	if b.quick {
		count = b.counts[0]
	}
	f, err := b.fill(ctx, "feeds", count)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	if err := f.close(); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, b.binary, "key", "--data", f.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("imageroot key: %w: %s", err, out)
	}
	s := b.serverIn(f.dir)
	if _, _, err := s.firstAnswer(ctx, nil, "/readyz"); err != nil {
		return err
	}
	defer s.remove()
	if err := s.mustList(ctx, count); err != nil {
		return err
	}
	paths := []string{"/images", "/catalog.toml", withcache.Prefix + "catalog"}
	for _, d := range feed.All {
		paths = append(paths, d.Path)
	}
	for _, path := range paths {
		if err := b.feed(ctx, s, path, count); err != nil {
			return err
		}
	}
	return s.Stop(time.Minute)
}

// feed adds the rows of one document.
func (b *bench) feed(ctx context.Context, s *server, path string, count int) error {
	var changed, warm, same []float64
	get := func(tag string, want int) (string, float64, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Pages+path, nil)
		if err != nil {
			return "", 0, err
		}
		if tag != "" {
			req.Header.Set("If-None-Match", tag)
		}
		began := time.Now()
		res, err := s.http.Do(req)
		if err != nil {
			return "", 0, err
		}
		_, err = io.Copy(io.Discard, res.Body)
		took := time.Since(began).Seconds() * 1000
		if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != want {
			err = fmt.Errorf("GET %s: %s, want %d", path, res.Status, want)
		}
		return res.Header.Get("ETag"), took, err
	}
	for i := range b.rounds {
		if err := s.retitle(ctx, fmt.Sprint(path, i)); err != nil {
			return err
		}
		tag, took, err := get("", http.StatusOK)
		if err != nil {
			return err
		}
		changed = append(changed, took)
		for range warmRequests / b.rounds {
			if _, took, err = get("", http.StatusOK); err != nil {
				return err
			}
			warm = append(warm, took)
			if _, took, err = get(tag, http.StatusNotModified); err != nil {
				return err
			}
			same = append(same, took)
		}
	}
	const most = 50
	what := fmt.Sprintf("%d images: GET %s", count, path)
	b.report.absolute("feeds", what+", warm", unitMillis, warm, atMost(most))
	b.report.absolute("feeds", what+", If-None-Match", unitMillis, same, atMost(most))
	b.report.absolute("feeds", what+", after a change", unitMillis, changed, nil)
	b.say("%s: warm %v, 304 %v, after a change %v", what, series{Unit: unitMillis, Samples: warm}, series{Unit: unitMillis, Samples: same}, series{Unit: unitMillis, Samples: changed})
	return nil
}

// retitle gives an image another title, and waits until the catalog has it.
func (s *server) retitle(ctx context.Context, title string) error {
	image := string(invented("image", image.Name(nameOf(0))))
	if _, err := s.do(ctx, http.MethodPatch, "/catalog/images/"+image, map[string]string{"title": title}); err != nil {
		return err
	}
	_, err := s.total(ctx, "")
	return err
}
