package doctor

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// streamPatience is the longest silence of a server. An event stream has a keep-alive
// every ten seconds.
const streamPatience = 12 * time.Second

func newDoctor(cfg Config) *doctor {
	return &doctor{
		cfg: cfg, now: time.Now, synced: clockSynced, host: os.DirFS("/"), goLimit: debug.SetMemoryLimit(-1), patience: streamPatience,
		floor: slices.MaxFunc([]time.Time{built(), modified(filepath.Join(cfg.Data, cfg.Secrets))}, time.Time.Compare),
	}
}

// built returns the time of the commit that this program was built from, or zero if that is
// unknown.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value)
			return t
		}
	}
	return time.Time{}
}

// modified returns the time at which a file was last modified, or zero.
func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// clockSynced reports whether the kernel considers its clock synchronised (adjtimex(2)).
func clockSynced() (bool, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, err
	}
	return t.Status&unix.STA_UNSYNC == 0, nil
}

// clock examines this machine's clock on its own. clockFinding compares it with that of an
// S3 server.
func (d *doctor) clock(context.Context) []finding {
	now := d.now()
	if now.Before(d.floor) {
		return []finding{{fail, "clock", fmt.Sprintf("it says %s, which is before imageroot was built or first ran here; synchronise it: timedatectl set-ntp true", now.UTC().Format(time.DateTime))}}
	}
	switch synced, err := d.synced(); {
	case err != nil:
		return []finding{{good, "clock", "it may be right (the system does not say whether it is synchronised)"}}
	case !synced:
		return []finding{{warn, "clock", "nothing synchronises it (a Raspberry Pi forgets the time without power); timedatectl set-ntp true"}}
	}
	return []finding{{good, "clock", "it is synchronised"}}
}

// memory compares the memory limit of the Go runtime with the memory available.
func (d *doctor) memory(context.Context) []finding {
	const (
		few    = 1 << 30  // a machine with less memory needs a limit
		least  = 64 << 20 // with a lower limit, the runtime collects garbage all the time
		little = "100MiB" // a limit that is enough for images of 8 GiB
	)
	total := d.total()
	there, limit := d.cgroup(), "this machine has"
	switch {
	case there < total:
		limit = "this process may take"
	default:
		there = total
	}
	is := func(v verdict, format string, args ...any) []finding {
		return []finding{{v, "memory", fmt.Sprintf(format, args...)}}
	}
	switch set := d.goLimit != math.MaxInt64; {
	case there == math.MaxInt64:
		return is(good, "the system does not say how much there is")
	case !set && there < total:
		return is(warn, "%s %s, and the Go runtime does not know; set GOMEMLIMIT to some three quarters of that, or to %s", limit, size(there), little)
	case !set && there < few:
		return is(warn, "%s %s; set GOMEMLIMIT=%s, so that other programs and the page cache have the rest", limit, size(there), little)
	case !set:
		return is(good, "%s %s, and there is no limit", limit, size(there))
	case d.goLimit >= there:
		return is(fail, "GOMEMLIMIT is %s, and %s %s: the kernel would kill it; lower the one or raise the other", size(d.goLimit), limit, size(there))
	case d.goLimit < least:
		return is(warn, "GOMEMLIMIT is %s: the Go runtime would collect garbage all the time; set it to %s at the least", size(d.goLimit), size(least))
	case d.goLimit > there/10*9:
		return is(warn, "GOMEMLIMIT is %s, and %s %s, which leaves little for the page cache and the program itself; lower the one or raise the other", size(d.goLimit), limit, size(there))
	}
	return is(good, "GOMEMLIMIT is %s, and %s %s", size(d.goLimit), limit, size(there))
}

// total returns the machine's memory in bytes, or math.MaxInt64 if it is unknown.
func (d *doctor) total() int64 {
	text, _ := fs.ReadFile(d.host, "proc/meminfo")
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return math.MaxInt64
}

// cgroup returns the lowest memory.max of this process's control groups (version 2), in
// bytes, or math.MaxInt64 if none is limited.
func (d *doctor) cgroup() int64 {
	text, _ := fs.ReadFile(d.host, "proc/self/cgroup")
	limit := int64(math.MaxInt64)
	for line := range strings.Lines(string(text)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		for ok {
			text, _ := fs.ReadFile(d.host, path.Join("sys/fs/cgroup", group, "memory.max"))
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
				limit = min(limit, n)
			}
			ok = group != "/" && group != "."
			group = path.Dir(group)
		}
	}
	return limit
}

// holder returns the name of the process that listens on the port of addr, or "" if it is
// unknown: only root can read the file descriptors of other users' processes
// (proc_pid_net(5), proc_pid_fd(5)).
func holder(host fs.FS, addr string) string {
	_, port, err := net.SplitHostPort(addr)
	n, numeric := strconv.ParseUint(port, 10, 16)
	if err != nil || numeric != nil {
		return ""
	}
	sockets := map[string]bool{}
	for _, table := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		f, err := host.Open(table)
		if err != nil {
			continue
		}
		for in := bufio.NewScanner(f); in.Scan(); {
			const local, state, inode, listening = 1, 3, 9, "0A"
			fields := strings.Fields(in.Text())
			if len(fields) > inode && fields[state] == listening && strings.HasSuffix(fields[local], fmt.Sprintf(":%04X", n)) {
				sockets["socket:["+fields[inode]+"]"] = true
			}
		}
		_ = f.Close()
	}
	fds, _ := fs.Glob(host, "proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := fs.ReadLink(host, fd); err == nil && sockets[to] {
			dir := path.Dir(path.Dir(fd))
			name, _ := fs.ReadFile(host, dir+"/comm")
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), path.Base(dir))
		}
	}
	return ""
}
