// Package infra tests the files that install imageroot: the programs that read
// the units, the container, the compose file and the proxy's configuration read
// them, and the release is started under emulation.
//
// It needs make dist and make deps; make infra runs both.
package infra

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"imageroot/test/runner"
)

const root = "../.." // of the module

// released is the release for this machine.
var released = filepath.Join(root, "dist", "imageroot-linux-"+runtime.GOARCH)

func TestMain(m *testing.M) {
	for command, pkg := range map[string]string{
		"systemd-analyze": "systemd", "caddy": "caddy", "aws": "awscli", "buildah": "buildah", "busybox": "busybox-static", "qemu-aarch64-static": "qemu-user-static",
	} {
		if _, err := exec.LookPath(command); err != nil {
			fmt.Fprintf(os.Stderr, "%s is needed by these tests and not installed: apt-get install %s\n", command, pkg)
			os.Exit(1)
		}
	}
	if _, err := os.Stat(released); err != nil {
		fmt.Fprintln(os.Stderr, "there is no release to test: make dist")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// run runs a command and returns both its outputs.
func run(t *testing.T, env []string, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), &out, &log
	err = cmd.Run()
	return out.String(), log.String(), err
}

// must is run for a command that must succeed.
func must(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, log, err := run(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, log)
	}
	return out
}

// tool runs a program of the tools module.
func tool(t *testing.T, env []string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return run(t, env, "go", append([]string{"-C", filepath.Join(root, "tools")}, args...)...)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

func abs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// healthy fails the test if /healthz of a server does not answer 200.
func healthy(t *testing.T, p *runner.Process) {
	t.Helper()
	res, err := http.Get(p.Pages + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if body, err := io.ReadAll(io.LimitReader(res.Body, 1<<10)); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("GET /healthz: %s %q %v", res.Status, body, err)
	}
}

// ours returns the files of infra/ that are not for Lambda.
func ours(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	dir := filepath.Join(root, "infra")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "events":
			return filepath.SkipDir
		case d.IsDir(), d.Name() == "env.local.json", d.Name() == "translate.py":
			return nil
		}
		files[strings.TrimPrefix(path, dir+"/")] = read(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestSettings tests that imageroot reads the variables that these files set.
func TestSettings(t *testing.T) {
	help := must(t, nil, released, "--help")
	var known []string
	for _, m := range regexp.MustCompile(`(?m)^  --([a-z0-9-]+)`).FindAllStringSubmatch(help, -1) {
		known = append(known, m[1])
	}
	variables := regexp.MustCompile(`\bIMAGEROOT_[A-Z0-9_]+`)
	flags := regexp.MustCompile(`(?:bin/imageroot|\bimageroot doctor)((?: --[a-z0-9-]+(?:[= ][^-\s]\S*)?)+)`)
	found := 0
	for name, text := range ours(t) {
		for _, v := range variables.FindAllString(text, -1) {
			found++
			if flag := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(v, "IMAGEROOT_")), "_", "-"); !slices.Contains(known, flag) {
				t.Errorf("%s: %s is no setting", name, v)
			}
		}
		for _, m := range flags.FindAllStringSubmatch(text, -1) {
			for _, f := range regexp.MustCompile(`--([a-z0-9-]+)`).FindAllStringSubmatch(m[1], -1) {
				if !slices.Contains(known, f[1]) {
					t.Errorf("%s: --%s is no flag", name, f[1])
				}
			}
		}
	}
	if found < 10 || len(known) < 10 {
		t.Errorf("%d uses of %d settings were compared: something is not read", found, len(known))
	}
}

// TestPinned tests that every image has a version, so that the tested one is
// installed.
func TestPinned(t *testing.T) {
	images := regexp.MustCompile(`(?m)^\s*(?:FROM(?: --platform=\S+)?|Image=|image:(?: &\w+)?)\s*([^\s*]+)`)
	pinned := regexp.MustCompile(`^(scratch|localhost/imageroot:local|[a-z0-9.-]+/[a-z0-9/-]+:[A-Za-z0-9.-]*[0-9][A-Za-z0-9.-]*)$`)
	found := 0
	for name, text := range ours(t) {
		for _, m := range images.FindAllStringSubmatch(text, -1) {
			found++
			if !pinned.MatchString(m[1]) {
				t.Errorf("%s: %s is not pinned, or without its registry", name, m[1])
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d images were found", found)
	}
	golang := regexp.MustCompile(`golang:(\S+)`).FindStringSubmatch(read(t, filepath.Join(root, "infra", "Containerfile")))
	module := regexp.MustCompile(`(?m)^go (\S+)`).FindStringSubmatch(read(t, filepath.Join(root, "go.mod")))
	if golang == nil || module == nil || golang[1] != module[1] {
		t.Errorf("the container is built with Go %q, and go.mod has %q", golang, module)
	}
}
