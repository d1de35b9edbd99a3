// Package unpack decompresses images as a stream: gzip (RFC 1952), xz (.xz file
// format 1.2.1), zstd (RFC 8878) and bzip2, with all members, streams or frames that
// are concatenated in one file; and the first image in a ZIP archive.
//
// Within its [Limit] it accepts what the tools of the same names accept, apart from
// filters of xz other than LZMA2. It refuses the rest with an [*Error] that says what
// is wrong, where, and what to do. Its memory is the window of the stream (at most
// [Limit].Window) plus less than 8 MiB, for any input, and what [Limit].Spare allows. It
// decodes on the caller's goroutine, and blocks of xz, bzip2 and intact zstd, and members of
// BGZF, on others. A panic of a decoder is damage of the file.
package unpack

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime"

	"imageroot/shared/content"
	"imageroot/shared/guard"
)

// DefaultWindow is the window of zstd --long=27, in bytes. The window of xz -9 is half
// of that.
const DefaultWindow = 128 << 20

// A Limit bounds the memory of a stream. The output is unbounded: 32 MB of zstd can be
// a terabyte of zeros, which is a valid disk. A caller that stores the output needs its
// own bound.
type Limit struct {
	// Window is the maximum number of bytes of output that zstd and xz may refer back
	// to, which are held in memory, and of blocks decoded in parallel. 0 means
	// [DefaultWindow].
	Window int64
	// Grow, if not nil, is called before the stream holds more than [Reader.Window]
	// returned or Spare allowed, since a later frame or block may have a larger window. Read calls it,
	// on the same goroutine unless Intact is true. If it returns an error, Read returns
	// that unchanged.
	Grow func(window int64) error
	// Spare, if not nil, is called before the stream holds n bytes, more than
	// [Reader.Window] returned and at most Window, to decode blocks in parallel. If it
	// returns false, the stream uses fewer bytes and is slower. Read calls it, on the
	// same goroutine.
	Spare func(n int64) bool
	// Intact tells that the same bytes have been decompressed to their end before. Then
	// zstd is decoded in parallel, too, by goroutines of a library, on which a panic would
	// end the process. One of them calls Grow.
	Intact bool
}

// A Problem is the kind of an [Error].
type Problem string

// The problems.
const (
	Truncated Problem = "truncated" // it ends before it is complete
	Damaged   Problem = "damaged"   // a checksum or the format is wrong
	Refused   Problem = "refused"   // it exceeds the limits, or uses an unsupported feature
)

