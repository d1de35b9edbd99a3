package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"imageroot/test/runner"
)

func TestStart(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	t.Logf("ready after %v", s.Ready)
	for _, path := range []string{"/healthz", "/readyz", "/version"} {
		s.get(t, path, anonymous).Must(t, http.StatusOK)
	}
	var v struct{ Version string }
	s.get(t, "/version", anonymous).JSON(t, &v)
	if v.Version == "" {
		t.Error("GET /version: no version")
	}
	// Uploaders cannot read the catalog's bucket.
	buckets, err := s.uploader().ListBuckets(t.Context(), nil)
	if err != nil || !slices.ContainsFunc(buckets.Buckets, func(b types.Bucket) bool { return *b.Name == s.ImageBucket }) {
		t.Errorf("bucket %s was not made: %+v, %v", s.ImageBucket, buckets, err)
	}
	s.Put(t, "kept.img", content(1, 100_000))
	s.Restart(t)
	if got := s.get(t, "/images/kept.img", anonymous).Must(t, http.StatusOK); sum(got.Body) != sum(content(1, 100_000)) {
		t.Error("an image is not what it was before the restart")
	}
	s.WaitHashed(t, "kept.img", sum(content(1, 100_000)))
}

var (
	passwordLine = regexp.MustCompile(`(?im)\bpassword\b\W+(\S+)`)
	accessLine   = regexp.MustCompile(`(?im)\baccess[ _-]?key\b\W+(\S+)`)
	secretLine   = regexp.MustCompile(`(?im)\bsecret[ _-]?key\b\W+(\S+)`)
)

func TestStartGeneratesCredentials(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{Bare: true})
	find := func(what string, re *regexp.Regexp) string {
		m := re.FindStringSubmatch(s.Stdout())
		if m == nil {
			t.Fatalf("no %s on standard output:\n%s", what, s.Stdout())
		}
		return m[1]
	}
	pass := find("password", passwordLine)
	s.AccessKey, s.SecretKey = find("access key", accessLine), find("secret key", secretLine)
	s.Token = ""

	session := withCookie(s.Login(t, pass))
	s.get(t, "/catalog", session).Must(t, http.StatusOK)
	s.postLogin(t, "not "+pass).Must(t, http.StatusUnauthorized, http.StatusForbidden)
	s.s3Put(t, "by-key.img", content(2, 5000))

	onlyOwners := 0
	err := filepath.WalkDir(filepath.Dir(s.Data), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), s.SecretKey) || strings.Contains(string(b), pass) {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			if fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s holds a generated secret and has mode %v", path, fi.Mode())
			}
			onlyOwners++
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if onlyOwners == 0 {
		t.Error("the generated secrets are in no file beside the data")
	}

	s.Restart(t)
	for _, secret := range []string{pass, s.SecretKey} {
		if strings.Contains(s.Stdout()+s.Log(), secret) {
			t.Errorf("a generated secret is printed at the second start too:\n%s", s.Stdout())
		}
	}
	s.Login(t, pass)
	s.get(t, "/catalog", session).Must(t, http.StatusOK)
	s.s3Put(t, "by-key-again.img", content(3, 5000))
}

func TestStopWhileBusy(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	gone := make(chan struct{}, 1)
	s.AddEntry(t, p.Stall("/stalled.img", content(1, 1<<20), gone), "").Must(t, http.StatusCreated)
	s.Enqueue(t, downloads, "name", "stalled.img").Must(t, http.StatusAccepted)
	s.WaitJob(t, downloads, "stalled.img", "running")

	// An upload whose client stops sending.
	next := make(chan struct{})
	defer close(next)
	body := &slowReader{rest: content(2, 1<<20), piece: 64 << 10, next: next}
	go func() { _, _ = s.try(http.MethodPut, "/images/asleep.img", body) }()
	body.waitFirst(t)
	s.Stop(t)
}

func TestStopBySIGTERM(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	if err := s.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Exited():
	case <-time.After(within):
		t.Error("still running after SIGTERM")
	}
}

