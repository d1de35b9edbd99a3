package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/functions/addbyurl"
	"imageroot/functions/catalog"
	"imageroot/functions/catalog/pages"
	"imageroot/functions/fetch"
	"imageroot/functions/hash"
	"imageroot/functions/upload"
	"imageroot/local/gateway"
	"imageroot/shared/auth"
	"imageroot/shared/config"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/kit"
	"imageroot/shared/queue"
	"imageroot/shared/queue/memqueue"
	"imageroot/shared/quota"
	"imageroot/shared/source"
	"imageroot/shared/store"
	"imageroot/shared/store/probe"
	"imageroot/shared/store/s3store"
	"imageroot/shared/web"
)

const (
	// reconcileEvery is how often the records are compared with the listing.
	reconcileEvery = 10 * time.Minute
	// resumeEvery is how often jobs are looked for that another process has
	// left behind.
	resumeEvery = 30 * time.Second
	// relistAfter is how long changes that no event told of may stay unseen.
	relistAfter = time.Minute
	// inspectors is how many objects are looked at, and assemblers how many
	// resumable uploads are put together, at once.
	inspectors, assemblers = 4, 2
	// connections is how many connections a port has open at once, and
	// connectionsEach how many of them from one address.
	connections, connectionsEach = 512, 128
	// drainTime is what requests and jobs have to come to an end, and cutTime
	// what requests that are cut then have to record that.
	drainTime, cutTime = 3 * time.Second, time.Second
)

// server is the whole program, running.
type server struct {
	cfg         config.Config
	log         *slog.Logger
	credentials *credentials
	password    string           // that was made up at this start over another S3 server
	gateway     *gateway.Gateway // nil where another S3 server is used
	listener    net.Listener
	http        *http.Server
	requests    sync.RWMutex // read-locked by each request
	workers     []worker
	queues      queues
	kit         *kit.Kit
	client      *s3store.Client
	events      *events
}

// queues are the queues of the functions, in memory.
type queues struct{ inspections, hashJobs, checkJobs, fetchJobs, assemblies *memqueue.Queue }

// A worker handles a queue.
type worker struct {
	queue    *memqueue.Queue
	parallel int
	handle   queue.Handler
}

// start opens everything. Nothing of it runs yet but the gateway.
func start(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *server, err error) {
	s := &server{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			_ = s.stop()
		}
	}()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s for pages and API (--listen): %w", cfg.Listen, err)
	}
	s.listener = quota.NewListener(ln, quota.Config{Total: connections, Each: connectionsEach, Still: time.Second, Exempt: cfg.TrustedProxies.Has, Log: log})
	s.queues = queues{memqueue.New(log), memqueue.New(log), memqueue.New(log), memqueue.New(log), memqueue.New(log)}
	ready := make(chan struct{}) // closed when s.kit is set, or never will be
	started := sync.OnceFunc(func() { close(ready) })
	defer started()
	endpoint := cfg.S3Endpoint
	sc := s3store.Config{Endpoint: endpoint}
	if endpoint == "" {
		if err := s.startGateway(ctx, func(e gateway.Event) {
			if <-ready; s.kit != nil {
				s.changed(e.Bucket, e.Key)
			}
		}); err != nil {
			return nil, err
		}
		sc = s3store.Config{Endpoint: "http://gateway.inside", Region: "us-east-1", AccessKey: s.credentials.ProgramAccessKey, SecretKey: s.credentials.ProgramSecretKey, Dial: s.gateway.Dial}
	}
	client, err := s3store.Open(ctx, sc)
	if err != nil {
		return nil, err
	}
	s.client = client
	if err := s.ensureBuckets(ctx); err != nil {
		return nil, err
	}
	images, catalogRoot := s.root(client, cfg.ImageRoot), s.root(client, cfg.CatalogRoot)
	if s.gateway == nil {
		if err := probe.Check(ctx, catalogRoot); err != nil {
			return nil, fmt.Errorf("%s cannot be used: %w", endpoint, err)
		}
		if cfg.SharedBucket() {
			log.Warn("both roots are in one bucket: give uploaders rights on the image root only, since who can read the catalog root can sign in",
				"image root", cfg.ImageRoot.String(), "catalog root", cfg.CatalogRoot.String())
		}
	}
	server := kit.HostPort(endpoint)
	if s.gateway != nil {
		server = s.gateway.Addr()
	}
	s.kit = kit.New(kit.Config{
		Config: s.cfg, Images: images, Catalog: catalogRoot, Server: server, PrivateSources: true, Hidden: s.unlisted, MaxAge: relistAfter, Log: log,
	})
	s.events = newEvents(cfg, s.gateway != nil)
	s.events.inspections, s.events.changed = s.queues.inspections, s.changed
	started()
	if err := s.openOperator(ctx); err != nil {
		return nil, err
	}
	if err := s.wire(); err != nil {
		return nil, err
	}
	return s, nil
}

