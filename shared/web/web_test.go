package web

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"imageroot/shared/metric"
	"imageroot/shared/problem"
	"imageroot/shared/store"
)

// operator authenticates requests by a header field.
type operator struct{}

var errAuth = errors.New("the store of sessions is down")

func (operator) Authenticate(r *http.Request) (Caller, error) {
	switch r.Header.Get("Authorization") {
	case "operator":
		return Caller{Access: Admin}, nil
	case "uploader":
		return Caller{Token: "ci", Access: Upload}, nil
	case "broken":
		return Caller{}, errAuth
	}
	return Caller{}, problem.New(problem.Unauthorized, "this is not the operator")
}

// A site is a handler of routes, with its log.
type site struct {
	http.Handler
	t   *testing.T
	log *bytes.Buffer
	cfg Config
}

func newSite(t *testing.T, public bool, routes ...Route) *site {
	s := &site{t: t, log: new(bytes.Buffer)}
	s.cfg = Config{
		Auth: operator{}, PublicRead: public, Metric: metric.New(),
		Pages: Pages{Prefix: "/ui/", Home: "/ui/images", Login: "/ui/login"}, Log: slog.New(slog.NewJSONHandler(s.log, nil)),
		ErrorPage: func(w http.ResponseWriter, _ *http.Request, e *problem.Error, status int) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<p>"+e.Detail)
		},
	}
	s.Handler = Handler(s.cfg, routes)
	return s
}

// connect opens a raw connection to a server of the handler.
func (s *site) connect() net.Conn {
	s.t.Helper()
	srv := httptest.NewServer(s)
	s.t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// do sends a request. fields are pairs of name and value.
func (s *site) do(method, target, body string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	return rec
}

// logged returns the last line of the log.
func (s *site) logged() map[string]any {
	s.t.Helper()
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	var m map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &m); err != nil {
		s.t.Fatalf("%v: %s", err, s.log)
	}
	return m
}

// says returns a handler that answers with text.
func says(text string) HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

func TestRouting(t *testing.T) {
	s := newSite(t, true,
		Route{Pattern: "GET /things", Handle: says("list")},
		Route{Pattern: "POST /things", Handle: says("post")},
		Route{Pattern: "GET /things/{name}", Handle: func(w http.ResponseWriter, r *http.Request) error {
			return says("show "+r.PathValue("name"))(w, r)
		}},
		Route{Pattern: "DELETE /things/{name}", Handle: says("delete")},
		Route{Pattern: "PUT /things/{name}", Handle: says("put")},
	)
	const form = "application/x-www-form-urlencoded"
	for _, tt := range []struct {
		method, target, contentType string
		status                      int
		body, allow                 string
	}{
		{"GET", "/things", "", 200, "list", ""},
		{"HEAD", "/things", "", 200, "list", ""}, // net/http drops the body
		{"POST", "/things", "", 200, "post", ""},
		{"GET", "/things/a%2Fb%20c", "", 200, "show a/b c", ""},
		{"GET", "/nothing", "", 404, "nothing at this path", ""},
		{"GET", "/things/a/b", "", 404, "nothing at this path", ""},
		{"DELETE", "/things", "", 405, "DELETE is not possible here; GET, HEAD, POST is", "GET, HEAD, POST"},
		{"POST", "/things/x", "", 405, "POST is not possible here", "DELETE, GET, HEAD, PUT"},
		{"PUT", "/things/folder/x", "", 404, "PUT /things/{name}", ""},
		{"BREW", "/things", "", 405, "other is not possible here", "GET, HEAD, POST"},
		// Forms can only POST, so they name another method in a parameter.
		{"POST", "/things/x?_method=DELETE", form, 200, "delete", ""},
		{"POST", "/things/x?_method=PUT", form + "; charset=utf-8", 200, "put", ""},
		{"POST", "/things/x?_method=GET", form, 405, "POST", "DELETE, GET, HEAD, PUT"},
		{"POST", "/things/x?_method=DELETE", "application/json", 405, "POST", "DELETE, GET, HEAD, PUT"},
		{"POST", "/things/x?_method=DELETE", "", 405, "POST", "DELETE, GET, HEAD, PUT"},
		{"GET", "/things/x?_method=DELETE", form, 200, "show x", ""},
	} {
		rec := s.do(tt.method, tt.target, "", "Content-Type", tt.contentType)
		if rec.Code != tt.status || !strings.Contains(rec.Body.String(), tt.body) || rec.Header().Get("Allow") != tt.allow {
			t.Errorf("%s %s (%s): %d %q, Allow %q", tt.method, tt.target, tt.contentType, rec.Code, rec.Body, rec.Header().Get("Allow"))
		}
		for field, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "same-origin"} {
			if got := rec.Header().Get(field); got != want {
				t.Errorf("%s %s: %s is %q", tt.method, tt.target, field, got)
			}
		}
		if rec.Header().Get("Content-Security-Policy") == "" {
			t.Errorf("%s %s: no Content-Security-Policy", tt.method, tt.target)
		}
	}
}

