// Package objectevent parses the notifications that S3 servers send when an object was
// created or removed. A server may send one twice, late, out of order or never, so an
// event names the object to inspect, but does not describe its state.
package objectevent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// An Event says that an object was created, replaced or removed.
type Event struct {
	Bucket, Key string // decoded
	Removed     bool
	// Sequencer orders the events of one key of one server only. It is empty if the
	// server sends none.
	Sequencer string
	Time      time.Time // UTC; zero if the server sent none
}

// A message has the members used here of a notification of S3, MinIO or a compatible
// server (S3 User Guide, "Event message structure").
type message struct {
	Event   string // s3:TestEvent, which S3 sends when notifications are configured
	Key     string // MinIO's targets (webhook and queues): "BUCKET/KEY", plain
	Records []struct {
		EventSource string
		EventName   string
		EventTime   string
		S3          struct {
			Bucket struct{ Name string }
			Object struct{ Key, Sequencer string }
		}
	}
}

// Parse parses one notification: S3's, or MinIO's from a webhook, a queue, or a line of
// its event stream. It skips events of other kinds (reads, tags, restores), so it may
// return none, as for s3:TestEvent. If some records cannot be read, it returns the
// events of the others and an error that names the unreadable ones.
func Parse(body []byte) ([]Event, error) {
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("not an object event: %w", err)
	}
	if m.Records == nil && m.Event != "s3:TestEvent" {
		return nil, errors.New("not an object event: it has no Records")
	}
	var events []Event
	var errs []error
	for i, r := range m.Records {
		removed, ok := kind(r.EventName)
		if !ok {
			continue
		}
		key := r.S3.Object.Key
		if formEncoded(r.EventSource, m.Key) {
			// Decode once only: a decoded key may contain "%" or "+".
			k, err := url.QueryUnescape(key)
			if err != nil {
				errs = append(errs, fmt.Errorf("record %d: the key %.300q is not encoded as its source encodes keys", i, key))
				continue
			}
			key = k
		}
		if key == "" || r.S3.Bucket.Name == "" || !utf8.ValidString(key) {
			errs = append(errs, fmt.Errorf("record %d: the bucket %.100q or the key %.300q cannot be one", i, r.S3.Bucket.Name, key))
			continue
		}
		events = append(events, Event{r.S3.Bucket.Name, key, removed, r.S3.Object.Sequencer, parseTime(r.EventTime)})
	}
	return events, errors.Join(errs...)
}

// kind parses an event name: "ObjectCreated:Put" of S3, "s3:ObjectCreated:Put" of MinIO.
// Expiry by a lifecycle rule removes the object as a DELETE does.
func kind(name string) (removed, ok bool) {
	group, _, _ := strings.Cut(strings.TrimPrefix(name, "s3:"), ":")
	switch group {
	case "ObjectCreated":
		return false, true
	case "ObjectRemoved", "LifecycleExpiration":
		return true, true
	}
	return false, false
}

// formEncoded reports whether keys from source are form-encoded ('+' is a space). S3
// always encodes them. MinIO encodes them for its targets, whose messages also have the
// plain key at the top, but not in its event stream, whose messages lack it. No other
// server is known to encode them.
func formEncoded(source, topKey string) bool {
	return source == "aws:s3" || source == "minio:s3" && topKey != ""
}

// parseTime parses the time of an event. A time without a zone, which some servers
// send, is UTC. It returns zero for any other text, so that the event itself is not
// lost.
func parseTime(s string) time.Time {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
