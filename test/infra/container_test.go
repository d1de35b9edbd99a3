package infra

import (
	"context"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imageroot/test/runner"
)

// TestContainerfile tests that Docker's build checks accept the Containerfile,
// and do find faults.
func TestContainerfile(t *testing.T) {
	if out, log, err := tool(t, nil, "run", "./containerfile", abs(t, filepath.Join(root, "infra", "Containerfile"))); err != nil {
		t.Errorf("%v\n%s%s", err, out, log)
	}
	bad := write(t, filepath.Join(t.TempDir(), "Containerfile"), "FROM busybox:1.36 as build\nENV API_TOKEN=x\nCMD sh -c ls\n")
	out, _, err := tool(t, nil, "run", "./containerfile", bad)
	for _, rule := range []string{"FromAsCasing", "SecretsUsedInArgOrEnv", "JSONArgsRecommended"} {
		if err == nil || !strings.Contains(out, rule) {
			t.Errorf("%s was not found: %v\n%s", rule, err, out)
		}
	}
}

// buildah keeps its images in a directory of the test, and needs neither a
// daemon nor the network.
type buildah struct {
	t   *testing.T
	dir string
}

func (b buildah) line(args ...string) []string {
	return append([]string{"buildah", "--storage-driver", "vfs", "--root", filepath.Join(b.dir, "root"), "--runroot", filepath.Join(b.dir, "run")}, args...)
}

func (b buildah) must(args ...string) string {
	b.t.Helper()
	line := b.line(args...)
	return strings.TrimSpace(must(b.t, []string{"BUILDAH_ISOLATION=chroot"}, line[0], line[1:]...))
}

// golang makes a stand-in for the image that the Containerfile names: a shell,
// the root certificates, and this machine's Go with its build cache.
func (b buildah) golang() (name string, mounts []string) {
	b.t.Helper()
	dir := b.t.TempDir()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, name := range []string{"sh", "mkdir"} {
		path := write(b.t, filepath.Join(dir, "bin", name), read(b.t, busybox))
		if err := os.Chmod(path, 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	write(b.t, filepath.Join(dir, "etc/ssl/certs/ca-certificates.crt"), "the roots of TLS")
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o777); err != nil {
		b.t.Fatal(err)
	}
	goenv := strings.Fields(must(b.t, nil, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE"))
	for i, at := range []string{"/usr/local/go:ro", "/gomodcache:ro", "/gocache"} {
		mounts = append(mounts, "--volume", goenv[i]+":"+at)
	}
	c := b.must("from", "scratch")
	b.must("copy", c, dir, "/")
	b.must("config", "--env", "PATH=/usr/local/go/bin:/bin", "--env", "HOME=/", "--env", "GOTOOLCHAIN=local", "--env", "GOPROXY=off",
		"--env", "GOMODCACHE=/gomodcache", "--env", "GOCACHE=/gocache", c)
	b.must("commit", c, "localhost/golang")
	return "localhost/golang", mounts
}

// TestContainer builds the image from the Containerfile, checks that it has the
// expected files and no others, and that it serves as its user.
func TestContainer(t *testing.T) {
	b := buildah{t, t.TempDir()}
	golang, mounts := b.golang()
	base := regexp.MustCompile(`FROM --platform=\S+ (\S+)`).FindStringSubmatch(read(t, filepath.Join(root, "infra", "Containerfile")))
	if base == nil {
		t.Fatal("the Containerfile is from no image")
	}
	build := func(arch string) (container, files string) {
		t.Helper()
		name := "localhost/imageroot:" + arch
		b.must(slices.Concat([]string{"build", "--network", "none", "--build-context", base[1] + "=container-image://" + golang}, mounts, []string{
			"--build-arg", "TARGETOS=linux", "--build-arg", "TARGETARCH=" + arch, "--build-arg", "TARGETVARIANT=", "--build-arg", "VERSION=tested",
			"--tag", name, "--file", filepath.Join(root, "infra", "Containerfile"), root,
		})...)
		c := b.must("from", name)
		return c, b.must("mount", c)
	}
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		_, files := build(arch)
		f, err := elf.Open(filepath.Join(files, "imageroot"))
		if err != nil {
			t.Fatal(err)
		}
		if libs, err := f.ImportedLibraries(); f.Machine != machine || err != nil || len(libs) > 0 {
			t.Errorf("for %s the binary is for %v, and linked with %q (%v)", arch, f.Machine, libs, err)
		}
		_ = f.Close()
	}

	c, files := build(runtime.GOARCH)
	var holds []string
	err := filepath.WalkDir(files, func(path string, d os.DirEntry, err error) error {
		if err == nil && (!d.IsDir() || d.Name() == "data") {
			holds = append(holds, strings.TrimPrefix(path, files))
		}
		return err
	})
	if want := []string{"/data", "/etc/ssl/certs/ca-certificates.crt", "/imageroot"}; err != nil || !slices.Equal(holds, want) {
		t.Errorf("it holds %q, want %q (%v)", holds, want, err)
	}
	info, err := os.Stat(filepath.Join(files, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 65532 {
		t.Errorf("/data belongs to %d", owner)
	}
	var image struct {
		OCIv1 struct {
			Config struct {
				User         string
				Entrypoint   []string
				Env          []string
				ExposedPorts map[string]struct{}
				Volumes      map[string]struct{}
			}
		}
	}
	if err := json.Unmarshal([]byte(b.must("inspect", "--type", "image", "localhost/imageroot:"+runtime.GOARCH)), &image); err != nil {
		t.Fatal(err)
	}
	config := image.OCIv1.Config
	if _, data := config.Volumes["/data"]; config.User != "65532:65532" || !slices.Equal(config.Entrypoint, []string{"/imageroot"}) ||
		!slices.Contains(config.Env, "IMAGEROOT_DATA=/data") || len(config.ExposedPorts) != 2 || !data {
		t.Errorf("it is %+v", config)
	}

	// With only the file system of the image, as the image's user.
	line := b.line("run", "--isolation", "chroot", c, "--", "/imageroot", "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p, err := runner.Start(ctx, runner.Options{Binary: line[0], Args: line[1:], Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	healthy(t, p)
	if !strings.Contains(p.Stdout(), "imageroot tested") || !strings.Contains(p.Stdout(), "/data/images") {
		t.Errorf("it says\n%s", p.Stdout())
	}
	_ = p.Stop(10 * time.Second) // buildah kills its child, and reports that
}
