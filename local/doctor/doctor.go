// Package doctor is the command "imageroot doctor". It examines a setup and prints a table
// of what works, what could be better and what to do. It changes nothing: it removes each
// object and file that it writes for a test. imageroot may run meanwhile.
package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/listen"
	"imageroot/shared/manifest"
	"imageroot/shared/objectevent"
	"imageroot/shared/store"
	"imageroot/shared/store/probe"
	"imageroot/shared/store/s3store"
)

// A verdict is the result of a check.
type verdict string

const (
	good verdict = "ok"
	warn verdict = "warn" // it works, or may work, and could be better
	fail verdict = "fail" // it does not work, or loses data
)

// A finding is a row of the doctor's table: the verdict, what was examined, and its state.
// Unless the verdict is good, is says what to do.
type finding struct {
	verdict verdict
	what    string
	is      string
}

// Config is the setup to examine. All fields of this struct are required.
type Config struct {
	config.Config
	// Secrets is the path, below Data, of the file with generated credentials. ProgramKey
	// returns the program's key for the gateway from it, or two empty strings.
	Secrets    string
	ProgramKey func() (access, secret string)
	// Events is the source of object events that the runner would use with another S3
	// server: one of config's constants except EventsAuto. It hides config.Config.Events.
	// Poll is the interval at which the runner would list the image root.
	Events string
	Poll   time.Duration
	// Manifest reads the manifest at ManifestURL as the runner would.
	Manifest func(context.Context) ([]byte, error)
}

// A doctor examines a setup.
type doctor struct {
	cfg      Config
	now      func() time.Time
	synced   func() (bool, error)
	host     fs.FS         // the root directory, for proc and sys
	goLimit  int64         // GOMEMLIMIT in bytes
	patience time.Duration // the time for a server to respond, or to begin its event stream
	floor    time.Time     // a clock that is before this is wrong
}

const (
	// littleSpace is about the size in bytes of one image, and littleInodes the number of
	// files of a few images.
	littleSpace, littleInodes = 4 << 30, 1000
	// maxSkew is the clock skew that S3 servers allow (RequestTimeTooSkewed), and muchSkew
	// the maximum that runners with common leases should have.
	maxSkew, muchSkew = 15 * time.Minute, 10 * time.Second
)

// Examine examines the setup and prints the table to stdout. It returns an error if a check
// fails, if it cannot write, or if ctx has ended.
func Examine(ctx context.Context, cfg Config, stdout io.Writer) error {
	return newDoctor(cfg).examine(ctx, stdout)
}

func (d *doctor) examine(ctx context.Context, stdout io.Writer) error {
	found := d.findings(ctx)
	count := map[verdict]int{}
	for _, f := range found {
		count[f.verdict]++
		if _, err := fmt.Fprintf(stdout, "%-5s %-11s %s\n", f.verdict, f.what, f.is); err != nil {
			return err
		}
	}
	if n := count[fail]; n > 0 {
		return fmt.Errorf("%d of %d checks failed", n, len(found))
	}
	return ctx.Err()
}

// findings runs all checks in parallel and returns the rows of the table.
func (d *doctor) findings(ctx context.Context) []finding {
	checks := []func(context.Context) []finding{d.clock, d.memory, d.pages, d.proxy, d.manifest, d.endpoint}
	if d.cfg.S3Endpoint == "" {
		checks = []func(context.Context) []finding{d.directory, d.clock, d.memory, d.pages, d.proxy, d.manifest, d.gateway, d.files}
	}
	found := make([][]finding, len(checks))
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() { found[i] = check(ctx) })
	}
	wg.Wait()
	return slices.Concat(found...)
}

