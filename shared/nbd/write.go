package nbd

import (
	"fmt"
	"io"
	"time"
)

// A Writable is a disk that its client may change. Only this client sees the changes, so
// flushing has nothing to do. The methods that change it are not called concurrently
// with each other. If there is no room, their errors wrap [syscall.ENOSPC].
type Writable interface {
	Disk
	io.WriterAt
	// Zero makes n bytes from off on read as zero, and frees their room if it can.
	Zero(off, n int64) error
}

// write answers NBD_CMD_WRITE, whose data follow the request, with no if it is not ok.
func (c *conn) write(r request, no errno) error {
	if r.length > maxRequest {
		return fmt.Errorf("%w: a write of %d bytes", errViolation, r.length)
	}
	var buf []byte
	if slot := c.slot(); slot != nil {
		defer c.release(slot)
		buf = *slot
	} else {
		if c.small == nil {
			c.small = make([]byte, maxHeader+smallPiece)
		}
		buf = c.small
	}
	var failure error
	off := int64(r.offset)
	for left := int64(r.length); left > 0; {
		piece := buf[:min(left, int64(len(buf)))]
		c.s.setReadDeadline(c, time.Now().Add(stallTime))
		if _, err := io.ReadFull(c.in, piece); err != nil {
			return err
		}
		if no == ok && failure == nil {
			_, failure = c.writes.WriteAt(piece, off)
		}
		left -= int64(len(piece))
		off += int64(len(piece))
	}
	switch {
	case no != ok:
		return c.fail(r, no, "")
	case failure != nil:
		return c.failed(r, failure)
	}
	c.written.Add(int64(r.length))
	return c.done(r)
}

// zero answers NBD_CMD_TRIM and NBD_CMD_WRITE_ZEROES.
func (c *conn) zero(r request) error {
	var err error
	switch {
	case r.cmd == cmdTrim || r.flags&flagNoHole == 0:
		err = c.writes.Zero(int64(r.offset), int64(r.length))
	case r.flags&flagFastZero != 0:
		return c.fail(r, notSupported, "")
	default:
		zeros := make([]byte, smallPiece)
		for off, end := int64(r.offset), int64(r.offset)+int64(r.length); off < end && err == nil; off += smallPiece {
			_, err = c.writes.WriteAt(zeros[:min(smallPiece, end-off)], off)
		}
	}
	if err != nil {
		return c.failed(r, err)
	}
	return c.done(r)
}
