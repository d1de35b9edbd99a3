package client

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/client/progress"
	"imageroot/shared/content"
	"imageroot/shared/guest"
	"imageroot/shared/layout"
	"imageroot/shared/unpack"
)

// prove returns an error unless the disk that the server describes is the one in the image
// whose SHA-256 was given. It downloads that image, and writes nothing to the device.
func (f *flashing) prove(ctx context.Context) error {
	if !layout.SHA256(f.name).Valid() || f.name == f.disk.SHA256 {
		return nil // a name, or what is read back is compared with what was given
	}
	bar := progress.New(f.Stderr, "comparing", 0)
	defer bar.End()
	return trying(ctx, bar, func(moved func()) error {
		bar.Set(0)
		stream, alive, stop := watch(ctx)
		defer stop()
		res, err := f.Send(stream, api.Request{Method: http.MethodGet, Path: api.ImagePath(f.name), Header: http.Header{"Accept": {"*/*"}}})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		image, disk := sha256.New(), sha256.New()
		body := &counted{Reader: res.Body, count: func(n int64) { alive(); moved(); bar.Add(n) }}
		in := bufio.NewReaderSize(io.TeeReader(body, image), content.HeadBytes)
		wrong := hashDisk(in, res.ContentLength, disk)
		if _, err := io.Copy(io.Discard, in); err != nil {
			if stream.Err() != nil {
				return context.Cause(stream)
			}
			return &api.Unreachable{Host: f.URL(), Err: err}
		}
		if got := hex.EncodeToString(image.Sum(nil)); got != f.name {
			return exit.With(exit.Mismatch, fmt.Errorf("%s sends an image with the SHA-256 %s, not %s; nothing was written", f.URL(), got, f.name))
		}
		if got := hex.EncodeToString(disk.Sum(nil)); wrong == nil && got != f.disk.SHA256 {
			wrong = exit.With(exit.Mismatch, fmt.Errorf("the disk in this image has the SHA-256 %s, not %s as %s says; nothing was written", got, f.disk.SHA256, f.URL()))
		}
		return wrong
	})
}

// hashDisk writes the disk in an image, of size bytes if that is not negative, to h. It may
// read the image in part.
func hashDisk(in *bufio.Reader, size int64, h hash.Hash) error {
	head, err := in.Peek(content.HeadBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch kind := content.Head(head, max(size, int64(len(head)))).Kind; {
	case kind.Compressed():
		u, err := unpack.NewReader(kind, in, unpack.Limit{})
		if err != nil {
			return err
		}
		defer u.Close()
		unpacked := bufio.NewReaderSize(u, content.HeadBytes)
		head, err := unpacked.Peek(content.HeadBytes)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if inner := content.Head(head, int64(len(head))).Kind; inner.Virtual() {
			return hashVirtual(inner, unpacked, h)
		}
		_, err = io.Copy(h, unpacked)
		return err
	case kind.Virtual():
		return hashVirtual(kind, in, h)
	}
	return hashPlain(in, h)
}

// hashPlain is hashDisk for a disk, which may have the footer of a fixed VHD.
func hashPlain(in io.Reader, h hash.Hash) error {
	var size int64
	var held []byte // the last bytes
	buf := make([]byte, 128<<10)
	for {
		n, err := in.Read(buf)
		size += int64(n)
		held = append(held, buf[:n]...)
		_, _ = h.Write(held[:max(0, len(held)-content.FootBytes)]) // a hash does not fail
		held = append(held[:0], held[max(0, len(held)-content.FootBytes):]...)
		switch {
		case errors.Is(err, io.EOF):
			if !guest.Fixed(held, size) {
				_, _ = h.Write(held)
			}
			return nil
		case err != nil:
			return err
		}
	}
}

// hashVirtual is hashDisk for a virtual image, whose blocks are in any order: the image is in a
// file meanwhile.
func hashVirtual(kind content.Kind, in io.Reader, h hash.Hash) error {
	file, err := os.CreateTemp("", "imageroot-*")
	if err != nil {
		return err
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	size, err := io.Copy(file, in)
	if err != nil {
		return err
	}
	disk, err := guest.Open(guest.Format(kind), file, size)
	if err != nil {
		return err
	}
	_, err = io.Copy(h, io.NewSectionReader(disk, 0, disk.Size()))
	return err
}
