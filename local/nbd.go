package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"imageroot/functions/catalog"
	"imageroot/functions/exports"
	"imageroot/shared/cow"
	"imageroot/shared/nbd"
	"imageroot/shared/problem"
	"imageroot/shared/quota"
	"imageroot/shared/store"
)

// exportConnections limits the connections to the NBD port, and exportConnectionsEach
// those from one address.
const exportConnections, exportConnectionsEach = 512, 128

// listenNBD opens the NBD port if there is to be one.
func (s *server) listenNBD(ctx context.Context) error {
	if s.cfg.NBDListen == "" {
		return nil
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.NBDListen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s for NBD (--nbd-listen): %w", s.cfg.NBDListen, err)
	}
	s.nbdListener = quota.NewListener(ln, quota.Config{
		Total: exportConnections, Each: exportConnectionsEach, Still: time.Second, Lasting: true, Exempt: s.cfg.TrustedProxies.Has, Log: s.log,
	})
	s.nbdTLS, err = nbdTLS(s.cfg, s.log)
	return err
}

// nbdPort returns the port of NBD, or 0 if it is off.
func (s *server) nbdPort() int {
	if s.nbdListener == nil {
		return 0
	}
	addr, _ := netip.ParseAddrPort(s.nbdListener.Addr().String())
	return int(addr.Port())
}

// wireNBD makes every image of lister an export, beside those that named has. Layers are in
// the data directory; over another S3 server there may be none, so they are among the
// temporary files.
func (s *server) wireNBD(lister *catalog.Function, named *exports.Function) {
	dir := os.TempDir()
	if s.gateway != nil {
		dir = s.cfg.Data
	}
	e := served{lister, named, cow.NewBudget(dir, s.cfg.NBDCowMax)}
	s.nbd = nbd.New(nbd.Config{Open: e.open, Names: e.names, TLS: s.nbdTLS, Sent: s.kit.Metric.BytesServed, Log: s.log})
	s.kit.Metric.NBD(s.nbd.Connections, e.layers.Used)
}

// served are the disks as [nbd.Config] has them. An image is one by its name, and a
// writable one by its name after cowPrefix. An export that an operator has named has
// precedence over an image of that name.
type served struct {
	catalog *catalog.Function
	named   *exports.Function
	layers  *cow.Budget
}

const cowPrefix = "cow/"

func (e served) open(ctx context.Context, name string) (nbd.Disk, error) {
	image, writable := strings.CutPrefix(name, cowPrefix)
	sha256, readOnly, found, err := e.named.Find(ctx, image)
	if err != nil {
		return nil, refusal(err)
	}
	if found {
		image, writable = string(sha256), writable || !readOnly
	}
	disk, err := e.catalog.OpenDisk(ctx, image)
	if err != nil {
		return nil, refusal(err)
	}
	if !writable {
		return exported{disk}, nil
	}
	layer, err := e.layers.Open(exported{disk})
	if err != nil {
		_ = disk.Close()
		return nil, err
	}
	return layer, nil
}

func (e served) names(ctx context.Context) iter.Seq2[string, error] {
	return e.named.Names(ctx, e.catalog.DiskNames(ctx))
}

// refusal returns err as an [*nbd.Refusal], unless it is internal.
func refusal(err error) error {
	p := problem.From(err)
	if p.Code.Status() == http.StatusInternalServerError {
		return err
	}
	return &nbd.Refusal{Reason: p.Detail, Unknown: p.Code == problem.NotFound}
}

// An exported disk tells its client that the image has changed.
type exported struct{ *catalog.Disk }

func (e exported) ReadAt(p []byte, off int64) (int, error) {
	n, err := e.Disk.ReadAt(p, off)
	return n, explain(err)
}

func (e exported) Extent(off, limit int64) (int64, bool, error) {
	n, hole, err := e.Disk.Extent(off, limit)
	return n, hole, explain(err)
}

func explain(err error) error {
	if errors.Is(err, store.ErrChanged) {
		return &nbd.Refusal{Reason: "the image was replaced, edited or removed: connect again"}
	}
	return err
}