func TestAccess(t *testing.T) {
	routes := []Route{
		{Pattern: "/always", Access: Always, Handle: says("in")},
		{Pattern: "/open", Access: Open, Handle: says("in")},
		{Pattern: "/read", Access: Read, Handle: says("in")},
		{Pattern: "/upload", Access: Upload, Handle: says("in")},
		{Pattern: "/operator", Access: Operator, Handle: says("in")},
		{Pattern: "/admin", Access: Admin, Handle: says("in")},
		{Pattern: "/ui/page", Access: Page, Handle: says("in")},
	}
	for _, tt := range []struct {
		public       bool
		path, method string
		who          string
		status       int
	}{
		{true, "/always", "GET", "", 200},
		{false, "/always", "GET", "", 200},
		{false, "/always", "GET", "broken", 200},
		{true, "/open", "GET", "", 200},
		{true, "/open", "GET", "nobody", 200},
		{false, "/open", "GET", "", 401},
		{false, "/open", "GET", "operator", 200},
		{false, "/open", "GET", "uploader", 200},
		{true, "/read", "GET", "", 401},
		{true, "/read", "GET", "uploader", 200},
		{true, "/upload", "PUT", "uploader", 200},
		{true, "/operator", "GET", "uploader", 403},
		{true, "/admin", "GET", "uploader", 403},
		{true, "/admin", "GET", "operator", 200},
		{true, "/ui/page", "GET", "uploader", 403},
		{true, "/operator", "GET", "", 401},
		{true, "/operator", "POST", "nobody", 401},
		{true, "/operator", "POST", "operator", 200},
		{true, "/operator", "GET", "broken", 500},
		{true, "/ui/page", "GET", "", 303},
		{true, "/ui/page", "HEAD", "", 303},
		{true, "/ui/page", "POST", "", 401},
		{true, "/ui/page", "GET", "operator", 200},
		{true, "/ui/page", "GET", "broken", 500},
	} {
		s := newSite(t, tt.public, routes...)
		rec := s.do(tt.method, tt.path, "", "Authorization", tt.who)
		if rec.Code != tt.status || (rec.Body.String() == "in") != (tt.status == 200) {
			t.Errorf("public %v, %s %s as %q: %d %s", tt.public, tt.method, tt.path, tt.who, rec.Code, rec.Body)
		}
		if (rec.Header().Get("WWW-Authenticate") != "") != (tt.status == 401) {
			t.Errorf("%s %s: %d with WWW-Authenticate %q", tt.method, tt.path, rec.Code, rec.Header().Get("WWW-Authenticate"))
		}
		if strings.Contains(rec.Body.String(), errAuth.Error()) {
			t.Errorf("an internal error shows its inside: %s", rec.Body)
		}
	}
	s := newSite(t, true, routes...)
	if loc := s.do("GET", "/ui/page?a=b&c=%20", "").Header().Get("Location"); loc != "/ui/login?next=%2Fui%2Fpage%3Fa%3Db%26c%3D%2520" {
		t.Errorf("sent to log in at %s", loc)
	}
	// A part of a page leads to the log-in page, which leads back to the page.
	for page, next := range map[string]string{
		"http://example.com/ui/page?a=b": "%2Fui%2Fpage%3Fa%3Db", "https://evil.example/ui/page": "%2Fui%2Fimages", "": "%2Fui%2Fimages", "%": "%2Fui%2Fimages",
	} {
		rec := s.do("GET", "/ui/page", "", "HX-Request", "true", "HX-Current-URL", page)
		if to := rec.Header().Get("HX-Redirect"); rec.Code != 401 || to != "/ui/login?next="+next {
			t.Errorf("a part of the page %q: %d, HX-Redirect %q", page, rec.Code, to)
		}
	}
}

