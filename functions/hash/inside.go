package hash

import (
	"bytes"
	"context"
	"errors"
	"io"

	"imageroot/shared/boot"
	"imageroot/shared/content"
	"imageroot/shared/disk"
	"imageroot/shared/guest"
	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
	"imageroot/shared/unpack"
)

const (
	// inspectReads limits the blocks that an inspection reads if each is a request to the
	// store, and fileInspectReads if none is.
	inspectReads, fileInspectReads = 160, 4096
)

// inspectDisk sets which firmware can start the disk in the image that r reads, and what is
// inside that disk. Inside a compressed image looks its check, unless the disk was expanded,
// or the check did not get to its end.
func (f *Function) inspectDisk(ctx context.Context, at place, r *reader.Reader, rec *content.Record) error {
	switch {
	case rec.Content.NoDisk() != "" || rec.Check != nil && rec.Check.NoDisk != "":
		rec.Boot, rec.Inside = &boot.Ways{}, &disk.Inside{Inspector: disk.Version}
		return nil
	case rec.Kind.Compressed() && rec.Disk != nil:
		return f.inspectExpanded(ctx, rec)
	case rec.Kind.Compressed():
		head, err := f.unpackHead(ctx, at, rec.Kind)
		if err != nil {
			return err
		}
		if f.keepsVirtual() {
			rec.Content.Inside(head)
		}
		if rec.Inner != "" {
			return nil
		}
		if rec.Stale() && !rec.Pending() {
			s := disk.NewStream(unpackXZ)
			defer s.Stop()
			_, _ = s.Write(head) // never fails
			rec.Inside = new(s.End(false))
		}
		ways, err := boot.Find(bytes.NewReader(head))
		rec.Boot = &ways
		return err
	}
	return inspectAt(ctx, r, rec.Kind, rec)
}

// inspectExpanded is inspectDisk for an image whose disk is in the catalog root.
func (f *Function) inspectExpanded(ctx context.Context, rec *content.Record) error {
	info, err := f.Catalog.Head(ctx, layout.DiskKey(rec.SHA256))
	if errors.Is(err, store.ErrNotFound) {
		return nil // it was removed meanwhile
	}
	if err != nil {
		return err
	}
	r, err := reader.Open(ctx, f.Catalog, layout.DiskKey(rec.SHA256), info.Version)
	if err != nil {
		return err
	}
	defer r.Close()
	return inspectAt(ctx, r, rec.Inner, rec)
}

// inspectAt is inspectDisk for a disk that can be read at any offset, in an object of this
// kind.
func inspectAt(ctx context.Context, r *reader.Reader, kind content.Kind, rec *content.Record) error {
	image, reads, size := io.ReaderAt(until{ctx, r}), inspectReads, r.Size()
	if r.Local() {
		reads = fileInspectReads
	}
	var err error
	if kind.Virtual() {
		virtual, failed := guest.Open(guest.Format(kind), image, size)
		if err = failed; err == nil {
			image, size = virtual, virtual.Size()
		}
	}
	var ways boot.Ways
	inside := disk.Inside{Inspector: disk.Version}
	if err == nil {
		ways, err = boot.Find(image)
	}
	if err == nil {
		inside, err = disk.Inspect(image, size, reads, unpackXZ)
	}
	if wrong, bad := errors.AsType[*guest.Error](err); bad {
		inside.Unknown = append(inside.Unknown, "the disk cannot be read: "+wrong.Detail)
		err = nil
	}
	rec.Boot, rec.Inside = &ways, &inside
	return err
}

// until reads r until ctx ends: reads of this machine's disk know none.
type until struct {
	ctx context.Context
	r   io.ReaderAt
}

func (u until) ReadAt(p []byte, off int64) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.ReadAt(p, off)
}

// unpackXZ is a [disk.Unpacker].
func unpackXZ(packed []byte, limit int) ([]byte, error) {
	const window = 4 << 20 // larger than any block of squashfs
	u, err := unpack.NewReader(content.XZ, bytes.NewReader(packed), unpack.Limit{Window: window, Spare: func(int64) bool { return false }})
	if err == nil {
		defer u.Close()
		packed, err = io.ReadAll(io.LimitReader(u, int64(limit)+1))
	}
	if wrong, ok := errors.AsType[*unpack.Error](err); ok && wrong.Problem == unpack.Refused {
		return nil, disk.ErrMethod
	}
	return packed, err
}
