// Package metric holds the Prometheus metrics of a process: jobs, bytes and HTTP
// requests, and those of the Go runtime and the process.
package metric

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A Set holds the metrics of one process. It is safe for concurrent use.
type Set struct {
	registry *prometheus.Registry
	ended    *prometheus.CounterVec
	hashed   prometheus.Counter
	fetched  prometheus.Counter
	uploaded prometheus.Counter
	served   prometheus.Counter
	requests *prometheus.HistogramVec
}

// New returns a set. Its counters, including those of jobs of the named kinds, exist
// from the start with the value 0: Prometheus cannot compute the rate of a counter that
// appears with its first increment.
func New(jobs ...string) *Set {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "imageroot", Name: name, Help: help})
	}
	s := &Set{
		registry: prometheus.NewRegistry(),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "imageroot", Name: "jobs_ended_total", Help: "Jobs that ended in this process, by how.",
		}, []string{"kind", "status"}),
		hashed:   counter("bytes_hashed_total", "Bytes read by hash jobs."),
		fetched:  counter("bytes_fetched_total", "Bytes that fetch jobs received."),
		uploaded: counter("bytes_uploaded_total", "Bytes received as uploads over HTTP."),
		served:   counter("bytes_served_total", "Bytes of images sent to clients."),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "imageroot", Name: "http_request_duration_seconds", Help: "Time from a request's head to the end of its answer.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 30, 120, 600, 3600},
		}, []string{"method", "route", "code"}),
	}
	for _, kind := range jobs {
		for _, status := range []string{"completed", "cancelled", "failed"} {
			s.ended.WithLabelValues(kind, status)
		}
	}
	s.registry.MustRegister(s.ended, s.hashed, s.fetched, s.uploaded, s.served, s.requests,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

// JobEnded counts a job of this kind that ended with status: completed, cancelled or
// failed.
func (s *Set) JobEnded(kind, status string) { s.ended.WithLabelValues(kind, status).Inc() }

// BytesHashed counts bytes read by a hash job.
func (s *Set) BytesHashed(n int) { s.hashed.Add(float64(n)) }

// BytesFetched counts bytes received by a fetch job.
func (s *Set) BytesFetched(n int) { s.fetched.Add(float64(n)) }

// BytesUploaded counts bytes received in the bodies of uploads.
func (s *Set) BytesUploaded(n int) { s.uploaded.Add(float64(n)) }

// BytesServed counts bytes of images sent to clients.
func (s *Set) BytesServed(n int) { s.served.Add(float64(n)) }

// Request counts an answered request and its duration. route is the pattern of the route,
// never a path: each label value occupies memory until the process ends.
func (s *Set) Request(method, route string, code int, took time.Duration) {
	s.requests.WithLabelValues(method, route, strconv.Itoa(code)).Observe(took.Seconds())
}

// Jobs adds a gauge of listed jobs. Each scrape calls count, which returns the number
// of jobs by kind and status and must be safe for concurrent use. A second call of Jobs
// panics.
func (s *Set) Jobs(count func() map[[2]string]int) { s.registry.MustRegister(jobs(count)) }

// NBD adds gauges of the open connections, and of the bytes that their writes take. Each
// scrape calls both functions, which must be safe for concurrent use. A second call of NBD
// panics.
func (s *Set) NBD(connections func() int, layers func() int64) {
	gauge := func(name, help string, get func() float64) {
		s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "imageroot", Name: name, Help: help}, get))
	}
	gauge("nbd_connections", "Open connections to the NBD port.", func() float64 { return float64(connections()) })
	gauge("nbd_cow_bytes", "Bytes that the writes of NBD clients take on the disk.", func() float64 { return float64(layers()) })
}

type jobs func() map[[2]string]int

var jobsDesc = prometheus.NewDesc("imageroot_jobs", "Jobs that are listed, by status.", []string{"kind", "status"}, nil)

// Describe implements prometheus.Collector.
func (jobs) Describe(ch chan<- *prometheus.Desc) { ch <- jobsDesc }

// Collect implements prometheus.Collector.
func (j jobs) Collect(ch chan<- prometheus.Metric) {
	for label, n := range j() {
		ch <- prometheus.MustNewConstMetric(jobsDesc, prometheus.GaugeValue, float64(n), label[0], label[1])
	}
}

// Handler returns a handler that serves the metrics in the format that the request's
// Accept field selects.
func (s *Set) Handler() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})
}
