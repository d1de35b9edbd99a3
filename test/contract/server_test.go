package contract

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"imageroot/functions/addbyurl"
	"imageroot/functions/catalog"
	"imageroot/functions/catalog/feed"
	"imageroot/functions/catalog/pages"
	"imageroot/functions/exports"
	"imageroot/functions/fetch"
	"imageroot/functions/hash"
	"imageroot/functions/upload"
	"imageroot/functions/withcache"
	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/hook"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/metric"
	"imageroot/shared/netpolicy"
	"imageroot/shared/objectevent"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/served"
	"imageroot/shared/signing"
	"imageroot/shared/source"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/web"
)

const (
	password = "a password for tests"
	apiToken = "a-token-for-tests"
)

// A server is all functions over stores in memory, wired as in the runner.
// Tasks wait in the queues until the test handles them.
type server struct {
	doc   *document
	cover *coverage
	url   string

	images    *hooked
	catalog   store.Root
	inventory *inventory.Inventory
	activity  *activity.Log
	served    *served.Log
	auth      *auth.Operator

	hasher   *hash.Function
	fetcher  *fetch.Function
	uploader *upload.Function
	exports  *exports.Function
	hook     *hook.Hook

	hashes, checks, disks, fetches, renames, assemblies mailbox

	free  atomic.Int64 // free space of the store in bytes; negative: not known
	ready atomic.Pointer[error]
	key   atomic.Pointer[signing.Key] // that signs
}

// A setup is the differences between servers.
type setup struct {
	publicRead bool
	links      store.Presigner // to images, as on AWS; nil: bytes pass through the server
}

func newServer(t *testing.T, d *document, c *coverage, setup setup) *server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	images, roots := memstore.New(), memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: roots, Now: time.Now, Log: log})
	s := &server{doc: d, cover: c, images: &hooked{Root: inv.ObserveImages(images)}, catalog: inv.ObserveCatalog(roots), inventory: inv}
	s.free.Store(-1)
	operator, err := auth.Open(t.Context(), auth.Config{Records: s.catalog, Password: password, Token: apiToken, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.auth = operator
	sources := source.New(source.Config{Policy: netpolicy.Policy{Loopback: true}})
	t.Cleanup(sources.Close)
	m := metric.New()
	s.served = &served.Log{Root: s.catalog, Now: time.Now, Log: log}
	s.activity = &activity.Log{Root: s.catalog, Now: time.Now, Log: log}
	jobs := &job.Jobs{
		Records: s.catalog, Owner: "test", Now: time.Now, Activity: s.activity, Metric: m, Log: log,
		Queues: job.Queues{job.Hash: &s.hashes, job.Check: &s.checks, job.Disk: &s.disks, job.Fetch: &s.fetches, job.Rename: &s.renames},
	}
	s.hasher = &hash.Function{
		Images: s.images, Catalog: s.catalog, Bucket: "images", Jobs: jobs, Inspections: new(mailbox),
		Inventory: inv, Metric: m, Workers: 1, DisksMax: 1 << 30, Now: time.Now, Log: log,
	}
	s.fetcher = &fetch.Function{
		Catalog: s.catalog, Sources: sources, Jobs: jobs, Inspections: new(mailbox), Inventory: inv, Activity: s.activity, Metric: m,
		Free: s.free.Load, Workers: 2, Now: time.Now, Log: log,
	}
	s.uploader = &upload.Function{
		Images: s.images, Catalog: s.catalog, Links: setup.links, Inspections: new(mailbox), Assemblies: &s.assemblies, Jobs: jobs, Inventory: inv, Activity: s.activity, Metric: m,
		Free: s.free.Load, Now: time.Now, Log: log,
	}
	s.hook = &hook.Hook{Event: func(objectevent.Event) {}, Unreadable: func(error) {}}
	adder := &addbyurl.Function{
		Catalog: s.catalog, Sources: sources, Inventory: inv, Uncache: s.fetcher.Uncache, Activity: s.activity, Now: time.Now, Log: log,
	}
	var maxAnswer int64
	if setup.links != nil {
		maxAnswer = 100
	}
	lister := &catalog.Function{
		Images: s.images, Catalog: s.catalog, ImageLinks: setup.links, CatalogLinks: setup.links, MaxAnswer: maxAnswer, Inventory: inv, Auth: operator, Activity: s.activity, Metric: m, Version: "test",
		Served: s.served,
		Ready: func(context.Context) error {
			if err := s.ready.Load(); err != nil {
				return *err
			}
			return nil
		},
		SigningKey: func() (feed.Signer, error) {
			if key := s.key.Load(); key != nil {
				return key, nil
			}
			return nil, nil
		},
		MakeDisk: jobs.RequestDisk, Now: time.Now, Log: log,
	}
	s.exports = exports.New(exports.Config{
		Catalog: s.catalog, Inventory: inv, Add: adder.Ensure, Fetch: s.fetcher.Request, Expand: jobs.NeedDisk, Port: 10809,
		Activity: s.activity, Now: time.Now, Log: log,
	})
	cache := withcache.New(withcache.Config{
		Inventory: inv, Document: lister.Document, Serve: lister.Serve, Add: adder.Add, Remove: adder.Remove, Ensure: adder.Ensure,
		Fetch: s.fetcher.Request, Uncache: s.fetcher.Uncache, Cancel: s.fetcher.Cancel, Version: "test", Activity: s.activity, Now: time.Now,
	})
	site := &pages.Pages{Function: lister, Location: "s3://images/", S3Endpoint: ":9000"}
	runner := []web.Route{{Pattern: "GET /metrics", Access: web.Read, Handle: func(w http.ResponseWriter, r *http.Request) error {
		m.Handler().ServeHTTP(w, r)
		return nil
	}}}
	h := httptest.NewServer(web.Handler(web.Config{
		Auth: operator, PublicRead: setup.publicRead, Pages: site.Places(), ErrorPage: site.ErrorPage, PlainErrors: exports.Prefix, Metric: m, Log: log,
	}, s.uploader.Routes(), lister.Routes(), site.Routes(), adder.Routes(), s.hasher.Routes(), s.fetcher.Routes(), s.exports.Routes(), cache.Routes(), s.hook.Routes(), runner))
	t.Cleanup(h.Close)
	s.url = h.URL
	return s
}

// A hooked root can be made to fail.
type hooked struct {
	store.Root
	moving atomic.Bool // each object has a new version at every access
	small  atomic.Bool // every object is too large
	looks  atomic.Int64
}

func (h *hooked) Head(ctx context.Context, key store.Key) (store.Info, error) {
	info, err := h.Root.Head(ctx, key)
	if h.moving.Load() {
		info.ETag += strconv.FormatInt(h.looks.Add(1), 10)
	}
	return info, err
}

func (h *hooked) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	if h.small.Load() {
		return store.Version{}, store.ErrTooLarge
	}
	return h.Root.Put(ctx, key, body, size)
}

