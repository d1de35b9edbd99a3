package main

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"imageroot/test/minio"
)

// A machine is what the numbers depend on, apart from imageroot.
type machine struct {
	CPU        string   `json:"cpu"`
	Cores      int      `json:"cores"`
	Memory     string   `json:"memory"`
	Kernel     string   `json:"kernel"`
	FileSystem string   `json:"file_system"` // of the bench's directory
	Go         string   `json:"go"`
	Tools      []string `json:"tools"` // the name and version of each
}

// versions has a command for each tool that prints its version.
var versions = []string{
	"aria2c --version", "aws --version", "bzip2 --version", "curl --version", "gzip --version", "nginx -v", "openssl version",
	"bgzip --version", "pbzip2 --version", "qemu-img --version", "sha256sum --version", "xz --version", "zstd --version",
}

// thisMachine describes the machine of a bench whose directory is dir.
func thisMachine(ctx context.Context, dir string) machine {
	m := machine{
		CPU: cpuModel(), Cores: runtime.NumCPU(), Go: runtime.Version(),
		Memory: "unknown", FileSystem: "unknown",
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		m.Kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		m.Memory = fmt.Sprintf("%.0f GiB", float64(info.Totalram)*float64(info.Unit)/gib)
	}
	if out, err := exec.CommandContext(ctx, "findmnt", "-n", "-o", "FSTYPE", "-T", dir).Output(); err == nil {
		m.FileSystem = strings.TrimSpace(string(out))
	}
	number := regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)
	for _, command := range versions {
		tool, _, _ := strings.Cut(command, " ")
		// nginx is not in the PATH of every user. Some print to stderr.
		out, _ := exec.CommandContext(ctx, "sh", "-c", "PATH=$PATH:/usr/sbin; exec "+command).CombinedOutput()
		m.Tools = append(m.Tools, tool+" "+cmp.Or(number.FindString(string(out)), "(missing)"))
	}
	if path, err := minio.Tool("minio"); err == nil {
		if info, err := buildinfo.ReadFile(path); err == nil {
			m.Tools = append(m.Tools, "minio "+info.Main.Version)
		}
	}
	slices.Sort(m.Tools)
	return m
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo") // without it, there is no model
	for line := range strings.Lines(string(data)) {
		if name, value, _ := strings.Cut(line, ":"); strings.HasPrefix(name, "model name") {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// revision returns the commit of the working directory.
func revision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
