package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// nginx starts a web server that takes files by PUT, without a digest and without syncing
// them. It returns its URL and a function that stops it.
func (b *bench) nginx(ctx context.Context) (url string, stop func(), err error) {
	dir := b.path("nginx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := ln.Addr().String()
	ln.Close()
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `
daemon off;
master_process off;
pid %[1]s/pid;
error_log %[1]s/log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	scgi_temp_path %[1]s/scgi;
	uwsgi_temp_path %[1]s/uwsgi;
	server {
		listen %[2]s;
		root %[1]s;
		client_max_body_size 0;
		dav_methods PUT;
	}
}
`, dir, addr), 0o600); err != nil {
		return "", nil, err
	}
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not in the PATH of every user
	}
	cmd := exec.CommandContext(ctx, program, "-c", conf, "-e", filepath.Join(dir, "log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	// curl waits until nginx listens.
	err = tool{args: []string{"curl", "-sS", "-o", "/dev/null", "--retry", "50", "--retry-delay", "1", "--retry-connrefused", "http://" + addr + "/"}}.run(ctx, b.dir)
	if err != nil {
		stop()
		return "", nil, err
	}
	return "http://" + addr, stop, nil
}

// putToNginx sends the file to nginx, and returns the seconds of that and of openssl dgst on
// the stored file.
func (b *bench) putToNginx(ctx context.Context, url string, f *sample) (float64, error) {
	if err := settle(f.path); err != nil {
		return 0, err
	}
	took, err := tool{args: []string{"curl", "-sS", "--fail", "-T", f.path, url + "/put.img"}}.time(ctx, b.dir)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(b.path("nginx"), "put.img")
	sum, err := tool{args: []string{"openssl", "dgst", "-sha256", path}}.time(ctx, b.dir)
	if err != nil {
		return 0, err
	}
	return took + sum, os.Remove(path)
}
