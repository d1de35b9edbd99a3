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
	"imageroot/shared/image"
	"imageroot/shared/layout"
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
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Answers that clients do not read take little memory, for any number of clients.
func TestUnreadAnswersTakeLittleMemory(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	put := func(name image.Name, data []byte) {
		t.Helper()
		if _, err := f.Images.Put(t.Context(), layout.ImageKey(name), bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	put("plain.img", make([]byte, 1<<20))
	var manifest strings.Builder
	manifest.WriteString("version = 1\n")
	for n := range 2000 {
		fmt.Fprintf(&manifest, "[[images]]\nname = \"image-%d.img\"\nsrc = \"https://images.example.org/a-directory/image-%d.img\"\n", n, n)
	}
	put(image.Name(layout.ManifestKey), []byte(manifest.String()))

	const clients, each = 400, 40 << 10
	for _, path := range []string{"/images", "/catalog.toml", "/images/plain.img", "/raw/plain.img"} {
		before := heap()
		letGo := make(chan struct{})
		var stuck, done sync.WaitGroup
		stuck.Add(clients)
		for range clients {
			done.Go(func() {
				h.ServeHTTP(&stuckClient{wrote: stuck.Done, letGo: letGo}, httptest.NewRequest(http.MethodGet, path, nil))
			})
		}
		stuck.Wait()
		if held := int64(heap()) - int64(before); held > clients*each {
			t.Errorf("%d unread answers to %s hold %d bytes", clients, path, held)
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
