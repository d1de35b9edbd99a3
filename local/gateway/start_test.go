package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/store"
	"imageroot/test/need"
	"imageroot/test/runner"
)

func TestStartRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "x")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for _, test := range []struct {
		name string
		edit func(*gateway.Config)
		want []string
	}{
		{"address in use", func(c *gateway.Config) { c.Listen = taken }, []string{taken, "in use"}},
		{"no port", func(c *gateway.Config) { c.Listen = "localhost" }, []string{"localhost", "HOST:PORT"}},
		{"data is a file", func(c *gateway.Config) { c.Dir = file }, []string{file, "no directory"}},
		{"data is below a file", func(c *gateway.Config) { c.Dir = filepath.Join(file, "data") }, []string{file, "no directory"}},
		{"no data", func(c *gateway.Config) { c.Dir = "" }, []string{"data directory"}},
		{"no keys", func(c *gateway.Config) { c.SecretKey = "" }, []string{"secret key"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(t.TempDir())
			test.edit(&cfg)
			g, err := gateway.Start(t.Context(), cfg)
			if err == nil {
				g.Close()
				t.Fatal("it started")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not name %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
		})
	}
	// A refused start leaves nothing that prevents the next.
	start(t, t.TempDir())
}

func TestStartRefusesDirectoryWithoutRights(t *testing.T) {
	dir := t.TempDir()
	images := mkdir(t, dir, "images")
	if err := os.Chmod(images, 0o500); err != nil {
		t.Fatal(err)
	}
	said := startRefused(t, dir)
	if !strings.Contains(said, images) || !strings.Contains(said, "permission denied") {
		t.Errorf("%q does not name %s", said, images)
	}
}

// startRefused starts a gateway as a user without root's rights, and returns the
// reason that it did not start.
func startRefused(t *testing.T, dir string) string {
	t.Helper()
	binary := os.Args[0]
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		const nobody = 65534
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		// Only root can enter the directory in which go test builds.
		data, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		binary = filepath.Join(t.TempDir(), "gateway.test")
		if err := os.WriteFile(binary, data, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // of all this test's directories
			t.Fatal(err)
		}
		err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, nobody, nobody))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); !exited {
		t.Fatalf("it should have ended with an error: %v: %s", err, out)
	}
	return string(out)
}

