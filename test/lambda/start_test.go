package lambda_test

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"imageroot/test/emulator"
)

// launch starts an emulator, which is killed when the test ends.
func launch(t *testing.T, cfg emulator.Config) *emulator.Emulator {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := emulator.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Kill)
	return e
}

// TestEnvironment: the code reads what the template sets. A function with a
// variable missing, or one too many, does not start and names it.
func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	starts := func(f *function, env []string) (bool, string) {
		t.Helper()
		cfg := f.cfg
		cfg.Env, cfg.Timeout = env, time.Minute
		e := launch(t, cfg)
		_, err := e.Invoke(t.Context(), []byte(`{}`))
		e.Kill()
		failed, ok := errors.AsType[*emulator.Error](err)
		if !ok {
			t.Fatalf("an event that the function does not know: %v", err)
		}
		return failed.Type != "Runtime.ExitError", e.Log()
	}
	for id, f := range w.fn {
		if ok, log := starts(f, f.cfg.Env); !ok {
			t.Fatalf("%s does not start: %s", id, log)
		}
		for i, kv := range f.cfg.Env {
			name, _, _ := strings.Cut(kv, "=")
			if !strings.HasPrefix(name, "IMAGEROOT_") {
				continue
			}
			without := slices.Delete(slices.Clone(f.cfg.Env), i, i+1)
			switch name {
			case "IMAGEROOT_S3_ENDPOINT":
				continue // without it, the SDK connects to AWS
			case "IMAGEROOT_ALLOW_NET", "IMAGEROOT_PLAIN_HTTP":
				if ok, log := starts(f, without); !ok {
					t.Errorf("%s without %s does not start: %s", id, name, log)
				}
				continue
			}
			if ok, log := starts(f, without); ok || !strings.Contains(log, name+" is not set") {
				t.Errorf("%s without %s: starts %v: %s", id, name, ok, log)
			}
		}
		for _, more := range []string{"IMAGEROOT_LISTEN=:8080", "IMAGEROOT_NONSENSE=1"} {
			name, _, _ := strings.Cut(more, "=")
			if ok, log := starts(f, append([]string{more}, f.cfg.Env...)); ok || !strings.Contains(log, name) {
				t.Errorf("%s with %s: starts %v: %s", id, more, ok, log)
			}
		}
	}
}

// TestFailures: a panic is a 500, and the same process serves the next event. A
// function that exits or hangs is started again.
func TestFailures(t *testing.T) {
	if err := emulator.Build(t.Context(), "", "./test/lambda/failing", bootstrap("failing")); err != nil {
		t.Fatal(err)
	}
	e := launch(t, emulator.Config{Command: []string{bootstrap("failing")}, Timeout: 10 * time.Second})
	get := func(path string) ([]byte, error) {
		return e.Invoke(t.Context(), []byte(`{"version":"2.0","rawPath":"`+path+`","requestContext":{"http":{"method":"GET","path":"`+path+`"}}}`))
	}
	ask := func(path string) events.APIGatewayV2HTTPResponse {
		t.Helper()
		out, err := get(path)
		if err != nil {
			t.Fatal(err)
		}
		return as[events.APIGatewayV2HTTPResponse](t, out)
	}
	pid := func() int {
		t.Helper()
		if out := ask("/fine"); out.StatusCode != 200 {
			t.Errorf("a request after a failure: %+v", out)
		}
		pid, err := e.PID()
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first := pid()
	for range 3 {
		if out := ask("/panic"); out.StatusCode != 500 || strings.Contains(out.Body, "secret") || out.Headers["Content-Type"] != "application/problem+json" {
			t.Errorf("a panic: %+v", out)
		}
	}
	_, err := e.Invoke(t.Context(), []byte(`{"source":"aws.events"}`))
	if _, ok := errors.AsType[*emulator.Error](err); !ok {
		t.Errorf("a schedule that panics: %v", err)
	}
	if pid() != first {
		t.Error("a panic has ended the process")
	}
	_, err = get("/exit")
	if failed, ok := errors.AsType[*emulator.Error](err); !ok || failed.Type != "Runtime.ExitError" {
		t.Errorf("a function that exits: %v", err)
	}
	second := pid()
	if second == first {
		t.Error("the function has not exited")
	}
	if _, err := get("/hang"); !errors.Is(err, emulator.ErrTimeout) {
		t.Errorf("a function that hangs: %v", err)
	}
	if pid() == second {
		t.Error("a function that hangs was not killed")
	}
	e.Kill()
	if !strings.Contains(e.Log(), "a secret") {
		t.Errorf("the log does not say what happened: %s", e.Log())
	}
}

// TestArm64 runs the deployed binaries under emulation.
func TestArm64(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Fatal("qemu-aarch64-static is needed by this test and not installed: apt-get install qemu-user-static")
	}
	if err := emulator.Build(t.Context(), "arm64", "./functions/catalog/lambda", bootstrap("arm64")); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	f := w.fn["CatalogFunction"]
	f.restart(func(cfg *emulator.Config) {
		cfg.Command, cfg.Timeout = []string{qemu, bootstrap("arm64")}, 5*time.Minute // an emulated start is slow
	})
	w.want(200, "GET", "/healthz", nil)
	w.want(200, "GET", "/readyz", nil)
	if r := w.want(200, "GET", "/images", nil); strings.TrimSpace(string(r.body)) != "[]" {
		t.Errorf("%v", r)
	}
	f.kill()
	t.Logf("cold start under emulation: %v", f.all[0].Init())
}

// TestColdStart logs the time that the start of each function takes, with the
// services on this machine.
func TestColdStart(t *testing.T) {
	w := newWorld(t)
	w.want(200, "GET", "/healthz", nil) // the password's hash is stored by now
	for id, f := range w.fn {
		var best time.Duration
		for range 3 {
			e := launch(t, f.cfg)
			if _, err := e.Invoke(t.Context(), []byte(`{}`)); err == nil {
				t.Errorf("%s knows an event that is none", id)
			}
			e.Kill()
			if best == 0 || e.Init() < best {
				best = e.Init()
			}
		}
		if best == 0 {
			t.Errorf("the emulator does not say how long the start of %s took", id)
		}
		t.Logf("%s: %v", id, best)
	}
}