func TestCrossOrigin(t *testing.T) {
	called := 0
	s := newSite(t, true, Route{Pattern: "/x", Handle: func(http.ResponseWriter, *http.Request) error { called++; return nil }})
	for _, tt := range []struct {
		method string
		fields []string
		status int
	}{
		{"POST", nil, 200}, // a program
		{"POST", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"POST", []string{"Sec-Fetch-Site", "none"}, 200},
		{"POST", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"POST", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"DELETE", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"PUT", []string{"Origin", "https://evil.example"}, 403},
		{"POST", []string{"Origin", "http://example.com"}, 200},
		{"POST", []string{"Origin", "null"}, 403},
		{"GET", []string{"Sec-Fetch-Site", "cross-site"}, 200},
	} {
		before := called
		rec := s.do(tt.method, "/x", "", tt.fields...)
		if rec.Code != tt.status || called-before != map[bool]int{true: 1}[tt.status == 200] {
			t.Errorf("%s %v: %d, called %d times", tt.method, tt.fields, rec.Code, called-before)
		}
	}
	// The same for a form that names another method.
	s = newSite(t, true, Route{Pattern: "DELETE /x", Handle: says("deleted")})
	if rec := s.do("POST", "/x?_method=DELETE", "", "Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "cross-site"); rec.Code != 403 {
		t.Errorf("another site's form: %d %s", rec.Code, rec.Body)
	}
}

func TestBodyLimits(t *testing.T) {
	read := func(w http.ResponseWriter, r *http.Request) error {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return err
		}
		return says(fmt.Sprint(n))(w, r)
	}
	decode := func(w http.ResponseWriter, r *http.Request) error {
		var in struct{ Name string }
		if err := Decode(w, r, &in); err != nil {
			return err
		}
		return says(in.Name)(w, r)
	}
	s := newSite(t, true,
		Route{Pattern: "POST /usual", Handle: read, Access: Operator},
		Route{Pattern: "POST /stranger", Handle: read},
		Route{Pattern: "POST /open", Handle: read, Access: Open},
		Route{Pattern: "POST /small", Handle: read, MaxBody: 10},
		Route{Pattern: "POST /stream", Handle: read, Stream: true},
		Route{Pattern: "POST /decode", Handle: decode, MaxBody: 100},
	)
	for _, tt := range []struct {
		target      string
		size        int
		contentType string
		status      int
	}{
		{"/usual", MaxBody, "", 200},
		{"/usual", MaxBody + 1, "", 413},
		{"/stranger", MaxOpenBody, "", 200},
		{"/stranger", MaxOpenBody + 1, "", 413},
		{"/open", MaxOpenBody + 1, "", 413},
		{"/small", 10, "", 200},
		{"/small", 11, "", 413},
		{"/stream", 3 * MaxBody, "", 200},
		{"/decode", 101, "application/json", 413},
		{"/decode", 101, "application/x-www-form-urlencoded", 413},
	} {
		rec := s.do("POST", tt.target, strings.Repeat("x", tt.size), "Content-Type", tt.contentType, "Authorization", "operator")
		if rec.Code != tt.status || rec.Code == 413 && !strings.Contains(rec.Body.String(), "larger than") {
			t.Errorf("%d bytes to %s: %d %s", tt.size, tt.target, rec.Code, rec.Body)
		}
	}
}

