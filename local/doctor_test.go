package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// The command prints the table, and fails if a check fails.
func TestDoctorCommand(t *testing.T) {
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "IMAGEROOT_") {
			t.Setenv(name, value)
			_ = os.Unsetenv(name)
		}
	}
	ask := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"doctor"}, args...), &out, io.Discard)
		return out.String(), err
	}
	dir := t.TempDir()
	out, err := ask("--data", dir, "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0")
	if err != nil || !strings.Contains(out, "ok    directory   "+dir) || strings.Contains(out, "fail") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, what := range []string{"directory", "attributes", "space", "clock", "memory", "pages", "s3", "events"} {
		if !strings.Contains(out, " "+what+" ") {
			t.Errorf("nothing of %s in\n%s", what, out)
		}
	}
	if left, err := fs.Glob(os.DirFS(dir), "*"); err != nil || len(left) > 0 {
		t.Errorf("it left %q (%v)", left, err)
	}
	t.Setenv("HTTPS_PROXY", "http://user:secret@proxy.lan:3128")
	out, err = ask("--data", dir, "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0")
	if err != nil || !strings.Contains(out, "warn  proxy       HTTPS_PROXY is set") || strings.Contains(out, "secret") {
		t.Errorf("with a proxy: %v\n%s", err, out)
	}
	out, err = ask("--data", "/dev/null", "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0")
	if err == nil || !strings.Contains(err.Error(), "1 of ") || !strings.Contains(out, "fail  directory") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := ask("--nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a flag that is none: %v", err)
	}
	if out, err := ask("--help"); err != nil || !strings.Contains(out, "imageroot doctor") {
		t.Errorf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"doctor", "--data", dir, "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0"}, io.Discard, io.Discard); err == nil {
		t.Error("one that was interrupted says that all is well")
	}
}
