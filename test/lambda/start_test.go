package lambda_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
)

// TestEnvironment: the code reads what the template sets. A function with a
// variable missing, or one too many, does not start and names it.
func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	starts := func(f *function, env []string) (bool, string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		p := launch(t, f.argv, env)
		err := p.wait(ctx)
		p.kill()
		return err == nil, p.log.String()
	}
	for id, f := range w.fn {
		if ok, log := starts(f, f.env); !ok {
			t.Fatalf("%s does not start: %s", id, log)
		}
		for i, kv := range f.env {
			name, _, _ := strings.Cut(kv, "=")
			if !strings.HasPrefix(name, "IMAGEROOT_") {
				continue
			}
			without := append(append([]string{}, f.env[:i]...), f.env[i+1:]...)
			switch name {
			case "IMAGEROOT_S3_ENDPOINT":
				continue // without it, the SDK connects to AWS
			case "IMAGEROOT_ALLOW_NET", "IMAGEROOT_PLAIN_HTTP":
				if ok, log := starts(f, without); !ok {
					t.Errorf("%s without %s does not start: %.300s", id, name, log)
				}
				continue
			}
			if ok, log := starts(f, without); ok || !strings.Contains(log, name+" is not set") {
				t.Errorf("%s without %s: starts %v: %.300s", id, name, ok, log)
			}
		}
		for _, more := range []string{"IMAGEROOT_LISTEN=:8080", "IMAGEROOT_NONSENSE=1"} {
			name, _, _ := strings.Cut(more, "=")
			if ok, log := starts(f, append([]string{more}, f.env...)); ok || !strings.Contains(log, name) {
				t.Errorf("%s with %s: starts %v: %.300s", id, more, ok, log)
			}
		}
	}
}

// TestPanic: a panic is a 500, and the same process serves the next event.
func TestPanic(t *testing.T) {
	p := launch(t, []string{filepath.Join(bootstraps, "amd64", "panicking", "bootstrap")}, nil)
	ask := func(path string) events.APIGatewayV2HTTPResponse {
		t.Helper()
		out, err := p.invoke(t.Context(), []byte(`{"version":"2.0","rawPath":"`+path+`","requestContext":{"http":{"method":"GET","path":"`+path+`"}}}`), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return as[events.APIGatewayV2HTTPResponse](t, out)
	}
	for range 3 {
		if out := ask("/panic"); out.StatusCode != 500 || strings.Contains(out.Body, "secret") || out.Headers["Content-Type"] != "application/problem+json" {
			t.Errorf("a panic: %+v", out)
		}
		if out := ask("/fine"); out.StatusCode != 200 {
			t.Errorf("after a panic: %+v", out)
		}
	}
	if _, err := p.invoke(t.Context(), []byte(`{"source":"aws.events"}`), time.Minute); err == nil || !strings.Contains(err.Error(), "the function failed") {
		t.Errorf("a schedule that panics: %v", err)
	}
	if out := ask("/fine"); out.StatusCode != 200 {
		t.Errorf("after that: %+v", out)
	}
	if !strings.Contains(p.log.String(), "a secret") {
		t.Errorf("the log does not say what happened: %s", p.log)
	}
}

// TestArm64 runs the deployed binaries under emulation.
func TestArm64(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Fatal("qemu-aarch64-static is needed by this test and not installed: apt-get install qemu-user-static")
	}
	if err := build("arm64", "catalog", "./functions/catalog/lambda"); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	f := w.fn["CatalogFunction"]
	f.argv = []string{qemu, filepath.Join(bootstraps, "arm64", "catalog", "bootstrap")}
	w.want(200, "GET", "/healthz", nil)
	w.want(200, "GET", "/readyz", nil)
	if r := w.want(200, "GET", "/images", nil); strings.TrimSpace(string(r.body)) != "[]" {
		t.Errorf("%v", r)
	}
	t.Logf("cold start under emulation: %v", f.cold)
}

// TestColdStart logs the time that the start of each function takes, with the
// services on this machine.
func TestColdStart(t *testing.T) {
	w := newWorld(t)
	w.want(200, "GET", "/healthz", nil) // the password's hash is stored by now
	for id, f := range w.fn {
		var best time.Duration
		for range 3 {
			p := launch(t, f.argv, f.env)
			if err := p.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if best == 0 || p.Cold < best {
				best = p.Cold
			}
			p.kill()
		}
		t.Logf("%s: %v", id, best)
	}
}
