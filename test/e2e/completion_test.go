package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imageroot/test/need"
)

// A prompt is an interactive shell on a terminal.
type prompt struct {
	sh    *shell
	typed io.Writer

	mu   sync.Mutex
	seen strings.Builder // on the terminal
}

// newPrompt starts an interactive shell that completes the commands of imageroot, by the
// lines of the help. The commands are not run but written down.
func (sh *shell) newPrompt(t *testing.T, name string) *prompt {
	t.Helper()
	example := regexp.MustCompile(`imageroot completion ` + name + ` > ~/(\S+)`).FindStringSubmatch(sh.must(t, "completion", "--help"))
	write := func(file, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(sh.home, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(example[1], sh.must(t, "completion", name), 0o600)
	write("bin/imageroot", fmt.Sprintf("#!/bin/sh\ncase $1 in __complete*) exec '%s' \"$@\" ;; esac\n{ printf '<%%s>' \"$@\"; echo; } >>'%s/ran'\n", binary, sh.home), 0o700)
	write("bashrc", ". /usr/share/bash-completion/bash_completion\nPS1='READY> '\n", 0o600)
	write(".zshrc", "fpath+=~/.zfunc\nautoload -U compinit\ncompinit -u\nPS1='READY> '\n", 0o600)
	write(".config/fish/config.fish", "function fish_prompt; echo 'READY> '; end\nset -g fish_greeting\n", 0o600)
	cmd := exec.Command(name, map[string][]string{
		"bash": {"--noprofile", "--rcfile", filepath.Join(sh.home, "bashrc"), "-i"},
		"zsh":  {"-o", "no_global_rcs", "-i"},
		"fish": {"-i"},
	}[name]...)
	cmd.Env = append(sh.env, "PATH="+filepath.Join(sh.home, "bin")+":"+os.Getenv("PATH"), "TERM=xterm", "LANG=C.UTF-8")
	cmd.Dir = sh.home
	master, slave := need.Terminal(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	p := &prompt{sh: sh, typed: master}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.seen.Write(b[:n])
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-read
	})
	p.wait(t, "the prompt", func() bool { return strings.Contains(p.screen(), "READY> ") })
	return p
}

func (p *prompt) screen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.String()
}

// wait waits until the shell has done something.
func (p *prompt) wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	eventually(t, time.Minute, what, func() error {
		if done() {
			return nil
		}
		return fmt.Errorf("the terminal shows %q", p.screen())
	})
}

// types types a line, in which \t completes, and returns the arguments that ran.
func (p *prompt) types(t *testing.T, line string) string {
	t.Helper()
	file := filepath.Join(p.sh.home, "ran")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.typed, "imageroot "+line+"\r"); err != nil {
		t.Fatal(err)
	}
	var ran []byte
	p.wait(t, "what runs for "+line, func() bool {
		ran, _ = os.ReadFile(file)
		return strings.HasSuffix(string(ran), "\n")
	})
	return strings.TrimSpace(string(ran))
}

// TestCompletion completes commands and names with TAB, in the shells that people use.
func TestCompletion(t *testing.T) {
	t.Parallel()
	need.Programs(t, "bash", "zsh", "fish")
	s := Start(t, Options{})
	names := []string{
		"debian-12.img", "debian-13.img", "fedora+42@x,y%.img", "Grüße.img", "evil.img",
		"evil$(touch pwned).img", "evil`touch pwned`.img", "evil;touch pwned;.img", "evil' $(touch pwned) '.img", `evil" $(touch pwned) ".img`,
		"one$(touch pwned).img", "two;touch pwned;a.img", "two;touch pwned;b.img", "three (touch pwned).img", "four*?[a].img", "five~&|<>#!.img", "-six.img",
	}
	for i, name := range names {
		s.Put(t, name, content(uint64(i), 1000))
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			sh := s.shell(t)
			p := sh.newPrompt(t, shell)
			for _, c := range [][2]string{
				{"pul\t", "<pull>"},
				{"show fed\t", "<show><fedora+42@x,y%.img>"},
				{"pull Gr\t", "<pull><Grüße.img>"},
				{"pull debian-13\t", "<pull><debian-13.img>"},
				{"pull deb\t3.img", "<pull><debian-13.img>"},
				{"ls --arc\tamd64", "<ls><--arch><amd64>"},
				{"completion fi\t", "<completion><fish>"},
				// Nothing of a hostile name is typed.
				{"pull evi\t", "<pull><evil.img>"},
				{"pull one\tX", "<pull><oneX>"},
				{"pull tw\tX", "<pull><twX>"},
				{"pull thre\tX", "<pull><threX>"},
				{"pull fou\tX", "<pull><fouX>"},
				{"pull fiv\tX", "<pull><fivX>"},
				{"pull -- -si\tX", "<pull><--><-siX>"},
				{"pull 'evil$(\tX'", "<pull><evil$(X>"},
			} {
				if got := p.types(t, c[0]); got != c[1] {
					t.Errorf("%q runs %s, want %s", c[0], got, c[1])
				}
			}
			if _, err := os.Lstat(filepath.Join(sh.home, "pwned")); !os.IsNotExist(err) {
				t.Errorf("a name was run: %v", err)
			}
			if t.Failed() {
				t.Logf("%q", p.screen())
			}
		})
	}
}
