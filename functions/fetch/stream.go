package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"imageroot/shared/source"
)

// connections is the number of ranged requests in flight at once.
const connections = 6

// A streamConfig configures a [stream].
type streamConfig struct {
	Limits     // with defaults
	sources    *source.Client
	loc        source.Location
	offset     int64 // of the first byte to return
	size       int64 // of the source, negative if unknown
	validators source.Validators
	// verified is set if a digest verifies the bytes. Answers are then joined even
	// if their validators differ, as those of mirrors do.
	verified bool
	whole    bool                    // read one answer, of one server
	count    func(n int)             // called with each length received
	progress func(done, total int64) // total is negative if unknown
}

// A stream reads a source from an offset to its end: in segments over several
// connections if the source has ranges, else in order over one. It requests again the
// bytes that a lost connection left out. Read is not safe for concurrent use.
type stream struct {
	streamConfig
	outer  context.Context
	ctx    context.Context // of the requests
	cancel context.CancelCauseFunc
	pace   *pace

	received atomic.Int64 // bytes, returned or not
	begun    bool         // size and validators are those of the first answer
	mixed    atomic.Bool  // answers with different validators were joined

	// In order over one connection:
	body  *source.Body
	tries tries

	// In segments over several; nil while in order:
	order   chan *segment
	buffers chan []byte
	current *segment
	err     error

	mu      sync.Mutex
	stopped bool
	limit   int64         // the end of what may be requested
	raised  chan struct{} // closed when limit is raised
	width   int           // maximum number of segments in flight
	lent    int           // buffers in use or in buffers
	workers sync.WaitGroup
}

// A restartError makes the bytes received so far useless: the transfer must begin again.
type restartError struct {
	err  error
	pure bool // the next try must not join answers of different servers
}

func (e *restartError) Error() string { return e.err.Error() }
func (e *restartError) Unwrap() error { return e.err }

func openStream(ctx context.Context, cfg streamConfig) (*stream, error) {
	s := &stream{streamConfig: cfg, outer: ctx, raised: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.pace = newPace(s.LeastBytes, s.LeastWithin, s.slow)
	s.tries.first = s.FirstWait
	s.received.Store(cfg.offset)
	if err := s.wait(s.begin); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// errSlow is the cause of cancelling requests to a source below the minimum rate.
var errSlow = errors.New("below the least rate")

// slow cancels the requests, since the source is below the minimum rate.
func (s *stream) slow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel(&source.Retryable{Err: errSlow, Reason: fmt.Sprintf(
		"the source is too slow: it sent less than %d bytes in %v", s.LeastBytes, s.LeastWithin)})
}

// wait runs f, which waits for the source, and enforces the minimum rate meanwhile.
func (s *stream) wait(f func() error) error {
	s.pace.begin()
	defer s.pace.pause()
	err := f()
	if cause := context.Cause(s.ctx); err != nil && errors.Is(cause, errSlow) {
		return cause
	}
	return err
}

// begin sends the first request. Its answer decides whether to read in segments or in
// order.
func (s *stream) begin() error {
	if s.offset > 0 && s.offset == s.size {
		return nil // nothing is left
	}
	length := s.SegmentBytes
	if s.whole {
		length = -1
	}
	body, err := s.open(s.offset, length, &s.tries)
	if err != nil {
		return err
	}
	s.begun = true
	s.validators = body.Validators
	if body.Size >= 0 {
		s.size = body.Size
	} else if !body.Ranged {
		s.size = min(s.size, -1) // an answer without a length need not have the earlier size
	}
	switch {
	case s.whole:
	case body.Ranged && body.Size < 0, body.Ranged && body.Size > s.offset+s.SegmentBytes && !s.joinable():
		// Ranges that cannot be joined: read the rest in order.
		body.Close()
		return s.reopen(nil)
	case body.Ranged && body.Size > s.offset+s.SegmentBytes:
		s.parallel(body)
		return nil
	}
	s.body = body
	return s.skip()
}

// joinable reports whether a digest or validators can confirm that several answers are
// of one image.
func (s *stream) joinable() bool {
	return s.verified || s.validators != source.Validators{}
}

// parallel starts reading in segments. first is the body of the first one.
func (s *stream) parallel(first *source.Body) {
	s.order = make(chan *segment, connections)
	s.buffers = make(chan []byte, connections)
	s.widen(connections)
	s.limit = s.offset + s.SegmentBytes
	s.workers.Go(func() { s.schedule(first) })
}

// allow raises the end of the requests to limit, and doubles the number of segments in
// flight, if it was narrowed.
func (s *stream) allow(limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > s.limit {
		s.limit = limit
		close(s.raised)
		s.raised = make(chan struct{})
		if s.order != nil {
			s.widen(min(2*s.width, connections))
		}
	}
}

// widen allows width segments in flight.
func (s *stream) widen(width int) {
	for s.width = width; s.lent < width; s.lent++ {
		s.buffers <- nil // allocated when it is needed
	}
}

// narrow halves the number of segments in flight: a server that fails may be
// overloaded.
func (s *stream) narrow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.width = max(1, s.width/2)
}

