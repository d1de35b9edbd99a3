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
	// placeBytes is what unpacking an image takes beside the window that the
	// image refers back to, and frameBuffers what encoding it takes.
	placeBytes, frameBuffers = 8 << 20, 8 << 20
	// maxPlaces is the most bytes that all images being unpacked take together;
	// it is less if the process has little memory.
	maxPlaces = 256 << 20
	// leastRate is how many bytes a second a client must take while others wait
	// for its place. Of an encoded answer, each byte counts for encodedWorth.
	leastRate, encodedWorth = 1 << 20, 4
	// A client may be firstPatience late, and earns up to mostPatience by taking
	// bytes faster than that: the flush of an SD card takes seconds.
	firstPatience, mostPatience = 2 * time.Second, 10 * time.Second
	// leaveTime is how long grow waits for clients that were cut off to leave.
	leaveTime = 2 * time.Second
)

// errNoPlace is returned if other clients have the memory.
var errNoPlace = errors.New("as many images are being unpacked as there is memory for")

// places shares the memory in which images are unpacked among the networks of
// the clients (see [quota.Network]). A network has at most half of it, or one
// image. An image that takes more than there is is unpacked alone. Checks do
// not take part: they have a worker of their own.
//
// If there is no room for a client, another client gives way: the latest one
// among those whose patience is used up and those of networks that would still
// have as much as the network of the new client. A client that keeps the pace,
// from a network that has no more than others, keeps its place.
type places struct {
	mu   sync.Mutex
	open map[*place]struct{}
}

// A place is a client's share, at first of no bytes. It must be left.
type place struct {
	of      *places
	now     func() time.Time
	network netip.Prefix
	cut     func() // ends the answer
	left    chan struct{}
	held    int64

	patience atomic.Int64 // nanoseconds, without the write under way
	writing  atomic.Int64 // since when, in Unix nanoseconds; 0 if no write is under way
}

// total returns how many bytes there are to share.
func (p *places) total() int64 {
	return min(maxPlaces, debug.SetMemoryLimit(-1)/4*3) // a negative limit changes nothing
}

func (p *places) enter(from string, now func() time.Time, cut func()) *place {
	addr, _ := netip.ParseAddr(from)
	l := &place{of: p, now: now, network: quota.Network(addr), cut: cut, left: make(chan struct{})}
	l.patience.Store(int64(firstPatience))
	return l
}

// grow enlarges the share to n bytes beside [placeBytes], unless it is larger,
// or returns [errNoPlace].
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

// take gives l a share of n bytes, or returns the place that gives way for it,
// if there is one.
func (p *places) take(l *place, n int64) (victim *place, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n <= l.held {
		return nil, true
	}
	all, by := n, map[netip.Prefix]int64{l.network: n} // with the share of n bytes
	for o := range p.open {
		if o != l {
			all += o.held
			by[o.network] += o.held
		}
	}
	total, its := p.total(), by[l.network]
	crowded := its > total/2 && its > n
	if !crowded && (all <= total || all == n) {
		l.held = n
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
			!crowded && o.network != l.network && by[o.network]-o.held >= its
		if o != l && may && (victim == nil || left < least) {
			victim, least = o, left
		}
	}
	return victim, false
}

// patienceLeft returns the nanoseconds until the client is too late.
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

// writer returns w, which measures how fast the client takes what is written.
func (l *place) writer(w http.ResponseWriter, encoded bool) http.ResponseWriter {
	if encoded {
		return &placeWriter{w, l, encodedWorth}
	}
	return &placeWriter{w, l, 1}
}

type placeWriter struct {
	http.ResponseWriter
	place *place
	worth int64 // how many bytes of leastRate each byte counts for
}

func (w *placeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *placeWriter) Write(b []byte) (written int, err error) {
	for piece := range slices.Chunk(b, copyBuffer) {
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
