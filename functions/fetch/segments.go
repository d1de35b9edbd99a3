package fetch

import (
	"context"
	"errors"
	"io"
	"time"

	"imageroot/shared/source"
)

const (
	// connections is the default of [Function.Connections].
	connections = 24
	// firstBytes is the maximum length of the first request, and minRange the minimum of
	// the others, except at the end of the source or of what may be requested.
	firstBytes = 2 << 20
	minRange   = 1 << 20
	// bufferBytes is the maximum size of a buffer.
	bufferBytes = 256 << 10
	// lastWait limits the wait for what is requested beside the last segments.
	lastWait = 10 * time.Second
)

// A segment is a range of the source that is read over one connection.
type segment struct {
	number  int
	offset  int64 // of the next byte to receive
	end     int64
	buf     []byte // the buffer that is being filled
	filled  int
	ending  bool        // its place among the connections is free
	buffers chan []byte // full ones, in order; closed at the end, or if err is set
	err     error
}

// errNoRange is the error of a segment whose answer is not the requested range.
var errNoRange = errors.New("the source no longer keeps to ranges")

// parallel starts reading in segments. body is that of the first one, which ends at end
// and was answered after lag.
func (s *stream) parallel(body *source.Body, end int64, lag time.Duration) {
	u, _ := s.loc.Parse() // never fails: it was opened
	s.lane = s.hosts.join(u.Host, s.most, int(s.MemoryBytes/s.bufferSize()), lag)
	s.order = make(chan *segment, s.most)
	s.limit = end
	context.AfterFunc(s.ctx, s.lane.wake)
	s.workers.Go(func() { s.schedule(body, end) })
}

// leave waits for the end of all segments, whose context has ended.
func (s *stream) leave() {
	s.workers.Wait()
	if s.lane != nil {
		if s.lane.leave() {
			s.sources.Close() // the host's idle connections would count against others
		}
		s.lane, s.order, s.current, s.buf = nil, nil, nil, nil
	}
}

func (s *stream) bufferSize() int64 { return min(bufferBytes, s.SegmentBytes) }

// schedule begins one segment after the other. body is that of the first, which ends at
// end.
func (s *stream) schedule(body *source.Body, end int64) {
	defer close(s.order)
	n := 0
	for offset := s.offset; offset < s.size; n++ {
		limit, ok := s.mayAsk(offset)
		if !ok {
			break
		}
		cuts, ok := s.lane.connect(s.ctx, n)
		if !ok {
			break
		}
		if n > 0 {
			end = min(offset+s.length(offset), limit)
		}
		g := &segment{number: n, offset: offset, end: end}
		g.buffers = make(chan []byte, (end-offset)/s.bufferSize()+1) // has room for all
		first := body
		body, offset = nil, end
		s.workers.Go(func() {
			defer close(g.buffers)
			g.err = s.fill(g, first, cuts)
		})
		select {
		case s.order <- g:
		case <-s.ctx.Done():
		}
	}
	s.capped.Store(true)
	if body != nil {
		body.Close()
	}
	if s.last != nil && s.lane.planned() > 1 {
		s.workers.Go(func() { s.end(n) })
	}
}

// end calls last over a connection of the lane, in the place of segment n.
func (s *stream) end(n int) {
	ctx, cancel := context.WithTimeout(s.ctx, lastWait)
	defer cancel()
	context.AfterFunc(ctx, s.lane.wake)
	if _, ok := s.lane.connect(ctx, n); ok {
		defer s.lane.disconnect(false)
		s.last(ctx)
	}
}

// mayAsk waits until a segment from offset may be requested, and returns its maximum end.
// ok is false if the stream ends before.
func (s *stream) mayAsk(offset int64) (limit int64, ok bool) {
	defer s.capped.Store(false)
	for {
		s.mu.Lock()
		limit, raised := min(s.limit, s.size), s.raised
		s.mu.Unlock()
		if offset < limit {
			return limit, true
		}
		s.capped.Store(true)
		select {
		case <-raised:
		case <-s.ctx.Done():
			return 0, false
		}
	}
}

