// Package need declares the needs of a test beyond Go, so that make unit can
// skip the test. The names of tests that need minutes, gigabytes or root begin
// with TestDeep: make test skips them and make deep runs them.
package need

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Programs declares that a test runs the programs with these names. With
// -short it skips the test. Otherwise it fails the test if one of them is not
// installed.
func Programs(t testing.TB, names ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out with -short: it runs other programs than go")
	}
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%s is not installed (make deps installs it): %v", name, err)
		}
	}
}

// Root fails the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test takes root: sudo make deep")
	}
}

// Mount mounts a file system of that kind for the test and returns its
// directory. It needs root.
func Mount(t testing.TB, kind, options string) string {
	t.Helper()
	Root(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, kind, 0, options); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Loop returns the path of a block device that has the bytes of a file, for the test. It
// needs root and losetup.
func Loop(t testing.TB, file string, options ...string) string {
	t.Helper()
	Root(t)
	Programs(t, "losetup")
	out, err := exec.CommandContext(t.Context(), "losetup", append(options, "--find", "--show", file)...).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v %s", err, out)
		}
	})
	return device
}
