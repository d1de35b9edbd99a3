package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"imageroot/shared/source"
)

// A streamConfig configures a [stream].
type streamConfig struct {
	Limits     // with defaults
	sources    *source.Client
	hosts      *hosts
	most       int // connections to a host
	loc        source.Location
	offset     int64 // of the first byte to return
	size       int64 // of the source, negative if unknown
	validators source.Validators
	// verified is set if a digest verifies the bytes. Answers are then joined even
	// if their validators differ, as those of mirrors do.
	verified bool
	whole    bool // read one answer, of one server
	// last is called once after the last segment is requested, when a connection is free,
	// unless that takes too long. It is not called for a source that is read in order.
	last     func(context.Context)
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
	lane    *lane
	order   chan *segment
	current *segment
	buf     []byte // of current
	read    int    // bytes of buf that Read has returned
	err     error
	hungry  atomic.Bool // Read waits for the source
	capped  atomic.Bool // the rest of the source is requested, or may not be

	mu      sync.Mutex
	stopped bool
	limit   int64         // the end of what may be requested
	raised  chan struct{} // closed when limit is raised
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
	length := min(s.SegmentBytes, firstBytes)
	if s.whole {
		length = -1
	}
	began := time.Now()
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
	case body.Ranged && body.Size < 0, body.Ranged && body.Size > s.offset+length && !s.joinable():
		// Ranges that cannot be joined: read the rest in order.
		body.Close()
		return s.reopen(nil)
	case body.Ranged && body.Size > s.offset+length:
		s.parallel(body, s.offset+length, time.Since(began))
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

// allow raises the end of the requests to limit.
func (s *stream) allow(limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > s.limit {
		s.limit = limit
		close(s.raised)
		s.raised = make(chan struct{})
	}
}

// interrupt makes a blocked Read fail.
func (s *stream) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.cancel(nil)
}

// drain waits for the end of all requests, after the end of the stream.
func (s *stream) drain() { s.workers.Wait() }

// Close ends all requests and waits for their end.
func (s *stream) Close() {
	s.interrupt()
	s.leave()
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
	for {
		body, err := s.request(offset, length)
		switch {
		case err == nil:
			return body, nil
		case errors.Is(err, source.ErrRange) && (offset > 0 || length > 0):
			// The server ignores the range: request the whole.
			if offset, length = 0, -1; t.give() {
				continue
			}
			return nil, err
		}
		if err := s.retry(t, err); err != nil {
			return nil, err
		}
	}
}

// request requests part of the source once.
func (s *stream) request(offset, length int64) (*source.Body, error) {
	validators := s.validators
	if s.verified {
		validators = source.Validators{}
	}
	body, err := s.sources.Open(s.ctx, s.loc, offset, length, validators)
	switch {
	case err != nil:
		return nil, err
	case (offset > 0 || s.begun) && body.Size >= 0 && s.size >= 0 && body.Size != s.size:
		body.Close()
		return nil, fmt.Errorf("it had %d bytes and has %d now: %w", s.size, body.Size, source.ErrChanged)
	case s.validators.Differ(body.Validators):
		s.mixed.Store(true)
	}
	return body, nil
}

// retry returns nil when it is time to request again after err.
func (s *stream) retry(t *tries, err error) error {
	changed := errors.Is(err, source.ErrChanged)
	// Another mirror may have the bytes with the digest.
	if !changed || s.verified {
		if werr := t.wait(s.ctx, err); werr == nil || !changed {
			return werr
		}
	}
	return &restartError{err: fmt.Errorf("the source changed while it was fetched: %w", err)}
}
