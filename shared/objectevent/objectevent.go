// Package objectevent reads the notifications that S3 servers send when an
// object was created or removed. They may come twice, late, out of order or
// never: an event says where to look, not what is there.
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
	Bucket, Key string // as they are, without any encoding
	Removed     bool
	// Sequencer orders the events of one key of one server, and no others;
	// empty if the server gives none.
	Sequencer string
	Time      time.Time // UTC; zero if the server did not say
}

// message is what S3, MinIO and those who imitate them send.
type message struct {
	Event   string // s3:TestEvent, which S3 sends when notifications are set up
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

// Parse reads one notification: S3's, or MinIO's from a webhook, a queue, or
// a line of its event stream. Events of other kinds (reads, tags, restores)
// are passed over, so there may be none, as in s3:TestEvent. Where some
// records cannot be read, the error names them and the events of the others
// are returned beside it.
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
			// Once and never again: a key may itself look encoded.
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

// kind reads an event name: "ObjectCreated:Put" of S3, "s3:ObjectCreated:Put"
// of MinIO. Expiry by a lifecycle rule removes the object like a DELETE.
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

// formEncoded reports whether keys from source are form-encoded ('+' is a
// space). S3's always are. MinIO encodes them for its targets, whose messages
// also have the plain key at the top, but not in its event stream, whose
// messages have not. Nobody else is known to encode.
func formEncoded(source, topKey string) bool {
	return source == "aws:s3" || source == "minio:s3" && topKey != ""
}

// parseTime reads the time of an event, which some servers send without a
// zone; it is UTC. What cannot be read is nobody's reason to miss an event.
func parseTime(s string) time.Time {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
