package catalog

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"iter"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"
	"weak"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"imageroot/shared/inventory"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

const (
	// maxCopies limits the bytes of all copies of a listing: the current one and older
	// ones that are still being sent.
	maxCopies = 16 << 20
	// chunkBytes is the minimum size of a chunk of a listing, before compression, and
	// so the memory of a client that does not read.
	chunkBytes = 16 << 10
	// baseMark stands for the base URL in a chunk. JSON and TOML escape this byte.
	baseMark = 0
)

// copies holds the forms of a listing. All answers from one snapshot share one copy,
// even with different base URLs and content codings, so a client that does not read
// costs little memory.
type copies struct {
	mu   sync.Mutex
	of   weak.Pointer[inventory.Snapshot] // the snapshot of the last copy
	all  []*listing                       // oldest first
	size int64
}

// A listing is compressed, in chunks: 100,000 images are 35 MB in plain text and 6 MB
// here. An answer decompresses one chunk after the other, inserts its base URL and
// encodes the chunk as the client accepts it.
type listing struct {
	chunks  [][]byte
	size    int64  // of the chunks
	text    int64  // of the decompressed chunks
	bases   int64  // number of base URLs in it
	sum     []byte // SHA-256 of the decompressed chunks
	senders map[*http.ResponseController]struct{}
}

// An encoding writes a listing with this base URL, one image in each Write.
type encoding func(base string, to io.Writer) error

// Document returns a handler that answers with a document about all images. encode writes
// that of a snapshot, one image in each Write; base is the URL of this server. It is called
// once for each snapshot.
func (f *Function) Document(contentType string, encode func(to io.Writer, s *inventory.Snapshot, base string) error) web.HandlerFunc {
	c := new(copies)
	return func(w http.ResponseWriter, r *http.Request) error {
		s, err := f.Inventory.Snapshot(r.Context())
		if err != nil {
			return err
		}
		return f.sendListing(w, r, c, s, contentType, func(base string, to io.Writer) error { return encode(to, s, base) })
	}
}

// sendListing answers with the listing of s, from c. It evaluates the request's
// conditions, and chooses a content coding.
func (f *Function) sendListing(w http.ResponseWriter, r *http.Request, c *copies, s *inventory.Snapshot, contentType string, encode encoding) error {
	rc := http.NewResponseController(w)
	l, err := c.take(s, rc, encode)
	if err != nil {
		return err
	}
	defer c.give(l, rc)
	base, coding := []byte(web.BaseURL(r)), web.Coding(r, "zstd", "gzip")
	h := w.Header()
	h.Set("ETag", l.tag(base, coding))
	h.Set("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	switch conditions(r, h, time.Time{}) {
	case http.StatusNotModified:
		w.WriteHeader(http.StatusNotModified)
		return nil
	case http.StatusPreconditionFailed:
		return problem.New(problem.Precondition, "the listing is not the version that the request's If-Match asks for")
	}
	if f.MaxAnswer > 0 && l.estimate(base, coding) > f.MaxAnswer && r.Method == http.MethodGet {
		return f.redirectListing(w, r, l, base, coding, contentType)
	}
	h.Set("Content-Type", contentType)
	if coding == "" {
		h.Set("Content-Length", strconv.FormatInt(l.length(base), 10))
	} else {
		h.Set("Content-Encoding", coding)
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	for piece, err := range l.encoded(base, coding) {
		if err != nil {
			return err
		}
		if _, err := w.Write(piece); err != nil {
			return nil // the client has left
		}
	}
	return nil
}

// length returns the number of bytes of the listing with this base URL.
func (l *listing) length(base []byte) int64 { return l.text + l.bases*int64(len(base)-1) }

// tag returns the entity tag of the listing with this base URL in this content coding.
// It depends on nothing else, so that all processes give the same one. That of a coding
// is weak: another version of the program may compress to other bytes.
func (l *listing) tag(base []byte, coding string) string {
	sum := sha256.Sum256(append(slices.Clone(l.sum), base...))
	tag := hex.EncodeToString(sum[:16])
	if coding == "" {
		return `"` + tag + `"`
	}
	return `W/"` + tag + "-" + coding + `"`
}

// scratch is the memory for one chunk: with marks (or compressed), and with base URLs (or
// marks).
type scratch struct{ marked, text []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// decoder decompresses the chunks of all listings.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err) // the options are valid
	}
	return d
})

