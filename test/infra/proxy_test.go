package infra

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/test/runner"
)

// A proxy is Caddy with the Caddyfile, in front of two servers.
type proxy struct {
	pages, s3 string // https://localhost:PORT
	roots     string // file of Caddy's own authority
	client    *http.Client
}

// freePort returns a port on which nothing listens. It is below those that the kernel gives
// to connections of other programs, one of which could take it before the proxy does.
func freePort(t *testing.T) int {
	t.Helper()
	const first, n, tries = 20000, 10000, 100
	for range tries {
		port := first + rand.IntN(n)
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func startProxy(t *testing.T, pages, s3 string) *proxy {
	t.Helper()
	dir := t.TempDir()
	p := &proxy{
		pages: fmt.Sprintf("https://localhost:%d", freePort(t)), s3: fmt.Sprintf("https://localhost:%d", freePort(t)),
		roots: filepath.Join(dir, "pki/authorities/local/root.crt"),
	}
	host := func(u string) string { return u[strings.LastIndex(u, "/")+1:] }
	// A test must not change the machine that it runs on: take ports, or add to
	// the trusted authorities.
	file := write(t, filepath.Join(dir, "Caddyfile"), fmt.Sprintf(`{
	admin off
	skip_install_trust
	auto_https disable_redirects
	storage file_system %s
}
`, dir)+read(t, filepath.Join(root, "infra", "Caddyfile")))
	cmd := exec.CommandContext(t.Context(), "caddy", "run", "--adapter", "caddyfile", "--config", file)
	cmd.Env = append(os.Environ(), "HOME="+dir, "IMAGES_HOST="+host(p.pages), "S3_HOST="+host(p.s3), "IMAGES_UPSTREAM="+host(pages), "S3_UPSTREAM="+host(s3))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			t.Logf("Caddy:\n%s", read(t, log.Name()))
		}
	})
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		pool := x509.NewCertPool()
		if pem, err := os.ReadFile(p.roots); err == nil && pool.AppendCertsFromPEM(pem) {
			p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
			up := 0
			for _, u := range []string{p.pages, p.s3} {
				if res, err := p.client.Get(u); err == nil {
					_ = res.Body.Close()
					up++
				}
			}
			if up == 2 {
				t.Cleanup(p.client.CloseIdleConnections)
				return p
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("Caddy does not serve:\n%s", read(t, log.Name()))
		}
	}
}

func TestCaddyfile(t *testing.T) {
	path := filepath.Join(root, "infra", "Caddyfile")
	env := []string{"HOME=" + t.TempDir(), "IMAGES_HOST=images.example.org", "S3_HOST=s3.example.org"}
	must(t, env, "caddy", "validate", "--adapter", "caddyfile", "--config", path)
	if out, log, err := run(t, nil, "caddy", "fmt", path); err != nil || out != read(t, path) {
		t.Errorf("caddy fmt would change it: %v\n%s", err, log)
	}
	bad := write(t, filepath.Join(t.TempDir(), "Caddyfile"), strings.Replace(read(t, path), "flush_interval", "flush_often", 1))
	if _, _, err := run(t, env, "caddy", "validate", "--adapter", "caddyfile", "--config", bad); err == nil {
		t.Error("a directive that there is not was not found")
	}
}

// TestProxyStreams tests that bytes pass immediately in both directions: each
// side continues only when the other has the bytes sent so far. The request
// passes unchanged.
func TestProxyStreams(t *testing.T) {
	const pieces, piece = 3, 1 << 16
	var mu sync.Mutex
	var got http.Header
	var host string
	took, sent := make(chan struct{}), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			return // is it there
		}
		mu.Lock()
		got, host = r.Header.Clone(), r.Host
		mu.Unlock()
		buf := make([]byte, piece)
		for range pieces {
			if _, err := io.ReadFull(r.Body, buf); err != nil {
				t.Errorf("upstream: %v", err)
				return
			}
			took <- struct{}{}
		}
		w.WriteHeader(http.StatusPartialContent)
		for range pieces {
			_, _ = w.Write(buf)
			_ = http.NewResponseController(w).Flush()
			<-sent
		}
	}))
	defer upstream.Close()
	p := startProxy(t, upstream.URL, upstream.URL)
	for _, u := range []string{p.pages, p.s3} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		body, send := io.Pipe()
		go func() {
			defer func() { _ = send.Close() }()
			for range pieces {
				_, _ = send.Write(make([]byte, piece))
				select {
				case <-took:
				case <-ctx.Done():
					_ = send.CloseWithError(errors.New("the proxy keeps what it is sent"))
					return
				}
			}
		}()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u+"/a%20b%2Bc%3F", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes=5-")
		res, err := p.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		for range pieces {
			if _, err := io.ReadFull(res.Body, make([]byte, piece)); err != nil {
				t.Fatalf("the proxy keeps what it is to pass on: %v", err)
			}
			sent <- struct{}{}
		}
		_ = res.Body.Close()
		mu.Lock()
		if res.StatusCode != http.StatusPartialContent || got.Get("Range") != "bytes=5-" || host != strings.TrimPrefix(u, "https://") ||
			got.Get("X-Forwarded-Proto") != "https" || got.Get("Content-Length") != "" {
			t.Errorf("%s: %s, and upstream was asked of %s with %v", u, res.Status, host, got)
		}
		mu.Unlock()
	}
}