// ensureBuckets makes the buckets that are missing, or says how to.
func (s *server) ensureBuckets(ctx context.Context) error {
	var missing, commands []string
	var denied error
	if _, err := s.client.Access(ctx); err != nil {
		return fmt.Errorf("no credentials for %s: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (%w)", s.cfg.S3Endpoint, err)
	}
	for _, bucket := range s.buckets() {
		err := s.client.EnsureBucket(ctx, bucket)
		if errors.Is(err, store.ErrDenied) && s.mayList(ctx, bucket) {
			continue // credentials for a part of it
		}
		if errors.Is(err, s3store.ErrCredentials) {
			return fmt.Errorf("%s does not accept AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: %w", s.cfg.S3Endpoint, err)
		}
		if err != nil && !errors.Is(err, store.ErrDenied) {
			return explain(s.cfg.S3Endpoint, err)
		}
		if err != nil {
			denied = err
			missing = append(missing, bucket)
			commands = append(commands, fmt.Sprintf("aws --endpoint-url %s s3 mb s3://%s", s.cfg.S3Endpoint, bucket))
		}
	}
	if missing != nil {
		return fmt.Errorf("these AWS_* credentials may neither use nor make the bucket %s at %s; where it is missing, this makes it with other ones: %s (%w)",
			strings.Join(missing, ", nor "), s.cfg.S3Endpoint, strings.Join(commands, " && "), denied)
	}
	if s.gateway != nil {
		// It holds the session key.
		if err := os.Chmod(filepath.Join(s.cfg.Data, s.cfg.CatalogRoot.Bucket), 0o700); err != nil {
			return fmt.Errorf("the catalog cannot be kept from other users: %w", err)
		}
	}
	return nil
}

// mayList reports whether the roots in a bucket can be listed.
func (s *server) mayList(ctx context.Context, bucket string) bool {
	for _, at := range []config.Location{s.cfg.ImageRoot, s.cfg.CatalogRoot} {
		if at.Bucket == bucket && first(ctx, s.client.Root(at.Bucket, at.Prefix)) != nil {
			return false
		}
	}
	return true
}

// explain adds what to do about an error of the first request to a server.
func explain(endpoint string, err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("the certificate of %s is not trusted: give its authority's in AWS_CA_BUNDLE (%w)", endpoint, err)
	}
	return err
}

// root returns the root at a location, read from the disk where that is here.
func (s *server) root(client *s3store.Client, at config.Location) store.Root {
	root := client.Root(at.Bucket, at.Prefix)
	if s.gateway == nil {
		return root
	}
	return &direct{root, s.gateway, at}
}

