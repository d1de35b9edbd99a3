package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
)

// A content is a sequence of bytes that its id determines, so that bytes can be compared
// without storing them.
type content struct {
	id   uint64
	size int64
	sum  string // SHA-256, lower case hex
}

const (
	pageBytes = 4 << 10
	basePages = 16
)

// newContent returns the content with this id and size.
func newContent(id uint64, size int64) *content {
	c := &content{id: id, size: size}
	h := sha256.New()
	_, _ = io.Copy(h, c.reader(0)) // neither side fails
	c.sum = hex.EncodeToString(h.Sum(nil))
	return c
}

// reader returns the bytes from an offset on.
func (c *content) reader(offset int64) *contentReader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], c.id)
	r := &contentReader{content: c, offset: offset}
	_, _ = rand.NewChaCha8(seed).Read(r.base[:]) // never fails
	return r
}

// part returns n bytes from an offset on.
func (c *content) part(offset, n int64) io.Reader { return io.LimitReader(c.reader(offset), n) }

// A contentReader reads a content. It does not implement io.WriterTo, so that it is read in
// blocks as a request's body is.
type contentReader struct {
	content *content
	offset  int64
	base    [pageBytes * basePages]byte
}

// Read implements io.Reader. No two pages of any content are equal.
func (r *contentReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && r.offset < r.content.size {
		page := r.offset / pageBytes
		var buf [pageBytes]byte
		copy(buf[:], r.base[page%basePages*pageBytes:])
		binary.LittleEndian.PutUint64(buf[:], uint64(page)^r.content.id<<32)
		end := min(pageBytes, r.content.size-page*pageBytes)
		m := copy(p[n:], buf[r.offset%pageBytes:end])
		n += m
		r.offset += int64(m)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Seek implements io.Seeker, for http.ServeContent.
func (r *contentReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		offset += r.content.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	r.offset = offset
	return offset, nil
}

// errDropped ends the body of a client that drops the connection.
var errDropped = errors.New("the client drops the connection")

// cut returns a reader of the first n bytes of r that then fails with errDropped.
func cut(r io.Reader, n int64) io.Reader {
	return io.MultiReader(io.LimitReader(r, n), failing{})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errDropped }
