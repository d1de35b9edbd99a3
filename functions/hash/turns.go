package hash

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// longTime is how long a check may delay others.
	longTime = 30 * time.Second
	// turnTime is how long a long check is delayed if another one is running.
	turnTime = time.Minute
)

// errTurn means that a check has run for longTime beside a long one.
var errTurn = errors.New("another long check is running")

// turns lets one check run at a time, and another one beside a check that has
// run for longTime. Its zero value is ready.
type turns struct {
	once        sync.Once
	short, long chan struct{} // hold a value while the turn is taken
}

// A turn is the turn of one check. It is not safe for concurrent use.
type turn struct {
	*turns
	now    func() time.Time
	since  time.Time
	isLong bool
}

// begin waits for a short turn. The caller must end it.
func (t *turns) begin(ctx context.Context, now func() time.Time) (*turn, error) {
	t.once.Do(func() { t.short, t.long = make(chan struct{}, 1), make(chan struct{}, 1) })
	select {
	case t.short <- struct{}{}:
		return &turn{turns: t, now: now, since: now()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lengthen makes t a long turn if no other one is, and reports whether t is one.
func (t *turn) lengthen() bool {
	if !t.isLong {
		select {
		case t.long <- struct{}{}:
			t.isLong = true
			<-t.short
		default:
		}
	}
	return t.isLong
}

// keep reports whether the check may continue. A job that takes no turn has none.
func (t *turn) keep() bool { return t == nil || t.now().Sub(t.since) < longTime || t.lengthen() }

func (t *turn) end() {
	if t.isLong {
		<-t.long
	} else {
		<-t.short
	}
}
