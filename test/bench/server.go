package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"imageroot/test/runner"
)

// Credentials of the measured servers.
const (
	password  = "bench: nothing to see here"
	token     = "bench-token-0123456789abcdef"
	accessKey = "BENCHACCESSKEY123456"
	secretKey = "bench-secret-key-0123456789abcdef012345"
)

// A server is a process of the real binary, over its own directory.
type server struct {
	*runner.Process
	data           string
	access, secret string // for S3
	launch         runner.Options
	http           *http.Client
}

// server starts the binary over a new directory.
func (b *bench) server(ctx context.Context, data string) (*server, error) {
	s := b.serverIn(b.path(data))
	return s, s.start(ctx)
}

// serverIn returns a server over a directory, which is not started.
func (b *bench) serverIn(data string) *server {
	return &server{
		data: data, access: accessKey, secret: secretKey, http: newClient(),
		launch: runner.Options{
			Binary: b.binary,
			Args:   []string{"--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--data", data},
			Env: []string{
				"HOME=" + b.dir, "TMPDIR=" + b.dir, "IMAGEROOT_ALLOW_NET=loopback", "IMAGEROOT_PASSWORD=" + password,
				"IMAGEROOT_TOKEN=" + token, "IMAGEROOT_S3_ACCESS_KEY=" + accessKey, "IMAGEROOT_S3_SECRET_KEY=" + secretKey,
			},
		},
	}
}

// serverOver returns a server over the S3 server at endpoint, which is not started.
func (b *bench) serverOver(data, endpoint, access, secret string) *server {
	return &server{data: b.path(data), access: access, secret: secret, http: newClient(), launch: runner.Options{
		Binary: b.binary, Args: []string{"--listen", "127.0.0.1:0", "--s3-endpoint", endpoint},
		Env: []string{
			"HOME=" + b.dir, "TMPDIR=" + b.dir, "IMAGEROOT_PASSWORD=" + password, "IMAGEROOT_TOKEN=" + token,
			"AWS_ACCESS_KEY_ID=" + access, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_REGION=us-east-1",
		},
	}}
}

func (s *server) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p, err := runner.Start(ctx, s.launch)
	if err != nil {
		return err
	}
	s.Process = p
	return nil
}

// newClient returns a client with its own cookies, which requests no compression.
func newClient() *http.Client {
	jar, _ := cookiejar.New(nil) // never fails
	return &http.Client{Transport: &http.Transport{DisableCompression: true}, Jar: jar}
}

// remove kills the server and removes its data.
func (s *server) remove() {
	_ = s.Kill() // the results do not depend on its end
	_ = os.RemoveAll(s.data)
}

// image returns the path of the file of an image in the image root.
func (s *server) image(name string) string { return filepath.Join(s.data, "images", name) }

// aws returns a command of the AWS client for the server's S3.
func (s *server) aws(args ...string) tool {
	return tool{
		env: []string{
			"AWS_ACCESS_KEY_ID=" + s.access, "AWS_SECRET_ACCESS_KEY=" + s.secret,
			"AWS_DEFAULT_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=",
		},
		args: append([]string{"aws", "--endpoint-url", s.S3}, args...),
	}
}

// do sends a request as the operator and returns the body of the response. A status of 400 or
// more is an error.
func (s *server) do(ctx context.Context, method, path string, body any) ([]byte, error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.Pages+path, in)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return s.answer(req)
}

func (s *server) answer(req *http.Request) ([]byte, error) {
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 400 {
		err = fmt.Errorf("%s %s: %s: %.300s", req.Method, req.URL.Path, res.Status, data)
	}
	return data, err
}

// login gets the session cookie for the pages.
func (s *server) login(ctx context.Context) error {
	form := url.Values{"password": {password}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Pages+"/ui/login", strings.NewReader(form))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	_, err = s.answer(req)
	return err
}

// A job is a job, as the API returns it.
type job struct {
	Name       string     `json:"name"`
	Status     string     `json:"status"`
	Stage      string     `json:"stage"` // of a hash job: check, once there is a digest
	Hashed     int64      `json:"bytes_hashed"`
	Downloaded int64      `json:"bytes_downloaded"`
	SHA256     string     `json:"sha256"`
	StartedAt  *time.Time `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at"`
	Error      string     `json:"error"`
	Attempt    int        `json:"attempt"`
}

// Kinds of jobs, as the API's paths name them.
const (
	hashes    = "hashes"
	downloads = "downloads"
)

func (s *server) jobs(ctx context.Context, kind string) ([]job, error) {
	data, err := s.do(ctx, http.MethodGet, "/catalog/"+kind, nil)
	if err != nil {
		return nil, err
	}
	var lists struct{ Hashes, Downloads []job }
	err = json.Unmarshal(data, &lists)
	return append(lists.Hashes, lists.Downloads...), err
}

// job returns the job of an image, if there is one, and of hash jobs that of the digest.
func (s *server) job(ctx context.Context, kind, name string) (job, bool, error) {
	all, err := s.jobs(ctx, kind)
	for _, j := range all {
		if j.Name == name && j.Stage == "" {
			return j, true, err
		}
	}
	return job{}, false, err
}

// completed waits until the job of an image has completed. It returns an error if the job fails
// or is cancelled.
func (s *server) completed(ctx context.Context, kind, name string) (job, error) {
	return s.ended(ctx, kind, name, func(job) {})
}

// ended is completed with a function that receives the job at each poll.
func (s *server) ended(ctx context.Context, kind, name string, see func(job)) (job, error) {
	var last job
	err := until(ctx, 30*time.Minute, 10*time.Millisecond, kind+" job of "+name, func() (bool, error) {
		j, _, err := s.job(ctx, kind, name)
		last = j
		see(j)
		if j.Status == "failed" || j.Status == "cancelled" {
			return false, fmt.Errorf("%s job of %s: %s: %s", kind, name, j.Status, j.Error)
		}
		return j.Status == "completed", err
	})
	return last, err
}

// idle waits until no job is queued or running and the process uses almost no CPU time.
func (s *server) idle(ctx context.Context) error {
	calm, before := 0, time.Duration(-1)
	return until(ctx, 30*time.Minute, 250*time.Millisecond, "idle", func() (bool, error) {
		used, err := cpuTime(s.PID())
		if err != nil {
			return false, err
		}
		if before >= 0 && used-before < 30*time.Millisecond {
			calm++
		} else {
			calm = 0
		}
		before = used
		if calm < 4 {
			return false, nil
		}
		for _, kind := range []string{hashes, downloads} {
			all, err := s.jobs(ctx, kind)
			if err != nil {
				return false, err
			}
			for _, j := range all {
				if j.Status == "queued" || j.Status == "running" {
					calm = 0
					return false, nil
				}
			}
		}
		return true, nil
	})
}

// metric returns the sum of a counter or gauge over the series with a label of value label, or
// over all series if label is empty.
func (s *server) metric(ctx context.Context, name, label string) (float64, error) {
	data, err := s.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return 0, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(data))
	if err != nil {
		return 0, err
	}
	if families[name] == nil {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	total := 0.0
	for _, m := range families[name].Metric {
		counts := label == ""
		for _, l := range m.Label {
			counts = counts || l.GetValue() == label
		}
		if counts {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return total, nil
}

var errTooLong = errors.New("took too long")

// until calls done at each interval until it returns true or an error, or limit has passed.
func until(ctx context.Context, limit, every time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s: %w (%v)", what, errTooLong, limit))
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
