// Package emulator runs a compiled Lambda function under AWS's Runtime Interface
// Emulator, which make emulator builds. sam local invoke runs the same emulator in
// its containers.
package emulator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"imageroot/test/runner"
	"imageroot/test/template"
)

// Build compiles a function of the repository (pkg is "./functions/catalog/lambda") as
// make lambda does, for an architecture or, if arch is empty, for this machine's. The
// binary is the file out.
func Build(ctx context.Context, arch, pkg, out string) error {
	root, err := template.Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// A Config describes a function.
type Config struct {
	// Command starts the function: the file that Build wrote, or a program that runs it.
	Command []string
	// Env is the function's environment. The emulator adds the variables that Lambda
	// defines. The default of AWS_REGION is us-east-1.
	Env []string
	// Timeout bounds an invocation, the start of the function included. It is rounded up
	// to seconds. The default is Lambda's, three seconds.
	Timeout time.Duration
	// Memory, in MiB, is only told to the function. The default is Lambda's, 128.
	Memory int
}

// An Emulator is a running emulator: one instance of a function. It is safe for
// concurrent use, and handles one event at a time.
type Emulator struct {
	cfg    Config
	cmd    *exec.Cmd
	url    string
	log    runner.Buffer
	exited chan struct{}
	one    sync.Mutex
}

// Start starts an emulator. It starts the function at the first event, so the first
// Invoke takes the time of a cold start. If ctx ends before the emulator listens, Start
// returns an error. The caller must call Kill. Emulator and function also end with the
// calling process.
func Start(ctx context.Context, c Config) (*Emulator, error) {
	root, err := template.Root()
	if err != nil {
		return nil, err
	}
	program := filepath.Join(root, "tools/bin/aws-lambda-rie")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("make emulator builds the emulator: %w", err)
	}
	// A port that was free may be taken when the emulator listens.
	for range 3 {
		var e *Emulator
		if e, err = start(ctx, program, c); err == nil || ctx.Err() != nil {
			return e, err
		}
	}
	return nil, err
}

func start(ctx context.Context, program string, c Config) (*Emulator, error) {
	events, runtime, err := addresses()
	if err != nil {
		return nil, err
	}
	e := &Emulator{cfg: c, url: "http://" + events + "/2015-03-31/functions/function/invocations", exited: make(chan struct{})}
	// The emulator does not end its function when it is killed; setpriv does.
	args := []string{"--runtime-interface-emulator-address", events, "--runtime-api-address", runtime, "setpriv", "--pdeathsig", "KILL"}
	e.cmd = exec.Command(program, append(args, c.Command...)...)
	e.cmd.Env = append([]string{
		"PATH=/usr/bin:/bin", "AWS_REGION=us-east-1",
		"AWS_LAMBDA_FUNCTION_TIMEOUT=" + strconv.Itoa(int((cmp.Or(c.Timeout, 3*time.Second)+time.Second-1)/time.Second)),
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=" + strconv.Itoa(cmp.Or(c.Memory, 128)),
	}, c.Env...)
	e.cmd.Stdout, e.cmd.Stderr = &e.log, &e.log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = e.cmd.Wait() // its log has the reason
		close(e.exited)
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !listens(events) || !listens(runtime) {
		select {
		case <-tick.C:
		case <-e.exited:
			return nil, fmt.Errorf("the emulator does not start: %s", e.Log())
		case <-ctx.Done():
			e.Kill()
			return nil, fmt.Errorf("the emulator does not start: %w\n%s", ctx.Err(), e.Log())
		}
	}
	return e, nil
}

// addresses returns two free addresses, at a host of 127.0.0.0/8 that nothing else
// uses: the emulator does not say which port it listens on, so its port must not be
// taken meanwhile.
func addresses() (a, b string, err error) {
	var host [3]byte
	_, _ = rand.Read(host[:]) // never fails
	at := net.JoinHostPort(net.IPv4(127, 1+host[0]%254, host[1], 1+host[2]%254).String(), "0")
	first, err := net.Listen("tcp", at)
	if err != nil {
		return "", "", err
	}
	second, err := net.Listen("tcp", at)
	if err != nil {
		return "", "", errors.Join(err, first.Close())
	}
	return first.Addr().String(), second.Addr().String(), errors.Join(first.Close(), second.Close())
}

func listens(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err == nil {
		_ = conn.Close() // it was only a test
	}
	return err == nil
}

// Kill kills the emulator and the function, and waits for their end.
func (e *Emulator) Kill() {
	_ = e.cmd.Process.Kill() // it may have exited
	<-e.exited
}

// Alive reports whether the emulator runs.
func (e *Emulator) Alive() bool {
	select {
	case <-e.exited:
		return false
	default:
		return true
	}
}

// Log returns what the emulator and the function have written. It is complete after
// Kill.
func (e *Emulator) Log() string { return e.log.String() }

var initReport = regexp.MustCompile(`INIT REPORT\(durationMs: ([0-9.]+)\)`)

// Init returns the time that the last start of the function took, until it asked for an
// event, as the log says: call it after Kill. It is 0 if the function did not start.
func (e *Emulator) Init() time.Duration {
	all := initReport.FindAllStringSubmatch(e.Log(), -1)
	if len(all) == 0 {
		return 0
	}
	ms, _ := strconv.ParseFloat(all[len(all)-1][1], 64) // 0 if the emulator writes something else
	return time.Duration(ms * float64(time.Millisecond))
}

// PID returns the process ID of the function.
func (e *Emulator) PID() (int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", e.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if children := strings.Fields(string(data)); err == nil && len(children) > 0 {
			return strconv.Atoi(children[0])
		}
	}
	return 0, errors.New("the function does not run")
}

// ErrTimeout is the error of an invocation that took longer than Config.Timeout. The
// emulator has killed the function, and starts it again at the next event.
var ErrTimeout = errors.New("the function timed out")

// An Error is the error that a function has returned. The Type of a function that has
// exited is "Runtime.ExitError", and that of one whose answer exceeds Lambda's limit of
// 6 MiB is "Function.ResponseSizeTooLarge".
type Error struct {
	Type    string `json:"errorType"`
	Message string `json:"errorMessage"`
}

func (e *Error) Error() string { return "the function failed: " + e.Type + ": " + e.Message }

// Invoke invokes the function with an event and returns its answer. It waits for an
// invocation that runs. A failure of the function is an [*Error] or [ErrTimeout]. If ctx
// ends first, Invoke kills emulator and function.
func (e *Emulator) Invoke(ctx context.Context, event []byte) ([]byte, error) {
	e.one.Lock()
	defer e.one.Unlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(event))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, e.broken(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, e.broken(ctx, err)
	}
	// The emulator answers errors of functions with 200 as well.
	var failed Error
	switch {
	case bytes.HasPrefix(answer, []byte("Task timed out after ")):
		return nil, ErrTimeout
	case json.Unmarshal(answer, &failed) == nil && failed.Type != "":
		return nil, &failed
	case resp.StatusCode == http.StatusBadGateway && len(answer) == 0:
		return nil, &Error{"Runtime.ExitError", "the function does not start"}
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the emulator answers %s: %s\n%s", resp.Status, answer, e.Log())
	}
	return answer, nil
}

// broken is the error of an invocation without an answer. The emulator must not get
// another event while the function handles this one.
func (e *Emulator) broken(ctx context.Context, err error) error {
	e.Kill()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the emulator does not answer: %w\n%s", err, e.Log())
}
