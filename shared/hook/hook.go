// Package hook receives the object events of an S3 server whose webhook target is
// MinIO's: one POST a message, authorised by a bearer token (RFC 6750 section 2.1).
package hook

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"

	"imageroot/shared/objectevent"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// A Hook receives the events of one server, one message a request. The server keeps
// each message in its queue_dir and sends it again until the status is 2xx.
type Hook struct {
	// Token is the bearer token that the server sends. If it is empty, the route
	// answers 404.
	Token string
	// Event enqueues the inspection of the object. When it returns, the event must not
	// be lost even if this process ends: the hook acknowledges the message then. It
	// must be safe for concurrent use, as must Unreadable.
	Event func(objectevent.Event)
	// Unreadable receives the error of a message with events that cannot be read. The
	// hook still acknowledges the message, since a redelivery would fail too and block
	// the messages behind it. It is unknown which object has changed.
	Unreadable func(error)
}

// maxEvents is the maximum size of a message in bytes. Its token is checked before the
// body is read.
const maxEvents = 1 << 20

// Routes returns the route table.
func (h *Hook) Routes() []web.Route {
	return []web.Route{{Pattern: "POST /hooks/minio", Access: web.Always, MaxBody: maxEvents, Quiet: true, Handle: h.take}}
}

func (h *Hook) take(w http.ResponseWriter, r *http.Request) error {
	if h.Token == "" {
		return problem.New(problem.NotFound, "no events are taken here: start imageroot with IMAGEROOT_S3_ENDPOINT and IMAGEROOT_WEBHOOK_TOKEN, and give the S3 server's webhook target that token")
	}
	given, ok := web.Bearer(r)
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(h.Token))
	if !ok || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return problem.New(problem.Forbidden, "the token is not that of IMAGEROOT_WEBHOOK_TOKEN: give it to the S3 server's webhook target as auth_token")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if len(body) > 0 { // an empty message is the server's test of the connection
		if !json.Valid(body) {
			return problem.New(problem.Malformed, "this is no object event, which would be JSON")
		}
		events, err := objectevent.Parse(body)
		for _, e := range events {
			h.Event(e)
		}
		if err != nil {
			h.Unreadable(err)
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
