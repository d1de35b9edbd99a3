package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"imageroot/functions/addbyurl"
	"imageroot/functions/catalog"
	"imageroot/functions/catalog/pages"
	"imageroot/functions/exports"
	"imageroot/functions/fetch"
	"imageroot/functions/hash"
	"imageroot/functions/upload"
	"imageroot/functions/withcache"
	"imageroot/local/doctor"
	"imageroot/shared/auth"
	"imageroot/shared/config"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/kit/sources"
	"imageroot/shared/manifest"
	"imageroot/shared/queue"
	"imageroot/shared/source"
	"imageroot/shared/web"
)

// openOperator generates a password at the first start over another S3 server if none is
// configured. Only its hash is stored.
func (s *server) openOperator(ctx context.Context) error {
	err := s.kit.OpenOperator(ctx)
	if !errors.Is(err, auth.ErrNoPassword) {
		return err
	}
	s.password = auth.NewPassword()
	s.kit.Password = s.password
	return s.kit.OpenOperator(ctx)
}

// subscribeEvery is how often the manifest of a subscription is read.
const subscribeEvery = time.Hour

// subscription returns the document that has the manifest of a subscription.
func subscription(cfg config.Config) *source.Document {
	return &source.Document{URL: cfg.ManifestURL, What: "manifest", MaxBytes: manifest.MaxBytes}
}

