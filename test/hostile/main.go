// Command hostile starts the real binary with GOMEMLIMIT=100MiB and opens
// thousands of hostile connections to it: incomplete request heads, bodies that
// never end, answers that are never read. It tries one kind after the other,
// from one address and from many. Meanwhile a client at another address must be
// served, and the resident set must stay below a bound.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/test/runner"
)

const (
	// mostMemory is the limit of the resident set, in MiB.
	mostMemory = 150
	// patience is the longest time that the good client waits for an answer.
	patience = 20 * time.Second
	// rows is the number of images in the listing.
	rows = 9000

	accessKey, secretKey = "hostile-access", "hostile-secret-key"
	token                = "hostile-token-0123456789"
	plain, packed        = "plain.img", "packed.img.gz"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

// A kind is one kind of hostile client.
type kind struct {
	name string
	s3   bool
	nbd  bool
	// send is the beginning of a request.
	send string
	// Then drip is sent, and reads bytes are read, each second.
	drip  string
	reads int
	// unpacks has the good client request a disk, too, and try again if the
	// answer asks for it.
	unpacks bool
	// addresses is the number of addresses of the first attempt, before that
	// from many; 0 is one.
	addresses int
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// kinds returns all kinds; object is the path of a presigned GET.
func kinds(object string) []kind {
	half := "GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", 12<<10)
	body := func(path, contentType string, length int) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", path, contentType, length)
	}
	fields := "GET /images HTTP/1.1\r\n" + strings.Repeat("a:b\r\n", 1300)
	put := "PUT /images/half.img HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + strings.Repeat("x", 64<<10)
	return []kind{
		{name: "half heads", send: half, drip: "x"},
		{name: "half heads of short fields", send: fields, drip: "x"},
		{name: "unfinished log-ins", send: body("/ui/login", "application/x-www-form-urlencoded", 8192) + strings.Repeat("x", 8000), drip: "x"},
		{name: "log-ins of a megabyte", send: body("/ui/login", "application/json", 1<<20) + strings.Repeat("x", 64<<10), drip: "x"},
		{name: "unread images", send: get("/images/" + plain)},
		{name: "slow readers of images", send: get("/images/" + plain), reads: 100},
		{name: "unread listings", send: get("/images")},
		{name: "unread manifests", send: get("/catalog.toml")},
		{name: "unread disks", send: get("/raw/" + packed), unpacks: true},
		{name: "slow readers of disks", send: get("/raw/" + packed), reads: 100, unpacks: true},
		{name: "disks at 150 kB/s", send: strings.Replace(get("/raw/"+packed), "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1), reads: 150 << 10, unpacks: true, addresses: 3},
		{name: "uploads without credentials", send: put, drip: "x"},
		{name: "S3: half heads", s3: true, send: half, drip: "x"},
		{name: "S3: half heads of short fields", s3: true, send: fields, drip: "x"},
		{name: "S3: forms without a line's end", s3: true, send: body("/images", "multipart/form-data; boundary=x", 1<<30) + strings.Repeat("A", 64<<10), drip: strings.Repeat("A", 1<<10)},
		{name: "S3: unread objects", s3: true, send: get(object)},
		{name: "S3: half bodies", s3: true, send: put, drip: "x"},
		{name: "S3: 1,600 query parameters", s3: true, send: get(query(1600)), drip: strings.Repeat(get(query(1600)), 4), reads: 400},
		{name: "NBD: half handshakes", nbd: true, send: "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x63\xff\xff\xff\xff", drip: strings.Repeat("x", 1<<10)},
		{name: "NBD: unread lists", nbd: true, send: "\x00\x00\x00\x03" + strings.Repeat("IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00", 100)},
		{name: "NBD: unread disks", nbd: true, send: exportOf(plain) + strings.Repeat(ofDisk(0), 40)},
		{name: "NBD: slow readers of disks", nbd: true, send: exportOf(plain) + strings.Repeat(ofDisk(0), 40), reads: 100},
		{name: "NBD: half writes", nbd: true, send: exportOf("cow/"+plain) + ofDisk(1) + strings.Repeat("x", 64<<10), drip: "x"},
		{name: "S3: 90 long query parameters", s3: true, send: get(query(90)), drip: strings.Repeat(get(query(90)), 4), reads: 400},
	}
}

// exportOf returns the beginning of a session with an NBD export.
func exportOf(name string) string {
	return "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00" + string(rune(len(name))) + name
}

// ofDisk returns a request for the first 32 MiB of an NBD export: 0 reads and 1 writes.
func ofDisk(command byte) string {
	return "\x25\x60\x95\x13\x00\x00\x00" + string(rune(command)) + strings.Repeat("\x00", 16) + "\x02\x00\x00\x00"
}

// query returns the path of a presigned GET with a wrong signature and n
// parameters, in 8 KiB with the rest of the head.
func query(n int) string {
	q := "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + accessKey + "/" + time.Now().UTC().Format("20060102") + "/us-east-1/s3/aws4_request&X-Amz-Date=" +
		time.Now().UTC().Format("20060102T150405Z") + "&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature=" + strings.Repeat("0", 64)
	return "/images/" + plain + "?" + q + strings.Repeat("&"+strings.Repeat("a", 6500/n-2)+"=", n-6)
}

type world struct {
	out     io.Writer
	process *runner.Process
	clients int
	hold    time.Duration
	object  string // URL of a presigned GET
	good    *http.Client
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	w := &world{out: out, good: clientAt("127.0.0.2")}
	flags := flag.NewFlagSet("hostile", flag.ContinueOnError)
	flags.IntVar(&w.clients, "clients", 5000, "how many hostile clients there are")
	flags.DurationVar(&w.hold, "hold", 6*time.Second, "how long those of each kind hold on")
	only := flags.String("only", "", "only kinds whose name has this in it")
	limit := flags.Duration("limit", 10*time.Minute, "how long all of it may take")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "imageroot-hostile-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := w.start(ctx, dir); err != nil {
		return err
	}
	defer func() {
		if stopErr := w.process.Stop(15 * time.Second); err == nil {
			err = stopErr
		}
	}()
	idle, err := runner.Memory(w.process.PID(), "VmRSS")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "hostile: %d clients of each kind; %.0f MiB without any\n", w.clients, idle)
	var failed []error
	for _, k := range kinds(strings.TrimPrefix(w.object, w.process.S3)) {
		if !strings.Contains(k.name, *only) {
			continue
		}
		for _, addresses := range []int{max(k.addresses, 1), w.clients} {
			if err := w.try(ctx, k, addresses); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", k.name, err))
			}
		}
	}
	return errors.Join(append(failed, ctx.Err())...)
}

