package disk

import (
	"errors"
	"fmt"
	"io"
)

// A fault is the reason for which something cannot be read, as the end of a sentence.
type fault string

func (f fault) Error() string { return string(f) }

const (
	errEnd      fault = "it is cut short"
	errDamaged  fault = "it is damaged"
	errTooLarge fault = "it is larger than what an inspection reads"
	errSpent    fault = "an inspection reads no more of one image"
)

var (
	// errMissing is the error of a lookup in a directory that was read to its end.
	errMissing = errors.New("there is no such file")
	// errPassed is the error of a [Stream] that does not have the bytes any more.
	errPassed = errors.New("the bytes have passed")
)

const (
	blockBytes = 64 << 10
	maxBlocks  = 32 // cached

	// maxWork limits the bytes that the parsers are given, since what is cached costs no
	// block: directories and links that lead to each other may be read for ever. Each read
	// counts as readWork bytes more, and what is unpacked as unpackWork.
	maxWork              = 256 << 20
	readWork, unpackWork = 64, 32 << 10
)

// A source reads a disk in blocks, of which it caches a few, and no more blocks than its
// limit.
type source struct {
	r      io.ReaderAt
	size   int64
	left   int     // blocks that may be read
	work   int64   // of maxWork, done
	stream *Stream // r, if it is one: it has no blocks
	blocks []block // least recently used first
	err    error   // the first error of r that is not about the disk
}

type block struct {
	number int64
	data   []byte
}

// A span is a part of a disk. What it reads beyond its end fails with errEnd.
type span struct {
	*source
	start, size int64
}

func (s *source) all() span { return span{s, 0, s.size} }

// sub returns a part of a span. The part of it that is beyond the end of the span is left out.
func (p span) sub(start, size int64) span {
	if start < 0 || size < 0 || start > p.size {
		return span{p.source, p.start, 0}
	}
	return span{p.source, p.start + start, min(size, p.size-start)}
}

// bytes returns n bytes at an offset.
func (p span) bytes(off int64, n int) ([]byte, error) {
	if n < 0 || off < 0 || off > p.size-int64(n) {
		return nil, errEnd
	}
	b := make([]byte, n)
	return b, p.source.read(b, p.start+off)
}

// upTo returns n bytes at an offset, or fewer at the end of the span.
func (p span) upTo(off int64, n int) ([]byte, error) {
	return p.bytes(off, int(max(0, min(int64(n), p.size-off))))
}

// ReadAt implements [io.ReaderAt].
func (p span) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= p.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.size-off))
	if err := p.source.read(b[:n], p.start+off); errors.Is(err, errEnd) {
		return 0, io.EOF
	} else if err != nil {
		return 0, err
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// keep asks a [Stream] for bytes that will be read after later ones.
func (p span) keep(off, n int64) {
	if p.stream != nil && off >= 0 && n > 0 && off <= p.size {
		p.stream.keep(p.start+off, min(n, p.size-off))
	}
}

// read fills b with the bytes at an offset of the disk.
func (s *source) read(b []byte, off int64) error {
	if err := s.spend(len(b) + readWork); err != nil {
		return err
	}
	for len(b) > 0 {
		var n int
		if s.stream != nil {
			if err := s.stream.read(b, off); err != nil {
				return err
			}
			n = len(b)
		} else {
			data, err := s.block(off / blockBytes)
			if err != nil {
				return err
			}
			if off%blockBytes >= int64(len(data)) {
				return errEnd
			}
			n = copy(b, data[off%blockBytes:])
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// spend counts work, and returns errSpent if there was too much of it.
func (s *source) spend(work int) error {
	if s.work += int64(work); s.work > maxWork {
		return errSpent
	}
	return nil
}

// block returns the block with a number. It is shorter at the end of the disk.
func (s *source) block(number int64) ([]byte, error) {
	for i, b := range s.blocks {
		if b.number == number {
			copy(s.blocks[i:], s.blocks[i+1:])
			s.blocks[len(s.blocks)-1] = b
			return b.data, nil
		}
	}
	switch {
	case s.err != nil:
		return nil, s.err
	case s.left == 0:
		return nil, errSpent
	}
	s.left--
	b := block{number: number}
	if len(s.blocks) == maxBlocks {
		b.data = s.blocks[0].data[:blockBytes]
		s.blocks = s.blocks[1:]
	} else {
		b.data = make([]byte, blockBytes)
	}
	want := int(min(blockBytes, s.size-number*blockBytes))
	n, err := s.r.ReadAt(b.data[:want], number*blockBytes)
	if n < want && !errors.Is(err, io.EOF) {
		if s.err = err; err == nil {
			s.err = io.ErrNoProgress
		}
		return nil, s.err
	}
	b.data = b.data[:n]
	s.blocks = append(s.blocks, b)
	return b.data, nil
}

// unsupported returns the fault of a feature that is not read.
func unsupported(format string, args ...any) error { return fault(fmt.Sprintf(format, args...)) }
