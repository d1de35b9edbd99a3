package served

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store/memstore"
)

const sha layout.SHA256 = "6ed070caf7efdde5d09270e9e92c68e32628a664591edea1c782344ae19983de"

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newLog(t *testing.T) (*Log, *clock, func() string) {
	c := &clock{now: time.Date(2026, 11, 28, 20, 0, 0, 5, time.UTC)}
	l := &Log{Root: memstore.New(), Now: c.Now, Log: slog.New(slog.DiscardHandler)}
	return l, c, func() string {
		t.Helper()
		all, err := l.List(t.Context(), sha)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, d := range all {
			text = append(text, d.To+" "+d.What+" "+d.At.Format("15:04"))
		}
		return strings.Join(text, ", ")
	}
}

func TestLog(t *testing.T) {
	l, c, list := newLog(t)
	if got := list(); got != "" {
		t.Error(got)
	}
	add := func(to, what string) { l.Add(sha, Delivery{To: to, What: what}) }
	add("192.0.2.1", Image)
	add("not an address", Image)
	l.Add("", Delivery{To: "192.0.2.9", What: Image})
	want := "192.0.2.1 image 20:00"
	if got := list(); got != want {
		t.Errorf("%s, want %s: before it is written", got, want)
	}
	l.Flush(t.Context())
	if got := list(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	c.pass(time.Minute)
	add("192.0.2.1", Image) // soon again: not written
	add("192.0.2.1", Disk)
	add("2001:db8::1", Disk)
	add("2001:db8::ffff", Disk) // of the same network
	want = "192.0.2.1 disk 20:01, 2001:db8::ffff disk 20:01, 192.0.2.1 image 20:00"
	if got := list(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	l.Flush(t.Context())
	c.pass(20 * time.Minute)
	add("192.0.2.1", Image)
	l.Flush(t.Context())
	want = "192.0.2.1 image 20:21, 192.0.2.1 disk 20:01, 2001:db8::ffff disk 20:01"
	if got := list(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Another process adds to the record.
	other := &Log{Root: l.Root, Now: c.Now, Log: l.Log}
	c.pass(time.Hour)
	other.Add(sha, Delivery{To: "192.0.2.2", What: Disk})
	other.Flush(t.Context())
	if got := list(); got != "192.0.2.2 disk 21:21, "+want {
		t.Errorf("%s", got)
	}
	if err := l.Sweep(t.Context()); err != nil || list() == "" {
		t.Errorf("%v %s", err, list())
	}
	c.pass(keepFor + time.Hour)
	if got := list(); got != "" {
		t.Errorf("%s is kept", got)
	}
}

func TestSweep(t *testing.T) {
	l, c, _ := newLog(t)
	c.now = time.Now() // which the store's times are
	l.Add(sha, Delivery{To: "192.0.2.1", What: Disk})
	l.Flush(t.Context())
	records := func() (n int) {
		if err := l.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range l.Root.List(t.Context(), layout.ServedPrefix, "") {
			n++
		}
		return n
	}
	if n := records(); n != 1 {
		t.Errorf("%d records", n)
	}
	c.pass(keepFor + time.Hour)
	if n := records(); n != 0 {
		t.Errorf("%d records", n)
	}
}

// However many clients there are, and whatever they get, memory and requests are bounded.
func TestFlood(t *testing.T) {
	l, c, list := newLog(t)
	contents := func(i int) layout.SHA256 { return layout.SHA256(layout.RefOf(fmt.Sprint(i))) }
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20_000 {
				l.Add(sha, Delivery{To: fmt.Sprintf("10.%d.%d.%d", w, i>>8, i&255), What: Disk})
				l.Add(contents(i), Delivery{To: "192.0.2.1", What: Disk})
			}
		})
	}
	wg.Wait()
	l.Flush(t.Context())
	records := 0
	for range l.Root.List(t.Context(), layout.ServedPrefix, "") {
		records++
	}
	if n := strings.Count(list(), ",") + 1; records > maxPending || n != most {
		t.Errorf("%d records, one with %d clients", records, n)
	}
	for i := range 1000 {
		c.pass(time.Minute)
		l.Add(contents(i), Delivery{To: "192.0.2.1", What: Disk})
		l.Flush(t.Context())
	}
	if len(l.written) > maxPending+1 {
		t.Errorf("%d contents are in memory", len(l.written))
	}
}
