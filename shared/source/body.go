package source

import (
	"context"
	"errors"
	"io"
	"time"
)

// errStalled ends the request of a body that gives nothing for too long.
var errStalled = errors.New("stalled")

// A Body is the bytes of a source from Offset on. It ends with [io.EOF] only
// where the source sent all that it promised: else Read's error is a
// [*ShortBody] (closed early) or a [*Retryable] (connection lost, nothing for
// too long), or the error of Open's context. It must be closed, and is not for
// concurrent use; Close may be called at any time, by anybody, twice.
type Body struct {
	Size   int64 // bytes of the whole source, or -1 if unknown
	Offset int64 // of the first byte that Read returns
	// Ranged is false where the server has sent the whole, asked for a range
	// or not; Offset is 0 then.
	Ranged bool
	// Validators are those of this answer.
	Validators Validators

	host   string
	body   io.ReadCloser
	parent context.Context // Open's
	ctx    context.Context // the request's
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer // runs during a Read only: who reads slowly is no stall

	want  int64 // bytes that must come, or -1 if unknown
	limit int64 // bytes to read at most, or 0 for no limit
	got   int64
	err   error
}

func (b *Body) arm() {
	b.timer = time.AfterFunc(b.stall, func() { b.cancel(errStalled) })
	b.timer.Stop()
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

// end turns the error that ended the body into what callers may rely on.
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
	if b.timer != nil {
		b.timer.Stop()
	}
	return b.body.Close()
}
