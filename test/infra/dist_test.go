package infra

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/test/runner"
)

var machines = map[string]string{ // to the emulator for their programs
	"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static", "armv6": "qemu-arm-static", "armv7": "qemu-arm-static",
}

func dist(machine string) string { return filepath.Join(root, "dist", "imageroot-linux-"+machine) }

// TestRelease starts the release for each machine, which must serve.
func TestRelease(t *testing.T) {
	for machine, emulator := range machines {
		t.Run(machine, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
			defer cancel()
			line := []string{dist(machine), "--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--data", filepath.Join(t.TempDir(), "data")}
			if machine != runtime.GOARCH {
				line = slices.Insert(line, 0, emulator)
			}
			p, err := runner.Start(ctx, runner.Options{Binary: line[0], Args: line[1:], Env: []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}})
			if err != nil {
				t.Fatal(err)
			}
			healthy(t, p)
			t.Logf("ready after %v", p.Ready)
			if err := p.Stop(2 * time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBillOfMaterials compares the bill of materials of each release with what
// the linker put in, and the checksums with all files.
func TestBillOfMaterials(t *testing.T) {
	for machine := range machines {
		info, err := buildinfo.ReadFile(dist(machine))
		if err != nil {
			t.Fatal(err)
		}
		var bill struct {
			BOMFormat string
			Metadata  struct {
				Component struct{ Name, Version string }
			}
			Components []struct{ Name, Version string }
		}
		if err := json.Unmarshal([]byte(read(t, dist(machine)+".cdx.json")), &bill); err != nil {
			t.Fatal(err)
		}
		version := strings.Fields(must(t, nil, released, "--version"))
		if bill.BOMFormat != "CycloneDX" || bill.Metadata.Component.Name != "imageroot" || bill.Metadata.Component.Version != version[len(version)-1] {
			t.Errorf("%s: the bill is of %+v, and the program says %q", machine, bill.Metadata.Component, version)
		}
		var said, held []string
		for _, c := range bill.Components {
			said = append(said, c.Name+" "+c.Version)
		}
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			held = append(held, d.Path+" "+d.Version)
		}
		held = append(held, "std "+info.GoVersion)
		slices.Sort(said)
		slices.Sort(held)
		if !slices.Equal(said, held) {
			t.Errorf("%s: the bill names\n%s\nand the program holds\n%s", machine, strings.Join(said, "\n"), strings.Join(held, "\n"))
		}
	}
	dir := filepath.Join(root, "dist")
	if out, log, err := run(t, nil, "env", "-C", dir, "sha256sum", "--strict", "--check", "SHA256SUMS"); err != nil {
		t.Errorf("%v\n%s%s", err, out, log)
	}
	sums := read(t, filepath.Join(dir, "SHA256SUMS"))
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "SHA256SUMS" && !strings.Contains(sums, "  "+f.Name()+"\n") {
			t.Errorf("SHA256SUMS leaves out %s", f.Name())
		}
	}
}
