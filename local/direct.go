package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"

	"golang.org/x/sys/unix"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

// A direct is a root in the gateway whose bytes are read from the disk and written to it, and
// not sent through S3: on a small machine, most of the time would go to the protocol.
type direct struct {
	store.Root
	gateway  *gateway.Gateway
	location config.Location
}

// Head implements store.Objects. Serving an image calls it twice.
func (d *direct) Head(ctx context.Context, key store.Key) (store.Info, error) {
	if err := ctx.Err(); err != nil {
		return store.Info{}, fmt.Errorf("read %q: %w", key, err)
	}
	f, err := d.gateway.Open(d.location.Bucket, d.location.Prefix+string(key))
	if err != nil {
		return d.Root.Head(ctx, key) // S3 returns the error of the contract
	}
	f.Close()
	return infoOf(key, f), nil
}

func infoOf(key store.Key, f *gateway.File) store.Info {
	return store.Info{Key: key, Version: store.Version{ETag: f.ETag, Size: f.Size, LastModified: f.LastModified}}
}

// Get implements store.Objects.
func (d *direct) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, store.Info{}, fmt.Errorf("read %q: %w", key, err)
	}
	f, err := d.gateway.Open(d.location.Bucket, d.location.Prefix+string(key))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, store.Info{}, fmt.Errorf("read %q: %w", key, store.ErrNotFound)
		}
		// S3 returns the error of the contract.
		return d.Root.Get(ctx, key, r, ifMatch)
	}
	info := infoOf(key, f)
	length := f.Size - r.Offset
	if r.Length >= 0 {
		length = min(length, r.Length)
	}
	switch {
	case ifMatch != "" && ifMatch != f.ETag:
		err = fmt.Errorf("read %q: %w", key, store.ErrChanged)
	case r.Length == 0, r.Offset > 0 && length <= 0:
		err = fmt.Errorf("read %q: a range of no bytes", key)
	default:
		_, err = f.Seek(r.Offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, store.Info{}, err
	}
	return &directBody{ctx, f, length}, info, nil
}

// List implements store.Objects.
func (d *direct) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		from := ""
		if after != "" {
			from = d.location.Prefix + string(after)
		}
		for o, err := range d.gateway.List(d.location.Bucket, d.location.Prefix+prefix, from) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				// S3 returns the error of the contract.
				d.Root.List(ctx, prefix, after)(yield)
				return
			}
			key := store.Key(strings.TrimPrefix(o.Key, d.location.Prefix))
			if !yield(store.Info{Key: key, Version: store.Version{ETag: o.ETag, Size: o.Size, LastModified: o.LastModified}}, nil) {
				return
			}
			after = key
		}
	}
}

// Put implements store.Objects.
func (d *direct) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	return d.put(ctx, key, body, size, false)
}

// Create implements store.Objects.
func (d *direct) Create(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	return d.put(ctx, key, body, size, true)
}

func (d *direct) put(ctx context.Context, key store.Key, body io.Reader, size int64, create bool) (store.Version, error) {
	etag, err := d.gateway.Put(ctx, d.location.Bucket, d.location.Prefix+string(key), body, size, create)
	if err != nil {
		return store.Version{}, failed("write", key, err)
	}
	info, err := d.Head(ctx, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && info.ETag != etag {
		err = fmt.Errorf("write %q: %w", key, store.ErrChanged)
	}
	return info.Version, err
}

// Move implements store.Objects.
func (d *direct) Move(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error) {
	if err := ctx.Err(); err != nil {
		return store.Version{}, fmt.Errorf("move %q: %w", src, err)
	}
	f, err := d.gateway.Rename(d.location.Bucket, d.location.Prefix+string(src), d.location.Prefix+string(dst), v.ETag)
	if err != nil {
		return store.Version{}, failed("move", src, err)
	}
	defer f.Close()
	return infoOf(dst, f).Version, nil
}

// UploadPart implements store.Multipart.
func (d *direct) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error) {
	etag, err := d.gateway.PutPart(ctx, d.location.Bucket, d.location.Prefix+string(key), id, n, body, size)
	if err != nil {
		return store.Part{}, failed("send part of", key, err)
	}
	return store.Part{Number: n, ETag: etag, Size: size}, nil
}

// failed adds to an error of the gateway the operation and the error of package store.
func failed(doing string, key store.Key, err error) error {
	if kind := s3store.Kind(gateway.Fault(err)); kind != nil {
		return fmt.Errorf("%s %q: %w (%w)", doing, key, kind, err)
	}
	return fmt.Errorf("%s %q: %w", doing, key, err)
}

// A directBody reads a range of a file. It returns io.EOF only after the whole range.
type directBody struct {
	ctx  context.Context
	file *gateway.File
	left int64
}

func (b *directBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.left <= 0 {
		return 0, io.EOF
	}
	n, err := b.file.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if errors.Is(err, io.EOF) && b.left > 0 {
		err = io.ErrUnexpectedEOF // the file was truncated meanwhile
	}
	return n, err
}

// ReadObjectAt implements store.Direct.
func (b *directBody) ReadObjectAt(p []byte, off int64) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.file.ReadAt(p, off)
}

// ObjectExtent implements store.Direct.
func (b *directBody) ObjectExtent(off, limit int64) (int64, bool, error) {
	data, err := b.file.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		data, err = limit, nil // there is none up to the end of the file
	}
	if err != nil || data > off {
		return min(data, limit) - off, true, err
	}
	hole, err := b.file.Seek(off, unix.SEEK_HOLE)
	return min(hole, limit) - off, false, err
}

// ObjectOwnHoles implements store.Direct.
func (b *directBody) ObjectOwnHoles() bool { return !b.file.Written }

// ObjectSame implements store.Direct.
func (b *directBody) ObjectSame() bool { return b.file.Same() }

func (b *directBody) Close() error { return b.file.Close() }
