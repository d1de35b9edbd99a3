package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/kit"
	"imageroot/shared/objectevent"
	"imageroot/shared/queue"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/s3store"
)

// A sender records the messages sent and their times.
type sender struct {
	began time.Time
	sent  map[string][]time.Duration
}

func (s *sender) Send(_ context.Context, body []byte, _ time.Duration) error {
	s.sent[string(body)] = append(s.sent[string(body)], time.Since(s.began))
	return nil
}

// The image root is listed every few seconds while no events arrive, and rarely
// while they do.
func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inspections := &sender{time.Now(), map[string][]time.Duration{}}
		e := newEvents(config.Config{Events: config.EventsAuto}, false)
		e.inspections = inspections
		ctx, stop := context.WithCancel(t.Context())
		go e.poll(ctx)
		at := func(d time.Duration) { time.Sleep(d - time.Since(inspections.began)); synctest.Wait() }
		polls := func() int { return len(inspections.sent[string(queue.Poll{}.Encode())]) }
		at(time.Minute + time.Second)
		if n := polls(); n != 4 {
			t.Errorf("%d polls in a minute without events, want 4", n)
		}
		if !e.setArriving(true) || e.setArriving(true) {
			t.Error("the change was not reported once")
		}
		at(11*time.Minute + 2*time.Second)
		if n := polls(); n != 6 {
			t.Errorf("%d polls after ten minutes with events, want 2 more", n)
		}
		e.setArriving(false)
		at(12*time.Minute + 3*time.Second)
		if n := polls(); n != 10 {
			t.Errorf("%d polls after another minute without, want 4 more", n)
		}
		stop()
	})
}

func TestSourceOfEvents(t *testing.T) {
	for _, tt := range []struct {
		name    string
		gateway *gateway.Gateway
		cfg     config.Config
		source  string
		poll    time.Duration
	}{
		{"the gateway inside", new(gateway.Gateway), config.Config{Events: config.EventsAuto, WebhookToken: "token"}, fromGateway, pollSlow},
		{"nothing set", nil, config.Config{Events: config.EventsAuto}, config.EventsListen, pollFast},
		{"a token", nil, config.Config{Events: config.EventsAuto, WebhookToken: "token"}, config.EventsWebhook, pollFast},
		{"a token that is not to be used", nil, config.Config{Events: config.EventsPoll, WebhookToken: "token"}, config.EventsPoll, pollFast},
		{"listen", nil, config.Config{Events: config.EventsListen, WebhookToken: "token"}, config.EventsListen, pollFast},
		{"off", nil, config.Config{Events: config.EventsOff}, config.EventsOff, pollSlow},
	} {
		s := &server{cfg: tt.cfg, gateway: tt.gateway}
		s.events = newEvents(tt.cfg, tt.gateway != nil)
		if s.events.source != tt.source || s.events.interval() != tt.poll || s.events.because == "" {
			t.Errorf("%s: %s because %s, poll every %v", tt.name, s.events.source, s.events.because, s.events.interval())
		}
		if token := s.hook().Token; (token != "") != (tt.source == config.EventsWebhook) {
			t.Errorf("%s: the hook has the token %q", tt.name, token)
		}
	}
}

// Only events of images show that events of images arrive.
func TestHookOfOthers(t *testing.T) {
	s := &server{cfg: config.Config{S3Endpoint: "http://s3", Events: config.EventsWebhook, ImageRoot: config.Location{Bucket: "images", Prefix: "os/"}}, log: slog.New(slog.DiscardHandler)}
	log := slog.New(slog.DiscardHandler)
	s.kit = kit.New(kit.Config{Images: memstore.New(), Catalog: memstore.New(), Log: log})
	s.events = newEvents(s.cfg, false)
	s.events.inspections, s.events.changed = make(channel, 10), s.changed
	for _, o := range []objectevent.Event{{Bucket: "others", Key: "os/a.img"}, {Bucket: "images", Key: "a.img"}, {Bucket: "images", Key: "os/deeper/a.img"}} {
		s.hook().Event(o)
		if s.events.interval() != pollFast {
			t.Errorf("%+v slows the poll down", o)
		}
	}
	s.hook().Event(objectevent.Event{Bucket: "images", Key: "os/a.img"})
	if s.events.interval() != pollSlow {
		t.Error("an event of an image does not slow the poll down")
	}
}

// A channel is a queue that passes messages on.
type channel chan string

func (c channel) Send(_ context.Context, body []byte, _ time.Duration) error {
	c <- string(body)
	return nil
}

// A reconcile follows the start of each stream of events, for earlier changes.
// Without a stream, the image root is listed often.
func TestListen(t *testing.T) {
	const event = `{"Records":[{"eventSource":"minio:s3","eventName":"s3:ObjectCreated:Put","s3":{"bucket":{"name":"images"},"object":{"key":"os/a b+%41.img"}}}]}`
	end := make(chan struct{})
	s3 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintln(w, event)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}))
	defer s3.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	log := slog.New(slog.DiscardHandler)
	client, err := s3store.Open(ctx, s3store.Config{Endpoint: s3.URL, AccessKey: "access", SecretKey: "secret-key"})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{cfg: config.Config{S3Endpoint: s3.URL, Events: config.EventsListen, ImageRoot: config.Location{Bucket: "images", Prefix: "os/"}}, log: log, client: client}
	inspections := make(channel, 10)
	s.kit = kit.New(kit.Config{Images: memstore.New(), Catalog: memstore.New(), Log: log})
	s.events = newEvents(s.cfg, false)
	s.events.inspections, s.events.changed = inspections, s.changed
	if s.events.interval() != pollFast {
		t.Error("before the first event, the image root is listed rarely")
	}
	ended := make(chan struct{})
	go func() { defer close(ended); s.listen(ctx) }()
	expect := func(want queue.Task) {
		t.Helper()
		select {
		case got := <-inspections:
			if got != string(want.Encode()) {
				t.Fatalf("the task is %s, want %s", got, want.Encode())
			}
		case <-time.After(time.Minute):
			t.Fatalf("no task, want %s", want.Encode())
		}
	}
	for range 2 {
		expect(queue.Reconcile{})
		expect(queue.InspectImage("a b+%41.img"))
		if s.events.interval() != pollSlow {
			t.Error("while events arrive, the image root is listed often")
		}
		end <- struct{}{}
	}
	expect(queue.Reconcile{})
	stop()
	<-ended
}
