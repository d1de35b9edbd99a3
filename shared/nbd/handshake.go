package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// maxOptionBytes limits the data of an option: a name and a query of the maximum
	// length of strings, and room for more queries.
	maxOptionBytes = 12 << 10
	// maxOptions limits the options of one connection. qemu-nbd -L sends three for each
	// export.
	maxOptions = 30_000
	maxString  = 4096 // bytes (section "Conventions")
	// maxRequest is the maximum block size.
	maxRequest = 32 << 20
	// preferredBlock is the preferred block size.
	preferredBlock = 4096
)

// A session is what the handshake has agreed on.
type session struct {
	name   string
	disk   Disk
	writes Writable // nil: the disk is read-only
	// structured: replies are structured. status: BLOCK_STATUS may be asked for.
	structured, status bool
}

// flags returns the transmission flags.
func (s *session) flags() uint16 {
	flags := uint16(hasFlags | sendCache)
	if s.writes == nil {
		flags |= readOnly | canMultiConn
	} else {
		flags |= sendFlush | sendFUA | sendTrim | sendZeroes | sendFastZero
	}
	if s.structured {
		flags |= sendDF
	}
	return flags
}

// A handshake is the state before a client has a disk (section "Handshake phase").
type handshake struct {
	*conn
	out        *bufio.Writer
	noZeroes   bool
	encrypted  bool
	structured bool
	meta       *string // the export whose context base:allocation is selected
}

// errEnd means that the client has ended the handshake.
var errEnd = errors.New("the client has left")

// negotiate returns the session that the client asks for. The caller must close its disk.
func (c *conn) negotiate(ctx context.Context) (*session, error) {
	_ = c.raw.SetWriteDeadline(time.Now().Add(handshakeTime))
	c.s.setReadDeadline(c, time.Now().Add(handshakeTime))
	h := &handshake{conn: c, out: bufio.NewWriter(c.rw)}
	h.put64(magicServer)
	h.put64(magicOption)
	h.put16(flagFixedNewstyle | flagNoZeroes)
	var flags [4]byte
	if err := h.receive(flags[:]); err != nil {
		return nil, err
	}
	client := binary.BigEndian.Uint32(flags[:])
	if client&^knownFlags != 0 {
		return nil, fmt.Errorf("%w: client flags %#x", errViolation, client)
	}
	h.noZeroes = client&flagNoZeroes != 0
	for range maxOptions {
		var head [optionHeader]byte
		if err := h.receive(head[:]); err != nil {
			return nil, err
		}
		opt, length := option(binary.BigEndian.Uint32(head[8:])), binary.BigEndian.Uint32(head[12:])
		if magic := binary.BigEndian.Uint64(head[:]); magic != magicOption {
			return nil, fmt.Errorf("%w: an option begins with %#x", errViolation, magic)
		}
		if length > maxOptionBytes {
			if _, err := io.CopyN(io.Discard, h.in, int64(length)); err != nil {
				return nil, err
			}
			if opt == optExportName {
				return nil, fmt.Errorf("%w: a name of %d bytes", errViolation, length)
			}
			h.reply(opt, repTooBig, fmt.Appendf(nil, "an option of %d bytes is too large", length))
			continue
		}
		data := make([]byte, length)
		if err := h.receive(data); err != nil {
			return nil, err
		}
		s, err := h.option(ctx, opt, data)
		if err != nil {
			return nil, err
		}
		if s != nil {
			if err := h.out.Flush(); err != nil {
				_ = s.disk.Close()
				return nil, err
			}
			return s, nil
		}
	}
	return nil, fmt.Errorf("%w: more than %d options", errViolation, maxOptions)
}

// receive sends what was written and fills p.
func (h *handshake) receive(p []byte) error {
	if err := h.out.Flush(); err != nil {
		return err
	}
	_, err := io.ReadFull(h.in, p)
	return err
}

