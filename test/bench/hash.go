package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// hash drops a file into the image root and compares its hash job with openssl over the same
// file.
func (b *bench) hash(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	s, err := b.server(ctx, "hash")
	if err != nil {
		return err
	}
	defer s.remove()
	var visible []float64 // seconds since the drop
	ours := func(round int) (float64, error) {
		name := fmt.Sprintf("dropped-%d.img", round)
		if err := settle(f.path); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := os.Link(f.path, s.image(name)); err != nil {
			return 0, err
		}
		j, err := s.completed(ctx, hashes, name)
		if err != nil {
			return 0, err
		}
		visible = append(visible, time.Since(began).Seconds())
		if j.SHA256 != f.sha256 || j.Attempt != 1 {
			return 0, fmt.Errorf("job %+v, want the digest %s at the first attempt", j, f.sha256)
		}
		return j.FinishedAt.Sub(*j.StartedAt).Seconds(), s.idle(ctx)
	}
	peer := func(int) (float64, error) {
		if err := settle(f.path); err != nil {
			return 0, err
		}
		var out strings.Builder
		took, err := tool{args: []string{"openssl", "dgst", "-sha256", f.path}, out: &out}.time(ctx, b.dir)
		if err == nil && !strings.Contains(out.String(), f.sha256) {
			err = fmt.Errorf("openssl says %s, want %s", out.String(), f.sha256)
		}
		return took, err
	}
	o, p, err := b.turns(ours, peer)
	if err != nil {
		return err
	}
	what := formatBytes(f.size) + " hashed"
	b.report.faster("hash", what, series{"imageroot", unitSeconds, o}, series{"openssl dgst -sha256", unitSeconds, p}, atLeast(0.9))
	b.report.absolute("hash", "from the drop to the digest", unitSeconds, visible, nil)
	return nil
}
