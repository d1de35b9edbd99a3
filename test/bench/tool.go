package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A tool is a command that is used instead of imageroot, or as its client.
type tool struct {
	env  []string // in addition to PATH, HOME and LC_ALL
	args []string // including the name of the program
	// out receives the program's standard output; nil is /dev/null.
	out io.Writer
}

// time runs the program and returns the seconds from its start to its end.
func (t tool) time(ctx context.Context, home string) (float64, error) {
	cmd := exec.CommandContext(ctx, t.args[0], t.args[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C.UTF-8"}, t.env...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdout = t.out
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began).Seconds()
	if err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", strings.Join(t.args, " "), err, stderr.Bytes())
	}
	return took, nil
}

// run runs the program.
func (t tool) run(ctx context.Context, home string) error {
	_, err := t.time(ctx, home)
	return err
}

// turns runs both sides in each round, in alternating order, and returns their samples.
func (b *bench) turns(ours, peer func(round int) (float64, error)) (o, p []float64, err error) {
	run := func(name string, side func(int) (float64, error), to *[]float64, round int) {
		if err != nil {
			return
		}
		var v float64
		if v, err = side(round); err == nil {
			*to = append(*to, v)
			b.say("round %d: %s %s", round+1, name, format(v))
		}
	}
	for round := range b.rounds {
		if round%2 == 1 {
			run("instead", peer, &p, round)
		}
		run("imageroot", ours, &o, round)
		if round%2 == 0 {
			run("instead", peer, &p, round)
		}
	}
	return o, p, err
}