// directory examines the data directory, or the nearest existing directory above it.
func (d *doctor) directory(context.Context) []finding {
	dir, err := filepath.Abs(d.cfg.Data)
	if err != nil {
		return []finding{{fail, "directory", err.Error()}}
	}
	at := dir
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() || errors.Is(err, syscall.ENOTDIR) {
			return []finding{{fail, "directory", fmt.Sprintf("%s cannot be: a part of it is a file; choose another path (--data) or move the file away", dir)}}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return []finding{{fail, "directory", fmt.Sprintf("%s cannot be entered (%v); give the user that runs this the right to it", dir, err)}}
		}
		at = filepath.Dir(at)
	}
	rights, attributes := gateway.Probe(at)
	for _, bucket := range []string{d.cfg.ImageRoot.Bucket, d.cfg.CatalogRoot.Bucket} {
		b := filepath.Join(dir, bucket)
		if _, err := os.Stat(b); err == nil && rights == nil && attributes == nil {
			rights, attributes = gateway.Probe(b)
		}
	}
	found := []finding{d.rights(dir, at, rights)}
	switch {
	case attributes != nil:
		found = append(found, finding{fail, "attributes", attributes.Error()})
	case rights == nil:
		found = append(found, finding{good, "attributes", "the file system keeps extended attributes"})
	}
	for _, bucket := range []string{d.cfg.ImageRoot.Bucket, d.cfg.CatalogRoot.Bucket} {
		if set := gateway.Settings(dir, bucket); len(set) > 0 {
			found = append(found, finding{fail, "bucket", fmt.Sprintf("%s has settings that may give others access (%s); start imageroot again, which removes them", bucket, strings.Join(set, ", "))})
		}
	}
	return append(found, space(at)...)
}

// rights examines the rights on the data directory dir. at is dir, or the nearest existing
// directory above it, and err the error of probing that.
func (d *doctor) rights(dir, at string, err error) finding {
	if err != nil {
		return finding{fail, "directory", err.Error()}
	}
	var st unix.Stat_t
	if err := unix.Stat(at, &st); err == nil && os.Geteuid() == 0 && st.Uid != 0 {
		return finding{warn, "directory", fmt.Sprintf("%s belongs to user %d, and root may do anything; run the doctor as the user that runs imageroot", at, st.Uid)}
	}
	secrets := filepath.Join(dir, d.cfg.Secrets)
	if info, err := os.Stat(secrets); err == nil && info.Mode().Perm()&0o077 != 0 {
		return finding{warn, "directory", fmt.Sprintf("%s has passwords, and others can read it; chmod 600 %[1]s", secrets)}
	}
	if at != dir {
		return finding{good, "directory", fmt.Sprintf("%s will be made at the start, and can be", dir)}
	}
	return finding{good, "directory", dir + " can be written to"}
}

// space examines the free space and inodes of the file system of dir.
func space(dir string) []finding {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []finding{{warn, "space", fmt.Sprintf("the free space of %s is not known (%v); run df", dir, err)}}
	}
	free := gateway.Free(dir)
	is := fmt.Sprintf("%s of %s are free for images", size(free), size(int64(st.Blocks)*int64(st.Bsize)))
	found := []finding{{good, "space", is}}
	switch {
	case free <= 0:
		found[0] = finding{fail, "space", is + ": nothing can be put in; remove images, or move the data to a larger disk"}
	case free < littleSpace:
		found[0] = finding{warn, "space", is + ", less than an image may have; remove images, or move the data to a larger disk"}
	}
	switch left := st.Ffree; {
	case st.Files == 0: // the file system allocates inodes dynamically
	case left == 0:
		found = append(found, finding{fail, "files", "the file system has no inode left: nothing can be put in; remove files, or make it anew with more (mkfs.ext4 -N)"})
	case left < littleInodes:
		found = append(found, finding{warn, "files", fmt.Sprintf("the file system takes %d more files only; remove some, or make it anew with more (mkfs.ext4 -N)", left)})
	default:
		found = append(found, finding{good, "files", fmt.Sprintf("the file system takes %d more", left)})
	}
	return found
}

