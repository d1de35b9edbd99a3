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
)

// The intervals at which the image root is listed for changes without an event: pollFast if
// no events arrive, pollSlow if they do.
const (
	pollFast = 15 * time.Second
	pollSlow = 5 * time.Minute
)

// events holds the source of the runner's object events, and whether they arrive.
type events struct {
	source      string // fromGateway, or a value of config.Events
	because     string // the reason for the source
	inspections queue.Sender
	// changed is called with each object that may have changed.
	changed  func(bucket, key string)
	arriving atomic.Bool   // events arrive, so that polling may be slow
	switched chan struct{} // of capacity 1; receives when arriving changes
}

// fromGateway is the source if the gateway is used. The others are values of config.Events.
const fromGateway = "gateway"

// newEvents chooses the source. The caller sets inspections and changed.
func newEvents(cfg config.Config, inside bool) *events {
	e := &events{switched: make(chan struct{}, 1)}
	switch {
	case inside:
		e.source, e.because = fromGateway, "it reports its objects itself"
	case cfg.Events != config.EventsAuto:
		e.source, e.because = cfg.Events, "IMAGEROOT_EVENTS says so"
	case cfg.WebhookToken != "":
		e.source, e.because = config.EventsWebhook, "IMAGEROOT_WEBHOOK_TOKEN is set"
	default:
		e.source, e.because = config.EventsListen, "nothing is set, and the server may have an event stream"
	}
	e.arriving.Store(e.source == fromGateway || e.source == config.EventsOff)
	return e
}

// interval returns the current interval of polling.
func (e *events) interval() time.Duration {
	if e.arriving.Load() {
		return pollSlow
	}
	return pollFast
}

// setArriving sets arriving. It reports whether that changed, and notifies poll then.
func (e *events) setArriving(arriving bool) (changed bool) {
	if e.arriving.Swap(arriving) == arriving {
		return false
	}
	select {
	case e.switched <- struct{}{}:
	default:
	}
	return true
}

// poll enqueues a comparison with the listing at each interval, until ctx ends.
func (e *events) poll(ctx context.Context) {
	for {
		next := time.NewTimer(e.interval())
		select {
		case <-next.C:
			_ = e.inspections.Send(ctx, queue.Poll{}.Encode(), 0) // never fails
		case <-e.switched:
		case <-ctx.Done():
		}
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// listen receives events from the server's event stream until ctx ends, if that is the source.
func (s *server) listen(ctx context.Context) {
	e := s.events
	s.log.Info("events of objects", "by", e.source, "because", e.because, "poll", e.interval().String())
	if e.source != config.EventsListen {
		return
	}
	at := s.cfg.ImageRoot
	last := ""
	down := func(err error) {
		level := slog.LevelWarn
		if last == "" && !e.arriving.Load() && s.cfg.Events == config.EventsAuto {
			level = slog.LevelInfo // the setting does not ask for the stream
		}
		if e.setArriving(false) || err.Error() != last { // log repeated failures once
			s.log.Log(ctx, level, "no events of objects from the server's stream", "by", config.EventsPoll, "because", err.Error(), "poll", e.interval().String())
		}
		last = err.Error()
	}
	listener := &listen.Listener{
		Endpoint: s.cfg.S3Endpoint, Bucket: at.Bucket, Prefix: at.Prefix, Log: s.log,
		Access: func(ctx context.Context) (listen.Access, error) {
			a, err := s.client.Access(ctx)
			return listen.Access(a), err
		},
		Event: func(o objectevent.Event) { e.changed(o.Bucket, o.Key) },
		Up: func() {
			last = ""
			e.setArriving(true)
			s.log.Info("events of objects", "by", e.source, "because", "the server's event stream is there", "poll", e.interval().String())
			// A stream does not replay events.
			_ = e.inspections.Send(ctx, queue.Reconcile{}.Encode(), 0) // never fails
		},
		Down: down,
	}
	if err := listener.Run(ctx); errors.Is(err, errors.ErrUnsupported) {
		down(err)
	}
}

// hook returns the webhook for the server's events. It acknowledges an event once that is on
// the queue in memory: if this process ends, the reconcile of the next start finds the same
// change in the listing.
func (s *server) hook() *hook.Hook {
	e := s.events
	h := &hook.Hook{
		Event: func(o objectevent.Event) {
			e.changed(o.Bucket, o.Key)
			// Only the event of an image shows that events of images arrive.
			if _, ok := queue.TopLevel(o.Key, s.cfg.ImageRoot.Prefix); ok && o.Bucket == s.cfg.ImageRoot.Bucket && e.setArriving(true) {
				s.log.Info("events of objects", "by", e.source, "because", "the first one has come", "poll", e.interval().String())
			}
		},
		Unreadable: func(err error) {
			s.log.Warn("an event that cannot be read: everything is compared", "error", err)
			_ = e.inspections.Send(context.Background(), queue.Reconcile{}.Encode(), 0) // never fails
		},
	}
	if e.source == config.EventsWebhook {
		h.Token = s.cfg.WebhookToken
	}
	return h
}
