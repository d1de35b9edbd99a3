package lambda_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imageroot/test/runner"
)

// A process is a running bootstrap with its own Lambda Runtime API, as
// https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html describes it.
type process struct {
	api    *httptest.Server
	cmd    *exec.Cmd
	log    *runner.Buffer
	exited chan struct{}
	// Cold is the time from the start of the process to its first request for
	// an event.
	Cold time.Duration

	ready chan struct{}
	next  chan *invocation
	one   sync.Mutex // an instance handles one event at a time

	mu      sync.Mutex
	current *invocation
	asked   bool
	began   time.Time
}

type invocation struct {
	id       string
	payload  []byte
	deadline time.Time
	answer   chan outcome
}

// An outcome is the result of an invocation.
type outcome struct {
	payload []byte
	failed  bool
}

// launch starts a bootstrap. It is killed when the test ends.
func launch(t *testing.T, argv []string, env []string) *process {
	t.Helper()
	p := &process{log: &runner.Buffer{}, exited: make(chan struct{}), ready: make(chan struct{}), next: make(chan *invocation)}
	p.api = httptest.NewServer(http.HandlerFunc(p.serve))
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append([]string{
		"AWS_LAMBDA_RUNTIME_API=" + strings.TrimPrefix(p.api.URL, "http://"), "AWS_REGION=us-east-1",
		"AWS_LAMBDA_FUNCTION_NAME=test", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "PATH=/usr/bin:/bin",
	}, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.mu.Lock()
	p.began = time.Now()
	p.mu.Unlock()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // its log has the reason
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		p.api.CloseClientConnections()
		p.api.Close()
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have exited
	<-p.exited
}

const apiPrefix = "/2018-06-01/runtime/"

func (p *process) serve(w http.ResponseWriter, r *http.Request) {
	what, ok := strings.CutPrefix(r.URL.Path, apiPrefix)
	switch {
	case ok && r.Method == http.MethodGet && what == "invocation/next":
		p.hand(w, r)
	case ok && r.Method == http.MethodPost && strings.HasPrefix(what, "invocation/"):
		id, end := path.Split(strings.TrimPrefix(what, "invocation/"))
		body, err := io.ReadAll(r.Body)
		p.mu.Lock()
		inv := p.current
		p.current = nil
		p.mu.Unlock()
		const most = 6<<20 + 100
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
		case inv == nil || id != inv.id+"/" || end != "response" && end != "error":
			http.Error(w, "no such invocation", http.StatusForbidden)
		case len(body) > most:
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			inv.answer <- outcome{[]byte(`{"errorType":"Function.ResponseSizeTooLarge"}`), true}
		default:
			w.WriteHeader(http.StatusAccepted)
			inv.answer <- outcome{body, end == "error"}
		}
	default:
		http.NotFound(w, r)
	}
}

// hand gives the process its next event.
func (p *process) hand(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	if !p.asked {
		p.asked, p.Cold = true, time.Since(p.began)
		close(p.ready)
	}
	p.mu.Unlock()
	select {
	case inv := <-p.next:
		p.mu.Lock()
		p.current = inv
		p.mu.Unlock()
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", inv.id)
		w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(inv.deadline.UnixMilli(), 10))
		w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:test")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(inv.payload)
	case <-r.Context().Done():
	}
}

// wait returns nil when the process is ready, and an error with its log if it
// has exited.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-p.exited:
		return fmt.Errorf("the function does not start: %s", p.log)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errTimeout is the error of an invocation without an answer in time: Lambda
// kills the process.
var errTimeout = errors.New("the function did not answer in time")

// invoke runs an invocation within a timeout.
func (p *process) invoke(ctx context.Context, payload []byte, timeout time.Duration) ([]byte, error) {
	p.one.Lock()
	defer p.one.Unlock()
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	inv := &invocation{
		id: fmt.Sprintf("00000000-0000-4000-8000-%012d", time.Now().UnixNano()%1e12), payload: payload,
		deadline: time.Now().Add(timeout), answer: make(chan outcome, 1),
	}
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case p.next <- inv:
	case <-p.exited:
		return nil, fmt.Errorf("the function has exited: %s", p.log)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case out := <-inv.answer:
		if out.failed {
			return nil, fmt.Errorf("the function failed: %s", out.payload)
		}
		return out.payload, nil
	case <-p.exited:
		return nil, fmt.Errorf("the function exited: %s", p.log)
	case <-late.C:
		p.kill()
		return nil, errTimeout
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// as decodes the answer of a function.
func as[T any](t *testing.T, data []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return v
}
