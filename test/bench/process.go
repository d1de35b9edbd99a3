package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"imageroot/test/runner"
)

// cpuTime returns the CPU time that a process has used.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name of the program, in parentheses, may have spaces.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	const utime, stime = 11, 12 // indexes after the name (proc_pid_stat(5))
	if len(fields) <= stime {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	var ticks int64
	for _, f := range []string{fields[utime], fields[stime]} {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on Linux
	return time.Duration(ticks) * tick, nil
}

// watchMemory samples the resident memory of the process until ctx ends, and returns the
// maximum in MiB.
func watchMemory(ctx context.Context, pid int) float64 {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	most := 0.0
	for {
		if now, err := runner.Memory(pid, "VmRSS"); err == nil {
			most = max(most, now)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return most
		}
	}
}
