package unpack

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
)

// A gzipStream is one or more members (RFC 1952, section 2.2).
type gzipStream struct {
	in     *bufio.Reader
	member *gzip.Reader
	after  int64
}

func newGzip(in *bufio.Reader) (*gzipStream, error) {
	member, err := gzip.NewReader(in)
	if err != nil {
		return nil, unexpected(err)
	}
	member.Multistream(false)
	return &gzipStream{in: in, member: member}, nil
}

// unexpected is err where more must follow.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (g *gzipStream) Read(p []byte) (int, error) {
	n, err := g.member.Read(p)
	if errors.Is(err, io.EOF) {
		err = g.next()
	}
	return n, err
}

// next begins the member after the one that has ended.
func (g *gzipStream) next() (err error) {
	magic, err := g.in.Peek(2)
	switch {
	case len(magic) == 0:
		return err
	case string(magic) != "\x1f\x8b":
		if g.after, err = skipTrailing(g.in); err != nil {
			return err
		}
		return io.EOF
	}
	err = unexpected(g.member.Reset(g.in))
	g.member.Multistream(false)
	return err
}

func (g *gzipStream) trailing() int64 { return g.after }
func (g *gzipStream) Close()          { _ = g.member.Close() }