func TestStartSettings(t *testing.T) {
	t.Parallel()
	disks, state := fmt.Sprintf("disks-%d-", os.Getpid()), fmt.Sprintf("state-%d", os.Getpid())
	for name, o := range map[string]Options{
		"flags":       {Args: []string{"--image-root", "s3://" + disks + "flags", "--catalog-root", "s3://" + state + "/of/flags"}},
		"environment": {Env: []string{"IMAGEROOT_IMAGE_ROOT=s3://" + disks + "environment", "IMAGEROOT_CATALOG_ROOT=s3://" + state + "/of/things"}},
		"prefix":      {Args: []string{"--image-root", "s3://" + disks + "prefix/os", "--catalog-root", "s3://" + state + "/prefix"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Start(t, o)
			want := content(4, 10_000)
			s.Put(t, "a.img", want)
			s.WaitHashed(t, "a.img", sum(want))
			s.ImageBucket = disks + name
			prefix := ""
			if name == "prefix" {
				prefix = "os/"
			}
			if got, err := s.s3Get(t, prefix+"a.img"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v, or wrong ones", len(got), err)
			}
			s.s3Put(t, prefix+"b.img", content(5, 10_000))
			s.WaitHashed(t, "b.img", sum(content(5, 10_000)))
			if rows := s.Rows(t); len(rows) != 2 {
				t.Errorf("the catalog has %d rows, want 2: %+v", len(rows), rows)
			}
		})
	}

	t.Run("a flag wins over the environment", func(t *testing.T) {
		t.Parallel()
		s := Start(t, Options{
			Env:  []string{"IMAGEROOT_HASH_WORKERS=2", "IMAGEROOT_FETCH_WORKERS=3"},
			Args: []string{"--fetch-workers", "5"},
		})
		if _, n := s.Jobs(t, hashes); n != 2 {
			t.Errorf("hashes: max_parallel is %d, want 2 of the environment", n)
		}
		if _, n := s.Jobs(t, downloads); n != 5 {
			t.Errorf("downloads: max_parallel is %d, want 5 of the flag", n)
		}
	})

	if *s3Endpoint != "" {
		return // no gateway inside
	}
	t.Run("a relative data directory", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		s := Start(t, Options{Dir: dir, Data: "./some/data"})
		want := content(6, 10_000)
		s.Put(t, "a.img", want)
		got, err := os.ReadFile(filepath.Join(dir, "some", "data", "images", "a.img"))
		if err != nil || sum(got) != sum(want) {
			t.Errorf("DATA/images/a.img is not the plain file that was uploaded: %v", err)
		}
	})
}

// refusedToStart checks that the binary ends with an error of one line that has
// every one of words.
func refusedToStart(t *testing.T, o Options, words ...string) {
	t.Helper()
	_, launch := command(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	p, err := runner.Start(ctx, launch)
	if err == nil {
		_ = p.Kill()
		t.Fatalf("it started all the same:\n%s", p.Stdout())
	}
	exit, ok := errors.AsType[*runner.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	if exit.Code == 0 {
		t.Error("exit status 0")
	}
	lines := strings.Split(strings.TrimSpace(exit.Stderr), "\n")
	if len(lines) != 1 || lines[0] == "" {
		t.Errorf("want one line on standard error, got %d:\n%s", len(lines), exit.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(exit.Stderr, w) {
			t.Errorf("the line does not mention %q: %s", w, exit.Stderr)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	settings := []string{
		"IMAGEROOT_PASWORD=typo",
		"IMAGEROOT_HASH_WORKERS=0",
		"IMAGEROOT_HASH_WORKERS=many",
		"IMAGEROOT_FETCH_WORKERS=-1",
		"IMAGEROOT_PUBLIC_READ=perhaps",
		"IMAGEROOT_IMAGE_ROOT=/var/images",
		"IMAGEROOT_IMAGE_ROOT=s3://",
		"IMAGEROOT_IMAGE_ROOT=s3://Not_A_Bucket",
		"IMAGEROOT_CATALOG_ROOT=s3://same", // as the image root
		"IMAGEROOT_ALLOW_NET=10.0.0.0/33",
		"IMAGEROOT_ALLOW_NET=everything",
		"IMAGEROOT_S3_ENDPOINT=not a url",
	}
	if *s3Endpoint == "" {
		settings = append(settings, "IMAGEROOT_CATALOG_ROOT=s3://same/catalog") // rights on another server may be set by prefix
	}
	for _, env := range settings {
		t.Run(env, func(t *testing.T) {
			t.Parallel()
			name, _, _ := strings.Cut(env, "=")
			refusedToStart(t, Options{Env: []string{"IMAGEROOT_IMAGE_ROOT=s3://same", env}}, name)
		})
	}
	t.Run("unknown flag", func(t *testing.T) {
		t.Parallel()
		refusedToStart(t, Options{Args: []string{"--frobnicate"}}, "frobnicate")
	})
	t.Run("impossible flag", func(t *testing.T) {
		t.Parallel()
		refusedToStart(t, Options{Args: []string{"--hash-workers", "0"}})
	})
	t.Run("address that is none", func(t *testing.T) {
		t.Parallel()
		refusedToStart(t, Options{Args: []string{"--listen", "127.0.0.1:99999"}}, "99999")
	})
	listens := []string{"--listen"}
	if *s3Endpoint == "" {
		listens = append(listens, "--s3-listen")
	}
	for _, f := range listens {
		t.Run(f+" in use", func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			refusedToStart(t, Options{Args: []string{f, l.Addr().String()}}, l.Addr().String())
		})
	}
	if *s3Endpoint != "" {
		return // no gateway inside
	}
	t.Run("data directory that is a file", func(t *testing.T) {
		t.Parallel()
		path := tempFile(t, []byte("not a directory"))
		refusedToStart(t, Options{Data: path}, path)
	})
}
