package main

import (
	"context"
	"os"
)

// serve compares a download by digest with the AWS client's download of the same object.
func (b *bench) serve(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	s, err := b.server(ctx, "serve")
	if err != nil {
		return err
	}
	defer s.remove()
	if err := os.Link(f.path, s.image("served.img")); err != nil {
		return err
	}
	if _, err := s.completed(ctx, hashes, "served.img"); err != nil {
		return err
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	get := func(t tool) func(int) (float64, error) {
		return func(int) (float64, error) {
			if err := settle(f.path); err != nil {
				return 0, err
			}
			return t.time(ctx, b.dir)
		}
	}
	o, p, err := b.turns(
		get(tool{args: []string{"curl", "-sS", "--fail", "-o", "/dev/null", s.Pages + "/images/" + f.sha256 + "/served.img"}}),
		get(s.aws("s3", "cp", "--only-show-errors", "s3://images/served.img", "-")))
	if err != nil {
		return err
	}
	b.report.longer("serve", formatBytes(f.size)+" by digest, to /dev/null", series{"imageroot, curl", unitSeconds, o},
		series{"aws s3 cp s3://... -", unitSeconds, p}, atMost(1))
	return nil
}
