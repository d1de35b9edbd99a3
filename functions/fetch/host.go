package fetch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// minStep is the shortest interval over which a rate is measured.
const minStep = 50 * time.Millisecond

// farLag is how long a host that is far away takes to answer.
const farLag = 20 * time.Millisecond

// hosts are the hosts that the fetches of this process read in segments now. The zero
// value has none. It is safe for concurrent use.
type hosts struct {
	mu     sync.Mutex
	byName map[string]*host
}

// A host shares the connections to it among fetches.
type host struct {
	all  *hosts
	name string

	mu sync.Mutex
	climb
	changed *sync.Cond // more connections are allowed
	lanes   int
	running int       // connections
	ending  int       // of running: those whose end is near
	cuts    int       // number of refusals that took connections away
	until   time.Time // no request before, as the host has asked

	// Of the interval that is measured:
	began  time.Time
	bytes  int
	needed int           // of bytes: those for which a fetch waited
	lag    time.Duration // of recent answers, the longest
}

// A lane is the share of one fetch in the connections to a host, and its buffers. The
// segments of the fetch are numbered in order. It is safe for concurrent use.
type lane struct {
	*host
	room    *sync.Cond // a buffer is free, or the next segment is the first
	free    int        // buffers
	spare   [][]byte   // buffers that were allocated
	first   int        // number of the segment that is read
	waiting []int      // numbers of the segments that wait for a connection
	own     int        // connections
	ending  int        // of own
	stuck   int        // of own: those that wait for a buffer
}

// join returns a lane with that many buffers to a host, which has answered after lag and
// gets most connections.
func (h *hosts) join(name string, most, buffers int, lag time.Duration) *lane {
	h.mu.Lock()
	defer h.mu.Unlock()
	to := h.byName[name]
	if to == nil {
		first := firstWidth
		if lag >= farLag {
			first = farWidth
		}
		to = &host{all: h, name: name, climb: newClimb(first, most)}
		to.changed = sync.NewCond(&to.mu)
		if h.byName == nil {
			h.byName = map[string]*host{}
		}
		h.byName[name] = to
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	to.lanes++
	to.lag = max(to.lag, lag)
	return &lane{host: to, room: sync.NewCond(&to.mu), free: buffers}
}

// leave ends the use of a lane without connections. It reports whether the host has no
// other.
func (l *lane) leave() (last bool) {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lanes--; l.lanes == 0 {
		delete(l.all.byName, l.name)
	}
	l.changed.Broadcast()
	return l.lanes == 0
}

// wake lets the lane's waits see that their context has ended.
func (l *lane) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed.Broadcast()
	l.room.Broadcast()
}

// connect waits until segment n may use a connection. It returns the number of refusals
// so far, and false if ctx ends. The caller must call disconnect.
func (l *lane) connect(ctx context.Context, n int) (cuts int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, n)
	for ctx.Err() == nil && !l.mayConnect(n) {
		l.changed.Wait()
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(m int) bool { return m == n })
	l.changed.Broadcast() // another may be the earliest now
	if ctx.Err() != nil {
		return 0, false
	}
	l.own++
	l.running++
	return l.cuts, true
}

// mayConnect reports whether segment n may use a connection. Earlier segments have
// precedence. The first gets one more if the others wait for it, since they have no
// buffers.
func (l *lane) mayConnect(n int) bool {
	if time.Now().Before(l.until) {
		return false
	}
	if n != slices.Min(l.waiting) {
		return false
	}
	if n == l.first && l.own == l.stuck {
		return true
	}
	share := (l.width + l.lanes - 1) / l.lanes
	return l.own-l.ending < share && l.running-l.host.ending < max(l.width, l.lanes) && l.running < max(l.limit(), l.lanes)
}

// ends frees the place of a connection that has so few bytes left that the answer to the
// next request would come after them. The caller must call disconnect with ending set.
func (l *lane) ends() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending++
	l.host.ending++
	l.changed.Broadcast()
}

// disconnect ends a connection. ending is set if ends was called.
func (l *lane) disconnect(ending bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own--
	l.running--
	if ending {
		l.ending--
		l.host.ending--
	}
	l.changed.Broadcast()
}

// left returns the number of bytes that come while the host answers a request, if
// a connection has brought n bytes since began.
func (h *host) left(n int64, began time.Time) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lag < farLag {
		return 0
	}
	return int64(float64(n) * h.lag.Seconds() / time.Since(began).Seconds())
}

// answered records how long the host took to answer.
func (h *host) answered(lag time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lag = max(lag, h.lag-h.lag/8)
}

// refused records that the host refused a request that began after cuts refusals. Those
// that it refuses at the same time take connections away once. It reports whether to
// request again as soon as another connection of the lane is free.
func (l *lane) refused(cuts int, after time.Duration) bool {
	h := l.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if cuts == h.cuts {
		h.cuts++
		h.refuse()
	}
	if until := time.Now().Add(min(after, maxAsked)); after > 0 && until.After(h.until) {
		h.until = until
		time.AfterFunc(time.Until(until), func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.changed.Broadcast()
		})
	}
	return after == 0 && l.own > 1
}

// add counts n bytes that the host sent. needed is set if the fetch waits for the host,
// and not for the store.
func (h *host) add(n int, needed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.began.IsZero() {
		h.began = now
	}
	h.bytes += n
	if needed {
		h.needed += n
	}
	took := now.Sub(h.began)
	if took < max(h.lag/2, minStep) {
		return
	}
	if h.needed >= h.bytes/2 {
		if h.step(float64(h.bytes) / took.Seconds()); h.running < h.width {
			h.changed.Broadcast()
		}
	}
	h.began, h.bytes, h.needed = now, 0, 0
}

// planned returns the number of connections to expect of the lane.
func (l *lane) planned() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(1, l.climb.planned()/l.lanes)
}

// get waits for a buffer of size bytes for segment n, and returns nil if ctx ends. It
// leaves one to each earlier segment.
func (l *lane) get(ctx context.Context, n, size int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ctx.Err() == nil && l.free <= n-l.first {
		if l.stuck++; l.stuck == l.own {
			l.changed.Broadcast()
		}
		l.room.Wait()
		l.stuck--
	}
	if ctx.Err() != nil {
		return nil
	}
	l.free--
	if last := len(l.spare) - 1; last >= 0 {
		buf := l.spare[last]
		l.spare = l.spare[:last]
		return buf
	}
	return make([]byte, size)
}

// put returns a buffer.
func (l *lane) put(buf []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free++
	l.spare = append(l.spare, buf[:cap(buf)])
	l.room.Broadcast()
}

// next makes the next segment the first.
func (l *lane) next() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first++
	l.changed.Broadcast()
	l.room.Broadcast()
}
