package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"imageroot/test/runner"
)

// Credentials of the runners.
const (
	password  = "torture: nothing to see here"
	token     = "torture-token-0123456789abcdef"
	accessKey = "TORTUREACCESSKEY1234"
	secretKey = "torture-secret-key-0123456789abcdef0123"
)

// A node is a runner. It can be started again over the same buckets and at the same
// addresses.
type node struct {
	number int
	launch runner.Options
	logTo  string
	died   func()

	mu      sync.Mutex // held while it starts or ends
	process *runner.Process
	pages   string
}

// A key is an S3 access key and its secret.
type key struct {
	Access string `json:"program_access_key"`
	Secret string `json:"program_secret_key"`
}

// environment returns the environment variables of all runners, and more.
func environment(dir string, more ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "IMAGEROOT_ALLOW_NET=loopback",
		"IMAGEROOT_PASSWORD=" + password, "IMAGEROOT_TOKEN=" + token,
	}, more...)
}

func newNode(number int, dir, binary string, died func(number int), env []string, args ...string) *node {
	pages := freeAddr()
	return &node{
		number: number, pages: "http://" + pages, logTo: filepath.Join(dir, fmt.Sprintf("runner%d.log", number)),
		launch: runner.Options{Binary: binary, Args: append([]string{"--listen", pages}, args...), Env: env, Dir: dir},
		died:   func() { died(number) },
	}
}

// firstNode returns the runner with the gateway, and the gateway's URL.
func firstNode(dir, binary string, died func(number int), lead time.Duration) (n *node, s3 string) {
	gateway := freeAddr()
	env := environment(dir, leadVariable+"="+lead.String(), "IMAGEROOT_S3_ACCESS_KEY="+accessKey, "IMAGEROOT_S3_SECRET_KEY="+secretKey)
	return newNode(1, dir, binary, died, env, "--s3-listen", gateway, "--data", filepath.Join(dir, "data")), "http://" + gateway
}

// otherNode returns a runner that uses the first one's gateway.
func otherNode(number int, dir, binary string, died func(number int), s3 string, k key, lead time.Duration) *node {
	env := environment(dir, leadVariable+"="+lead.String(), "AWS_ACCESS_KEY_ID="+k.Access, "AWS_SECRET_ACCESS_KEY="+k.Secret, "AWS_REGION=us-east-1")
	return newNode(number, dir, binary, died, env, "--s3-endpoint", s3)
}

// programKey reads the key with which imageroot uses the gateway, and the other runners may,
// too. The uploader's key is for the image root only.
func programKey(dir string) (k key, err error) {
	data, err := os.ReadFile(filepath.Join(dir, "data", credentialsFile))
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	return k, err
}

const credentialsFile = ".imageroot/credentials.json"

// freeAddr returns a loopback address with a free port.
func freeAddr() string {
	l := listenLoopback()
	defer l.Close()
	return l.Addr().String()
}

// start starts the runner if it is down, and waits for it to be ready.
func (n *node) start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		return nil
	}
	p, err := runner.Start(ctx, n.launch)
	if err != nil {
		n.keepLog(err.Error())
		return fmt.Errorf("runner %d: %w", n.number, err)
	}
	n.process = p
	return nil
}

// up reports whether the runner is started.
func (n *node) up() bool {
	if !n.mu.TryLock() {
		return false
	}
	defer n.mu.Unlock()
	return n.process != nil
}

// kill ends the runner with SIGKILL.
func (n *node) kill() error {
	return n.finish(func(p *runner.Process) error { return p.Kill() })
}

// stop ends the runner with a signal that it handles. The limit is more than the 13 s that
// it gives requests, jobs and the journal.
func (n *node) stop() error {
	const limit = 30 * time.Second
	return n.finish(func(p *runner.Process) error { return p.Stop(limit) })
}

func (n *node) finish(end func(*runner.Process) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return nil
	}
	err := end(n.process)
	n.keepLog(n.process.Log())
	n.process = nil
	n.died()
	if err != nil {
		return fmt.Errorf("runner %d: %w", n.number, err)
	}
	return nil
}

// pause suspends the process for d, as closing the lid of a laptop does.
func (n *node) pause(ctx context.Context, d time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return nil
	}
	if err := n.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return n.process.Signal(syscall.SIGCONT)
}

// gone reports whether the process has ended without being killed or stopped.
func (n *node) gone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return false
	}
	select {
	case <-n.process.Exited():
		return true
	default:
		return false
	}
}

func (n *node) keepLog(text string) {
	f, err := os.OpenFile(n.logTo, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return // the log file is optional
	}
	defer f.Close()
	fmt.Fprintf(f, "%s\n---- ended %s\n", text, time.Now().Format("15:04:05.000"))
}

// logs returns the logs of all processes of the runner.
func (n *node) logs() string {
	data, _ := os.ReadFile(n.logTo) // missing if no process has ended
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		return string(data) + n.process.Log()
	}
	return string(data)
}

// residentMiB returns the resident memory of the process.
func (n *node) residentMiB() (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.process.PID()))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(data, []byte("VmRSS:"))
	fields := strings.Fields(string(rest))
	if len(fields) == 0 {
		return 0, fmt.Errorf("no VmRSS in %q", data)
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	return kib >> 10, err
}
