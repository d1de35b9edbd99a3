package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/store"
)

// An object is a version of an object in the store, to be sent.
type object struct {
	inventory.Place
	name   image.Name    // for the client
	sha256 layout.SHA256 // "" if unknown

	known *content.Record // nil if the content was not inspected
	what  string          // [served.Disk] if the disk in it is sent, else "" for its bytes

	sources []inventory.Source

	// The disk in it; unknown if rawSHA256 is "".
	rawSize   int64
	rawSHA256 layout.SHA256
}

func (f *Function) image(w http.ResponseWriter, r *http.Request) error {
	if d, ok := below(r); ok {
		return f.sendBelow(w, r, d)
	}
	if key, name, ok := beside(r, checksumEnd); ok {
		return f.imageChecksum(w, r, key, name)
	}
	if key, name, ok := beside(r, bmapEnd); ok {
		return f.blockMap(w, r, key, f.find, func(c *object) bool { return UnpacksByName(c.known, name) })
	}
	return f.serve(w, r, f.find, f.send)
}

// serve finds the object that a request names and sends it.
func (f *Function) serve(w http.ResponseWriter, r *http.Request, find func(*inventory.Snapshot, string) (*object, error), send func(http.ResponseWriter, *http.Request, *object) error) error {
	return f.withObject(r.Context(), r.PathValue("key"), find, func(c *object) error { return send(w, r, c) })
}

// Serve answers with the bytes of the row that find returns, as /images does.
func (f *Function) Serve(w http.ResponseWriter, r *http.Request, find func(*inventory.Snapshot) (*inventory.Row, error)) error {
	return f.withObject(r.Context(), "", func(s *inventory.Snapshot, _ string) (*object, error) {
		row, err := find(s)
		if err != nil {
			return nil, err
		}
		return f.cached(s, row, row.Names[0])
	}, func(c *object) error { return f.send(w, r, c) })
}

// withObject finds the object that key names and calls do with it, which must return
// [store.ErrChanged] if the object has another version now.
func (f *Function) withObject(ctx context.Context, key string, find func(*inventory.Snapshot, string) (*object, error), do func(*object) error) error {
	// The snapshot may be older than the object: do checks the version first.
	const tries = 3
	for range tries {
		s, err := f.Inventory.Snapshot(ctx)
		if err != nil {
			return err
		}
		c, err := find(s, key)
		if err != nil {
			return err
		}
		err = do(c)
		if !errors.Is(err, store.ErrChanged) && !notFound(err) {
			return err
		}
		f.Inventory.Touch(c.Place)
	}
	return problem.New(problem.Conflict, "the image is being replaced: try again")
}

// nameFor returns the file name for the client: the one in the path, else name.
func nameFor(r *http.Request, name image.Name) image.Name {
	if asked, err := image.ParseName(r.PathValue("name")); err == nil {
		return asked
	}
	return name
}

// find returns the object that key names, which is a SHA-256 or the name of an
// image.
func (f *Function) find(s *inventory.Snapshot, key string) (*object, error) {
	if sha, ok := layout.ParseSHA256(strings.ToLower(key)); ok {
		row, ok := s.BySHA256(sha)
		if !ok {
			return nil, noSHA256()
		}
		return f.cached(s, row, row.Names[0])
	}
	name, err := image.ParseName(key)
	if err != nil {
		return nil, problem.New(problem.NotFound, "there is no image of this name here: "+err.Error())
	}
	row, ok := s.ByName(name)
	if !ok {
		return nil, problem.New(problem.NotFound, "there is no image of this name here")
	}
	if info, ok := s.Image(name); ok {
		return newObject(inventory.Place{Root: f.Images, Local: true, Info: info}, name, row), nil
	}
	return f.cached(s, row, name)
}

func noSHA256() error {
	return problem.New(problem.NotFound, "there is no image with this SHA-256 here")
}

// cached returns the object with a row's bytes, in either root.
func (f *Function) cached(s *inventory.Snapshot, row *inventory.Row, name image.Name) (*object, error) {
	if at, ok := s.Locate(row, f.Images, f.Catalog); ok {
		return newObject(at, name, row), nil
	}
	return nil, problem.New(problem.NotFound, "the image is available, but not cached: fetch it first")
}

func newObject(at inventory.Place, name image.Name, row *inventory.Row) *object {
	c := &object{Place: at, name: name, sha256: row.Digest(), known: row.Known, sources: row.Sources}
	if row.RawSizeBytes != nil && row.RawSHA256 != nil {
		c.rawSize, c.rawSHA256 = *row.RawSizeBytes, *row.RawSHA256
	}
	return c
}

