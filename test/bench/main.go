// Command bench compares the real imageroot binary with the tools that one would use instead,
// on this machine and in one run. It prints absolute numbers, and ratios, which depend less on
// the machine. Some rows have a bound; if one is missed, the exit status is 1.
//
// Both sides of a comparison read from a warm page cache and alternate for several rounds; the
// median counts. All servers listen on loopback, and all files are in one temporary directory,
// which is removed at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imageroot/test/runner"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// A measurement is a row of the table of measurements. Each starts its own servers.
type measurement struct {
	name string
	what string
	run  func(*bench, context.Context) error
}

// measurements are in the order in which they run: first those that the caches of others would
// disturb.
var measurements = []measurement{
	{"size", "size of the stripped binary", (*bench).binarySize},
	{"lambda", "size and cold start of the functions for AWS", (*bench).lambda},
	{"hash", "hash job against openssl dgst", (*bench).hash},
	{"serve", "GET /images against aws s3 cp", (*bench).serve},
	{"upload", "PUT /images against aws s3 cp and nginx", (*bench).upload},
	{"commands", "imageroot push and pull against aws s3 cp and curl", (*bench).commands},
	{"flash", "imageroot flash and flash.sh against curl, dd and sha256sum", (*bench).flash},
	{"minio", "PUT, GET and hash over MinIO in place of the gateway inside", (*bench).minio},
	{"fetch", "fetch job against curl, sha256sum and aria2c", (*bench).fetch},
	{"start", "starts, requests and memory, by number of images", (*bench).start},
	{"feeds", "documents about all images, for other programs", (*bench).feeds},
	{"link", "fetch job over a slow link against curl", (*bench).link},
	{"resume", "what is done again after SIGKILL", (*bench).resume},
	{"raw", "GET /raw against the tools of each kind", (*bench).raw},
	{"disk", "disk job against the tools of each kind and dd", (*bench).disk},
	{"ranges", "parts of a disk by NBD and GET /raw against nbdkit and nginx", (*bench).ranges},
	{"memory", "peak memory under load, and idle", (*bench).memory},
}

// A bench is one run of the program.
type bench struct {
	dir    string // the directory of all files
	binary string
	size   int64 // of the large file
	rounds int
	quick  bool
	counts []int         // of images, for start
	delay  time.Duration // of the store that is far away
	minute time.Duration // a minute, unless quick
	report *report
	log    io.Writer // progress

	sample *sample // created at first use
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	met, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	case !met:
		os.Exit(1)
	}
}

