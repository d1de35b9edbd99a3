package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"regexp"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metrics is one scrape.
type metrics map[string]*dto.MetricFamily

func (s *Server) metrics(t testing.TB) metrics {
	t.Helper()
	r := s.get(t, "/metrics").Must(t, http.StatusOK)
	if ct := r.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
		t.Errorf("GET /metrics: Content-Type is %q", ct)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	m, err := parser.TextToMetricFamilies(bytes.NewReader(r.Body))
	if err != nil {
		t.Fatalf("GET /metrics: %v\n%s", err, r.Body)
	}
	return m
}

// labelled reports whether a metric has all of these labels, given as name,
// value, name, value.
func labelled(m *dto.Metric, labels []string) bool {
	for i := 0; i < len(labels); i += 2 {
		found := false
		for _, l := range m.Label {
			found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if !found {
			return false
		}
	}
	return true
}

// value returns the sum of a counter or gauge with these labels, or the number
// of observations of a histogram.
func (m metrics) value(name string, labels ...string) float64 {
	total := 0.0
	for _, s := range m[name].GetMetric() {
		if labelled(s, labels) {
			total += s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return total
}

// series returns the number of series of a name.
func (m metrics) series(name string) int { return len(m[name].GetMetric()) }

// WaitMetric waits until a metric has grown by want since before, and then
// checks that it has not grown by more.
func (s *Server) WaitMetric(t testing.TB, before metrics, want float64, name string, labels ...string) {
	t.Helper()
	grown := 0.0
	eventually(t, within, fmt.Sprintf("%s%q grown by %.0f", name, labels, want), func() error {
		if grown = s.metrics(t).value(name, labels...) - before.value(name, labels...); grown < want {
			return fmt.Errorf("it has by %.0f", grown)
		}
		return nil
	})
	if grown != want {
		t.Errorf("%s%q grew by %.0f, want %.0f", name, labels, grown, want)
	}
}

const (
	jobsEnded     = "imageroot_jobs_ended_total"
	jobsNow       = "imageroot_jobs"
	bytesHashed   = "imageroot_bytes_hashed_total"
	bytesFetched  = "imageroot_bytes_fetched_total"
	bytesUploaded = "imageroot_bytes_uploaded_total"
	bytesServed   = "imageroot_bytes_served_total"
	requestTime   = "imageroot_http_request_duration_seconds"
)

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	m := s.metrics(t)
	// Counters exist at zero before anything has happened, so that a rate has a
	// value from the first scrape on.
	for name, kind := range map[string]dto.MetricType{
		jobsEnded: dto.MetricType_COUNTER, bytesHashed: dto.MetricType_COUNTER, bytesFetched: dto.MetricType_COUNTER,
		bytesUploaded: dto.MetricType_COUNTER, bytesServed: dto.MetricType_COUNTER, jobsNow: dto.MetricType_GAUGE,
	} {
		f := m[name]
		if f == nil || f.GetType() != kind || f.GetHelp() == "" || len(f.Metric) == 0 {
			t.Errorf("%s: %v, want a %v with help", name, f, kind)
			continue
		}
		if v := m.value(name); v != 0 {
			t.Errorf("%s is %v at the start", name, v)
		}
	}
	for _, name := range []string{jobsEnded, jobsNow} {
		statuses := []string{"completed", "cancelled", "failed"}
		if name == jobsNow {
			statuses = []string{"queued", "running"}
		}
		for _, kind := range []string{"hash", "fetch"} {
			for _, status := range statuses {
				if f := m[name]; f == nil || !anyLabelled(f, "kind", kind, "status", status) {
					t.Errorf("%s has no series of %s, %s", name, kind, status)
				}
			}
		}
	}

	t.Run("uploaded", func(t *testing.T) {
		before := s.metrics(t)
		s.Put(t, "up.img", content(1, 100_000))
		s.Put(t, "up.img", content(2, 23_456))
		s.Do(t, http.MethodPut, "/images/chunked.img", io.MultiReader(bytes.NewReader(content(3, 50_000)))).Must(t, 201)
		s.WaitMetric(t, before, 173_456, bytesUploaded)
		if v := s.metrics(t).value(bytesServed) - before.value(bytesServed); v != 0 {
			t.Errorf("uploads count %.0f bytes as served", v)
		}
	})
	t.Run("hashed", func(t *testing.T) {
		before := s.metrics(t)
		s.s3Put(t, "hash.img", content(4, 200_000))
		s.WaitHashed(t, "hash.img", sum(content(4, 200_000)))
		s.WaitMetric(t, before, 200_000, bytesHashed)
		s.WaitMetric(t, before, 1, jobsEnded, "kind", "hash", "status", "completed")
		s.WaitMetric(t, before, 1, jobsEnded)
	})
	t.Run("fetched", func(t *testing.T) {
		p := publish(t)
		b := content(5, 300_000)
		before := s.metrics(t)
		s.AddEntry(t, p.File("/f.img", b), "").Must(t, http.StatusCreated)
		s.Fetch(t, "f.img")
		s.WaitMetric(t, before, 300_000, bytesFetched)
		s.WaitMetric(t, before, 1, jobsEnded, "kind", "fetch", "status", "completed")
		sums := p.File("/sums", []byte(sum(nil)+"  wrong.img\n"))
		s.AddEntry(t, p.File("/wrong.img", b), sums).Must(t, http.StatusCreated)
		s.Enqueue(t, downloads, "name", "wrong.img").Must(t, http.StatusAccepted)
		s.WaitJob(t, downloads, "wrong.img", "failed")
		s.WaitMetric(t, before, 600_000, bytesFetched)
		s.WaitMetric(t, before, 1, jobsEnded, "kind", "fetch", "status", "failed")
		s.WaitMetric(t, before, 1, jobsEnded, "kind", "fetch", "status", "completed")
		s.WaitMetric(t, before, 0, jobsEnded, "kind", "hash")
	})
	t.Run("served", func(t *testing.T) {
		before := s.metrics(t)
		r := s.get(t, "/images/hash.img", anonymous).Must(t, 200)
		s.get(t, "/images/f.img", anonymous, header("Range", "bytes=0-999")).Must(t, 206) // of a blob
		s.get(t, "/images/"+sum(r.Body), anonymous, header("Range", "bytes=-77")).Must(t, 206)
		// None of these has bytes of an image.
		s.Do(t, http.MethodHead, "/images/hash.img", nil).Must(t, 200)
		s.get(t, "/images/hash.img", header("If-None-Match", "*")).Must(t, 304)
		s.get(t, "/images/hash.img", header("Range", "bytes=999999-")).Must(t, 416)
		s.get(t, "/images/nothing.img").Must(t, 404)
		s.get(t, "/images").Must(t, 200)
		s.get(t, "/catalog.toml").Must(t, 200)
		s.WaitMetric(t, before, 201_077, bytesServed)
	})
	t.Run("now", func(t *testing.T) {
		p := publish(t)
		gone := make(chan struct{}, 9)
		for i := range 3 {
			name := fmt.Sprintf("stalled-%d.img", i)
			s.AddEntry(t, p.Stall("/"+name, content(uint64(20+i), 1000), gone), "").Must(t, http.StatusCreated)
			s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
		}
		want := func(running, queued float64) {
			t.Helper()
			eventually(t, within, "the jobs there are", func() error {
				m := s.metrics(t)
				r, q := m.value(jobsNow, "kind", "fetch", "status", "running"), m.value(jobsNow, "kind", "fetch", "status", "queued")
				if r != running || q != queued {
					return fmt.Errorf("%.0f running, %.0f queued; want %.0f and %.0f", r, q, running, queued)
				}
				return nil
			})
		}
		want(2, 1)
		before := s.metrics(t)
		for i := range 3 {
			s.Cancel(t, downloads, fmt.Sprintf("stalled-%d.img", i)).Must(t, 200, 202, 204)
		}
		want(0, 0)
		s.WaitMetric(t, before, 3, jobsEnded, "kind", "fetch", "status", "cancelled")
	})
}

func anyLabelled(f *dto.MetricFamily, labels ...string) bool {
	for _, s := range f.Metric {
		if labelled(s, labels) {
			return true
		}
	}
	return false
}

// TestMetricsOfRequests keeps request times by route, never by path: strangers
// choose paths, and every label value takes memory permanently.
func TestMetricsOfRequests(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	b := content(1, 1000)
	s.Put(t, "one.img", b)
	s.get(t, "/images/one.img", anonymous).Must(t, 200)
	s.get(t, "/nothing", anonymous).Must(t, 404)
	s.get(t, "/images/nothing.img", anonymous).Must(t, 404)
	s.get(t, "/catalog?q=x").Must(t, 200)
	s.get(t, "/ui/nothing", anonymous)
	s.get(t, "/static/nothing.css", anonymous)
	odd := func(i int) *Reply {
		return s.Do(t, fmt.Sprintf("ODD%d", i), "/images", nil, anonymous)
	}
	odd(0)
	before := s.metrics(t)
	f := before[requestTime]
	if f == nil || f.GetType() != dto.MetricType_HISTOGRAM || f.GetHelp() == "" {
		t.Fatalf("%s: %v", requestTime, f)
	}

	for i := range 50 {
		s.get(t, "/images/one.img", anonymous).Must(t, 200)
		s.get(t, fmt.Sprintf("/images/nothing-%d.img", i), anonymous).Must(t, 404)
		s.get(t, "/images/"+sum(content(uint64(i), 10)), anonymous).Must(t, 404)
		s.get(t, fmt.Sprintf("/nothing/%d", i), anonymous).Must(t, 404)
		s.get(t, fmt.Sprintf("/ui/nothing-%d", i), anonymous)
		s.get(t, fmt.Sprintf("/static/nothing-%d.css", i), anonymous)
		s.get(t, fmt.Sprintf("/catalog?q=x%d", i)).Must(t, 200)
		s.get(t, "/healthz", anonymous, func(r *http.Request) { r.Host = fmt.Sprintf("host-%d.example", i) }).Must(t, 200)
		odd(i)
	}
	s.WaitMetric(t, before, 50, requestTime, "method", "GET", "code", "200", "route", routeOf(t, before, "GET", "/images/{key}"))
	s.WaitMetric(t, before, 50, requestTime, "method", "GET", "code", "200", "route", routeOf(t, before, "GET", "/catalog"))
	after := s.metrics(t)
	if was, is := before.series(requestTime), after.series(requestTime); is > was+4 {
		t.Errorf("450 requests to routes that were there made %d series out of %d", is, was)
	}
	for name, f := range after {
		if !strings.HasPrefix(name, "imageroot_") {
			continue
		}
		if len(f.Metric) > 200 {
			t.Errorf("%s has %d series", name, len(f.Metric))
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				v := l.GetValue()
				if strings.Contains(v, "one.img") || strings.Contains(v, "nothing-") || strings.Contains(v, "nothing/") || strings.Contains(v, "host-") || strings.HasPrefix(v, "ODD") ||
					regexp.MustCompile(`[0-9a-f]{12}`).MatchString(v) {
					t.Errorf("%s has the label %s=%q, which a client chose", name, l.GetName(), v)
				}
			}
			if h := m.GetHistogram(); h != nil {
				checkHistogram(t, name, h)
			}
		}
	}
}

// routeOf returns the label of a route: its path, or its pattern with the
// method before it.
func routeOf(t *testing.T, m metrics, method, path string) string {
	t.Helper()
	for _, route := range []string{path, method + " " + path} {
		if f := m[requestTime]; f != nil && anyLabelled(f, "method", method, "route", route) {
			return route
		}
	}
	t.Fatalf("no series of %s is of the route %s: %v", requestTime, path, m[requestTime])
	return ""
}

func checkHistogram(t *testing.T, name string, h *dto.Histogram) {
	t.Helper()
	last, infinite := uint64(0), false
	for _, b := range h.Bucket {
		if b.GetCumulativeCount() < last {
			t.Errorf("%s: buckets %v do not add up", name, h.Bucket)
			return
		}
		last = b.GetCumulativeCount()
		infinite = infinite || math.IsInf(b.GetUpperBound(), 1)
	}
	if !infinite || last != h.GetSampleCount() || h.GetSampleSum() < 0 {
		t.Errorf("%s: %d observations, the last bucket has %d: %v", name, h.GetSampleCount(), last, h.Bucket)
	}
}

// logLine matches a line of slog's text handler.
var logLine = regexp.MustCompile(`^time=\S+ level=(DEBUG|INFO|WARN|ERROR)\S* msg=.`)

// structured reports whether a line of the log is one of slog's.
func structured(line string) bool {
	if logLine.MatchString(line) {
		return true
	}
	var v struct {
		Time, Level, Msg string
	}
	return json.Unmarshal([]byte(line), &v) == nil && v.Time != "" && v.Level != "" && v.Msg != ""
}

// logged returns the lines of the log that have every one of words.
func (s *Server) logged(words ...string) []string {
	var found []string
	for line := range strings.Lines(s.Log()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			found = append(found, strings.TrimSuffix(line, "\n"))
		}
	}
	return found
}

