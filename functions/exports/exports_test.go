package exports

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/export"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

const imageURL = "https://images.example/x.img"

// A world is a catalog with an entry that is not fetched, and what the function asked for.
type world struct {
	*Function
	t       *testing.T
	images  store.Root
	fetched chan string // the IP addresses for which a fetch was queued
}

func newWorld(t *testing.T) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	images, roots := memstore.New(), memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: roots, Now: time.Now, Log: log})
	w := &world{t: t, images: inv.ObserveImages(images), fetched: make(chan string, 100)}
	catalog := inv.ObserveCatalog(roots)
	w.Function = New(Config{
		Catalog: catalog, Inventory: inv, Port: 10809, Now: time.Now, Log: log, Activity: &activity.Log{Root: roots, Now: time.Now, Log: log},
		Add: func(*http.Request, string) (layout.Ref, error) { return layout.RefOf(imageURL), nil },
		Fetch: func(_ context.Context, _ *inventory.Row, ref layout.Ref, ip string) (job.Job, error) {
			if ref != layout.RefOf(imageURL) {
				t.Errorf("a fetch of %s", ref)
			}
			w.fetched <- ip
			return job.Job{}, nil
		},
	})
	_, _, err := record.Change(t.Context(), catalog, layout.EntryKey(layout.RefOf(imageURL)), func(e *entry.Entry, _ bool) error {
		e.URL, e.Name, e.Format, e.AddedAt = imageURL, "x.img", "img", time.Now()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) export(x export.Record) {
	w.t.Helper()
	_, _, err := record.Change(w.t.Context(), w.Catalog, layout.ExportKey(x.Name), func(r *export.Record, _ bool) error {
		x.Meta = r.Meta
		*r = x
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// An image in the image root, hashed and inspected.
func (w *world) image(name image.Name, sha256 layout.SHA256, kind content.Kind) {
	w.t.Helper()
	v, err := w.images.Put(w.t.Context(), layout.ImageKey(name), strings.NewReader("x"), 1)
	if err != nil {
		w.t.Fatal(err)
	}
	_, _, err = record.Change(w.t.Context(), w.Catalog, layout.DigestKey(name), func(r *digest.Record, _ bool) error {
		r.Name, r.Version, r.SHA256, r.HashedAt, r.By = name, v, sha256, time.Now(), digest.ByUpload
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	_, _, err = record.Change(w.t.Context(), w.Catalog, layout.ContentKey(sha256), func(r *content.Record, _ bool) error {
		r.SHA256, r.SizeBytes, r.Content, r.SniffedAt = sha256, 1, content.Content{Kind: kind}, time.Now()
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// A process that was killed after it had added an export has not queued the fetch: another
// one does.
func TestRunQueuesWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	w.export(export.Record{Name: "x", SrcURL: imageURL, Ref: layout.RefOf(imageURL), ReadOnly: true})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	if ip := <-w.fetched; ip != "" {
		t.Errorf("the system acts from %s", ip)
	}
	cancel()
	<-done
}

func TestAddQueuesTheFetchForTheOperator(t *testing.T) {
	w := newWorld(t)
	r := httptest.NewRequest(http.MethodPost, Prefix+"exports", strings.NewReader(`{"name": "x", "src_url": "`+imageURL+`"}`))
	a := httptest.NewRecorder()
	if err := w.add(a, r); err != nil || a.Code != 200 || !strings.Contains(a.Body.String(), `"status":"queued"`) {
		t.Fatalf("%v %s", err, a.Body)
	}
	if ip := <-w.fetched; ip != "192.0.2.1" {
		t.Errorf("a fetch for %q", ip)
	}
}

// The names of exports, and of images that no export has.
func TestNames(t *testing.T) {
	w := newWorld(t)
	a, b := layout.SHA256(strings.Repeat("a", 64)), layout.SHA256(strings.Repeat("b", 64))
	w.image("a.img", a, content.MBR)
	w.image("b.img.gz", b, content.Gzip)
	w.export(export.Record{Name: "lab", SrcURL: "u", SHA256: a})
	w.export(export.Record{Name: "b.img", SrcURL: "u", SHA256: a, ReadOnly: true})
	w.export(export.Record{Name: "packed", SrcURL: "u", SHA256: b})
	w.export(export.Record{Name: "waits", SrcURL: "u", Ref: layout.RefOf(imageURL)})
	w.export(export.Record{Name: layout.ExportName(b[:20]), SrcURL: "u", SHA256: a})
	images := func(yield func(image.Name, error) bool) {
		_ = yield("a.img", nil) && yield("b.img", nil) && yield("waits", nil)
	}
	var names []string
	for name, err := range w.Names(t.Context(), images) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if want := []string{"b.img", string(b[:20]), "lab", "a.img"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	for name, want := range map[string]string{
		"lab": "found aa false", "b.img": "found aa true", "a.img": "not", "cow/lab": "not", "": "not", string(b[:20]): "not",
		"packed": "refused conflict", "waits": "refused unavailable",
	} {
		sha, readOnly, ok, err := w.Find(t.Context(), name)
		got := "not"
		switch {
		case err != nil:
			got = "refused " + string(problem.From(err).Code)
		case ok:
			got = fmt.Sprintf("found %.2s %v", sha, readOnly)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	needed, err := w.Needed(t.Context())
	if err != nil || len(needed) != 2 || !needed[a] || !needed[b] {
		t.Errorf("%v %v", needed, err)
	}
}
