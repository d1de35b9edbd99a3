package main

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// absent is the observation of a name without an object.
const absent = "absent"

// A write is one change of a name, as its client saw it.
type write struct {
	what    string // the kind of write, for errors
	outcome string // SHA-256 of the content that it leaves, or absent
	size    int64
	via     int // number of the runner that received it, or 0
	begin   time.Time
	end     time.Time // zero if it may still take effect
	state   writeState
}

type writeState int

const (
	pending writeState = iota
	acked              // it took effect between begin and end
	refused            // it never takes effect
	lost               // it took effect after begin and before end, or never
)

func (s writeState) String() string {
	return [...]string{"pending", "acknowledged", "refused", "lost"}[s]
}

// A model holds the contents that each name may have: each write takes effect once, whole,
// between its begin and its end, and the name has the content of the last one.
type model struct {
	mu     sync.Mutex
	writes map[string][]*write
}

func newModel() *model { return &model{writes: map[string][]*write{}} }

// begin records a write that the caller is about to send. A nil c stands for a deletion.
func (m *model) begin(name, what string, via int, c *content) *write {
	w := &write{what: what, outcome: absent, via: via, begin: time.Now()}
	if c != nil {
		w.outcome, w.size = c.sum, c.size
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes[name] = append(m.writes[name], w)
	return w
}

// end records the outcome of a write. A lost write may take effect until the runner that
// received it ends.
func (m *model) end(w *write, state writeState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.state = state; state != lost {
		w.end = time.Now()
	}
}

// replaced records that another write has replaced w, if w took effect.
func (m *model) replaced(w *write) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.state, w.end = lost, time.Now()
}

// died records that a runner has ended: the lost writes that it received can no longer take
// effect.
func (m *model) died(runner int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, writes := range m.writes {
		for _, w := range writes {
			if w.state == lost && w.via == runner && w.end.IsZero() {
				w.end = time.Now()
			}
		}
	}
}

// names returns all names that were ever written.
func (m *model) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.writes {
		names = append(names, name)
	}
	return names
}

// explain returns nil if name may have been observed as observed, and the contradiction
// otherwise.
func (m *model) explain(name, observed string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	writes := append([]*write{{what: "the beginning", outcome: absent, end: time.Unix(1, 0), state: acked}}, m.writes[name]...)
	known := false
	for _, w := range writes {
		if w.outcome != observed || w.state == refused {
			continue
		}
		known = true
		if !overwritten(w, writes) {
			return nil
		}
	}
	var b strings.Builder
	for _, w := range writes[max(0, len(writes)-12):] {
		end := "open"
		if !w.end.IsZero() {
			end = w.end.Format("15:04:05.000")
		}
		fmt.Fprintf(&b, "\n\t%s..%s %-12s %s -> %.12s (%d bytes)", w.begin.Format("15:04:05.000"), end, w.state, w.what, w.outcome, w.size)
	}
	if !known {
		return fmt.Errorf("%q holds %.12s, which nobody wrote there:%s", name, observed, b.String())
	}
	return fmt.Errorf("%q holds %.12s, which an acknowledged write has replaced:%s", name, observed, b.String())
}

// overwritten reports whether an acknowledged write began after w had ended.
func overwritten(w *write, writes []*write) bool {
	if w.end.IsZero() {
		return false
	}
	for _, x := range writes {
		if x != w && x.state == acked && x.begin.After(w.end) {
			return true
		}
	}
	return false
}