// run is the program. It reports whether all bounds are met.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (met bool, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	size := bytesFlag(2 * gib)
	flags.Var(&size, "size", "size of the large file, such as 2GiB or 512MiB")
	only := flags.String("only", "", "run the measurements whose names match this regular expression: "+names())
	quick := flags.Bool("quick", false, "small sizes: shows that the bench works; bounds are shown and not judged")
	rounds := flags.Int("rounds", 3, "how often each side of a comparison is run")
	counts := countsFlag{1000, 10_000, 100_000}
	flags.Var(&counts, "images", "numbers of images in the stores of start")
	delay := flags.Duration("delay", 20*time.Millisecond, "what each request to the far store of start takes")
	minute := flags.Duration("minute", time.Minute, "how long start counts the requests of an open page")
	to := flags.String("json", "", "write the numbers to this file too, in place of its older ones of the same measurements")
	page := flags.String("page", "", "measure nothing: write the page and the plots of this file of -json, NAME.json, beside it: NAME.md and NAME-*.svg")
	tmp := flags.String("dir", os.TempDir(), "where the temporary directory is made")
	if err := flags.Parse(args); err != nil {
		return false, err
	}
	if flags.NArg() > 0 || *rounds < 1 || size < mib {
		return false, errors.New("bench takes flags only; -rounds is at least 1 and -size at least 1MiB")
	}
	if *page != "" {
		return true, writePage(*page)
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return false, fmt.Errorf("-only: %w", err)
	}
	b := &bench{size: int64(size), rounds: *rounds, quick: *quick, counts: counts, delay: *delay, minute: *minute, log: stderr}
	if b.quick {
		b.size, b.rounds = min(b.size, 128*mib), 1
		b.counts, b.minute = []int{200}, 10*time.Second
	}
	if b.dir, err = os.MkdirTemp(*tmp, "imageroot-bench-"); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.binary, err = runner.Build(ctx, b.dir, "-trimpath", "-ldflags=-s -w"); err != nil {
		return false, err
	}
	b.report = &report{
		Date: time.Now().UTC().Truncate(time.Second), Command: commandLine(args), Revision: revision(ctx), Machine: thisMachine(ctx, b.dir), Load: loadAverage(),
	}
	fmt.Fprintf(stdout, "%+v; load average %s\n\n", b.report.Machine, b.report.Load)
	for _, m := range measurements {
		if !wanted.MatchString(m.name) {
			continue
		}
		began := time.Now()
		fmt.Fprintf(b.log, "%s: %s (load %s)\n", m.name, m.what, loadAverage())
		if err := m.run(b, ctx); err != nil {
			// Print the measurements before the failure too.
			fmt.Fprint(stdout, b.report.table())
			return false, fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Fprintf(b.log, "%s: took %v (load %s)\n", m.name, time.Since(began).Round(time.Second), loadAverage())
		b.report.Measurements = append(b.report.Measurements, m.name)
		if *to != "" {
			if err := b.report.save(*to); err != nil {
				return false, err
			}
		}
	}
	if len(b.report.Measurements) == 0 {
		return false, fmt.Errorf("-only %q matches none of %s", *only, names())
	}
	fmt.Fprint(stdout, b.report.table())
	missed := b.report.missed()
	switch {
	case b.quick:
		fmt.Fprintf(stdout, "\nquick: %d bounds missed, at sizes they are not meant for\n", missed)
		return true, nil
	case missed > 0:
		fmt.Fprintf(stdout, "\n%d bounds missed\n", missed)
	}
	return missed == 0, nil
}

func names() string {
	var all []string
	for _, m := range measurements {
		all = append(all, m.name)
	}
	return strings.Join(all, ", ")
}

// binarySize compares the size of the release build with its bound.
func (b *bench) binarySize(context.Context) error {
	info, err := os.Stat(b.binary)
	if err != nil {
		return err
	}
	b.report.absolute("size", "binary, stripped", unitMiB, []float64{float64(info.Size()) / mib}, atMost(45))
	return nil
}

// commandLine returns the command that a shell runs the bench with.
func commandLine(args []string) string {
	line := "go run ./test/bench"
	for _, arg := range args {
		if strings.ContainsAny(arg, "|^$*()[]?\\ ") {
			arg = "'" + arg + "'"
		}
		line += " " + arg
	}
	return line
}

// path returns a path in the bench's directory.
func (b *bench) path(elements ...string) string {
	return filepath.Join(append([]string{b.dir}, elements...)...)
}

// scaled returns n, and a fraction of it in a quick run.
func (b *bench) scaled(n int64) int64 {
	if b.quick {
		return n / 32
	}
	return n
}

// say logs progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, "  "+format+"\n", args...)
}

// A countsFlag is a flag whose value is a list of numbers.
type countsFlag []int

func (f *countsFlag) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(*f), " ", ","), "[]")
}

// Set implements flag.Value.
func (f *countsFlag) Set(s string) error {
	*f = nil
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 {
			return errors.New("numbers of images are separated by commas: 1000,10000")
		}
		*f = append(*f, n)
	}
	return nil
}

// A bytesFlag is a flag whose value is a number of bytes, with an optional unit.
type bytesFlag int64

func (f *bytesFlag) String() string { return formatBytes(int64(*f)) }

// Set implements flag.Value.
func (f *bytesFlag) Set(s string) error {
	unit := int64(1)
	for suffix, n := range map[string]int64{"KiB": kib, "MiB": mib, "GiB": gib} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = number, n
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 1 {
		return errors.New("a size is a whole number and KiB, MiB or GiB")
	}
	*f = bytesFlag(n * unit)
	return nil
}

func formatBytes(n int64) string {
	switch {
	case n >= gib && n%gib == 0:
		return fmt.Sprintf("%d GiB", n/gib)
	case n >= mib:
		return fmt.Sprintf("%.4g MiB", float64(n)/mib)
	}
	return fmt.Sprintf("%d bytes", n)
}
