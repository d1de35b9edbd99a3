// Package activity is the log of events: what an actor did to a subject, and when. An event
// is a record in the catalog root that is written once, never changed, and removed after 90
// days.
package activity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Kinds of events.
const (
	ImageUploaded     = "image.uploaded"
	ImageUploadFailed = "image.upload_failed"
	ImageHashed       = "image.hashed"
	ImageHashFailed   = "image.hash_failed"
	ImageCheckFailed  = "image.check_failed"
	ImageDiskMade     = "image.disk_made"
	ImageDiskFailed   = "image.disk_failed"
	ImageFetched      = "image.fetched"
	ImageFetchFailed  = "image.fetch_failed"
	ImageDescribed    = "image.described"
	ImageRenamed      = "image.renamed"
	ImageRenameFailed = "image.rename_failed"
	ImageDeleted      = "image.deleted"
	ImageUncached     = "image.uncached"
	ImageMissed       = "image.missed"
	EntryAdded        = "catalog.entry.added"
	EntryAddFailed    = "catalog.entry.add_failed"
	EntryDeleted      = "catalog.entry.deleted"
	ExportAdded       = "catalog.export.added"
	ExportDeleted     = "catalog.export.deleted"
	ManifestReplaced  = "catalog.manifest.replaced"
	TokenAdded        = "auth.token.added"
	TokenDeleted      = "auth.token.deleted"
	LoginSucceeded    = "auth.login.succeeded"
	LoginFailed       = "auth.login.failed"
	Logout            = "auth.logout"
)

// Kinds of subjects.
const (
	SubjectImage   = "image"
	SubjectCatalog = "catalog"
	SubjectAuth    = "auth"
)

// Actors. A token is the actor [TokenPrefix] with its name.
const (
	Operator    = "operator"
	System      = "system"
	Client      = "client" // without credentials
	TokenPrefix = "token:"
)

// Actor returns the actor of a request with the context ctx that needed credentials.
func Actor(ctx context.Context) string {
	if name := web.TokenName(ctx); name != "" {
		return TokenPrefix + name
	}
	return Operator
}

// Kinds lists every kind of event.
func Kinds() []string {
	return []string{
		ImageUploaded, ImageUploadFailed, ImageHashed, ImageHashFailed, ImageCheckFailed, ImageDiskMade, ImageDiskFailed,
		ImageFetched, ImageFetchFailed, ImageDescribed, ImageRenamed, ImageRenameFailed, ImageDeleted, ImageUncached, ImageMissed, EntryAdded, EntryAddFailed, EntryDeleted, ExportAdded, ExportDeleted,
		ManifestReplaced, TokenAdded, TokenDeleted, LoginSucceeded, LoginFailed, Logout,
	}
}

// SubjectKinds lists every kind of subject.
func SubjectKinds() []string { return []string{SubjectImage, SubjectCatalog, SubjectAuth} }

// Actors lists every actor that is no token.
func Actors() []string { return []string{Operator, System, Client} }

// failed lists the kinds that report a failure.
var failed = []string{ImageUploadFailed, ImageHashFailed, ImageCheckFailed, ImageDiskFailed, ImageFetchFailed, ImageRenameFailed, EntryAddFailed, LoginFailed}

// An Event is one event of the log.
type Event struct {
	ID          layout.EventID `json:"id"`
	TS          time.Time      `json:"ts"` // UTC, in microseconds
	Kind        string         `json:"kind"`
	SubjectKind string         `json:"subject_kind"`
	SubjectID   string         `json:"subject_id"`
	Actor       string         `json:"actor"`
	SourceIP    string         `json:"source_ip"` // empty if the system acted
	Summary     string         `json:"summary"`   // one line of text
	Details     map[string]any `json:"details"`
}

// Failed reports whether the event's kind is that of a failure.
func (e *Event) Failed() bool { return slices.Contains(failed, e.Kind) }

// A stored is the record of an event.
type stored struct {
	record.Format
	Event
}

// A Log adds and lists events. It is safe for concurrent use, and several processes may
// share its root. All exported fields are required.
type Log struct {
	Root store.Root // the catalog root
	Now  func() time.Time
	Log  *slog.Logger

	mu    sync.Mutex
	cache map[layout.EventID]Event // never stale; a zero Event is damaged or of a newer version
}

// cached is the number of events kept in memory.
const cached = 2000

// addTimeout bounds the time for which writing an event may delay its caller.
const addTimeout = 10 * time.Second

// Add writes an event. It sets ID, TS and, if that is nil, Details. Since the action of the
// event has already happened, Add ignores the cancellation of ctx, and only logs a failure
// to write: the event is lost then. It returns within about 10 seconds.
func (l *Log) Add(ctx context.Context, e Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), addTimeout)
	defer cancel()
	e.TS = l.Now().UTC().Truncate(time.Microsecond)
	e.ID = layout.NewEventID(e.TS, layout.Nonce())
	if e.Details == nil {
		e.Details = map[string]any{}
	}
	data, err := json.Marshal(stored{record.Format{Schema: record.Format{}.SchemaVersion()}, e})
	if err == nil {
		_, err = l.Root.CreateRecord(ctx, layout.EventKey(e.ID), data)
	}
	if err != nil {
		l.Log.Warn("event could not be written", "kind", e.Kind, "subject", e.SubjectID, "error", err)
	}
}

// ByOperator is Add for an action of the operator or of a token, by the request r. The kind of the
// subject is the first word of kind.
func (l *Log) ByOperator(r *http.Request, kind, subject, summary string, details map[string]any) {
	subjectKind, _, _ := strings.Cut(kind, ".")
	l.Add(r.Context(), Event{
		Kind: kind, SubjectKind: subjectKind, SubjectID: subject, Actor: Actor(r.Context()), SourceIP: web.ClientIP(r), Summary: summary, Details: details,
	})
}