func (s *server) startGateway(ctx context.Context, changed func(gateway.Event)) (err error) {
	if s.cfg.Data, err = filepath.Abs(s.cfg.Data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(s.cfg.Data, 0o755); err != nil {
		return fmt.Errorf("the data directory %s cannot be made or entered (--data): %w", s.cfg.Data, err)
	}
	if s.credentials, err = loadCredentials(&s.cfg, s.log); err != nil {
		return err
	}
	s.gateway, err = gateway.Start(ctx, gateway.Config{
		Listen: s.cfg.S3Listen, Dir: s.cfg.Data, AccessKey: s.credentials.ProgramAccessKey, SecretKey: s.credentials.ProgramSecretKey,
		Uploader: gateway.Uploader{
			Access: s.cfg.S3AccessKey, Secret: s.cfg.S3SecretKey, Bucket: s.cfg.ImageRoot.Bucket, Prefix: s.cfg.ImageRoot.Prefix,
		},
		Changed: changed, Watch: []string{s.cfg.ImageRoot.Bucket}, Exempt: s.cfg.TrustedProxies.Has, Log: s.log,
	})
	return err
}

// unlisted returns what the gateway inside does not list of the image root.
func (s *server) unlisted() []inventory.Other {
	if s.gateway == nil || s.cfg.ImageRoot.Prefix != "" {
		return nil // only the top of the bucket is watched
	}
	entries := s.gateway.Unlisted(s.cfg.ImageRoot.Bucket)
	var list []inventory.Other
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		list = append(list, inventory.Other{Name: name, Reason: entries[name]})
	}
	return list
}

// changed has the inventory and the hash function learn of a change.
func (s *server) changed(bucket, key string) {
	if bucket == s.cfg.ImageRoot.Bucket {
		if name, ok := queue.TopLevel(key, s.cfg.ImageRoot.Prefix); ok {
			s.kit.Inventory.TouchImage(name)
			_ = s.events.inspections.Send(context.Background(), queue.InspectImage(name).Encode(), 0) // never fails
			return
		}
	}
	if bucket == s.cfg.CatalogRoot.Bucket {
		if key, ok := strings.CutPrefix(key, s.cfg.CatalogRoot.Prefix); ok {
			s.kit.Inventory.TouchCatalog(key)
		}
	}
}

// openOperator makes a password up at the first start over another S3 server,
// if none is given. What is stored there is its hash.
func (s *server) openOperator(ctx context.Context) error {
	err := s.kit.OpenOperator(ctx)
	if !errors.Is(err, auth.ErrNoPassword) {
		return err
	}
	s.password = auth.NewPassword()
	s.kit.Password = s.password
	return s.kit.OpenOperator(ctx)
}

