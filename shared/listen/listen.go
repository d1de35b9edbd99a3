// Package listen hears of objects that were created or removed from the event
// stream of a MinIO server, which nobody has to configure. A stream replays
// nothing: what happened while there was none, only a comparison of the
// listing tells.
package listen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/notification"

	"imageroot/shared/objectevent"
)

// Access is what a request is signed with, and how it gets there.
type Access struct {
	Region                             string
	AccessKey, SecretKey, SessionToken string
	Transport                          http.RoundTripper
}

// A Listener listens to one bucket.
type Listener struct {
	Endpoint       string // URL of the server
	Bucket, Prefix string // of the keys that matter
	// Access returns credentials that are good for the next stream.
	Access func(context.Context) (Access, error)
	// Event is told of every event, Up that a stream is there (its first byte
	// has come, so what happens from now on will be told), and Down what ended
	// it, or why there is none. They are called one at a time.
	Event func(objectevent.Event)
	Up    func()
	Down  func(error)
	Log   *slog.Logger

	// Silence, Least and Most replace [Silence], and how long to wait before
	// the next try, where they are not zero.
	Silence, Least, Most time.Duration
}

// Silence is how long a stream may say nothing before it is taken for dead: a
// server says that it is there every ten seconds, since it is asked to.
const Silence = 35 * time.Second

// A stream that has ended is followed by another one after about a second;
// where that fails or soon ends, after two, and so on up to five minutes.
const least, most = time.Second, 5 * time.Minute

// ErrSilent says that a server has opened no stream, or says nothing in it.
// MinIO's last source releases are such servers: they never send what they
// have written.
var ErrSilent = errors.New("the server's event stream is silent")

var errEnded = errors.New("the server ended the event stream")

// Run listens until ctx ends, over every end of a stream. It returns sooner
// only with errors.ErrUnsupported, where the server has no such stream.
func (l *Listener) Run(ctx context.Context) error {
	shortest, longest := or(l.Least, least), or(l.Most, most)
	for wait := shortest; ; wait = min(2*wait, longest) {
		began := time.Now()
		up, err := l.stream(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errors.ErrUnsupported):
			return err
		case up && time.Since(began) > or(l.Silence, Silence):
			wait = shortest // not so for those that end at once
		}
		l.Down(err)
		// Not all at once, where a server with many listeners comes back.
		next := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return ctx.Err()
		}
	}
}

func or(d, otherwise time.Duration) time.Duration {
	if d != 0 {
		return d
	}
	return otherwise
}

// stream listens to one stream until it ends, and reports whether it began.
func (l *Listener) stream(ctx context.Context) (up bool, _ error) {
	access, err := l.Access(ctx)
	if err != nil {
		return false, err
	}
	u, err := url.Parse(l.Endpoint)
	if err != nil {
		return false, err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	t := &transport{base: access.Transport, silence: or(l.Silence, Silence), began: make(chan struct{}), end: end}
	client, err := minio.New(u.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(access.AccessKey, access.SecretKey, access.SessionToken),
		Secure: u.Scheme == "https", Transport: t, Region: access.Region, BucketLookup: minio.BucketLookupPath, MaxRetries: 1,
	})
	if err != nil {
		return false, err
	}
	infos := client.ListenBucketNotification(ctx, l.Bucket, l.Prefix, "", []string{"s3:ObjectCreated:*", "s3:ObjectRemoved:*"})
	began := t.began
	for {
		select {
		case <-began:
			up, began = true, nil
			l.Up()
		case info, ok := <-infos:
			if began != nil && info.Records != nil {
				<-began // its first byte came before
				up, began = true, nil
				l.Up()
			}
			l.tell(info)
			if !ok || info.Err != nil {
				return up, t.why(ctx, info.Err)
			}
		case <-ctx.Done():
			return up, t.why(ctx, nil)
		}
	}
}

// tell passes on what came in one message. A stream's messages are S3's, as
// the package that knows those reads them.
func (l *Listener) tell(info notification.Info) {
	if len(info.Records) == 0 {
		return
	}
	message, err := json.Marshal(info)
	if err != nil {
		panic(err) // what was decoded encodes
	}
	events, err := objectevent.Parse(message)
	if err != nil {
		l.Log.Warn("an event that cannot be read", "error", err)
	}
	for _, e := range events {
		l.Event(e)
	}
}

// A transport lets one stream through, and watches over it. minio-go would go
// on with another one by itself, and nobody would learn that something may
// have been missed in between.
type transport struct {
	base    http.RoundTripper
	silence time.Duration
	began   chan struct{} // closed with the first byte
	end     context.CancelCauseFunc

	once   sync.Once
	mu     sync.Mutex
	opened bool
	err    error // what ended it
}

// why returns what ended the stream, where minio-go says err.
func (t *transport) why(ctx context.Context, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, ErrSilent):
		return cause
	case t.err != nil:
		return t.err
	case err == nil:
		return errEnded
	case minio.ToErrorResponse(err).Code == "APINotSupported":
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

func (t *transport) failed(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
	return err
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	again := t.opened
	t.opened = true
	t.mu.Unlock()
	if again {
		return nil, t.failed(errEnded)
	}
	silent := time.AfterFunc(t.silence, func() { t.end(ErrSilent) })
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		silent.Stop()
		return nil, t.failed(err)
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // none is none
	switch code := resp.StatusCode; {
	case code == http.StatusOK && kind == "text/event-stream":
		resp.Body = &watched{resp.Body, t, silent}
		return resp, nil
	case code == http.StatusOK:
		// A listing: the server does not know what else was asked for.
		err = fmt.Errorf("%w: the server answers with %q instead of events", errors.ErrUnsupported, kind)
	case code == http.StatusBadRequest, code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		err = fmt.Errorf("%w: the server refuses to send events: %s", errors.ErrUnsupported, resp.Status)
	}
	silent.Stop()
	if err != nil {
		resp.Body.Close()
		return nil, t.failed(err)
	}
	return resp, nil // minio-go reads what is wrong
}

// A watched body ends its stream when it is silent for too long.
type watched struct {
	io.ReadCloser
	t      *transport
	silent *time.Timer
}

func (b *watched) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.silent.Reset(b.t.silence)
		b.t.once.Do(func() { close(b.t.began) })
	}
	if err != nil {
		b.silent.Stop()
		if !errors.Is(err, io.EOF) {
			_ = b.t.failed(err)
		}
	}
	return n, err
}

func (b *watched) Close() error {
	b.silent.Stop()
	return b.ReadCloser.Close()
}