// keepFor is the age at which events are removed.
const keepFor = 90 * 24 * time.Hour

// Sweep removes the events that are older than 90 days, even damaged ones, but not those of
// a newer version. The error is one of the store; a later Sweep removes the rest.
func (l *Log) Sweep(ctx context.Context) error {
	// Keys sort from the newest event to the oldest, so all after this key are older.
	after := layout.EventKey(layout.NewEventID(l.Now().Add(-keepFor), "ffffffffffffffff"))
	for info, err := range l.Root.List(ctx, layout.EventPrefix, after) {
		if err != nil {
			return fmt.Errorf("sweep events: %w", err)
		}
		if _, ok := layout.ParseEventKey(info.Key); !ok {
			continue
		}
		if err := record.Delete[stored](ctx, l.Root, info.Key); err != nil && !errors.Is(err, record.ErrNewer) {
			return fmt.Errorf("sweep events: %w", err)
		}
	}
	return nil
}

// A Filter selects events. An empty field selects all.
type Filter struct {
	Kind, SubjectKind, SubjectID, Actor, SourceIP string

	Subjects  []string // of any of these IDs; nil: of any at all
	OtherThan string   // a kind of subject: events of all other kinds
	Failed    *bool
	Before    layout.EventID // only events older than this one
	Limit     int            // the most events of one List; below 1, it counts as 1
}

// Match reports whether the filter selects e. It ignores Before and Limit.
func (f *Filter) Match(e *Event) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(f.Kind, e.Kind) && is(f.SubjectKind, e.SubjectKind) && is(f.SubjectID, e.SubjectID) &&
		is(f.Actor, e.Actor) && is(f.SourceIP, e.SourceIP) && (f.Subjects == nil || slices.Contains(f.Subjects, e.SubjectID)) && (f.OtherThan == "" || f.OtherThan != e.SubjectKind) && (f.Failed == nil || *f.Failed == e.Failed())
}

const (
	// batch is the most events that are read in parallel.
	batch = 32
	// maxRead bounds the events that one List reads: a filter that selects few of them
	// has more pages with fewer events.
	maxRead = 2000
)

// List returns the newest events that f selects, newest first, and the value of
// Filter.Before for the next page, which is empty if there is none. It reads about 2000
// events at most, so that a page may have fewer events than Limit, or none, although more
// follow. It leaves out events that are damaged or of a newer version, and logs them.
func (l *Log) List(ctx context.Context, f Filter) (events []Event, next layout.EventID, err error) {
	events = []Event{}
	limit := max(f.Limit, 1)
	var after store.Key
	if f.Before != "" {
		after = layout.EventKey(f.Before)
	}
	var ids []layout.EventID
	done, size := 0, min(batch, limit+1) // size is of the next batch
	flush := func() error {
		read, err := l.read(ctx, ids)
		ids = ids[:0]
		for _, e := range read {
			if f.Match(&e) {
				events = append(events, e)
			}
		}
		return err
	}
	for info, lerr := range l.Root.List(ctx, layout.EventPrefix, after) {
		if lerr != nil {
			return nil, "", fmt.Errorf("list events: %w", lerr)
		}
		id, ok := layout.ParseEventKey(info.Key)
		if !ok {
			continue
		}
		if ids = append(ids, id); len(ids) < size {
			continue
		}
		if err := flush(); err != nil {
			return nil, "", err
		}
		if len(events) > limit {
			break
		}
		if done += size; done >= maxRead {
			return events, id, nil
		}
		// As many as will do if the filter selects as large a share of them as so far.
		size = min(batch, 1+(limit+1-len(events))*done/max(len(events), 1))
	}
	if err := flush(); err != nil {
		return nil, "", err
	}
	if len(events) > limit {
		return events[:limit], events[limit-1].ID, nil
	}
	return events, "", nil
}

// read returns the events with these IDs, in their order. It leaves out those that are
// missing, damaged or of a newer version.
func (l *Log) read(ctx context.Context, ids []layout.EventID) ([]Event, error) {
	got := make([]*Event, len(ids))
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		if e, ok := l.recall(id); ok {
			got[i] = &e
			continue
		}
		wg.Go(func() {
			key := layout.EventKey(id)
			e, _, err := record.Read[stored](ctx, l.Root, key)
			if err == nil && e.ID != id {
				err = &record.DamagedError{Key: key, Err: errors.New("it is another event")}
			}
			if errors.Is(err, record.ErrDamaged) || errors.Is(err, record.ErrNewer) {
				l.Log.Warn("event left out", "key", key, "error", err, "remedy", record.Remedy(key, err))
				err, e = nil, stored{} // logged once
			}
			if errs[i] = err; err == nil {
				l.remember(id, e.Event)
				got[i] = &e.Event
			}
		})
	}
	wg.Wait()
	events := make([]Event, 0, len(ids))
	for i, e := range got {
		switch {
		case e != nil && e.ID != "":
			events = append(events, *e)
		case errs[i] != nil && !errors.Is(errs[i], store.ErrNotFound):
			return nil, fmt.Errorf("read events: %w", errs[i])
		}
	}
	return events, nil
}

func (l *Log) recall(id layout.EventID) (Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.cache[id]
	return e, ok
}

func (l *Log) remember(id layout.EventID, e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cache == nil {
		l.cache = make(map[layout.EventID]Event)
	}
	for old := range l.cache {
		if len(l.cache) < cached {
			break
		}
		delete(l.cache, old)
	}
	l.cache[id] = e
}
