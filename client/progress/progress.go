// Package progress shows the progress of a transfer on a terminal.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"imageroot/shared/visible"
)

// rateTime is the time whose bytes are the rate that is shown.
const rateTime = 5 * time.Second

// A Bar is one line with name, bar, bytes, rate and time left. A nil Bar shows nothing.
// Its methods are safe for concurrent use.
type Bar struct {
	name  string
	total int64
	lines *mpb.Progress
	bar   *mpb.Bar

	mu      sync.Mutex
	done    int64
	state   string // shown instead of rate and time left
	samples []sample
}

type sample struct {
	at   time.Time
	done int64
}

// New shows a bar on w for a transfer of total bytes; 0 or less means that the number is not
// known. It returns nil if w is not a terminal. End must be called.
func New(w io.Writer, name string, total int64) *Bar {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	const nameWidth = 30
	b := &Bar{name: runewidth.Truncate(visible.Line(name), nameWidth, "…"), total: max(total, 0)}
	b.lines = mpb.New(mpb.WithOutput(w), mpb.WithWidth(30), mpb.WithRefreshRate(200*time.Millisecond))
	b.bar = b.lines.New(b.total, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.PrependDecorators(decor.Name(b.name)),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.text(time.Now()) })))
	return b
}

// Set sets how many bytes are transferred.
func (b *Bar) Set(done int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.done = done
	b.mu.Unlock()
	// A bar that reaches its total ends, which End alone is to do.
	b.bar.SetCurrent(min(done, max(b.total-1, 0)))
}

// Add adds to the number of bytes that are transferred.
func (b *Bar) Add(n int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	done := b.done + n
	b.mu.Unlock()
	b.Set(done)
}

// Say shows a text in place of rate and time left, until it is called with "".
func (b *Bar) Say(state string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = visible.Line(state)
	b.samples = nil // the rate begins anew
}

// End removes the bar. No line is printed below it meanwhile.
func (b *Bar) End() {
	if b == nil {
		return
	}
	b.bar.Abort(true)
	b.lines.Wait()
}

// text returns what is shown behind the bar at that time.
func (b *Bar) text(now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := " " + Bytes(b.done)
	if b.total > 0 {
		s += " of " + Bytes(b.total)
	}
	if b.state != "" {
		return s + "  " + b.state
	}
	b.samples = append(b.samples, sample{now, b.done})
	for len(b.samples) > 2 && now.Sub(b.samples[0].at) > rateTime {
		b.samples = b.samples[1:]
	}
	seconds := now.Sub(b.samples[0].at).Seconds()
	rate := float64(b.done-b.samples[0].done) / seconds
	if seconds < 0.5 || rate <= 0 {
		return s
	}
	s += "  " + Bytes(int64(rate)) + "/s"
	if b.total > 0 {
		s += "  " + Duration(time.Duration(float64(b.total-b.done)/rate*float64(time.Second))) + " left"
	}
	return s
}

// Bytes returns a number of bytes for people, such as 1.5 GiB.
func Bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if i == 0 || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// Duration returns a duration for people, such as 3 min.
func Duration(d time.Duration) string {
	switch s := int(d.Seconds() + 0.5); {
	case s < 100:
		return fmt.Sprintf("%d s", max(s, 1))
	case s < 100*60:
		return fmt.Sprintf("%d min", (s+30)/60)
	default:
		return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
	}
}
