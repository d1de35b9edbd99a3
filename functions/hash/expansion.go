package hash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/qcow2"
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
	stop    func() // makes a blocked Read return
	close   func() // after the last Read
}

// open opens the disk in the image at a place. The caller must close it. Errors of open and
// of Read are those of a job's work, or for [faultVerdict].
func open(ctx context.Context, at place, kind content.Kind) (*diskSource, error) {
	if kind == content.QCOW2 {
		return openQCOW2(ctx, at)
	}
	body, info, err := at.Root.Get(ctx, at.Info.Key, store.All, at.Info.ETag)
	if err != nil {
		return nil, unlessChanged(err)
	}
	end := func() { body.Close() }
	if info.Size != at.Info.Size {
		end()
		return nil, store.ErrChanged
	}
	in := &counted{r: body}
	u, err := unpack.NewReader(kind, in, unpack.Limit{})
	if err != nil {
		end()
		return nil, err
	}
	verdict := func(h *digest.Hasher, ends ends) content.Check { return unpacked(kind, h, ends, u.Trailing()) }
	ahead := newAheadReader(u, 128<<10) // the next blocks are decompressed while one is hashed
	// u is not closed, since blocks may still read it. It holds only memory.
	return &diskSource{ahead, in, verdict, end, func() { end(); ahead.stop() }}, nil
}

func openQCOW2(ctx context.Context, at place) (*diskSource, error) {
	ctx, stop := context.WithCancel(ctx)
	file, err := reader.Open(ctx, at.Root, at.Info.Key, at.Info.Version)
	if err != nil {
		stop()
		return nil, unlessChanged(err)
	}
	end := func() { stop(); file.Close() }
	disk, err := qcow2.Open(file, at.Info.Size)
	if err != nil {
		end()
		return nil, err
	}
	verdict := func(h *digest.Hasher, _ ends) content.Check {
		size := h.Offset()
		return content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: h.Sum256()}
	}
	return &diskSource{io.NewSectionReader(disk, 0, disk.Size()), nil, verdict, stop, end}, nil
}

// faultVerdict returns the verdict on an image in which err has found a fault, and false if
// err is about something else.
func faultVerdict(err error) (content.Check, bool) {
	verdict, other := unpackVerdict(err)
	if other != nil {
		verdict, other = diskVerdict(err, 0)
	}
	return verdict, other == nil && err != nil
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
