package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestOptions(t *testing.T) {
	_, connect := start(t, config())
	c := connect().greet()
	many := strings.Repeat("x", maxString+1)
	for _, tt := range []struct {
		what    string
		opt     option
		data    string
		want    replyType
		replies int
	}{
		{"LIST", optList, "", repAck, 3},
		{"LIST with data", optList, "x", repInvalid, 1},
		{"an unknown option", 99, "some data", repUnsupported, 1},
		{"PEEK_EXPORT", 4, "", repUnsupported, 1},
		{"an option of a megabyte", 99, strings.Repeat("x", 1<<20), repTooBig, 1},
		{"TLS without a certificate", optStartTLS, "", repPolicy, 1},
		{"a context before structured replies", optSetMeta, text("disk") + "\x00\x00\x00\x00", repInvalid, 1},
		{"structured replies with data", optStructuredReply, "x", repInvalid, 1},
		{"structured replies", optStructuredReply, "", repAck, 1},
		{"all contexts", optListMeta, text("disk") + "\x00\x00\x00\x00", repAck, 2},
		{"contexts of a namespace", optListMeta, text("disk") + "\x00\x00\x00\x01" + text("base:"), repAck, 2},
		{"an unknown context", optSetMeta, text("disk") + "\x00\x00\x00\x01" + text("qemu:dirty-bitmap:x"), repAck, 1},
		{"a namespace as a context", optSetMeta, text("disk") + "\x00\x00\x00\x01" + text("base:"), repAck, 1},
		{"a context", optSetMeta, text("disk") + "\x00\x00\x00\x02" + text("x-y:z") + text(metaAllocation), repAck, 2},
		{"fewer queries than it says", optSetMeta, text("disk") + "\xff\xff\xff\xff" + text(metaAllocation), repInvalid, 1},
		{"a context with data behind it", optSetMeta, text("disk") + "\x00\x00\x00\x01" + text(metaAllocation) + "x", repInvalid, 1},
		{"INFO", optInfo, text("disk") + "\x00\x00", repAck, 2},
		{"INFO with all information", optInfo, text("disk") + "\x00\x04\x00\x00\x00\x01\x00\x02\x00\x03", repAck, 3},
		{"INFO of nothing", optInfo, "", repInvalid, 1},
		{"INFO with fewer requests than it says", optInfo, text("disk") + "\xff\xff\x00\x03", repInvalid, 1},
		{"a name of 4 GiB", optGo, "\xff\xff\xff\xffdisk\x00\x00", repInvalid, 1},
		{"a name of 4097 bytes", optGo, text(many) + "\x00\x00", repInvalid, 1},
		{"an unknown export", optGo, text("other") + "\x00\x00", repUnknown, 1},
		{"the default export", optGo, text("") + "\x00\x00", repUnknown, 1},
		{"an export that cannot be opened", optGo, text("broken") + "\x00\x00", repPolicy, 1},
	} {
		got, replies := c.ask(tt.opt, tt.data)
		if got != tt.want || len(replies) != tt.replies {
			t.Errorf("%s: %#x, %q", tt.what, got, replies)
		}
		if strings.Contains(strings.Join(replies, ""), "secret") {
			t.Errorf("%s: the client is told of an internal error: %q", tt.what, replies)
		}
	}
	if got, _ := c.ask(optAbort, ""); got != repAck {
		t.Errorf("ABORT: %#x", got)
	}
	c.isClosed()
}

func TestViolations(t *testing.T) {
	_, connect := start(t, config())
	for what, violate := range map[string]func(c *client){
		"unknown flags": func(c *client) { c.put(uint32(4)) },
		"no option": func(c *client) {
			c.put(uint32(3), uint64(0x0123456789), uint64(0))
		},
		"an unknown export without a reply": func(c *client) { c.put(uint32(3)); c.option(optExportName, "other") },
		"no request": func(c *client) {
			c.put(uint32(3))
			c.ask(optGo, text("disk")+"\x00\x00")
			c.put(strings.Repeat("x", requestHeader))
		},
		"a write of 4 GiB": func(c *client) {
			c.put(uint32(3))
			c.ask(optGo, text("rw")+"\x00\x00")
			c.request(cmdWrite, 0, 0, 1<<32-1, "")
		},
	} {
		c := connect()
		c.get(18)
		violate(c)
		c.isClosed()
		t.Log(what)
	}
}

