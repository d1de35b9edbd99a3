// Command imageroot runs every handler in one process, with an S3 gateway
// inside: an image catalog for one machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"imageroot/shared/config"
	"imageroot/shared/web"
)

// version is set by the linker in releases.
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second Ctrl-C ends the process the hard way.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "imageroot:", err)
		os.Exit(1)
	}
}

// run is the program: imageroot, or imageroot doctor. It returns when ctx has ended and everything has
// stopped, or where it cannot start.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	ill := len(args) > 0 && args[0] == "doctor"
	if ill {
		args = args[1:]
	}
	cfg, err := config.Load(args, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return nil
	case errors.Is(err, config.ErrVersion):
		_, err := fmt.Fprintln(stdout, "imageroot", programVersion())
		return err
	case err != nil:
		return err
	case ill:
		return newDoctor(cfg).examine(ctx, stdout)
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

// programVersion is the release, or the commit that was built.
func programVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + modified
}
