// Command imageroot is a catalog for OS disk images on one machine. It runs the handlers of
// all functions in one process, over its own S3 gateway or another S3 server. With a command
// it is a client of such a server, or "imageroot doctor", which examines a setup. --help lists
// the commands and the settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"imageroot/client"
	"imageroot/client/exit"
	"imageroot/local/doctor"
	"imageroot/shared/config"
	"imageroot/shared/kit"
	"imageroot/shared/kit/sources"
	"imageroot/shared/visible"
	"imageroot/shared/web"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kit.SaveMemory()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "imageroot:", visible.Text(err.Error())) // it may be in another server's words
		os.Exit(exit.Code(err))
	}
}

// run is the program: the command that args begin with, or else the server. It returns nil
// once the command has succeeded, or once ctx has ended and the server has stopped.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if !isCommand(args) {
		return configured(args, stdout, func(cfg config.Config) error { return serve(ctx, cfg, stdout, stderr) })
	}
	return client.Run(ctx, args, client.Program{
		Usage: config.Usage,
		Doctor: func(ctx context.Context, args []string) error {
			return configured(args, stdout, func(cfg config.Config) error { return examine(ctx, cfg, stdout) })
		},
		Key: func(ctx context.Context, args []string) error {
			return configured(args, stdout, func(cfg config.Config) error { return makeSigningKey(ctx, cfg, stdout) })
		},
		Environment: config.LoadClient(), Version: config.Version(),
		Stdin: os.Stdin, Stdout: stdout, Stderr: stderr,
	})
}

// isCommand reports whether args are for package client, which prints the help, too. Those of
// the server are flags only.
func isCommand(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "-h", "-help", "--help":
		return true
	}
	return !strings.HasPrefix(args[0], "-")
}

// configured calls do with the settings of the server, unless args ask for something else.
func configured(args []string, stdout io.Writer, do func(config.Config) error) error {
	cfg, err := config.Load(args, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return nil
	case errors.Is(err, config.ErrVersion):
		_, err := fmt.Fprintln(stdout, "imageroot", config.Version())
		return err
	case err != nil:
		return exit.With(exit.Usage, err)
	}
	return do(cfg)
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, cfg config.Config, stdout, stderr io.Writer) error {
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
		Manifest: func(ctx context.Context) ([]byte, error) {
			client, err := sources.New(&kit.Kit{Config: kit.Config{Config: cfg, Server: kit.HostPort(cfg.S3Endpoint), PrivateSources: true}})
			if err != nil {
				return nil, err
			}
			defer client.Close()
			return client.Document(ctx, subscription(cfg))
		},
	}, stdout)
}
