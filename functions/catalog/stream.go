package catalog

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/problem"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// sendStream answers with the pieces of a body that can be read only once. It
// calls head to set header fields of an answer with a body, and tail after the
// last piece to set trailers.
func (f *Function) sendStream(w http.ResponseWriter, r *http.Request, c *object, head func(), body iter.Seq2[[]byte, error], tail func()) error {
	h := w.Header()
	switch conditions(r, h, c.Info.LastModified) {
	case http.StatusNotModified:
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return nil
	case http.StatusPreconditionFailed:
		return failedPrecondition()
	}
	h.Set("Accept-Ranges", "none")
	h.Set("Last-Modified", c.Info.LastModified.UTC().Format(http.TimeFormat))
	head()
	out := &verifiedWriter{ResponseWriter: w, served: f.Metric.BytesServed, unchanged: func() error { return c.Unchanged(r.Context()) }}
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
	f.delivered(r, c, false)
	return nil
}

// conditions returns the status that results from the request's preconditions, for an
// answer with the header h. modified may be zero.
func conditions(r *http.Request, h http.Header, modified time.Time) int {
	ask := r.Clone(r.Context())
	ask.Header.Del("Range")
	answer := web.Recorder{Fields: http.Header{"Etag": h["Etag"], "Content-Type": h["Content-Type"]}}
	// net/http evaluates them (RFC 9110 §13) and needs no body for that.
	http.ServeContent(&answer, ask, "", modified, strings.NewReader(""))
	return answer.Status
}

func failedPrecondition() error {
	return problem.New(problem.Precondition, "the image is not the version that the request's If-Match or If-Unmodified-Since asks for")
}

// sendEncoded answers with the content coding zstd.
func (f *Function) sendEncoded(w http.ResponseWriter, r *http.Request, c *object, frames iter.Seq2[[]byte, error]) error {
	h := w.Header()
	describe(h, c, "-raw-zstd", "")
	return f.sendStream(w, r, c, func() { h.Set("Content-Encoding", "zstd") }, frames, func() {})
}

// encoder encodes each block as a frame, concurrently. A decoder reads the frames
// as one stream. The window is below the 8 MiB that each client must support
// (RFC 9659).
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(aheadBytes), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are valid
	}
	return e
})

// farBytes is the size of the zeros in the larger of the two frames of zeros.
const farBytes = 8 << 20

// zeroBlock and zeroFar return frames of zeros, which are encoded once.
var (
	zeroBlock = sync.OnceValue(func() []byte { return encoder().EncodeAll(make([]byte, aheadBytes), nil) })
	zeroFar   = sync.OnceValue(func() []byte { return encoder().EncodeAll(make([]byte, farBytes), nil) })
)

// encode returns a block as a frame. It uses the capacity of to.
func encode(block, to []byte) []byte {
	if len(block) == aheadBytes && block[0] == 0 && bytes.Equal(block[1:], block[:len(block)-1]) {
		return zeroBlock()
	}
	return encoder().EncodeAll(block, to[:0])
}

// framed runs tasks that encode blocks into buffers of free.
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

// frameBytes is enough for a block that does not compress.
const frameBytes = aheadBytes + aheadBytes/256

// frames encodes a section. It does not read what is known to be zero.
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
