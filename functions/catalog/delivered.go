package catalog

import (
	"cmp"
	"fmt"
	"net/http"

	"imageroot/shared/served"
	"imageroot/shared/web"
)

// minTail is the size of a last range that counts as a delivery: a program that only looks
// at the end of a disk reads less.
const minTail = 64 << 10

// delivered notes that the client has got the bytes of c, or a link to them. A link is
// written at once, since a Lambda function has no other time for it.
func (f *Function) delivered(r *http.Request, c *object, link bool) {
	if r.Method != http.MethodGet {
		return
	}
	f.Served.Add(c.sha256, served.Delivery{To: web.ClientIP(r), What: cmp.Or(c.what, served.Image), Token: web.TokenName(r.Context()), Link: link})
	if link {
		f.Served.Flush(r.Context())
	}
}

// whole reports whether the client has got everything up to the end of the body.
func (w *verifiedWriter) whole() bool { return w.tail && w.left == 0 && w.err == nil }

// isEnd reports whether a Content-Range is one range up to the end.
func isEnd(field string) bool {
	var first, last, size int64
	n, _ := fmt.Sscanf(field, "bytes %d-%d/%d", &first, &last, &size)
	return n == 3 && last == size-1
}