// A head of many short lines takes twenty times its bytes in memory.
func TestManyFields(t *testing.T) {
	s := newSite(t, true, Route{Pattern: "GET /x", Handle: says("in"), Stream: true})
	for _, name := range []func(i int) string{
		func(i int) string { return fmt.Sprintf("X-%d", i) },
		func(int) string { return "Cookie" },
	} {
		for n, status := range map[int]int{MaxFields: 200, MaxFields + 1: 400} {
			r := httptest.NewRequest("GET", "/x", nil)
			for i := range n {
				r.Header.Add(name(i), "")
			}
			rec := httptest.NewRecorder()
			s.ServeHTTP(rec, r)
			if rec.Code != status {
				t.Errorf("%d fields like %s: %d %s", n, name(0), rec.Code, rec.Body)
			}
		}
	}
}

func TestDecode(t *testing.T) {
	type input struct {
		Name    string `json:"name"`
		Refresh bool   `json:"refresh"`
		Count   int    `json:"count"`
	}
	const form = "application/x-www-form-urlencoded"
	for _, tt := range []struct {
		contentType, body string
		want              input
		status            int
		words             string
	}{
		{"application/json", `{"name": "a b", "refresh": true, "other": 1}`, input{Name: "a b", Refresh: true}, 200, ""},
		{"application/json; charset=utf-8", `{"name": "x"}`, input{Name: "x"}, 200, ""},
		{"", `{"name": "x"}`, input{Name: "x"}, 200, ""},
		{form, "name=a+b%26&refresh=true", input{Name: "a b&", Refresh: true}, 200, ""},
		{form, "name=true", input{Name: "true"}, 200, ""},
		{form, "name=first&name=last&refresh=false", input{Name: "last"}, 200, ""},
		{form, "name=%zz", input{}, 422, "form"},
		{form, `{"name": "x"}`, input{}, 415, "Content-Type: application/json"},
		{form, ` {"name": "https://example.org/?a=b&c=%zz"}`, input{}, 415, "Content-Type: application/json"},
		{"text/plain", `{"name": "x"}`, input{}, 415, "application/json"},
		{"nonsense/;", `{}`, input{}, 415, "application/json"},
		{"application/json", `{"name": 5}`, input{}, 422, "name cannot be a number"},
		{"application/json", `{"count": "x"}`, input{}, 422, "count cannot be a string"},
		{"application/json", `{"name": `, input{}, 422, "JSON"},
		{"application/json", ``, input{}, 422, "JSON"},
		{"application/json", `[]`, input{}, 422, "JSON object"},
	} {
		var got input
		s := newSite(t, true, Route{Pattern: "POST /x", Handle: func(w http.ResponseWriter, r *http.Request) error { return Decode(w, r, &got) }})
		rec := s.do("POST", "/x", tt.body, "Content-Type", tt.contentType)
		if rec.Code != tt.status || tt.status == 200 && got != tt.want || !strings.Contains(rec.Body.String(), tt.words) {
			t.Errorf("%s %q: %d %+v %s", tt.contentType, tt.body, rec.Code, got, rec.Body)
		}
	}
}

