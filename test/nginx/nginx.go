// Package nginx runs nginx for tests and benchmarks.
package nginx

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Log is the name of the log in the directory of [Start].
const Log = "log"

// Start starts nginx with one server, whose directives are given, at addr (HOST:PORT).
// Its files are in dir, and it may not listen yet. The caller must call stop, which ends
// it.
func Start(ctx context.Context, dir, addr, directives string) (stop func(), err error) {
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `
daemon off;
master_process off; # whose workers would be of another user
pid %[1]s/pid;
error_log %[1]s/%[2]s;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	scgi_temp_path %[1]s/scgi;
	uwsgi_temp_path %[1]s/uwsgi;
	server {
		listen %[3]s;
		client_max_body_size 0;
		%[4]s
	}
}
`, dir, Log, addr, directives), 0o600); err != nil {
		return nil, err
	}
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not in the PATH of every user
	}
	cmd := exec.CommandContext(ctx, program, "-c", conf, "-e", filepath.Join(dir, Log))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}
