package main

import (
	"archive/zip"
	"compress/flate"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"imageroot/test/emulator"
)

// lambdas are the functions, by their packages under functions/.
var lambdas = []string{"upload", "catalog", "addbyurl", "hash", "fetch"}

// lambda measures the Lambda functions: the size of each in a zip archive, and the time on this
// machine from the start of its process to its first request for an event.
func (b *bench) lambda(ctx context.Context) error {
	s, err := b.server(ctx, "lambda")
	if err != nil {
		return err
	}
	defer s.remove()
	access, secret, err := s.programKey()
	if err != nil {
		return err
	}
	for _, name := range lambdas {
		arm, here := b.path(name, "arm64", "bootstrap"), b.path(name, "bootstrap")
		if err := emulator.Build(ctx, "arm64", "./functions/"+name+"/lambda", arm); err != nil {
			return err
		}
		size, err := zipped(arm)
		if err != nil {
			return err
		}
		b.report.absolute("lambda", name+", arm64, zipped", unitMiB, []float64{float64(size) / mib}, atMost(10))
		if err := emulator.Build(ctx, "", "./functions/"+name+"/lambda", here); err != nil {
			return err
		}
		env, _, err := functionSettings(name, s.S3, access, secret)
		if err != nil {
			return err
		}
		var starts []float64
		for range b.rounds {
			took, err := coldStart(ctx, here, env)
			if err != nil {
				return err
			}
			starts = append(starts, float64(took)/float64(time.Millisecond))
		}
		b.report.absolute("lambda", name+", cold start", unitMillis, starts, nil)
	}
	return nil
}

// programKey returns the S3 key that has rights on the catalog root.
func (s *server) programKey() (access, secret string, err error) {
	data, err := os.ReadFile(filepath.Join(s.data, ".imageroot", "credentials.json"))
	if err != nil {
		return "", "", err
	}
	var c struct {
		Access string `json:"program_access_key"`
		Secret string `json:"program_secret_key"`
	}
	err = json.Unmarshal(data, &c)
	return c.Access, c.Secret, err
}

// zipped returns the size of a zip archive of a file.
func zipped(path string) (int64, error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	var n counter
	z := zip.NewWriter(&n)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	w, err := z.Create(filepath.Base(path))
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(w, in); err != nil {
		return 0, err
	}
	err = z.Close()
	return int64(n), err
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// coldStart starts a bootstrap and returns the time until it requests an event.
func coldStart(ctx context.Context, binary string, env []string) (time.Duration, error) {
	asked := make(chan time.Time, 1)
	var once sync.Once
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { asked <- time.Now() })
		<-r.Context().Done() // there is none
	}))
	defer api.Close()
	defer api.CloseClientConnections()
	cmd := exec.Command(binary)
	cmd.Env = append([]string{"AWS_LAMBDA_RUNTIME_API=" + strings.TrimPrefix(api.URL, "http://")}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log strings.Builder
	cmd.Stderr = &log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case at := <-asked:
		err := cmd.Process.Kill()
		<-exited
		return at.Sub(began), err
	case err := <-exited:
		return 0, fmt.Errorf("%s does not start: %w\n%s", binary, err, log.String())
	case <-ctx.Done():
		return 0, errors.Join(ctx.Err(), cmd.Process.Kill(), <-exited)
	}
}
