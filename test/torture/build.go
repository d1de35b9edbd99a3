package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"imageroot/test/runner"
)

// leads is how far the clocks of the runners are ahead of the gateway's file times: no two
// are more than a minute apart.
var leads = []time.Duration{-30 * time.Second, 0, 30 * time.Second}

// leadVariable is the environment variable of the lead of a runner's clock.
const leadVariable = "TORTURE_LEAD"

// edits are the changes of the source with which the binary is built. The program has no
// settings for these, and the clock of a Go program cannot be changed from outside: it reads
// the time without libc.
var edits = []struct{ file, old, new string }{
	{"shared/kit/kit.go", "Now: time.Now}", "Now: ahead}"},
	// All runners reconcile several times, and after the last damage.
	{"local/server.go", "reconcileEvery = 10 * time.Minute", "reconcileEvery = 15 * time.Second"},
	// A runner that is killed while it writes a checkpoint does not keep others from it.
	{"shared/index/compact.go", "lease = time.Minute", "lease = 5 * time.Second"},
	// Runners remove entries of the journal, and start from a checkpoint again after a
	// pause. Entries are kept for longer than reloadAfter and the minute between two clocks.
	{"shared/index/index.go", "reloadAfter = 10 * time.Minute", "reloadAfter = 20 * time.Second"},
	{"shared/index/compact.go", "keepEntries = 20 * time.Minute", "keepEntries = 100 * time.Second"},
	{"shared/index/compact.go", "keepFiles = time.Hour", "keepFiles = 2 * time.Minute"},
}

// ahead is a further file of package kit.
var ahead = fmt.Sprintf(`package kit

import (
	"os"
	"time"
)

func ahead() time.Time { return time.Now().Add(lead) }

var lead, _ = time.ParseDuration(os.Getenv(%q))
`, leadVariable)

// overlay writes the changed source to dir, and returns the file for -overlay of go build.
func overlay(ctx context.Context, dir string) (string, error) {
	root, err := runner.Root(ctx)
	if err != nil {
		return "", err
	}
	changed := map[string][]byte{"shared/kit/ahead.go": []byte(ahead)}
	for _, e := range edits {
		source := changed[e.file]
		if source == nil {
			if source, err = os.ReadFile(filepath.Join(root, e.file)); err != nil {
				return "", err
			}
		}
		if n := bytes.Count(source, []byte(e.old)); n != 1 {
			return "", fmt.Errorf("%s has %d times %q, want once: correct the edits in test/torture/build.go", e.file, n, e.old)
		}
		changed[e.file] = bytes.Replace(source, []byte(e.old), []byte(e.new), 1)
	}
	replace := map[string]string{}
	for file, source := range changed {
		path := filepath.Join(dir, fmt.Sprintf("overlay-%d.go", len(replace)))
		replace[filepath.Join(root, file)] = path
		if err := os.WriteFile(path, source, 0o644); err != nil {
			return "", err
		}
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, data, 0o644)
}
