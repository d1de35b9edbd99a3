package hash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"imageroot/shared/bmap"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/guest"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
	"imageroot/shared/unpack"
)

// A diskSource is the disk in an image, read from its beginning.
type diskSource struct {
	io.Reader
	in *counted // nil if the image is not read in order
	// verdict returns the verdict on a disk that was read to its end.
	verdict func(*digest.Hasher, ends) content.Check
	holes   *bmap.Map // of a disk that was read to its end; nil if it has none
	stop    func()    // makes a blocked Read return
	close   func()    // after the last Read
}

// open opens the disk in the image at a place. The caller must close it. Errors of open and
// of Read are those of a job's work, or for [faultVerdict].
func open(ctx context.Context, at place, kind, inner content.Kind) (*diskSource, error) {
	if kind.Virtual() {
		return openVirtual(ctx, at, kind)
	}
	ctx, stop := context.WithCancel(ctx)
	image := &stored{ctx: ctx, at: at}
	in := &counted{r: image}
	u, err := unpack.NewReader(kind, in, unpack.Limit{})
	end := func() { stop(); image.close() }
	if err != nil {
		end()
		return nil, unlessFault(err)
	}
	verdict := func(h *digest.Hasher, ends ends) content.Check { return unpacked(kind, inner, h, ends, u.Trailing()) }
	ahead := newAheadReader(u, 128<<10) // the next blocks are decompressed while one is hashed
	// u is not closed, since blocks may still read it. It holds only memory.
	return &diskSource{ahead, in, verdict, nil, stop, func() { end(); ahead.stop() }}, nil
}

// A stored reads the object at a place. It opens the object again where the connection to
// the store breaks, which may happen in minutes of work.
type stored struct {
	ctx    context.Context
	at     place
	off    int64
	failed int // times since the last byte

	mu   sync.Mutex // another goroutine may close it during a Read
	body io.ReadCloser
}

// maxFailed is how often a connection may break without a byte.
const maxFailed = 3

func (s *stored) Read(p []byte) (int, error) {
	for {
		n, err := s.read(p)
		if s.off += int64(n); n > 0 {
			s.failed = 0
			return n, nil // an error comes again
		}
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) || s.ctx.Err() != nil || s.failed == maxFailed {
			return 0, err
		}
		s.failed++
		s.close()
	}
}

func (s *stored) read(p []byte) (int, error) {
	if s.off == s.at.Info.Size {
		return 0, io.EOF
	}
	body, err := s.open()
	if err != nil {
		return 0, err
	}
	n, err := body.Read(p)
	if errors.Is(err, io.EOF) && s.off+int64(n) < s.at.Info.Size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *stored) open() (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body != nil || s.ctx.Err() != nil {
		return s.body, s.ctx.Err()
	}
	body, info, err := s.at.Root.Get(s.ctx, s.at.Info.Key, store.Range{Offset: s.off, Length: -1}, s.at.Info.ETag)
	if err != nil {
		return nil, err
	}
	if s.body = body; info.Size != s.at.Info.Size {
		return nil, store.ErrChanged
	}
	return body, nil
}

// close ends the connection. ctx has ended, or Read opens another one.
func (s *stored) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
}

func openVirtual(ctx context.Context, at place, kind content.Kind) (*diskSource, error) {
	ctx, stop := context.WithCancel(ctx)
	file, err := reader.Open(ctx, at.Root, at.Info.Key, at.Info.Version)
	if err != nil {
		stop()
		return nil, unlessChanged(err)
	}
	end := func() { stop(); file.Close() }
	disk, err := guest.Open(guest.Format(kind), file, at.Info.Size)
	var m *bmap.Map
	if err == nil {
		m, err = mapHoles(ctx, disk)
	}
	if err != nil {
		end()
		return nil, unlessFault(err)
	}
	var r io.Reader = io.NewSectionReader(disk, 0, disk.Size())
	if m != nil {
		r = io.TeeReader(r, m.Sums())
	}
	verdict := func(h *digest.Hasher, _ ends) content.Check {
		size := h.Offset()
		return content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: h.Sum256()}
	}
	return &diskSource{r, nil, verdict, m, stop, end}, nil
}

// faultVerdict returns the verdict on an image in which err has found a fault, and false if
// err is about something else.
func faultVerdict(err error) (content.Check, bool) {
	if known, ok := errors.AsType[*faulty](err); ok {
		return known.Check, true
	}
	verdict, other := unpackVerdict(err)
	if other != nil {
		verdict, other = diskVerdict(err, 0)
	}
	return verdict, other == nil && err != nil
}

// unlessFault is [unlessChanged] for an error that is not a fault of the image.
func unlessFault(err error) error {
	if _, fault := faultVerdict(err); fault {
		return err
	}
	return unlessChanged(err)
}

const (
	// roomBytes and maxRoomBytes are the least and the most bytes that are stored before
	// room for them is made.
	roomBytes, maxRoomBytes = 64 << 20, 1 << 30
	// paceTime is the time after which an expansion knows how long it will take.
	paceTime = 2 * time.Minute
)

// errTooLong is the error of an expansion that does not end before its deadline.
var errTooLong = errors.New("expanding it takes longer than a function at AWS may run (15 minutes): unpack it on the machine that needs it, or store it uncompressed, since a plain image is its own disk")

// limited reports whether a run has a deadline.
func limited(ctx context.Context) bool {
	_, ok := ctx.Deadline()
	return ok
}

// An expansion reads the bytes of a disk, within limits.
type expansion struct {
	*diskSource
	ctx    context.Context
	total  int64                    // the size of the disk; negative: unknown
	most   int64                    // of size
	image  int64                    // the size of the image
	room   func(stored int64) error // makes room for that many bytes of this disk
	sparse bool                     // whether the store keeps holes
	now    func() time.Time
	began  time.Time

	size, stored int64
	next         int64 // of stored, at which room is made
	ends         ends
}

// reserve makes room for a disk that takes size bytes.
func (e *expansion) reserve(size int64) error {
	e.next = size + roomBytes
	return e.room(size)
}

func (e *expansion) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, context.Cause(e.ctx)
	}
	n, err := store.ReadBlock(e.diskSource, p)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, unlessFault(err)
	}
	p = p[:n]
	e.ends.add(p)
	e.size += int64(n)
	for run, zeros := range store.Runs(p) {
		if !zeros || !e.sparse {
			e.stored += int64(len(run))
		}
	}
	switch {
	case e.size > e.most:
		return n, e.tooMuch()
	case e.late():
		return n, errTooLong
	case e.stored >= max(e.next, roomBytes):
		e.next = e.stored + min(max(e.stored/8, roomBytes), maxRoomBytes)
		if no := e.room(e.stored); no != nil {
			return n, no
		}
	}
	return n, err
}

func (e *expansion) tooMuch() error {
	return fmt.Errorf("it expands to more than %d GiB, which is too much for an image of its size", e.most>>30)
}

// late reports whether the expansion, at the rate it had until now, ends after its deadline.
// The rate is that of the image or of its disk, whichever ends first: an image whose
// beginning is dense and whose end is zeros is not given up.
func (e *expansion) late() bool {
	end, ok := e.ctx.Deadline()
	spent := e.now().Sub(e.began)
	if !ok || spent < paceTime {
		return false
	}
	var done float64
	if e.in != nil {
		done = float64(e.in.n.Load()) / float64(max(e.image, 1))
	}
	if e.total > 0 {
		done = max(done, float64(e.size)/float64(e.total))
	}
	return done > 0 && float64(spent)/done > float64(end.Sub(e.began))
}
