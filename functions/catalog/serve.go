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

// An object is one version of an object, to be served.
type object struct {
	root   store.Root
	key    string // in root
	info   store.Info
	name   string // for the client
	sha256 string // empty if not known

	known *content.Record // nil: nothing

	// What a disk gets of it; not known where rawSHA256 is empty.
	rawSize   int64
	rawSHA256 string
}

// image answers GET and HEAD of /images/{key}[/{name}].
func (f *Function) image(w http.ResponseWriter, r *http.Request) error {
	return f.serve(w, r, f.find, f.send)
}

// serve finds what a request is for and sends it.
func (f *Function) serve(w http.ResponseWriter, r *http.Request, find func(*inventory.Snapshot, string) (*object, error), send func(http.ResponseWriter, *http.Request, *object) error) error {
	// A listing may be older than the object: what it names is looked at
	// before a byte is sent, and the catalog asked again where it has changed.
	const tries = 3
	for range tries {
		s, err := f.Inventory.Snapshot(r.Context())
		if err != nil {
			return err
		}
		c, err := find(s, r.PathValue("key"))
		if err != nil {
			return err
		}
		err = send(w, r, c)
		if !errors.Is(err, store.ErrChanged) && !notFound(err) {
			return err
		}
		f.touch(c)
	}
	return problem.New(problem.Conflict, "the image is being replaced: try again")
}

func (f *Function) touch(c *object) {
	if c.root == f.Images {
		f.Inventory.TouchImage(c.key)
	} else {
		f.Inventory.TouchCatalog(c.key)
	}
}

// nameFor is the name that the client saves the bytes under.
func nameFor(r *http.Request, name string) string {
	if asked := r.PathValue("name"); image.IsName(asked) {
		return asked
	}
	return name
}

// find returns what a key stands for: a SHA-256, or the name of an image.
func (f *Function) find(s *inventory.Snapshot, key string) (*object, error) {
	sha := strings.ToLower(key)
	if layout.IsHex256(sha) {
		row, ok := s.BySHA256(sha)
		if !ok {
			return nil, problem.New(problem.NotFound, "there is no image with this SHA-256 here")
		}
		return f.cached(s, row, row.Names[0])
	}
	if _, err := image.ParseName(key); err != nil {
		return nil, problem.New(problem.NotFound, "neither the SHA-256 nor the name of an image: "+err.Error())
	}
	row, ok := s.ByName(key)
	if !ok {
		return nil, problem.New(problem.NotFound, "there is no image of this name here")
	}
	if info, ok := s.Image(key); ok {
		return newObject(f.Images, key, info, key, row), nil
	}
	return f.cached(s, row, key)
}

// cached returns a row's bytes, wherever they are here.
func (f *Function) cached(s *inventory.Snapshot, row *inventory.Row, name string) (*object, error) {
	if local, ok := row.Local(); ok {
		if info, ok := s.Image(local); ok {
			return newObject(f.Images, local, info, name, row), nil
		}
	}
	if info, ok := s.Blob(row.Digest()); ok {
		return newObject(f.Catalog, info.Key, info, name, row), nil
	}
	return nil, problem.New(problem.NotFound, "the image is known, but its bytes are not here: fetch it first")
}

func newObject(root store.Root, key string, info store.Info, name string, row *inventory.Row) *object {
	c := &object{root: root, key: key, info: info, name: name, sha256: row.Digest(), known: row.Known}
	if row.RawSizeBytes != nil && row.RawSHA256 != nil {
		c.rawSize, c.rawSHA256 = *row.RawSizeBytes, *row.RawSHA256
	}
	return c
}

// send answers with the content. Before anything is written the error is
// store.ErrChanged where the object is another version by now.
func (f *Function) send(w http.ResponseWriter, r *http.Request, c *object) error {
	if err := c.unchanged(r.Context()); err != nil {
		return err
	}
	c.name = nameFor(r, c.name)
	describe(w.Header(), c, "", c.sha256)
	if links := f.links(c); links != nil {
		return redirect(w, r, c, links)
	}
	body := &objectReader{ctx: r.Context(), object: c}
	defer body.Close()
	return f.sendRanges(w, r, c, c.info.Size, body)
}

