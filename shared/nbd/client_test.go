package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
)

// A memory is a disk in memory. Its zero sectors are holes.
type memory struct {
	mu     sync.RWMutex
	data   []byte
	fail   error // of reads
	closed bool
}

const sector = 512

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, errors.New("read after Close")
	}
	if m.fail != nil {
		return 0, m.fail
	}
	return bytes.NewReader(m.data).ReadAt(p, off)
}

func (m *memory) Extent(off, limit int64) (n int64, hole bool, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < 0 || off >= limit || limit > m.Size() {
		panic("an extent outside of the disk")
	}
	if m.fail != nil {
		return 0, false, m.fail
	}
	empty := func(off int64) bool {
		from := off / sector * sector
		return len(bytes.Trim(m.data[from:min(from+sector, m.Size())], "\x00")) == 0
	}
	hole = empty(off)
	for n = sector - off%sector; off+n < limit && empty(off+n) == hole; n += sector {
	}
	return min(n, limit-off), hole, nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		panic("closed twice")
	}
	m.closed = true
	return nil
}

// A writable is a memory that can be written to.
type writable struct{ memory }

func (m *writable) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.data[off:], p), nil
}

func (m *writable) Zero(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return m.fail
}

// diskBytes has several pieces and holes of several sizes.
const diskBytes = 3<<20 + 700

func content() []byte { return bytes.Clone(original()) }

var original = sync.OnceValue(func() []byte {
	data := make([]byte, diskBytes)
	for i := range data {
		if at := i / sector; at%64 < 40 && (at < 1000 || at > 4000) {
			data[i] = byte(i*7 + i>>9)
		}
	}
	return data
})

// pipes is a listener of connections in memory. Accepting nil fails, as if the process had too many files open.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	switch c, ok := <-p; {
	case !ok:
		return nil, net.ErrClosed
	case c == nil:
		return nil, syscall.EMFILE
	default:
		return c, nil
	}
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// config returns a configuration with the exports disk, rw, bad and broken.
func config() Config {
	return Config{
		Open: func(_ context.Context, name string) (Disk, error) {
			switch name {
			case "disk":
				return &memory{data: original()}, nil
			case "rw":
				return &writable{memory{data: content()}}, nil
			case "full":
				return &writable{memory{data: content(), fail: syscall.ENOSPC}}, nil
			case "bad":
				return &memory{data: content(), fail: &Refusal{Reason: "it is broken"}}, nil
			case "broken":
				return nil, errors.New("a secret")
			}
			return nil, &Refusal{Reason: "there is no " + name, Unknown: true}
		},
		Names: func(context.Context) iter.Seq2[string, error] {
			return func(yield func(string, error) bool) { _ = yield("disk", nil) && yield("rw", nil) }
		},
		Sent: func(int) {}, Log: slog.New(slog.DiscardHandler),
	}
}

// start returns a server and a function that connects to it.
func start(t testing.TB, cfg Config) (*Server, func() *client) {
	t.Helper()
	s, ln := New(cfg), make(pipes)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		if !s.isClosed() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			s.Shutdown(ctx)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, func() *client {
		mine, its := net.Pipe()
		ln <- its
		t.Cleanup(func() { mine.Close() })
		return &client{t: t, Conn: mine}
	}
}

// A client speaks the protocol as the tests want it. Its methods fail the test.
type client struct {
	net.Conn
	t          testing.TB
	structured bool
	flags      uint16 // of transmission
	size       uint64
	cookie     uint64
}