// TestProxyServes runs imageroot behind it: pages with a session for TLS only,
// and S3 with valid signatures.
func TestProxyServes(t *testing.T) {
	const secret = "the-key-of-uploads-0123456789"
	p, err := runner.Start(t.Context(), runner.Options{
		Binary: released, Args: []string{"--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--data", filepath.Join(t.TempDir(), "data")},
		Env: []string{"HOME=" + t.TempDir(), "IMAGEROOT_TRUSTED_PROXIES=127.0.0.1", "IMAGEROOT_PASSWORD=correct horse", "IMAGEROOT_S3_ACCESS_KEY=UPLOADS", "IMAGEROOT_S3_SECRET_KEY=" + secret},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Kill() }()
	front := startProxy(t, p.Pages, p.S3)

	path := filepath.Join(t.TempDir(), "from-afar.img")
	content := make([]byte, 20<<20)
	copy(content[17<<20:], "something that is not nothing")
	write(t, path, string(content))
	env := []string{"AWS_ACCESS_KEY_ID=UPLOADS", "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_REGION=us-east-1", "AWS_CA_BUNDLE=" + front.roots, "HOME=" + t.TempDir()}
	must(t, env, "aws", "--endpoint-url", front.s3, "s3", "cp", "--only-show-errors", path, "s3://images/")

	afar, err := s3store.Open(t.Context(), s3store.Config{Endpoint: front.s3, Region: "us-east-1", AccessKey: "UPLOADS", SecretKey: secret})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := afar.Root("images", "").PresignGet(t.Context(), "from-afar.img", store.Attachment("from-afar.img"))
	if err != nil {
		t.Fatal(err)
	}
	refusedUploads(t, front, signed)

	client := *front.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := client.PostForm(front.pages+"/ui/login", url.Values{"password": {"correct horse"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if c := res.Cookies(); len(c) != 1 || !c[0].Secure {
		t.Errorf("logging in: %s with cookies %v, want a secure one", res.Status, c)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, front.pages+"/images/from-afar.img", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=17825792-")
	if res, err = client.Do(req); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusPartialContent || sha256.Sum256(got) != sha256.Sum256(content[17<<20:]) {
		t.Errorf("a range: %s, %d bytes, %v", res.Status, len(got), err)
	}
}

// refusedUploads sends unsigned uploads of unknown length, whose content looks
// like requests, beside signed requests of other clients: over the connections
// to the gateway that the proxy keeps.
func refusedUploads(t *testing.T, front *proxy, signed string) {
	t.Helper()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				body := strings.NewReader(strings.Repeat("GET /catalog HTTP/1.1\r\nHost: x\r\n\r\n", 3000))
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, front.s3+"/images/refused.img", io.NopCloser(body))
				if err != nil {
					t.Error(err)
					return
				}
				// Only its effect on the others matters.
				if res, err := front.client.Do(req); err == nil {
					_ = res.Body.Close()
				}
				req, err = http.NewRequestWithContext(t.Context(), http.MethodGet, signed, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Range", "bytes=0-9")
				res, err := front.client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != http.StatusPartialContent || len(got) != 10 {
					t.Errorf("a signed request is answered %s, %q, %v", res.Status, got, err)
				}
			}
		})
	}
	wg.Wait()
}