// start builds and starts the binary and stores the content that it serves.
func (w *world) start(ctx context.Context, dir string) error {
	binary, err := runner.Build(ctx, dir)
	if err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	w.process, err = runner.Start(ctx, runner.Options{
		Binary: binary, Dir: dir, Args: []string{"--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--nbd-listen", "127.0.0.1:0", "--data", data},
		Env: []string{
			"GOMEMLIMIT=100MiB", "HOME=" + dir, "TMPDIR=" + dir, "IMAGEROOT_TOKEN=" + token,
			"IMAGEROOT_S3_ACCESS_KEY=" + accessKey, "IMAGEROOT_S3_SECRET_KEY=" + secretKey,
		},
	})
	if err != nil {
		return err
	}
	client, err := s3store.Open(ctx, s3store.Config{Endpoint: w.process.S3, Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		return err
	}
	if w.object, err = client.Root("images", "").PresignGet(ctx, plain, store.Attachment(plain)); err != nil {
		return err
	}
	content := make([]byte, 64<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content[:32<<20]) // never fails
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	_, _ = z.Write(content) // to memory: never fails
	_ = z.Close()
	var manifest strings.Builder
	manifest.WriteString("version = 1\n")
	for n := range rows {
		fmt.Fprintf(&manifest, "[[images]]\nname = \"some-image-%d.img\"\nsrc = \"https://images.example.org/%d.img\"\n", n, n)
	}
	for path, body := range map[string][]byte{"/images/" + plain: content, "/images/" + packed: gz.Bytes(), "/catalog.toml": []byte(manifest.String())} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, w.process.Pages+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if err := answer(http.DefaultClient, req); err != nil {
			return err
		}
	}
	return nil
}

// clientAt returns a client that connects from an address, with a new
// connection for each request.
func clientAt(addr string) *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	return &http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
}

// answer sends a request and reads the answer, which must be a success.
func answer(c *http.Client, req *http.Request) error {
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return &statusError{res.Request.URL.Path, res.StatusCode}
	}
	return nil
}

type statusError struct {
	path   string
	status int
}

func (e *statusError) Error() string { return fmt.Sprintf("%s answers %d", e.path, e.status) }