// readable returns a problem if no disk in c can be read, and [store.ErrChanged] if the object
// has another version now.
func (c *object) readable(ctx context.Context) error {
	if err := c.Unchanged(ctx); err != nil || c.known == nil {
		return err
	}
	if no := c.known.NoDisk(); no != "" {
		return problem.New(problem.Malformed, no)
	}
	return nil
}

// send answers with the content. It returns [store.ErrChanged], before anything
// is written, if the object has another version now.
func (f *Function) send(w http.ResponseWriter, r *http.Request, c *object) error {
	if err := c.Unchanged(r.Context()); err != nil {
		return err
	}
	c.name = nameFor(r, c.name)
	describe(w.Header(), c, "", c.sha256)
	if links := f.links(c); links != nil {
		return f.redirect(w, r, c, links)
	}
	for _, link := range mirrors(c.sources) {
		w.Header().Add("Link", link)
	}
	body := &objectReader{ctx: r.Context(), object: c}
	defer body.Close()
	return f.sendRanges(w, r, c, c.Info.Size, body)
}

// describe sets the header fields about a body: c, or bytes derived from c, whose
// ETag ends in suffix. sha256 is the body's, or "" if unknown.
func describe(h http.Header, c *object, suffix string, sha256 layout.SHA256) {
	etag := string(c.sha256)
	if etag == "" {
		etag = c.Info.ETag + "-" + strconv.FormatInt(c.Info.Size, 36)
	}
	h.Set("ETag", `"`+etag+suffix+`"`)
	if sha256 != "" {
		h.Set("Repr-Digest", digest.FormatReprDigest(sha256))
	}
	h.Set("Content-Type", mediaType(c, suffix != ""))
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": string(c.name)}))
	// Caches may store it, but must revalidate (RFC 9111 §5.2.2.4).
	h.Set("Cache-Control", "no-cache")
}

// mediaType returns the media type of the image in c, or of the disk in it. That of a disk
// which UEFI starts has the firmware boot it from memory (UEFI specification, section
// 24.7). IANA has registered them with a dot in place of the hyphen, which no firmware
// knows.
func mediaType(c *object, disk bool) string {
	const iso, img = "application/vnd.efi-iso", "application/vnd.efi-img"
	if c.known == nil || c.known.Boot == nil || !c.known.Boot.UEFI || !disk && !c.known.Kind.Raw() {
		return "application/octet-stream"
	}
	format, _ := image.FormatOf(c.name)
	if c.known.Kind == content.ISO9660 || format == "iso" && !c.known.Kind.Raw() {
		return iso
	}
	return img
}

// A body is read by [http.ServeContent].
type body interface {
	io.ReadSeeker
	failure() error // the first failure to read
}

// sendRanges answers with a body or the requested ranges of it.
func (f *Function) sendRanges(w http.ResponseWriter, r *http.Request, c *object, size int64, body body) error {
	out := &verifiedWriter{ResponseWriter: w, served: f.Metric.BytesServed, unchanged: func() error { return c.Unchanged(r.Context()) }}
	if ignoredRange(r) {
		r.Header.Del("Range")
	}
	http.ServeContent(out, r, "", c.Info.LastModified, body)
	switch out.refused {
	case http.StatusRequestedRangeNotSatisfiable:
		return problem.Newf(problem.Range, "the image has %d bytes, and the range is outside of them", size)
	case http.StatusPreconditionFailed:
		return failedPrecondition()
	}
	if out.whole() {
		f.delivered(r, c, false)
	}
	err := errors.Join(body.failure(), out.err)
	if err != nil && out.started {
		return cutOff(c, err)
	}
	return err
}

// cutOff returns the error of an answer that has begun, which breaks the
// connection. It does not wrap err: serve would try again and append the bytes of
// another answer.
func cutOff(c *object, err error) error {
	return fmt.Errorf("image %q: cut off while it was sent: %v", c.Info.Key, err)
}

// maxRanges limits the ranges of one request: each is a request to the store.
const maxRanges = 16

// ignoredRange reports whether the Range field must be ignored, though net/http
// would not: of another method than GET or in another unit than bytes (RFC 9110
// §14.2), of the last 0 bytes, or of too many ranges.
func ignoredRange(r *http.Request) bool {
	spec, isBytes := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	return r.Method != http.MethodGet || !isBytes || strings.TrimSpace(spec) == "-0" || strings.Count(spec, ",") >= maxRanges
}

