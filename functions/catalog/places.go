package catalog

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"imageroot/shared/quota"
)

const (
	// placeBytes is what an image that is unpacked takes beside what it refers
	// back to, and frameBuffers what encoding it takes.
	placeBytes, frameBuffers = 8 << 20, 8 << 20
	// maxPlaces is the most bytes that images take together which are being
	// unpacked; less where the process has little memory.
	maxPlaces = 256 << 20
	// stillTime is how long a client may take for one piece of an image, of a
	// megabyte at most, while others wait for its place.
	stillTime = 10 * time.Second
	// leaveTime is how long one waits for a place that another client has to
	// leave.
	leaveTime = 2 * time.Second
)

// errNoPlace says that other clients have the memory.
var errNoPlace = errors.New("as many images are being unpacked as there is memory for")

// Places share out the memory in which images are unpacked for clients. A
// network (see [quota.Network]) has half of it at most, but for one image. An
// image that takes more than there is is unpacked alone. Checks do not take
// part: they have a worker of their own.
type places struct {
	mu   sync.Mutex
	open map[*place]struct{}
}

// A place is a client's share, at first of none. It must be left.
type place struct {
	of      *places
	now     func() time.Time
	network netip.Prefix
	cut     func() // ends the answer
	left    chan struct{}
	held    int64
	writing atomic.Int64 // since when, in nanoseconds; 0: it is not
}

// total returns how many bytes there are to share out.
func (p *places) total() int64 {
	return min(maxPlaces, debug.SetMemoryLimit(-1)/4*3) // a negative limit changes nothing
}

func (p *places) enter(from string, now func() time.Time, cut func()) *place {
	addr, _ := netip.ParseAddr(from)
	return &place{of: p, now: now, network: quota.Network(addr), cut: cut, left: make(chan struct{})}
}

// grow makes the share one of n bytes beside [placeBytes], if it is smaller, or
// returns [errNoPlace]. Where there is no room, the client goes that has taken
// nothing for the longest time, if that is longer than [stillTime].
func (l *place) grow(ctx context.Context, n int64) error {
	victim, ok := l.of.take(l, n+placeBytes)
	if victim != nil {
		victim.cut()
		select {
		case <-victim.left:
		case <-ctx.Done():
		case <-time.After(leaveTime):
		}
		_, ok = l.of.take(l, n+placeBytes)
	}
	if !ok {
		return errNoPlace
	}
	return nil
}

func (p *places) take(l *place, n int64) (victim *place, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n <= l.held {
		return nil, true
	}
	all, its := n, n // with the share as it would be
	for o := range p.open {
		if o != l {
			all += o.held
			if o.network == l.network {
				its += o.held
			}
		}
	}
	total := p.total()
	crowded := its > total/2 && its > n
	if !crowded && (all <= total || all == n) {
		l.held = n
		if p.open == nil {
			p.open = map[*place]struct{}{}
		}
		p.open[l] = struct{}{}
		return nil, true
	}
	oldest := l.now().Add(-stillTime).UnixNano()
	for o := range p.open {
		since := o.writing.Load()
		if o != l && since != 0 && since < oldest && (!crowded || o.network == l.network) {
			victim, oldest = o, since
		}
	}
	return victim, false
}

func (l *place) leave() {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	delete(l.of.open, l)
	close(l.left)
}

// writer returns w, which notes how long a write takes.
func (l *place) writer(w http.ResponseWriter) http.ResponseWriter {
	return &placeWriter{ResponseWriter: w, place: l}
}

// A placeWriter adds up the writes of each piece, which may be small ones: a
// client that takes some bytes now and then has not taken the piece.
type placeWriter struct {
	http.ResponseWriter
	place *place
	took  time.Duration // writing what there is of the piece
	wrote int
}

func (w *placeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *placeWriter) Write(b []byte) (int, error) {
	begun := w.place.now()
	w.place.writing.Store(begun.Add(-w.took).UnixNano())
	defer w.place.writing.Store(0)
	n, err := w.ResponseWriter.Write(b)
	w.took += w.place.now().Sub(begun)
	if w.wrote += n; w.wrote >= aheadBytes {
		w.took, w.wrote = 0, 0
	}
	return n, err
}
