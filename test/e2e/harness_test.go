// Package e2e starts the real binary on port 0 with a fresh directory and uses
// it as people do: with curl, aws, rclone and files copied into its directory.
// It relies on the contract only (routes, JSON, exit status, output), not on
// the code.
//
// With -s3-endpoint the same tests run over another S3 server, and with -minio
// over a MinIO server that they start; tests of the gateway inside (plain
// files) are skipped then.
package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imageroot/test/minio"
	"imageroot/test/runner"
)

const (
	password    = "correct horse battery staple"
	token       = "e2e-token-0123456789abcdef"
	s3AccessKey = "E2EACCESSKEY12345678"
	s3SecretKey = "e2e-secret-key-0123456789abcdef01234567"
)

var (
	s3Endpoint = flag.String("s3-endpoint", "", "use this S3 server instead of the gateway inside")
	s3Access   = flag.String("s3-access-key", s3AccessKey, "access key of -s3-endpoint")
	s3Secret   = flag.String("s3-secret-key", s3SecretKey, "secret key of -s3-endpoint")
	overMinIO  = flag.Bool("minio", false, "start the MinIO server that make servers has built, and use it as -s3-endpoint")

	binary string
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func build(m *testing.M) (code int, err error) {
	for tool, pkg := range map[string]string{
		"curl": "curl", "aws": "awscli", "rclone": "rclone", "qemu-img": "qemu-utils",
		"xz": "xz-utils", "zstd": "zstd", "sha256sum": "coreutils", "openssl": "openssl",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			return 0, fmt.Errorf("%s is needed by these tests and not installed: apt-get install %s", tool, pkg)
		}
	}
	dir, err := os.MkdirTemp("", "imageroot-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	flags := []string{"-ldflags=-s -w"} // the linker is faster without debug information
	if raceEnabled {
		flags = append(flags, "-race")
	}
	if binary, err = runner.Build(ctx, dir, flags...); err != nil {
		return 0, err
	}
	if *overMinIO {
		server, err := minio.Start(ctx, minio.Options{Dir: filepath.Join(dir, "minio")})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, server.Kill()) }()
		*s3Endpoint, *s3Access, *s3Secret = server.URL, minio.AccessKey, minio.SecretKey
	}
	return m.Run(), nil
}

// Options are the differences of a [Server] from the default, which has a
// password, a token, S3 keys, a fresh directory, and may reach loopback.
type Options struct {
	Data string   // data directory
	Env  []string // after the default environment: the last value counts
	Args []string // after the default flags
	Bare bool     // leave password, token and S3 keys to be generated
	Dir  string   // working directory
	Home string   // home directory

	S3Endpoint string   // an S3 server to use instead of the gateway inside
	Over       *Server  // another server, whose S3 server and buckets this one uses
	Via        []string // program, with its arguments, that starts the binary
}

// A Server is the real binary, running. It is killed when the test ends.
type Server struct {
	*runner.Process
	Data         string
	ImageBucket  string
	CatalogBuck  string
	AccessKey    string
	SecretKey    string
	Token        string // sent with every request unless the request has other credentials
	launch       runner.Options
	externalS3   string
	front        *front // before externalS3, unless that is another Server's
	failedChecks bool
}

var bucketSerial atomic.Int64

// command returns the server and its command, without starting it.
func command(t testing.TB, o Options) (*Server, runner.Options) {
	t.Helper()
	s := &Server{
		Data: o.Data, Token: token, ImageBucket: "images", CatalogBuck: "catalog",
		AccessKey: s3AccessKey, SecretKey: s3SecretKey,
	}
	home := o.Home
	if home == "" {
		home = t.TempDir()
	}
	if s.Data == "" {
		s.Data = filepath.Join(t.TempDir(), "data")
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir(),
		"IMAGEROOT_ALLOW_NET=loopback",
	}
	if !o.Bare {
		env = append(env,
			"IMAGEROOT_PASSWORD="+password, "IMAGEROOT_TOKEN="+token,
			"IMAGEROOT_S3_ACCESS_KEY="+s3AccessKey, "IMAGEROOT_S3_SECRET_KEY="+s3SecretKey)
	}
	args := []string{"--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--data", s.Data}
	s.externalS3 = cmp.Or(o.S3Endpoint, *s3Endpoint)
	switch {
	case o.Over != nil:
		s.externalS3, s.ImageBucket, s.CatalogBuck = o.Over.S3, o.Over.ImageBucket, o.Over.CatalogBuck
		s.AccessKey, s.SecretKey = o.Over.programKey(t)
		s.front = o.Over.front
	case s.externalS3 != "":
		n := bucketSerial.Add(1)
		s.ImageBucket = fmt.Sprintf("e2e-%d-%d-images", os.Getpid(), n)
		s.CatalogBuck = fmt.Sprintf("e2e-%d-%d-catalog", os.Getpid(), n)
		s.AccessKey, s.SecretKey = *s3Access, *s3Secret
		s.front = newFront(t, s.externalS3)
		s.externalS3 = s.front.URL
	}
	if s.externalS3 != "" {
		env = append(env, "AWS_ACCESS_KEY_ID="+s.AccessKey, "AWS_SECRET_ACCESS_KEY="+s.SecretKey, "AWS_REGION=us-east-1",
			"IMAGEROOT_S3_ENDPOINT="+s.externalS3, "IMAGEROOT_IMAGE_ROOT=s3://"+s.ImageBucket, "IMAGEROOT_CATALOG_ROOT=s3://"+s.CatalogBuck)
	}
	line := slices.Concat(o.Via, []string{binary}, args, o.Args)
	return s, runner.Options{Binary: line[0], Args: line[1:], Env: append(env, o.Env...), Dir: o.Dir}
}

