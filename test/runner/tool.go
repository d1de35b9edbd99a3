package runner

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"sync"
	"time"
)

// Tool runs a program and returns its standard output and error. The program
// has this process's PATH, home as HOME, the C.UTF-8 locale and env; it inherits
// nothing else of the environment.
func Tool(ctx context.Context, home string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C.UTF-8"}, env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A Buffer is a bytes.Buffer that a process may write to while it is read.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// Bytes returns a copy of the contents.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

// String returns the contents as a string.
func (b *Buffer) String() string { return string(b.Bytes()) }
