// Package listen receives object events from the event stream of a MinIO server
// (ListenBucketNotification), which needs no configuration on the server. A stream does not
// replay events: after each start of a stream, only a comparison with the listing finds the
// changes that happened before.
package listen

import (
	"cmp"
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

// Access has the credentials with which a request is signed (AWS Signature Version 4),
// and the transport that sends it.
type Access struct {
	Region                             string
	AccessKey, SecretKey, SessionToken string
	Transport                          http.RoundTripper
}

// A Listener listens to the event stream of one bucket. All fields without a default
// are required. The functions are never called concurrently.
type Listener struct {
	Endpoint       string // URL of the server
	Bucket, Prefix string // of the events; an empty Prefix selects the whole bucket
	// Access returns the credentials for the next stream.
	Access func(context.Context) (Access, error)
	// Event receives each event.
	Event func(objectevent.Event)
	// Up is called when the first byte of a stream arrives: the server sends each later
	// event from then on.
	Up func()
	// Down receives the reason when a stream ends or cannot be opened, and the Listener
	// will try again. The reason is [ErrSilent] if the server was silent.
	Down func(error)
	Log  *slog.Logger

	// Silence replaces [Silence]. Least and Most are the first and the longest wait
	// before the next attempt. The defaults are 1 second and 5 minutes.
	Silence, Least, Most time.Duration
}

// Silence is the time without a byte after which a stream counts as dead. The request asks
// the server for a keep-alive every ten seconds.
const Silence = 35 * time.Second

// The next attempt follows after about least. Each attempt that fails, or whose stream ends
// within Silence, doubles the wait up to most, plus or minus a random half.
const least, most = time.Second, 5 * time.Minute

// ErrSilent reports that the server sent no response, or no byte in the stream, for
// [Silence]. The last source releases of MinIO do so: they never flush the stream.
var ErrSilent = errors.New("the server's event stream is silent")

var errEnded = errors.New("the server ended the event stream")

// Run listens until ctx ends, and opens another stream after each that ends. It returns
// ctx's error, or an error that wraps errors.ErrUnsupported if the server has no event
// stream; it does not call Down for these.
func (l *Listener) Run(ctx context.Context) error {
	shortest, longest := cmp.Or(l.Least, least), cmp.Or(l.Most, most)
	for wait := shortest; ; wait = min(2*wait, longest) {
		began := time.Now()
		up, err := l.stream(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errors.ErrUnsupported):
			return err
		case up && time.Since(began) > cmp.Or(l.Silence, Silence):
			wait = shortest // a stream that ends early does not reset the wait
		}
		l.Down(err)
		// The wait is random, so that the listeners of a restarted server do not all
		// reconnect at once.
		next := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return ctx.Err()
		}
	}
}

// stream listens to one stream until it ends. It reports whether the stream began, and
// returns the reason of its end.
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
	t := &transport{base: access.Transport, silence: cmp.Or(l.Silence, Silence), began: make(chan struct{}), end: end}
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
				<-began // the first byte arrived before this event
				up, began = true, nil
				l.Up()
			}
			l.pass(info)
			if !ok || info.Err != nil {
				return up, t.why(ctx, info.Err)
			}
		case <-ctx.Done():
			return up, t.why(ctx, nil)
		}
	}
}

// pass passes the events of one message to Event. It encodes the message again, so that
// package objectevent can parse it.
func (l *Listener) pass(info notification.Info) {
	if len(info.Records) == 0 {
		return
	}
	message, err := json.Marshal(info)
	if err != nil {
		panic(err) // a decoded message can be encoded
	}
	events, err := objectevent.Parse(message)
	if err != nil {
		l.Log.Warn("an event that cannot be read", "error", err)
	}
	for _, e := range events {
		l.Event(e)
	}
}

// A transport admits only one stream, and watches it. minio-go would open another one
// on its own, and the Listener could not report that events in between may be lost.
type transport struct {
	base    http.RoundTripper
	silence time.Duration
	began   chan struct{} // closed with the first byte
	end     context.CancelCauseFunc

	once   sync.Once
	mu     sync.Mutex
	opened bool
	err    error // the reason of its end
}

// why returns the reason of the stream's end. err is the error of minio-go.
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
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // "" if malformed
	switch code := resp.StatusCode; {
	case code == http.StatusOK && kind == "text/event-stream":
		resp.Body = &watched{resp.Body, t, silent}
		return resp, nil
	case code == http.StatusOK:
		// Probably a listing: the server ignores the parameters that it does not know.
		err = fmt.Errorf("%w: the server answers with %q instead of events", errors.ErrUnsupported, kind)
	case code == http.StatusBadRequest, code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		err = fmt.Errorf("%w: the server refuses to send events: %s", errors.ErrUnsupported, resp.Status)
	}
	silent.Stop()
	if err != nil {
		resp.Body.Close()
		return nil, t.failed(err)
	}
	return resp, nil // minio-go decodes the error
}

// A watched body ends its stream after a silence.
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
