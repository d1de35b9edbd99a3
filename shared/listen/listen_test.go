package listen

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/shared/objectevent"
)

// A server serves MinIO's event stream. The test takes each stream and writes to it.
type server struct {
	*httptest.Server
	streams chan *stream
}

// A stream is one request for events.
type stream struct {
	r    *http.Request
	w    http.ResponseWriter
	work chan func() // runs on the handler's goroutine; closed to end the answer
}

func newServer(t *testing.T) *server {
	s := &server{streams: make(chan *stream)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st := &stream{r, w, make(chan func())}
	select {
	case s.streams <- st:
	case <-r.Context().Done():
		return
	}
	for {
		select {
		case f, ok := <-st.work:
			if !ok {
				return
			}
			f()
		case <-r.Context().Done():
			return
		}
	}
}

// do runs f in the server, unless the listener has disconnected.
func (st *stream) do(f func()) {
	done := make(chan struct{})
	select {
	case st.work <- func() { f(); close(done) }:
		<-done
	case <-st.r.Context().Done():
	}
}

func (st *stream) open() {
	st.do(func() { st.w.Header().Set("Content-Type", "text/event-stream") })
	st.send("")
}

func (st *stream) send(text string) {
	st.do(func() {
		_, _ = st.w.Write([]byte(text)) // the test checks whether the listener has disconnected
		_ = http.NewResponseController(st.w).Flush()
	})
}

func (st *stream) ping() { st.send(`{"Records":null}` + "\n") }

func (st *stream) created(t *testing.T, keys ...string) {
	for _, key := range keys {
		k, err := json.Marshal(key)
		if err != nil {
			t.Error(err)
		}
		st.send(fmt.Sprintf(`{"Records":[{"eventVersion":"2.0","eventSource":"minio:s3","eventName":"s3:ObjectCreated:Put","eventTime":"2026-11-25T03:00:00.000Z","s3":{"bucket":{"name":"images"},"object":{"key":%s,"sequencer":"1"}}}]}`+"\n", k))
	}
}

// cut ends a stream in the middle.
func (st *stream) cut(t *testing.T) {
	st.do(func() {
		conn, _, err := http.NewResponseController(st.w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		conn.Close()
	})
	close(st.work)
}

// A told is one call of a function of the Listener.
type told struct {
	what string // "up", "down", or the key of an event
	err  error
}

type listening struct {
	t     *testing.T
	calls chan told
	stop  context.CancelFunc
	ended chan error
}

const soon = 20 * time.Second // for calls that follow at once on an idle machine

func listen(t *testing.T, endpoint string, edit ...func(*Listener)) *listening {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &listening{t, make(chan told, 1000), stop, make(chan error, 1)}
	listener := &Listener{
		Endpoint: endpoint, Bucket: "images", Prefix: "os/",
		Access: func(context.Context) (Access, error) {
			return Access{Region: "us-east-1", AccessKey: "access", SecretKey: "secret-key", Transport: http.DefaultTransport}, nil
		},
		Event: func(e objectevent.Event) {
			if e.Bucket != "images" || e.Removed {
				t.Errorf("event %+v", e)
			}
			l.calls <- told{what: e.Key}
		},
		Up:   func() { l.calls <- told{what: "up"} },
		Down: func(err error) { l.calls <- told{"down", err} },
		Log:  slog.New(slog.DiscardHandler), Least: time.Millisecond, Most: 10 * time.Millisecond,
	}
	for _, e := range edit {
		e(listener)
	}
	go func() { l.ended <- listener.Run(ctx) }()
	t.Cleanup(stop)
	return l
}

// hears waits for the next calls. It returns the error of the last one.
func (l *listening) hears(whats ...string) (err error) {
	l.t.Helper()
	for _, want := range whats {
		select {
		case got := <-l.calls:
			if got.what != want {
				l.t.Fatalf("it told of %q (%v), want %q", got.what, got.err, want)
			}
			err = got.err
		case err := <-l.ended:
			l.t.Fatalf("it ended with %v, want %q", err, want)
		case <-time.After(soon):
			l.t.Fatalf("nothing was told, want %q", want)
		}
	}
	return err
}

func (s *server) next(t *testing.T) *stream {
	t.Helper()
	select {
	case st := <-s.streams:
		return st
	case <-time.After(soon):
		t.Fatal("no stream is asked for")
		return nil
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	l := listen(t, s.URL)
	st := s.next(t)
	q := st.r.URL.Query()
	if st.r.URL.Path != "/images/" || q.Get("prefix") != "os/" || q.Get("ping") != "10" || len(q["events"]) != 2 ||
		!strings.Contains(st.r.Header.Get("Authorization"), "access/") {
		t.Errorf("%s with %q", st.r.URL, st.r.Header)
	}
	st.open()
	st.ping()
	l.hears("up")
	st.ping()
	keys := []string{"os/a.img", "os/with space+plus.img", "os/50%25.img", "os/\u00fc\U0001F680.img", `os/quote"'<b>\.img`}
	st.created(t, keys...)
	l.hears(keys...)
	// An empty message, or an event of another kind, is not passed on.
	st.send(`{"Records":[]}` + "\n" + `{"Records":[{"eventName":"s3:ObjectAccessed:Get","s3":{"bucket":{"name":"images"},"object":{"key":"os/x.img"}}}]}` + "\n")
	st.created(t, "os/last.img")
	l.hears("os/last.img")

	l.stop()
	if err := <-l.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
	<-st.r.Context().Done() // and the connection is closed
}

// Up is called before the first event, however soon that follows.
func TestUpBeforeEvents(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	l := listen(t, s.URL)
	for range 3 {
		st := s.next(t)
		st.do(func() { st.w.Header().Set("Content-Type", "text/event-stream") })
		st.created(t, "os/a.img", "os/b.img")
		close(st.work)
		l.hears("up", "os/a.img", "os/b.img")
		if err := l.hears("down"); !errors.Is(err, errEnded) {
			t.Errorf("down: %v", err)
		}
	}
}

// However a stream ends, Down is called and another stream follows.
func TestEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*stream){
		"closed": func(st *stream) { close(st.work) },
		"cut":    func(st *stream) { st.cut(t) },
		"cut in the middle of an event": func(st *stream) {
			st.send(`{"Records":[{"eventName":"s3:Obj`)
			st.cut(t)
		},
		"closed in the middle of an event": func(st *stream) {
			st.send(`{"Records":[{"eventName":"s3:Obj`)
			close(st.work)
		},
		"nonsense":    func(st *stream) { st.send("<html>\n") },
		"without end": func(st *stream) { st.send(string(bytes.Repeat([]byte("x"), 5<<20))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			l := listen(t, s.URL)
			for range 2 {
				st := s.next(t)
				st.open()
				st.created(t, "os/a.img")
				l.hears("up", "os/a.img")
				end(st)
				if err := l.hears("down"); err == nil || errors.Is(err, ErrSilent) {
					t.Errorf("down: %v", err)
				}
			}
			st := s.next(t)
			st.open()
			st.ping()
			l.hears("up")
		})
	}
}

// A silent stream counts as dead, whether it was not answered, never sent a byte, or
// fell silent later.
func TestSilence(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	l := listen(t, s.URL, func(l *Listener) { l.Silence = 100 * time.Millisecond })
	s.next(t) // no head either, like MinIO's last source release
	if err := l.hears("down"); !errors.Is(err, ErrSilent) {
		t.Errorf("down: %v", err)
	}
	s.next(t).open()
	if err := l.hears("down"); !errors.Is(err, ErrSilent) {
		t.Errorf("down: %v", err)
	}
	for what := ""; what != "up"; {
		st := s.next(t)
		st.open()
		st.ping()
		select {
		case got := <-l.calls:
			what = got.what // on a slow machine, the silence may end the stream before its first byte
		case <-time.After(soon):
			t.Fatal("nothing was told")
		}
	}
	if err := l.hears("down"); !errors.Is(err, ErrSilent) {
		t.Errorf("down: %v", err)
	}
}

// Pings keep a stream alive.
func TestPings(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const silence = 3 * time.Second
	l := listen(t, s.URL, func(l *Listener) { l.Silence = silence })
	st := s.next(t)
	st.open()
	for tick := range 40 { // longer than Silence in total
		if tick > 0 {
			<-time.After(silence / 30)
		}
		st.ping()
	}
	st.created(t, "os/a.img")
	l.hears("up", "os/a.img")
}

// An unreachable server is tried again until it answers.
func TestAway(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	lis.Close()
	l := listen(t, "http://"+addr)
	l.hears("down", "down", "down")
	if lis, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	s := &server{streams: make(chan *stream)}
	s.Server = &httptest.Server{Listener: lis, Config: &http.Server{Handler: s}}
	s.Start()
	defer s.Close()
	defer l.stop()
	st := s.next(t)
	st.open()
	st.ping()
	for {
		select {
		case c := <-l.calls:
			if c.what == "up" {
				return
			}
		case <-time.After(soon):
			t.Fatal("it does not come back")
		}
	}
}

// A server without an event stream is not tried again.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(w http.ResponseWriter){
		"a listing": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/xml")
			fmt.Fprint(w, `<?xml version="1.0"?><ListBucketResult/>`)
		},
		"501": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotImplemented) },
		"400": func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadRequest) },
		"405": func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
			defer s.Close()
			l := listen(t, s.URL)
			select {
			case err := <-l.ended:
				if !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("Run returned %v", err)
				}
			case <-time.After(soon):
				t.Error("it goes on")
			}
		})
	}
	t.Run("AWS", func(t *testing.T) {
		l := listen(t, "https://s3.eu-central-1.amazonaws.com")
		if err := <-l.ended; !errors.Is(err, errors.ErrUnsupported) { // without a request
			t.Errorf("Run returned %v", err)
		}
	})
}

// After a refusal that may be temporary, the Listener tries again, and Down gets the
// server's reason.
func TestRefused(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	requests := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if requests++; requests%2 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>`)
	}))
	defer s.Close()
	l := listen(t, s.URL)
	if err := l.hears("down"); err == nil || !strings.Contains(err.Error(), "Access Denied") {
		t.Errorf("down: %v", err)
	}
	if err := l.hears("down"); err == nil || strings.Contains(err.Error(), "Access Denied") {
		t.Errorf("down: %v", err)
	}
	broken := errors.New("no credentials")
	l = listen(t, s.URL, func(l *Listener) {
		l.Access = func(context.Context) (Access, error) { return Access{}, broken }
	})
	if err := l.hears("down"); !errors.Is(err, broken) {
		t.Errorf("down: %v", err)
	}
}
