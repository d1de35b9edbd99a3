package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// FuzzServer sends any bytes, in the handshake or behind it. The server must answer with
// whole messages, and end when the client does.
func FuzzServer(f *testing.F) {
	option := func(opt option, data string) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, uint32(opt))
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	request := func(cmd command, flags uint16, offset uint64, length uint32, data string) []byte {
		b := binary.BigEndian.AppendUint32(nil, magicRequest)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, uint16(cmd))
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, offset)
		return append(binary.BigEndian.AppendUint32(b, length), data...)
	}
	flags := []byte{0, 0, 0, 3}
	begin := bytes.Join([][]byte{
		flags, option(optStructuredReply, ""), option(optSetMeta, text("rw")+"\x00\x00\x00\x01"+text(metaAllocation)), option(optGo, text("rw")+"\x00\x00"),
	}, nil)
	plain := bytes.Join([][]byte{flags, option(optExportName, "rw")}, nil)
	for opt := range optSetMeta + 2 {
		f.Add(byte(0), append(bytes.Clone(flags), option(opt, "")...))
		f.Add(byte(0), append(bytes.Clone(flags), option(opt, text("disk")+"\x00\x01\x00\x03")...))
	}
	for cmd := range command(9) {
		for start := range byte(3) {
			f.Add(start, request(cmd, 0, 1000, 5, "write"))
			f.Add(start, append(request(cmd, flagReqOne, diskBytes-3, 70000, ""), request(cmdFlush, flagFUA, 0, 0, "")...))
		}
	}
	f.Fuzz(func(t *testing.T, start byte, sent []byte) {
		if len(sent) > 1<<16 {
			return
		}
		switch start % 3 {
		case 1:
			sent = append(bytes.Clone(begin), sent...)
		case 2:
			sent = append(bytes.Clone(plain), sent...)
		}
		s := New(config())
		mine, its := net.Pipe()
		c := &conn{s: s, raw: its}
		if !s.add(c) {
			t.Fatal("closed")
		}
		go c.serve()
		go func() {
			_, _ = mine.Write(sent) // fails if the server has had enough
			s.Shutdown(t.Context())
		}()
		out, err := io.ReadAll(mine)
		if err != nil {
			t.Fatal(err)
		}
		s.active.Wait()
		checkMessages(t, out, len(sent) > 3 && sent[3]&flagNoZeroes != 0)
	})
}

// checkMessages tests that b, what a server has sent, are whole messages.
func checkMessages(t *testing.T, b []byte, noZeroes bool) {
	t.Helper()
	take := func(n uint64) {
		if n > uint64(len(b)) {
			t.Fatalf("a message of %d bytes ends after %d", n, len(b))
		}
		b = b[n:]
	}
	take(18)
	for len(b) > 0 {
		head := append(bytes.Clone(b[:min(len(b), 20)]), make([]byte, 20)...)
		length := uint64(binary.BigEndian.Uint32(head[16:]))
		switch {
		case binary.BigEndian.Uint64(head) == magicReply, binary.BigEndian.Uint32(head) == magicStructured:
			take(20 + length)
		case binary.BigEndian.Uint64(head) == diskBytes && noZeroes:
			take(10)
		case binary.BigEndian.Uint64(head) == diskBytes:
			take(134)
		case binary.BigEndian.Uint32(head) == magicSimple && binary.BigEndian.Uint32(head[4:]) != 0:
			take(simpleHeader)
		case binary.BigEndian.Uint32(head) == magicSimple:
			return // with data of a length that only the client knows
		default:
			t.Fatalf("a message begins with %x", head[:20])
		}
	}
}