// length returns the length of a segment from offset. Since the segments before it take
// memory for half their length on average, it is as long as the memory allows. Near the
// end of the source, connections share what is not received, so that all end at once.
func (s *stream) length(offset int64) int64 {
	n := int64(s.lane.planned())
	return min(2*s.MemoryBytes/n, max(minRange, (s.size-s.received.Load())/n), s.SegmentBytes)
}

// fill receives a segment over a connection, first from body unless it is nil. cuts is
// what the lane returned for it.
func (s *stream) fill(g *segment, body *source.Body, cuts int) error {
	// Reading in order has more tries.
	t := tries{first: s.FirstWait, most: shortTries, best: g.offset}
	for {
		from, soon := g.offset, false
		err := s.receive(g, body)
		if after, refused := refusal(err); refused && g.offset == from {
			// Over fewer connections, the request may succeed at once.
			soon = s.lane.refused(cuts, after) && t.failures == 0 && t.give()
		}
		s.lane.disconnect(g.ending)
		g.ending = false
		if err == nil {
			return nil
		}
		t.progress(g.offset)
		if !soon {
			if err := s.retry(&t, err); err != nil {
				return err
			}
		}
		body = nil
		var ok bool
		if cuts, ok = s.lane.connect(s.ctx, g.number); !ok {
			return context.Cause(s.ctx)
		}
	}
}

// receive receives the rest of a segment from body, which it requests if it is nil.
func (s *stream) receive(g *segment, body *source.Body) (err error) {
	if body == nil {
		began := time.Now()
		if body, err = s.request(g.offset, g.end-g.offset); err != nil {
			return err
		}
		s.lane.answered(time.Since(began))
	}
	defer body.Close()
	if !body.Ranged {
		return errNoRange
	}
	answered, from := time.Now(), g.offset
	for g.offset < g.end {
		if g.buf == nil {
			if g.buf = s.lane.get(s.ctx, g.number, int(s.bufferSize())); g.buf == nil {
				return context.Cause(s.ctx)
			}
		}
		n, err := body.Read(g.buf[g.filled:min(int64(len(g.buf)), int64(g.filled)+g.end-g.offset)])
		g.offset += int64(n)
		g.filled += n
		s.got(n)
		s.lane.add(n, s.hungry.Load() && !s.capped.Load())
		if g.filled == len(g.buf) || g.offset == g.end {
			g.buffers <- g.buf[:g.filled]
			g.buf, g.filled = nil, 0
			if !g.ending && g.end-g.offset <= s.lane.left(g.offset-from, answered) {
				g.ending = true
				s.lane.ends()
			}
		}
		switch {
		case err == nil || g.offset == g.end:
		case errors.Is(err, io.EOF):
			// A server may send less than was requested.
			return &source.ShortBody{Host: s.loc.URL, Want: g.end, Got: g.offset}
		default:
			return err
		}
	}
	return nil
}

func (s *stream) readSegments(p []byte) (int, error) {
	for s.buf == nil {
		if s.err != nil {
			return 0, s.err
		}
		if s.current == nil {
			var ok bool
			if s.current, ok = <-s.order; !ok {
				if s.err = s.ctx.Err(); s.err == nil {
					s.err = io.EOF
				}
				continue
			}
		}
		s.hungry.Store(true)
		buf, ok := <-s.current.buffers
		s.hungry.Store(false)
		if ok {
			s.buf, s.read = buf, 0
			continue
		}
		err := s.current.err
		_, restart := errors.AsType[*restartError](err)
		switch {
		case err == nil:
			s.current = nil
			s.lane.next()
		case !restart && s.outer.Err() == nil:
			return s.inOrder(p) // which may work if ranges fail
		default:
			s.err = err
		}
	}
	n := copy(p, s.buf[s.read:])
	s.read += n
	s.offset += int64(n)
	if s.read == len(s.buf) {
		s.lane.put(s.buf)
		s.buf = nil
	}
	return n, nil
}

// inOrder drops the segments and continues over one connection.
func (s *stream) inOrder(p []byte) (int, error) {
	s.cancel(nil)
	s.leave()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return 0, context.Cause(s.ctx)
	}
	s.ctx, s.cancel = context.WithCancelCause(s.outer)
	s.mu.Unlock()
	s.pace.renew()
	s.received.Store(s.offset)
	if err := s.reopen(nil); err != nil {
		return 0, err
	}
	return s.readBody(p)
}
