package digest

import (
	"errors"
	"io"
	"iter"
)

const (
	// blockBytes is how much is read and hashed at a time, and blocks how many
	// of those are on their way.
	blockBytes = 512 << 10
	blocks     = 4
)

// ErrStopped is the error of a [Reader] that was stopped before its end.
var ErrStopped = errors.New("stopped before the end")

// A Reader hashes what goes through it, on a goroutine of its own, so that
// hashing and whoever reads do not wait for each other. It holds the last
// block back until the whole is known to be what it should: nobody gets to
// the end of what is not. It needs 2 MiB. [Reader.Stop] must be called.
type Reader struct {
	out   chan []byte // closed at the end
	free  chan []byte
	quit  chan struct{} // closed by Stop
	block []byte        // being read from
	whole []byte        // block as it came

	sum *Hasher
	err error // final once out is closed
}

// NewReader reads src, adding to sum (if not nil). At the end of src, verify (if not nil)
// says whether the whole is what it should be. Count (if not nil) is told of
// each piece that has come.
func NewReader(src io.Reader, sum *Hasher, verify func(*Hasher) error, count func(int)) *Reader {
	r := &Reader{out: make(chan []byte), free: make(chan []byte, blocks), quit: make(chan struct{}), sum: sum}
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
		n, err := readBlock(src, b)
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
			case <-r.quit: // which made the source fail
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

// readBlock reads until b is full or src ends, and says how. Unlike
// io.ReadFull it never takes a source that was cut for one that ended.
func readBlock(src io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = src.Read(b[n:])
		n += m
	}
	return n, err
}

func (r *Reader) pass(b []byte) bool {
	select {
	case r.out <- b:
		return true
	case <-r.quit:
		return false
	}
}

// Read implements io.Reader. It ends with io.EOF only where the source ended
// and is what it should be; any other error is the source's or verify's.
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.block) == 0 {
		if err := r.turn(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.block)
	r.block = r.block[n:]
	return n, nil
}

// turn goes on to the next block.
func (r *Reader) turn() error {
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

// Blocks is [Reader.Read] to the end for who can do without a copy: each block
// is good until the next one is asked for. An error that is not io.EOF comes
// last.
func (r *Reader) Blocks() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			if len(r.block) > 0 && !yield(r.block, nil) {
				return
			}
			switch err := r.turn(); {
			case errors.Is(err, io.EOF):
				return
			case err != nil:
				yield(nil, err)
				return
			}
		}
	}
}

// Peek returns the first bytes of the next block; none at the end.
func (r *Reader) Peek() ([]byte, error) {
	if len(r.block) == 0 {
		if err := r.turn(); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return r.block, nil
}

// Stop ends the reading and waits for that; interrupt makes a read of the
// source that waits return. It returns the hash, and why the whole was not
// read: [ErrStopped], or the error of the source or of verify; nil where it
// was.
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
