package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"imageroot/local/gateway"
)

const childDir = "GATEWAY_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

// child serves dir until its standard input ends.
func child(dir string) int {
	g, err := gateway.Start(context.Background(), config(dir))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("endpoint", g.Endpoint())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := g.Close(); err != nil {
		fmt.Println("error", err)
		return 1
	}
	return 0
}

// A process is a gateway in its own process.
type process struct {
	endpoint string
	kill     func()
}

func startChild(t testing.TB, dir string) process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			stdin.Close()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	endpoint, ok := strings.CutPrefix(strings.TrimSpace(line), "endpoint ")
	if err != nil || !ok {
		t.Fatalf("the other process said %q (%v)", line, err)
	}
	return process{endpoint, kill}
}
