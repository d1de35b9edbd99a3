package fetch

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/store/memstore"
)

// An image of the manifest has the manifest's name, not that of its URL, and can be
// fetched by the URL in the manifest's spelling.
func TestFetchOfManifest(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/download?id=5", "/", "/x.tar.gz", "/x.img#part"} {
		o := newOrigin(t, good(imageA))
		src := strings.Replace(o.Server.URL, "http://", "HTTP://", 1) + path
		w := &world{t: t, root: &smallParts{Root: memstore.New(), parts: map[string][]byte{}}, src: src, ref: layout.RefOf(src)}
		images := memstore.New()
		manifest := fmt.Sprintf("version = 1\n[[images]]\nname = \"named.img\"\nsrc = %q\n", src)
		if _, err := images.Put(t.Context(), layout.ManifestKey, strings.NewReader(manifest), int64(len(manifest))); err != nil {
			t.Fatal(err)
		}
		f := w.process("page", w.root)
		f.Inventory = inventory.New(inventory.Config{Images: images, Catalog: w.root, Now: time.Now, Log: f.Log})
		r := httptest.NewRequest(http.MethodPost, "/catalog/downloads", strings.NewReader(url.Values{"src": {src}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		rec := httptest.NewRecorder()
		if w.routes(f).ServeHTTP(rec, r); rec.Code != http.StatusAccepted {
			t.Errorf("%s: %d %s", src, rec.Code, rec.Body)
			continue
		}
		if j := w.finish(f); j.Status != job.Completed || j.Name != "named.img" {
			t.Errorf("%s: the fetch of %s %s: %s", src, j.Name, j.Status, j.Error)
			continue
		}
		w.has(imageA)
		// The fetch did not write through this inventory.
		if err := f.Inventory.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := f.Inventory.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if row, ok := s.ByName("named.img"); !ok || !row.Cached {
			t.Errorf("%s: after the fetch the row is %+v", src, row)
		}
	}
}
