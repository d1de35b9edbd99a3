package problem

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/visible"
)

// RequestIDHeader is the header field with a request's ID, in requests and answers.
const RequestIDHeader = "X-Request-Id"

// DetailHeader is the header field with the detail of a problem, for clients that drop
// the body (curl -f) and for HEAD. It is ASCII, with escapes as in Go, and cut if it is
// long.
const DetailHeader = "Problem-Detail"

// MediaType is the media type of problems (RFC 9457 §3).
const MediaType = "application/problem+json"

// Prepare sets the header fields of a problem that do not depend on its format,
// removes those of another answer, and returns the status.
func Prepare(w http.ResponseWriter, e *Error) int {
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Disposition", "Etag", "Last-Modified", "Repr-Digest", "Accept-Ranges", "Content-Location", "Link"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set(DetailHeader, headerText(e.Detail))
	if wait := cmp.Or(max(e.RetryAfter, 0), retryAfter[e.Code]); wait > 0 {
		seconds := int64((wait + time.Second - 1) / time.Second)
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	return e.Code.Status()
}

func headerText(s string) string {
	const most = 1000
	quoted := strconv.QuoteToASCII(visible.Text(s))
	quoted = strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
	if len(quoted) > most {
		quoted = quoted[:most] + "..."
	}
	return quoted
}

// Write answers with the problem of err (see [From]) as application/problem+json. The
// member instance is the request ID from the header of the answer.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	e := From(err)
	status := Prepare(w, e)
	w.Header().Set("Content-Type", MediaType)
	body := e.body(status, w.Header().Get(RequestIDHeader))
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may have disconnected
	}
}

func (e *Error) body(status int, instance string) []byte {
	body, _ := json.Marshal(struct { // strings and a number cannot fail to encode
		Type     string `json:"type"`
		Title    string `json:"title"`
		Status   int    `json:"status"`
		Detail   string `json:"detail"`
		Code     Code   `json:"code"`
		Instance string `json:"instance,omitempty"`
	}{"about:blank", http.StatusText(status), status, visible.Text(e.Detail), e.Code, instance})
	return append(body, '\n')
}
