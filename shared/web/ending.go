package web

import (
	"context"
	"net"
	"net/http"
)

// endingKey is the key of an [ending] in the context of a connection.
type endingKey struct{}

// KeepEnding is an [http.Server.ConnContext]. A server without it does not reset the
// connections of answers that break.
func KeepEnding(ctx context.Context, conn net.Conn) context.Context {
	if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		return context.WithValue(ctx, endingKey{}, ending{tcp.SetLinger})
	}
	return ctx
}

// An ending decides how a client sees the end of its connection, even if this process
// is killed: as a reset, or as an ordinary close. A client may take a close for the end
// of the body: in HTTP/1.0 it is one, and programs that write disks have ignored a
// Content-Length that was not reached. So an answer with an image is on reset until all
// of it is written.
type ending struct{ linger func(sec int) error }

func endingOf(r *http.Request) ending {
	e, _ := r.Context().Value(endingKey{}).(ending)
	return e
}

func (e ending) reset() { e.set(0) }
func (e ending) close() { e.set(-1) }

// set ignores errors, which a connection has that is closed already.
func (e ending) set(sec int) {
	if e.linger != nil {
		_ = e.linger(sec)
	}
}