// size formats a number of bytes.
func size(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// pages examines the address of pages and API.
func (d *doctor) pages(ctx context.Context) []finding {
	taken, f := d.port(ctx, "pages", d.cfg.Listen, "--listen")
	if !taken {
		return []finding{f}
	}
	var v struct{ Version string }
	url := LocalURL(d.cfg.Listen, "127.0.0.1") // a machine may not resolve localhost
	if d.get(ctx, url+"/healthz", nil) != nil {
		return []finding{f}
	}
	if d.get(ctx, url+"/version", &v) != nil || v.Version == "" {
		v.Version = "of some version"
	}
	return []finding{{good, "pages", fmt.Sprintf("imageroot %s answers at %s", v.Version, url)}}
}

// proxy warns of a configured proxy, which imageroot does not use.
func (d *doctor) proxy(context.Context) []finding {
	if d.cfg.UnusedProxy == "" {
		return nil
	}
	return []finding{{warn, "proxy", d.cfg.UnusedProxy + UnusedProxy}}
}

// UnusedProxy is the warning of config.Config.UnusedProxy, to be appended to its value.
const UnusedProxy = " is set, and images are fetched from their URLs without a proxy, which could reach what sources may not; give this machine a direct way to them, or set IMAGEROOT_PROXY_URL"

// manifest examines the manifest that is subscribed to.
func (d *doctor) manifest(ctx context.Context) []finding {
	at := d.cfg.ManifestURL
	if at == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	data, err := d.cfg.Manifest(ctx)
	var m *manifest.Manifest
	if err == nil {
		m, err = manifest.Parse(data)
	}
	if err != nil {
		return []finding{{fail, "manifest", fmt.Sprintf("the one at %s is not in force (%s); correct it there, or IMAGEROOT_MANIFEST_URL", at, strings.ReplaceAll(err.Error(), "\n", ", "))}}
	}
	return []finding{{good, "manifest", fmt.Sprintf("the one at %s has %d images", at, len(m.Images))}}
}

// LocalURL returns the URL at which this machine reaches the listening address addr. Its
// host is self if addr names none.
func LocalURL(addr, self string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		addr = net.JoinHostPort(self, port)
	}
	return "http://" + addr
}

// get sends a GET request and decodes the JSON response, into out if that is not nil.
func (d *doctor) get(ctx context.Context, url string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	var any any
	if out == nil {
		out = &any
	}
	return json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(out)
}

// port examines whether addr can be listened on. taken reports that it is in use.
func (d *doctor) port(ctx context.Context, what, addr, flag string) (taken bool, _ finding) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		_ = ln.Close()
		return false, finding{good, what, addr + " can be listened on"}
	case errors.Is(err, syscall.EADDRINUSE):
		user := holder(d.host, addr)
		if user == "" {
			user = "another process (run the doctor as root to see which)"
		}
		return true, finding{fail, what, fmt.Sprintf("%s is in use by %s; stop that, or choose another address (%s)", addr, user, flag)}
	case errors.Is(err, fs.ErrPermission):
		return false, finding{fail, what, fmt.Sprintf("%s may not be listened on; choose a port above 1023 (%s)", addr, flag)}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return false, finding{fail, what, fmt.Sprintf("%s is not an address of this machine; choose another one (%s), or none: %s", addr, flag, addr[strings.LastIndex(addr, ":"):])}
	}
	return false, finding{fail, what, fmt.Sprintf("%s cannot be listened on (%v); choose another address (%s)", addr, err, flag)}
}

