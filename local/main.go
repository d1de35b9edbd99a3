// Command imageroot is a catalog for OS disk images on one machine. It runs the handlers of
// all functions in one process, over its own S3 gateway or another S3 server. "imageroot
// doctor" examines a setup, and --help lists the settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"imageroot/local/doctor"
	"imageroot/shared/config"
	"imageroot/shared/kit"
	"imageroot/shared/web"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kit.SaveMemory()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "imageroot:", err)
		os.Exit(1)
	}
}

// run is the program: imageroot, or imageroot doctor. It returns nil once ctx has ended and
// everything has stopped, and an error if it cannot start or the doctor finds a failure.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	diagnose := len(args) > 0 && args[0] == "doctor"
	if diagnose {
		args = args[1:]
	}
	cfg, err := config.Load(args, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return nil
	case errors.Is(err, config.ErrVersion):
		_, err := fmt.Fprintln(stdout, "imageroot", config.Version())
		return err
	case err != nil:
		return err
	case diagnose:
		return examine(ctx, cfg, stdout)
	}
	s, err := start(ctx, cfg, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{ReplaceAttr: web.CutAttr})))
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if _, err := io.WriteString(stdout, s.banner()); err != nil {
		return errors.Join(err, s.stop())
	}
	return s.serve(ctx)
}

// examine runs the doctor on the setup that cfg describes.
func examine(ctx context.Context, cfg config.Config, stdout io.Writer) error {
	e := newEvents(cfg, false)
	return doctor.Examine(ctx, doctor.Config{
		Config: cfg, Secrets: secretsFile, Events: e.source, Poll: e.interval(),
		ProgramKey: func() (access, secret string) {
			c, err := readCredentials(cfg.Data)
			if err != nil {
				return "", ""
			}
			return c.ProgramAccessKey, c.ProgramSecretKey
		},
	}, stdout)
}