// A mailbox is a queue whose messages wait until the test handles them.
type mailbox struct {
	mu       sync.Mutex
	messages [][]byte
}

func (m *mailbox) Send(_ context.Context, body []byte, _ time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.messages = append(m.messages, bytes.Clone(body))
	return nil
}

// work handles the messages in the mailbox.
func (m *mailbox) work(t *testing.T, handle queue.Handler) {
	t.Helper()
	m.mu.Lock()
	messages := m.messages
	m.messages = nil
	m.mu.Unlock()
	if len(messages) == 0 {
		t.Fatal("there is no work")
	}
	for _, body := range messages {
		if err := handle(t.Context(), body); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
}

// A request is a request to send, and the status that it must get.
type request struct {
	method, target string
	status         int
	header         map[string]string
	body           string
	anonymous      bool
}

// An answer has been compared with the file.
type answer struct {
	header http.Header
	body   []byte
	object object // of JSON
}

// at returns the value at a path ("hashes.0.name") in the answer's JSON.
func (a *answer) at(t *testing.T, path string) any {
	t.Helper()
	var v any = a.object
	for name := range strings.SplitSeq(path, ".") {
		switch c := v.(type) {
		case object:
			v = c[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(c) {
				t.Fatalf("there is no %s in %s", path, a.body)
			}
			v = c[i]
		default:
			t.Fatalf("there is no %s in %s", path, a.body)
		}
	}
	return v
}

var client = &http.Client{
	Timeout:       2 * time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableCompression: true},
}

// do sends a request and compares it and its answer with the file.
func (s *server) do(t *testing.T, q request) *answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), q.method, s.url+q.target, strings.NewReader(q.body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range q.header {
		r.Header.Set(name, value)
	}
	if !q.anonymous {
		r.Header.Set("Authorization", "Bearer "+apiToken)
	}
	op := s.doc.operationFor(q.method, r.URL.EscapedPath())
	if op == nil {
		t.Fatalf("%s %s is not in docs/openapi.yaml", q.method, q.target)
	}
	if q.status < 400 {
		s.judgeRequest(t, op, r, q.body)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	for name := range resp.Trailer {
		resp.Header.Add("Trailer", name) // which the client has removed
	}
	return s.judge(t, op, q, resp)
}

func (s *server) get(t *testing.T, target string, status int) *answer {
	t.Helper()
	return s.do(t, request{method: http.MethodGet, target: target, status: status})
}

// send is do with a body of JSON, or without one.
func (s *server) send(t *testing.T, method, target string, status int, body string) *answer {
	t.Helper()
	q := request{method: method, target: target, status: status, body: body}
	if body != "" {
		q.header = map[string]string{"Content-Type": "application/json"}
	}
	return s.do(t, q)
}

// form is do with a form.
func (s *server) form(t *testing.T, target string, status int, fields url.Values) *answer {
	t.Helper()
	return s.do(t, request{
		method: http.MethodPost, target: target, status: status, body: fields.Encode(),
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
	})
}

// cut sends the beginning of a body of this size.
func (s *server) cut(t *testing.T, method, target string, size int64, status int) {
	t.Helper()
	resp := s.sendStart(t, method, target, size)
	s.judge(t, s.doc.operationFor(method, target), request{method: method, target: target, status: status}, resp)
}

func (s *server) sendStart(t *testing.T, method, target string, size int64) *http.Response {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\nhello", method, target, apiToken, size); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// plainRequest are the fields that any request may have.
var plainRequest = []string{"Authorization", "Content-Type", "Cookie", "X-Request-Id"}

// judgeRequest compares a request that must succeed with the file.
func (s *server) judgeRequest(t *testing.T, op *operation, r *http.Request, body string) {
	t.Helper()
	for name, values := range r.URL.Query() {
		p := op.param("query", name)
		if p == nil {
			t.Errorf("%s: docs/openapi.yaml has no %s", op.id, name)
			continue
		}
		var v any = values[0]
		if n, err := strconv.Atoi(values[0]); err == nil {
			v = n
		} else if b, err := strconv.ParseBool(values[0]); err == nil {
			v = b
		}
		s.conform(t, op.id+" "+name, child(p, "schema"), v, nil)
		s.cover.note("%s query %s", op.id, name)
	}
	for name := range r.Header {
		if op.param("header", name) == nil && !slices.Contains(plainRequest, name) {
			t.Errorf("%s: docs/openapi.yaml has no field %s", op.id, name)
		}
		s.cover.note("%s header %s", op.id, strings.ToLower(name))
	}
	if body == "" {
		return
	}
	typ, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	media, ok := child(op.body, "content")[typ].(object)
	if !ok {
		t.Errorf("%s: docs/openapi.yaml has no body of type %q", op.id, typ)
		return
	}
	s.cover.note("%s request %s", op.id, typ)
	seen := func(at, member string, _ bool) { s.cover.note("request %s.%s", at, member) }
	switch typ {
	case "application/json", "application/merge-patch+json":
		v, err := decode([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, wrong := range (&checker{doc: s.doc, seen: seen}).check(child(media, "schema"), v, op.id+" request") {
			t.Errorf("%s: request: %s", op.id, wrong)
		}
	case "application/x-www-form-urlencoded":
		fields, err := url.ParseQuery(body)
		if err != nil {
			t.Fatal(err)
		}
		properties := child(s.doc.follow(media["schema"]), "properties")
		for name := range fields {
			if properties[name] == nil {
				t.Errorf("%s: docs/openapi.yaml has no form field %s", op.id, name)
			}
		}
	}
}

// conform checks a Go value against a schema.
func (s *server) conform(t *testing.T, what string, schema object, v any, seen func(at, member string, null bool)) {
	t.Helper()
	value, err := decodePlain(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range (&checker{doc: s.doc, seen: seen}).check(schema, value, what) {
		t.Error(wrong)
	}
}

// plainAnswer are the fields that any answer may have; the file documents the
// others.
var plainAnswer = []string{
	"Cache-Control", "Connection", "Content-Length", "Content-Security-Policy", "Content-Type", "Date", "Referrer-Policy",
	"Vary", "X-Content-Type-Options",
}

// judge compares an answer with the file.
func (s *server) judge(t *testing.T, op *operation, q request, resp *http.Response) *answer {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", q.method, q.target, err)
	}
	a := &answer{header: resp.Header, body: body}
	if resp.StatusCode != q.status {
		t.Fatalf("%s %s: %d, want %d\n%s", q.method, q.target, resp.StatusCode, q.status, body)
	}
	status := strconv.Itoa(resp.StatusCode)
	what := op.id + " " + status
	r, ok := op.responses[status]
	if !ok {
		t.Errorf("%s is not in docs/openapi.yaml: %s", what, body)
		return a
	}
	s.cover.note("%s", what)
	s.judgeHeader(t, what, child(r, "headers"), resp.Header)

	typ, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	content := child(r, "content")
	if len(content) == 0 {
		if typ != "" || len(body) > 0 {
			t.Errorf("%s: docs/openapi.yaml has no body, the answer one of %d bytes and type %q", what, len(body), typ)
		}
		return a
	}
	media, ok := content[typ].(object)
	if err != nil || !ok {
		t.Errorf("%s: docs/openapi.yaml has no body of type %q (%v)", what, resp.Header.Get("Content-Type"), err)
		return a
	}
	s.cover.note("%s %s", what, typ)
	if q.method == http.MethodHead || !strings.HasSuffix(typ, "json") {
		return a
	}
	v, err := decode(uncoded(t, resp.Header.Get("Content-Encoding"), body))
	if err != nil {
		t.Fatalf("%s: %v\n%s", what, err, body)
	}
	for _, wrong := range (&checker{doc: s.doc, seen: s.cover.member}).check(child(media, "schema"), v, what) {
		t.Errorf("%s: %s", what, wrong)
	}
	a.object, _ = v.(object)
	if typ == problem.MediaType {
		if code := problem.Code(text(a.object, "code")); code.Status() != resp.StatusCode || a.object["instance"] != resp.Header.Get("X-Request-Id") {
			t.Errorf("%s: %s", what, body)
		}
		if !strings.Contains(text(r, "description"), "`"+text(a.object, "code")+"`") && !s.redescribed(op, status, text(a.object, "code")) {
			t.Errorf("%s: docs/openapi.yaml does not say that the code is %s: %s", what, a.object["code"], body)
		}
	}
	return a
}

// uncoded returns a body without its content coding.
func uncoded(t *testing.T, coding string, body []byte) []byte {
	t.Helper()
	var err error
	switch coding {
	case "gzip":
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, err = io.ReadAll(z)
		}
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(nil); err == nil {
			defer z.Close()
			body, err = z.DecodeAll(body, nil)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// redescribed reports whether the description beside a reference to a response
// names a code.
func (s *server) redescribed(op *operation, status, code string) bool {
	r, _ := child(op.object, "responses")[status].(object)
	return strings.Contains(text(r, "description"), "`"+code+"`")
}

func (s *server) judgeHeader(t *testing.T, what string, want object, got http.Header) {
	t.Helper()
	for name, h := range want {
		header := s.doc.follow(h)
		value := got.Get(name)
		switch {
		case value != "":
			s.cover.note("%s field %s", what, name)
			s.conform(t, what+" "+name, child(header, "schema"), value, nil)
		case header["required"] == true:
			t.Errorf("%s: the answer has no %s", what, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && !slices.Contains(plainAnswer, name) && !hasFold(want, name) {
			t.Errorf("%s: %s: %s is not in docs/openapi.yaml", what, name, got.Get(name))
		}
	}
}

// hasFold reports whether o has a name in any case: net/http writes Etag and
// Www-Authenticate.
func hasFold(o object, name string) bool {
	for n := range o {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// A coverage records which parts of the file the answers have shown.
type coverage struct {
	mu      sync.Mutex
	seen    map[string]bool
	members map[string]*[2]bool // of answers, by "Part.url": seen as a value, as null
}

func newCoverage() *coverage {
	return &coverage{seen: map[string]bool{}, members: map[string]*[2]bool{}}
}

func (c *coverage) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[fmt.Sprintf(format, args...)] = true
}

func (c *coverage) member(at, member string, null bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := at + "." + member
	if c.members[key] == nil {
		c.members[key] = new([2]bool)
	}
	if null {
		c.members[key][1] = true
	} else {
		c.members[key][0] = true
	}
}

// missing returns the parts of the file that no answer has shown.
func (c *coverage) missing(d *document) []string {
	missing := map[string]bool{}
	need := func(format string, args ...any) {
		if key := fmt.Sprintf(format, args...); !c.seen[key] {
			missing[key] = true
		}
	}
	for _, op := range d.operations() {
		for _, p := range op.params {
			if in := text(p, "in"); in != "path" {
				need("%s %s %s", op.id, in, strings.ToLower(text(p, "name")))
			}
		}
		for typ, m := range child(op.body, "content") {
			need("%s request %s", op.id, typ)
			d.members(child(m.(object), "schema"), op.id+" request", func(at, member string, _ object) { need("request %s.%s", at, member) })
		}
		for status, r := range op.responses {
			if status == "default" {
				continue
			}
			need("%s %s", op.id, status)
			if !c.seen[op.id+" "+status] {
				continue
			}
			for name := range child(r, "headers") {
				need("%s %s field %s", op.id, status, name)
			}
			for typ, m := range child(r, "content") {
				need("%s %s %s", op.id, status, typ)
				d.members(child(m.(object), "schema"), op.id+" "+status, func(at, member string, property object) {
					seen := c.members[at+"."+member]
					if seen == nil {
						seen = new([2]bool)
					}
					types := typesOf(d.follow(property))
					if nullable := slices.Contains(types, "null"); nullable && !seen[1] {
						missing[at+"."+member+" null"] = true
					}
					if !slices.Equal(types, []string{"null"}) && !seen[0] {
						missing[at+"."+member] = true
					}
				})
			}
		}
	}
	return slices.Sorted(maps.Keys(missing))
}

var errUnready = errors.New("no route to the store")
