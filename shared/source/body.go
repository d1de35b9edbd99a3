package source

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// errStalled is the context's cause if a body stalls.
var errStalled = errors.New("stalled")

// A Body reads the bytes of a source from Offset on. Read returns [io.EOF] only after
// all bytes that the source promised. Other errors of Read are [*ShortBody] (closed
// early), [*Retryable] (connection lost or stalled), and the error of Open's context.
// Read is not safe for concurrent use. The caller must call Close, which may be called
// repeatedly, at any time and from any goroutine.
type Body struct {
	Size   int64 // bytes of the whole source, or -1 if unknown
	Offset int64 // of the first byte that Read returns
	// Ranged is false if the server sends the whole source, whether a range was
	// requested or not. Then Offset is 0.
	Ranged bool
	// Validators are those of this answer.
	Validators Validators

	host   string
	body   io.ReadCloser
	parent context.Context // Open's
	ctx    context.Context // the request's
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer // runs only during a Read: a slow reader does not stall the source

	want  int64 // bytes that the source must send, or -1 if unknown
	limit int64 // maximum number of bytes to read, or 0 for no limit
	got   int64
	err   error
}

// newBody returns the body of an answer. parent is the context of [Client.Open], and ctx
// that of the request.
func newBody(parent, ctx context.Context, cancel context.CancelCauseFunc, resp *http.Response, stall time.Duration) *Body {
	b := &Body{
		Validators: validators(resp),
		host:       resp.Request.URL.Host,
		body:       resp.Body,
		parent:     parent,
		ctx:        ctx,
		cancel:     cancel,
		stall:      stall,
		timer:      time.AfterFunc(stall, func() { cancel(errStalled) }),
	}
	b.timer.Stop()
	return b
}

func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	var n int
	err := io.EOF
	if b.limit > 0 {
		p = p[:min(int64(len(p)), b.limit-b.got)]
	}
	if len(p) > 0 {
		b.timer.Reset(b.stall)
		n, err = b.body.Read(p)
		b.timer.Stop()
		b.got += int64(n)
	}
	if err != nil {
		b.err = b.end(err)
	}
	return n, b.err
}

// end maps the error that ended the body to one that Body documents.
func (b *Body) end(err error) error {
	switch {
	case errors.Is(context.Cause(b.ctx), errStalled):
		return retryable(errStalled, "%s sent nothing for %s", b.host, b.stall)
	case err == io.EOF && (b.want < 0 || b.got == b.want):
		return io.EOF
	case b.parent.Err() != nil:
		return context.Cause(b.parent)
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return &ShortBody{Host: b.host, Want: b.want, Got: b.got}
	}
	return retryable(err, "the connection to %s was lost after %d bytes", b.host, b.got)
}

// Close ends the request.
func (b *Body) Close() error {
	b.cancel(nil)
	b.timer.Stop()
	return b.body.Close()
}
