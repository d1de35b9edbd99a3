package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/layout"
	"imageroot/shared/store/s3store"
	"imageroot/test/need"
)

const (
	doctorKey    = "AKIADOCTOR"
	doctorSecret = "secret-of-the-doctor"
)

// patient returns a doctor of a machine without faults.
func patient(t *testing.T) *doctor {
	t.Helper()
	return &doctor{
		cfg: Config{Config: config.Config{
			ImageRoot: config.Location{Bucket: "images"}, CatalogRoot: config.Location{Bucket: "catalog"},
			Listen: "127.0.0.1:0", S3Listen: "127.0.0.1:0", Data: t.TempDir(),
		}, Secrets: ".imageroot/credentials.json", ProgramKey: func() (string, string) { return "", "" }, Events: config.EventsListen, Poll: 15 * time.Second},
		now: time.Now, synced: func() (bool, error) { return true, nil },
		host: fstest.MapFS{}, goLimit: math.MaxInt64, patience: time.Minute,
	}
}

// expect checks that exactly one row is about what, with that verdict and words. A
// row that is not good must have a remedy, and each row is one line.
func expect(t *testing.T, found []finding, what string, v verdict, words ...string) {
	t.Helper()
	n := 0
	for _, f := range found {
		if strings.Contains(f.is, "\n") || f.verdict != good && !strings.Contains(f.is, ";") {
			t.Errorf("%+v does not say in one line what to do", f)
		}
		if f.what != what {
			continue
		}
		n++
		if f.verdict != v {
			t.Errorf("%+v, want %s", f, v)
		}
		for _, w := range words {
			if !strings.Contains(f.is, w) {
				t.Errorf("%+v does not mention %q", f, w)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d rows of %s in %+v", n, what, found)
	}
}

func TestDoctorDirectory(t *testing.T) {
	examine := func(dir string) []finding {
		d := patient(t)
		d.cfg.Data = dir
		return d.directory(t.Context())
	}
	dir := t.TempDir()
	expect(t, examine(dir), "directory", good, dir)
	expect(t, examine(dir), "attributes", good)
	if found := examine(filepath.Join(dir, "not/yet")); true {
		expect(t, found, "directory", good, "will be made")
		expect(t, found, "space", good, "GiB")
		expect(t, found, "files", good)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v (%v)", left, err)
	}

	file := filepath.Join(dir, "file")
	secrets := filepath.Join(dir, patient(t).cfg.Secrets)
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Mkdir(filepath.Dir(secrets), 0o700), os.WriteFile(secrets, []byte("{}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	expect(t, examine(file), "directory", fail, "--data")
	expect(t, examine(filepath.Join(file, "below")), "directory", fail, "--data")
	expect(t, examine(dir), "directory", warn, "chmod 600 "+secrets)
	if err := os.Chmod(secrets, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, examine(dir), "directory", good)
	images := filepath.Join(dir, "images")
	if err := errors.Join(os.Mkdir(images, 0o755), xattr.Set(images, "user.policy", []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	d := patient(t)
	d.cfg.Data, d.cfg.ImageRoot.Bucket = dir, "images"
	expect(t, d.directory(t.Context()), "bucket", fail, "policy")

	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		expect(t, examine(dir), "directory", warn, "65534")
	}
	expect(t, examine("/proc/imageroot"), "directory", fail, "/proc")
}

func TestDeepDoctorFileSystems(t *testing.T) {
	examine := func(dir string) []finding {
		d := patient(t)
		d.cfg.Data = dir
		return d.directory(t.Context())
	}
	expect(t, examine(need.Mount(t, "ramfs", "")), "attributes", fail, "extended attributes", "ext4")
	small := examine(need.Mount(t, "tmpfs", "size=1m"))
	expect(t, small, "space", fail, "larger disk")
	expect(t, small, "attributes", good)
	expect(t, examine(need.Mount(t, "tmpfs", "size=1g")), "space", warn, "larger disk")

	few := need.Mount(t, "tmpfs", "size=8g,nr_inodes=20")
	expect(t, examine(few), "files", warn, "mkfs")
	for i := 0; ; i++ {
		if err := os.WriteFile(filepath.Join(few, fmt.Sprint(i)), nil, 0o644); err != nil {
			break
		}
	}
	found := examine(few)
	expect(t, found, "files", fail, "inode")
	expect(t, found, "directory", fail, "full")

	// A bucket on a file system of its own is examined too.
	d := patient(t)
	bucket := filepath.Join(d.cfg.Data, "images")
	if err := os.Mkdir(bucket, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", bucket, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(bucket, unix.MNT_DETACH) }()
	expect(t, d.directory(t.Context()), "attributes", fail, bucket)
}

func TestDoctorClock(t *testing.T) {
	d := patient(t)
	d.floor = time.Now().Add(-time.Hour)
	expect(t, d.clock(t.Context()), "clock", good, "synchronised")
	d.synced = func() (bool, error) { return false, nil }
	expect(t, d.clock(t.Context()), "clock", warn, "timedatectl")
	d.synced = func() (bool, error) { return false, unix.EPERM }
	expect(t, d.clock(t.Context()), "clock", good, "does not say")
	d.now = func() time.Time { return time.Unix(0, 0) }
	expect(t, d.clock(t.Context()), "clock", fail, "1970", "timedatectl")

	for off, want := range map[time.Duration]verdict{
		0: good, -2 * time.Second: good, 30 * time.Second: warn, -2 * time.Minute: warn, 16 * time.Minute: fail, -24 * time.Hour: fail,
	} {
		expect(t, []finding{clockFinding(off)}, "clock", want)
	}
	if newDoctor(d.cfg).floor.After(time.Now()) {
		t.Error("this program was built in the future")
	}
}

func TestDoctorMemory(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		total   string // MiB
		cgroup  string // memory.max of the group, of the one above
		above   string
		limit   int64
		want    verdict
		mention string
	}{
		{"8000", "", "", math.MaxInt64, good, "7.8 GiB"},
		{"8000", "max", "max", math.MaxInt64, good, "no limit"},
		{"512", "", "", math.MaxInt64, warn, "GOMEMLIMIT=100MiB"},
		{"512", "", "", 100 * mib, good, "512 MiB"},
		{"8000", "400", "max", math.MaxInt64, warn, "400 MiB"},
		{"8000", "400", "max", 100 * mib, good, "400 MiB"},
		{"8000", "max", "400", 100 * mib, good, "400 MiB"},
		{"8000", "600", "400", 390 * mib, warn, "400 MiB"},
		{"8000", "400", "max", 400 * mib, fail, "kill"},
		{"8000", "max", "max", 9000 * mib, fail, "kill"},
		{"8000", "", "", 32 * mib, warn, "64 MiB"},
		{"", "", "", math.MaxInt64, good, "does not say"},
	} {
		d := patient(t)
		host := fstest.MapFS{}
		put := func(path, text string) { host[path] = &fstest.MapFile{Data: []byte(text)} }
		if tt.total != "" {
			var n int64
			_, _ = fmt.Sscan(tt.total, &n)
			put("proc/meminfo", fmt.Sprintf("MemFree: 12 kB\nMemTotal:   %d kB\n", n<<10))
		}
		if tt.cgroup != "" {
			put("proc/self/cgroup", "0::/system.slice/imageroot.service\n")
			for path, max := range map[string]string{"sys/fs/cgroup/system.slice/imageroot.service": tt.cgroup, "sys/fs/cgroup/system.slice": tt.above} {
				var n int64
				if _, err := fmt.Sscan(max, &n); err == nil {
					max = fmt.Sprint(n * mib)
				}
				put(path+"/memory.max", max+"\n")
			}
		}
		d.host, d.goLimit = host, tt.limit
		t.Logf("%+v", tt)
		expect(t, d.memory(t.Context()), "memory", tt.want, tt.mention)
	}
	// The values of the real machine can be read.
	if d := newDoctor(Config{}); d.total() == math.MaxInt64 || d.total() < 1<<27 {
		t.Errorf("this machine has %d bytes", d.total())
	}
}

func TestDoctorPorts(t *testing.T) {
	d := patient(t)
	d.host = os.DirFS("/")
	expect(t, d.pages(t.Context()), "pages", good)
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		d.cfg.Listen, d.cfg.S3Listen = ln.Addr().String(), ln.Addr().String()
		d.patience = 100 * time.Millisecond // no process accepts connections
		me := fmt.Sprintf("(process %d)", os.Getpid())
		expect(t, d.pages(t.Context()), "pages", fail, d.cfg.Listen, me, "--listen")
		expect(t, d.gateway(t.Context()), "s3", fail, d.cfg.S3Listen, me, "--s3-listen")
		d.host = fstest.MapFS{} // the process is another user's
		expect(t, d.pages(t.Context()), "pages", fail, "another process")
		d.host = os.DirFS("/")
	}
	d = patient(t)
	d.cfg.Listen = "203.0.113.1:8080" // reserved for documentation: no machine has it (RFC 5737)
	expect(t, d.pages(t.Context()), "pages", fail, "not an address of this machine", ":8080")

	for addr, want := range map[string]string{
		":8080": "http://127.0.0.1:8080", "0.0.0.0:1": "http://127.0.0.1:1", "[::]:1": "http://127.0.0.1:1",
		"[::1]:1": "http://[::1]:1", "10.0.0.1:1": "http://10.0.0.1:1", "pi:1": "http://pi:1",
	} {
		if got := LocalURL(addr, "127.0.0.1"); got != want {
			t.Errorf("%s is at %s, want %s", addr, got, want)
		}
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	d.cfg.Listen = other.Listener.Addr().String()
	expect(t, d.pages(t.Context()), "pages", fail, "in use")
}

// openGateway starts an S3 server with both buckets.
func openGateway(t *testing.T, dir string) *gateway.Gateway {
	t.Helper()
	g, err := gateway.Start(t.Context(), gateway.Config{Listen: "127.0.0.1:0", Dir: dir, AccessKey: doctorKey, SecretKey: doctorSecret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func makeBuckets(t *testing.T, g *gateway.Gateway, buckets ...string) *s3store.Client {
	t.Helper()
	c, err := s3store.Open(t.Context(), s3store.Config{Endpoint: "http://" + g.Addr(), Region: "us-east-1", AccessKey: doctorKey, SecretKey: doctorSecret})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range buckets {
		if err := c.EnsureBucket(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func untouched(t *testing.T, c *s3store.Client) {
	t.Helper()
	for info, err := range c.Root("catalog", "").List(t.Context(), layout.ProbePrefix, "") {
		t.Errorf("it left %q (%v)", info.Key, err)
	}
}

func TestDoctorGateway(t *testing.T) {
	d := patient(t)
	expect(t, d.gateway(t.Context()), "s3", good, "can be listened on")
	g := openGateway(t, d.cfg.Data)
	client := makeBuckets(t, g, "images", "catalog")
	d.cfg.S3Listen = g.Addr()
	expect(t, d.gateway(t.Context()), "s3", fail, "in use")
	secret := doctorSecret
	d.cfg.ProgramKey = func() (string, string) { return doctorKey, secret }
	expect(t, d.gateway(t.Context()), "s3", good, "works")
	untouched(t, client)
	secret = "that of another one"
	expect(t, d.gateway(t.Context()), "s3", fail, "in use")
	expect(t, d.files(t.Context()), "events", good)
}

func TestDoctorEndpoint(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_REGION", "us-east-1")
	sign := func(access, secret string) {
		t.Setenv("AWS_ACCESS_KEY_ID", access)
		t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	}
	sign(doctorKey, doctorSecret)
	g := openGateway(t, t.TempDir())
	d := patient(t)
	examine := func(endpoint string) []finding {
		d.cfg.S3Endpoint = endpoint
		return d.endpoint(t.Context())
	}

	found := examine("http://" + g.Addr())
	expect(t, found, "s3", good)
	expect(t, found, "clock", good)
	expect(t, found, "server", warn)
	for _, f := range found {
		if f.what == "bucket" && (f.verdict != warn || !strings.Contains(f.is, "s3 mb s3://")) {
			t.Errorf("a bucket that is not there: %+v", f)
		}
	}
	client := makeBuckets(t, g, "images", "catalog")
	d.cfg.Events = config.EventsPoll
	found = examine("http://" + g.Addr())
	expect(t, found, "server", good)
	expect(t, found, "events", good, "15s")
	if n := slices.IndexFunc(found, func(f finding) bool { return f.verdict != good }); n >= 0 {
		t.Errorf("of a good server: %+v", found[n])
	}
	untouched(t, client)
	d.cfg.Events = config.EventsWebhook
	expect(t, examine("http://"+g.Addr()), "events", good, "/hooks/minio")
	d.cfg.Events = config.EventsListen
	expect(t, examine("http://"+g.Addr()), "events", warn, "IMAGEROOT_WEBHOOK_TOKEN")
	apart := d.cfg.CatalogRoot
	d.cfg.CatalogRoot = config.Location{Bucket: "images", Prefix: "catalog/"}
	expect(t, examine("http://"+g.Addr()), "roots", warn, "s3://images/catalog/")
	d.cfg.CatalogRoot = apart

	sign(doctorKey, "another secret")
	found = examine("http://" + g.Addr())
	expect(t, found, "server", warn)
	for _, f := range found {
		if f.what == "bucket" && (f.verdict != fail || !strings.Contains(f.is, "AWS_*")) {
			t.Errorf("a bucket with wrong credentials: %+v", f)
		}
	}
	sign("", "")
	expect(t, examine("http://"+g.Addr()), "s3", fail, "AWS_ACCESS_KEY_ID")

	sign(doctorKey, doctorSecret)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	expect(t, examine("http://"+ln.Addr().String()), "s3", fail, "--s3-endpoint")
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	expect(t, examine(secure.URL), "s3", fail, "AWS_CA_BUNDLE")
}

// listing is the answer to a listing of an empty server.
const listing = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>x</Name><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>`

func TestDoctorServers(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", doctorKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", doctorSecret)
	t.Setenv("HOME", t.TempDir())
	var date func() time.Time
	status, stream := http.StatusBadRequest, false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if date != nil {
			w.Header().Set("Date", date().UTC().Format(http.TimeFormat))
		}
		switch {
		case r.Method == http.MethodGet && r.URL.Query().Has("events"):
			if !stream {
				w.WriteHeader(http.StatusNotImplemented)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case r.Method == http.MethodGet && r.URL.Query().Has("list-type"):
			_, _ = io.WriteString(w, listing)
		default:
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>InvalidArgument</Code><Message>unheard of</Message></Error>`)
		}
	}))
	defer s.Close()
	d := patient(t)
	d.cfg.S3Endpoint = s.URL
	expect(t, d.endpoint(t.Context()), "server", fail, "conditional", "docs/providers.md")
	status = http.StatusForbidden
	expect(t, d.endpoint(t.Context()), "server", fail, "may read, write and delete")
	stream = true
	expect(t, d.endpoint(t.Context()), "events", good, "stream")
	for off, want := range map[time.Duration]verdict{time.Hour: fail, -time.Minute: warn} {
		date = func() time.Time { return time.Now().Add(off) }
		expect(t, d.endpoint(t.Context()), "clock", want, "timedatectl")
	}
}

func TestDoctorManifest(t *testing.T) {
	d := patient(t)
	if found := d.manifest(t.Context()); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	d.cfg.ManifestURL = "https://publisher.example/catalog.toml"
	for _, tt := range []struct {
		text string
		err  error
		v    verdict
		word string
	}{
		{"version = 1\n", nil, good, "0 images"},
		{"version = 2\n", nil, fail, "version"},
		{"", errors.New("it does not answer"), fail, "it does not answer"},
	} {
		d.cfg.Manifest = func(context.Context) ([]byte, error) { return []byte(tt.text), tt.err }
		expect(t, d.manifest(t.Context()), "manifest", tt.v, d.cfg.ManifestURL, tt.word)
	}
}
