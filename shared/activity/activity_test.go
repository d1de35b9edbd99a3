package activity

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

// A book is a Log with its own clock and recorded log lines.
type book struct {
	*Log
	t     *testing.T
	store *faultstore.Root
	now   time.Time
	said  *bytes.Buffer
}

func newBook(t *testing.T) *book {
	b := &book{t: t, store: faultstore.New(memstore.New(), nil), now: time.Date(2026, 1, 2, 3, 4, 5, 6789, time.UTC), said: new(bytes.Buffer)}
	b.Log = b.open()
	return b
}

func (b *book) open() *Log {
	return &Log{Root: b.store, Now: func() time.Time { return b.now }, Log: slog.New(slog.NewTextHandler(b.said, nil))}
}

// add adds events of these kinds, a second apart.
func (b *book) add(events ...Event) {
	for _, e := range events {
		b.now = b.now.Add(time.Second)
		b.Add(b.t.Context(), e)
	}
}

// list returns the summaries.
func (b *book) list(f Filter) ([]string, bool) {
	b.t.Helper()
	if f.Limit == 0 {
		f.Limit = 100
	}
	events, next, err := b.List(b.t.Context(), f)
	if err != nil {
		b.t.Fatal(err)
	}
	got := []string{}
	for _, e := range events {
		got = append(got, e.Summary)
	}
	return got, next != ""
}

