package catalog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// listings are the paths of the listings.
var listings = []string{"/images", "/catalog.toml"}

// putManifest puts a manifest of n images.
func putManifest(t *testing.T, root store.Root, n int) {
	t.Helper()
	var b bytes.Buffer
	err := manifest.Encode(&b, func(yield func(manifest.Image) bool) {
		for i := range n {
			name := image.Name(fmt.Sprintf("image-%d.img", i))
			if !yield(manifest.Image{Name: name, Src: "https://images.example.org/" + string(name)}) {
				return
			}
		}
	})
	if err == nil {
		_, err = root.Put(t.Context(), layout.ManifestKey, &b, int64(b.Len()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// putHashed puts an image with a digest record.
func putHashed(t *testing.T, f *Function, name image.Name) {
	t.Helper()
	if _, err := f.Images.Put(t.Context(), layout.ImageKey(name), strings.NewReader(string(name)), int64(len(name))); err != nil {
		t.Fatal(err)
	}
	learn(t, f, name, content.Record{})
}

// ask sends a request with pairs of header fields.
func ask(h http.Handler, method, path string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for pair := range slices.Chunk(fields, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// plain decodes an answer. It accepts one gzip member only, as curl does.
func plain(t *testing.T, w *httptest.ResponseRecorder) []byte {
	t.Helper()
	var from io.Reader = w.Body
	var err error
	switch coding := w.Header().Get("Content-Encoding"); coding {
	case "gzip":
		var z *gzip.Reader
		if z, err = gzip.NewReader(w.Body); err == nil {
			z.Multistream(false)
			from = z
		}
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(struct{ io.Reader }{w.Body}); err == nil { // which takes no bytes from a bytes.Buffer
			defer z.Close()
			from = z
		}
	case "":
		if w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
			t.Errorf("%d bytes with Content-Length %s", w.Body.Len(), w.Header().Get("Content-Length"))
		}
	default:
		t.Fatalf("Content-Encoding %q", coding)
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(from)
	if err != nil || w.Body.Len() > 0 {
		t.Errorf("%v, with %d bytes after the end", err, w.Body.Len())
	}
	return data
}

func TestListingsInCodings(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	const images = 1000 // several chunks
	putManifest(t, f.Images, images)
	putHashed(t, f, "a.img")
	putHashed(t, f, "z.img")
	for _, path := range listings {
		whole := plain(t, ask(h, http.MethodGet, path))
		if path == "/images" {
			var list []listed
			if err := json.Unmarshal(whole, &list); err != nil || len(list) != images+2 {
				t.Errorf("%d images, %v", len(list), err)
			}
		} else if m, err := manifest.Parse(whole); err != nil || len(m.Images) != images+2 {
			t.Errorf("%v: %.300s", err, whole)
		}
		if n := bytes.Count(whole, []byte("http://example.com/images/")); n != 2 {
			t.Errorf("%s has the URL of this server %d times: %.500s", path, n, whole)
		}
		tags := map[string]bool{}
		for accept, coding := range map[string]string{"gzip": "gzip", "gzip, deflate, br, zstd": "zstd", "zstd;q=0, gzip;q=0, *": ""} {
			get, head := ask(h, http.MethodGet, path, "Accept-Encoding", accept), ask(h, http.MethodHead, path, "Accept-Encoding", accept)
			for _, w := range []*httptest.ResponseRecorder{get, head} {
				if w.Code != http.StatusOK || w.Header().Get("Content-Encoding") != coding || w.Header().Get("Vary") != "Accept-Encoding" ||
					w.Header().Get("Cache-Control") != "no-cache" {
					t.Errorf("%s in %q: %d %v", path, accept, w.Code, w.Header())
				}
			}
			if head.Body.Len() > 0 || head.Header().Get("ETag") != get.Header().Get("ETag") || head.Header().Get("Content-Length") != get.Header().Get("Content-Length") {
				t.Errorf("GET %v, HEAD %v", get.Header(), head.Header())
			}
			if coding != "" && get.Body.Len() > len(whole)/3 {
				t.Errorf("%d bytes in %s, of %d", get.Body.Len(), coding, len(whole))
			}
			tags[get.Header().Get("ETag")] = true
			if data := plain(t, get); !bytes.Equal(data, whole) {
				t.Errorf("%s in %s: %d bytes, want %d", path, coding, len(data), len(whole))
			}
		}
		if len(tags) != 3 {
			t.Errorf("%s: the tags of three codings are %v", path, tags)
		}
	}
}

// An empty catalog is a list too.
func TestEmptyListings(t *testing.T) {
	_, h := newCatalog(t, memstore.New())
	for path, want := range map[string]string{"/images": "[]\n", "/catalog.toml": "version = 1\n"} {
		for _, accept := range []string{"", "gzip", "zstd"} {
			if data := plain(t, ask(h, http.MethodGet, path, "Accept-Encoding", accept)); string(data) != want {
				t.Errorf("%s in %q: %q", path, accept, data)
			}
		}
	}
}

// A client that has the listing gets 304 with the fields of RFC 9110 §15.4.5.
func TestConditionalListings(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	putHashed(t, f, "a.img")
	for _, path := range listings {
		for _, coding := range []string{"", "gzip", "zstd"} {
			fields := []string{"Accept-Encoding", coding}
			tag := ask(h, http.MethodGet, path, fields...).Header().Get("ETag")
			opaque := strings.TrimPrefix(tag, "W/")
			for _, tt := range []struct {
				field, value string
				status       int
			}{
				{"If-None-Match", tag, 304},
				{"If-None-Match", opaque, 304},
				{"If-None-Match", "W/" + opaque, 304},
				{"If-None-Match", `"a,b", W/"c" ,` + tag, 304},
				{"If-None-Match", "*", 304},
				{"If-None-Match", `"other"`, 200},
				{"If-None-Match", strings.Trim(opaque, `"`), 200},
				{"If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT", 200}, // there is no Last-Modified
				{"If-Match", `"other"`, 412},
				{"If-Match", "*", 200},
				{"Range", "bytes=0-1", 200},
			} {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					w := ask(h, method, path, append(fields, tt.field, tt.value)...)
					if w.Code != tt.status {
						t.Errorf("%s %s in %q with %s: %s is %d, want %d", method, path, coding, tt.field, tt.value, w.Code, tt.status)
					}
					if w.Code == 304 && (w.Body.Len() > 0 || w.Header().Get("ETag") != tag || w.Header().Get("Vary") != "Accept-Encoding" ||
						w.Header().Get("Cache-Control") != "no-cache" || w.Header().Get("Content-Type") != "" || w.Header().Get("Content-Encoding") != "") {
						t.Errorf("304 with %v and %d bytes", w.Header(), w.Body.Len())
					}
				}
			}
		}
	}
}

// The tag changes with the listing and with nothing else: every process has the same.
func TestTagsOfListings(t *testing.T) {
	images := memstore.New()
	one, h := newCatalog(t, images)
	putHashed(t, one, "a.img")
	other, again := newCatalog(t, images)
	learn(t, other, "a.img", content.Record{})
	for _, path := range listings {
		tag := func(h http.Handler, fields ...string) string {
			return ask(h, http.MethodGet, path, fields...).Header().Get("ETag")
		}
		first := tag(h)
		if got := tag(again); got != first || first == "" {
			t.Errorf("%s: the tags of two processes are %s and %s", path, first, got)
		}
		if got := ask(h, http.MethodGet, "http://pi:8080"+path, "Host", "pi:8080").Header().Get("ETag"); got == first {
			t.Errorf("%s: two URLs of the server have the tag %s", path, got)
		}
		name := image.Name("b" + path[1:2] + ".img")
		putHashed(t, one, name)
		if got := tag(h); got == first {
			t.Errorf("%s: the tag is the same with another image", path)
		}
		if err := one.Images.Delete(t.Context(), layout.ImageKey(name)); err != nil {
			t.Fatal(err)
		}
		if got := tag(h); got != first {
			t.Errorf("%s: the listing is as before, and the tag is %s, not %s", path, got, first)
		}
	}
}