// An objectReader reads an object from any offset. It opens the object at the
// first read.
type objectReader struct {
	ctx    context.Context
	object *object
	offset int64
	body   io.ReadCloser
	err    error // the first failure to read
}

func (o *objectReader) Seek(offset int64, whence int) (int64, error) {
	offset, err := seek(offset, whence, o.offset, o.object.Info.Size)
	if err == nil && offset != o.offset {
		o.Close()
		o.offset = offset
	}
	return offset, err
}

func (o *objectReader) Read(p []byte) (int, error) {
	if o.offset >= o.object.Info.Size {
		return 0, io.EOF
	}
	if o.body == nil {
		body, info, err := o.object.Root.Get(o.ctx, o.object.Info.Key, store.Range{Offset: o.offset, Length: -1}, o.object.Info.ETag)
		if err == nil && info.Size != o.object.Info.Size {
			err = store.ErrChanged
			body.Close()
		}
		if err != nil {
			o.err = err
			return 0, err
		}
		o.body = body
	}
	n, err := o.body.Read(p)
	o.offset += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		o.err = err
	}
	return n, err
}

func (o *objectReader) failure() error { return o.err }

func (o *objectReader) Close() {
	if o.body != nil {
		o.body.Close()
		o.body = nil
	}
}

// A verifiedWriter holds back the end of an answer until the object's version is
// checked: a file that is edited in place while it is read must not pass for the
// version that the head of the answer names.
type verifiedWriter struct {
	http.ResponseWriter
	served    func(int)
	unchanged func() error

	started bool
	tail    bool  // the answer has the end of the body, and not only a few bytes of it
	left    int64 // bytes of the body still to write, or negative if unknown
	refused int   // an error status of net/http, which a problem replaces
	err     error
}

func (w *verifiedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *verifiedWriter) WriteHeader(status int) {
	if status >= 400 {
		w.refused = status
		return
	}
	w.started, w.left = true, -1
	defer func() {
		w.tail = status == http.StatusOK || status == http.StatusPartialContent && w.left >= minTail && isEnd(w.Header().Get("Content-Range"))
	}()
	if n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err == nil {
		w.left = n
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *verifiedWriter) Write(p []byte) (int, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case w.refused != 0:
		return len(p), nil
	}
	if w.left >= 0 && int64(len(p)) >= w.left {
		if w.err = w.unchanged(); w.err != nil {
			return 0, w.err
		}
	}
	n, err := w.ResponseWriter.Write(p)
	w.left -= int64(n)
	w.served(n)
	return n, err
}

const (
	// copyBuffer is the size of a write: on loopback, system calls cost more than
	// the memory. At most largeCopies answers have such a buffer, so that clients
	// that do not read hold little memory.
	copyBuffer, largeCopies = 256 << 10, 64
	// smallBuffer is the size of a write of all other answers. Until a client has read
	// provenBytes it gets at most firstBuffer bytes, which as many answers have: a range
	// is often that short.
	smallBuffer, firstBuffer, provenBytes = 8 << 10, 64 << 10, 16 << 20
)

// large and first hold the buffers of copyBuffer and firstBuffer bytes, nil for one that
// is not allocated yet.
var large, first = newPool(), newPool()

func newPool() chan []byte {
	c := make(chan []byte, largeCopies)
	for range largeCopies {
		c <- nil
	}
	return c
}

// take returns a buffer of size bytes out of pool, and a function that gives it back, or a
// small one if there is none.
func take(pool chan []byte, size int) (buffer []byte, give func()) {
	select {
	case b := <-pool:
		if b == nil {
			b = make([]byte, size)
		}
		return b, func() { pool <- b }
	default:
		return make([]byte, smallBuffer), func() {}
	}
}

// ReadFrom implements [io.ReaderFrom], to choose the buffer.
func (w *verifiedWriter) ReadFrom(src io.Reader) (int64, error) {
	out := struct{ io.Writer }{w}
	buffer, give := take(first, firstBuffer)
	n, err := io.CopyBuffer(out, io.LimitReader(src, provenBytes), buffer)
	give()
	if err != nil || n < provenBytes {
		return n, err
	}
	buffer, give = take(large, copyBuffer)
	defer give()
	m, err := io.CopyBuffer(out, struct{ io.Reader }{src}, buffer)
	return n + m, err
}