// gateway examines whether the gateway can listen on its address, or whether the gateway of
// a running imageroot works there.
func (d *doctor) gateway(ctx context.Context) []finding {
	taken, f := d.port(ctx, "s3", d.cfg.S3Listen, "--s3-listen")
	if !taken {
		return []finding{f}
	}
	access, secret := d.cfg.ProgramKey()
	if access == "" {
		return []finding{f}
	}
	client, err := s3store.Open(ctx, s3store.Config{
		Endpoint: LocalURL(d.cfg.S3Listen, "127.0.0.1"), Region: "us-east-1", AccessKey: access, SecretKey: secret, Direct: true,
	})
	if err != nil {
		return []finding{{fail, "s3", err.Error()}}
	}
	catalog := d.cfg.CatalogRoot
	if store.TryList(ctx, client.Root(catalog.Bucket, catalog.Prefix)) != nil {
		return []finding{f}
	}
	if err := probe.Check(ctx, client.Root(catalog.Bucket, catalog.Prefix)); err != nil {
		return []finding{{fail, "s3", fmt.Sprintf("the gateway of the imageroot that runs does not work (%v); restart it, and read its log", err)}}
	}
	return []finding{{good, "s3", "the gateway of the imageroot that runs here works"}}
}

// endpoint examines the S3 server that is used instead of the gateway.
func (d *doctor) endpoint(ctx context.Context) []finding {
	at := d.cfg.S3Endpoint
	client, err := s3store.Open(ctx, s3store.Config{Endpoint: at})
	if err != nil {
		return []finding{{fail, "s3", err.Error()}}
	}
	access, err := client.Access(ctx)
	if err != nil {
		return []finding{{fail, "s3", fmt.Sprintf("there are no credentials for %s; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", at)}}
	}
	skew, err := d.skew(ctx, access.Transport)
	if err != nil {
		return []finding{{fail, "s3", fmt.Sprintf("%s does not answer (%v); see that it runs, and that --s3-endpoint is right", at, s3store.Explain(at, err))}}
	}
	found := []finding{{good, "s3", at + " answers"}, clockFinding(skew)}
	usable := true
	for _, l := range []config.Location{d.cfg.ImageRoot, d.cfg.CatalogRoot} {
		f := finding{good, "bucket", l.String() + " can be listed"}
		switch err := store.TryList(ctx, client.Root(l.Bucket, l.Prefix)); {
		case err == nil:
		case errors.Is(err, store.ErrNoBucket):
			f = finding{warn, "bucket", fmt.Sprintf("%s is not there; the start makes it if it may, else: aws --endpoint-url %s s3 mb s3://%[1]s", l.Bucket, at)}
		case errors.Is(err, store.ErrDenied):
			f = finding{fail, "bucket", fmt.Sprintf("%s does not let these AWS_* credentials use %s; give others, or give these the rights to it (%v)", at, l, err)}
		default:
			f = finding{fail, "bucket", fmt.Sprintf("%s cannot be listed (%v); see what the server's log says", l, err)}
		}
		usable = usable && f.verdict == good
		found = append(found, f)
	}
	if d.cfg.SharedBucket() {
		found = append(found, finding{warn, "roots", fmt.Sprintf("both roots are in %s; give uploaders rights on %s only, since anyone who can read %s can sign in", d.cfg.ImageRoot.Bucket, d.cfg.ImageRoot, d.cfg.CatalogRoot)})
	}
	if !usable {
		return append(found, finding{warn, "server", "what it can do is not known before its buckets can be used; fix that, and run the doctor again"})
	}
	return append(found, d.able(ctx, client), d.events(ctx, client))
}

// able examines whether the server has the features that package store needs.
func (d *doctor) able(ctx context.Context, client *s3store.Client) finding {
	err := probe.Check(ctx, client.Root(d.cfg.CatalogRoot.Bucket, d.cfg.CatalogRoot.Prefix))
	if err == nil {
		err = writable(ctx, client.Root(d.cfg.ImageRoot.Bucket, d.cfg.ImageRoot.Prefix))
	}
	if err == nil {
		return finding{good, "server", "it does what imageroot needs (conditional writes, ranges, multipart uploads, listings)"}
	}
	do := "see what its log says, and that these AWS_* credentials may read, write and delete there"
	if _, ok := errors.AsType[*probe.LackError](err); ok {
		do = "use another one: docs/providers.md has a table"
	}
	return finding{fail, "server", fmt.Sprintf("%v; %s", err, do)}
}

