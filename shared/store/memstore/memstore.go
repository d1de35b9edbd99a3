// Package memstore implements [store.Root] in memory, for tests. It is as strict as S3,
// so that code cannot rely on more: parts have a minimum size, times have a resolution
// of one second, and equal contents have equal ETags.
package memstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/shared/store"
)

// Root implements store.Root. It is safe for concurrent use.
type Root struct {
	mu      sync.Mutex
	objects map[store.Key]object
	uploads map[string]*upload // by ID
}

type object struct {
	data []byte // never changed
	store.Info
}

type upload struct {
	key       store.Key
	initiated time.Time
	parts     map[int32]part
}

type part struct {
	data []byte
	store.Part
}

var _ store.Root = (*Root)(nil)

// New returns an empty root.
func New() *Root {
	return &Root{objects: map[store.Key]object{}, uploads: map[string]*upload{}}
}

func etagOf(data []byte) string {
	return fmt.Sprintf("%x", md5.Sum(data))
}

// set stores an object. The caller holds mu.
func (r *Root) set(key store.Key, data []byte, etag string) store.Version {
	v := store.Version{ETag: etag, Size: int64(len(data)), LastModified: time.Now().UTC().Truncate(time.Second)}
	r.objects[key] = object{data, store.Info{Key: key, Version: v}}
	return v
}

// find returns an object.
func (r *Root) find(ctx context.Context, key store.Key) (object, error) {
	if err := ctx.Err(); err != nil {
		return object{}, fmt.Errorf("read %q: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.objects[key]
	if !ok {
		return o, fmt.Errorf("read %q: %w", key, store.ErrNotFound)
	}
	return o, nil
}

func (r *Root) Head(ctx context.Context, key store.Key) (store.Info, error) {
	o, err := r.find(ctx, key)
	return o.Info, err
}

func (r *Root) Get(ctx context.Context, key store.Key, rg store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	o, err := r.find(ctx, key)
	if err != nil {
		return nil, store.Info{}, err
	}
	size := int64(len(o.data))
	switch {
	case ifMatch != "" && ifMatch != o.ETag:
		return nil, store.Info{}, fmt.Errorf("read %q: %w", key, store.ErrChanged)
	case rg.Length == 0:
		return nil, store.Info{}, fmt.Errorf("read %q: a range of no bytes", key)
	case rg.Offset < 0 || rg.Offset > 0 && rg.Offset >= size, rg.Length > 0 && size == 0:
		return nil, store.Info{}, fmt.Errorf("read %q: no byte %d in %d bytes", key, rg.Offset, size)
	}
	data := o.data[rg.Offset:]
	if rg.Length > 0 {
		data = data[:min(rg.Length, int64(len(data)))]
	}
	return &body{ctx: ctx, Reader: bytes.NewReader(data)}, o.Info, nil
}

// Like a connection, a body ends with the context that it was opened with.
type body struct {
	ctx context.Context
	*bytes.Reader
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.Reader.Read(p)
}

// WriteTo replaces that of bytes.Reader, which does not check the context.
func (b *body) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

func (b *body) Close() error { return nil }

// readBody reads exactly size bytes, or all if size is negative. It returns when
// ctx ends, even if a Read of body does not.
func readBody(ctx context.Context, body io.Reader, size int64) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(body)
		done <- result{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-done:
		if res.err == nil && size >= 0 && int64(len(res.data)) != size {
			return nil, fmt.Errorf("the body has %d bytes, not %d", len(res.data), size)
		}
		return res.data, cmp.Or(res.err, ctx.Err())
	}
}

func (r *Root) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	data, err := readBody(ctx, body, size)
	if err != nil {
		return store.Version{}, fmt.Errorf("write %q: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set(key, data, etagOf(data)), nil
}

// Create implements store.Objects.
func (r *Root) Create(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	data, err := readBody(ctx, body, size)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.objects[key]; err == nil && ok {
		err = store.ErrConflict
	}
	if err != nil {
		return store.Version{}, fmt.Errorf("write %q: %w", key, err)
	}
	return r.set(key, data, etagOf(data)), nil
}

func (r *Root) Delete(ctx context.Context, key store.Key) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %q: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.objects, key)
	return nil
}

func (r *Root) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	return list(ctx, prefix, func() (infos []store.Info) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for key, o := range r.objects {
			if name, ok := strings.CutPrefix(string(key), prefix); ok && !strings.Contains(name, "/") && key > after && !strings.HasSuffix(string(key), "/") {
				infos = append(infos, o.Info)
			}
		}
		slices.SortFunc(infos, func(a, b store.Info) int { return cmp.Compare(a.Key, b.Key) })
		return infos
	})
}

// list yields the elements of all until ctx ends.
func list[T any](ctx context.Context, prefix string, all func() []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for items := all(); ; items = items[1:] {
			var none T
			switch err := ctx.Err(); {
			case err != nil:
				yield(none, fmt.Errorf("list %q: %w", prefix, err))
				return
			case len(items) == 0 || !yield(items[0], nil):
				return
			}
		}
	}
}

