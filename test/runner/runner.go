// Package runner builds the real imageroot binary, starts it as a separate
// process, and stops it: with SIGINT, or with SIGKILL as a power cut would.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Root returns the directory of the module.
func Root(ctx context.Context) (string, error) {
	gomod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(gomod))), nil
}

// Build compiles the binary into dir and returns its path. It passes flags to
// go build ("-race", "-ldflags=-s -w").
func Build(ctx context.Context, dir string, flags ...string) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "imageroot")
	args := append([]string{"build", "-o", binary}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./local")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./local: %w\n%s", err, out)
	}
	return binary, nil
}

// Options are the options of a process.
type Options struct {
	Binary string
	Args   []string
	Env    []string // the whole environment; the last of equal names counts
	Dir    string   // working directory
	// Answers reports whether the process at the URL of its pages is ready. Nil asks
	// /readyz.
	Answers func(ctx context.Context, pages string) bool
}

// A Process is an imageroot that runs or has ended. Its methods are safe for
// concurrent use.
type Process struct {
	Pages string        // "http://127.0.0.1:PORT", as printed by the process
	S3    string        // the gateway inside; empty if another S3 server is used
	Ready time.Duration // from the start until the process was ready

	cmd     *exec.Cmd
	out     Buffer
	log     Buffer
	exited  chan struct{}
	waitErr error
}

var (
	pagesLine = regexp.MustCompile(`(?m)^\s*pages\s+(http://\S+)`)
	s3Line    = regexp.MustCompile(`(?m)^\s*s3\s+(http://\S+)`)
)

// Start starts the binary and waits until it is ready. If the binary exits
// first, the error is an [*ExitError]. If ctx ends first, Start kills it.
func Start(ctx context.Context, o Options) (*Process, error) {
	begin := time.Now()
	answers := o.Answers
	if answers == nil {
		answers = answersReady
	}
	p := &Process{exited: make(chan struct{})}
	p.cmd = exec.Command(o.Binary, o.Args...)
	p.cmd.Env = o.Env
	p.cmd.Dir = o.Dir
	p.cmd.Stdout = &p.out
	p.cmd.Stderr = &p.log
	p.cmd.WaitDelay = 2 * time.Second
	// The server must not outlive the test, even if the test is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.waitErr = p.cmd.Wait()
		close(p.exited)
	}()
	for {
		if p.Pages == "" {
			out := p.out.Bytes()
			if m := pagesLine.FindSubmatch(out); m != nil {
				if s := s3Line.FindSubmatch(out); s != nil {
					p.S3 = strings.TrimSuffix(string(s[1]), "/")
				}
				p.Pages = strings.TrimSuffix(string(m[1]), "/")
			}
		} else if answers(ctx, p.Pages) {
			p.Ready = time.Since(begin)
			// The line of the gateway may be printed after that of the pages.
			if s := s3Line.FindSubmatch(p.out.Bytes()); s != nil {
				p.S3 = strings.TrimSuffix(string(s[1]), "/")
			}
			return p, nil
		}
		select {
		case <-p.exited:
			return nil, &ExitError{Code: p.cmd.ProcessState.ExitCode(), Stdout: p.Stdout(), Stderr: p.Log()}
		case <-ctx.Done():
			_ = p.Kill()
			return nil, fmt.Errorf("not ready: %w\nstdout:\n%s\nstderr:\n%s", ctx.Err(), p.Stdout(), p.Log())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func answersReady(ctx context.Context, pages string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, pages+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	// With IMAGEROOT_PUBLIC_READ=false a ready server answers 401.
	return res.StatusCode == http.StatusOK || res.StatusCode == http.StatusUnauthorized
}

// An ExitError is the error of a binary that ended before it was ready.
type ExitError struct {
	Code           int
	Stdout, Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("exit status %d\nstdout:\n%s\nstderr:\n%s", e.Code, e.Stdout, e.Stderr)
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stdout returns what the process has printed.
func (p *Process) Stdout() string { return string(p.out.Bytes()) }

// Log returns what the process has written to standard error.
func (p *Process) Log() string { return string(p.log.Bytes()) }

// Signal sends a signal to a running process.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Stop sends SIGINT, as Ctrl-C does, and waits for the process to end. It
// returns an error if the exit status is not 0. After limit it kills the
// process and returns an error.
func (p *Process) Stop(limit time.Duration) error {
	if err := p.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return p.waitErr
	case <-time.After(limit):
		_ = p.Kill()
		return fmt.Errorf("still running %v after SIGINT", limit)
	}
}

// Kill sends SIGKILL and waits for the process to end. It returns nil if the
// process has ended already.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.exited
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
