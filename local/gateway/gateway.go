// Package gateway is the S3 server inside imageroot: versitygw over a
// directory, made fit to hold images and the state that processes share.
//
// DATA/BUCKET/KEY is a plain file. Beyond what versitygw does, an answered
// write is on the disk, a version of a file has an ETag of its own however the
// file got there, nothing but plain files is served, what will not fit is
// refused before it is sent, and each change is told to whoever asked.
//
// versitygw v1.8.0 reads the form of a POST upload into memory, without a
// limit, before it checks the signature in the form (MultipartParser in
// s3api/utils). The guard against that, maxForm and conn.restrict, can go once
// upstream has a limit.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"
	s3utils "github.com/versity/versitygw/s3api/utils"

	"imageroot/shared/quota"
)

// Config of a [Gateway].
type Config struct {
	// Listen is HOST:PORT; port 0 lets the system choose.
	Listen string
	// Dir is DATA: buckets are directories in it, DATA/images/NAME are plain
	// files. It is created if missing.
	Dir string
	// AccessKey and SecretKey are the account that may do everything.
	AccessKey, SecretKey string
	// Uploader is another account, for people. Without an access key there is
	// none.
	Uploader Uploader
	// Region is us-east-1 if empty.
	Region string
	// Changed is told of each object that was created, replaced or removed:
	// through S3, or as a plain file in one of Watch's buckets. It must not
	// block for long. The strings are the callee's to keep.
	Changed func(Event)
	// Watch names the buckets whose directories are watched for files that
	// come and go without S3.
	Watch []string
	// HeadTimeout is the time that a request has to arrive, as far as it is
	// read before the client is authenticated. 0 is 10 seconds.
	HeadTimeout time.Duration
	// Exempt reports whether an address is that of a trusted proxy, whose
	// connections are many clients'. Nil is none.
	Exempt func(netip.Addr) bool
	// Log gets what the operator should know. Nil drops it.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// An Event says that an object changed. It does not say how often.
type Event struct {
	Bucket, Key string
	Removed     bool
}

// A Gateway is a running S3 server. Create it with [Start].
type Gateway struct {
	server  *server
	inside  *inside
	watcher *watcher
	backend *backend
	alive   *os.File
	addr    *net.TCPAddr
	host    string // as configured
	done    chan struct{}
	once    sync.Once
	err     error
}

// running is held by the one gateway that a process may have: versitygw keeps
// settings in package variables.
var running atomic.Bool

// Start opens the directory and serves it. It returns when requests are
// answered. ctx only bounds the start. Its errors are one sentence that says
// what to do.
func Start(ctx context.Context, cfg Config) (_ *Gateway, err error) {
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("the S3 gateway needs an access key and a secret key")
	}
	cfg.Region = cmp.Or(cfg.Region, "us-east-1")
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
	if !running.CompareAndSwap(false, true) {
		return nil, errors.New("an S3 gateway is running in this process already; stop it before starting another")
	}
	g := &Gateway{done: make(chan struct{})}
	defer func() {
		if err != nil {
			g.release()
			running.Store(false)
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
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("the S3 gateway cannot serve %s: it is no TCP address", cfg.Listen)
	}
	g.addr = addr
	g.host, _, _ = net.SplitHostPort(cfg.Listen)

	if g.alive, err = claim(dir, cfg.Log); err != nil {
		return nil, err
	}
	if err := clearSettings(dir, cfg.Log); err != nil {
		return nil, err
	}
	if g.backend, err = openBackend(dir, cfg); err != nil {
		return nil, err
	}
	g.watcher, err = watch(dir, cfg.Watch, cfg.Log, cfg.Changed)
	if err != nil {
		return nil, err
	}
	g.backend.expect = g.watcher.expect
	g.inside = newInside()
	public := quota.NewListener(ln, quota.Config{Total: connections, Each: connectionsEach, Still: time.Second, Exempt: cfg.Exempt, Log: cfg.Log})
	if g.server, err = serve(g.backend, cfg, public, g.inside); err != nil {
		return nil, err
	}
	return g, nil
}

// Unlisted returns what is at the top of a watched bucket's directory that S3
// does not list, by name, with the reason. Hidden files are left out.
func (g *Gateway) Unlisted(bucket string) map[string]string { return g.watcher.unlisted(bucket) }

// Addr returns the HOST:PORT that is listened on, with the real port.
func (g *Gateway) Addr() string { return g.addr.String() }

// Dial opens a connection to the gateway from within this process. It takes
// none from the clients of the address that the gateway listens on, and none of
// them can take it.
func (g *Gateway) Dial(ctx context.Context) (net.Conn, error) { return g.inside.dial(ctx) }

// Endpoint returns the URL at which this machine reaches the gateway.
func (g *Gateway) Endpoint() string {
	host := g.addr.IP.String()
	if g.addr.IP.IsUnspecified() {
		host = "127.0.0.1"
		if g.host != "" && net.ParseIP(g.host).To4() == nil {
			host = "::1"
		}
	}
	return "http://" + net.JoinHostPort(host, fmt.Sprint(g.addr.Port))
}

// Close stops the gateway. Requests that are under way get a second to end;
// then their connections are closed. An upload that is cut so leaves the
// object as it was.
func (g *Gateway) Close() error {
	g.once.Do(func() {
		g.err = g.server.close(time.Second)
		g.release()
		close(g.done)
		running.Store(false)
	})
	<-g.done
	return g.err
}

// release gives up what Start acquired.
func (g *Gateway) release() {
	if g.watcher != nil {
		g.watcher.close()
	}
	if g.backend != nil {
		g.backend.Shutdown()
	}
	if g.alive != nil {
		g.alive.Close()
	}
}

// listen binds addr.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("the S3 gateway cannot listen on %q: write it as HOST:PORT or :PORT", addr)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("the S3 gateway cannot listen on %s: address already in use; stop what uses it or choose another address", addr)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the S3 gateway cannot listen on %s: permission denied; choose a port above 1023", addr)
	}
	return nil, fmt.Errorf("the S3 gateway cannot listen on %s: %w", addr, err)
}

