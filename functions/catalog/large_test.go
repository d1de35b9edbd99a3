package catalog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// links returns the keys of objects as their links.
type links struct {
	store.Presigner
	header store.GetHeader // of the last link
}

func (l *links) PresignGet(_ context.Context, key store.Key, h store.GetHeader) (string, error) {
	l.header = h
	return "https://store.example.org/" + string(key), nil
}

// sentTo returns the object that an answer redirects to.
func sentTo(t *testing.T, f *Function, status int, h http.Header) (store.Info, []byte) {
	t.Helper()
	key, ok := strings.CutPrefix(h.Get("Location"), "https://store.example.org/"+layout.ListingPrefix)
	if status != http.StatusTemporaryRedirect || !ok || h.Get("Cache-Control") != "no-store" || h.Get("ETag") != "" || h.Get("Content-Encoding") != "" {
		t.Fatalf("%d %v", status, h)
	}
	from, info, err := f.Catalog.Get(t.Context(), layout.ListingKey(layout.SHA256(key)), store.All, "")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	data, err := io.ReadAll(from)
	if err != nil {
		t.Fatal(err)
	}
	return info, data
}

func TestLargeListings(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	to := &links{}
	f.CatalogLinks = to
	putManifest(t, f.Images, 1000)
	putHashed(t, f, "a.img")
	for _, path := range listings {
		for _, coding := range []string{"", "gzip", "zstd"} {
			f.MaxAnswer = 0
			direct := ask(h, http.MethodGet, path, "Accept-Encoding", coding)
			tag, body := direct.Header().Get("ETag"), bytes.Clone(direct.Body.Bytes())
			if direct.Code != http.StatusOK || direct.Header().Get("Content-Encoding") != coding {
				t.Fatalf("%d %v", direct.Code, direct.Header())
			}
			f.MaxAnswer = 1000
			away := ask(h, http.MethodGet, path, "Accept-Encoding", coding)
			first, data := sentTo(t, f, away.Code, away.Header())
			if !bytes.Equal(data, body) {
				t.Errorf("%s in %q: the object has %d bytes, the answer %d", path, coding, len(data), len(body))
			}
			if to.header.Encoding != coding || to.header.Type != direct.Header().Get("Content-Type") || to.header.Disposition != "" {
				t.Errorf("%s in %q: %+v", path, coding, to.header)
			}
			// What needs no body needs no object.
			if w := ask(h, http.MethodGet, path, "Accept-Encoding", coding, "If-None-Match", tag); w.Code != http.StatusNotModified {
				t.Errorf("%s in %q, not modified: %d", path, coding, w.Code)
			}
			if w := ask(h, http.MethodHead, path, "Accept-Encoding", coding); w.Code != http.StatusOK || w.Header().Get("ETag") != tag {
				t.Errorf("HEAD %s in %q: %d %v", path, coding, w.Code, w.Header())
			}
			f.MaxAnswer = 1 << 20
			if w := ask(h, http.MethodGet, path, "Accept-Encoding", coding); w.Code != http.StatusOK {
				t.Errorf("%s in %q, below the limit: %d", path, coding, w.Code)
			}

			// Another request is sent to the same object, and after hours to a new one, which
			// must outlive its link.
			f.MaxAnswer = 1000
			for _, later := range []time.Duration{0, listingAge + time.Minute} {
				if err := f.Catalog.Delete(t.Context(), first.Key); err != nil {
					t.Fatal(err)
				}
				if _, err := f.Catalog.Put(t.Context(), first.Key, strings.NewReader("earlier"), 7); err != nil {
					t.Fatal(err)
				}
				f.Now = func() time.Time { return time.Now().Add(later) }
				w := ask(h, http.MethodGet, path, "Accept-Encoding", coding)
				if _, data := sentTo(t, f, w.Code, w.Header()); string(data) == "earlier" != (later == 0) {
					t.Errorf("%s in %q, after %v: %.20q", path, coding, later, data)
				}
			}
			f.Now = time.Now
		}
	}
}

// A full store is an error, and no link to an object that does not exist.
func TestLargeListingThatCannotBeStored(t *testing.T) {
	f, h := newCatalog(t, memstore.New())
	f.CatalogLinks, f.MaxAnswer = &links{}, 1000
	putManifest(t, f.Images, 100)
	f.Catalog = full{f.Catalog}
	if w := ask(h, http.MethodGet, "/images"); w.Code < 500 || w.Header().Get("Location") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

type full struct{ store.Root }

func (full) Put(context.Context, store.Key, io.Reader, int64) (store.Version, error) {
	return store.Version{}, errors.New("no space left")
}