func TestLog(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 5000)
	requests := map[string]*Reply{}
	request := func(r *Reply) {
		t.Helper()
		id := r.Header.Get("X-Request-Id")
		if id == "" {
			t.Fatalf("%v: no X-Request-Id", r)
		}
		requests[id] = r
	}
	request(s.Do(t, http.MethodPut, "/images/logged.img", bytes.NewReader(b)))
	request(s.get(t, "/images/logged.img", anonymous))
	request(s.get(t, "/images/nothing.img", anonymous))
	request(s.get(t, "/nothing", anonymous))
	request(s.get(t, "/events", anonymous))
	request(s.Do(t, http.MethodPatch, "/events", nil))
	request(s.AddEntry(t, p.File("/fetched.img", b), ""))
	request(s.AddEntry(t, p.File("/wrong.img", b), p.File("/sums", []byte(sum(nil)+"  wrong.img\n"))))
	request(s.Do(t, http.MethodDelete, "/images/logged.img", nil))
	// Names that would begin a new line, or end a field.
	request(s.get(t, "/images/x%0Alevel=ERROR%20msg=forged%0D.img", anonymous))
	request(s.get(t, "/images/%22%20level=ERROR%20msg=%22forged.img", anonymous, header("User-Agent", "x\" level=ERROR msg=\"forged")))
	request(s.Do(t, http.MethodPut, "/images/x%E2%80%A8%1B%5B31m.img", bytes.NewReader(b)))

	s.s3Put(t, "hashed.img", b)
	s.WaitHashed(t, "hashed.img", sum(b))
	s.Fetch(t, "fetched.img")
	s.Enqueue(t, downloads, "name", "wrong.img").Must(t, http.StatusAccepted)
	s.WaitJob(t, downloads, "wrong.img", "failed")

	for id, r := range requests {
		method, _, _ := strings.Cut(r.what, " ")
		eventually(t, within, "a line of "+r.what, func() error {
			if l := s.logged(id); len(l) == 0 || !strings.Contains(l[0], method) || !strings.Contains(l[0], fmt.Sprint(r.Status)) {
				return fmt.Errorf("lines %q, want one with %s and %d", l, method, r.Status)
			}
			return nil
		})
		if l := s.logged(id, "request"); len(l) != 1 {
			t.Errorf("%s: %d lines: %q", r.what, len(l), l)
		}
	}
	for name, words := range map[string][]string{
		"hashed.img": {"hash", "completed", sum(b)}, "fetched.img": {"fetch", "completed", sum(b)}, "wrong.img": {"fetch", "failed", sum(nil)},
	} {
		eventually(t, within, "a line of the job of "+name, func() error {
			if l := s.logged(append(words, name)...); len(l) != 1 {
				return fmt.Errorf("%d lines: %q", len(l), l)
			}
			return nil
		})
	}
	for line := range strings.Lines(s.Log()) {
		if line = strings.TrimSuffix(line, "\n"); !structured(line) {
			t.Errorf("a line that is none of slog's: %.300q", line)
		}
		if strings.ContainsAny(line, "\x1b\r\u2028") {
			t.Errorf("a line that moves a terminal's cursor: %.300q", line)
		}
	}
	for _, line := range s.logged("forged") {
		if strings.HasPrefix(line, "level=ERROR") || strings.Contains(line, ` level=ERROR msg=forged`) && !strings.Contains(line, `"`) {
			t.Errorf("a client wrote this line: %q", line)
		}
	}
}
