// Package integration runs imageroot over a real MinIO server: the contract of
// the store, the requirements of a start, and events across restarts of either
// side. The tests of package e2e run over MinIO as well (go test ./test/e2e
// -minio).
package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imageroot/shared/store/s3store"
	"imageroot/test/minio"
	"imageroot/test/runner"
)

const (
	token        = "integration-token-0123456789"
	webhookToken = "webhook-token-0123456789"
	// within is the longest wait for a condition. It is far more than an idle
	// machine needs, so that a busy one passes.
	within = 3 * time.Minute
)

var imageroot, mc string // the programs

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func build(m *testing.M) (code int, err error) {
	if mc, err = minio.Tool("mc"); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "imageroot-integration-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	if imageroot, err = runner.Build(ctx, dir); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// freeAddress returns an address that was free a moment ago, for a server that
// must be given one.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a MinIO server until the test ends.
func start(t testing.TB, o minio.Options) *minio.Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "data")
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	s, err := minio.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		if t.Failed() {
			t.Logf("minio:\n%s", tail(s.Log()))
		}
	})
	return s
}

func again(t testing.TB, s *minio.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

func tail(s string) string { return s[max(0, len(s)-8<<10):] }

func client(t testing.TB, endpoint string) *s3store.Client {
	t.Helper()
	c, err := s3store.Open(t.Context(), s3store.Config{Endpoint: endpoint, Region: "us-east-1", AccessKey: minio.AccessKey, SecretKey: minio.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// keys returns the environment of a client of endpoint as the root user.
func keys(endpoint string) []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + minio.AccessKey, "AWS_SECRET_ACCESS_KEY=" + minio.SecretKey, "AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1",
		"RCLONE_CONFIG_S3_TYPE=s3", "RCLONE_CONFIG_S3_PROVIDER=Minio", "RCLONE_CONFIG_S3_ENDPOINT=" + endpoint,
		"RCLONE_CONFIG_S3_ACCESS_KEY_ID=" + minio.AccessKey, "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=" + minio.SecretKey,
		"MC_HOST_s3=" + strings.Replace(endpoint, "://", "://"+minio.AccessKey+":"+minio.SecretKey+"@", 1),
	}
}

// launch returns the options that start imageroot over an S3 server.
func launch(t testing.TB, endpoint string, env ...string) runner.Options {
	t.Helper()
	all := append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + os.TempDir(),
		"IMAGEROOT_PASSWORD=correct horse battery staple", "IMAGEROOT_TOKEN=" + token, "IMAGEROOT_LISTEN=127.0.0.1:0", "IMAGEROOT_S3_ENDPOINT=" + endpoint,
	}, keys(endpoint)...)
	return runner.Options{Binary: imageroot, Env: append(all, env...), Dir: t.TempDir()}
}

// A server is imageroot, running until the test ends.
type server struct {
	*runner.Process
	options runner.Options
}

func run(t testing.TB, o runner.Options) *server {
	t.Helper()
	s := &server{options: o}
	s.start(t)
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		if t.Failed() {
			t.Logf("imageroot:\n%s", tail(s.Log()))
		}
	})
	return s
}

func (s *server) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	p, err := runner.Start(ctx, s.options)
	if err != nil {
		t.Fatal(err)
	}
	s.Process = p
}

// refused checks that imageroot fails to start, with one line that has every
// one of words. It returns the line.
func refused(t testing.TB, o runner.Options, words ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	p, err := runner.Start(ctx, o)
	if err == nil {
		_ = p.Kill()
		t.Fatalf("it started:\n%s", p.Stdout())
	}
	exit, ok := errors.AsType[*runner.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	line := strings.TrimSpace(exit.Stderr)
	if exit.Code == 0 || line == "" || strings.Contains(line, "\n") {
		t.Errorf("exit status %d, and not one line:\n%s", exit.Code, exit.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("%q is not in: %s", w, line)
		}
	}
	return line
}

func (s *server) get(t testing.TB, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Pages+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v: %s", path, res.Status, err, body)
	}
	return body
}

// sums returns the SHA-256 of every name in the catalog, or "" if it is not
// known yet.
func (s *server) sums(t testing.TB) map[string]string {
	t.Helper()
	var page struct {
		Images []struct {
			Names  []string `json:"names"`
			SHA256 *string  `json:"sha256"`
		} `json:"images"`
	}
	if err := json.Unmarshal(s.get(t, "/catalog?limit=200"), &page); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, row := range page.Images {
		for _, name := range row.Names {
			found[name] = ""
			if row.SHA256 != nil {
				found[name] = *row.SHA256
			}
		}
	}
	return found
}

// knows waits until the catalog has exactly these images.
func (s *server) knows(t testing.TB, want map[string][]byte) {
	t.Helper()
	eventually(t, "the catalog has every image", func() error {
		got := s.sums(t)
		for name, data := range want {
			if got[name] != sum(data) {
				return fmt.Errorf("%q has the SHA-256 %q, want %s", name, got[name], sum(data))
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("there are %d images, want %d", len(got), len(want))
		}
		return nil
	})
}

// hooked returns the number of events that the server has sent and imageroot
// has acknowledged.
func (s *server) hooked(t testing.TB) int {
	t.Helper()
	for line := range strings.Lines(string(s.get(t, "/metrics"))) {
		if !strings.HasPrefix(line, "imageroot_http_request_duration_seconds_count{") || !strings.Contains(line, `code="204"`) || !strings.Contains(line, "/hooks/minio") {
			continue
		}
		var n int
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 0
}

func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// content returns bytes that differ from those of every other seed.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, seed))).Read(b)
	return b
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func file(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a program, which must succeed, and returns its output.
func tool(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func tryTool(t testing.TB, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	return runner.Tool(ctx, t.TempDir(), env, name, args...)
}

// uploaders put a file to a key of the bucket images, each with another client.
var uploaders = map[string]func(t testing.TB, endpoint, path, key string){
	"aws": func(t testing.TB, endpoint, path, key string) {
		tool(t, keys(endpoint), "aws", "--endpoint-url", endpoint, "s3", "cp", "--only-show-errors", path, "s3://images/"+key)
	},
	"mc": func(t testing.TB, endpoint, path, key string) {
		tool(t, keys(endpoint), mc, "cp", "--quiet", path, "s3/images/"+key)
	},
	"rclone": func(t testing.TB, endpoint, path, key string) {
		tool(t, keys(endpoint), "rclone", "copyto", "--s3-no-check-bucket", path, "s3:images/"+key)
	},
}