// writable returns an error if images cannot be put into the root. It begins and aborts a
// multipart upload, which is never visible as an object.
func writable(ctx context.Context, images store.Root) error {
	const key = "imageroot-doctor"
	id, err := images.CreateUpload(ctx, key)
	if err != nil {
		return fmt.Errorf("images cannot be put into the image root: %w", err)
	}
	return images.AbortUpload(ctx, key, id)
}

// skew returns the time by which the server's clock is ahead of this machine's, or 0 if
// the server sends no Date.
func (d *doctor) skew(ctx context.Context, transport http.RoundTripper) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, d.cfg.S3Endpoint+"/", nil)
	if err != nil {
		return 0, err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	_ = res.Body.Close()
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return 0, nil // without a date, no skew is known
	}
	return date.Sub(d.now()), nil
}

func clockFinding(skew time.Duration) finding {
	// HTTP dates have whole seconds.
	switch off := skew.Abs().Round(time.Second); {
	case off > maxSkew:
		return finding{fail, "clock", fmt.Sprintf("it is %v off from the S3 server's, which therefore refuses requests; synchronise both: timedatectl set-ntp true", off)}
	case off > muchSkew:
		return finding{warn, "clock", fmt.Sprintf("it is %v off from the S3 server's; synchronise both: timedatectl set-ntp true", off)}
	}
	return finding{good, "clock", "it agrees with the S3 server's"}
}

// files examines whether the gateway can watch its directory for dropped files (inotify).
func (d *doctor) files(context.Context) []finding {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return []finding{{warn, "events", fmt.Sprintf("files that are dropped into the directory are found every 15 s only, since the system sends no notifications (%v); raise fs.inotify.max_user_instances with sysctl", err)}}
	}
	_ = unix.Close(fd)
	return []finding{{good, "events", "the gateway inside reports its objects, and the system files in its directory"}}
}

// events examines the source of object events in another S3 server.
func (d *doctor) events(ctx context.Context, client *s3store.Client) finding {
	switch d.cfg.Events {
	case config.EventsWebhook:
		return finding{good, "events", "the server must POST them to /hooks/minio, with IMAGEROOT_WEBHOOK_TOKEN; whether it is configured to (infra/minio/setup.sh does so) is not visible from here: mc event list"}
	case config.EventsPoll, config.EventsOff:
		return finding{good, "events", fmt.Sprintf("none: the image root is listed every %v (IMAGEROOT_EVENTS=%s)", d.cfg.Poll, d.cfg.Events)}
	}
	if err := d.listens(ctx, client); err != nil {
		return finding{warn, "events", fmt.Sprintf("none come from the server's event stream (%v), and the image root is listed every %v; where the server has a webhook, use that (IMAGEROOT_WEBHOOK_TOKEN)", err, d.cfg.Poll)}
	}
	return finding{good, "events", "the server has an event stream"}
}

// listens returns nil if the server has an event stream, and the reason otherwise.
func (d *doctor) listens(ctx context.Context, client *s3store.Client) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var why error
	up := false
	l := listen.Listener{
		Endpoint: d.cfg.S3Endpoint, Bucket: d.cfg.ImageRoot.Bucket, Prefix: d.cfg.ImageRoot.Prefix, Silence: d.patience,
		Access: func(ctx context.Context) (listen.Access, error) {
			a, err := client.Access(ctx)
			return listen.Access(a), err
		},
		Event: func(objectevent.Event) {},
		Up:    func() { up = true; stop() },
		Down:  func(err error) { why = err; stop() },
	}
	err := l.Run(ctx)
	if up {
		return nil
	}
	return cmp.Or(why, err)
}