func TestExportName(t *testing.T) {
	_, connect := start(t, config())
	for _, zeroes := range []int{0, 124} {
		c := connect()
		c.get(18)
		c.put(uint32(flagFixedNewstyle))
		if zeroes == 0 {
			c = connect().greet()
		}
		c.option(optExportName, "disk")
		if c.u64() != diskBytes || c.u16() != hasFlags|readOnly|canMultiConn|sendCache || string(c.get(zeroes)) != strings.Repeat("\x00", zeroes) {
			t.Error("wrong size or flags")
		}
		if a := c.do(cmdRead, 0, 5, 10, ""); a.no != ok || !bytes.Equal(a.data, content()[5:15]) {
			t.Errorf("%+v", a)
		}
		c.request(cmdDisconnect, 0, 0, 0, "")
		c.isClosed()
	}
}

func TestReads(t *testing.T) {
	_, connect := start(t, config())
	want := content()
	for _, structured := range []bool{false, true} {
		c := connect().open("disk", structured)
		if c.size != diskBytes || c.flags&readOnly == 0 || c.flags&canMultiConn == 0 || c.flags&sendDF != 0 != structured {
			t.Errorf("%d bytes, flags %#x", c.size, c.flags)
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range 200 {
			off := rnd.IntN(diskBytes)
			n := min(rnd.IntN(1<<(3+rnd.IntN(19))), diskBytes-off)
			if i == 0 {
				off, n = 0, diskBytes
			}
			flags := uint16(0)
			if structured && i%3 == 2 {
				flags = flagDF
			}
			a := c.do(cmdRead, flags, uint64(off), uint32(n), "")
			if a.no != ok || !bytes.Equal(a.data, want[off:off+n]) {
				t.Fatalf("%d bytes from %d on: error %d, or wrong bytes", n, off, a.no)
			}
			if flags == flagDF && a.chunks != 1 || a.chunks > 2+n/minHole {
				t.Errorf("%d bytes from %d on in %d chunks", n, off, a.chunks)
			}
		}
	}
}

func TestBlockStatus(t *testing.T) {
	_, connect := start(t, config())
	c, disk := connect().open("disk", true), &memory{data: content()}
	for _, flags := range []uint16{0, flagReqOne} {
		for off := int64(100); off < diskBytes; {
			a := c.do(cmdBlockStatus, flags, uint64(off), uint32(diskBytes-off), "")
			if a.no != ok || len(a.extents) == 0 || flags == flagReqOne && len(a.extents) != 1 {
				t.Fatalf("%+v", a)
			}
			for _, e := range a.extents {
				n, hole, err := disk.Extent(off, diskBytes)
				if n != e.length || hole != e.hole || err != nil {
					t.Fatalf("at %d: %+v; want %d, %v, %v", off, e, n, hole, err)
				}
				off += n
			}
		}
	}
	if a := c.do(cmdBlockStatus, flagReqOne, 0, sector, ""); len(a.extents) != 1 || a.extents[0].length != sector {
		t.Errorf("%+v: more than was asked for", a)
	}
	// The context is that of another export.
	c = connect().greet()
	c.ask(optStructuredReply, "")
	c.ask(optSetMeta, text("rw")+"\x00\x00\x00\x01"+text(metaAllocation))
	c.ask(optGo, text("disk")+"\x00\x00")
	c.structured = true
	if a := c.do(cmdBlockStatus, 0, 0, sector, ""); a.no != invalid {
		t.Errorf("%+v", a)
	}
}

func TestRefusedRequests(t *testing.T) {
	_, connect := start(t, config())
	for _, structured := range []bool{false, true} {
		c := connect().open("disk", structured)
		for _, tt := range []struct {
			what   string
			cmd    command
			flags  uint16
			offset uint64
			length uint32
			data   string
			want   errno
		}{
			{"a read behind the end", cmdRead, 0, diskBytes - 1, 2, "", invalid},
			{"a read that overflows", cmdRead, 0, 1<<64 - 1, 2, "", invalid},
			{"a read of 4 GiB", cmdRead, 0, 0, 1<<32 - 1, "", invalid},
			{"an unknown flag", cmdRead, 1 << 9, 0, 1, "", invalid},
			{"FUA", cmdRead, flagFUA, 0, 1, "", invalid},
			{"a status of nothing", cmdBlockStatus, 0, 0, 0, "", invalid},
			{"a status behind the end", cmdBlockStatus, 0, diskBytes, 1, "", invalid},
			{"a write", cmdWrite, 0, 0, 40000, strings.Repeat("x", 40000), notPermitted},
			{"a trim", cmdTrim, 0, 0, 1, "", notPermitted},
			{"zeroes", cmdWriteZeroes, 0, 0, 1, "", notPermitted},
			{"an unknown command", 77, 0, 0, 0, "", invalid},
			{"a cache", cmdCache, 0, 0, diskBytes, "", ok},
			{"a cache behind the end", cmdCache, 0, 1, diskBytes, "", invalid},
			{"a flush", cmdFlush, 0, 0, 0, "", ok},
			{"a read of nothing", cmdRead, 0, 0, 0, "", ok},
		} {
			if a := c.do(tt.cmd, tt.flags, tt.offset, tt.length, tt.data); a.no != tt.want {
				t.Errorf("%s (structured: %v): %+v, want error %d", tt.what, structured, a, tt.want)
			}
		}
		bad := connect().open("bad", structured)
		a := bad.do(cmdRead, 0, 0, 10, "")
		if want := map[bool]string{true: "it is broken"}[structured]; a.no != ioError || a.reason != want {
			t.Errorf("%+v", a)
		}
	}
}

func TestWrites(t *testing.T) {
	_, connect := start(t, config())
	want := content()
	for _, structured := range []bool{false, true} {
		copy(want, content())
		c := connect().open("rw", structured)
		if c.flags&(readOnly|canMultiConn) != 0 || c.flags&(sendFlush|sendFUA|sendTrim|sendZeroes) == 0 {
			t.Errorf("flags %#x", c.flags)
		}
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 300 {
			off := rnd.IntN(diskBytes)
			n := min(rnd.IntN(1<<(3+rnd.IntN(17))), diskBytes-off)
			piece := want[off : off+n]
			var a answer
			switch cmd := command(rnd.IntN(7)); cmd {
			case cmdWrite:
				for i := range piece {
					piece[i] = byte(rnd.Uint32())
				}
				a = c.do(cmd, flagFUA, uint64(off), uint32(n), string(piece))
			case cmdTrim:
				clear(piece)
				a = c.do(cmd, 0, uint64(off), uint32(n), "")
			case cmdWriteZeroes:
				clear(piece)
				a = c.do(cmd, []uint16{0, flagNoHole, flagFastZero, flagFUA}[rnd.IntN(4)], uint64(off), uint32(n), "")
			case cmdFlush:
				a = c.do(cmd, flagFUA, 0, 0, "")
			case cmdRead:
				if a = c.do(cmd, flagFUA, uint64(off), uint32(n), ""); !bytes.Equal(a.data, piece) {
					t.Fatalf("wrong bytes from %d on", off)
				}
			}
			if a.no != ok {
				t.Fatalf("%+v", a)
			}
		}
		if a := c.do(cmdWriteZeroes, flagNoHole|flagFastZero, 0, 1, ""); a.no != notSupported {
			t.Errorf("fast zeroes that allocate: %+v", a)
		}
		if a := c.do(cmdWrite, 0, diskBytes, 1, "x"); a.no != noSpace {
			t.Errorf("a write behind the end: %+v", a)
		}
		if a := c.do(cmdRead, 0, 0, diskBytes, ""); !bytes.Equal(a.data, want) {
			t.Error("wrong bytes")
		}
		if a := connect().open("full", structured).do(cmdWrite, 0, 0, 3, "xyz"); a.no != noSpace {
			t.Errorf("a write to a full disk: %+v", a)
		}
	}
}

// TestTimes tests how long clients may take.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, connect := start(t, config())
		began := time.Now()
		silent, half := connect(), connect().greet()
		half.put(uint64(magicOption), optGo)
		idle := connect().open("rw", true)
		silent.get(18)
		silent.isClosed()
		half.isClosed()
		if took := time.Since(began); took != handshakeTime {
			t.Errorf("the handshake may take %v", took)
		}
		time.Sleep(time.Hour)
		if a := idle.do(cmdRead, 0, 0, 10, ""); a.no != ok {
			t.Errorf("after an hour: %+v", a)
		}
		began = time.Now()
		idle.request(cmdWrite, 0, 0, 10, "half")
		idle.isClosed()
		unread := connect().open("disk", false)
		unread.request(cmdRead, 0, 0, 1000, "")
		synctest.Wait()
		time.Sleep(stallTime + time.Second)
		if n, took := s.Connections(), time.Since(began); n != 0 || took > 2*stallTime+time.Minute {
			t.Errorf("%d connections after %v", n, took)
		}
	})
}

