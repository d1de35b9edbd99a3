// Package gateway is the S3 server inside imageroot: versitygw over a directory,
// with the guarantees that images and shared records need.
//
// DATA/BUCKET/KEY is a plain file. The package adds to versitygw:
//
//   - A write is durable when it is answered.
//   - Each version of a file has its own ETag, also if the file was written
//     without S3.
//   - Only regular files are served; symbolic links are not followed.
//   - A write that does not fit on the disk is refused before it is sent.
//   - [Config.Changed] is called for each change, with S3 or without.
//   - A malformed or unsupported request is refused, not ignored or stored.
//
// The program's account may do everything. The [Uploader] account may list,
// read, write and delete the objects of the image root, which include the
// operator's manifest, catalog.toml.
//
// # Files
//
// The server, from the socket inwards:
//
//	gateway.go      Config, Start, Close
//	server.go       the HTTP server and versitygw's handlers
//	conn.go         deadlines and limits of a connection
//	inside.go       connections from within the process
//	admit.go        limits on a request's memory before it is authenticated
//	demands.go      requests for features that the gateway lacks
//	malformed.go    control characters, conditions, dates that do not parse
//	accounts.go     accounts and what an uploader may do
//	errors.go       S3 errors, and the table from errors of the file system to them
//
// Operations, one file each:
//
//	backend.go      the backend and its buckets
//	put.go read.go copy.go delete.go list.go encoding.go tags.go
//	multipart.go    creating, listing and aborting uploads
//	parts.go        writing parts
//	assembly.go     the file into which parts are assembled
//	complete.go     completing an upload
//	claim.go        exclusive and shared holds of an upload
//
// The directory:
//
//	directory.go    opening it, and cleaning up after a killed process
//	place.go        the file of a key
//	body.go         the body of a write; stream.go: from within the process
//	version.go      ETags and versions of files
//	attributes.go   extended attributes; parttable.go is the largest
//	settings.go     settings of buckets, which are removed at the start
//	free.go         free space
//	watch.go        changes made without S3
//
// # Faults of versitygw v1.8.0
//
// These guards can be removed once upstream has fixed the faults:
//
//   - The form of a POST upload is read into memory, without a limit, before
//     its signature is checked (MultipartParser): maxForm, conn.restrict.
//   - A form whose last boundary has no line break counts as cut: formFile.
//   - A chunk of negative size, and a line break in a chunk's signature, panic:
//     upload.Read. A chunk at the end is not verified: isUnverified.
//   - Conditions that do not parse are dropped, control characters in forms are
//     stored, presigned URLs are valid before their date: malformed.go.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"imageroot/shared/quota"
)

// Config configures a [Gateway].
type Config struct {
	// Listen is HOST:PORT; port 0 lets the system choose.
	Listen string
	// Dir is DATA: buckets are directories in it, DATA/images/NAME are plain
	// files. It is created if missing.
	Dir string
	// AccessKey and SecretKey are the account that may do everything.
	AccessKey, SecretKey string
	// Uploader is the account of uploaders. Without an access key, it does not
	// exist.
	Uploader Uploader
	// Changed is called for each object that was created, replaced or removed:
	// through S3, or as a plain file in one of Watch's buckets. Calls may be
	// concurrent and must return soon. The callee may keep the strings.
	Changed func(Event)
	// Watch names the buckets whose directories are watched for files that are
	// created, changed or removed without S3.
	Watch []string
	// HeadTimeout limits the time in which the part of a request must arrive that
	// is read before the client is authenticated. 0 is 10 seconds.
	HeadTimeout time.Duration
	// Exempt reports whether an address belongs to a trusted proxy, which the
	// limit on connections of one address does not apply to. Nil exempts none.
	Exempt func(netip.Addr) bool
	// Log receives what the operator should know. Nil discards it.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Poll is the interval at which the directories of Watch are listed, for
	// changes that the system does not notify of. 0 is 15 seconds.
	Poll time.Duration
	// Notify opens the source of notifications; nil is fsnotify.NewWatcher. If it
	// fails, changes are found by Poll alone.
	Notify func() (*fsnotify.Watcher, error)
	// FreeBytes returns the bytes free on the file system of a directory; nil
	// asks the system.
	FreeBytes func(dir string) (uint64, error)
}

