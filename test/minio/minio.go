// Package minio starts the MinIO server that make servers has built, and stops
// it: with SIGTERM, or with SIGKILL as a power cut would.
package minio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"imageroot/test/runner"
)

// AccessKey and SecretKey are those of the root user of every server.
const AccessKey, SecretKey = "integration", "integration-secret"

// Tool returns the path of minio or mc.
func Tool(name string) (string, error) {
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	path := filepath.Join(filepath.Dir(strings.TrimSpace(string(gomod))), "tools", "bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not built: make servers (%w)", name, err)
	}
	return path, nil
}

// Options are the options of a server.
type Options struct {
	Dir  string   // its data
	Addr string   // HOST:PORT; empty takes a free port of loopback
	Env  []string // its settings beside the root user
	// Certs is a directory with public.crt and private.key, for TLS.
	Certs string
}

// A Server is a running MinIO.
type Server struct {
	URL     string
	options Options
	cmd     *exec.Cmd
	log     runner.Buffer
	exited  chan struct{}
}

// Start starts a server and waits until it is ready. If ctx ends first, Start
// kills it.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{options: o}
	if o.Addr == "" {
		// MinIO does not accept port 0. A port that was just free usually still
		// is.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		s.options.Addr = l.Addr().String()
		l.Close()
	}
	s.URL = "http://" + s.options.Addr
	if o.Certs != "" {
		s.URL = "https://" + s.options.Addr
	}
	return s, s.Start(ctx)
}

// Start starts a stopped server again, at the same address.
func (s *Server) Start(ctx context.Context) error {
	binary, err := Tool("minio")
	if err != nil {
		return err
	}
	home, err := os.MkdirTemp("", "imageroot-minio-home-")
	if err != nil {
		return err
	}
	args := []string{"server", "--quiet", "--address", s.options.Addr, "--certs-dir", home}
	if s.options.Certs != "" {
		args[len(args)-1] = s.options.Certs
	}
	s.cmd = exec.Command(binary, append(args, s.options.Dir)...)
	s.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir(),
		"MINIO_ROOT_USER=" + AccessKey, "MINIO_ROOT_PASSWORD=" + SecretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off",
	}, s.options.Env...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	// MinIO must not outlive the test, even if the test is killed.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		_ = cmd.Wait() // its log has the reason
		_ = os.RemoveAll(home)
		close(exited)
	}()
	for !s.ready(ctx) {
		select {
		case <-s.exited:
			return fmt.Errorf("minio ended: %s", s.log.String())
		case <-ctx.Done():
			_ = s.Kill()
			return fmt.Errorf("minio is not ready: %w: %s", ctx.Err(), s.log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// insecure accepts any certificate.
var insecure = &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

func (s *Server) ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/minio/health/cluster", nil)
	if err != nil {
		return false
	}
	res, err := insecure.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// Log returns what the server has printed.
func (s *Server) Log() string { return s.log.String() }

// Stop sends SIGTERM, as a service manager does, and waits for the server to
// end. After limit it kills the server and returns an error.
func (s *Server) Stop(limit time.Duration) error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.exited:
		return nil
	case <-time.After(limit):
		return errors.Join(fmt.Errorf("minio still runs %v after SIGTERM", limit), s.Kill())
	}
}

// Kill sends SIGKILL and waits for the server to end. It returns nil if the
// server has ended already.
func (s *Server) Kill() error {
	err := s.cmd.Process.Kill()
	<-s.exited
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
