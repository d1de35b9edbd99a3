package metric

import (
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func scrape(s *Set) string {
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

func TestMetrics(t *testing.T) {
	s := New("hash", "fetch")
	// All counters exist from the start: one that appears later has no rate.
	for _, line := range []string{
		"imageroot_bytes_hashed_total 0", "imageroot_bytes_fetched_total 0", "imageroot_bytes_uploaded_total 0", "imageroot_bytes_served_total 0",
		`imageroot_jobs_ended_total{kind="hash",status="completed"} 0`, `imageroot_jobs_ended_total{kind="fetch",status="failed"} 0`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(scrape(s), "\n"+line) {
			t.Errorf("without anything done there is no %s", line)
		}
	}
	jobs := map[[2]string]int{{"hash", "queued"}: 3, {"fetch", "running"}: 1}
	s.Jobs(func() map[[2]string]int { return jobs })
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			s.BytesHashed(10)
			s.BytesFetched(20)
			s.BytesUploaded(30)
			s.BytesServed(40)
			s.JobEnded("fetch", "cancelled")
			s.Request("GET", "GET /images/{key}", 206, 3*time.Second)
		})
	}
	wg.Wait()
	got := scrape(s)
	for _, line := range []string{
		"imageroot_bytes_hashed_total 100", "imageroot_bytes_fetched_total 200", "imageroot_bytes_uploaded_total 300", "imageroot_bytes_served_total 400",
		`imageroot_jobs_ended_total{kind="fetch",status="cancelled"} 10`, `imageroot_jobs{kind="hash",status="queued"} 3`, `imageroot_jobs{kind="fetch",status="running"} 1`,
		`imageroot_http_request_duration_seconds_sum{code="206",method="GET",route="GET /images/{key}"} 30`,
		`imageroot_http_request_duration_seconds_bucket{code="206",method="GET",route="GET /images/{key}",le="1"} 0`,
		`imageroot_http_request_duration_seconds_bucket{code="206",method="GET",route="GET /images/{key}",le="5"} 10`,
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
	jobs = map[[2]string]int{{"hash", "queued"}: 1}
	if got := scrape(s); strings.Contains(got, `kind="fetch",status="running"} 1`) || !strings.Contains(got, `imageroot_jobs{kind="hash",status="queued"} 1`) {
		t.Error("the jobs are not asked for at each scrape")
	}
}
