package flash

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sys/unix"
)

const (
	// blockBytes is the size of a write. A card writes whole erase blocks, of a few MiB.
	blockBytes = 4 << 20
	// chunkBytes is the size of the zeros that are not written. 64 KiB is a whole number of
	// sectors, pages and clusters.
	chunkBytes = 64 << 10
	// windowBytes is what is written to memory before the device must have the bytes of the
	// window before: memory of gigabytes would take them all, and progress be a lie.
	windowBytes = 32 << 20
)

// A Writer writes a disk to a device from the beginning on. Zeros are not written if the
// device can make holes, or has zeros there. It is not safe for concurrent use.
type Writer struct {
	// Moved is called with the number of bytes of each write. It may be nil.
	Moved func(int64)

	d      *Device
	offset int64
	sum    hash.Hash
	noHole bool  // the device makes no holes
	window int64 // the offset at which the current window begins
}

// Writer returns a writer of the device from its first byte on.
func (d *Device) Writer() *Writer { return &Writer{d: d, sum: sha256.New()} }

// Offset returns the number of bytes of the disk that were written.
func (w *Writer) Offset() int64 { return w.offset }

// Sum returns the SHA-256 of these bytes, as they were given to w.
func (w *Writer) Sum() string { return hex.EncodeToString(w.sum.Sum(nil)) }

// ReadFrom writes what r has, which is read ahead. It returns the error of r, other than
// [io.EOF], once it has written everything before it; an error of the device is a
// [*DeviceError].
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	type piece struct {
		b   []byte
		err error
	}
	full, free, stop := make(chan piece), make(chan []byte, 3), make(chan struct{})
	defer close(stop)
	for range cap(free) {
		free <- make([]byte, blockBytes)
	}
	first := int(blockBytes - w.offset%blockBytes) // then writes begin at blocks
	go func() {
		for {
			var b []byte
			select {
			case b = <-free:
			case <-stop:
				return
			}
			n, err := 0, error(nil)
			for n < first && err == nil { // io.ReadFull takes an answer that was cut for one that ended
				var m int
				m, err = r.Read(b[n:first])
				n += m
			}
			first = blockBytes
			select {
			case full <- piece{b[:n], err}:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	var n int64
	for p := range full {
		if err := w.write(p.b); err != nil {
			return n, &DeviceError{w.d.Path, err}
		}
		n += int64(len(p.b))
		if errors.Is(p.err, io.EOF) {
			return n, nil
		}
		if p.err != nil {
			return n, p.err
		}
		free <- p.b[:cap(p.b)]
	}
	return n, nil
}

// A DeviceError is an error of the device.
type DeviceError struct {
	Path string
	Err  error
}

func (e *DeviceError) Error() string {
	return fmt.Sprintf("%s cannot be written to: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *DeviceError) Unwrap() error { return e.Err }

// write writes b at the offset.
func (w *Writer) write(b []byte) error {
	at := w.offset
	for len(b) > 0 {
		n := run(b)
		var err error
		if b[0] == 0 && zeros(b[:n]) {
			err = w.zero(b[:n], at)
		} else {
			_, err = w.d.file.WriteAt(b[:n], at)
		}
		if err != nil {
			return err
		}
		w.sum.Write(b[:n])
		b, at = b[n:], at+int64(n)
	}
	if w.Moved != nil {
		w.Moved(at - w.offset)
	}
	w.offset = at
	return w.writeBack()
}

// run returns the length of the first chunks of b that are all zeros or all not.
func run(b []byte) int {
	first := zeros(b[:min(len(b), chunkBytes)])
	n := min(len(b), chunkBytes)
	for n < len(b) && zeros(b[n:min(len(b), n+chunkBytes)]) == first {
		n = min(len(b), n+chunkBytes)
	}
	return n
}

// zeros reports whether b has zeros only. It is not empty.
func zeros(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// zero makes the device read as zeros, given as b, at an offset.
func (w *Writer) zero(b []byte, at int64) error {
	if !w.noHole && len(b) >= chunkBytes {
		// Of a block device, this is done by the device itself, or fails: the kernel
		// promises zeros, and a discard does not.
		err := unix.Fallocate(int(w.d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(len(b)))
		if err == nil {
			return nil
		}
		w.noHole = errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
	}
	// Cards and drives are faster to read than to write, and a used one is found out by its
	// first bytes.
	have := make([]byte, chunkBytes)
	for off := 0; off < len(b); off += chunkBytes {
		have = have[:min(chunkBytes, len(b)-off)]
		if _, err := w.d.file.ReadAt(have, at+int64(off)); err != nil || !zeros(have) {
			_, err := w.d.file.WriteAt(b[off:], at+int64(off))
			return err
		}
	}
	return nil
}

// writeBack has the device take the current window, once it has taken the one before.
func (w *Writer) writeBack() error {
	if w.offset-w.window < windowBytes {
		return nil
	}
	fd, before := int(w.d.file.Fd()), max(w.window-windowBytes, 0)
	const start, wait = unix.SYNC_FILE_RANGE_WRITE, unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := unix.SyncFileRange(fd, w.window, w.offset-w.window, start)
	if err == nil && w.window > before {
		err = unix.SyncFileRange(fd, before, w.window-before, wait)
	}
	w.window = w.offset
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return nil // Sync does it
	}
	return err
}

// Sync returns once the device has what was written.
func (w *Writer) Sync() error {
	if err := w.d.file.Sync(); err != nil {
		return &DeviceError{w.d.Path, err}
	}
	return nil
}

// State returns the state of w, for [Device.Resume]. What it says to be written is on the
// device once Sync was called.
func (w *Writer) State() ([]byte, error) { return w.sum.(encoding.BinaryMarshaler).MarshalBinary() }
