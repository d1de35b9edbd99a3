package flash

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sys/unix"
)

// ErrDiffers is the error if a device does not hold what was written to it.
var ErrDiffers = errors.New("the device does not hold what was written to it")

// Verify reads the first bytes of the device, past the memory that the kernel keeps of it,
// and returns [ErrDiffers] unless they have the SHA-256 sum. It calls moved with the number
// of bytes of each read. direct is false if the bytes may be those in memory.
func (d *Device) Verify(ctx context.Context, size int64, sum string, moved func(int64)) (direct bool, err error) {
	h := sha256.New()
	direct, err = d.read(ctx, size, h, moved)
	if err != nil {
		return direct, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return direct, fmt.Errorf("%w: %s has the SHA-256 %s, and the image %s. It may be faulty, or smaller than it says", ErrDiffers, d.Path, got, sum)
	}
	return direct, nil
}

// Resume returns a writer that continues one that wrote the first bytes of the device, by
// its State. It returns [ErrDiffers] unless the device has these bytes, which it reads as
// Verify does.
func (d *Device) Resume(ctx context.Context, size int64, state []byte, moved func(int64)) (*Writer, error) {
	w := d.Writer()
	if err := w.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, err
	}
	if _, err := d.Verify(ctx, size, w.Sum(), moved); err != nil {
		return nil, err
	}
	w.offset, w.window = size, size
	return w, nil
}

// read adds the first bytes of the device to h.
func (d *Device) read(ctx context.Context, size int64, h hash.Hash, moved func(int64)) (direct bool, err error) {
	if err := d.file.Sync(); err != nil {
		return false, &DeviceError{d.Path, err}
	}
	fd := int(d.file.Fd())
	if d.Regular {
		direct = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) == nil
	} else {
		direct = unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0) == nil
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT); err == nil {
			direct = true
			defer func() { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags) }()
		}
	}
	// Direct reads need memory at the beginning of a page.
	const buffers = 2
	memory, err := unix.Mmap(-1, 0, buffers*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return direct, fmt.Errorf("memory to read back: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(memory)) }()
	// One block is hashed while the next is read.
	hashed := make(chan struct{}, buffers)
	for range buffers {
		hashed <- struct{}{}
	}
	blocks := make(chan []byte)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range blocks {
			h.Write(b)
			moved(int64(len(b)))
			hashed <- struct{}{}
		}
	}()
	err = func() error {
		for at, i := int64(0), 0; at < size; at, i = at+blockBytes, i+1 {
			<-hashed
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			b := memory[i%buffers*blockBytes:][:blockBytes]
			want := int(min(size-at, blockBytes))
			// The whole block is asked for: a direct read has whole sectors.
			if n, err := d.file.ReadAt(b, at); n < want {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("%s cannot be read back: %w", d.Path, err)
			}
			blocks <- b[:want]
		}
		return nil
	}()
	close(blocks)
	<-done
	return direct, err
}