func TestErrors(t *testing.T) {
	fails := func(err error) HandlerFunc {
		return func(http.ResponseWriter, *http.Request) error { return err }
	}
	s := newSite(t, true,
		Route{Pattern: "GET /told", Handle: fails(problem.New(problem.Conflict, "do this"))},
		Route{Pattern: "GET /store", Handle: fails(fmt.Errorf("secret key: %w", store.ErrFull))},
		Route{Pattern: "GET /inside", Handle: fails(errors.New("secret"))},
		Route{Pattern: "GET /panic", Handle: func(http.ResponseWriter, *http.Request) error { panic("secret") }},
		Route{Pattern: "GET /bug", Handle: func(_ http.ResponseWriter, r *http.Request) error {
			return []error{nil}[len(r.URL.Path)]
		}},
	)
	for path, status := range map[string]int{"/told": 409, "/store": 507, "/inside": 500, "/panic": 500, "/bug": 500, "/none": 404} {
		s.log.Reset()
		rec := s.do("GET", path, "", problem.RequestIDHeader, "my-id.1_2")
		var p map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
		if rec.Code != status || rec.Header().Get("Content-Type") != problem.MediaType || p["instance"] != "my-id.1_2" || p["status"] != float64(status) {
			t.Errorf("%s: %d %s %v", path, rec.Code, rec.Header().Get("Content-Type"), p)
		}
		if strings.Contains(rec.Body.String(), "secret") {
			t.Errorf("%s shows its inside: %s", path, rec.Body)
		}
		line := s.logged()
		if line["id"] != "my-id.1_2" || line["path"] != path || line["status"] != float64(status) || line["error"] == nil ||
			(line["level"] == "ERROR") != (status == 500) {
			t.Errorf("%s is logged as %v", path, line)
		}
		if path == "/panic" && !strings.Contains(fmt.Sprint(line["stack"]), "web_test.go") {
			t.Errorf("a panic is logged without its stack: %v", line)
		}
		// A browser gets a page.
		rec = s.do("GET", path, "", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
		if rec.Code != status || !strings.HasPrefix(rec.Body.String(), "<p>") || strings.Contains(rec.Body.String(), "secret") {
			t.Errorf("%s as a page: %d %s", path, rec.Code, rec.Body)
		}
		// A script of a page does not.
		if rec = s.do("GET", path, "", "Accept", "text/html", "HX-Request", "true"); rec.Header().Get("Content-Type") != problem.MediaType {
			t.Errorf("%s for a script: %s", path, rec.Header().Get("Content-Type"))
		}
	}
}

// An answer that cannot be completed breaks the connection, so that it is not taken for
// a complete one.
func TestBrokenAnswer(t *testing.T) {
	begin := func(w http.ResponseWriter) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
	}
	s := newSite(t, true,
		Route{Pattern: "GET /error", Handle: func(w http.ResponseWriter, _ *http.Request) error {
			begin(w)
			return errors.New("the disk went away")
		}},
		Route{Pattern: "GET /panic", Handle: func(w http.ResponseWriter, _ *http.Request) error {
			begin(w)
			panic("at the disk")
		}},
		Route{Pattern: "GET /abort", Handle: func(w http.ResponseWriter, _ *http.Request) error {
			begin(w)
			panic(http.ErrAbortHandler)
		}},
		Route{Pattern: "GET /whole", Handle: says("whole")},
	)
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ConnContext = KeepEnding
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	defer srv.Close()
	for path, words := range map[string]string{"/error": "the disk went away", "/panic": "at the disk", "/abort": ""} {
		for _, proto := range []string{"HTTP/1.0", "HTTP/1.1"} {
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := fmt.Fprintf(conn, "GET %s %s\r\nHost: localhost\r\n\r\n", path, proto); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn)
			conn.Close()
			if !errors.Is(err, syscall.ECONNRESET) || !strings.HasPrefix(string(answer), proto+" 200") && len(answer) > 0 {
				t.Errorf("%s in %s: read %q, %v", path, proto, answer, err)
			}
		}
		srv.CloseClientConnections()
		for end := time.Now().Add(5 * time.Second); !strings.Contains(s.log.String(), path) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if line := s.logged(); line["cut"] != true || words != "" && !strings.Contains(fmt.Sprint(line["error"]), words) {
			t.Errorf("%s is logged as %v", path, line)
		}
	}
	resp, err := http.Get(srv.URL + "/whole")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "whole" {
		t.Errorf("after those: %q, %v", body, err)
	}
}

func TestRequestID(t *testing.T) {
	s := newSite(t, true, Route{Pattern: "GET /x", Handle: says("x")}, Route{Pattern: "GET /quiet", Handle: says("x"), Quiet: true})
	seen := map[string]bool{}
	for id, keep := range map[string]bool{
		"abc-DEF_1.2": true, strings.Repeat("x", 64): true, "": false, strings.Repeat("x", 65): false,
		"a b": false, "a\"b": false, "a\nb": false, "ä": false,
	} {
		got := s.do("GET", "/x", "", problem.RequestIDHeader, id).Header().Get(problem.RequestIDHeader)
		if (got == id) != keep || got == "" || seen[got] {
			t.Errorf("%q became %q", id, got)
		}
		seen[got] = true
		if line := s.logged(); line["id"] != got || line["method"] != "GET" || line["bytes"] != 1.0 || line["ip"] != "192.0.2.1" {
			t.Errorf("logged as %v", line)
		}
	}
	s.log.Reset()
	if s.do("GET", "/quiet", ""); s.log.Len() > 0 {
		t.Errorf("what is quiet is logged: %s", s.log)
	}
	rec := httptest.NewRecorder()
	s.cfg.Metric.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(rec.Body.String(), `imageroot_http_request_duration_seconds_count{code="200",method="GET",route="GET /x"} 8`) {
		t.Errorf("the requests are not counted:\n%s", rec.Body)
	}
}