// An Error describes what is wrong with a stream. Its text is a sentence for users.
// Errors of the underlying reader are never of this type.
type Error struct {
	Problem Problem
	// Offset is the byte of the input at which the problem was detected. If a checksum
	// detected it, the damage is before that, by up to a block of zstd or bzip2, or a
	// whole gzip member, xz block or zstd frame.
	Offset int64
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// bufferBytes is the size of a read of the input.
const bufferBytes = 256 << 10

// NewReader returns a reader that decompresses r, a stream of this kind. Errors of both
// are an [*Error] or r's own. It may read r beyond the end of the stream. The caller
// must close it, which does not close r.
func NewReader(kind content.Kind, r io.Reader, limit Limit) (*Reader, error) {
	decode, ok := decoders[kind]
	if !ok {
		return nil, &Error{Refused, 0, fmt.Sprintf("%s is not compressed", kind)}
	}
	limit.Window = cmp.Or(limit.Window, DefaultWindow)
	u := &Reader{kind: kind, limit: limit, source: source{r: r}}
	u.in = bufio.NewReaderSize(&u.source, bufferBytes)
	err := guard.Call(func() (err error) {
		u.stream, u.window, err = decode(u.in, memory{limit.Window, u.grow, u.spare, limit.Intact, u.position})
		return err
	})
	if err != nil {
		return nil, u.explain(err)
	}
	u.held = u.Window()
	return u, nil
}

// A decoder opens the stream in in. The stream may hold the returned window: that
// according to the beginning of the stream, 0 if unknown, negative if negligible.
type decoder func(in *bufio.Reader, memory memory) (stream, int64, error)

// A memory tells a stream how many bytes it may hold.
type memory struct {
	window int64                 // the maximum
	grow   func(int64) error     // must be called before it needs more than it may hold
	spare  func(int64) bool      // returns whether it may hold more, without which it can do
	intact bool                  // [Limit].Intact
	at     func() (offset int64) // of the next byte of in
}

// decoders has the decoder of each of image.Compressions, and of ZIP archives.
var decoders = map[content.Kind]decoder{
	content.Gzip:  newGzip,
	content.Bzip2: newBzip2,
	content.XZ:    newXZ,
	content.Zstd:  newZstd,
	content.Zip:   newZip,
}

// A stream decompresses one file of one kind. Its Read returns io.EOF if the file is
// complete, io.ErrUnexpectedEOF if it is cut short, an [*Error] without offset to
// refuse it, and any other error for damage.
type stream interface {
	io.Reader
	Close()
}

// ahead calls f, on a goroutine if there is a processor for that, and returns a channel that
// receives its error once.
func ahead(f func() error) <-chan error {
	done := make(chan error, 1)
	run := func() { done <- guard.Call(f) }
	if runtime.GOMAXPROCS(0) == 1 {
		run()
	} else {
		go run()
	}
	return done
}

// A Reader decompresses a stream. It is not safe for concurrent use.
type Reader struct {
	kind   content.Kind
	limit  Limit
	source source
	in     *bufio.Reader
	stream stream
	window int64 // of the first frame; 0: unknown, negative: negligible
	held   int64 // the window announced by Window or granted by Grow
	err    error
}

// source counts what is read and keeps the error of its reader, which is not read again.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}

// Window returns the number of bytes that the stream holds in memory, since it may refer
// back to them, according to its beginning, or [Limit].Window if that does not say. The
// stream calls [Limit].Grow before it holds more.
func (u *Reader) Window() int64 {
	if u.window == 0 {
		return u.limit.Window
	}
	return min(max(u.window, 0), u.limit.Window)
}

// grow gets permission to hold window bytes.
func (u *Reader) grow(window int64) error {
	if window <= u.held || u.limit.Grow == nil {
		return nil
	}
	if err := u.limit.Grow(window); err != nil {
		u.source.err = err // explain returns it unchanged
		return err
	}
	u.held = window
	return nil
}

// spare returns whether the stream may hold n bytes.
func (u *Reader) spare(n int64) bool {
	if n > u.held {
		if n > u.limit.Window || u.limit.Spare != nil && !u.limit.Spare(n) {
			return false
		}
		u.held = n
	}
	return true
}

// Consumed returns the number of bytes of the input that have been decompressed. Of blocks
// that are decoded in parallel, it counts those that have been read to their end, but all
// of zstd.
func (u *Reader) Consumed() int64 {
	if p, ok := u.stream.(interface{ consumed() (int64, bool) }); ok {
		if n, ok := p.consumed(); ok {
			return n
		}
	}
	return u.position()
}

// position returns the offset of the next byte of the input to be used.
func (u *Reader) position() int64 { return u.source.n - int64(u.in.Buffered()) }

// Trailing returns the number of ignored bytes after the end of a gzip or bzip2 stream.
// It is valid once Read has returned io.EOF.
func (u *Reader) Trailing() int64 {
	if t, ok := u.stream.(interface{ trailing() int64 }); ok {
		return t.trailing()
	}
	return 0
}

// Read implements io.Reader. It returns io.EOF only if the stream is complete. See
// [NewReader] for other errors.
func (u *Reader) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	var n int
	err := guard.Call(func() (err error) {
		n, err = u.stream.Read(p)
		return err
	})
	if err != nil {
		u.err = u.explain(err)
	}
	return n, u.err
}

// Close releases the memory of the decoder. Reads after it fail. If [Limit].Intact is true, it
// waits for the end of a Read of the input.
func (u *Reader) Close() error {
	u.stream.Close()
	if u.err == nil {
		u.err = errors.New("the decompressor is closed")
	}
	return nil
}

func (u *Reader) refuse(reason string) error { return &Error{Refused, u.Consumed(), reason} }

// explain returns the error to report for an error of a decoder.
func (u *Reader) explain(err error) error {
	refused, ok := errors.AsType[*Error](err)
	switch at := u.Consumed(); {
	case u.source.err != nil && !errors.Is(u.source.err, io.EOF):
		return u.source.err // reading failed, not decoding
	case errors.Is(err, io.EOF):
		return io.EOF
	case ok:
		return u.refuse(refused.Reason)
	case errors.Is(err, io.ErrUnexpectedEOF) && u.source.err != nil && u.in.Buffered() == 0:
		return &Error{Truncated, at, fmt.Sprintf("the %s data ends at byte %d before it is complete: the file was cut short; get it again", u.kind, at)}
	default:
		return &Error{Damaged, at, fmt.Sprintf("the %s data is damaged at or before byte %d (%v); get the file again", u.kind, at, err)}
	}
}

// maxTrailing is the largest number of bytes ignored after a gzip or bzip2 stream.
// Some publishers (OpenWrt) append signatures, which gzip and bzip2 ignore, too. More
// bytes are probably a stream with a damaged beginning.
const maxTrailing = 64 << 10

// skipTrailing reads the bytes after a stream, and returns their number without
// trailing zeros, which are padding.
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

// size formats a number of bytes for users.
func size(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.3g GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.3g MiB", float64(n)/(1<<20))
}