// openDir makes DATA if it is missing and returns its absolute path, without
// symbolic links, so that nothing depends on the working directory.
func openDir(path string) (string, error) {
	if path == "" {
		return "", errors.New("the S3 gateway needs a data directory")
	}
	dir, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("the data directory %s cannot be found: %w", path, err)
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir(), errors.Is(err, syscall.ENOTDIR):
		return "", fmt.Errorf("the data directory %s is no directory; choose another path or move the file away", dir)
	case errors.Is(err, fs.ErrNotExist):
		err = os.MkdirAll(dir, 0o755)
		if errors.Is(err, syscall.ENOTDIR) {
			return "", fmt.Errorf("the data directory %s cannot be made: part of the path is a file; choose another path", dir)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return "", fmt.Errorf("the data directory %s cannot be made or entered: permission denied; give the user that runs this the right to it", dir)
	}
	if err != nil {
		return "", fmt.Errorf("the data directory %s cannot be made: %w", dir, err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("the data directory %s cannot be found: %w", path, err)
	}
	return dir, probe(dir)
}

// openPosix opens versitygw's backend, which insists on changing the working
// directory; it is put back.
func openPosix(dir string, attrs attributes) (*posix.Posix, error) {
	before, wdErr := os.Getwd()
	p, err := posix.New(dir, attrs, posix.PosixOpts{
		// A named temporary file, moved into place, works for names of 255
		// bytes, which linking an unnamed one over an existing name does not.
		ForceNoTmpFile:      true,
		CopyObjectThreshold: maxCopy,
		// MD5 would be what limits uploads. Versions are told apart by more
		// than a sum of the bytes (see version).
		DataIntegrityEtag: true,
		IOBufferSize:      256 << 10,
	})
	if wdErr == nil {
		if back := os.Chdir(before); back != nil && err == nil {
			return nil, fmt.Errorf("the working directory %s cannot be entered again: %w", before, back)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be opened: %w", dir, err)
	}
	return p, nil
}

// newAPI builds versitygw's S3 handlers over b.
func newAPI(b *backend, cfg Config) (*s3api.S3ApiServer, error) {
	s3utils.SetBucketNameValidationStrict(true)
	program := auth.Account{Access: cfg.AccessKey, Secret: cfg.SecretKey, Role: auth.RoleAdmin}
	return s3api.New(b, middlewares.RootUserConfig{Access: cfg.AccessKey, Secret: cfg.SecretKey},
		cfg.Region, accounts{auth.NewIAMServiceSingle(program), program, cfg.Uploader}, nil, nil, nil, nil,
		s3api.WithQuiet(), s3api.WithKeepAlive(), s3api.WithDisableACL(),
		s3api.WithConcurrencyLimiter(maxInside, connections+maxInside),
		s3api.WithMpMaxParts(10_000), s3api.WithMiddleware("/", guard(cfg.Log)), s3api.WithMiddleware("/", admit(cfg.HeadTimeout)), s3api.WithMiddleware("/", decline(cfg.Now)))
}

// accounts knows the accounts there are. It answers a wrong access key as
// S3 does, with a 403; versitygw's own service has a 404 for it, which clients
// take for a missing bucket.
type accounts struct {
	auth.IAMService // refuses every change
	program         auth.Account
	uploader        Uploader
}

func (a accounts) GetUserAccount(access string) (auth.Account, error) {
	switch {
	case access == "":
	case access == a.program.Access:
		return a.program, nil
	case access == a.uploader.Access:
		return auth.Account{Access: access, Secret: a.uploader.Secret, Role: auth.RoleUser}, nil
	}
	return auth.Account{}, auth.ErrNoSuchUser
}
