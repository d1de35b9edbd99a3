package digest

import (
	"errors"
	"io"
	"iter"

	"imageroot/shared/store"
)

const (
	// blockBytes is the size of a block that is read and hashed, and blocks the number
	// of blocks in flight: all but the one that is filled and the one that is withheld may
	// wait to be read.
	blockBytes = 512 << 10
	blocks     = 4
)

// ErrStopped is the error of a [Reader] that was stopped before its end.
var ErrStopped = errors.New("stopped before the end")

// A Reader hashes a stream on a goroutine of its own, so that hashing and reading run
// in parallel. It withholds the last block until the whole stream is verified, so a
// stream that fails verification never reaches its end. It holds 2 MiB. It is not safe
// for concurrent use. The caller must call [Reader.Stop] exactly once.
type Reader struct {
	out   chan []byte // closed at the end
	free  chan []byte
	quit  chan struct{} // closed by Stop
	block []byte        // the unread part of whole
	whole []byte        // the current block

	sum *Hasher
	err error // final once out is closed
}

// NewReader returns a Reader of src that writes to sum, unless sum is nil. At the end of
// src it calls verify with sum, unless verify is nil; an error of verify ends the
// stream. It calls count with the length of each block read, unless count is nil.
// verify and count run on the Reader's goroutine.
func NewReader(src io.Reader, sum *Hasher, verify func(*Hasher) error, count func(int)) *Reader {
	r := &Reader{out: make(chan []byte, blocks-2), free: make(chan []byte, blocks), quit: make(chan struct{}), sum: sum}
	for range blocks {
		r.free <- make([]byte, blockBytes)
	}
	go func() {
		defer close(r.out)
		r.err = r.run(src, verify, count)
	}()
	return r
}

func (r *Reader) run(src io.Reader, verify func(*Hasher) error, count func(int)) error {
	var held []byte
	for {
		var b []byte
		select {
		case b = <-r.free:
		case <-r.quit:
			return ErrStopped
		}
		n, err := store.ReadBlock(src, b)
		if n > 0 {
			if count != nil {
				count(n)
			}
			if r.sum != nil {
				_, _ = r.sum.Write(b[:n])
			}
			if held != nil && !r.pass(held) {
				return ErrStopped
			}
			held = b[:n]
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, io.EOF):
			select {
			case <-r.quit: // interrupt made the source fail
				return ErrStopped
			default:
				return err
			}
		}
		if verify != nil {
			if err := verify(r.sum); err != nil {
				return err
			}
		}
		if held != nil && !r.pass(held) {
			return ErrStopped
		}
		return nil
	}
}

func (r *Reader) pass(b []byte) bool {
	select {
	case r.out <- b:
		return true
	case <-r.quit:
		return false
	}
}

// Read implements [io.Reader]. It returns io.EOF only if the source has ended and is
// verified; any other error is one of the source or of verify.
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.block) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

// next receives the next block.
func (r *Reader) next() error {
	if r.whole != nil {
		r.free <- r.whole[:blockBytes]
	}
	r.block, r.whole = nil, nil
	b, ok := <-r.out
	switch {
	case ok:
		r.block, r.whole = b, b
		return nil
	case r.err != nil:
		return r.err
	}
	return io.EOF
}

// Blocks returns an iterator over the rest of the stream, in blocks of at most 512 KiB. It
// does not copy: each block is valid until the next iteration. If the stream ends with an
// error other than io.EOF, the last iteration yields that and no block.
func (r *Reader) Blocks() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			if len(r.block) > 0 && !yield(r.block, nil) {
				return
			}
			switch err := r.next(); {
			case errors.Is(err, io.EOF):
				return
			case err != nil:
				yield(nil, err)
				return
			}
		}
	}
}

// WriteTo implements [io.WriterTo]. It passes w the blocks of [Reader.Blocks].
func (r *Reader) WriteTo(w io.Writer) (n int64, err error) {
	for block, err := range r.Blocks() {
		if err != nil {
			return n, err
		}
		m, err := w.Write(block)
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Peek returns at least one of the next bytes without consuming them, or none and a nil
// error at the end.
func (r *Reader) Peek() ([]byte, error) {
	if len(r.block) == 0 {
		if err := r.next(); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return r.block, nil
}

// Stop ends the reading of the source and waits for its end. It calls interrupt, which
// must make a blocked read of the source return, unless reading has ended and all was read
// from the Reader. It returns the Hasher, and nil if the whole source was read and verified,
// even if the last blocks were not read from the Reader, else [ErrStopped] or the error of the
// source or of verify.
func (r *Reader) Stop(interrupt func()) (*Hasher, error) {
	close(r.quit)
	select {
	case _, open := <-r.out:
		if !open {
			return r.sum, r.err
		}
	default:
	}
	interrupt()
	for range r.out { // until it is closed
	}
	return r.sum, r.err
}