// Writing fails at the next Flush.
func (h *handshake) put(b []byte) { _, _ = h.out.Write(b) }

func (h *handshake) put16(n uint16) { h.put(binary.BigEndian.AppendUint16(nil, n)) }

func (h *handshake) put32(n uint32) { h.put(binary.BigEndian.AppendUint32(nil, n)) }

func (h *handshake) put64(n uint64) { h.put(binary.BigEndian.AppendUint64(nil, n)) }

// text writes a length and a string.
func (h *handshake) text(s string) {
	h.put32(uint32(len(s)))
	_, _ = h.out.WriteString(s)
}

func (h *handshake) ack(opt option) { h.reply(opt, repAck, nil) }

func (h *handshake) fail(opt option, t replyType, reason string) { h.reply(opt, t, []byte(reason)) }

func (h *handshake) reply(opt option, t replyType, data []byte) {
	h.replyHead(opt, t, len(data))
	h.put(data)
}

func (h *handshake) replyHead(opt option, t replyType, length int) {
	h.put64(magicReply)
	h.put32(uint32(opt))
	h.put32(uint32(t))
	h.put32(uint32(length))
}

// option carries out an option. It returns the session that begins with it, if any.
func (h *handshake) option(ctx context.Context, opt option, data []byte) (*session, error) {
	empty := len(data) == 0
	switch {
	case opt == optAbort:
		h.ack(opt)
		return nil, errors.Join(h.out.Flush(), errEnd)
	case opt == optStartTLS && (!empty || h.encrypted):
		h.fail(opt, repInvalid, "TLS is active already, or the option has data")
	case opt == optStartTLS && h.s.cfg.TLS == nil:
		h.fail(opt, repPolicy, "this server has no certificate")
	case opt == optStartTLS:
		h.ack(opt)
		return nil, h.startTLS(ctx)
	case h.s.cfg.TLS != nil && !h.encrypted && opt == optExportName:
		return nil, fmt.Errorf("%w: an export without TLS", errViolation)
	case h.s.cfg.TLS != nil && !h.encrypted:
		h.fail(opt, repTLSRequired, "this server requires TLS")
	case opt == optExportName:
		return h.exportName(ctx, string(data))
	case opt == optInfo, opt == optGo:
		return h.info(ctx, opt, data), nil
	case (opt == optList || opt == optStructuredReply) && !empty:
		h.fail(opt, repInvalid, "the option has data")
	case opt == optList:
		return nil, h.list(ctx)
	case opt == optStructuredReply:
		h.structured = true
		h.ack(opt)
	case opt == optListMeta, opt == optSetMeta:
		h.metaContext(opt, data)
	default:
		h.fail(opt, repUnsupported, "this server does not know the option")
	}
	return nil, nil
}

// startTLS continues in TLS. What was agreed on before does not count any more.
func (h *handshake) startTLS(ctx context.Context) error {
	if err := h.out.Flush(); err != nil {
		return err
	}
	if h.in.Buffered() > 0 {
		// It would be taken for what was sent in TLS.
		return fmt.Errorf("%w: bytes before the TLS handshake", errViolation)
	}
	inner := tls.Server(h.raw, h.s.cfg.TLS)
	if err := inner.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.rw = inner
	h.in.Reset(inner)
	h.out.Reset(inner)
	h.encrypted, h.structured, h.meta = true, false, nil
	return nil
}

