// Package unpack decompresses images as a stream: gzip, xz, zstd and bzip2,
// with all the members, frames and streams that one file may be put together
// of, within limits, and saying what is wrong where something is.
//
// It decodes on the caller's goroutine and holds the window of the stream (up
// to [Limit.Window]) and less than 8 MiB beside it, whatever the input says.
package unpack

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"

	"imageroot/shared/content"
)

// DefaultWindow is what zstd --long=27 needs; xz -9 needs half of it.
const DefaultWindow = 128 << 20

// A Limit is what memory a stream may ask for. How much comes out has no limit:
// 32 MB of zstd are a terabyte of zeros, which is a disk. A caller that keeps what
// it reads has one of its own.
type Limit struct {
	// Window is the most bytes of output that zstd and xz may refer back to,
	// which have to be held in memory. 0 is [DefaultWindow].
	Window int64
	// Grow is asked, by who reads, before the stream holds more than
	// [Reader.Window] said: a later frame or block may want more than the first.
	// Its error ends the stream as it is. Nil: up to Window bytes are there.
	Grow func(window int64) error
}

// A Problem says what is wrong with a stream.
type Problem string

// The problems.
const (
	Truncated Problem = "truncated" // it ends before it is complete
	Damaged   Problem = "damaged"   // it is not what the compressor wrote
	Refused   Problem = "refused"   // it is beyond the limits, or what no decoder here reads
)

// An Error is about the stream, not about reading it. Its text is a sentence
// for people.
type Error struct {
	Problem Problem
	// Offset is the byte of the input where it was found. Where checksums
	// found damage, that is after it: by up to a block of zstd or bzip2, or a
	// whole member of gzip, block of xz or frame of zstd.
	Offset int64
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// bufferBytes is how much is read at once.
const bufferBytes = 256 << 10

// NewReader returns a reader of what r, a stream of that kind, decompresses
// to. Its errors are [*Error], which NewReader returns as well, or r's own. It
// must be closed, which does not close r.
func NewReader(kind content.Kind, r io.Reader, limit Limit) (*Reader, error) {
	decode, ok := decoders[kind]
	if !ok {
		return nil, &Error{Refused, 0, fmt.Sprintf("%s is not compressed", kind)}
	}
	limit.Window = cmp.Or(limit.Window, DefaultWindow)
	u := &Reader{kind: kind, limit: limit, source: source{r: r}}
	u.in = bufio.NewReaderSize(&u.source, bufferBytes)
	var err error
	u.stream, u.window, err = decode(u.in, limit.Window, u.grow)
	if err != nil {
		return nil, u.explain(err)
	}
	u.held = u.Window()
	return u, nil
}

// A decoder opens the stream in in. The stream may refer back to window bytes
// and calls grow before it holds more than the returned window, which is what
// the beginning of the stream says: 0 if that is not known, negative if it is
// less than anything worth counting.
type decoder func(in *bufio.Reader, window int64, grow func(int64) error) (stream, int64, error)

// decoders has one for each of image.Compressions.
var decoders = map[content.Kind]decoder{
	content.Gzip:  newGzip,
	content.Bzip2: newBzip2,
	content.XZ:    newXZ,
	content.Zstd:  newZstd,
}

// A stream reads one file of one kind. Its Read returns io.EOF where that is
// complete, io.ErrUnexpectedEOF where it is cut short, an [*Error] without
// offset to refuse it, and else the decoder's error for damage.
type stream interface {
	io.Reader
	Close()
}

// A Reader is a stream being decompressed. It must not be used concurrently.
type Reader struct {
	kind   content.Kind
	limit  Limit
	source source
	in     *bufio.Reader
	stream stream
	window int64 // of the first frame; 0: not known, negative: a small one
	held   int64 // of window, as far as it was said or asked for
	err    error
}

// source remembers the error of the reader that it is.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}

// Window is how many bytes of memory the stream will need for what it refers
// back to, as its beginning says: [Limit.Window] where that says nothing. For
// more than that, [Limit.Grow] is asked.
func (u *Reader) Window() int64 {
	if u.window == 0 {
		return u.limit.Window
	}
	return min(max(u.window, 0), u.limit.Window)
}

// grow sees to it that window bytes may be held.
func (u *Reader) grow(window int64) error {
	if window <= u.held || u.limit.Grow == nil {
		return nil
	}
	if err := u.limit.Grow(window); err != nil {
		u.source.err = err // which is not the stream's fault
		return err
	}
	u.held = window
	return nil
}

// Consumed is how many bytes of the input have been decompressed.
func (u *Reader) Consumed() int64 { return u.source.n - int64(u.in.Buffered()) }

// Trailing is how many bytes after the end of a gzip or bzip2 stream were
// none and have been ignored. It is known once Read has returned io.EOF.
func (u *Reader) Trailing() int64 {
	if t, ok := u.stream.(interface{ trailing() int64 }); ok {
		return t.trailing()
	}
	return 0
}

// Read implements io.Reader.
func (u *Reader) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	n, err := u.stream.Read(p)
	if err != nil {
		u.err = u.explain(err)
	}
	return n, u.err
}

// Close gives back what the decoder holds.
func (u *Reader) Close() error {
	u.stream.Close()
	if u.err == nil {
		u.err = errors.New("the decompressor is closed")
	}
	return nil
}

func (u *Reader) refuse(reason string) error { return &Error{Refused, u.Consumed(), reason} }

// explain turns the error of a decoder into one of the package's.
func (u *Reader) explain(err error) error {
	var refused *Error
	switch at := u.Consumed(); {
	case u.source.err != nil && !errors.Is(u.source.err, io.EOF):
		return u.source.err // it was not to be had whole
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.As(err, &refused):
		return u.refuse(refused.Reason)
	case errors.Is(err, io.ErrUnexpectedEOF) && u.source.err != nil && u.in.Buffered() == 0:
		return &Error{Truncated, at, fmt.Sprintf("the %s data ends at byte %d before it is complete: the file was cut short; get it again", u.kind, at)}
	default:
		return &Error{Damaged, at, fmt.Sprintf("the %s data is damaged at or before byte %d (%v); get the file again", u.kind, at, err)}
	}
}

// maxTrailing is how much may follow a gzip or bzip2 stream that is none: some
// publishers (OpenWrt) append signatures, which gzip and bzip2 ignore as well.
// What is longer is rather a stream whose beginning is damaged.
const maxTrailing = 64 << 10

// skipTrailing reads what follows a stream and returns how much of it is
// something else than zeros, which are padding.
func skipTrailing(in *bufio.Reader) (n int64, err error) {
	for total := int64(1); ; total++ {
		b, err := in.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return 0, err
		case b != 0:
			n = total
		}
		if n > maxTrailing {
			return 0, errors.New("something else follows the end of the stream")
		}
	}
}

// size is a number of bytes for people.
func size(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.3g GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.3g MiB", float64(n)/(1<<20))
}