// encoded yields the listing in pieces. A piece is valid until the next one. While the
// caller has a piece, the iterator holds no other memory: neither does zstd, in which
// each chunk is a frame, nor gzip, without back-references from one chunk to another.
func (l *listing) encoded(base []byte, coding string) iter.Seq2[[]byte, error] {
	var out bytes.Buffer
	write, end := out.Write, func() error { return nil }
	switch coding {
	case "zstd":
		write = func(text []byte) (int, error) { return out.Write(encoder().EncodeAll(text, out.AvailableBuffer())) }
	case "gzip":
		z, err := gzip.NewWriterLevel(&out, gzip.StatelessCompression)
		if err != nil {
			panic(err) // the level is valid
		}
		write, end = z.Write, z.Close
	}
	return func(yield func([]byte, error) bool) {
		for _, chunk := range l.chunks {
			out.Reset()
			err := insert(base, chunk, write)
			if !yield(out.Bytes(), err) || err != nil {
				return
			}
		}
		out.Reset()
		if err := end(); err != nil || out.Len() > 0 {
			yield(out.Bytes(), err)
		}
	}
}

// insert writes the text of a chunk with the base URL.
func insert(base, chunk []byte, write func([]byte) (int, error)) (err error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if s.marked, err = decoder().DecodeAll(chunk, s.marked[:0]); err != nil {
		return err
	}
	s.text = s.text[:0]
	for i, part := range bytes.Split(s.marked, []byte{baseMark}) {
		if i > 0 {
			s.text = append(s.text, base...)
		}
		s.text = append(s.text, part...)
	}
	_, err = write(s.text)
	return err
}

// take returns the copy for s. The caller must give it back.
func (c *copies) take(s *inventory.Snapshot, rc *http.ResponseController, encode encoding) (*listing, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if of := weak.Make(s); c.of != of {
		l, err := newListing(encode)
		if err != nil {
			return nil, err
		}
		c.add(l)
		c.of = of
	}
	l := c.all[len(c.all)-1]
	l.senders[rc] = struct{}{}
	return l, nil
}

func newListing(encode encoding) (*listing, error) {
	m := chunker{mark: []byte(rand.Text()), sum: sha256.New()}
	m.compressing.SetLimit(runtime.GOMAXPROCS(0))
	err := encode(string(m.mark), &m)
	if err == nil && len(m.chunk) > 0 {
		m.cut()
	}
	_ = m.compressing.Wait() // never fails
	if err != nil {
		return nil, err
	}
	for _, c := range m.compressed {
		m.chunks = append(m.chunks, *c)
		m.size += int64(len(*c))
	}
	m.listing.sum = m.sum.Sum(nil)
	m.listing.senders = map[*http.ResponseController]struct{}{}
	return &m.listing, nil
}

// A chunker makes the chunks of a listing with the base URL mark.
type chunker struct {
	listing
	mark        []byte
	sum         hash.Hash
	chunk       []byte
	compressed  []*[]byte
	compressing errgroup.Group
}

func (m *chunker) Write(p []byte) (int, error) {
	for i, part := range bytes.Split(p, m.mark) {
		if i > 0 {
			m.chunk = append(m.chunk, baseMark)
			m.bases++
		}
		m.chunk = append(m.chunk, part...)
	}
	if len(m.chunk) >= chunkBytes {
		m.cut()
	}
	return len(p), nil
}

// cut ends a chunk, and compresses it while the next one is made.
func (m *chunker) cut() {
	m.sum.Write(m.chunk)
	m.text += int64(len(m.chunk))
	to, s := new([]byte), scratches.Get().(*scratch)
	m.chunk, s.text = s.text[:0], m.chunk
	m.compressed = append(m.compressed, to)
	m.compressing.Go(func() error {
		defer scratches.Put(s)
		s.marked = encoder().EncodeAll(s.text, s.marked[:0])
		*to = bytes.Clone(s.marked)
		return nil
	})
}

// add appends l, unless it equals the last copy.
func (c *copies) add(l *listing) {
	if n := len(c.all); n > 0 && bytes.Equal(c.all[n-1].sum, l.sum) {
		return
	}
	c.all = append(c.all, l)
	c.size += l.size
	c.drop()
	for c.size > maxCopies && len(c.all) > 1 {
		// Cut off the clients that are still reading the oldest copy.
		for rc := range c.all[0].senders {
			_ = rc.SetWriteDeadline(time.Unix(1, 0))
		}
		c.size -= c.all[0].size
		c.all = c.all[1:]
	}
}

// drop removes the old copies that are not being sent.
func (c *copies) drop() {
	last := c.all[len(c.all)-1]
	c.all = slices.DeleteFunc(c.all, func(l *listing) bool {
		gone := l != last && len(l.senders) == 0
		if gone {
			c.size -= l.size
		}
		return gone
	})
}

func (c *copies) give(l *listing, rc *http.ResponseController) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(l.senders, rc)
	c.drop()
}
