package catalog

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
	"weak"

	"imageroot/shared/inventory"
	"imageroot/shared/web"
)

// maxCopies limits the bytes of all copies of a listing: the current one and older
// ones that are still being sent.
const maxCopies = 16 << 20

// copies holds encoded forms of a listing. All answers from one snapshot share one
// copy, even with different base URLs, so a client that does not read costs no
// memory.
type copies struct {
	mu   sync.Mutex
	of   weak.Pointer[inventory.Snapshot] // the snapshot of the last copy
	all  []*encoded                       // oldest first
	size int64
}

// An encoded listing.
type encoded struct {
	parts   [][]byte // separated by the base URL
	size    int64
	senders map[*http.ResponseController]struct{}
}

// send answers with the listing of s. encode returns it for a base URL.
func (c *copies) send(w http.ResponseWriter, r *http.Request, s *inventory.Snapshot, contentType string, encode func(base string) ([]byte, error)) error {
	rc := http.NewResponseController(w)
	e, err := c.take(s, rc, encode)
	if err != nil {
		return err
	}
	defer c.give(e, rc)
	base := []byte(web.BaseURL(r))
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.FormatInt(e.size+int64(len(e.parts)-1)*int64(len(base)), 10))
	for i, part := range e.parts {
		if i > 0 {
			if _, err := w.Write(base); err != nil {
				return nil // the client has left
			}
		}
		if _, err := w.Write(part); err != nil {
			return nil
		}
	}
	return nil
}

// take returns the copy for s. The caller must give it back.
func (c *copies) take(s *inventory.Snapshot, rc *http.ResponseController, encode func(base string) ([]byte, error)) (*encoded, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if of := weak.Make(s); c.of != of {
		mark := rand.Text()
		data, err := encode(mark)
		if err != nil {
			return nil, err
		}
		parts := bytes.Split(data, []byte(mark))
		c.add(&encoded{parts, int64(len(data) - (len(parts)-1)*len(mark)), map[*http.ResponseController]struct{}{}})
		c.of = of
	}
	e := c.all[len(c.all)-1]
	e.senders[rc] = struct{}{}
	return e, nil
}

// add appends e, unless it equals the last copy.
func (c *copies) add(e *encoded) {
	if n := len(c.all); n > 0 && slices.EqualFunc(c.all[n-1].parts, e.parts, bytes.Equal) {
		return
	}
	c.all = append(c.all, e)
	c.size += e.size
	c.drop()
	for c.size > maxCopies && len(c.all) > 1 {
		// Cut off the clients that are still reading the oldest copy.
		for rc := range c.all[0].senders {
			_ = rc.SetWriteDeadline(time.Unix(1, 0))
		}
		c.size -= c.all[0].size
		c.all = c.all[1:]
	}
}

// drop removes the old copies that are not being sent.
func (c *copies) drop() {
	last := c.all[len(c.all)-1]
	c.all = slices.DeleteFunc(c.all, func(e *encoded) bool {
		gone := e != last && len(e.senders) == 0
		if gone {
			c.size -= e.size
		}
		return gone
	})
}

func (c *copies) give(e *encoded, rc *http.ResponseController) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(e.senders, rc)
	c.drop()
}