// recycle gives the buffer of a segment to the next one, or drops it if the stream was
// narrowed.
func (s *stream) recycle(buf []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lent > s.width {
		s.lent--
		return
	}
	s.buffers <- buf // never blocks: the channel has room for all buffers
}

// interrupt makes a blocked Read fail.
func (s *stream) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.cancel(nil)
}

// Close ends all requests and waits for their end.
func (s *stream) Close() {
	s.interrupt()
	s.workers.Wait()
	if s.body != nil {
		s.body.Close()
	}
}

// Read implements [io.Reader]. It returns io.EOF only at the end of the source, and a
// [*restartError] if the transfer must begin again.
func (s *stream) Read(p []byte) (n int, err error) {
	err = s.wait(func() error {
		read := s.readBody
		if s.order != nil {
			read = s.readSegments
		}
		n, err = read(p)
		return err
	})
	return n, err
}

// came counts bytes that the source sent, new or again.
func (s *stream) came(n int) {
	s.count(n)
	s.pace.add(n)
}

// got counts new bytes of the source.
func (s *stream) got(n int) {
	if n > 0 {
		s.came(n)
		s.progress(s.received.Add(int64(n)), s.size)
	}
}

func (s *stream) readBody(p []byte) (int, error) {
	for {
		if s.body == nil {
			return 0, io.EOF
		}
		n, err := s.body.Read(p)
		s.offset += int64(n)
		if n > 0 {
			s.tries.progress(s.offset)
			s.got(n)
		}
		if errors.Is(err, io.EOF) && s.size >= 0 && s.offset < s.size {
			err = &source.ShortBody{Host: s.loc.URL, Want: s.size, Got: s.offset}
		}
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, io.EOF):
			return n, io.EOF
		}
		if err = s.reopen(err); err != nil || n > 0 {
			return n, err
		}
	}
}

// reopen requests the rest of the source in order. If err is not nil, it waits first,
// or returns an error if a retry is useless.
func (s *stream) reopen(err error) error {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
	if err != nil {
		if werr := s.tries.wait(s.ctx, err); werr != nil {
			return werr
		}
	}
	if s.offset > 0 && !s.joinable() {
		if err == nil {
			err = errors.New("the source cannot resume where it stopped")
		}
		return &restartError{err: err}
	}
	body, oerr := s.open(s.offset, -1, &s.tries)
	if oerr != nil {
		return oerr
	}
	s.body = body
	return s.skip()
}

// skip discards the bytes that a source without ranges sends again.
func (s *stream) skip() error {
	again := s.offset - s.body.Offset
	for buf := make([]byte, 64<<10); again > 0; {
		n, err := s.body.Read(buf[:min(again, int64(len(buf)))])
		again -= int64(n)
		s.came(n)
		switch {
		case err == nil || again == 0:
		case errors.Is(err, io.EOF):
			return &restartError{err: source.ErrChanged} // shorter than before
		default:
			return s.reopen(err)
		}
	}
	return nil
}

// open requests part of the source. It retries after temporary failures.
func (s *stream) open(offset, length int64, t *tries) (*source.Body, error) {
	validators := s.validators
	if s.verified {
		validators = source.Validators{}
	}
	for {
		body, err := s.sources.Open(s.ctx, s.loc, offset, length, validators)
		if err == nil && (offset > 0 || s.begun) && body.Size >= 0 && s.size >= 0 && body.Size != s.size {
			body.Close()
			err = fmt.Errorf("it had %d bytes and has %d now: %w", s.size, body.Size, source.ErrChanged)
		}
		switch {
		case err == nil:
			if s.validators.Differ(body.Validators) {
				s.mixed.Store(true)
			}
			return body, nil
		case errors.Is(err, source.ErrChanged):
			changed := &restartError{err: fmt.Errorf("the source changed while it was fetched: %w", err)}
			// Another mirror may have the bytes with the digest.
			if !s.verified || t.wait(s.ctx, err) != nil {
				return nil, changed
			}
			continue
		case errors.Is(err, source.ErrRange) && (offset > 0 || length > 0):
			// The server ignores the range: request the whole.
			if offset, length = 0, -1; t.give() {
				continue
			}
			return nil, err
		}
		if err := t.wait(s.ctx, err); err != nil {
			return nil, err
		}
	}
}