// try opens the connections of one kind from that many addresses, holds them,
// and closes them.
func (w *world) try(ctx context.Context, k kind, addresses int) error {
	target := w.process.Pages
	if k.s3 {
		target = w.process.S3
	}
	target = strings.TrimPrefix(target, "http://")
	if k.nbd {
		_, target, _ = strings.Cut(w.process.Stdout(), "nbd://")
		target, _, _ = strings.Cut(target, "\n")
	}
	hostile, leave := context.WithCancel(ctx)
	defer leave()
	var wg sync.WaitGroup
	var opened atomic.Int64
	for n := range w.clients {
		from := fmt.Sprintf("127.1.%d.%d", n%addresses/250, n%addresses%250+1)
		wg.Go(func() {
			// They are opened within two seconds.
			for pause := time.Duration(n) * 2 * time.Second / time.Duration(w.clients); rest(hostile, pause); pause = 5 * time.Second {
				k.attack(hostile, from, target, &opened)
			}
		})
	}
	began, most, served := time.Now(), 0.0, 0
	used, _ := processorTime(w.process.PID())
	worst := time.Duration(0)
	var err error
	for err == nil && time.Since(began) < w.hold {
		asked := time.Now()
		err = w.ask(ctx, k)
		worst = max(worst, time.Since(asked))
		served++
		now, memoryErr := runner.Memory(w.process.PID(), "VmRSS")
		if memoryErr != nil {
			return errors.Join(err, memoryErr, fmt.Errorf("it said: %s", tail(w.process.Log())))
		}
		most = max(most, now)
	}
	peak, memoryErr := runner.Memory(w.process.PID(), "VmHWM")
	after, timeErr := processorTime(w.process.PID())
	took := time.Since(began)
	leave()
	wg.Wait()
	where := fmt.Sprintf("addresses: %d", addresses)
	fmt.Fprintf(w.out, "%-32s %-15s %4.0f MiB (peak so far %.0f), %6d connections, %.1f processors, good client asked %d times, slowest %v\n",
		k.name, where, most, peak, opened.Load(), (after-used).Seconds()/took.Seconds(), served, worst.Round(time.Millisecond))
	if most > mostMemory {
		err = errors.Join(err, fmt.Errorf("from %s: %.0f MiB are more than %d", where, most, mostMemory))
	}
	return errors.Join(err, memoryErr, timeErr)
}

// processorTime returns the processor time that a process has used.
func processorTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// proc_pid_stat(5): the name may have spaces. Times are in hundredths of a
	// second.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, userErr := strconv.Atoi(fields[11])
	system, systemErr := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(userErr, systemErr)
}

// ask sends the requests of the good client.
func (w *world) ask(ctx context.Context, k kind) error {
	urls := []string{w.process.Pages + "/readyz", w.process.Pages + "/images", w.process.Pages + "/images/" + plain, w.object}
	if k.unpacks {
		urls = append(urls, w.process.Pages+"/raw/"+packed)
	}
	for _, url := range urls {
		deadline := time.Now().Add(patience)
		for {
			one, cancel := context.WithDeadline(ctx, deadline)
			req, err := http.NewRequestWithContext(one, http.MethodGet, url, nil)
			if err == nil {
				req.Header.Set("Range", "bytes=0-1048575")
				err = answer(w.good, req)
			}
			cancel()
			if err == nil {
				break
			}
			// As curl --retry does: if there are more clients than places, a
			// connection may be closed before it is answered.
			status, ok := errors.AsType[*statusError](err)
			again := errors.Is(err, syscall.ECONNRESET) || k.unpacks && ok && status.status == http.StatusServiceUnavailable
			if !again || !rest(ctx, 100*time.Millisecond) || time.Now().After(deadline) {
				return fmt.Errorf("the good client was not served: %w", err)
			}
		}
	}
	return nil
}

// attack is one connection, until the server or ctx ends it.
func (k kind) attack(ctx context.Context, from, to string, opened *atomic.Int64) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second, Control: smallWindow}
	conn, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer conn.Close()
	opened.Add(1)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, k.send); err != nil {
		return
	}
	for rest(ctx, time.Second) {
		if k.reads > 0 {
			if _, err := io.CopyN(io.Discard, conn, int64(k.reads)); err != nil {
				return
			}
		}
		if k.drip != "" {
			if _, err := io.WriteString(conn, k.drip); err != nil {
				return
			}
		}
	}
}

// smallWindow makes the kernel buffer little of what a client does not read.
func smallWindow(_, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10)
	})
	return errors.Join(controlErr, err)
}

// rest waits for d, and returns false if ctx ends first.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func tail(s string) string { return s[max(0, len(s)-2000):] }
