package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

	"imageroot/functions/exports"
	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/kit"
	"imageroot/shared/nbd"
	"imageroot/shared/queue"
	"imageroot/shared/queue/memqueue"
	"imageroot/shared/quota"
	"imageroot/shared/store"
	"imageroot/shared/store/probe"
	"imageroot/shared/store/s3store"
)

const (
	// reconcileEvery is the interval at which records are compared with the roots.
	reconcileEvery = 10 * time.Minute
	// resumeEvery is the interval at which jobs whose lease has lapsed are resumed.
	resumeEvery = 30 * time.Second
	// flushEvery is the interval at which deliveries and uses of tokens are recorded.
	flushEvery = time.Minute
	// inspectors is the number of parallel inspections, and assemblers that of assemblies.
	inspectors, assemblers = 4, 2
	// connections limits the open connections of the port of pages and API, and
	// connectionsEach those from one address.
	connections, connectionsEach = 512, 128
	// drainTime is the time for requests to end. cutTime is the time after that for
	// jobs and cut-off requests to record their state, and then for the journal.
	drainTime, cutTime = 3 * time.Second, 5 * time.Second
	// firstTime is how long the work of a start waits for requests at most.
	firstTime = 5 * time.Second
)

// A server is the running program.
type server struct {
	cfg         config.Config
	log         *slog.Logger
	credentials *credentials
	password    string           // generated at this start, over another S3 server
	gateway     *gateway.Gateway // nil if another S3 server is used
	listener    net.Listener
	nbdListener net.Listener // nil: no NBD
	nbdTLS      *tls.Config  // nil: NBD without TLS
	nbd         *nbd.Server
	exports     *exports.Function
	subscribe   func(context.Context) // until the context ends
	http        *http.Server
	requests    sync.RWMutex // read-locked by each request
	workers     []worker
	queues      queues
	kit         *kit.Kit
	client      *s3store.Client
	events      *events
}

// queues holds the queues of the functions, in memory.
type queues struct {
	inspections, assemblies *memqueue.Queue
	jobs                    map[*job.Kind]*memqueue.Queue
}

func newQueues(log *slog.Logger) queues {
	q := queues{memqueue.New(log), memqueue.New(log), map[*job.Kind]*memqueue.Queue{}}
	for _, k := range job.Kinds {
		q.jobs[k] = memqueue.New(log)
	}
	return q
}

// A worker handles the tasks of a queue, several in parallel.
type worker struct {
	queue    *memqueue.Queue
	parallel int
	handle   queue.Handler
}

// start opens all parts of the program. When it returns, only the gateway runs.
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
	if err := s.listenNBD(ctx); err != nil {
		return nil, err
	}
	s.queues = newQueues(log)
	ready := make(chan struct{}) // closed once s.kit is set, or start has failed
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
		if err := probe.CheckOnce(ctx, catalogRoot, endpoint, time.Now(), log); err != nil {
			return nil, fmt.Errorf("%s cannot be used: %w", endpoint, err)
		}
		if cfg.SharedBucket() {
			log.Warn("both roots are in one bucket: give uploaders rights on the image root only, since anyone who can read the catalog root can sign in",
				"image root", cfg.ImageRoot.String(), "catalog root", cfg.CatalogRoot.String())
		}
	}
	server := kit.HostPort(endpoint)
	if s.gateway != nil {
		server = s.gateway.Addr()
	}
	s.kit = kit.New(kit.Config{
		Config: s.cfg, Images: images, Catalog: catalogRoot, Server: server, PrivateSources: true, Hidden: s.unlisted, Compact: true, Log: log,
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

// root returns the root at a location. Over the gateway, it reads from the disk.
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

// unlisted returns the files of the image root that the gateway does not list.
func (s *server) unlisted() []inventory.Other {
	if s.gateway == nil || s.cfg.ImageRoot.Prefix != "" {
		return nil // the gateway watches only the top of the bucket
	}
	entries := s.gateway.Unlisted(s.cfg.ImageRoot.Bucket)
	var list []inventory.Other
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		list = append(list, inventory.Other{Name: name, Reason: entries[name]})
	}
	return list
}

// changed notifies the inventory of a changed object, and enqueues the inspection of an
// image.
func (s *server) changed(bucket, key string) {
	if bucket == s.cfg.ImageRoot.Bucket {
		if key, ok := queue.TopLevel(key, s.cfg.ImageRoot.Prefix); ok {
			s.kit.Inventory.TouchImage(key)
			_ = s.events.inspections.Send(context.Background(), queue.InspectImage(key).Encode(), 0) // never fails
			return
		}
	}
	if bucket == s.cfg.CatalogRoot.Bucket {
		if key, ok := strings.CutPrefix(key, s.cfg.CatalogRoot.Prefix); ok {
			s.kit.Inventory.TouchCatalog(store.Key(key))
		}
	}
}

// s3Address returns the address of the S3 server that pages show.
func (s *server) s3Address() string {
	if s.gateway == nil {
		return s.cfg.S3Endpoint
	}
	return s.gateway.Addr()
}

// free returns the free space of the gateway in bytes, or -1 over another S3 server.
func (s *server) free() int64 {
	if s.gateway == nil {
		return -1
	}
	return s.gateway.Free()
}

// ready returns nil if the store responds and has the buckets.
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