// A segment is part of the source in memory.
type segment struct {
	offset int64
	buf    []byte
	ready  chan struct{} // closed when buf is filled or err is set
	err    error
	read   int // bytes of buf that Read has returned
}

// errNoRange is the error of a segment whose answer is not the requested range.
var errNoRange = errors.New("the source no longer keeps to ranges")

func (s *stream) schedule(first *source.Body) {
	defer close(s.order)
	offset := s.offset
	for offset < s.size {
		end, ok := s.mayAsk(offset)
		if !ok {
			break
		}
		var buf []byte
		select {
		case buf = <-s.buffers:
		case <-s.ctx.Done():
		}
		if s.ctx.Err() != nil {
			break
		}
		if buf == nil {
			buf = make([]byte, s.SegmentBytes)
		}
		g := &segment{offset: offset, buf: buf[:end-offset], ready: make(chan struct{})}
		offset = end
		body := first
		first = nil
		s.workers.Go(func() {
			defer close(g.ready)
			g.err = s.fill(g, body)
		})
		s.order <- g // never blocks: the channel has room for all buffers
	}
	if first != nil {
		first.Close()
	}
}

// mayAsk waits until a segment from offset may be requested, and returns its end. ok is
// false if the stream ends before.
func (s *stream) mayAsk(offset int64) (end int64, ok bool) {
	for {
		s.mu.Lock()
		limit, raised := min(s.limit, s.size), s.raised
		s.mu.Unlock()
		if offset < limit {
			return min(offset+s.SegmentBytes, limit), true
		}
		select {
		case <-raised:
		case <-s.ctx.Done():
			return 0, false
		}
	}
}

// fill reads a segment, first from body unless it is nil.
func (s *stream) fill(g *segment, body *source.Body) error {
	t := tries{first: s.FirstWait, most: shortTries} // reading in order has more tries
	filled := 0
	for {
		if body == nil {
			b, err := s.open(g.offset+int64(filled), int64(len(g.buf)-filled), &t)
			if t.failures > 0 {
				s.narrow()
			}
			if err != nil {
				return err
			}
			if !b.Ranged {
				b.Close()
				return errNoRange
			}
			body = b
		}
		err := s.fillFrom(g, body, &filled)
		body.Close()
		body = nil
		if filled == len(g.buf) {
			return nil
		}
		t.progress(int64(filled))
		if err := t.wait(s.ctx, err); err != nil {
			return err
		}
	}
}

func (s *stream) fillFrom(g *segment, body *source.Body, filled *int) error {
	for *filled < len(g.buf) {
		n, err := body.Read(g.buf[*filled:])
		*filled += n
		s.got(n)
		if err != nil {
			if errors.Is(err, io.EOF) {
				// A server may send less than was requested.
				err = &source.ShortBody{Host: s.loc.URL, Want: int64(len(g.buf)), Got: int64(*filled)}
			}
			return err
		}
	}
	return nil
}

func (s *stream) readSegments(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	for s.current == nil {
		var g *segment
		var ok bool
		if g, ok = <-s.order; !ok {
			if s.err = s.ctx.Err(); s.err == nil {
				s.err = io.EOF
			}
			return 0, s.err
		}
		<-g.ready
		if g.err != nil {
			if _, ok := errors.AsType[*restartError](g.err); !ok && s.outer.Err() == nil {
				return s.inOrder(p) // which may work if ranges fail
			}
			s.err = g.err
			return 0, s.err
		}
		s.current = g
	}
	g := s.current
	n := copy(p, g.buf[g.read:])
	g.read += n
	s.offset += int64(n)
	if g.read == len(g.buf) {
		s.current = nil
		s.recycle(g.buf[:cap(g.buf)])
	}
	return n, nil
}

// inOrder drops the segments and continues over one connection.
func (s *stream) inOrder(p []byte) (int, error) {
	s.cancel(nil)
	s.workers.Wait()
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return 0, context.Cause(s.ctx)
	}
	s.ctx, s.cancel = context.WithCancelCause(s.outer)
	s.mu.Unlock()
	s.pace.renew()
	s.order = nil
	s.received.Store(s.offset)
	if err := s.reopen(nil); err != nil {
		return 0, err
	}
	return s.readBody(p)
}
