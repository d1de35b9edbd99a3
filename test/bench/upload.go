package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// upload compares a PUT, which computes the digest and syncs the image, with the AWS client's
// copy to the same gateway, which computes none, and with a PUT to nginx and openssl dgst,
// which sync nothing.
func (b *bench) upload(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	nginx, stop, err := b.nginx(ctx)
	if err != nil {
		return err
	}
	defer stop()
	// The parts of the AWS client's copy are on the disk twice for a moment.
	if err := b.room(2 * f.size); err != nil {
		return err
	}
	s, err := b.server(ctx, "upload")
	if err != nil {
		return err
	}
	defer s.remove()
	// after restores the state of the server for the next turn.
	after := func() error {
		if err := s.idle(ctx); err != nil {
			return err
		}
		if _, err := s.do(ctx, http.MethodDelete, "/images/uploaded.img", nil); err != nil {
			return err
		}
		return s.idle(ctx)
	}
	ours := func(int) (float64, error) {
		if err := settle(f.path); err != nil {
			return 0, err
		}
		var out strings.Builder
		put := tool{out: &out, args: []string{
			"curl", "-sS", "--fail-with-body", "-H", "Authorization: Bearer " + token, "-T", f.path, s.Pages + "/images/uploaded.img",
		}}
		took, err := put.time(ctx, b.dir)
		if err != nil {
			return 0, fmt.Errorf("%w %s", err, out.String())
		}
		var answer struct{ SHA256 string }
		if err := json.Unmarshal([]byte(out.String()), &answer); err != nil || answer.SHA256 != f.sha256 {
			return 0, fmt.Errorf("PUT answers %s, want the digest %s", out.String(), f.sha256)
		}
		return took, after()
	}
	var unsynced []float64
	peer := func(int) (float64, error) {
		plain, err := b.putToNginx(ctx, nginx, f)
		if err != nil {
			return 0, err
		}
		unsynced = append(unsynced, plain)
		if err := settle(f.path); err != nil {
			return 0, err
		}
		took, err := s.aws("s3", "cp", "--only-show-errors", f.path, "s3://images/uploaded.img").time(ctx, b.dir)
		if err != nil {
			return 0, err
		}
		return took, after()
	}
	o, p, err := b.turns(ours, peer)
	if err != nil {
		return err
	}
	var both, starts []float64
	for _, copied := range p {
		sum, err := tool{args: []string{"sha256sum", f.path}}.time(ctx, b.dir)
		if err != nil {
			return err
		}
		start, err := s.aws("--version").time(ctx, b.dir)
		if err != nil {
			return err
		}
		both, starts = append(both, copied+sum), append(starts, start)
	}
	what := formatBytes(f.size) + " uploaded"
	mine := series{"imageroot", unitSeconds, o}
	b.report.longer("upload", what+", with its digest", mine, series{"aws s3 cp, no digest", unitSeconds, p}, atMost(1))
	b.report.longer("upload", what+", with its digest", mine, series{"PUT to nginx; openssl dgst, not synced", unitSeconds, unsynced}, atMost(1))
	b.report.longer("upload", what+", with its digest", mine, series{"aws s3 cp; sha256sum", unitSeconds, both}, nil)
	b.report.absolute("upload", "what the AWS client takes to start", unitSeconds, starts, nil)
	return nil
}
