package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// depth is the number of requests that are under way at once.
const depth = 16

// ranges reads parts of a disk by NBD and by GET /raw, and compares that with nbdkit and nginx
// on the same file.
func (b *bench) ranges(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	s := b.serverIn(b.path("ranges"))
	s.launch.Args = append(s.launch.Args, "--nbd-listen", "127.0.0.1:0")
	if err := s.start(ctx); err != nil {
		return err
	}
	defer s.remove()
	if err := os.Link(f.path, s.image("large.img")); err != nil {
		return err
	}
	if _, err := s.completed(ctx, hashes, "large.img"); err != nil {
		return err
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	nbd := regexp.MustCompile(`nbd://\S+`).FindString(s.Stdout())
	if nbd == "" {
		return errors.New("there is no address of NBD")
	}
	kit, stop, err := b.nbdkit(ctx, f.path)
	if err != nil {
		return err
	}
	defer stop()
	copyOf := func(from string, connections int, length int64) func(int) (float64, error) {
		return func(int) (float64, error) {
			if err := settle(f.path); err != nil {
				return 0, err
			}
			return tool{args: []string{
				"nbdcopy", "--connections=" + strconv.Itoa(connections), "--requests=" + strconv.Itoa(depth/connections),
				"--request-size=" + strconv.FormatInt(length, 10), from, "null:",
			}}.time(ctx, b.dir)
		}
	}
	for _, copies := range []struct {
		connections int
		bound       *bound
	}{{1, atLeast(0.8)}, {4, atLeast(0.8)}} {
		connections := copies.connections
		o, p, err := b.turns(copyOf(nbd+"/large.img", connections, 256*kib), copyOf(kit, connections, 256*kib))
		if err != nil {
			return err
		}
		b.report.faster("ranges", fmt.Sprintf("%s by nbdcopy, %d requests at once, connections: %d", formatBytes(f.size), depth, connections),
			series{"imageroot", unitSeconds, o}, series{"nbdkit file", unitSeconds, p}, copies.bound)
	}

	web, stop, err := b.nginx(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := os.Link(f.path, b.path("nginx", "large.img")); err != nil {
		return err
	}
	for _, ranges := range []struct {
		length            int64
		ofNginx, ofNBDKit *bound
	}{{64 * kib, atLeast(0.2), nil}, {mib, atLeast(0.8), atLeast(0.8)}} {
		read := func(from string) func(int) (float64, error) {
			return func(int) (float64, error) {
				if err := settle(f.path); err != nil {
					return 0, err
				}
				return readRanges(ctx, from, f.size, ranges.length)
			}
		}
		what := fmt.Sprintf("%s in ranges of %s, %d at once", formatBytes(f.size), formatBytes(ranges.length), depth)
		for _, peer := range []struct {
			name  string
			read  func(int) (float64, error)
			bound *bound
		}{{"nginx", read(web + "/large.img"), ranges.ofNginx}, {"nbdcopy, nbdkit file", copyOf(kit, 1, ranges.length), ranges.ofNBDKit}} {
			o, p, err := b.turns(read(s.Pages+"/raw/large.img"), peer.read)
			if err != nil {
				return err
			}
			b.report.faster("ranges", what, series{"imageroot, GET /raw", unitSeconds, o}, series{peer.name, unitSeconds, p}, peer.bound)
		}
	}
	return nil
}

// nbdkit serves a file by NBD. It returns the URL, and a function that ends it.
func (b *bench) nbdkit(ctx context.Context, path string) (exportURL string, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := ln.Addr().(*net.TCPAddr)
	ln.Close()
	cmd := exec.CommandContext(ctx, "nbdkit", "-f", "-r", "-i", addr.IP.String(), "-p", strconv.Itoa(addr.Port), "file", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	err = until(ctx, time.Minute, 20*time.Millisecond, "nbdkit", func() (bool, error) {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			return false, nil // not yet
		}
		return true, conn.Close()
	})
	if err != nil {
		stop()
		return "", nil, err
	}
	return (&url.URL{Scheme: "nbd", Host: addr.String(), Path: "/"}).String(), stop, nil
}

// readRanges reads as many bytes as the file at a URL has, in ranges at random places, over as
// many connections as there are requests at once. It returns the seconds that this took.
func readRanges(ctx context.Context, from string, size, length int64) (float64, error) {
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: depth}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for worker := range uint64(depth) {
		g.Go(func() error {
			random := rand.New(rand.NewPCG(1, worker))
			for range size / length / depth {
				if err := readRange(ctx, client, from, random.Int64N(size/length)*length, length); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return time.Since(began).Seconds(), err
}

func readRange(ctx context.Context, client *http.Client, from string, offset, length int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && (res.StatusCode != http.StatusPartialContent || n != length) {
		err = fmt.Errorf("%s: %s with %d bytes, want %d", from, res.Status, n, length)
	}
	return err
}
