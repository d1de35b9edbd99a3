package main

import (
	"context"
	"net/http"
	"os"
)

// commands compares imageroot push with the AWS client's copy to the same gateway, and
// imageroot pull, which verifies the digest, with curl.
func (b *bench) commands(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	// The parts of the AWS client's copy are on the disk twice for a moment.
	if err := b.room(2 * f.size); err != nil {
		return err
	}
	s, err := b.server(ctx, "commands")
	if err != nil {
		return err
	}
	defer s.remove()
	command := func(args ...string) tool {
		return tool{env: []string{"IMAGEROOT_URL=" + s.Pages, "IMAGEROOT_TOKEN=" + token}, args: append([]string{b.binary}, args...)}
	}
	// timed settles, runs a tool, and restores the state for the next turn.
	timed := func(t tool, after func() error) func(int) (float64, error) {
		return func(int) (float64, error) {
			if err := settle(f.path); err != nil {
				return 0, err
			}
			took, err := t.time(ctx, b.dir)
			if err != nil {
				return 0, err
			}
			return took, after()
		}
	}
	remove := func() error {
		if err := s.idle(ctx); err != nil {
			return err
		}
		if _, err := s.do(ctx, http.MethodDelete, "/images/pushed.img", nil); err != nil {
			return err
		}
		return s.idle(ctx)
	}
	o, p, err := b.turns(
		timed(command("push", "--name", "pushed.img", f.path), remove),
		timed(s.aws("s3", "cp", "--only-show-errors", f.path, "s3://images/pushed.img"), remove))
	if err != nil {
		return err
	}
	what := formatBytes(f.size)
	b.report.longer("commands", what+" pushed, verified", series{"imageroot push", unitSeconds, o}, series{"aws s3 cp, no digest", unitSeconds, p}, atMost(1.1))

	if err := os.Link(f.path, s.image("pulled.img")); err != nil {
		return err
	}
	if _, err := s.completed(ctx, hashes, "pulled.img"); err != nil {
		return err
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	to := b.path("pulled.img")
	unlink := func() error { return os.Remove(to) }
	url := s.Pages + "/images/pulled.img"
	var both []float64
	curled := timed(tool{args: []string{"curl", "-sS", "--fail", "-o", to, url}}, func() error { return nil })
	o, p, err = b.turns(
		timed(command("pull", "-o", to, "pulled.img"), unlink),
		func(round int) (float64, error) {
			took, err := curled(round)
			if err != nil {
				return 0, err
			}
			sum, err := tool{args: []string{"sha256sum", to}}.time(ctx, b.dir)
			if err != nil {
				return 0, err
			}
			both = append(both, took+sum)
			return took, unlink()
		})
	if err != nil {
		return err
	}
	mine := series{"imageroot pull", unitSeconds, o}
	b.report.longer("commands", what+" pulled, verified", mine, series{"curl; sha256sum", unitSeconds, both}, atMost(1))
	b.report.longer("commands", what+" pulled, verified", mine, series{"curl, not verified", unitSeconds, p}, atMost(1.25))
	return nil
}
