package guest

import (
	"errors"
	"fmt"
	"io"
)

// The kinds of errors about a file. An [*Error] wraps one of them.
var (
	// ErrFormat: the file is not an image of the format.
	ErrFormat = errors.New("not an image of this format")
	// ErrTruncated: part of the image is behind the end of the file.
	ErrTruncated = errors.New("image cut short")
	// ErrCorrupt: the file contradicts the specification.
	ErrCorrupt = errors.New("image corrupt")
	// ErrUnsupported: the image is valid, but needs another file, a key, or a feature
	// that this package does not implement.
	ErrUnsupported = errors.New("image of an unsupported kind")
)

// An Error describes what is wrong with a file. Its text is a sentence for users.
type Error struct {
	Kind   error // one of the errors of this package
	Detail string
}

func (e *Error) Error() string { return e.Detail }

func (e *Error) Unwrap() error { return e.Kind }

func unsupported(format string, args ...any) error {
	return &Error{ErrUnsupported, fmt.Sprintf(format, args...)}
}

// A file is a file of a known format.
type file struct {
	r    io.ReaderAt
	size int64
	name string // of the format
}

func (f *file) other() error {
	return &Error{ErrFormat, "this is not a " + f.name + " image"}
}

func (f *file) truncated(format string, args ...any) error {
	return &Error{ErrTruncated, "the " + f.name + " image is cut short: " + fmt.Sprintf(format, args...)}
}

func (f *file) corrupt(format string, args ...any) error {
	return &Error{ErrCorrupt, "the " + f.name + " image is corrupt: " + fmt.Sprintf(format, args...)}
}

// head returns the first n bytes of the file, or all of a shorter one.
func (f *file) head(n int) ([]byte, error) {
	b := make([]byte, min(int64(n), max(f.size, 0)))
	n, err := f.r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

// part returns n bytes from off, or an [*Error] if they are not within the file.
func (f *file) part(what string, off, n int64) ([]byte, error) {
	if off < 0 || off > f.size-n {
		return nil, f.truncated("%s is at byte %d of a file of %d", what, off, f.size)
	}
	b := make([]byte, n)
	return b, f.full(b, off)
}

// full fills p from offset off, which is within the file.
func (f *file) full(p []byte, off int64) error {
	n, err := f.r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF // the file is shorter than size
	}
	return err
}
