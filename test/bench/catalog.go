package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"
)

// warmRequests is the number of requests whose median is a warm time.
const warmRequests = 20

// patience is the longest time for hashing the files of a catalog. If it would take longer,
// half of the catalog comes from the manifest.
const patience = 3 * time.Minute

// catalog measures the response times of the catalog in its forms, for growing numbers of
// images: of the first request after a start, and of later ones.
func (b *bench) catalog(ctx context.Context) error {
	s, err := b.server(ctx, "catalog")
	if err != nil {
		return err
	}
	defer s.remove()
	counts := []int{100, 1000, 10_000}
	if b.quick {
		counts = counts[:2]
	}
	files, each := 0, time.Duration(0)
	for _, count := range counts {
		want := count
		if time.Duration(count-files)*each > patience {
			want = count / 2
		}
		took, err := s.dropTiny(ctx, files, want)
		if err != nil {
			return err
		}
		b.say("%d tiny files dropped and hashed in %.1f s", want-files, took.Seconds())
		b.report.absolute("catalog", fmt.Sprintf("%d tiny files dropped, until all are hashed", want-files), unitSeconds, []float64{took.Seconds()}, nil)
		each = took / time.Duration(want-files)
		files = want
		if want < count {
			if err := s.replaceManifest(ctx, count-want); err != nil {
				return err
			}
		}
		got, err := s.total(ctx)
		if err != nil {
			return err
		}
		if got != count {
			return fmt.Errorf("the catalog has %d rows, want %d", got, count)
		}
		if err := b.catalogTimes(ctx, s, count); err != nil {
			return err
		}
	}
	return nil
}

// dropTiny creates files in the image root until there are count, and waits until all are
// hashed. It returns the time that this took.
func (s *server) dropTiny(ctx context.Context, have, count int) (time.Duration, error) {
	before, err := s.metric(ctx, "imageroot_jobs_ended_total", "hash")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for i := have; i < count; i++ {
		// Each has its own content: equal ones would share a row.
		if err := os.WriteFile(s.image(fmt.Sprintf("image-%05d.img", i)), fmt.Appendf(nil, "content %d\n", i), 0o644); err != nil {
			return 0, err
		}
	}
	err = until(ctx, time.Hour, 100*time.Millisecond, "hashing", func() (bool, error) {
		now, err := s.metric(ctx, "imageroot_jobs_ended_total", "hash")
		return now-before >= float64(count-have), err
	})
	return time.Since(began), err
}

// replaceManifest replaces the manifest with one of count images.
func (s *server) replaceManifest(ctx context.Context, count int) error {
	text := []byte("version = 1\n")
	for i := range count {
		text = fmt.Appendf(text, "\n[[images]]\nname = \"other-%05d.img\"\nsrc = \"https://example.com/other-%05d.img\"\nsha256 = \"%064x\"\n", i, i, i)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.Pages+"/catalog.toml", bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	_, err = s.answer(req)
	return err
}

// total returns the number of rows of the catalog.
func (s *server) total(ctx context.Context) (int, error) {
	data, err := s.do(ctx, http.MethodGet, "/catalog?limit=1", nil)
	if err != nil {
		return 0, err
	}
	var page struct{ Total int }
	err = json.Unmarshal(data, &page)
	return page.Total, err
}

func (b *bench) catalogTimes(ctx context.Context, s *server, count int) error {
	for _, path := range []string{"/catalog", "/images", "/ui/images"} {
		if err := s.restart(ctx); err != nil {
			return err
		}
		if err := s.login(ctx); err != nil {
			return err
		}
		get := func() (float64, []byte, error) {
			began := time.Now()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Pages+path, nil)
			if err != nil {
				return 0, nil, err
			}
			data, err := s.answer(req) // with the session cookie
			return time.Since(began).Seconds() * 1000, data, err
		}
		cold, _, err := get()
		if err != nil {
			return err
		}
		// Wait until the start has no work left.
		if err := s.idle(ctx); err != nil {
			return err
		}
		var warm []float64
		var body []byte
		for range warmRequests {
			var took float64
			if took, body, err = get(); err != nil {
				return err
			}
			warm = append(warm, took)
		}
		what := fmt.Sprintf("GET %s, %d images", path, count)
		b.report.absolute("catalog", what+", first after the start", unitMillis, []float64{cold}, nil)
		var limit *bound
		if count == 10_000 {
			limit = atMost(100) // milliseconds
		}
		b.report.absolute("catalog", what+", warm", unitMillis, warm, limit)
		b.say("%s: cold %.0f ms, warm %.1f ms, %d KiB", what, cold, series{Samples: warm}.median(), len(body)/kib)
		if path == "/ui/images" {
			rows := bytes.Count(body, []byte("<tr"))
			if rows == 0 {
				return fmt.Errorf("the page has no rows of a table: %.300s", body)
			}
			b.report.absolute("catalog", what+", rows in it", unitRows, []float64{float64(rows)}, atMost(300))
			b.report.absolute("catalog", what+", its size", unitMiB, []float64{float64(len(body)) / mib}, nil)
		}
	}
	return nil
}
