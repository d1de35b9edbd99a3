package addbyurl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/entry"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/record"
	"imageroot/shared/record/recordtest"
	"imageroot/shared/source"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
	"imageroot/shared/web"
)

const imageURL = "https://images.example/x.img"

// A publisher is a Resolver that always returns found.
type publisher struct {
	found source.Resolved
	err   error
	asked []string
}

func (p *publisher) Resolve(_ context.Context, l source.Location, shaURL string) (*source.Resolved, error) {
	imageURL := l.URL
	p.asked = append(p.asked, imageURL+" "+shaURL)
	if p.err != nil {
		return nil, p.err
	}
	found := p.found
	found.URL, found.Name = imageURL, cmp.Or(l.Name, found.Name)
	return &found, nil
}

func (p *publisher) FindChecksums(ctx context.Context, imageURL string) (string, *source.Resolved, error) {
	r, err := p.Resolve(ctx, source.Location{URL: imageURL}, "")
	return "", r, err
}

// A world is a catalog root with the function over it.
type world struct {
	t        *testing.T
	root     *memstore.Root
	source   *publisher
	uncached []string
	handler  http.Handler
	inv      *inventory.Inventory
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, root: memstore.New(), source: &publisher{found: source.Resolved{
		Location: source.Location{Name: "x.img"}, Format: "img", Size: 1000, SHA256: layout.SHA256(strings.Repeat("a", 64)), Validators: source.Validators{ETag: `"1"`},
	}}}
	w.over(w.root)
	return w
}

func (w *world) over(root store.Root) {
	log := slog.New(slog.DiscardHandler)
	w.inv = inventory.New(inventory.Config{Images: memstore.New(), Catalog: w.root, Now: time.Now, Log: log})
	f := &Function{
		Catalog: w.inv.ObserveCatalog(root), Sources: w.source, Inventory: w.inv,
		Uncache: func(_ context.Context, sha layout.SHA256) error {
			w.uncached = append(w.uncached, string(sha))
			return nil
		},
		Activity: &activity.Log{Root: w.root, Now: time.Now, Log: log}, Now: time.Now, Log: log,
	}
	w.handler = web.Handler(web.Config{Auth: everybody{}, Metric: metric.New(), Log: log}, f.Routes())
}

type everybody struct{}

func (everybody) Authenticate(*http.Request) (web.Caller, error) {
	return web.Caller{Access: web.Admin}, nil
}

func (w *world) do(method, target, body string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, httptest.NewRequest(method, target, strings.NewReader(body)))
	return rec
}

func (w *world) must(status int, method, target, body string) *httptest.ResponseRecorder {
	w.t.Helper()
	rec := w.do(method, target, body)
	if rec.Code != status {
		w.t.Fatalf("%s %s %s: %d, want %d: %s", method, target, body, rec.Code, status, rec.Body)
	}
	return rec
}

func (w *world) add(status int, fields string) *httptest.ResponseRecorder {
	w.t.Helper()
	return w.must(status, http.MethodPost, "/catalog/entries", `{"image_url": "`+imageURL+`"`+fields+`}`)
}

// entry returns the entry, or nil.
func (w *world) entry() *entry.Entry {
	w.t.Helper()
	e, _, err := record.Read[entry.Entry](context.Background(), w.root, layout.EntryKey(layout.RefOf(imageURL)))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &e
}