func TestAnswer(t *testing.T) {
	s := newSite(t, true,
		Route{Pattern: "POST /x", Handle: func(w http.ResponseWriter, r *http.Request) error {
			return Answer(w, r, http.StatusCreated, map[string]int{"n": 1}, "done: <x> ä")
		}},
		Route{Pattern: "DELETE /x", Handle: func(w http.ResponseWriter, r *http.Request) error {
			return Answer(w, r, http.StatusNoContent, nil, "gone")
		}},
		Route{Pattern: "GET /ui/page", Handle: func(w http.ResponseWriter, r *http.Request) error {
			return says("["+TakeNotice(w, r)+"]")(w, r)
		}},
	)
	if rec := s.do("POST", "/x", ""); rec.Code != 201 || rec.Body.String() != "{\"n\":1}\n" || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("a program: %d %s", rec.Code, rec.Body)
	}
	if rec := s.do("DELETE", "/x", ""); rec.Code != 204 || rec.Body.Len() != 0 {
		t.Errorf("a program: %d %s", rec.Code, rec.Body)
	}
	// A browser returns to the page of the form, if this server has it.
	for referer, want := range map[string]string{
		"http://example.com/ui/events?kind=x&before=y": "/ui/events?kind=x&before=y",
		"http://example.com/ui/images#top":             "/ui/images#top",
		"":                                             "/ui/images",
		"https://evil.example/ui/events":               "/ui/images",
		"http://example.com.evil.example/ui/events":    "/ui/images",
		"http://example.com//evil.example/ui/":         "/ui/images",
		"//evil.example/ui/x":                          "/ui/images",
		"http://example.com/other":                     "/ui/images",
		"javascript:alert(1)":                          "/ui/images",
		"/ui/events":                                   "/ui/images",
		"%zz":                                          "/ui/images",
	} {
		rec := s.do("POST", "/x", "", "Accept", "text/html", "Referer", referer)
		if rec.Code != 303 || rec.Header().Get("Location") != want {
			t.Errorf("from %q: %d to %q", referer, rec.Code, rec.Header().Get("Location"))
		}
	}

	// Or to the URL in the form, relative to that page.
	for to, want := range map[string]string{
		"#row":               "/ui/images?q=x#row",
		"/ui/images?q=y#row": "/ui/images?q=y#row",
		"//evil.example/ui/": "/ui/images",
		"/ui/../version":     "/ui/images",
		"javascript:0":       "/ui/images",
		"%zz":                "/ui/images",
	} {
		rec := s.do("POST", "/x?"+url.Values{"_back": {to}}.Encode(), "", "Accept", "text/html", "Referer", "http://example.com/ui/images?q=x")
		if rec.Code != 303 || rec.Header().Get("Location") != want {
			t.Errorf("to %q: %d to %q", to, rec.Code, rec.Header().Get("Location"))
		}
	}

	cookies := s.do("POST", "/x", "", "Accept", "text/html").Result().Cookies()
	if len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].Secure || cookies[0].SameSite != http.SameSiteStrictMode || cookies[0].Path != "/ui/" {
		t.Fatalf("the notice is %v", cookies)
	}
	rec := s.do("GET", "/ui/page", "", "Cookie", cookies[0].Name+"="+cookies[0].Value)
	if got := rec.Body.String(); got != "[done: <x> ä]" {
		t.Errorf("shown: %s", got)
	}
	if after := rec.Result().Cookies(); len(after) != 1 || after[0].MaxAge >= 0 {
		t.Errorf("shown once, and then %v", after)
	}
	for _, bad := range []string{"%%%", "!!!", "_w"} { // the last is the byte 0xff
		if got := s.do("GET", "/ui/page", "", "Cookie", noticeCookie+"="+bad).Body.String(); got != "[]" {
			t.Errorf("the notice %q: %s", bad, got)
		}
	}
	w := httptest.NewRecorder()
	SetNotice(w, httptest.NewRequest("GET", "/", nil), strings.Repeat("ä", 5000))
	if n := len(w.Header().Get("Set-Cookie")); n > 2000 {
		t.Errorf("a cookie of %d bytes", n)
	}
}

