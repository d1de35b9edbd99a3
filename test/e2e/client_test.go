package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// within is the longest wait for a condition. It is far more than an idle
// machine needs, so that a busy one passes.
const within = 3 * time.Minute

type (
	source struct {
		Kind     string `json:"kind"`
		Location string `json:"location"`
	}
	row struct {
		Ref       string   `json:"ref"`
		SHA256    string   `json:"sha256"`
		Names     []string `json:"names"`
		Format    string   `json:"format"`
		SizeBytes *int64   `json:"size_bytes"`
		Sources   []source `json:"sources"`
		Cached    bool     `json:"cached"`
		HashState string   `json:"hash_state"`
		Content   string   `json:"content"`
		Virtual   *int64   `json:"virtual_size_bytes"`
		RawSize   *int64   `json:"raw_size_bytes"`
		RawSHA256 string   `json:"raw_sha256"`
		Warnings  []string `json:"warnings"`
	}
	catalogPage struct {
		Images []row   `json:"images"`
		Total  int     `json:"total"`
		Next   *string `json:"next"`
	}
	listed struct {
		Name      string  `json:"name"`
		Format    string  `json:"format"`
		SizeBytes *int64  `json:"size_bytes"`
		URL       string  `json:"url"`
		Ref       *string `json:"ref"`
		Cached    bool    `json:"cached"`
		RawURL    *string `json:"raw_url"`
	}
	uploaded struct {
		Name      string `json:"name"`
		SizeBytes int64  `json:"size_bytes"`
		SHA256    string `json:"sha256"`
		Format    string `json:"format"`
	}
	job struct {
		Name            string     `json:"name"`
		Ref             string     `json:"ref"`
		Stage           string     `json:"stage"`
		Status          string     `json:"status"`
		BytesTotal      *int64     `json:"bytes_total"`
		BytesHashed     int64      `json:"bytes_hashed"`
		BytesDownloaded int64      `json:"bytes_downloaded"`
		SHA256          string     `json:"sha256"`
		Src             string     `json:"src"`
		StartedAt       *time.Time `json:"started_at"`
		FinishedAt      *time.Time `json:"finished_at"`
		Error           string     `json:"error"`
		Attempt         int        `json:"attempt"`
	}
	jobList struct {
		Hashes      []job `json:"hashes"`
		Downloads   []job `json:"downloads"`
		MaxParallel int   `json:"max_parallel"`
	}
	event struct {
		ID          string          `json:"id"`
		TS          time.Time       `json:"ts"`
		Kind        string          `json:"kind"`
		SubjectKind string          `json:"subject_kind"`
		SubjectID   string          `json:"subject_id"`
		Actor       string          `json:"actor"`
		SourceIP    string          `json:"source_ip"`
		Summary     string          `json:"summary"`
		Details     json.RawMessage `json:"details"`
	}
	problem struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}
)

// The kinds of job, as their routes name them.
const (
	hashes    = "hashes"
	downloads = "downloads"
)

// A Reply is an answer, read to its end.
type Reply struct {
	Status int
	Header http.Header
	Body   []byte
	what   string
}

func (r *Reply) String() string { return fmt.Sprintf("%s: %d: %.400q", r.what, r.Status, r.Body) }

// Must fails the test unless the status is one of want.
func (r *Reply) Must(t testing.TB, want ...int) *Reply {
	t.Helper()
	if !slices.Contains(want, r.Status) {
		t.Fatalf("%v, want status %v", r, want)
	}
	return r
}

// JSON decodes the body into v.
func (r *Reply) JSON(t testing.TB, v any) {
	t.Helper()
	if mt, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); mt != "application/json" {
		t.Errorf("%s: Content-Type is %q, want application/json", r.what, r.Header.Get("Content-Type"))
	}
	if err := json.Unmarshal(r.Body, v); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
}

// Problem checks an error answer: one of the wanted statuses, problem+json, and
// a detail that has every one of words (in any case) and no internal text.
func (r *Reply) Problem(t testing.TB, want []int, words ...string) problem {
	t.Helper()
	r.Must(t, want...)
	if mt, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); mt != "application/problem+json" {
		t.Errorf("%v: Content-Type is %q, want application/problem+json", r, r.Header.Get("Content-Type"))
	}
	var p problem
	if err := json.Unmarshal(r.Body, &p); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	if p.Detail == "" {
		t.Errorf("%v: no detail", r)
	}
	if p.Status != 0 && p.Status != r.Status {
		t.Errorf("%v: status in the body is %d", r, p.Status)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(p.Detail), strings.ToLower(w)) {
			t.Errorf("%s: detail %q does not mention %q", r.what, p.Detail, w)
		}
	}
	for _, inside := range []string{"goroutine", ".go:", "api error", "operation error", "StatusCode"} {
		if strings.Contains(p.Detail, inside) {
			t.Errorf("%s: detail %q shows the inside (%q)", r.what, p.Detail, inside)
		}
	}
	return p
}