// Move implements store.Objects. It copies, and leaves src.
func (r *Root) Move(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error) {
	o, err := r.find(ctx, src)
	if err != nil {
		return store.Version{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.objects[dst]; taken {
		return store.Version{}, fmt.Errorf("move to %q: %w", dst, store.ErrConflict)
	}
	if !o.Version.Equal(v) {
		return store.Version{}, fmt.Errorf("move %q: %w", src, store.ErrChanged)
	}
	return r.set(dst, o.data, o.ETag), nil
}

func (r *Root) CreateUpload(ctx context.Context, key store.Key) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("begin upload of %q: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := rand.Text()
	r.uploads[id] = &upload{key: key, initiated: time.Now().UTC(), parts: map[int32]part{}}
	return id, nil
}

// pending returns an upload. The caller holds mu.
func (r *Root) pending(ctx context.Context, key store.Key, id string) (*upload, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("upload %q of %q: %w", id, key, err)
	}
	u, ok := r.uploads[id]
	if !ok || u.key != key {
		return nil, fmt.Errorf("upload %q of %q: %w", id, key, store.ErrNotFound)
	}
	return u, nil
}

func (r *Root) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error) {
	if n < 1 || n > store.MaxParts || size < 0 {
		return store.Part{}, fmt.Errorf("send part %d of %q: %d bytes with that number are impossible", n, key, size)
	}
	data, err := readBody(ctx, body, size)
	if err != nil {
		return store.Part{}, fmt.Errorf("send part of %q: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	u, err := r.pending(ctx, key, id)
	if err != nil {
		return store.Part{}, err
	}
	p := store.Part{Number: n, ETag: etagOf(data), Size: size}
	arrived := p
	arrived.LastModified = time.Now().UTC()
	u.parts[n] = part{data, arrived}
	return p, nil
}

func (r *Root) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, err := r.pending(ctx, key, id)
	if err != nil {
		return nil, err
	}
	var parts []store.Part
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		parts = append(parts, u.parts[n].Part)
	}
	return parts, nil
}

func (r *Root) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	return r.complete(ctx, key, id, parts, false)
}

// CompleteNew implements store.Multipart.
func (r *Root) CompleteNew(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	return r.complete(ctx, key, id, parts, true)
}

func (r *Root) complete(ctx context.Context, key store.Key, id string, parts []store.Part, create bool) (store.Version, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, err := r.pending(ctx, key, id)
	if err != nil {
		return store.Version{}, err
	}
	if len(parts) == 0 {
		return store.Version{}, fmt.Errorf("complete upload of %q: it has no parts", key)
	}
	var data, sums []byte
	for i, p := range parts {
		sent, ok := u.parts[p.Number]
		switch {
		case i > 0 && parts[i-1].Number >= p.Number:
			return store.Version{}, fmt.Errorf("complete upload of %q: parts out of order", key)
		case !ok || sent.ETag != p.ETag:
			return store.Version{}, fmt.Errorf("complete upload of %q: there is no such part %d", key, p.Number)
		case i < len(parts)-1 && sent.Size < store.MinPartBytes:
			return store.Version{}, fmt.Errorf("complete upload of %q: part %d has %d bytes, the least is %d", key, p.Number, sent.Size, store.MinPartBytes)
		}
		data = append(data, sent.data...)
		sums = append(sums, p.ETag...)
	}
	if _, ok := r.objects[key]; create && ok {
		return store.Version{}, fmt.Errorf("complete upload of %q: %w", key, store.ErrConflict)
	}
	delete(r.uploads, id)
	return r.set(key, data, fmt.Sprintf("%s-%d", etagOf(sums), len(parts))), nil
}

func (r *Root) AbortUpload(ctx context.Context, key store.Key, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.pending(ctx, key, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		delete(r.uploads, id)
	}
	return err
}

func (r *Root) PendingUploads(ctx context.Context, prefix string) iter.Seq2[store.PendingUpload, error] {
	return list(ctx, prefix, func() (uploads []store.PendingUpload) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for id, u := range r.uploads {
			if strings.HasPrefix(string(u.key), prefix) {
				uploads = append(uploads, store.PendingUpload{Key: u.key, ID: id, Initiated: u.initiated})
			}
		}
		slices.SortFunc(uploads, func(a, b store.PendingUpload) int {
			return cmp.Or(cmp.Compare(a.Key, b.Key), a.Initiated.Compare(b.Initiated), cmp.Compare(a.ID, b.ID))
		})
		return uploads
	})
}

func (r *Root) ReadRecord(ctx context.Context, key store.Key) ([]byte, string, error) {
	o, err := r.find(ctx, key)
	if err != nil {
		return nil, "", err
	}
	if len(o.data) > store.MaxRecordBytes {
		return nil, "", fmt.Errorf("read record %q: larger than %d bytes", key, store.MaxRecordBytes)
	}
	return bytes.Clone(o.data), o.ETag, nil
}

func (r *Root) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	return r.swap(ctx, key, data, "", true)
}

func (r *Root) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	return r.swap(ctx, key, data, tag, false)
}

func (r *Root) swap(ctx context.Context, key store.Key, data []byte, tag string, create bool) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("write record %q: %w (%w)", key, store.ErrUnknown, err)
	}
	if len(data) > store.MaxRecordBytes {
		return "", fmt.Errorf("write record %q: %d bytes, the most is %d", key, len(data), store.MaxRecordBytes)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, exists := r.objects[key]; exists == create || o.ETag != tag {
		return "", fmt.Errorf("write record %q: %w", key, store.ErrConflict)
	}
	return r.set(key, bytes.Clone(data), etagOf(data)).ETag, nil
}
