package catalog

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/problem"
	"imageroot/shared/store"
)

// sendStream answers with pieces of a body that can be read once, from its
// beginning. What head sets is set if there is to be a body; tail is called
// after the last piece, to set trailers.
func (f *Function) sendStream(w http.ResponseWriter, r *http.Request, c *object, head func(), body iter.Seq2[[]byte, error], tail func()) error {
	h := w.Header()
	switch conditions(r, h, c) {
	case http.StatusNotModified:
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return nil
	case http.StatusPreconditionFailed:
		return failedPrecondition()
	}
	h.Set("Accept-Ranges", "none")
	h.Set("Last-Modified", c.info.LastModified.UTC().Format(http.TimeFormat))
	head()
	out := &lastLook{ResponseWriter: w, served: f.Metric.BytesServed, unchanged: func() error { return c.unchanged(r.Context()) }}
	out.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	for piece, err := range body {
		if err != nil {
			return cutOff(c, err)
		}
		if _, err := out.Write(piece); err != nil {
			if out.err != nil {
				return cutOff(c, out.err)
			}
			return nil // the client has left
		}
	}
	if out.left < 0 {
		if err := out.unchanged(); err != nil {
			return cutOff(c, err)
		}
	}
	tail()
	return nil
}

// conditions is the status that the request's If-... fields lead to.
func conditions(r *http.Request, h http.Header, c *object) int {
	ask := r.Clone(r.Context())
	ask.Header.Del("Range")
	answer := recorder{header: http.Header{"Etag": h["Etag"], "Content-Type": h["Content-Type"]}}
	// net/http knows the rules (RFC 9110, 13), and needs no body for them.
	http.ServeContent(&answer, ask, "", c.info.LastModified, strings.NewReader(""))
	return answer.status
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

func failedPrecondition() error {
	return problem.New(problem.Precondition, "the image is not the version that the request's If-Match or If-Unmodified-Since asks for")
}

// takesZstd reports whether the client would rather have the answer in zstd
// (RFC 8878; RFC 9110, 12.5.3).
func takesZstd(r *http.Request) bool {
	for _, field := range r.Header.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(field, ",") {
			name, weight, weighted := strings.Cut(coding, ";")
			if !strings.EqualFold(strings.TrimSpace(name), "zstd") {
				continue
			}
			_, q, _ := strings.Cut(weight, "=")
			value, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
			return !weighted || err == nil && value > 0
		}
	}
	return false
}

// sendEncoded answers in zstd.
func (f *Function) sendEncoded(w http.ResponseWriter, r *http.Request, c *object, frames iter.Seq2[[]byte, error]) error {
	h := w.Header()
	describe(h, c, "-raw-zstd", "")
	return f.sendStream(w, r, c, func() { h.Set("Content-Encoding", "zstd") }, frames, func() {})
}

// encoder makes a frame of each block, from several goroutines at once: whoever
// decodes them sees one stream. The window is below the 8 MiB that any client
// must take (RFC 9659).
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(aheadBytes), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // of these options, none can be wrong
	}
	return e
})

// farBytes is the most that one frame of zeros stands for.
const farBytes = 8 << 20

// Frames of zeros, which need not be read or encoded again and again.
var (
	zeroBlock = sync.OnceValue(func() []byte { return encoder().EncodeAll(make([]byte, aheadBytes), nil) })
	zeroFar   = sync.OnceValue(func() []byte { return encoder().EncodeAll(make([]byte, farBytes), nil) })
)

// encode returns a block as a frame. It writes into to, if there is room.
func encode(block, to []byte) []byte {
	if len(block) == aheadBytes && block[0] == 0 && bytes.Equal(block[1:], block[:len(block)-1]) {
		return zeroBlock()
	}
	return encoder().EncodeAll(block, to[:0])
}

// framed runs tasks that encode blocks. They take what they write to from free.
func framed(tasks iter.Seq[func() ([]byte, error)], free buffers) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for frame, err := range ordered(tasks) {
			if !yield(frame, err) {
				return
			}
			if int64(cap(frame)) == free.size {
				free.give(frame)
			}
		}
	}
}

// frameBytes has room for a block that does not compress.
const frameBytes = aheadBytes + aheadBytes/256

// frames encodes a section: what is known to be zero is not looked at.
func frames(src section) iter.Seq2[[]byte, error] {
	in, out := newBuffers(aheadBytes), newBuffers(frameBytes)
	return framed(func(yield func(func() ([]byte, error)) bool) {
		for off := int64(0); off < src.Size(); {
			zeros, err := src.Zeros(off)
			if err != nil {
				yield(func() ([]byte, error) { return nil, err })
				return
			}
			for ; zeros >= aheadBytes; zeros -= aheadBytes {
				frame, n := zeroBlock, int64(aheadBytes)
				if zeros >= farBytes {
					frame, n = zeroFar, farBytes
					zeros -= farBytes - aheadBytes
				}
				off += n
				if !yield(func() ([]byte, error) { return frame(), nil }) {
					return
				}
			}
			at, n := off, min(src.Size()-off, aheadBytes)
			off += n
			if n > 0 && !yield(func() ([]byte, error) {
				block := in.take(n)
				defer in.give(block)
				m, err := src.ReadAt(block, at)
				if int64(m) < n {
					return nil, err
				}
				return encode(block, out.take(0)), nil
			}) {
				return
			}
		}
	}, out)
}

// streamFrames encodes a stream.
func streamFrames(r io.Reader) iter.Seq2[[]byte, error] {
	in, out := newBuffers(aheadBytes), newBuffers(frameBytes)
	return framed(func(yield func(func() ([]byte, error)) bool) {
		for {
			block := in.take(aheadBytes)
			n, err := store.ReadBlock(r, block)
			if n > 0 && !yield(func() ([]byte, error) {
				defer in.give(block)
				return encode(block[:n], out.take(0)), nil
			}) || errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(func() ([]byte, error) { return nil, err })
				return
			}
		}
	}, out)
}
