package main

import (
	"context"
	"net"
	"os"
	"path/filepath"

	"imageroot/test/nginx"
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
	end, err := nginx.Start(ctx, dir, addr, "root "+dir+"; dav_methods PUT;")
	if err != nil {
		return "", nil, err
	}
	stop = func() {
		end()
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