// wire connects the functions with what they need.
func (s *server) wire() error {
	k, q := s.kit, s.queues
	policy, err := k.Policy()
	if err != nil {
		return err
	}
	sources := source.New(source.Config{
		Policy: policy, DockerConfig: k.DockerConfig, PlainHTTP: k.PlainHTTP, UserAgent: "imageroot/" + config.Version(), UnusedProxy: k.UnusedProxy,
	})
	if k.UnusedProxy != "" {
		s.log.Warn(k.UnusedProxy + unusedProxy)
	}
	k.Metric.Jobs(func() map[[2]string]int { return countJobs(k.Inventory) })

	hasher := &hash.Function{
		Images: k.Images, Catalog: k.Catalog, Bucket: k.ImageRoot.Bucket, Prefix: k.ImageRoot.Prefix,
		Jobs: k.Jobs, Inspections: q.inspections, HashJobs: q.hashJobs, Inventory: k.Inventory, Activity: k.Activity, Metric: k.Metric,
		Workers: k.HashWorkers, Now: k.Now, Log: s.log,
	}
	if k.Check {
		hasher.CheckJobs = q.checkJobs
	}
	fetcher := &fetch.Function{
		Catalog: k.Catalog, Sources: sources, Jobs: k.Jobs, FetchJobs: q.fetchJobs, Inspections: q.inspections, Inventory: k.Inventory, Activity: k.Activity, Metric: k.Metric,
		Free: s.free, Workers: k.FetchWorkers, Now: k.Now, Log: s.log,
	}
	uploader := &upload.Function{
		Images: k.Images, Catalog: k.Catalog, Inspections: q.inspections, Assemblies: q.assemblies, Activity: k.Activity, Metric: k.Metric,
		Free: s.free, Now: k.Now, Log: s.log,
	}
	adder := &addbyurl.Function{
		Catalog: k.Catalog, Sources: sources, Inventory: k.Inventory, Uncache: fetcher.Uncache, Activity: k.Activity, Now: k.Now, Log: s.log,
	}
	lister := &catalog.Function{
		Images: k.Images, Catalog: k.Catalog, Inventory: k.Inventory, Activity: k.Activity, Metric: k.Metric, Version: config.Version(),
		Ready: s.ready, Now: k.Now, Log: s.log,
	}
	site := &pages.Pages{Function: lister, Auth: k.Operator, Location: k.ImageRoot.String(), S3Endpoint: s.s3Address()}
	s.workers = []worker{
		{q.inspections, inspectors, hasher.Handle},
		{q.hashJobs, k.HashWorkers, hasher.Handle},
		{q.checkJobs, 2, hasher.Handle}, // beside hashing, which does not wait for it; one at a time, and one beside a long one
		{q.fetchJobs, k.FetchWorkers, fetcher.Handle},
		{q.assemblies, assemblers, uploader.Handle},
	}
	own := []web.Route{{Pattern: "GET /metrics", Access: web.Operator, Quiet: true, Handle: func(w http.ResponseWriter, r *http.Request) error {
		k.Metric.Handler().ServeHTTP(w, r)
		return nil
	}}}
	handler := web.Handler(web.Config{
		Auth: k.Operator, PublicRead: k.PublicRead, Proxies: k.TrustedProxies, PublicURL: k.PublicURL,
		Pages: site.Places(), ErrorPage: site.ErrorPage, Metric: k.Metric, Log: s.log,
	}, uploader.Routes(), lister.Routes(), site.Routes(), adder.Routes(), hasher.Routes(), fetcher.Routes(), s.hook().Routes(), own)
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.requests.RLock()
			defer s.requests.RUnlock()
			handler.ServeHTTP(w, r)
		}),
		// Bodies of gigabytes have no deadline but stillness, which package
		// web sees to; heads are small.
		ReadHeaderTimeout: web.HeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    web.MaxHeaderBytes - 4096, // to which net/http adds as much
		ErrorLog:          log.New(httpLog{s.log}, "", 0),
	}
	return nil
}

// s3Address is the S3 server for people on other machines.
func (s *server) s3Address() string {
	if s.gateway == nil {
		return s.cfg.S3Endpoint
	}
	return s.gateway.Addr()
}

// free returns the bytes that the gateway inside has room for.
func (s *server) free() int64 {
	if s.gateway == nil {
		return -1
	}
	return s.gateway.Free()
}

// ready returns nil if the store answers and has the buckets.
func (s *server) ready(ctx context.Context) error {
	if err := s.kit.Ready(ctx); err != nil {
		return err
	}
	for _, bucket := range s.buckets() {
		if err := s.client.FindBucket(ctx, bucket); errors.Is(err, store.ErrNoBucket) {
			return err
		}
	}
	return nil
}

// buckets returns the buckets of the roots.
func (s *server) buckets() []string {
	return slices.Compact([]string{s.cfg.ImageRoot.Bucket, s.cfg.CatalogRoot.Bucket})
}

// restoreBuckets makes buckets again that were removed since the start.
func (s *server) restoreBuckets(ctx context.Context) {
	missing := slices.DeleteFunc(s.buckets(), func(bucket string) bool {
		return !errors.Is(s.client.FindBucket(ctx, bucket), store.ErrNoBucket)
	})
	if len(missing) == 0 {
		return
	}
	s.log.Error("buckets are missing, with all that was in them: they are made again, empty", "buckets", missing)
	if err := s.ensureBuckets(ctx); err != nil {
		s.log.Error("a missing bucket cannot be made again", "error", err)
	}
}

func countJobs(inv *inventory.Inventory) map[[2]string]int {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	counts := map[[2]string]int{}
	for _, k := range job.Kinds {
		for _, status := range []job.Status{job.Queued, job.Running} {
			counts[[2]string{k.Name, string(status)}] = 0
		}
		jobs, err := inv.Jobs(ctx, k)
		if err != nil {
			continue // a gauge that is missing says that it is not known
		}
		for _, j := range jobs {
			counts[[2]string{k.Name, string(j.Status)}]++
		}
	}
	return counts
}