// An Event reports that an object changed, once or several times.
type Event struct {
	Bucket, Key string
	Removed     bool // the object no longer exists, or S3 no longer lists it
}

// A Gateway is a running S3 server. Create it with [Start].
type Gateway struct {
	server  *server
	inside  *inside
	watcher *watcher
	backend *backend
	alive   *os.File
	addr    string
	close   func() error
}

// running is held by the one gateway that a process may have: versitygw keeps
// settings in package variables.
var running atomic.Bool

// Start opens the directory and serves it. It returns once requests are answered;
// ctx bounds only that. A process can run one gateway at a time. Each error is one
// sentence that has the remedy.
func Start(ctx context.Context, cfg Config) (_ *Gateway, err error) {
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("the S3 gateway needs an access key and a secret key")
	}
	cfg.HeadTimeout = cmp.Or(cfg.HeadTimeout, 10*time.Second)
	if cfg.Changed == nil {
		cfg.Changed = func(Event) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Notify == nil {
		cfg.Notify = fsnotify.NewWatcher
	}
	if cfg.FreeBytes == nil {
		cfg.FreeBytes = freeBytes
	}
	cfg.Poll = cmp.Or(cfg.Poll, 15*time.Second)
	if !running.CompareAndSwap(false, true) {
		return nil, errors.New("an S3 gateway is running in this process already; stop it before starting another")
	}
	g := &Gateway{}
	defer func() {
		if err != nil {
			g.release()
		}
	}()

	dir, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ln, err := listen(ctx, cfg.Listen)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ln.Close()
		}
	}()
	g.addr = ln.Addr().String()

	if g.alive, err = claim(dir, cfg.Log); err != nil {
		return nil, err
	}
	if err := clearSettings(dir, cfg.Log); err != nil {
		return nil, err
	}
	g.watcher = watch(dir, cfg)
	if g.backend, err = openBackend(dir, cfg, g.watcher.expect); err != nil {
		return nil, err
	}
	g.inside = newInside()
	public := quota.NewListener(ln, quota.Config{Total: connections, Each: connectionsEach, Still: time.Second, Exempt: cfg.Exempt, Log: cfg.Log})
	if g.server, err = serve(g.backend, cfg, public, g.inside); err != nil {
		return nil, err
	}
	g.watcher.start()
	g.close = sync.OnceValue(func() error {
		defer g.release()
		return g.server.close(time.Second)
	})
	return g, nil
}

// Unlisted returns the entries at the top of a watched bucket's directory that
// S3 does not list, except hidden ones: the reason by name.
func (g *Gateway) Unlisted(bucket string) map[string]string { return g.watcher.unlisted(bucket) }

// Addr returns the HOST:PORT that the gateway listens on, with the actual port.
func (g *Gateway) Addr() string { return g.addr }

// Dial opens a connection to the gateway from within this process. It does not
// count against the limits of the listening address. It is safe for concurrent
// use.
func (g *Gateway) Dial(ctx context.Context) (net.Conn, error) { return g.inside.dial(ctx) }

// Close stops the gateway. Requests in flight get a second to end; then their
// connections are closed. An upload that is cut off leaves the object unchanged.
// It is safe for concurrent use.
func (g *Gateway) Close() error { return g.close() }

// release releases what Start acquired.
func (g *Gateway) release() {
	if g.watcher != nil {
		g.watcher.close()
	}
	if g.backend != nil {
		g.backend.Shutdown()
	}
	g.alive.Close() // which accepts nil
	running.Store(false)
}