func TestAdd(t *testing.T) {
	b := newBook(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel() // cancellation does not lose the event
	b.Add(ended, Event{Kind: ImageUploaded, SubjectKind: SubjectImage, SubjectID: "ä b.img", Actor: Operator, SourceIP: "192.0.2.1", Summary: "one", Details: map[string]any{"size_bytes": 5}})
	b.Add(ended, Event{Kind: LoginFailed, SubjectKind: SubjectAuth, Summary: "two"}) // in the same microsecond
	events, more, err := b.open().List(t.Context(), Filter{Limit: 10})
	if err != nil || more != "" || len(events) != 2 || events[0].ID == events[1].ID {
		t.Fatalf("%+v, %v, %v", events, more, err)
	}
	i := slices.IndexFunc(events, func(e Event) bool { return e.Summary == "one" })
	got, other := events[i], events[1-i]
	at := b.now.Truncate(time.Microsecond)
	want := Event{
		ID: got.ID, TS: at, Kind: ImageUploaded, SubjectKind: SubjectImage, SubjectID: "ä b.img", Actor: Operator,
		SourceIP: "192.0.2.1", Summary: "one", Details: map[string]any{"size_bytes": 5.0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back: %+v, want %+v", got, want)
	}
	if ts, ok := got.ID.Time(); !ok || !ts.Equal(at) {
		t.Errorf("the ID %s is of %v", got.ID, ts)
	}
	if other.Details == nil || got.Failed() || !other.Failed() {
		t.Errorf("%+v", other)
	}
}

// A failure to write an event does not fail its action.
func TestAddFails(t *testing.T) {
	b := newBook(t)
	b.store.Reset(faultstore.NthWrite(1, faultstore.Before))
	b.add(Event{Kind: ImageHashed, SubjectID: "x.img", Summary: "lost"}, Event{Kind: ImageHashed, Summary: "kept"})
	if got, _ := b.list(Filter{}); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("listed: %v", got)
	}
	if said := b.said.String(); !strings.Contains(said, "x.img") || strings.Count(said, "\n") != 1 {
		t.Errorf("logged: %s", said)
	}
}

func TestFilter(t *testing.T) {
	b := newBook(t)
	b.add(
		Event{Kind: ImageUploaded, SubjectKind: SubjectImage, SubjectID: "a", Actor: Operator, SourceIP: "192.0.2.1", Summary: "1"},
		Event{Kind: ImageHashed, SubjectKind: SubjectImage, SubjectID: "a", Actor: System, Summary: "2"},
		Event{Kind: ImageHashFailed, SubjectKind: SubjectImage, SubjectID: "b", Actor: System, Summary: "3"},
		Event{Kind: EntryAdded, SubjectKind: SubjectCatalog, SubjectID: "a", Actor: Operator, SourceIP: "192.0.2.2", Summary: "4"},
		Event{Kind: LoginFailed, SubjectKind: SubjectAuth, SubjectID: "operator", Actor: Operator, SourceIP: "192.0.2.1", Summary: "5"},
	)
	yes, no := true, false
	for _, tt := range []struct {
		filter Filter
		want   string
	}{
		{Filter{}, "5 4 3 2 1"},
		{Filter{Kind: ImageHashed}, "2"},
		{Filter{SubjectKind: SubjectImage}, "3 2 1"},
		{Filter{OtherThan: SubjectAuth}, "4 3 2 1"},
		{Filter{SubjectID: "a"}, "4 2 1"},
		{Filter{SubjectKind: SubjectImage, SubjectID: "a"}, "2 1"},
		{Filter{Actor: System}, "3 2"},
		{Filter{SourceIP: "192.0.2.1"}, "5 1"},
		{Filter{Failed: &yes}, "5 3"},
		{Filter{Failed: &no}, "4 2 1"},
		{Filter{Failed: &yes, Actor: System}, "3"},
		{Filter{Kind: ImageFetched}, ""},
	} {
		for range 2 { // the second time from memory
			if got, more := b.list(tt.filter); strings.Join(got, " ") != tt.want || more {
				t.Errorf("%+v: %v, want %s", tt.filter, got, tt.want)
			}
		}
	}
}

func TestPaging(t *testing.T) {
	b := newBook(t)
	const n = 3*batch + 5
	var want []string
	for i := range n {
		kind := ImageHashed
		if i%3 == 0 {
			kind = ImageFetched
		}
		b.add(Event{Kind: kind, Summary: fmt.Sprint(i)})
		if kind == ImageFetched {
			want = append([]string{fmt.Sprint(i)}, want...)
		}
	}
	for _, limit := range []int{1, 2, 7, batch, batch + 1, n, 500} {
		for kind, total := range map[string]int{"": n, ImageFetched: len(want)} {
			var all []string
			f := Filter{Kind: kind, Limit: limit}
			for pages := 0; ; pages++ {
				events, next, err := b.List(t.Context(), f)
				if err != nil || len(events) > limit || next != "" && len(events) != limit || pages > 100*n {
					t.Fatalf("limit %d: %d events, %v, %v", limit, len(events), next, err)
				}
				for _, e := range events {
					all = append(all, e.Summary)
				}
				if next == "" {
					break
				}
				// New events do not shift the next page.
				b.add(Event{Kind: LoginSucceeded, Summary: "meanwhile"})
				f.Before = next
			}
			all = slices.DeleteFunc(all, func(s string) bool { return s == "meanwhile" })
			if len(all) != total || kind != "" && !slices.Equal(all, want) {
				t.Errorf("limit %d of %q: %d events: %v", limit, kind, len(all), all)
			}
		}
	}
	for _, limit := range []int{0, -1} { // each counts as 1
		events, next, err := b.List(t.Context(), Filter{Limit: limit})
		if err != nil || len(events) != 1 || next != events[0].ID {
			t.Errorf("limit %d: %d events, next %q, %v", limit, len(events), next, err)
		}
	}
	// Only events before a given time.
	at := b.now.Add(-time.Hour)
	if got, more := b.list(Filter{Before: layout.NewEventID(at, "ffffffffffffffff")}); len(got) != 0 || more {
		t.Errorf("before everything: %v", got)
	}
}

func TestUnreadable(t *testing.T) {
	b := newBook(t)
	b.add(Event{Kind: ImageHashed, Summary: "good"})
	id := layout.NewEventID(b.now, "0000000000000001")
	for key, data := range map[string]string{
		string(layout.EventKey(id)): "nonsense",
		string(layout.EventKey(layout.NewEventID(b.now, "0000000000000002"))): `{"id": "of another"}`,
		layout.EventPrefix + "no-id":                                          "{}",
	} {
		if _, err := b.store.CreateRecord(t.Context(), store.Key(key), []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := b.list(Filter{}); !slices.Equal(got, []string{"good"}) {
		t.Errorf("listed: %v", got)
	}
	// If the store does not answer, List fails instead of returning an empty log.
	fresh := b.open()
	for _, op := range []string{"List", "ReadRecord"} {
		b.store.Reset(func(c faultstore.Call) faultstore.Fault {
			if c.Op == op {
				return faultstore.Before
			}
			return faultstore.None
		})
		if events, _, err := fresh.List(t.Context(), Filter{Limit: 10}); err == nil {
			t.Errorf("%s fails: %v", op, events)
		}
	}
}

func TestSweep(t *testing.T) {
	b := newBook(t)
	b.add(Event{Summary: "old"}, Event{Summary: "older than that by a second"})
	begun := b.now
	b.now = begun.Add(keepFor / 2)
	b.add(Event{Summary: "young"})
	b.now = begun.Add(keepFor)
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.list(Filter{}); !slices.Equal(got, []string{"young", "older than that by a second"}) {
		t.Errorf("left: %v", got)
	}
	b.now = b.now.Add(time.Second)
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.list(Filter{}); !slices.Equal(got, []string{"young"}) {
		t.Errorf("left: %v", got)
	}
}

func TestLists(t *testing.T) {
	kinds := Kinds()
	if len(kinds) != 26 {
		t.Errorf("%d kinds", len(kinds))
	}
	for _, k := range failed {
		if !slices.Contains(kinds, k) {
			t.Errorf("%s fails and is no kind", k)
		}
	}
	for _, k := range kinds {
		e := Event{Kind: k}
		if e.Failed() != (strings.HasSuffix(k, "_failed") || strings.HasSuffix(k, ".failed")) {
			t.Errorf("%s is a failure: %v", k, e.Failed())
		}
	}
}
