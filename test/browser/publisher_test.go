package browser

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// A publisher serves empty disks on loopback. A download gets half of one, and
// the rest when the test releases it.
type publisher struct {
	*httptest.Server

	mu   sync.Mutex
	gate map[string]chan struct{} // by name; closed: the rest is sent
	stop chan struct{}
}

const publishedBytes = 24 << 20

func publish(t *testing.T) *publisher {
	t.Helper()
	p := &publisher{gate: map[string]chan struct{}{}, stop: make(chan struct{})}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() {
		close(p.stop)
		p.Close()
	})
	return p
}

// imageOf returns the content of a published image: a disk with one partition.
// Each name has different content.
func imageOf(name string) []byte {
	data := make([]byte, publishedBytes)
	copy(data, name)
	copy(data[446:], "\x00\x00\x00\x00\x83\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00")
	copy(data[510:], "\x55\xaa")
	return data
}

func digestOf(name string) string {
	sum := sha256.Sum256(imageOf(name))
	return hex.EncodeToString(sum[:])
}

func (p *publisher) held(name string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gate[name] == nil {
		p.gate[name] = make(chan struct{})
	}
	return p.gate[name]
}

// release sends the rest of an image.
func (p *publisher) release(name string) { close(p.held(name)) }

func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case strings.HasPrefix(name, "missing"):
		http.NotFound(w, r)
		return
	case name == "SHA256SUMS":
		for i := range 8 {
			n := fmt.Sprintf("image-%d.img", i)
			fmt.Fprintf(w, "%s *%s\n", digestOf(n), n)
		}
		return
	}
	body := io.ReadSeeker(bytes.NewReader(imageOf(name)))
	if r.Method == http.MethodGet && r.Header.Get("Range") != "bytes=0-0" {
		body = &halting{body, publishedBytes / 2, func() {
			select {
			case <-p.held(name):
			case <-r.Context().Done():
			case <-p.stop:
			}
		}}
	}
	http.ServeContent(w, r, name, time.Unix(1_700_000_000, 0), body)
}

// A halting reader calls halt before it reads beyond an offset.
type halting struct {
	io.ReadSeeker
	place int64
	halt  func()
}

func (h *halting) Read(b []byte) (int, error) {
	at, err := h.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	if at >= h.place {
		h.halt()
		return h.ReadSeeker.Read(b)
	}
	return h.ReadSeeker.Read(b[:min(int64(len(b)), h.place-at)])
}
