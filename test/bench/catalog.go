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

// warmRequests is how many requests a warm time is the median of.
const warmRequests = 20

// catalog times the catalog in its forms, with more and more images: the first
// request after a start, and later ones.
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
	made := 0
	for _, count := range counts {
		began := time.Now()
		before, err := s.metric(ctx, "imageroot_jobs_ended_total", "hash")
		if err != nil {
			return err
		}
		for i := made; i < count; i++ {
			// Each another content: equal ones would be one row.
			if err := os.WriteFile(s.image(fmt.Sprintf("image-%05d.img", i)), fmt.Appendf(nil, "content %d\n", i), 0o644); err != nil {
				return err
			}
		}
		err = until(ctx, time.Hour, 100*time.Millisecond, "hashing", func() (bool, error) {
			now, err := s.metric(ctx, "imageroot_jobs_ended_total", "hash")
			return now-before >= float64(count-made), err
		})
		if err != nil {
			return err
		}
		took := time.Since(began).Seconds()
		b.say("%d tiny files dropped and hashed in %.1f s", count-made, took)
		b.report.absolute("catalog", fmt.Sprintf("%d tiny files dropped, until all are hashed", count-made), unitSeconds, []float64{took}, nil)
		if got, err := s.total(ctx); err != nil || got != count {
			return fmt.Errorf("the catalog has %d rows, want %d (%w)", got, count, err)
		}
		made = count
		if err := b.catalogTimes(ctx, s, count); err != nil {
			return err
		}
	}
	return nil
}

// total is how many rows the catalog has.
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
		// What a start does beside is done.
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
