package pages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/functions/catalog"
	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/cloud"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/record"
	"imageroot/shared/served"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/s3store"
	"imageroot/shared/web"
)

const testPassword = "a password for tests"

// newPages returns the pages over a fresh store, behind the real routing.
func newPages(t testing.TB) (*Pages, http.Handler) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	images, records := memstore.New(), memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: records, Now: time.Now, Log: log})
	operator, err := auth.Open(t.Context(), auth.Config{Records: records, Password: testPassword, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	p := &Pages{
		Function: &catalog.Function{
			Images: inv.ObserveImages(images), Catalog: inv.ObserveCatalog(records), Inventory: inv, Auth: operator,
			Activity: &activity.Log{Root: records, Now: time.Now, Log: log}, Served: &served.Log{Root: records, Now: time.Now, Log: log}, Metric: metric.New(), Version: "test",
			Ready: func(context.Context) error { return nil }, Now: time.Now, Log: log,
		},
		Location: "s3://images/", S3Endpoint: ":9000",
	}
	return p, p.site()
}

// site serves the pages and other routes.
func (p *Pages) site(others ...web.Route) http.Handler {
	return web.Handler(web.Config{
		Auth: p.Auth, PublicRead: true, Pages: p.Places(), ErrorPage: p.ErrorPage, Metric: p.Metric, Log: p.Log,
	}, p.Function.Routes(), p.Routes(), others)
}

// A client is a browser with one cookie.
type client struct {
	t       testing.TB
	handler http.Handler
	cookies []*http.Cookie
}

func (c *client) do(r *http.Request) *httptest.ResponseRecorder {
	c.t.Helper()
	if r.Header.Get("Accept") == "" {
		r.Header.Set("Accept", "text/html")
	}
	for _, cookie := range c.cookies {
		r.AddCookie(cookie)
	}
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	return w
}

func (c *client) get(target string) *httptest.ResponseRecorder {
	c.t.Helper()
	return c.do(httptest.NewRequest(http.MethodGet, target, nil))
}

func (c *client) post(target string, form url.Values) *httptest.ResponseRecorder {
	c.t.Helper()
	r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.do(r)
}

func (c *client) login() {
	c.t.Helper()
	w := c.post("/ui/login", url.Values{"password": {testPassword}})
	if w.Code != http.StatusSeeOther {
		c.t.Fatalf("log in: %d %s", w.Code, w.Body)
	}
	c.cookies = w.Result().Cookies()
}

func TestLoginPage(t *testing.T) {
	p, h := newPages(t)
	c := &client{t: t, handler: h}
	if w := c.get("/ui/images?q=a+b"); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/ui/login?next=%2Fui%2Fimages%3Fq%3Da%2Bb" {
		t.Errorf("without a session: %d to %q", w.Code, w.Header().Get("Location"))
	}
	w := c.post("/ui/login", url.Values{"password": {"wrong"}, "next": {"/ui/events"}})
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `value="/ui/events"`) || len(w.Result().Cookies()) != 0 {
		t.Errorf("a wrong password: %d %v\n%s", w.Code, w.Header(), w.Body)
	}
	r := httptest.NewRequest(http.MethodPost, "/ui/login", strings.NewReader(`{"password": "wrong"}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	if w := c.do(r); w.Code != http.StatusUnauthorized || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("a wrong password of a program: %d %v", w.Code, w.Header())
	}
	for next, want := range map[string]string{
		"/ui/events?kind=image.hashed": "/ui/events?kind=image.hashed",
		"":                             "/ui/images",
		"//evil.example/ui/images":     "/ui/images",
		"https://evil.example/ui/":     "/ui/images",
		"/\\evil.example/ui/images":    "/ui/images",
		"/ui/images\\@evil.example":    "/ui/images",
		"javascript:alert(1)":          "/ui/images",
		"/ui/login":                    "/ui/images",
		"/ui/images/live":              "/ui/images",
		"/ui/../../evil":               "/ui/images",
		"/ui/images\r\nX: y":           "/ui/images",
	} {
		w := c.post("/ui/login", url.Values{"password": {testPassword}, "next": {next}})
		if w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Errorf("next %q: %d to %q, want %q", next, w.Code, w.Header().Get("Location"), want)
		}
	}
	c.login()
	if w := c.get("/ui/login"); w.Code != http.StatusSeeOther {
		t.Errorf("the log-in page with a session: %d", w.Code)
	}
	if w := c.post("/ui/logout", nil); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/ui/login" {
		t.Errorf("log out: %d to %q", w.Code, w.Header().Get("Location"))
	}
	if w := c.get("/ui/images"); w.Code != http.StatusSeeOther {
		t.Errorf("the cookie still opens the page: %d", w.Code)
	}
	events, _, err := p.Activity.List(t.Context(), activity.Filter{SubjectKind: activity.SubjectAuth, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, e := range events {
		kinds[e.Kind]++
		if e.SourceIP != "192.0.2.1" || e.Actor != activity.Operator {
			t.Errorf("%+v", e)
		}
	}
	if kinds[activity.LoginFailed] != 1 || // of two failures within a minute
		kinds[activity.Logout] != 1 || kinds[activity.LoginSucceeded] < 2 {
		t.Errorf("events: %v", kinds)
	}
	// Log-in attempts are limited, and the page says so.
	last := http.StatusUnauthorized
	for range 20 {
		w := c.post("/ui/login", url.Values{"password": {"wrong"}})
		if last = w.Code; last == http.StatusTooManyRequests {
			if w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "try again in") {
				t.Errorf("%v\n%s", w.Header(), w.Body)
			}
			break
		}
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("20 wrong passwords: %d", last)
	}
}

func TestPagePolicy(t *testing.T) {
	_, h := newPages(t)
	c := &client{t: t, handler: h}
	c.login()
	const want = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	for _, target := range []string{"/ui/images", "/ui/events", "/ui/images/live", "/images/none.img", "/ui/none"} {
		w := c.get(target)
		if got := w.Header().Get("Content-Security-Policy"); got != want {
			t.Errorf("%s: %q", target, got)
		}
		if w.Header().Get("Cache-Control") != "no-store" || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
			t.Errorf("%s: %v", target, w.Header())
		}
	}
	// On AWS the parts of uploads go to the image bucket.
	aws, err := s3store.Open(t.Context(), s3store.Config{Region: "eu-west-1", AccessKey: "KEY", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := (&Pages{Function: &catalog.Function{ImageLinks: aws.Root("lab-images", "x/")}}).policy(t.Context())
	if err != nil || !strings.Contains(got, "connect-src 'self' https://lab-images.s3.eu-west-1.amazonaws.com;") {
		t.Errorf("on AWS: %q, %v", got, err)
	}
	for _, target := range []string{"/static/none.js", "/static/"} {
		if w := c.get(target); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
}

var versionOf = regexp.MustCompile(`id="([a-z]+)" data-version="([0-9a-f]+)"`)

// Parts that have not changed are not sent again.
func TestLive(t *testing.T) {
	p, h := newPages(t)
	c := &client{t: t, handler: h}
	c.login()
	versions := url.Values{"q": {""}}
	for _, m := range versionOf.FindAllStringSubmatch(c.get("/ui/images").Body.String(), -1) {
		versions.Set("v-"+m[1], m[2])
	}
	parts := map[string]bool{"catalog": true, "running": false, "ended": false, "recent": false, "others": false}
	for id := range parts {
		if !versions.Has("v-" + id) {
			t.Fatalf("the page has no %s: %v", id, versions)
		}
	}
	if w := c.get("/ui/images/live?" + versions.Encode()); w.Code != http.StatusNoContent {
		t.Fatalf("nothing new: %d\n%s", w.Code, w.Body)
	}
	const name = `"'<b>&.img`
	if _, err := p.Images.Put(t.Context(), name, strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	w := c.get("/ui/images/live?" + versions.Encode())
	body := w.Body.String()
	if w.Code != http.StatusOK || strings.Contains(body, "<b>") || !strings.Contains(body, `Hash &#34;&#39;&lt;b&gt;&amp;.img`) {
		t.Errorf("%d\n%s", w.Code, body)
	}
	for id, sent := range parts {
		if got := strings.Contains(body, `<div id="`+id+`" data-version="`); got != sent {
			t.Errorf("%s is sent: %v", id, got)
		}
	}
	// Without a session, htmx is redirected to the log-in page.
	r := httptest.NewRequest(http.MethodGet, "/ui/images/live", nil)
	r.Header.Set("HX-Request", "true")
	r.Header.Set("HX-Current-URL", "http://"+r.Host+"/ui/images?q=a&sort=-name")
	if w := (&client{t: t, handler: h}).do(r); w.Code != http.StatusUnauthorized || w.Header().Get("HX-Redirect") != "/ui/login?next=%2Fui%2Fimages%3Fq%3Da%26sort%3D-name" {
		t.Errorf("without a session: %d %v", w.Code, w.Header())
	}
}

// A refused form is shown again with its values.
func TestAddFormAgain(t *testing.T) {
	p, _ := newPages(t)
	refuse := web.Route{Pattern: "POST /catalog/entries", Access: web.Operator, Handle: func(w http.ResponseWriter, r *http.Request) error {
		var in struct{}
		if err := web.Decode(w, r, &in); err != nil {
			return err
		}
		return fmt.Errorf("add: %w", context.DeadlineExceeded)
	}}
	c := &client{t: t, handler: p.site(refuse)}
	form := url.Values{"image_url": {`https://example.org/"><b>.img`}, "sha_url": {"https://example.org/SUMS"}, "refresh": {"true"}}
	if w := c.post("/catalog/entries", form); w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "SUMS") || !strings.Contains(w.Body.String(), `href="/ui/login?next=%2fui%2fimages"`) {
		t.Errorf("without a session: %d\n%s", w.Code, w.Body)
	}
	c.login()
	w := c.post("/catalog/entries", form)
	body := w.Body.String()
	for _, want := range []string{`value="https://example.org/&#34;&gt;&lt;b&gt;.img"`, `value="https://example.org/SUMS"`, " checked", "took too long"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	if w.Code != http.StatusServiceUnavailable || strings.Contains(body, "<b>") {
		t.Errorf("%d\n%s", w.Code, body)
	}
}

// The functions on AWS have the same paths of pages.
func TestPlaces(t *testing.T) {
	if p := (&Pages{}).Places(); p != cloud.Pages {
		t.Errorf("the pages are at %+v, not at %+v", p, cloud.Pages)
	}
}

// A row has a link to the disk in its image if /raw serves it, with other bytes
// than those of the image.
func TestRawDiskLinks(t *testing.T) {
	p, h := newPages(t)
	gzip := content.Content{Kind: content.Gzip, What: "a gzip file"}
	for name, rec := range map[string]content.Record{
		"disk.img.gz": {Content: gzip}, "plain.img": {Content: content.Content{Kind: content.MBR}},
		"tar.img.gz": {Content: gzip, Check: &content.Check{Verdict: content.Good, NoDisk: "it is a tar archive"}},
	} {
		version, err := p.Images.Put(t.Context(), store.Key(name), strings.NewReader(name), int64(len(name)))
		if err != nil {
			t.Fatal(err)
		}
		hash := sha256.Sum256([]byte(name))
		rec.SHA256, rec.SizeBytes = layout.SHA256(hex.EncodeToString(hash[:])), int64(len(name))
		d := digest.Record{Name: image.Name(name), Version: version, SHA256: rec.SHA256, By: digest.ByHash}
		_, err = record.Swap(t.Context(), p.Catalog, layout.DigestKey(image.Name(name)), &d, "")
		_, err2 := record.Swap(t.Context(), p.Catalog, layout.ContentKey(rec.SHA256), &rec, "")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
	}
	c := &client{t: t, handler: h}
	c.login()
	for name, want := range map[string]int{"disk.img.gz": 1, "plain.img": 0, "tar.img.gz": 0} {
		page := c.get("/ui/images/" + name).Body.String()
		if strings.Count(page, `href="/raw/`) != want || want > 0 && !strings.Contains(page, `/disk.img"`) {
			t.Errorf("%s: links to disks: %q", name, regexp.MustCompile(`href="/raw/[^"]*"`).FindAllString(page, -1))
		}
	}
}

func TestConfirm(t *testing.T) {
	p, h := newPages(t)
	c := &client{t: t, handler: h}
	c.login()
	if _, err := p.Images.Put(t.Context(), "a b+%.img", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	w := c.get("/ui/images/confirm?" + url.Values{"what": {"image"}, "key": {"a b+%.img"}}.Encode())
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `action="/images/a%20b&#43;%25.img?_method=DELETE&amp;_back=`) {
		t.Errorf("%d\n%s", w.Code, w.Body)
	}
	if _, err := p.Images.Put(t.Context(), "\u00fc.img", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"\u00fc.img": "Replace \u00fc.img?", "u\u0308.img": "looks the same"} {
		if w := c.get("/ui/images/confirm?" + url.Values{"what": {"replace"}, "key": {key}}.Encode()); !strings.Contains(w.Body.String(), want) {
			t.Errorf("an upload of %+q is not asked about with %q:\n%s", key, want, w.Body)
		}
	}
	// There is no question about a name that the upload would refuse.
	if _, err := p.Images.Put(t.Context(), "disk.tar.gz", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	if w := c.get("/ui/images/confirm?what=replace&key=disk.tar.gz"); w.Code != http.StatusSeeOther {
		t.Errorf("a tarball is asked about: %d", w.Code)
	}
	row := &inventory.Row{Names: []image.Name{"first.img", "second.img", "third.img"}}
	if got := facts(row, "second.img"); len(got) != 1 || got[0].Value != "first.img, third.img" {
		t.Errorf("the other names of second.img are %v", got)
	}
	for _, what := range []string{"image", "replace", "entry", "cache"} {
		target := "/ui/images/confirm?" + url.Values{"what": {what}, "key": {"gone.img"}}.Encode()
		if w := c.get(target); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/ui/images" {
			t.Errorf("%s of what is gone: %d", what, w.Code)
		}
		r := httptest.NewRequest(http.MethodGet, target, nil)
		r.Header.Set("HX-Request", "true")
		if w := c.do(r); w.Code != http.StatusNoContent {
			t.Errorf("%s of what is gone, by script: %d", what, w.Code)
		}
	}
	if w := c.get("/ui/images/confirm?what=everything&key=x"); w.Code != http.StatusBadRequest {
		t.Errorf("a question about nothing: %d", w.Code)
	}
}

// TestSorts tests that the menu of orders, the columns and the API agree: an order
// that the menu lacks is lost with the next search.
func TestSorts(t *testing.T) {
	menu := map[string]bool{}
	for _, o := range sorts("") {
		menu[o.Value] = true
	}
	for _, by := range inventory.Sorts() {
		for _, order := range []string{by, "-" + by} {
			if !menu[order] {
				t.Errorf("shared/inventory sorts by %q, and the menu of the page (sorts in rows.go) does not offer it", order)
			}
			delete(menu, order)
		}
	}
	for order := range menu {
		t.Errorf("the menu of the page (sorts in rows.go) offers %q, and shared/inventory does not sort by it", order)
	}
	for _, c := range columns(nil, "") {
		if c.ID != "" && !slices.Contains(inventory.Sorts(), c.ID) {
			t.Errorf("the column %q sorts by %q, and shared/inventory does not", c.Text, c.ID)
		}
	}
}

func TestEventsPageRefusesBadFilters(t *testing.T) {
	_, h := newPages(t)
	c := &client{t: t, handler: h}
	c.login()
	w := c.get("/ui/events?kind=nonsense&subject_id=%22%3E%3Cb%3E")
	if body := w.Body.String(); w.Code != http.StatusBadRequest || !strings.Contains(body, "kind must be one of") || strings.Contains(body, "<b>") {
		t.Errorf("%d\n%s", w.Code, w.Body)
	}
	if w := c.get("/ui/events?kind=&actor=&failed=&before=&limit="); w.Code != http.StatusOK {
		t.Errorf("an empty form: %d", w.Code)
	}
	if w := c.get("/ui/images?sort=nonsense"); w.Code != http.StatusBadRequest {
		t.Errorf("an unknown sort: %d", w.Code)
	}
}

func TestJobViews(t *testing.T) {
	now := time.Now()
	var jobs []job.Job
	for i, n := range []int{2, 3000, 700} {
		for k := range n {
			j := job.Job{Name: image.Name(fmt.Sprintf("%d-%d.img", i, k)), Status: []job.Status{job.Running, job.Queued, job.Failed}[i]}
			if i == 2 {
				j.FinishedAt = &now
			}
			jobs = append(jobs, j)
		}
	}
	listing := func(jobs []job.Job) inventory.Listing {
		l := inventory.Listing{Jobs: jobs, Counts: map[job.Status]int{}}
		for _, j := range jobs {
			l.Counts[j.Status]++
		}
		return l
	}
	running := runningView(listing(jobs), now)
	if len(running.List) != pageRunning || running.More != "and 2,996 more" || running.List[2].Status != "queued" {
		t.Errorf("%d, %q", len(running.List), running.More)
	}
	for i := range jobs {
		if jobs[i].Status == job.Failed && i%2 == 0 {
			jobs[i].Status = job.Completed
		}
	}
	v := endedView(listing(jobs), jobs[3003:3004], now)
	if v.Counts != "350 completed" || v.Failures != 350 || len(v.Failed) != 1 || v.MoreFailed != "and 349 more" || len(v.List) != 350 {
		t.Errorf("%q, %d, %d, %q, %d", v.Counts, v.Failures, len(v.Failed), v.MoreFailed, len(v.List))
	}
	if j := v.Failed[0]; j.Active || j.Retry == nil || j.Cancel == "" {
		t.Errorf("a failed job is neither retried nor dismissed: %+v", j)
	}
	if v := runningView(listing(jobs[:1]), now); len(v.List) != 1 || v.More != "" {
		t.Errorf("%+v", v)
	}
}

func TestTexts(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B|0 bytes", 1: "1 B|1 byte", 1023: "1023 B|1,023 bytes", 1024: "1.0 KiB|1,024 bytes",
		1<<20 - 1: "1.0 MiB|1,048,575 bytes", 1 << 30: "1.0 GiB|1,073,741,824 bytes", 5_368_709_120: "5.0 GiB|5,368,709,120 bytes",
		1<<63 - 1: "8.0 EiB|9,223,372,036,854,775,807 bytes",
	} {
		if s := sizeOf(n); s.Text+"|"+s.Exact != want {
			t.Errorf("%d is %q, want %q", n, s.Text+"|"+s.Exact, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Hour: "in the future", -time.Second: "just now", 59 * time.Second: "just now", time.Minute: "1 minute ago",
		59 * time.Minute: "59 minutes ago", time.Hour: "1 hour ago", 47 * time.Hour: "47 hours ago", 48 * time.Hour: "2 days ago",
	} {
		if got := relative(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestEndpointFor(t *testing.T) {
	for _, c := range []struct{ endpoint, host, want string }{
		{"", "pi.local:8080", ""},
		{":9000", "pi.local:8080", "http://pi.local:9000"},
		{":9000", "pi.local", "http://pi.local:9000"},
		{":9000", "[fe80::1]:8080", "http://[fe80::1]:9000"},
		{"0.0.0.0:9000", "192.0.2.7:8080", "http://192.0.2.7:9000"},
		{"http://[::]:9000/", "192.0.2.7", "http://192.0.2.7:9000"},
		{"127.0.0.1:9000", "localhost:8080", "http://127.0.0.1:9000"},
		{"https://minio.example", "pi.local:8080", "https://minio.example"},
		{"https://", "pi.local", "https://pi.local:443"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = c.host
		if got := endpointFor(c.endpoint, r); got != c.want {
			t.Errorf("%q for %q is %q, want %q", c.endpoint, c.host, got, c.want)
		}
	}
}

// BenchmarkImages measures the requests of a browser with 10,000 images: the page,
// and its refresh every two seconds.
func BenchmarkImages(b *testing.B) {
	p, h := newPages(b)
	for i := range 10_000 {
		if _, err := p.Images.Put(b.Context(), store.Key(fmt.Sprintf("image-%05d.img", i)), strings.NewReader("x"), 1); err != nil {
			b.Fatal(err)
		}
	}
	c := &client{t: b, handler: h}
	c.login()
	page := c.get("/ui/images")
	versions := url.Values{}
	for _, m := range versionOf.FindAllStringSubmatch(page.Body.String(), -1) {
		versions.Set("v-"+m[1], m[2])
	}
	for name, target := range map[string]string{
		"page": "/ui/images", "search": "/ui/images?q=99&sort=-size", "live": "/ui/images/live?" + versions.Encode(),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if w := c.get(target); w.Code >= 300 {
					b.Fatal(w.Code)
				}
			}
		})
	}
}

// Every kind of event has words for people.
func TestKindWords(t *testing.T) {
	for _, kind := range activity.Kinds() {
		if words[kind] == "" {
			t.Errorf("%s has no words", kind)
		}
	}
}

// A page that was opened on the server itself has commands for other machines.
func TestBaseURL(t *testing.T) {
	p := &Pages{Address: "192.0.2.7:8080"}
	for host, want := range map[string]string{
		"localhost:8080": "http://192.0.2.7:8080", "127.0.0.1:8080": "http://192.0.2.7:8080", "[::1]:8080": "http://192.0.2.7:8080",
		"pi:8080": "http://pi:8080", "10.0.0.1": "http://10.0.0.1",
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		if got := p.baseURL(r); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}
