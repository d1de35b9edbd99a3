package catalog

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"imageroot/shared/quota"
)

const (
	// placeBytes is the memory for unpacking an image, without its window.
	// frameBuffers is the memory for encoding it.
	placeBytes, frameBuffers = 8 << 20, 8 << 20
	// maxPlaces limits the bytes that all images being unpacked take together. The
	// limit is lower if the process has little memory.
	maxPlaces = 256 << 20
	// spareShare is the share of maxPlaces for decompressing faster.
	spareShare = 3
	// leastRate is the number of bytes a second that a client must read while
	// others wait for its place. Each byte of an encoded answer counts as
	// encodedWorth bytes.
	leastRate, encodedWorth = 1 << 20, 4
	// A client may be late by firstPatience. It earns up to mostPatience by reading
	// faster than leastRate: flushing an SD card takes seconds.
	firstPatience, mostPatience = 2 * time.Second, 10 * time.Second
	// pieceBytes is the size of a write whose time is measured: a block of [digest.Reader],
	// since system calls cost more than a wait for the rest of it.
	pieceBytes = 512 << 10
	// leaveTime limits how long grow waits for clients that it has cut off.
	leaveTime = 2 * time.Second
)

// errNoPlace means that other clients hold the memory.
var errNoPlace = errors.New("as many images are being unpacked as there is memory for")

// places shares the memory in which images are unpacked among the networks of the
// clients (see [quota.Network]). A network has at most half of it, or one image. An
// image that needs more than the total is unpacked alone. Checks do not take part:
// they have a worker of their own.
//
// If there is no room for a client, another client is cut off: the one with the
// least patience left among those whose patience is used up and those of networks
// that would still have as much as the network of the new client. A client that
// keeps the pace, from a network that has no more than others, keeps its place.
type places struct {
	mu   sync.Mutex
	open map[*place]struct{}
}

// A place is a client's share, initially of 0 bytes. The client must call leave.
type place struct {
	of      *places
	now     func() time.Time
	network netip.Prefix
	cut     func() // ends the answer
	left    chan struct{}
	held    int64
	extra   int64 // the part of held that spare added

	patience atomic.Int64 // nanoseconds, without the write in progress
	writing  atomic.Int64 // the start of the write in progress, in Unix nanoseconds, or 0
}

// total returns the number of bytes to share.
func (p *places) total() int64 {
	return min(maxPlaces, debug.SetMemoryLimit(-1)/4*3) // a negative limit changes nothing
}

func (p *places) enter(from string, now func() time.Time, cut func()) *place {
	addr, _ := netip.ParseAddr(from)
	l := &place{of: p, now: now, network: quota.Network(addr), cut: cut, left: make(chan struct{})}
	l.patience.Store(int64(firstPatience))
	return l
}

// grow enlarges the share to n bytes plus [placeBytes], unless it is larger already. What
// spare added does not count, and is given back if the share grows. grow returns
// [errNoPlace] if there is no room, even after it has cut off other clients.
func (l *place) grow(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	for {
		victim, ok := l.of.take(l, n+placeBytes)
		if ok {
			return nil
		}
		if victim == nil {
			return errNoPlace
		}
		victim.cut()
		select {
		case <-victim.left:
		case <-ctx.Done():
			return errNoPlace
		}
	}
}

// spare enlarges the share to n bytes plus [placeBytes], to decompress faster, and returns
// whether there is room for that. It does not cut off other clients, and limits what all
// images get in this way to a third of the memory.
func (l *place) spare(n int64) bool {
	p := l.of
	p.mu.Lock()
	defer p.mu.Unlock()
	more := n + placeBytes - l.held
	if more <= 0 {
		return true
	}
	all, extra := more, more
	for o := range p.open {
		all += o.held
		extra += o.extra
	}
	if total := p.total(); all > total || extra > total/spareShare {
		return false
	}
	l.held += more
	l.extra += more
	return true
}

// take gives l a share of n bytes. If ok is false, victim is the place to cut off
// for that, or nil if there is none.
func (p *places) take(l *place, n int64) (victim *place, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n <= l.held-l.extra {
		return nil, true
	}
	all, by := n, map[netip.Prefix]int64{l.network: n} // including the share of n bytes
	for o := range p.open {
		if o != l {
			all += o.held
			by[o.network] += o.held - o.extra
		}
	}
	total, its := p.total(), by[l.network]
	crowded := its > total/2 && its > n
	if !crowded && (all <= total || all == n) {
		l.held, l.extra = n, 0
		if p.open == nil {
			p.open = map[*place]struct{}{}
		}
		p.open[l] = struct{}{}
		return nil, true
	}
	var least int64
	for o := range p.open {
		left := o.patienceLeft()
		may := left <= 0 && (!crowded || o.network == l.network) ||
			!crowded && o.network != l.network && by[o.network]-(o.held-o.extra) >= its
		if o != l && may && (victim == nil || left < least) {
			victim, least = o, left
		}
	}
	return victim, false
}

// patienceLeft returns the nanoseconds until the client's patience is used up.
func (l *place) patienceLeft() int64 {
	left := l.patience.Load()
	if since := l.writing.Load(); since != 0 {
		left -= l.now().UnixNano() - since
	}
	return left
}

func (l *place) leave() {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	delete(l.of.open, l)
	close(l.left)
}

// writer wraps w to measure how fast the client reads.
func (l *place) writer(w http.ResponseWriter, encoded bool) http.ResponseWriter {
	if encoded {
		return &placeWriter{w, l, encodedWorth}
	}
	return &placeWriter{w, l, 1}
}

type placeWriter struct {
	http.ResponseWriter
	place *place
	worth int64 // bytes of leastRate that each byte counts as
}

func (w *placeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *placeWriter) Write(b []byte) (written int, err error) {
	for piece := range slices.Chunk(b, pieceBytes) {
		w.place.writing.Store(w.place.now().UnixNano())
		n, err := w.ResponseWriter.Write(piece)
		earned := int64(n) * w.worth * int64(time.Second) / leastRate
		left := min(max(w.place.patienceLeft()+earned, 0), int64(mostPatience))
		w.place.writing.Store(0)
		w.place.patience.Store(left)
		if written += n; err != nil {
			return written, err
		}
	}
	return written, nil
}