// serve runs until ctx ends, then drains.
func (s *server) serve(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(s.listener) }()
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var wg sync.WaitGroup
	for _, w := range s.workers {
		wg.Go(func() { _ = w.queue.Receive(work, w.parallel, w.handle) }) // returns work's end
	}
	wg.Go(func() { s.reconcile(work) })
	wg.Go(func() { s.events.poll(work) })
	wg.Go(func() { s.hear(work) })
	wg.Go(func() { trim(work) })

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.log.Info("stopping")
	stopWork() // jobs hand themselves back while requests come to their end
	jobs := closed(wg.Wait)
	ctx = context.WithoutCancel(ctx)
	drain, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if s.http.Shutdown(drain) != nil {
		_ = s.http.Close()
	}
	end, cancelEnd := context.WithTimeout(ctx, cutTime)
	defer cancelEnd()
	if !isClosed(end, closed(s.requests.Lock)) {
		s.log.Warn("some requests did not end in time")
	}
	if !isClosed(end, jobs) {
		s.log.Warn("some jobs did not stop in time; they go on from their checkpoints at the next start")
	}
	return errors.Join(err, s.stop())
}

// closed returns a channel that is closed once wait has returned.
func closed(wait func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	return done
}

// isClosed waits for done until ctx ends, and reports whether it is closed.
func isClosed(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// reconcile has the functions compare their records with what is there, now
// and then, and removes events that are old.
func (s *server) reconcile(ctx context.Context) {
	all, jobs := time.NewTicker(reconcileEvery), time.NewTicker(resumeEvery)
	defer all.Stop()
	defer jobs.Stop()
	var task queue.Task = queue.Reconcile{}
	for {
		s.restoreBuckets(ctx)
		for _, q := range []queue.Sender{s.queues.inspections, s.queues.fetchJobs, s.queues.assemblies} {
			_ = q.Send(ctx, task.Encode(), 0) // never fails
		}
		if task == (queue.Reconcile{}) {
			if err := s.kit.Activity.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("old events stay for now", "error", err)
			}
		}
		select {
		case <-all.C:
			task = queue.Reconcile{}
		case <-jobs.C:
			task = queue.Resume{}
		case <-ctx.Done():
			return
		}
	}
}

// stop closes what start opened.
func (s *server) stop() error {
	if s.listener != nil {
		_ = s.listener.Close() // by now most likely closed
	}
	if s.gateway != nil {
		return s.gateway.Close()
	}
	return nil
}

// banner is what a person needs to begin.
func (s *server) banner() string {
	var b strings.Builder
	line := func(what, is string) { fmt.Fprintf(&b, "  %-11s %s\n", what, is) }
	fmt.Fprintf(&b, "imageroot %s\n\n", config.Version())
	line("pages", localURL(s.listener.Addr().String()))
	if s.gateway != nil {
		line("s3", localURL(s.gateway.Addr()))
		line("images", filepath.Join(s.cfg.Data, s.cfg.ImageRoot.Bucket, s.cfg.ImageRoot.Prefix))
	} else {
		line("s3", s.cfg.S3Endpoint)
		line("images", s.cfg.ImageRoot.String())
	}
	if s.password != "" {
		line("password", s.password+" (not kept anywhere, not printed again; IMAGEROOT_PASSWORD sets another one)")
	}
	if c := s.credentials; c != nil {
		if c.freshPassword {
			line("password", c.Password)
		}
		if c.freshKeys {
			line("access key", c.AccessKey)
			line("secret key", c.SecretKey)
		}
		switch {
		case c.freshPassword || c.freshKeys:
			line("kept in", c.path+" (not printed again)")
		case c.Password == s.cfg.Password:
			line("log in", "with what "+c.path+" says")
		}
	}
	b.WriteString("\n")
	return b.String()
}

// localURL is a listening address as a URL that works on this machine.
func localURL(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "http://" + addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// httpLog takes what net/http has to say about connections.
type httpLog struct{ log *slog.Logger }

func (l httpLog) Write(p []byte) (int, error) {
	l.log.Debug("http", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}