func (w *world) told(kinds ...string) {
	w.t.Helper()
	log := &activity.Log{Root: w.root, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	events, _, err := log.List(context.Background(), activity.Filter{Limit: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	got := make([]string, len(events))
	for i, e := range events {
		got[i] = e.Kind
	}
	if fmt.Sprint(got) != fmt.Sprint(kinds) {
		w.t.Errorf("activity: %v, want %v", got, kinds)
	}
}

func TestEntries(t *testing.T) {
	w := newWorld(t)
	target := "/catalog/entries?src=" + url.QueryEscape(imageURL)
	w.must(404, http.MethodDelete, target, "")
	w.must(422, http.MethodDelete, "/catalog/entries", "")
	w.must(422, http.MethodPost, "/catalog/entries", `{}`)
	var v view
	if err := json.Unmarshal(w.add(201, `, "sha_url": "https://images.example/SUMS"`).Body.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v.Name != "x.img" || v.Src != imageURL || v.SizeBytes == nil || *v.SizeBytes != 1000 || v.Ref == nil || *v.Ref != strings.Repeat("a", 12) ||
		*v.SHAURL != "https://images.example/SUMS" || v.Warning != nil {
		t.Errorf("added: %+v", v)
	}
	if e := w.entry(); e == nil || e.Source.ETag != `"1"` || string(e.SHA256) != strings.Repeat("a", 64) {
		t.Errorf("kept: %+v", e)
	}
	w.add(409, "")
	// A refresh resolves the source again, with its checksum list, and deletes the
	// result of the earlier fetch.
	if _, err := w.root.CreateRecord(t.Context(), layout.FetchedKey(layout.RefOf(imageURL)), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	w.source.found.SHA256, w.source.found.Size = layout.SHA256(strings.Repeat("b", 64)), -1
	w.add(200, `, "refresh": true`)
	if e := w.entry(); string(e.SHA256) != strings.Repeat("b", 64) || e.SizeBytes != nil || e.SHAURL != "https://images.example/SUMS" {
		t.Errorf("refreshed: %+v", e)
	}
	if asked := w.source.asked[len(w.source.asked)-1]; asked != imageURL+" https://images.example/SUMS" {
		t.Errorf("asked for %s", asked)
	}
	if _, _, err := w.root.ReadRecord(t.Context(), layout.FetchedKey(layout.RefOf(imageURL))); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what was fetched before: %v", err)
	}
	if list := w.must(200, http.MethodGet, "/catalog/entries", "").Body.String(); !strings.Contains(list, imageURL) {
		t.Errorf("listed: %s", list)
	}
	// Deleting the entry deletes its bytes.
	sha := layout.SHA256(strings.Repeat("b", 64))
	if _, err := w.root.Put(t.Context(), layout.BlobKey(sha), strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	w.inv.TouchCatalog(layout.BlobKey(sha))
	w.must(204, http.MethodDelete, target, "")
	if w.entry() != nil || fmt.Sprint(w.uncached) != "["+string(sha)+"]" {
		t.Errorf("deleted: %+v, uncached %v", w.entry(), w.uncached)
	}
	w.must(404, http.MethodDelete, target, "")
	w.told(activity.EntryDeleted, activity.EntryAdded, activity.EntryAddFailed, activity.EntryAdded)
}

func TestAddFails(t *testing.T) {
	for status, err := range map[int]error{
		422: &source.Malformed{Reason: "not a URL of ours"},
		400: &source.Unresolvable{Reason: "images.example answered 404"},
		500: errors.New("the inside"),
	} {
		w := newWorld(t)
		w.source.err = err
		rec := w.add(status, "")
		if strings.Contains(rec.Body.String(), err.Error()) != (status != 500) || w.entry() != nil {
			t.Errorf("%v: %s", err, rec.Body)
		}
		w.told(activity.EntryAddFailed)
	}
	w := newWorld(t)
	for _, bad := range []string{`"x.img"`, `"file:///etc/x.img"`, `"https://images.example/download", "name": "x"`, `"https://images.example/download", "name": "a/x.img"`} {
		w.must(422, http.MethodPost, "/catalog/entries", `{"image_url": `+bad+`}`)
	}
	if len(w.source.asked) > 0 {
		t.Errorf("asked for %v", w.source.asked)
	}
}

// A name that the operator gives is the image's, also when the source is asked again.
func TestGivenName(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		status      int
		more, named string
	}{
		{201, `, "name": "lab disk.img"`, "lab disk.img"},
		{200, `, "refresh": true`, "lab disk.img"},
		{200, `, "refresh": true, "name": "other.img"`, "other.img"},
	} {
		rec := w.must(tt.status, http.MethodPost, "/catalog/entries", `{"image_url": "https://images.example/download?id=7"`+tt.more+`}`)
		if !strings.Contains(rec.Body.String(), `"name":"`+tt.named+`"`) {
			t.Errorf("%s: %s", tt.more, rec.Body)
		}
	}
}

// A digest that the operator gives is the image's, unless the publisher says another one.
func TestGivenDigest(t *testing.T) {
	given := strings.Repeat("c", 64)
	body := `{"image_url": "` + imageURL + `", "sha256": "` + strings.ToUpper(given) + `"}`
	w := newWorld(t)
	w.source.found.SHA256 = ""
	w.must(201, http.MethodPost, "/catalog/entries", body)
	if e := w.entry(); e == nil || string(e.SHA256) != given {
		t.Errorf("%+v", e)
	}
	w = newWorld(t)
	w.source.found.SHA256 = layout.SHA256(strings.Repeat("a", 64))
	if rec := w.must(400, http.MethodPost, "/catalog/entries", body); !strings.Contains(rec.Body.String(), strings.Repeat("a", 64)) || w.entry() != nil {
		t.Errorf("%s", rec.Body)
	}
	w.must(422, http.MethodPost, "/catalog/entries", `{"image_url": "`+imageURL+`", "sha256": "abc"}`)
}

// TestFaults fails each write once: the status agrees with the result, and a retry
// succeeds.
func TestFaults(t *testing.T) {
	target := "/catalog/entries?src=" + url.QueryEscape(imageURL)
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; n <= 4; n++ {
			w := newWorld(t)
			s := faultstore.New(w.root, faultstore.NthWrite(n, fault))
			w.over(s)
			rec := w.do(http.MethodPost, "/catalog/entries", `{"image_url": "`+imageURL+`"}`)
			if (rec.Code == 201) != (w.entry() != nil) {
				t.Errorf("write %d, %s: %d, and there is %+v", n, fault, rec.Code, w.entry())
			}
			w.source.found.SHA256 = layout.SHA256(strings.Repeat("b", 64))
			for range 2 {
				if rec = w.do(http.MethodPost, "/catalog/entries", `{"image_url": "`+imageURL+`", "refresh": true}`); rec.Code < 300 {
					break
				}
			}
			if e := w.entry(); rec.Code >= 300 || string(e.SHA256) != strings.Repeat("b", 64) {
				t.Errorf("write %d, %s: refreshed: %d %+v", n, fault, rec.Code, e)
			}
			for range 2 {
				if rec = w.do(http.MethodDelete, target, ""); rec.Code == 204 || rec.Code == 404 {
					break
				}
			}
			if rec.Code >= 500 || w.entry() != nil {
				t.Errorf("write %d, %s: deleted: %d, and there is %+v", n, fault, rec.Code, w.entry())
			}
		}
	}
}

// If two requests add one URL at once, one succeeds.
func TestRace(t *testing.T) {
	w := newWorld(t)
	w.source.asked = nil
	codes := make(chan int)
	const many = 8
	for range many {
		p := &publisher{found: w.source.found}
		other := &world{t: t, root: w.root, source: p}
		other.over(w.root)
		go func() { codes <- other.do(http.MethodPost, "/catalog/entries", `{"image_url": "`+imageURL+`"}`).Code }()
	}
	count := map[int]int{}
	for range many {
		count[<-codes]++
	}
	if count[201] != 1 || count[409] != many-1 {
		t.Errorf("answers: %v", count)
	}
}

// An entry with the record of a fetch by a newer version is neither deleted nor
// refreshed, and bytes that such a record may name are not deleted.
func TestNewerFetched(t *testing.T) {
	target, sha := "/catalog/entries?src="+url.QueryEscape(imageURL), layout.SHA256(strings.Repeat("a", 64))
	fill := func() *world {
		w := newWorld(t)
		w.add(201, "")
		if _, err := w.root.Put(t.Context(), layout.BlobKey(sha), strings.NewReader("x"), 1); err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := fill()
	w.source.found.SHA256 = layout.SHA256(strings.Repeat("b", 64))
	recordtest.Refused(t, w.root, layout.FetchedKey(layout.RefOf(imageURL)), func() {
		w.must(409, http.MethodDelete, target, "")
		w.add(409, `, "refresh": true`)
	})
	w = fill()
	recordtest.Refused(t, w.root, layout.EntryKey(layout.RefOf(imageURL)), func() {
		w.must(409, http.MethodDelete, target, "")
		w.add(409, `, "refresh": true`)
	})
	w = fill()
	other := `{"schema": 99}`
	if _, err := w.root.CreateRecord(t.Context(), layout.FetchedKey(layout.RefOf(imageURL+"2")), []byte(other)); err != nil {
		t.Fatal(err)
	}
	w.must(204, http.MethodDelete, target, "")
	if w.entry() != nil || w.uncached != nil {
		t.Errorf("deleted: %+v, uncached %v", w.entry(), w.uncached)
	}
}