var httpClient = &http.Client{
	Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 32, ExpectContinueTimeout: time.Minute},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// A mod changes a request before it is sent.
type mod func(*http.Request)

func header(k, v string) mod { return func(r *http.Request) { r.Header.Set(k, v) } }

func anonymous(r *http.Request) { r.Header.Del("Authorization") }

// send sends a request with the operator's token and returns the answer with an
// unread body. path is escaped already.
func (s *Server) send(ctx context.Context, method, path string, body io.Reader, mods ...mod) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.Pages+path, body)
	if err != nil {
		return nil, err
	}
	if s.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.Token)
	}
	for _, m := range mods {
		m(req)
	}
	return httpClient.Do(req)
}

// Do sends a request with the operator's token and reads the answer.
func (s *Server) Do(t testing.TB, method, path string, body io.Reader, mods ...mod) *Reply {
	t.Helper()
	r, err := s.try(method, path, body, mods...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (s *Server) try(method, path string, body io.Reader, mods ...mod) (*Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	res, err := s.send(ctx, method, path, body, mods...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return &Reply{res.StatusCode, res.Header, b, method + " " + path}, nil
}

// DoJSON sends v as JSON.
func (s *Server) DoJSON(t testing.TB, method, path string, v any, mods ...mod) *Reply {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return s.Do(t, method, path, bytes.NewReader(b), append([]mod{header("Content-Type", "application/json")}, mods...)...)
}

func (s *Server) get(t testing.TB, path string, mods ...mod) *Reply {
	t.Helper()
	return s.Do(t, http.MethodGet, path, nil, mods...)
}

// imageRoute is the route of an image by name or SHA-256.
func imageRoute(key string) string { return "/images/" + url.PathEscape(key) }

// Put uploads an image and checks the answer.
func (s *Server) Put(t testing.TB, name string, content []byte, mods ...mod) uploaded {
	t.Helper()
	var u uploaded
	s.Do(t, http.MethodPut, imageRoute(name), bytes.NewReader(content), mods...).Must(t, http.StatusCreated).JSON(t, &u)
	if u.Name != name || u.SizeBytes != int64(len(content)) || u.SHA256 != sum(content) {
		t.Fatalf("PUT %q: answer %+v, want size %d and SHA-256 %s", name, u, len(content), sum(content))
	}
	return u
}

// Rows returns the whole catalog, page by page.
func (s *Server) Rows(t testing.TB) []row {
	t.Helper()
	var all []row
	q := url.Values{"limit": {"500"}}
	for range 100 {
		var p catalogPage
		s.get(t, "/catalog?"+q.Encode()).Must(t, http.StatusOK).JSON(t, &p)
		all = append(all, p.Images...)
		if p.Next == nil {
			return all
		}
		q.Set("cursor", *p.Next)
	}
	t.Fatal("GET /catalog: the cursor never ends")
	return nil
}

// Row returns the row that has name, if any.
func (s *Server) Row(t testing.TB, name string) (row, bool) {
	t.Helper()
	for _, r := range s.Rows(t) {
		if slices.Contains(r.Names, name) {
			return r, true
		}
	}
	return row{}, false
}

// WaitRow waits until ok accepts the row of name. A nil ok accepts any row.
func (s *Server) WaitRow(t testing.TB, name, what string, ok func(row) bool) row {
	t.Helper()
	var got row
	eventually(t, within, fmt.Sprintf("catalog row of %q: %s", name, what), func() error {
		r, found := s.Row(t, name)
		if !found {
			return errors.New("there is no such row")
		}
		if got = r; ok != nil && !ok(r) {
			return fmt.Errorf("it is %+v", r)
		}
		return nil
	})
	return got
}

// WaitHashed waits until name is hashed with the digest sha256.
func (s *Server) WaitHashed(t testing.TB, name, sha256 string) row {
	t.Helper()
	return s.WaitRow(t, name, "hashed as "+sha256, func(r row) bool {
		return r.SHA256 == sha256 && r.HashState == "hashed"
	})
}

// WaitGone waits until no row has name.
func (s *Server) WaitGone(t testing.TB, name string) {
	t.Helper()
	eventually(t, within, fmt.Sprintf("%q gone from the catalog", name), func() error {
		if r, found := s.Row(t, name); found {
			return fmt.Errorf("still there: %+v", r)
		}
		return nil
	})
}

// Listing returns GET /images, as a flash client without credentials sees it.
func (s *Server) Listing(t testing.TB) []listed {
	t.Helper()
	var l []listed
	s.get(t, "/images", anonymous).Must(t, http.StatusOK).JSON(t, &l)
	return l
}

// Listed returns the row of name in GET /images.
func (s *Server) Listed(t testing.TB, name string) (listed, bool) {
	t.Helper()
	for _, l := range s.Listing(t) {
		if l.Name == name {
			return l, true
		}
	}
	return listed{}, false
}

// Jobs returns a job list; kind is hashes or downloads.
func (s *Server) Jobs(t testing.TB, kind string) ([]job, int) {
	t.Helper()
	var l jobList
	s.get(t, "/catalog/"+kind).Must(t, http.StatusOK).JSON(t, &l)
	return append(l.Hashes, l.Downloads...), l.MaxParallel
}

// Job returns the hash or fetch job of name, without its check.
func (s *Server) Job(t testing.TB, kind, name string) (job, bool) {
	t.Helper()
	jobs, _ := s.Jobs(t, kind)
	for _, j := range jobs {
		if j.Name == name && j.Stage == "" {
			return j, true
		}
	}
	return job{}, false
}

// WaitJob waits until the job of name has the status, and fails at once if it
// ends with another one.
func (s *Server) WaitJob(t testing.TB, kind, name, status string) job {
	t.Helper()
	return s.WaitJobUntil(t, kind, name, status, func(j job) bool { return j.Status == status })
}

// WaitJobUntil waits until ok accepts the job of name, and fails at once if the
// job ends before.
func (s *Server) WaitJobUntil(t testing.TB, kind, name, what string, ok func(job) bool) job {
	t.Helper()
	var got job
	eventually(t, within, fmt.Sprintf("%s job of %q: %s", kind, name, what), func() error {
		j, found := s.Job(t, kind, name)
		if !found {
			return errors.New("there is no such job")
		}
		if got = j; ok(j) {
			return nil
		}
		if ended(j) {
			t.Fatalf("%s job of %q: want %s, ended as %+v", kind, name, what, j)
		}
		return fmt.Errorf("it is %+v", j)
	})
	return got
}

func ended(j job) bool {
	return j.Status == "completed" || j.Status == "failed" || j.Status == "cancelled"
}

// AddEntry adds an image by URL.
func (s *Server) AddEntry(t testing.TB, imageURL, shaURL string) *Reply {
	t.Helper()
	v := map[string]any{"image_url": imageURL}
	if shaURL != "" {
		v["sha_url"] = shaURL
	}
	return s.DoJSON(t, http.MethodPost, "/catalog/entries", v)
}

// Enqueue requests a job: by "name", "ref" or "src".
func (s *Server) Enqueue(t testing.TB, kind, by, value string) *Reply {
	t.Helper()
	return s.DoJSON(t, http.MethodPost, "/catalog/"+kind, map[string]string{by: value})
}

// Cancel cancels the job of name.
func (s *Server) Cancel(t testing.TB, kind, name string) *Reply {
	t.Helper()
	return s.Do(t, http.MethodDelete, "/catalog/"+kind+"/"+url.PathEscape(name), nil)
}

// Fetch requests a fetch of name and waits until its job has completed.
func (s *Server) Fetch(t testing.TB, name string) job {
	t.Helper()
	s.Enqueue(t, downloads, "name", name).Must(t, http.StatusAccepted)
	return s.WaitJob(t, downloads, name, "completed")
}

// Events returns the activity that matches a query.
func (s *Server) Events(t testing.TB, query url.Values) []event {
	t.Helper()
	var l struct {
		Events []event `json:"events"`
	}
	s.get(t, "/events?"+query.Encode()).Must(t, http.StatusOK).JSON(t, &l)
	return l.Events
}

// WaitEvent waits for an event of a kind about a subject.
func (s *Server) WaitEvent(t testing.TB, kind, subject string) event {
	t.Helper()
	var got event
	eventually(t, within, fmt.Sprintf("event %s of %q", kind, subject), func() error {
		for _, e := range s.Events(t, url.Values{"kind": {kind}}) {
			if e.SubjectID == subject {
				got = e
				return nil
			}
		}
		return errors.New("there is no such event")
	})
	return got
}

// Login logs in as a browser's form does and returns the session cookie.
func (s *Server) Login(t testing.TB, pass string) *http.Cookie {
	t.Helper()
	r := s.postLogin(t, pass).Must(t, http.StatusSeeOther)
	res := http.Response{Header: r.Header}
	for _, c := range res.Cookies() {
		if c.Value != "" {
			return c
		}
	}
	t.Fatalf("log-in set no cookie: %v", r.Header)
	return nil
}

func (s *Server) postLogin(t testing.TB, pass string, mods ...mod) *Reply {
	t.Helper()
	form := url.Values{"password": {pass}}.Encode()
	return s.Do(t, http.MethodPost, "/ui/login", strings.NewReader(form),
		append([]mod{anonymous, header("Content-Type", "application/x-www-form-urlencoded"), header("Accept", "text/html")}, mods...)...)
}

// withCookie sends a session cookie instead of the token.
func withCookie(c *http.Cookie) mod {
	return func(r *http.Request) {
		anonymous(r)
		r.AddCookie(c)
	}
}