func TestWhere(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	for remote, want := range map[string]string{"192.0.2.7:1234": "192.0.2.7", "[2001:db8::1]:1": "2001:db8::1", "@": "@"} {
		if r.RemoteAddr = remote; ClientIP(r) != want {
			t.Errorf("%s is %s", remote, ClientIP(r))
		}
	}
	r.Host = "images.lan:8080"
	if BaseURL(r) != "http://images.lan:8080" {
		t.Error(BaseURL(r))
	}
	if r.Header.Set("X-Forwarded-Proto", "HTTPS"); BaseURL(r) != "https://images.lan:8080" || !IsTLS(r) {
		t.Error(BaseURL(r))
	}
}

// A stream whose client has stopped sending can be ended, and the client still gets an
// answer.
func TestStopBody(t *testing.T) {
	s := newSite(t, true, Route{Pattern: "PUT /x", Stream: true, Handle: func(w http.ResponseWriter, r *http.Request) error {
		body := Body(w, r)
		one := make([]byte, 1)
		if _, err := io.ReadFull(body, one); err != nil {
			return err
		}
		read := make(chan error)
		go func() {
			_, err := body.Read(one)
			read <- err
		}()
		StopBody(w)
		return problem.Wrap(problem.Full, "no room", <-read)
	}})
	conn := s.connect()
	if _, err := fmt.Fprintf(conn, "PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 507 || !resp.Close {
		t.Errorf("%d, closed %v", resp.StatusCode, resp.Close)
	}
}

func TestCoding(t *testing.T) {
	for field, want := range map[string]string{
		"": "", "gzip": "gzip", "zstd": "zstd", "gzip, ZSTD": "zstd", "GZip": "gzip", "deflate, br": "", "gzip,deflate,br,zstd": "zstd",
		// Weights.
		"gzip;q=1.0, zstd;q=0.5": "gzip", "zstd;q=0.5": "zstd", "zstd ; Q=0.001": "zstd", "gzip;q=0, zstd;q=0": "", "zstd;q=0.000, gzip": "gzip",
		"identity;q=0.5, gzip;q=0.1": "", "identity, gzip": "gzip", "identity;q=0.1, gzip;q=0.2, zstd;q=0.2": "zstd", "identity": "",
		// The rest.
		"*": "", "gzip, *": "gzip", "zstd;q=0.0, *": "", "*;q=0": "", "gzip, *;q=0": "gzip", "identity;q=0": "",
		"identity;q=0, *": "zstd", "identity;q=0, *;q=0.5, gzip": "gzip", "identity;q=0, zstd;q=0, *": "gzip", "identity;q=0, *;q=0": "",
		// Nonsense.
		"zstd;q=x": "", "zstd;q=NaN": "", "zstd;q=-1": "", "zstd;q=2": "", "xzstd": "", "zstd;": "", ";;,,;q=1": "", "zstd;v=1": "",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		if field != "" {
			r.Header.Set("Accept-Encoding", field)
		}
		if got := Coding(r, "zstd", "gzip"); got != want {
			t.Errorf("Accept-Encoding: %q: %q, want %q", field, got, want)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header["Accept-Encoding"] = []string{"br", "zstd;q=0, gzip"}
	if got := Coding(r, "zstd", "gzip"); got != "gzip" {
		t.Errorf("two fields: %q", got)
	}
}