func TestDeepStartRefusesFileSystemWithoutAttributes(t *testing.T) {
	dir := need.Mount(t, "ramfs", "")
	if g, err := gateway.Start(t.Context(), config(dir)); err == nil {
		g.Close()
		t.Error("it started")
	} else if !strings.Contains(err.Error(), "extended attributes") || !strings.Contains(err.Error(), dir) {
		t.Errorf("%q", err)
	}
	if left := debris(t, dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestOneGatewayAProcess(t *testing.T) {
	g := start(t, t.TempDir())
	if second, err := gateway.Start(t.Context(), config(t.TempDir())); err == nil {
		second.Close()
		t.Error("a second one started")
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, t.TempDir())
}

func TestRelativeDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	g := start(t, "data")
	if now, err := os.Getwd(); err != nil || now != before {
		t.Fatalf("the working directory is %s (%v), was %s", now, err, before)
	}
	r := root(t, g.Endpoint(), "images")
	put(t, r, "dir/a.img", []byte("a"))
	t.Chdir(t.TempDir())
	if data, _ := get(t, r, "dir/a.img"); string(data) != "a" {
		t.Errorf("read %q", data)
	}
	if data, err := os.ReadFile(filepath.Join(before, "data/images/dir/a.img")); err != nil || string(data) != "a" {
		t.Errorf("the file holds %q (%v)", data, err)
	}
}

func TestAddresses(t *testing.T) {
	g := start(t, t.TempDir(), func(c *gateway.Config) { c.Listen = ":0" })
	_, port, err := net.SplitHostPort(g.Addr())
	if err != nil || port == "0" {
		t.Fatalf("Addr is %s (%v)", g.Addr(), err)
	}
	root(t, "http://127.0.0.1:"+port, "images")
}

// TestQuiet runs a gateway in its own process and sends valid and invalid requests.
// The gateway must print nothing and log no secret.
func TestQuiet(t *testing.T) {
	if os.Getenv("GATEWAY_TEST_QUIET") == "1" {
		quietChild(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestQuiet$")
	cmd.Env = append(os.Environ(), "GATEWAY_TEST_QUIET=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	if got := strings.TrimSuffix(string(out), "PASS\n"); got != "" {
		t.Errorf("printed %q", got)
	}
	if stderr.Len() > 0 {
		t.Errorf("printed to standard error %q", stderr.String())
	}
}

func quietChild(t *testing.T) {
	var logged runner.Buffer
	g := start(t, t.TempDir(), func(c *gateway.Config) {
		c.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	r := root(t, g.Endpoint(), "images")
	put(t, r, "a.img", []byte("a"))
	_, _, _ = r.Get(t.Context(), "none.img", store.All, "")
	cutUpload(t, g.Endpoint(), "cut.img", 1<<20, 100_000)
	for _, request := range []string{"nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "BREW / HTTP/1.1\r\nHost: x\r\n\r\n", "PUT /images/x HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n"} {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if strings.Contains(logged.String(), secretKey) {
		t.Errorf("logged the secret key: %s", logged.String())
	}
}

// TestBucketMadeByHand serves a directory of images that was created before the
// first start, and one created while the gateway runs.
func TestBucketMadeByHand(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "images")
	write(t, filepath.Join(dir, "images", "old.img"), "old")
	mkdir(t, dir, ".imageroot")
	write(t, filepath.Join(dir, ".imageroot", "password"), "secret")
	write(t, filepath.Join(dir, "notes.txt"), "no bucket")
	g := start(t, dir)
	for _, bucket := range []string{"images", "later"} {
		if bucket == "later" {
			mkdir(t, dir, "later")
			write(t, filepath.Join(dir, "later", "old.img"), "old")
		}
		r := root(t, g.Endpoint(), bucket)
		if data, _ := get(t, r, "old.img"); string(data) != "old" {
			t.Errorf("%s: read %q", bucket, data)
		}
		put(t, r, "new.img", []byte("new"))
		put(t, r, "old.img", []byte("newer"))
		if got := keys(t, r); !slices.Equal(got, []string{"new.img", "old.img"}) {
			t.Errorf("%s: listed %q", bucket, got)
		}
		_, err := r.CreateRecord(t.Context(), "records/a", []byte("{}"))
		if err != nil {
			t.Error(err)
		}
		c := raw(g.Endpoint())
		if _, err := c.CreateBucket(t.Context(), createBucket(bucket)); code(err) != "BucketAlreadyOwnedByYou" {
			t.Errorf("%s: creating it again: %v", bucket, err)
		}
	}
	buckets, err := raw(g.Endpoint()).ListBuckets(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range buckets.Buckets {
		names = append(names, *b.Name)
	}
	if !slices.Equal(names, []string{"images", "later"}) {
		t.Errorf("buckets are %q", names)
	}
	hidden := client(t, g.Endpoint()).Root(".imageroot", "")
	if body, _, err := hidden.Get(t.Context(), "password", store.All, ""); err == nil {
		body.Close()
		t.Error("a hidden directory was served as a bucket")
	}
}

// TestOtherKeys: buckets stay usable when the keys change.
func TestOtherKeys(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir, func(c *gateway.Config) { c.AccessKey, c.SecretKey = "BEFORE", "before-the-change" })
	_, err := raw(g.Endpoint()).CreateBucket(t.Context(), createBucket("images"))
	if code(err) != "InvalidAccessKeyId" {
		t.Fatalf("wrong key: %v", err)
	}
	mkdir(t, dir, "images")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = start(t, dir)
	put(t, root(t, g.Endpoint(), "images"), "a.img", []byte("a"))
}

// TestCloseCutsRequests closes a gateway in the middle of an upload and a download
// that end only afterwards, and with idle connections.
func TestCloseCutsRequests(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	put(t, r, "old.img", pattern(1, 32<<20))

	body, _, err := r.Get(t.Context(), "old.img", store.All, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	pipe, feed := io.Pipe()
	putErr := make(chan error, 1)
	go func() {
		_, err := r.Put(context.Background(), "old.img", pipe, 1<<30)
		putErr <- err
	}()
	if _, err := feed.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}

	if err := g.Close(); err != nil {
		t.Error(err)
	}
	feed.CloseWithError(errors.New("over"))
	if err := <-putErr; err == nil {
		t.Error("the upload succeeded")
	}
	if _, err := net.Dial("tcp", g.Addr()); err == nil {
		t.Error("it still listens")
	}
	if info, err := os.Stat(filepath.Join(dir, "images", "old.img")); err != nil || info.Size() != 32<<20 {
		t.Errorf("the object is %+v (%v)", info, err)
	}
}

// TestSweep begins uploads in a process that is killed, and starts again.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	other := startChild(t, dir)
	r := root(t, other.endpoint, "images")
	put(t, r, "a.img", []byte("old"))
	id, err := r.CreateUpload(t.Context(), "mp.img")
	if err != nil {
		t.Fatal(err)
	}
	part, err := r.UploadPart(t.Context(), "mp.img", id, 1, bytes.NewReader(pattern(1, 1000)), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a.img", "new.img"} {
		c := beginUpload(t, presigned(t, other.endpoint, "images", key), 1<<20, 100_000)
		defer c.Close()
	}
	eventually(t, func() bool { return len(debris(t, filepath.Join(dir, "images"))) == 3 })
	other.kill()

	g := start(t, dir)
	r = root(t, g.Endpoint(), "images")
	if got := debris(t, filepath.Join(dir, "images")); len(got) != 1 || !strings.HasSuffix(got[0], "/"+id+"/1") {
		t.Errorf("after the start there are %q", got)
	}
	if got := keys(t, r); !slices.Equal(got, []string{"a.img"}) {
		t.Errorf("listed %q", got)
	}
	if data, _ := get(t, r, "a.img"); string(data) != "old" {
		t.Errorf("a.img holds %q", data)
	}
	if _, err := r.CompleteUpload(t.Context(), "mp.img", id, []store.Part{part}); err != nil {
		t.Error(err)
	}
	if data, _ := get(t, r, "mp.img"); !bytes.Equal(data, pattern(1, 1000)) {
		t.Error("the resumed upload holds other bytes")
	}
}

// TestSweepSparesTheLiving: a second process must not remove what the first
// is writing.
func TestSweepSparesTheLiving(t *testing.T) {
	dir := t.TempDir()
	other := startChild(t, dir)
	r := root(t, other.endpoint, "images")
	data := pattern(3, 4<<20)
	pipe, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := r.Put(context.Background(), "a.img", pipe, int64(len(data)))
		pipe.CloseWithError(err)
		done <- err
	}()
	if _, err := feed.Write(data[:2<<20]); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return len(debris(t, filepath.Join(dir, "images"))) == 1 })
	start(t, dir)
	if _, err := feed.Write(data[2<<20:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, r, "a.img"); !bytes.Equal(got, data) {
		t.Error("the object holds other bytes")
	}
}

// beginUpload sends the head of a PUT and the first sent bytes of its body.
func beginUpload(t testing.TB, url string, size, sent int) net.Conn {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", req.URL.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s",
		req.URL.RequestURI(), req.URL.Host, size, make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	return c
}

// cutUpload cuts an upload off and waits until the server has answered.
func cutUpload(t testing.TB, endpoint, key string, size, sent int) {
	t.Helper()
	c := beginUpload(t, presigned(t, endpoint, "images", key), size, sent)
	defer c.Close()
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the condition was not met within a minute")
		}
	}
}
