package main

import (
	"context"
	"fmt"
	"os"
)

// flash compares imageroot flash and flash.sh, which read back what they have written and
// compare its SHA-256, with curl and dd, without and with the same. The device is a file full
// of old bytes.
func (b *bench) flash(ctx context.Context) error {
	raw, size, err := b.files(ctx, 4)
	if err != nil {
		return err
	}
	defer os.Remove(raw)
	s, err := b.server(ctx, "flash")
	if err != nil {
		return err
	}
	defer s.remove()
	if err := os.Link(raw, s.image("flash.img")); err != nil {
		return err
	}
	if _, err := s.completed(ctx, hashes, "flash.img"); err != nil {
		return err
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	device := b.path("device")
	defer os.Remove(device)
	timed := func(t tool) func(int) (float64, error) {
		return func(int) (float64, error) {
			fill := fmt.Sprintf("yes | head -c %d > %s; sync %[2]s", size, device)
			if err := (tool{args: []string{"sh", "-ec", fill}}).run(ctx, b.dir); err != nil {
				return 0, err
			}
			if err := settle(raw); err != nil {
				return 0, err
			}
			return t.time(ctx, b.dir)
		}
	}
	shell := func(line string) tool { return tool{args: []string{"sh", "-ec", line}} }
	const write = "curl -sSf %s/raw/flash.img | dd of=%s bs=4M iflag=fullblock conv=notrunc,fsync status=none"
	const compare = "; dd if=%[2]s bs=4M iflag=direct status=none | head -c %[3]d | sha256sum"
	o, p, err := b.turns(
		timed(tool{env: []string{"IMAGEROOT_URL=" + s.Pages}, args: []string{b.binary, "flash", "--yes", "flash.img", device}}),
		timed(shell(fmt.Sprintf(write+compare, s.Pages, device, size))))
	if err != nil {
		return err
	}
	what := formatBytes(size) + " flashed"
	mine := series{"imageroot flash, verified", unitSeconds, o}
	b.report.longer("flash", what, mine, series{"curl | dd conv=fsync; dd iflag=direct | sha256sum", unitSeconds, p}, atMost(1))
	script, plain, err := b.turns(
		timed(shell(fmt.Sprintf("curl -sSf %s/flash.sh | sh -s -- --yes flash.img %s", s.Pages, device))),
		timed(shell(fmt.Sprintf(write, s.Pages, device))))
	if err != nil {
		return err
	}
	b.report.longer("flash", what, series{"flash.sh, verified", unitSeconds, script}, series{"curl | dd conv=fsync; dd iflag=direct | sha256sum", unitSeconds, p}, atMost(1.25))
	b.report.longer("flash", what, mine, series{"curl | dd conv=fsync, not verified", unitSeconds, plain}, nil)
	return nil
}