// list answers NBD_OPT_LIST.
func (h *handshake) list(ctx context.Context) error {
	for name, err := range h.s.cfg.Names(ctx) {
		if err != nil {
			h.s.cfg.Log.Error("the exports cannot be listed", "error", err)
			h.fail(optList, repPolicy, "the exports cannot be listed now")
			return nil
		}
		h.replyHead(optList, repServer, 4+len(name))
		h.text(name)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	h.ack(optList)
	return nil
}

// begin opens an export.
func (h *handshake) begin(ctx context.Context, name string) (*session, error) {
	if len(name) > maxString {
		return nil, &Refusal{Reason: "the name is too long", Unknown: true}
	}
	disk, err := h.s.cfg.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &session{name: name, disk: disk, structured: h.structured}
	s.writes, _ = disk.(Writable)
	s.status = h.structured && h.meta != nil && *h.meta == name
	return s, nil
}

// exportName answers NBD_OPT_EXPORT_NAME, which has no reply for an error.
func (h *handshake) exportName(ctx context.Context, name string) (*session, error) {
	s, err := h.begin(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", name, err)
	}
	h.put64(uint64(s.disk.Size()))
	h.put16(s.flags())
	if !h.noZeroes {
		h.put(make([]byte, 124))
	}
	return s, nil
}

// info answers NBD_OPT_INFO and NBD_OPT_GO.
func (h *handshake) info(ctx context.Context, opt option, data []byte) *session {
	d := decoder{rest: data}
	name := d.text()
	asked := make([]uint16, 0, 8)
	for range d.u16() {
		if d.bad {
			break
		}
		asked = append(asked, d.u16())
	}
	if !d.whole() {
		h.fail(opt, repInvalid, "the lengths in the option are wrong")
		return nil
	}
	s, err := h.begin(ctx, name)
	if err != nil {
		h.refuse(opt, name, err)
		return nil
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(s.disk.Size()))
	h.reply(opt, repInfo, binary.BigEndian.AppendUint16(b, s.flags()))
	for _, what := range asked {
		if what == infoBlockSize {
			b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
			for _, n := range []uint32{1, preferredBlock, maxRequest} {
				b = binary.BigEndian.AppendUint32(b, n)
			}
			h.reply(opt, repInfo, b)
			break
		}
	}
	h.ack(opt)
	if opt == optInfo {
		_ = s.disk.Close()
		return nil
	}
	return s
}

// refuse answers with the reason that an export was not opened.
func (h *handshake) refuse(opt option, name string, err error) {
	no, known := errors.AsType[*Refusal](err)
	if !known || opt == optGo {
		h.s.cfg.Log.Info("nbd", "ip", h.ip(), "export", name, "error", err)
	}
	switch {
	case !known:
		h.fail(opt, repPolicy, "the disk cannot be opened now; the server's log has the reason")
	case no.Unknown:
		h.fail(opt, repUnknown, no.Reason)
	default:
		h.fail(opt, repPolicy, no.Reason)
	}
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. It does
// not open the export: NBD_OPT_GO does.
func (h *handshake) metaContext(opt option, data []byte) {
	if opt == optSetMeta {
		h.meta = nil
	}
	d := decoder{rest: data}
	name := d.text()
	queries := d.u32()
	found := opt == optListMeta && queries == 0
	for range queries {
		if d.bad {
			break
		}
		q := d.text()
		found = found || q == metaAllocation || opt == optListMeta && q == metaNamespace
	}
	if !d.whole() || !h.structured {
		h.fail(opt, repInvalid, "the lengths in the option are wrong, or structured replies were not agreed on")
		return
	}
	if found {
		id := uint32(0)
		if opt == optSetMeta {
			h.meta, id = &name, metaID
		}
		h.reply(opt, repMeta, append(binary.BigEndian.AppendUint32(nil, id), metaAllocation...))
	}
	h.ack(opt)
}

// A decoder reads the data of an option.
type decoder struct {
	rest []byte
	bad  bool // the data are shorter than their lengths say
}

func (d *decoder) take(n int) []byte {
	if n > len(d.rest) {
		d.bad, d.rest = true, nil
		return make([]byte, min(n, 4))
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) u16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }

// text reads a length and a string.
func (d *decoder) text() string {
	n := d.u32()
	if n > maxString {
		d.bad = true
		return ""
	}
	return string(d.take(int(n)))
}

// whole reports whether the data are exactly what was read.
func (d *decoder) whole() bool { return !d.bad && len(d.rest) == 0 }