// programKey returns the S3 key for a second runner, which may use both
// buckets. With the gateway inside it is kept in DATA, and is not the
// uploaders' key.
func (s *Server) programKey(t testing.TB) (access, secret string) {
	t.Helper()
	var c struct {
		Access string `json:"program_access_key"`
		Secret string `json:"program_secret_key"`
	}
	b, err := os.ReadFile(filepath.Join(s.Data, ".imageroot", "credentials.json"))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		t.Fatal(err)
	default:
		if err := json.Unmarshal(b, &c); err != nil {
			t.Fatal(err)
		}
	}
	return cmp.Or(c.Access, s.AccessKey), cmp.Or(c.Secret, s.SecretKey)
}

// Start starts the binary and waits until it is ready.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s, launch := command(t, o)
	s.launch = launch
	s.start(t)
	t.Cleanup(func() {
		s.Kill(t)
		if t.Failed() {
			t.Logf("standard output:\n%s\nlog:\n%s", tail(s.Stdout()), tail(s.Log()))
		}
	})
	return s
}

func (s *Server) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	p, err := runner.Start(ctx, s.launch)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	s.Process = p
	if s.externalS3 != "" {
		s.S3 = s.externalS3
	}
	if s.S3 == "" {
		t.Fatalf("no line \"s3  http://...\" on standard output:\n%s", p.Stdout())
	}
}

// Stop ends the server as Ctrl-C does. It fails the test if the server does not
// end, or its exit status is not 0.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	begin := time.Now()
	if err := s.Process.Stop(within); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	t.Logf("stopped in %v", time.Since(begin).Round(time.Millisecond))
	s.checkLog(t)
}

// Kill ends the server with SIGKILL, as a power cut would.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.Process.Kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	s.checkLog(t)
}

// pause stops all threads of the server until resume, as if the machine slept.
func (s *Server) pause(t testing.TB) {
	t.Helper()
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, within, "the server is paused", func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.PID()))
		if err != nil || len(threads) == 0 {
			return fmt.Errorf("no threads: %v", err)
		}
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				return fmt.Errorf("%s: %s", path, stat)
			}
		}
		return nil
	})
}

func (s *Server) resume(t testing.TB) {
	t.Helper()
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// Restart stops the server and starts it again over the same directory. The
// addresses change.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	s.start(t)
}

// checkLog fails the test if the log has a panic, a data race or a secret.
func (s *Server) checkLog(t testing.TB) {
	t.Helper()
	if s.failedChecks {
		return
	}
	log := s.Log()
	for _, bad := range []string{"panic:", "goroutine 1 [", "WARNING: DATA RACE", "superfluous response.WriteHeader"} {
		if strings.Contains(log, bad) {
			s.failedChecks = true
			t.Errorf("the log has %q:\n%s", bad, tail(log))
		}
	}
	for _, secret := range []string{password, token, s3SecretKey} {
		if strings.Contains(log, secret) {
			s.failedChecks = true
			t.Errorf("the log has a secret of the operator's: %q", secret)
		}
	}
}

// imagePath is the path of a dropped file.
func (s *Server) imagePath(name string) string { return filepath.Join(s.Data, "images", name) }

// needsPlainFiles skips tests of files that are created and removed beside the
// gateway inside.
func needsPlainFiles(t testing.TB) {
	t.Helper()
	if *s3Endpoint != "" {
		t.Skip("plain files are a matter of the gateway inside; this run is over another S3 server")
	}
}

// eventually calls check until it returns nil. It fails the test after limit.
func eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// tail returns the last lines of a long text.
func tail(s string) string {
	const most = 8 << 10
	if len(s) <= most {
		return s
	}
	return "[...]" + s[len(s)-most:]
}
