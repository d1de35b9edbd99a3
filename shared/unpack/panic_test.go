package unpack

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
)

// A panickingStream is a decoder with a fault.
type panickingStream struct{}

func (panickingStream) Read([]byte) (int, error) { panic("a fault of the decoder") }
func (panickingStream) Close()                   {}

// A panic of a decoder, on any goroutine, is damage of the file.
func TestPanic(t *testing.T) {
	reader := func(s stream) *Reader {
		return &Reader{kind: "xz", in: bufio.NewReader(strings.NewReader("")), stream: s}
	}
	xz := &xzStream{err: io.EOF}
	job := xz.jobs.get(&xzBlock{saidOut: 1})
	job.decoder = nil
	xz.jobs.start(job)
	block := &bzip2Block{data: []byte{0}, origin: 1}
	bzip2 := &bzip2Stream{failed: io.EOF}
	bzip2.start(block)
	gzip := &gzipStream{failed: io.EOF, inflate: io.NopCloser(nil)}
	gzip.decompress(&bgzfMember{packed: make([]byte, gzipTrailer)})
	for name, s := range map[string]stream{"on the caller's": panickingStream{}, "of xz": xz, "of bzip2": bzip2, "of gzip": gzip} {
		u := reader(s)
		_, err := u.Read(make([]byte, 1))
		if e, ok := errors.AsType[*Error](err); !ok || e.Problem != Damaged {
			t.Errorf("on the goroutine %s: %v", name, err)
		}
		u.Close()
	}
}