// wire connects the functions to the kit, their queues and one HTTP server.
func (s *server) wire() error {
	k, q := s.kit, s.queues
	client, err := sources.New(k)
	if err != nil {
		return err
	}
	if k.UnusedProxy != "" {
		s.log.Warn(k.UnusedProxy + doctor.UnusedProxy)
	}
	k.Jobs.Queues = job.Queues{}
	for kind, queue := range q.jobs {
		k.Jobs.Queues[kind] = queue
	}
	if !k.Check {
		delete(k.Jobs.Queues, job.Check)
	}
	if k.Disks == config.DisksOff {
		delete(k.Jobs.Queues, job.Disk)
	}
	k.Metric.Jobs(func() map[[2]string]int { return countJobs(k.Inventory) })

	hasher := &hash.Function{
		Images: k.Images, Catalog: k.Catalog, Bucket: k.ImageRoot.Bucket, Prefix: k.ImageRoot.Prefix,
		Jobs: k.Jobs, Inspections: q.inspections, Inventory: k.Inventory, Metric: k.Metric,
		Workers: k.HashWorkers, DisksMax: k.DisksMax, Sparse: s.gateway != nil, AllDisks: k.Disks == config.DisksAll, Free: s.free,
		Now: k.Now, Log: s.log,
	}
	fetcher := &fetch.Function{
		Catalog: k.Catalog, Sources: client, Jobs: k.Jobs, Inspections: q.inspections, Inventory: k.Inventory, Activity: k.Activity, Metric: k.Metric,
		Free: s.free, Workers: k.FetchWorkers, Connections: k.FetchConnections, Now: k.Now, Log: s.log,
	}
	uploader := &upload.Function{
		Images: k.Images, Catalog: k.Catalog, Inspections: q.inspections, Assemblies: q.assemblies, Jobs: k.Jobs, Inventory: k.Inventory, Activity: k.Activity, Metric: k.Metric,
		Free: s.free, Now: k.Now, Log: s.log,
	}
	adder := &addbyurl.Function{
		Catalog: k.Catalog, Sources: client, Inventory: k.Inventory, Uncache: fetcher.Uncache, Activity: k.Activity, Now: k.Now, Log: s.log,
	}
	lister := &catalog.Function{
		Images: k.Images, Catalog: k.Catalog, Inventory: k.Inventory, Auth: k.Operator, Activity: k.Activity, Served: k.Served, Metric: k.Metric, Version: config.Version(),
		ManifestURL: k.ManifestURL, Ready: s.ready, SigningKey: (&signingKey{data: s.cfg.Data, log: s.log}).get, CheckPending: hasher.CheckPending, Now: k.Now, Log: s.log,
	}
	s.subscribe = func(ctx context.Context) {
		if k.ManifestURL != "" {
			doc := subscription(s.cfg)
			lister.Subscribe(ctx, subscribeEvery, func(ctx context.Context) ([]byte, error) { return client.Document(ctx, doc) })
		}
	}
	if k.Disks != config.DisksOff {
		lister.DisksMax = k.DisksMax
	}
	if k.Disks == config.DisksRequest || k.Disks == config.DisksAll {
		lister.MakeDisk = k.Jobs.RequestDisk
	}
	exporting := exports.Config{
		Catalog: k.Catalog, Inventory: k.Inventory, Add: adder.Ensure, Fetch: fetcher.Request, Port: s.nbdPort(),
		Activity: k.Activity, Now: k.Now, Log: s.log,
	}
	if k.Disks != config.DisksOff {
		exporting.Expand = k.Jobs.NeedDisk
	}
	s.exports = exports.New(exporting)
	hasher.Needed = s.exports.Needed
	s.wireNBD(lister, s.exports)
	cache := withcache.New(withcache.Config{
		Inventory: k.Inventory, Document: lister.Document, Serve: lister.Serve, Add: adder.Add, Remove: adder.Remove, Ensure: adder.Ensure,
		Fetch: fetcher.Request, Uncache: fetcher.Uncache, Cancel: fetcher.Cancel, ManifestURL: k.ManifestURL, Version: config.Version(), Activity: k.Activity, Now: k.Now,
	})
	site := &pages.Pages{Function: lister, Location: k.ImageRoot.String(), S3Endpoint: s.s3Address(), Address: s.lanAddress(), NBDPort: s.nbdPort()}
	s.workers = []worker{
		{q.inspections, inspectors, hasher.Handle},
		{q.assemblies, assemblers, uploader.Handle},
	}
	s.runJobs(hasher.Runners(), hasher.Handle)
	s.runJobs(fetcher.Runners(), fetcher.Handle)
	s.runJobs(uploader.Runners(), uploader.Handle)
	own := []web.Route{{Pattern: "GET /metrics", Access: web.Read, Quiet: true, Handle: func(w http.ResponseWriter, r *http.Request) error {
		k.Metric.Handler().ServeHTTP(w, r)
		return nil
	}}}
	handler := web.Handler(web.Config{
		Auth: k.Operator, PublicRead: k.PublicRead, Proxies: k.TrustedProxies, PublicURL: k.PublicURL,
		Pages: site.Places(), ErrorPage: site.ErrorPage, PlainErrors: exports.Prefix, Metric: k.Metric, Log: s.log,
	}, uploader.Routes(), lister.Routes(), site.Routes(), adder.Routes(), hasher.Routes(), fetcher.Routes(), s.exports.Routes(), cache.Routes(), s.hook().Routes(), own)
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.requests.RLock()
			defer s.requests.RUnlock()
			handler.ServeHTTP(w, r)
		}),
		ConnContext: web.KeepEnding,
		// A body of gigabytes has no deadline: package web ends requests that stall.
		ReadHeaderTimeout: web.HeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    web.MaxHeaderBytes - 4096, // net/http adds 4096
		ErrorLog:          log.New(httpLog{s.log}, "", 0),
	}
	return nil
}

// runJobs adds the workers of the jobs of a function.
func (s *server) runJobs(runners job.Runners, handle queue.Handler) {
	parallel := map[*job.Kind]int{
		job.Hash:  s.kit.HashWorkers,
		job.Check: 2, // so that a long check does not delay all others
		job.Fetch: s.kit.FetchWorkers,
	}
	for _, k := range runners.Kinds() {
		s.workers = append(s.workers, worker{s.queues.jobs[k], cmp.Or(parallel[k], 1), handle})
	}
}

// countJobs counts jobs by kind and status. A kind that cannot be listed is missing:
// its numbers are not known.
func countJobs(inv *inventory.Inventory) map[[2]string]int {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	counts := map[[2]string]int{}
	for _, k := range job.Kinds {
		jobs, err := inv.RecentJobs(ctx, 0, k)
		if err != nil {
			continue
		}
		for _, status := range []job.Status{job.Queued, job.Running} {
			counts[[2]string{k.Name, string(status)}] = 0
		}
		for status, n := range jobs.Counts {
			counts[[2]string{k.Name, string(status)}] = n
		}
	}
	return counts
}

// httpLog logs the messages of net/http about connections.
type httpLog struct{ log *slog.Logger }

func (l httpLog) Write(p []byte) (int, error) {
	l.log.Debug("http", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}