// TestUnreadAnswers tests that clients that do not read their answers do not stop others.
func TestUnreadAnswers(t *testing.T) {
	s, connect := start(t, config())
	for range slots / maxInFlight {
		c := connect().open("disk", true)
		for range maxInFlight {
			c.request(cmdRead, 0, 0, diskBytes, "")
		}
	}
	for len(s.slots) < slots {
		time.Sleep(time.Millisecond)
	}
	for _, structured := range []bool{false, true} {
		if a := connect().open("disk", structured).do(cmdRead, 0, 0, diskBytes, ""); !bytes.Equal(a.data, content()) {
			t.Error("wrong bytes")
		}
		if a := connect().open("rw", structured).do(cmdWrite, 0, 0, 1<<20, strings.Repeat("x", 1<<20)); a.no != ok {
			t.Errorf("%+v", a)
		}
	}
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, connect := start(t, config())
		idle, greeted, asking, unread := connect().open("disk", true), connect().greet(), connect().open("disk", true), connect().open("disk", true)
		asking.request(cmdRead, 0, 0, diskBytes, "")
		unread.request(cmdRead, 0, 0, diskBytes, "")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began, done := time.Now(), make(chan struct{})
		go func() { s.Shutdown(ctx); close(done) }()
		synctest.Wait()
		idle.isClosed()
		greeted.isClosed()
		if n, err := io.Copy(io.Discard, asking); n < diskBytes/2 || err != nil {
			t.Errorf("the request in flight gets %d bytes, %v", n, err)
		}
		<-done
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it takes %v", took)
		}
		unread.isClosed()
	})
}