// describe sets the fields that speak of what is sent: an object, or what is
// made of it, whose ETag ends in suffix and whose SHA-256 may not be known.
func describe(h http.Header, c *object, suffix, sha256 string) {
	etag := c.sha256
	if etag == "" {
		etag = c.info.ETag + "-" + strconv.FormatInt(c.info.Size, 36)
	}
	h.Set("ETag", `"`+etag+suffix+`"`)
	if sha256 != "" {
		h.Set("Repr-Digest", digest.FormatReprDigest(sha256))
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": c.name}))
	// Caches may keep it, and ask each time whether it is still this one.
	h.Set("Cache-Control", "no-cache")
}

// A body is what [http.ServeContent] reads.
type body interface {
	io.ReadSeeker
	failure() error // the first failure to read
}

// sendRanges answers with a body, or the parts of it that are asked for.
func (f *Function) sendRanges(w http.ResponseWriter, r *http.Request, c *object, size int64, body body) error {
	out := &lastLook{ResponseWriter: w, served: f.Metric.BytesServed, unchanged: func() error { return c.unchanged(r.Context()) }}
	if ignoredRange(r) {
		r.Header.Del("Range")
	}
	http.ServeContent(out, r, "", c.info.LastModified, body)
	switch out.refused {
	case http.StatusRequestedRangeNotSatisfiable:
		return problem.Newf(problem.Range, "the image has %d bytes, and the range is outside of them", size)
	case http.StatusPreconditionFailed:
		return failedPrecondition()
	}
	err := errors.Join(body.failure(), out.err)
	if err != nil && out.started {
		return cutOff(c, err)
	}
	return err
}

// cutOff is the error of an answer that has begun, which breaks the connection.
// It does not wrap what asks for another try: the bytes of that would go on
// where these ended.
func cutOff(c *object, err error) error {
	return fmt.Errorf("image %q: cut off while it was sent: %v", c.key, err)
}

// links returns what makes URLs of the content at the store; nil where its bytes
// go through here.
func (f *Function) links(c *object) store.Presigner {
	if c.root == f.Images {
		return f.ImageLinks
	}
	return f.CatalogLinks
}

// redirect sends the client to the store, which answers ranges and conditions.
// The answer has no validators: the store's are others.
func redirect(w http.ResponseWriter, r *http.Request, c *object, links store.Presigner) error {
	url, err := links.PresignGet(r.Context(), c.key, c.name, r.Method == http.MethodHead)
	if err != nil {
		return err
	}
	h := w.Header()
	for _, name := range []string{"ETag", "Content-Disposition", "Content-Type"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Location", url)
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// maxRanges is how many ranges one request may ask for: each is a request to
// the store.
const maxRanges = 16

// ignoredRange reports whether the request has a Range field that must be
// ignored and that net/http would not ignore: of another method than GET, in a
// unit that is not bytes (RFC 9110, 14.2), of the last 0 bytes, or of so many
// ranges that nobody means well by it.
func ignoredRange(r *http.Request) bool {
	spec, isBytes := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	return r.Method != http.MethodGet || !isBytes || strings.TrimSpace(spec) == "-0" || strings.Count(spec, ",") >= maxRanges
}

// unchanged returns store.ErrChanged where the object is another version than
// the one that is served.
func (c *object) unchanged(ctx context.Context) error {
	info, err := c.root.Head(ctx, c.key)
	if err == nil && !info.Equal(c.info.Version) {
		return store.ErrChanged
	}
	return err
}

// objectReader reads an object from wherever it was sought to. It opens it
// when the first byte is wanted.
type objectReader struct {
	ctx    context.Context
	object *object
	offset int64
	body   io.ReadCloser
	err    error // the first failure to read
}

func (o *objectReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.offset
	case io.SeekEnd:
		offset += o.object.info.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	if offset != o.offset {
		o.Close()
		o.offset = offset
	}
	return offset, nil
}

func (o *objectReader) Read(p []byte) (int, error) {
	if o.offset >= o.object.info.Size {
		return 0, io.EOF
	}
	if o.body == nil {
		body, info, err := o.object.root.Get(o.ctx, o.object.key, store.Range{Offset: o.offset, Length: -1}, o.object.info.ETag)
		if err == nil && info.Size != o.object.info.Size {
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

// lastLook holds the end of an answer back until the object has been looked
// at once more: a file that was edited in place while it was read must not
// pass for the version that the answer's head speaks of.
type lastLook struct {
	http.ResponseWriter
	served    func(int)
	unchanged func() error

	started bool
	left    int64 // bytes of the body to come, or -1 if not known
	refused int   // a status of net/http's that is not written: problems say more
	err     error
}

func (l *lastLook) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l *lastLook) WriteHeader(status int) {
	if status >= 400 {
		l.refused = status
		return
	}
	l.started, l.left = true, -1
	if n, err := strconv.ParseInt(l.Header().Get("Content-Length"), 10, 64); err == nil {
		l.left = n
	}
	l.ResponseWriter.WriteHeader(status)
}

func (l *lastLook) Write(p []byte) (int, error) {
	switch {
	case l.err != nil:
		return 0, l.err
	case l.refused != 0:
		return len(p), nil
	}
	if l.left >= 0 && int64(len(p)) >= l.left {
		if l.err = l.unchanged(); l.err != nil {
			return 0, l.err
		}
	}
	n, err := l.ResponseWriter.Write(p)
	l.left -= int64(n)
	l.served(n)
	return n, err
}

const (
	// copyBuffer is how much is moved at a time: system calls on loopback cost
	// more than the memory. largeCopies answers at most have such a buffer, so
	// that clients that do not read hold little.
	copyBuffer, largeCopies = 256 << 10, 64
	// smallBuffer is how much all others move at a time, and each answer until
	// its client has read provenBytes.
	smallBuffer, provenBytes = 8 << 10, 16 << 20
)

// large holds the buffers of copyBuffer bytes, or nil for one that is yet to
// be made.
var large = func() chan []byte {
	c := make(chan []byte, largeCopies)
	for range largeCopies {
		c <- nil
	}
	return c
}()

// ReadFrom implements io.ReaderFrom, for its buffers.
func (l *lastLook) ReadFrom(src io.Reader) (int64, error) {
	out := struct{ io.Writer }{l}
	small := make([]byte, smallBuffer)
	n, err := io.CopyBuffer(out, io.LimitReader(src, provenBytes), small)
	if err != nil || n < provenBytes {
		return n, err
	}
	buffer := small
	select {
	case b := <-large:
		if b == nil {
			b = make([]byte, copyBuffer)
		}
		defer func() { large <- b }()
		buffer = b
	default:
	}
	m, err := io.CopyBuffer(out, struct{ io.Reader }{src}, buffer)
	return n + m, err
}
