package catalog

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/store/memstore"
)

// The manifest is read again and again, soon after a failure, and what cannot be used
// changes nothing.
func TestSubscribe(t *testing.T) {
	const first, second = "version = 1 # 1\n", "version = 1 # 2\n"
	steps := []struct {
		wait     time.Duration // since the step before
		answer   string        // "": an error
		inForce  string        // after it
		mentions string        // in the problem
	}{
		{0, "", "", "does not answer"},
		{time.Minute, first, first, ""},
		{time.Hour, "", first, "does not answer"},
		{time.Minute, "version = 2\n", first, "version"},
		{2 * time.Minute, first, first, ""},
		{time.Hour, second, second, ""},
	}
	synctest.Test(t, func(t *testing.T) {
		f, _ := newCatalog(t, memstore.New())
		f.ManifestURL = "https://publisher.example/catalog.toml"
		ctx, cancel := context.WithCancel(t.Context())
		last, n := time.Now(), 0
		check := func() {
			if n == 0 {
				return
			}
			s, err := f.Inventory.Snapshot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			step := steps[n-1]
			got, err := f.storedManifest(ctx)
			problem := s.ManifestProblem()
			if err != nil || string(got) != step.inForce || (problem != "") != (step.mentions != "") || !strings.Contains(problem, step.mentions) {
				t.Errorf("after step %d: %q, %v; %q", n-1, got, err, problem)
			}
			if _, ok := s.ManifestTime(); ok != (n > 1) {
				t.Errorf("after step %d: a time: %v", n-1, ok)
			}
		}
		f.Subscribe(ctx, time.Hour, func(context.Context) ([]byte, error) {
			if check(); n == len(steps) {
				cancel()
				return nil, ctx.Err()
			}
			step := steps[n]
			if waited := time.Since(last); waited != step.wait {
				t.Errorf("step %d after %v", n, waited)
			}
			last = time.Now()
			n++
			if step.answer == "" {
				return nil, errors.New("the publisher does not answer")
			}
			return []byte(step.answer), nil
		})
	})
}
