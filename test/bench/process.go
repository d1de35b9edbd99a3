package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// cpuTime is how long a process has computed.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name of the program, in parentheses, may have spaces.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	const utime, stime = 11, 12 // of those behind the name
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
	const tick = 10 * time.Millisecond // Linux has no other towards programs
	return time.Duration(ticks) * tick, nil
}

// memoryOf reads a field of a process's status, in MiB: VmRSS is what it has
// now, VmHWM the most that it had.
func memoryOf(pid int, field string) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return float64(kb) / kib, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", pid, field)
}

// forgetPeak makes a process's VmHWM begin anew.
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// watchMemory returns the most that the process had at any look until ctx
// ended.
func watchMemory(ctx context.Context, pid int) float64 {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	most := 0.0
	for {
		if now, err := memoryOf(pid, "VmRSS"); err == nil {
			most = max(most, now)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return most
		}
	}
}