// A connection that cannot be accepted does not end the server.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := New(config()), make(pipes)
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		ln <- nil
		mine, its := net.Pipe()
		ln <- its
		c := (&client{t: t, Conn: mine}).open("disk", true)
		c.Close()
		s.Shutdown(t.Context())
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	cfg := config()
	cfg.TLS = &tls.Config{Certificates: web.TLS.Certificates}
	_, connect := start(t, cfg)
	c := connect().greet()
	for _, opt := range []option{optList, optInfo, optGo, optStructuredReply, optSetMeta, 99} {
		if got, _ := c.ask(opt, ""); got != repTLSRequired {
			t.Errorf("option %d without TLS: %#x", opt, got)
		}
	}
	if got, _ := c.ask(optStartTLS, "x"); got != repInvalid {
		t.Errorf("STARTTLS with data: %#x", got)
	}
	if got, _ := c.ask(optStartTLS, ""); got != repAck {
		t.Fatalf("STARTTLS: %#x", got)
	}
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	c.Conn = tls.Client(c.Conn, &tls.Config{RootCAs: roots, ServerName: "example.com"})
	if got, _ := c.ask(optStartTLS, ""); got != repInvalid {
		t.Errorf("STARTTLS within TLS: %#x", got)
	}
	if got, names := c.ask(optList, ""); got != repAck || len(names) != 3 {
		t.Errorf("LIST within TLS: %#x, %q", got, names)
	}
	c.ask(optGo, text("disk")+"\x00\x00")
	if a := c.do(cmdRead, 0, 0, diskBytes, ""); a.no != ok || !bytes.Equal(a.data, original()) {
		t.Errorf("a read within TLS: error %d, or wrong bytes", a.no)
	}

	plain := connect().greet()
	plain.option(optExportName, "disk")
	plain.isClosed()
	// What follows STARTTLS must not count as sent in TLS.
	early := connect().greet()
	go early.put(uint64(magicOption), optStartTLS, uint32(0), uint64(magicOption), optList, uint32(0))
	if got, _ := early.reply(optStartTLS); got != repAck {
		t.Errorf("%#x", got)
	}
	early.isClosed()
}
