// Package hook takes the object events that MinIO's webhook target sends.
package hook

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"imageroot/shared/objectevent"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// A Hook is where a server sends its events, one a request. It keeps each in
// its queue_dir and sends it again until the answer is good.
type Hook struct {
	// Token is what the server sends; empty takes no events.
	Token string
	// Event must have seen to it that the object is looked at, even if this
	// process dies, when it returns: the answer is good then.
	Event func(objectevent.Event)
	// Unreadable is told why an event says nothing. It will not be better the
	// next time, and must not keep those behind it waiting; but something has
	// happened to some object.
	Unreadable func(error)
}

// maxEvents is the most bytes of a message, which is read once its token is
// known to be right.
const maxEvents = 1 << 20

// Routes is the route table.
func (h *Hook) Routes() []web.Route {
	return []web.Route{{Pattern: "POST /hooks/minio", Access: web.Always, MaxBody: maxEvents, Quiet: true, Handle: h.take}}
}

func (h *Hook) take(w http.ResponseWriter, r *http.Request) error {
	if h.Token == "" {
		return problem.New(problem.NotFound, "no events are taken here: start imageroot with IMAGEROOT_S3_ENDPOINT and IMAGEROOT_WEBHOOK_TOKEN, and give the S3 server's webhook target that token")
	}
	if !bears(r, h.Token) {
		return problem.New(problem.Forbidden, "the token is not that of IMAGEROOT_WEBHOOK_TOKEN: give it to the S3 server's webhook target as auth_token")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if len(body) > 0 { // else it asks whether somebody is here
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

// bears reports whether a request has that token.
func bears(r *http.Request, token string) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	a, b := sha256.Sum256([]byte(strings.TrimSpace(given))), sha256.Sum256([]byte(token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}
