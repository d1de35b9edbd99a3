package catalog

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/store/memstore"
)

// A stuckClient reads the head of an answer, and no byte of its body until it is
// released.
type stuckClient struct {
	httptest.ResponseRecorder
	stuck sync.Once
	wrote func()
	letGo chan struct{}
}

func (c *stuckClient) Write(p []byte) (int, error) {
	c.stuck.Do(c.wrote)
	<-c.letGo
	runtime.KeepAlive(p) // as in the kernel's write
	return 0, http.ErrHandlerTimeout
}

// heap returns the number of bytes in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // the first one leaves what is in a sync.Pool
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Answers that clients do not read take little memory, for any number of clients.
func TestUnreadAnswersTakeLittleMemory(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	if _, err := f.Images.Put(t.Context(), "plain.img", bytes.NewReader(make([]byte, 1<<20)), 1<<20); err != nil {
		t.Fatal(err)
	}
	putManifest(t, f.Images, 2000)
	const clients, each = 400, 40 << 10
	for _, request := range []string{
		"/images", "/images gzip", "/images zstd", "/catalog.toml", "/catalog.toml gzip", "/catalog.toml zstd", "/images/plain.img", "/raw/plain.img",
	} {
		path, coding, _ := strings.Cut(request, " ")
		before := heap()
		letGo := make(chan struct{})
		var stuck, done sync.WaitGroup
		stuck.Add(clients)
		for range clients {
			done.Go(func() {
				r := httptest.NewRequest(http.MethodGet, path, nil)
				r.Header.Set("Accept-Encoding", coding)
				h.ServeHTTP(&stuckClient{wrote: stuck.Done, letGo: letGo}, r)
			})
		}
		stuck.Wait()
		if held := int64(heap()) - int64(before); held > clients*each {
			t.Errorf("%d unread answers to %s hold %d bytes", clients, request, held)
		}
		close(letGo)
		done.Wait()
	}
}

// Each client gets the listing with the server's URL from its own request.
func TestListingsNameTheServerAsAskedFor(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	const name = "a b.img"
	if _, err := f.Images.Put(t.Context(), name, strings.NewReader(name), int64(len(name))); err != nil {
		t.Fatal(err)
	}
	learn(t, f, name, content.Record{})
	for _, path := range []string{"/images", "/catalog.toml"} {
		for _, host := range []string{"pi:8080", "images.example.org", "pi:8080"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = host
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			want := "http://" + host + "/images/" + string(sum([]byte(name))) + "/a%20b.img"
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
				t.Errorf("%s of %s: %d %v, without %s: %s", path, host, w.Code, w.Header(), want, w.Body)
			}
		}
	}
}
