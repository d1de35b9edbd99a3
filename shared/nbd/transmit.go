package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxHeader is the maximum size of what precedes the data of a reply.
	maxHeader = chunkHeader + 8
	// minHole is the minimum size of a hole in a reply to a read. A smaller one is sent
	// as data, so that a reply has few chunks.
	minHole = 64 << 10
	// maxExtents limits the extents in a reply to BLOCK_STATUS.
	maxExtents = 128
)

// A conn is a connection.
type conn struct {
	s   *Server
	raw net.Conn
	rw  net.Conn // raw, or TLS over it
	in  *bufio.Reader
	*session

	small   []byte // the buffer of the connection's own goroutine; nil until it is used
	workers sync.WaitGroup
	flight  chan struct{} // one element for each worker

	warned atomic.Bool // a failure of the disk is logged

	mu     sync.Mutex // for writing replies
	broken error      // the first failure to write or to finish a reply

	read, written atomic.Int64 // bytes of the disk
}

// ip returns the address of the client.
func (c *conn) ip() string {
	addr := c.raw.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// serve serves the connection and closes it.
func (c *conn) serve() {
	defer c.s.remove(c)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.rw, c.in = c.raw, bufio.NewReader(c.raw)
	defer func() { _ = c.rw.Close() }()
	defer c.survive()
	s, err := c.negotiate(ctx)
	if err != nil {
		if !errors.Is(err, errEnd) && !errors.Is(err, io.EOF) {
			c.s.cfg.Log.Debug("nbd", "ip", c.ip(), "error", err)
		}
		return
	}
	c.session = s
	defer func() {
		c.workers.Wait()
		_ = s.disk.Close()
	}()
	if v, ok := c.raw.(interface{ Vouch(bool) }); ok {
		v.Vouch(true)
	}
	began := time.Now()
	err = c.transmit()
	cancel() // ends reads in flight if the client has left
	c.workers.Wait()
	attrs := []any{"ip", c.ip(), "export", s.name, "read", c.read.Load(), "written", c.written.Load(), "took", time.Since(began).Round(time.Millisecond)}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	c.s.cfg.Log.Info("nbd", attrs...)
}

// survive keeps a panic from ending the process.
func (c *conn) survive() {
	if r := recover(); r != nil {
		c.s.cfg.Log.Error("panic in an NBD connection", "panic", r, "stack", string(debug.Stack()))
		_ = c.raw.Close()
	}
}

// A request is a message of the client.
type request struct {
	cookie uint64
	cmd    command
	flags  uint16
	offset uint64
	length uint32
}

// transmit answers requests until the client disconnects, and returns nil then (section
// "Transmission phase"). Requests that it has begun may be in flight when it returns an
// error.
func (c *conn) transmit() error {
	c.flight = make(chan struct{}, maxInFlight)
	for {
		c.s.setReadDeadline(c, time.Time{})
		var head [requestHeader]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			if c.s.isClosed() {
				c.workers.Wait()
				return nil
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if magic := binary.BigEndian.Uint32(head[:]); magic != magicRequest {
			return fmt.Errorf("%w: a request begins with %#x", errViolation, magic)
		}
		r := request{
			flags: binary.BigEndian.Uint16(head[4:]), cmd: command(binary.BigEndian.Uint16(head[6:])), cookie: binary.BigEndian.Uint64(head[8:]),
			offset: binary.BigEndian.Uint64(head[16:]), length: binary.BigEndian.Uint32(head[24:]),
		}
		if r.cmd == cmdDisconnect {
			c.workers.Wait()
			return nil
		}
		if err := c.answer(r); err != nil {
			return err
		}
	}
}

// answer answers a request, or starts a goroutine that does. It returns an error if the
// connection is broken.
func (c *conn) answer(r request) error {
	no := c.check(r)
	switch {
	case r.cmd == cmdWrite:
		return c.write(r, no)
	case no != ok:
		return c.fail(r, no, "")
	case r.cmd == cmdRead, r.cmd == cmdBlockStatus:
		return c.begin(r)
	case r.cmd == cmdTrim, r.cmd == cmdWriteZeroes:
		return c.zero(r)
	}
	return c.done(r) // of NBD_CMD_FLUSH and NBD_CMD_CACHE nothing else is required
}

// check returns the error of a request that is not allowed (section "Error values").
func (c *conn) check(r request) errno {
	allowed := uint16(0)
	if c.writes != nil {
		allowed = flagFUA
	}
	outside := invalid
	switch r.cmd {
	case cmdRead:
		if c.structured {
			allowed |= flagDF
		}
	case cmdWriteZeroes:
		allowed |= flagNoHole | flagFastZero
		outside = noSpace
	case cmdWrite:
		outside = noSpace
	case cmdBlockStatus:
		allowed |= flagReqOne
	case cmdTrim, cmdFlush:
	case cmdCache:
		allowed = 0
	default:
		return invalid
	}
	size := uint64(c.disk.Size())
	writes := r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
	large := r.cmd == cmdRead || r.cmd == cmdCache || r.cmd == cmdWriteZeroes && r.flags&flagNoHole != 0
	switch {
	case writes && c.writes == nil:
		return notPermitted
	case r.flags&^allowed != 0:
		return invalid
	case r.cmd == cmdBlockStatus && (!c.status || r.length == 0):
		return invalid
	case large && r.length > maxRequest:
		return invalid
	case r.cmd != cmdFlush && (r.offset > size || uint64(r.length) > size-r.offset):
		return outside
	}
	return ok
}

// begin answers a read or BLOCK_STATUS: on a goroutine of its own if there is a slot for
// it.
func (c *conn) begin(r request) error {
	handle := c.sendRead
	if r.cmd == cmdBlockStatus {
		handle = c.sendStatus
	}
	buf := c.slot()
	if buf == nil {
		if c.small == nil {
			c.small = make([]byte, maxHeader+smallPiece)
		}
		return handle(r, c.small)
	}
	c.workers.Go(func() {
		defer c.survive()
		defer c.release(buf)
		if handle(r, *buf) != nil {
			_ = c.raw.Close() // ends transmit
		}
	})
	return nil
}

// slot returns a buffer for a request in flight, or nil if there is none.
func (c *conn) slot() *[]byte {
	select {
	case c.flight <- struct{}{}:
	default:
		return nil
	}
	select {
	case c.s.slots <- struct{}{}:
		return c.s.buffers.Get().(*[]byte)
	default:
		<-c.flight
		return nil
	}
}

func (c *conn) release(buf *[]byte) {
	c.s.buffers.Put(buf)
	<-c.s.slots
	<-c.flight
}

// sendRead answers NBD_CMD_READ. buf has room for [maxHeader] and a piece of the data.
func (c *conn) sendRead(r request, buf []byte) error {
	if r.length == 0 {
		return c.done(r)
	}
	if !c.structured || r.flags&flagDF != 0 {
		return c.sendWhole(r, buf)
	}
	off, end := int64(r.offset), int64(r.offset)+int64(r.length)
	for off < end {
		n, hole, err := c.disk.Extent(off, end)
		if err != nil {
			return c.failed(r, err)
		}
		hole = hole && (n >= minHole || n == int64(r.length))
		if !hole {
			n = min(max(n, minHole), end-off, int64(len(buf)-maxHeader))
			if err := c.fill(buf[maxHeader:maxHeader+n], off); err != nil {
				return c.failed(r, err)
			}
		}
		flags := uint16(0)
		if off+n == end {
			flags = flagDone
		}
		if hole {
			b := binary.BigEndian.AppendUint64(appendChunk(buf[:0], r, flags, chunkHole, 12), uint64(off))
			err = c.send(binary.BigEndian.AppendUint32(b, uint32(n)))
		} else {
			binary.BigEndian.AppendUint64(appendChunk(buf[:0], r, flags, chunkData, 8+int(n)), uint64(off))
			err = c.send(buf[:maxHeader+n])
			c.count(n)
		}
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

// sendWhole answers a read with one piece of data. The first part of it is read before
// the head is sent, so that most failures can be reported. After that, a failure ends
// the connection.
func (c *conn) sendWhole(r request, buf []byte) error {
	off, end := int64(r.offset), int64(r.offset)+int64(r.length)
	next := func() (int64, error) {
		n := min(end-off, int64(len(buf)-maxHeader))
		return n, c.fill(buf[maxHeader:maxHeader+n], off)
	}
	n, err := next()
	if err != nil {
		return c.failed(r, err)
	}
	from := 0 // of what is sent first
	if c.structured {
		binary.BigEndian.AppendUint64(appendChunk(buf[:0], r, flagDone, chunkData, 8+int(r.length)), r.offset)
	} else {
		from = maxHeader - simpleHeader
		appendSimple(buf[from:from], r, ok)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := c.sendLocked(buf[from : maxHeader+n]); err != nil {
			return err
		}
		c.count(n)
		if off += n; off == end {
			return nil
		}
		from = maxHeader
		if n, err = next(); err != nil {
			c.broken = err
			return err
		}
	}
}

// fill reads p from the disk.
func (c *conn) fill(p []byte, off int64) error {
	n, err := c.disk.ReadAt(p, off)
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (c *conn) count(n int64) {
	c.read.Add(n)
	c.s.cfg.Sent(int(n))
}

// sendStatus answers NBD_CMD_BLOCK_STATUS with the extents that are simple to find: at
// least one.
func (c *conn) sendStatus(r request, _ []byte) error {
	off, end := int64(r.offset), int64(r.offset)+int64(r.length)
	most := maxExtents
	if r.flags&flagReqOne != 0 {
		most = 1
	}
	var extents []extent
	for calls := 0; off < end && calls < maxExtents; calls++ {
		n, hole, err := c.disk.Extent(off, end)
		if err != nil {
			return c.failed(r, err)
		}
		if last := len(extents) - 1; last >= 0 && extents[last].hole == hole {
			extents[last].length += n
		} else if len(extents) == most {
			break
		} else {
			extents = append(extents, extent{n, hole})
		}
		off += n
	}
	b := appendChunk(nil, r, flagDone, chunkBlockStatus, 4+8*len(extents))
	b = binary.BigEndian.AppendUint32(b, metaID)
	for _, e := range extents {
		state := uint32(0)
		if e.hole {
			state = stateHole | stateZero
		}
		b = binary.BigEndian.AppendUint32(b, uint32(e.length))
		b = binary.BigEndian.AppendUint32(b, state)
	}
	return c.send(b)
}

// An extent is what [Disk.Extent] returns.
type extent struct {
	length int64
	hole   bool
}

// failed answers a request that the disk has failed.
func (c *conn) failed(r request, err error) error {
	if !errors.Is(err, context.Canceled) && !c.warned.Swap(true) {
		c.s.cfg.Log.Warn("a disk that is exported by NBD fails", "ip", c.ip(), "export", c.name, "error", err)
	}
	no, reason := ioError, ""
	if errors.Is(err, syscall.ENOSPC) {
		no = noSpace
	}
	if e, ok := errors.AsType[*Refusal](err); ok {
		reason = e.Reason
	}
	return c.fail(r, no, reason)
}

// fail answers a request with an error.
func (c *conn) fail(r request, no errno, reason string) error {
	if !c.structured {
		return c.send(appendSimple(nil, r, no))
	}
	b := appendChunk(nil, r, flagDone, chunkError, 6+len(reason))
	b = binary.BigEndian.AppendUint32(b, uint32(no))
	b = binary.BigEndian.AppendUint16(b, uint16(len(reason)))
	return c.send(append(b, reason...))
}

// done answers a request that has succeeded, without data.
func (c *conn) done(r request) error {
	if c.structured {
		return c.send(appendChunk(nil, r, flagDone, chunkNone, 0))
	}
	return c.send(appendSimple(nil, r, ok))
}

// appendSimple appends the head of a simple reply.
func appendSimple(b []byte, r request, no errno) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(no))
	return binary.BigEndian.AppendUint64(b, r.cookie)
}

// appendChunk appends the head of a structured reply chunk.
func appendChunk(b []byte, r request, flags uint16, t chunkType, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// send sends a whole message.
func (c *conn) send(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sendLocked(b)
}

// sendLocked sends a part of a message. The caller holds mu.
func (c *conn) sendLocked(b []byte) error {
	if c.broken != nil {
		return c.broken
	}
	_ = c.raw.SetWriteDeadline(time.Now().Add(stallTime))
	_, c.broken = c.rw.Write(b)
	return c.broken
}
