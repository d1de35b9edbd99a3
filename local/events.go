package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"imageroot/shared/config"
	"imageroot/shared/hook"
	"imageroot/shared/listen"
	"imageroot/shared/objectevent"
	"imageroot/shared/queue"
	"imageroot/shared/store/s3store"
)

// How often the image root is listed for what no event told of: pollFast where
// none come, pollSlow beneath those that do.
const (
	pollFast = 15 * time.Second
	pollSlow = 5 * time.Minute
)

// events is how the runner hears of objects that others put into the S3
// server.
type events struct {
	way, why    string
	inspections queue.Sender
	// changed says that an object may have changed.
	changed func(bucket, key string)
	come    atomic.Bool   // they do come: no need to poll fast
	turned  chan struct{} // has one where come was changed
}

// fromGateway is the way of the gateway inside; the others are settings.
const fromGateway = "gateway"

// newEvents chooses the way. The caller sets inspections and changed.
func newEvents(cfg config.Config, inside bool) *events {
	e := &events{turned: make(chan struct{}, 1)}
	switch {
	case inside:
		e.way, e.why = fromGateway, "it tells of its objects itself"
	case cfg.Events != config.EventsAuto:
		e.way, e.why = cfg.Events, "IMAGEROOT_EVENTS says so"
	case cfg.WebhookToken != "":
		e.way, e.why = config.EventsWebhook, "IMAGEROOT_WEBHOOK_TOKEN is set"
	default:
		e.way, e.why = config.EventsListen, "nothing is set, and the server may have an event stream"
	}
	e.come.Store(e.way == fromGateway || e.way == config.EventsOff)
	return e
}

// interval is how often to poll.
func (e *events) interval() time.Duration {
	if e.come.Load() {
		return pollSlow
	}
	return pollFast
}

// turn says whether events come.
func (e *events) turn(come bool) (changed bool) {
	if e.come.Swap(come) == come {
		return false
	}
	select {
	case e.turned <- struct{}{}:
	default:
	}
	return true
}

// poll asks for a look at the listing now and then.
func (e *events) poll(ctx context.Context) {
	for {
		next := time.NewTimer(e.interval())
		select {
		case <-next.C:
			_ = e.inspections.Send(ctx, queue.Poll{}.Encode(), 0) // never fails
		case <-e.turned:
		case <-ctx.Done():
		}
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// hear takes events in until ctx ends.
func (s *server) hear(ctx context.Context) {
	e := s.events
	s.log.Info("events of objects", "by", e.way, "because", e.why, "poll", e.interval().String())
	if e.way != config.EventsListen {
		return
	}
	at := s.cfg.ImageRoot
	last := ""
	down := func(err error) {
		level := slog.LevelWarn
		if last == "" && !e.come.Load() && s.cfg.Events == config.EventsAuto {
			level = slog.LevelInfo // it was only a try
		}
		if e.turn(false) || err.Error() != last { // not at each of a hundred tries
			s.log.Log(ctx, level, "no events of objects from the server's stream", "by", config.EventsPoll, "because", err.Error(), "poll", e.interval().String())
		}
		last = err.Error()
	}
	listener := &listen.Listener{
		Endpoint: s.cfg.S3Endpoint, Bucket: at.Bucket, Prefix: at.Prefix, Log: s.log,
		Access: func(ctx context.Context) (listen.Access, error) { return access(ctx, s.client) },
		Event:  func(o objectevent.Event) { e.changed(o.Bucket, o.Key) },
		Up: func() {
			last = ""
			e.turn(true)
			s.log.Info("events of objects", "by", e.way, "because", "the server's event stream is there", "poll", e.interval().String())
			// What happened before was not told.
			_ = e.inspections.Send(ctx, queue.Reconcile{}.Encode(), 0) // never fails
		},
		Down: down,
	}
	if err := listener.Run(ctx); errors.Is(err, errors.ErrUnsupported) {
		down(err)
	}
}

func access(ctx context.Context, c *s3store.Client) (listen.Access, error) {
	a, err := c.Access(ctx)
	return listen.Access(a), err
}

// hook is where a server may send its events. One is safe when it is on the
// queue: if this process dies, the comparison at the next start finds in the
// listing what the queue held.
func (s *server) hook() *hook.Hook {
	e := s.events
	h := &hook.Hook{
		Event: func(o objectevent.Event) {
			e.changed(o.Bucket, o.Key)
			// Those of other objects do not say that those of images come.
			if _, ok := queue.TopLevel(o.Key, s.cfg.ImageRoot.Prefix); ok && o.Bucket == s.cfg.ImageRoot.Bucket && e.turn(true) {
				s.log.Info("events of objects", "by", e.way, "because", "the first one has come", "poll", e.interval().String())
			}
		},
		Unreadable: func(err error) {
			s.log.Warn("an event that cannot be read: everything is compared", "error", err)
			_ = e.inspections.Send(context.Background(), queue.Reconcile{}.Encode(), 0) // never fails
		},
	}
	if e.way == config.EventsWebhook {
		h.Token = s.cfg.WebhookToken
	}
	return h
}