func (c *client) put(values ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, v := range values {
		if s, ok := v.(string); ok {
			b.WriteString(s)
		} else if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) get(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *client) u16() uint16 { c.t.Helper(); return binary.BigEndian.Uint16(c.get(2)) }
func (c *client) u32() uint32 { c.t.Helper(); return binary.BigEndian.Uint32(c.get(4)) }
func (c *client) u64() uint64 { c.t.Helper(); return binary.BigEndian.Uint64(c.get(8)) }

// greet begins the handshake.
func (c *client) greet() *client {
	c.t.Helper()
	if c.u64() != magicServer || c.u64() != magicOption || c.u16() != flagFixedNewstyle|flagNoZeroes {
		c.t.Fatal("not a greeting")
	}
	c.put(uint32(flagFixedNewstyle | flagNoZeroes))
	return c
}

func (c *client) option(opt option, data string) {
	c.t.Helper()
	c.put(uint64(magicOption), opt, uint32(len(data)), data)
}

// reply returns the next reply to an option.
func (c *client) reply(opt option) (replyType, string) {
	c.t.Helper()
	if c.u64() != magicReply || option(c.u32()) != opt {
		c.t.Fatal("not a reply to the option")
	}
	t := replyType(c.u32())
	return t, string(c.get(int(c.u32())))
}

// ask sends an option and returns the type of the last reply, and the data of all.
func (c *client) ask(opt option, data string) (replyType, []string) {
	c.t.Helper()
	c.option(opt, data)
	for all := []string(nil); ; {
		t, data := c.reply(opt)
		all = append(all, data)
		if t == repAck || t&repError != 0 {
			return t, all
		}
	}
}

func text(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }

// open enters the transmission phase, in which requests have structured replies and
// BLOCK_STATUS if structured is true.
func (c *client) open(name string, structured bool) *client {
	c.t.Helper()
	c.greet()
	c.structured = structured
	if structured {
		if t, _ := c.ask(optStructuredReply, ""); t != repAck {
			c.t.Fatalf("structured replies: %#x", t)
		}
		if t, got := c.ask(optSetMeta, text(name)+"\x00\x00\x00\x01"+text(metaAllocation)); t != repAck || len(got) != 2 {
			c.t.Fatalf("meta context: %#x, %q", t, got)
		}
	}
	t, got := c.ask(optGo, text(name)+"\x00\x01\x00\x03")
	if t != repAck || len(got) != 3 || len(got[0]) != 12 || len(got[1]) != 14 {
		c.t.Fatalf("GO: %#x, %q", t, got)
	}
	c.size, c.flags = binary.BigEndian.Uint64([]byte(got[0][2:])), binary.BigEndian.Uint16([]byte(got[0][10:]))
	return c
}

// request sends a request and returns its cookie.
func (c *client) request(cmd command, flags uint16, offset uint64, length uint32, data string) uint64 {
	c.t.Helper()
	c.cookie++
	c.put(uint32(magicRequest), flags, cmd, c.cookie, offset, length, data)
	return c.cookie
}

// An answer is all that came for a request.
type answer struct {
	no      errno
	reason  string
	data    []byte // of a read, holes included
	chunks  int
	extents []extent
}

// do sends a request and returns its answer.
func (c *client) do(cmd command, flags uint16, offset uint64, length uint32, data string) (a answer) {
	c.t.Helper()
	cookie := c.request(cmd, flags, offset, length, data)
	covered := uint32(0)
	if cmd == cmdRead && length <= maxRequest {
		a.data = make([]byte, length)
	}
	for {
		magic := c.u32()
		if magic == magicSimple {
			if a.no = errno(c.u32()); c.u64() != cookie || c.structured && cmd == cmdRead {
				c.t.Fatal("not a reply to the request")
			}
			if a.no == ok && cmd == cmdRead {
				copy(a.data, c.get(int(length)))
			}
			return a
		}
		if magic != magicStructured || !c.structured {
			c.t.Fatalf("a reply begins with %#x", magic)
		}
		flags, kind := c.u16(), chunkType(c.u16())
		if c.u64() != cookie {
			c.t.Fatal("not a reply to the request")
		}
		body := c.get(int(c.u32()))
		a.chunks++
		switch kind {
		case chunkData:
			covered += uint32(copy(a.data[binary.BigEndian.Uint64(body)-offset:], body[8:]))
		case chunkHole:
			covered += binary.BigEndian.Uint32(body[8:])
		case chunkError:
			a.no = errno(binary.BigEndian.Uint32(body))
			a.reason = string(body[6:])
		case chunkBlockStatus:
			for b := body[4:]; len(b) > 0; b = b[8:] {
				a.extents = append(a.extents, extent{int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:]) == stateHole|stateZero})
			}
		}
		if flags&flagDone != 0 {
			if cmd == cmdRead && a.no == ok && covered != length {
				c.t.Fatalf("%d of %d bytes came", covered, length)
			}
			return a
		}
	}
}

// isClosed waits until the server has closed the connection.
func (c *client) isClosed() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		c.t.Errorf("the connection ends with %v", err)
	}
}
