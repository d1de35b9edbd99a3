package problem

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/visible"
)

// RequestIDHeader is the field that carries a request's ID, both ways.
const RequestIDHeader = "X-Request-Id"

// DetailHeader is the field that has the detail of a problem, for clients that
// drop the body (curl -f), and for HEAD. It is ASCII: other characters are
// escaped as in Go. What is long is cut.
const DetailHeader = "Problem-Detail"

// MediaType is that of RFC 9457.
const MediaType = "application/problem+json"

// Prepare sets the fields of the answer that do not depend on how the problem
// is shown, takes away those that spoke of another answer, and returns the
// status.
func Prepare(w http.ResponseWriter, e *Error) int {
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Disposition", "Etag", "Last-Modified", "Repr-Digest", "Accept-Ranges", "Content-Location"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set(DetailHeader, headerText(e.Detail))
	wait := e.RetryAfter
	if wait <= 0 {
		wait = retryAfter[e.Code]
	}
	if wait > 0 {
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

// Write answers with the problem that err is ([From]), as
// application/problem+json. The instance is the request ID, which is expected
// in the header of the answer already.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	e := From(err)
	status := Prepare(w, e)
	w.Header().Set("Content-Type", MediaType)
	body := e.body(status, w.Header().Get(RequestIDHeader))
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // nobody is left to tell
	}
}

func (e *Error) body(status int, instance string) []byte {
	members := make(map[string]any, len(e.Extra)+6)
	for k, v := range e.Extra {
		members[k] = v
	}
	members["type"] = "about:blank"
	members["title"] = http.StatusText(status)
	members["status"] = status
	members["detail"] = visible.Text(e.Detail)
	members["code"] = e.Code
	if instance != "" {
		members["instance"] = instance
	}
	body, err := json.Marshal(members)
	if err != nil { // something in Extra that is not JSON
		return New(e.Code, e.Detail).body(status, instance)
	}
	return append(body, '\n')
}
