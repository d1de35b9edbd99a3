package lambda_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
)

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// put uploads an image: to the URL that the API answers.
func (w *world) put(name string, data []byte, header ...string) {
	w.t.Helper()
	r := w.want(307, "PUT", "/images/"+url.PathEscape(name), nil, header...)
	w.want(200, "PUT", r.header.Get("Location"), data, header...)
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// hashed waits until the catalog has an image with its digest.
func (w *world) hashed(name, sum string) {
	w.t.Helper()
	w.until(name+" is hashed", func() bool {
		r := w.want(200, "GET", "/catalog?q="+url.QueryEscape(name), nil)
		return strings.Contains(string(r.body), `"sha256":"`+sum+`"`)
	})
}

// served waits until anybody gets the bytes with a SHA-256: the catalog function sees what
// another function has recorded a moment later.
func (w *world) served(sum string) (r reply) {
	w.t.Helper()
	w.until(sum+" is served", func() bool {
		r = w.do("GET", "/images/"+sum, nil, "Authorization", "")
		return r.status == 307
	})
	return r
}

func TestPagesAndLogin(t *testing.T) {
	w := newWorld(t)
	// Another function starts before the password's hash is stored: only the
	// token is accepted.
	w.want(401, "GET", "/uploads", nil, "Authorization", "")
	w.want(200, "GET", "/uploads", nil)

	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	api, err := url.Parse(strings.Replace(w.api.URL, "http:", "https:", 1))
	if err != nil {
		t.Fatal(err)
	}
	cookies := func() string {
		var all []string
		for _, c := range jar.Cookies(api) { // they are for TLS only
			all = append(all, c.String())
		}
		return strings.Join(all, "; ")
	}
	browse := func(status int, method, path string, form url.Values) reply {
		t.Helper()
		header := []string{"Authorization", "", "Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "Cookie", cookies(), "Content-Type", ""}
		var body any
		if form != nil {
			header[len(header)-1], body = "application/x-www-form-urlencoded", []byte(form.Encode())
		}
		r := w.want(status, method, path, body, header...)
		jar.SetCookies(api, (&http.Response{Header: r.header}).Cookies())
		return r
	}
	if r := browse(303, "GET", "/", nil); r.header.Get("Location") != "/ui/images" {
		t.Errorf("the front page leads to %q", r.header.Get("Location"))
	}
	browse(303, "GET", "/ui/images", nil)
	browse(200, "GET", "/ui/login", nil)
	browse(401, "POST", "/ui/login", url.Values{"password": {"wrong"}})
	browse(303, "POST", "/ui/login", url.Values{"password": {password}, "next": {"/ui/images?q=a+b"}})
	if c := cookies(); !strings.HasPrefix(c, "imageroot_session=") {
		t.Fatalf("cookies %q", c)
	}
	page := string(browse(200, "GET", "/ui/images?q=x", nil).body)
	if !strings.Contains(page, "<title>") || !strings.Contains(page, "s3://imageroot-images-123456789012-us-east-1/") {
		t.Errorf("the page: %.500s", page)
	}
	_, css, _ := strings.Cut(page, `href="/static/`)
	css, _, _ = strings.Cut(css, `"`)
	// Compressed bytes are not changed.
	r := w.want(200, "GET", "/static/"+css, nil, "Accept-Encoding", "gzip")
	if r.header.Get("Content-Encoding") != "gzip" || !bytes.HasPrefix(r.body, []byte{0x1f, 0x8b}) {
		t.Errorf("style sheet: %v %.20q", r.header, r.body)
	}
	w.want(304, "GET", "/static/"+css, nil, "If-None-Match", `"other,one", `+w.want(200, "GET", "/static/"+css, nil, "Accept-Encoding", "identity").header.Get("ETag"), "Accept-Encoding", "identity")
	// The session is valid at the other functions too.
	w.fn["UploadFunction"].restart(nil)
	for _, path := range []string{"/uploads", "/catalog/hashes", "/catalog/downloads", "/catalog/entries", "/events"} {
		browse(200, "GET", path, nil)
	}
	browse(303, "POST", "/ui/logout", url.Values{})
	browse(303, "GET", "/ui/images", nil)
	// A token of a machine is, too, and each function records that it was used.
	paths := []string{"/uploads", "/catalog/hashes", "/catalog/downloads", "/catalog/entries", "/catalog"}
	for i, path := range paths {
		made := as[struct{ Token string }](t, w.want(201, "POST", "/tokens", map[string]string{"name": fmt.Sprint("ci-", i), "scope": "upload"}).body)
		w.until("the token is known", func() bool { return w.do("GET", path, nil, "Authorization", "Bearer "+made.Token).status == 200 })
		w.want(403, "DELETE", "/catalog.toml", nil, "Authorization", "Bearer "+made.Token)
	}
	if r := w.want(200, "GET", "/tokens", nil); strings.Count(string(r.body), `"last_used_at":"2`) != len(paths) {
		t.Errorf("the uses of tokens: %v", r)
	}

	w.want(404, "GET", "/nowhere", nil)
	w.want(405, "PATCH", "/images/x.img", nil)
	if r := w.do("HEAD", "/healthz", nil); r.status != 200 || len(r.body) != 0 {
		t.Errorf("HEAD: %v", r)
	}
	if r := w.want(200, "GET", "/events?limit=10", nil); !strings.Contains(string(r.body), "auth.login.failed") || !strings.Contains(string(r.body), `"127.0.0.1"`) {
		t.Errorf("activity: %v", r)
	}
	if strings.Contains(w.fn["CatalogFunction"].logs(), password) || strings.Contains(w.fn["CatalogFunction"].logs(), token) {
		t.Error("a secret is in the log")
	}
}

// TestUpload: PUT redirects to S3, the event of the object leads to its digest,
// and GET redirects to S3.
func TestUpload(t *testing.T) {
	w := newWorld(t)
	const name = "a b+ü%41#.img"
	data := []byte("the bytes of an image")
	sum := hexSum(data)
	w.put(name, data)
	w.hashed(name, sum)
	for _, key := range []string{url.PathEscape(name), sum, sum + "/" + url.PathEscape(name)} {
		r := w.want(307, "GET", "/images/"+key, nil, "Authorization", "", "Range", "bytes=4-8")
		if r.header.Get("Repr-Digest") == "" || r.header.Get("ETag") != "" {
			t.Errorf("%s: %v", key, r.header)
		}
		if got := w.want(206, "GET", r.header.Get("Location"), nil, "Range", "bytes=4-8"); string(got.body) != "bytes" {
			t.Errorf("%s: %v", key, got)
		}
		if got := w.want(200, "HEAD", w.want(307, "HEAD", "/images/"+key, nil).header.Get("Location"), nil); got.header.Get("Content-Length") != strconv.Itoa(len(data)) {
			t.Errorf("HEAD %s: %v", key, got.header)
		}
	}
	w.want(404, "GET", "/images/none.img", nil)

	// The same name with other bytes is another image.
	w.put(name, []byte("other bytes"))
	w.hashed(name, hexSum([]byte("other bytes")))

	// S3 compares the bytes with the announced digest.
	checked := []string{"X-Amz-Checksum-Sha256", base64.StdEncoding.EncodeToString(mustHex(t, sum))}
	r := w.want(307, "PUT", "/images/checked.img", nil, checked...)
	w.want(400, "PUT", r.header.Get("Location"), []byte("The bytes of an image"), checked...)
	w.put("checked.img", data, checked...)
	w.hashed("checked.img", sum)
	w.want(501, "PUT", "/images/checked.img", nil, "Repr-Digest", "sha-256=:"+checked[1]+":")
}

// TestCheck: an image is inspected and checked after it is hashed.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	raw := bytes.Repeat([]byte("a disk\x00"), 1<<20)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	w.put("packed.img.gz", packed.Bytes())
	w.until("the image is checked", func() bool {
		return strings.Contains(string(w.want(200, "GET", "/catalog", nil).body), `"raw_sha256":"`+hexSum(raw)+`"`)
	})
	w.put("short.img.gz", packed.Bytes()[:packed.Len()/2])
	w.until("the image is warned of", func() bool {
		return strings.Contains(string(w.want(200, "GET", "/catalog", nil).body), "the file was cut short")
	})
}

// TestLargePut: S3 takes at most 5 GiB in one piece, and the answer names the
// alternative.
func TestLargePut(t *testing.T) {
	w := newWorld(t)
	event := strings.Replace(string(w.eventFile("upload-put")), `"content-length": "0"`, `"content-length": "5368709121"`, 1)
	out, err := w.fn["UploadFunction"].invoke(t.Context(), []byte(event))
	if err != nil {
		t.Fatal(err)
	}
	if r := as[events.APIGatewayV2HTTPResponse](t, out); r.StatusCode != 413 || !strings.Contains(r.Body, "POST /uploads") {
		t.Errorf("%+v", r)
	}
}

func mustHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUploadInParts: /uploads issues URLs of parts, and the upload function
// assembles them.
func TestUploadInParts(t *testing.T) {
	w := newWorld(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 65<<20/16)
	type view struct {
		ID, Status string
		SHA256     *string
		PartSize   int64 `json:"part_size"`
		Parts      []struct {
			Number    int
			URL       string
			SizeBytes int64 `json:"size_bytes"`
			Done      bool
		}
	}
	begin := func(name string) view {
		return as[view](t, w.want(201, "POST", "/uploads", map[string]any{"name": name, "size_bytes": len(data)}).body)
	}
	v := begin("parts.img")
	if len(v.Parts) != 2 || !strings.HasPrefix(v.Parts[0].URL, w.fn["UploadFunction"].guard.s3.URL) {
		t.Fatalf("%+v", v)
	}
	w.want(200, "PUT", v.Parts[1].URL, data[v.PartSize:])
	w.want(409, "POST", "/uploads/"+v.ID+"/complete", nil)
	again := as[view](t, w.want(200, "GET", "/uploads/"+v.ID, nil).body)
	if again.Parts[0].Done || !again.Parts[1].Done || strings.Contains(again.Parts[1].URL, "Signature") {
		t.Errorf("%+v", again.Parts)
	}
	// The part route of the API redirects to S3, too.
	r := w.want(307, "PUT", "/uploads/"+v.ID+"/parts/1", nil)
	first := w.want(200, "PUT", r.header.Get("Location"), data[:v.PartSize]).header.Get("ETag")
	// Another client's part is not accepted in place of the one that was sent.
	part2 := w.want(307, "PUT", "/uploads/"+v.ID+"/parts/2", nil).header.Get("Location")
	second := w.want(200, "PUT", part2, data[v.PartSize:]).header.Get("ETag")
	w.want(200, "PUT", part2, bytes.ToUpper(data[v.PartSize:]))
	w.want(409, "POST", "/uploads/"+v.ID+"/complete", map[string]any{"etags": []string{first, second}})
	second = w.want(200, "PUT", part2, data[v.PartSize:]).header.Get("ETag")
	w.want(202, "POST", "/uploads/"+v.ID+"/complete", map[string]any{"etags": []string{first, second}})
	w.until("the upload is completed", func() bool {
		return as[view](t, w.want(200, "GET", "/uploads/"+v.ID, nil).body).Status == "completed"
	})
	w.hashed("parts.img", hexSum(data))

	v = begin("abandoned.img")
	w.want(200, "PUT", v.Parts[0].URL, data[:v.PartSize])
	w.want(204, "DELETE", "/uploads/"+v.ID, nil)
	w.want(404, "PUT", v.Parts[0].URL, data[:v.PartSize])

	// All URLs of 200 GiB fit into an answer.
	r = w.want(201, "POST", "/uploads", map[string]any{"name": "huge.img", "size_bytes": 200 << 30})
	huge := as[view](t, r.body)
	if len(huge.Parts) > 1500 || len(huge.Parts) < 1000 {
		t.Errorf("%d parts, %d bytes", len(huge.Parts), len(r.body))
	}
	w.want(204, "DELETE", "/uploads/"+huge.ID, nil)

	w.want(204, "DELETE", "/images/parts.img", nil)
	w.until("the image is gone", func() bool {
		return !strings.Contains(string(w.want(200, "GET", "/catalog", nil).body), "parts.img")
	})
}

// TestHashOverInvocations: a hash that takes longer than an invocation is one
// job of many invocations.
func TestHashOverInvocations(t *testing.T) {
	w := newWorld(t)
	const size = 200 << 20
	hash := w.fn["HashFunction"]
	hash.guard.mu.Lock()
	hash.guard.rate = 16 << 20
	hash.guard.mu.Unlock()
	hash.limit(6 * time.Second) // four of which are for the work
	path := filepath.Join(w.data, "imageroot-images-123456789012-us-east-1", "long.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	w.hashed("long.img", sumOf(t, io.LimitReader(zeros{}, size)))
	job := w.ended("hashes", "long.img")
	if job.Status != "completed" || job.Attempt < 3 || job.BytesHashed != size {
		t.Errorf("%+v", job)
	}
	if n := w.length("HashJobDeadLetters"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	t.Logf("%d MiB at 16 MiB/s, 6 s each: %d invocations of the job", size>>20, job.Attempt)
}

// zeros are the bytes of an endless empty file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A pattern is endless bytes that encode their offset.
type pattern struct{}

// ReadAt implements io.ReaderAt.
func (pattern) ReadAt(p []byte, at int64) (int, error) {
	for i := range p {
		n := at + int64(i)
		p[i] = byte(n>>4) + byte(n)
	}
	return len(p), nil
}

func sumOf(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestMessagesAreNoPromise: messages that arrive twice, late and in any order
// do no harm.
func TestMessagesAreNoPromise(t *testing.T) {
	w := newWorld(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 40<<20/16)
	hash := w.fn["HashFunction"]
	hash.guard.mu.Lock()
	hash.guard.rate = 20 << 20
	hash.guard.mu.Unlock()
	for range 3 {
		w.send("HashJobQueue", `{"hash":"x.img"}`) // of no job
		w.send("InspectionQueue", `{"image":"x.img"}`)
	}
	w.put("x.img", data)
	for range 5 {
		w.send("InspectionQueue", string(encode(t, map[string]any{"image": "x.img"})))
		w.send("HashJobQueue", `{"hash":"x.img"}`)
	}
	w.hashed("x.img", hexSum(data))
	w.send("HashJobQueue", `{"hash":"x.img"}`)
	w.until("all messages are gone", func() bool {
		return w.length("InspectionQueue")+w.length("HashJobQueue") == 0
	})
	job := w.ended("hashes", "x.img")
	if job.Status != "completed" || job.Attempt != 1 {
		t.Errorf("%+v", job)
	}
	if n := w.length("HashJobDeadLetters") + w.length("InspectionDeadLetters"); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestRename: S3 copies an image, and its digest, its sidecar and its primary name follow.
func TestRename(t *testing.T) {
	w := newWorld(t)
	data := []byte("an image whose suffix is wrong")
	sum := hexSum(data)
	w.put("before +ü.img", data)
	w.hashed("before +ü.img", sum)
	w.want(200, "PATCH", "/catalog/images/"+sum, map[string]string{"name": "before +ü.img"})
	path := "/images/" + url.PathEscape("before +ü.img") + "/rename"
	w.want(404, "POST", "/images/none.img/rename", map[string]string{"name": "after.raw"})
	w.want(202, "POST", path, map[string]string{"name": "after.raw"})
	if job := w.ended("renames", "before +ü.img"); job.Status != "completed" || job.SHA256 == nil || *job.SHA256 != sum {
		t.Errorf("%+v", job)
	}
	w.until("the image has the new name alone", func() bool {
		r := w.want(200, "GET", "/catalog", nil)
		return strings.Contains(string(r.body), `"names":["after.raw"]`) && strings.Contains(string(r.body), sum)
	})
	for _, job := range w.jobs("hashes") {
		if job.Name == "after.raw" {
			t.Errorf("it was hashed again: %+v", job)
		}
	}
	w.want(202, "POST", path, map[string]string{"name": "after.raw"}) // once more
	w.want(204, "DELETE", "/catalog/renames/"+url.PathEscape("before +ü.img"), nil)
	if r := w.want(200, "GET", "/events?kind=image.renamed", nil); !strings.Contains(string(r.body), "after.raw") {
		t.Errorf("activity: %v", r)
	}
}

// TestPoison: a task that fails each time ends in the dead-letter queue, its
// job fails, and can be requested again.
func TestPoison(t *testing.T) {
	w := newHurriedWorld(t)
	hash := w.fn["HashFunction"]
	hash.guard.refusing(func(r *http.Request) int {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/imageroot-images-") && strings.HasSuffix(r.URL.Path, "/bad.img") {
			return http.StatusInternalServerError
		}
		return 0
	})
	w.put("bad.img", []byte("bad"))
	w.put("good.img", []byte("good"))
	w.hashed("good.img", hexSum([]byte("good")))
	job := w.ended("hashes", "bad.img")
	if job.Status != "failed" || job.Error == nil || !strings.Contains(*job.Error, "given up") {
		t.Errorf("%+v", job)
	}
	w.until("the message is a dead letter", func() bool { return w.length("HashJobDeadLetters") == 1 })
	if r := w.want(200, "GET", "/events?kind=image.hash_failed", nil); !strings.Contains(string(r.body), "bad.img") {
		t.Errorf("activity: %v", r)
	}
	hash.guard.refusing(nil)
	w.want(202, "POST", "/catalog/hashes", map[string]string{"name": "bad.img"})
	w.hashed("bad.img", hexSum([]byte("bad")))

	for _, queue := range []string{"Inspection", "FetchJob", "Assembly"} {
		w.send(queue+"Queue", "nonsense")
	}
	for _, queue := range []string{"Inspection", "FetchJob", "Assembly"} {
		w.until("nonsense is a dead letter", func() bool { return w.length(queue+"DeadLetters") == 1 })
	}
}

// TestKilled: an instance that dies in the middle costs only time.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<20/16)
	hash := w.fn["HashFunction"]
	hash.guard.mu.Lock()
	hash.guard.rate = 32 << 20
	hash.guard.mu.Unlock()
	w.put("x.img", data)
	w.until("the hash has begun", func() bool {
		jobs := w.jobs("hashes")
		return len(jobs) == 1 && jobs[0].Status == "running"
	})
	// All instances are killed, as if Lambda's machine had failed.
	hash.kill()
	w.until("its lease is over", func() bool {
		w.reconcile()
		jobs := w.jobs("hashes")
		return len(jobs) == 1 && (jobs[0].Attempt > 1 || jobs[0].Status == "completed")
	})
	w.hashed("x.img", hexSum(data))
}

// A publisher is a server that images are fetched from: the first bytes of one
// pattern, of the size of each, and checksum lists.
type publisher struct {
	*httptest.Server
	rate int64 // bytes a second of all connections, or 0 if there is no limit
	etag atomic.Value

	mu   sync.Mutex
	next time.Time // when the next bytes may be sent
}

// wait waits until n bytes may be sent after those before.
func (p *publisher) wait(n int) {
	if p.rate == 0 {
		return
	}
	p.mu.Lock()
	if now := time.Now(); p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	until := p.next
	p.mu.Unlock()
	time.Sleep(time.Until(until)) // the rate is what the source is about
}

func newPublisher(t *testing.T, images map[string]int64, lists map[string]string, rate int64) *publisher {
	p := &publisher{rate: rate}
	p.etag.Store(`"1"`)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if list, ok := lists[r.URL.Path]; ok {
			_, _ = io.WriteString(w, list)
			return
		}
		size, ok := images[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", p.etag.Load().(string))
		http.ServeContent(&slowWriter{w, p}, r, "", time.Time{}, io.NewSectionReader(pattern{}, 0, size))
	}))
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

type slowWriter struct {
	http.ResponseWriter
	p *publisher
}

func (w *slowWriter) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := w.ResponseWriter.Write(b[n:min(n+256<<10, len(b))])
		n += m
		if err != nil {
			return n, err
		}
		w.p.wait(m)
	}
	return n, nil
}

// running waits until a download makes progress.
func (w *world) running(name string) {
	w.t.Helper()
	w.until("the download of "+name+" runs", func() bool {
		for _, j := range w.jobs("downloads") {
			if j.Name == name && j.Status == "running" && j.BytesDownloaded > 0 {
				return true
			}
		}
		return false
	})
}

// TestFetchOverInvocations: a fetch, with and without a known digest, is also
// one job of many invocations.
func TestFetchOverInvocations(t *testing.T) {
	w := newWorld(t)
	const size, small = 400 << 20, 300 << 20
	sum, smallSum := sumOf(t, io.NewSectionReader(pattern{}, 0, size)), sumOf(t, io.NewSectionReader(pattern{}, 0, small))
	p := newPublisher(t, map[string]int64{"/known.img": size, "/unknown.img": small, "/little.img": 1 << 20}, map[string]string{"/SHA256SUMS": sum + "  known.img\n", "/little.bmap": "<bmap/>"}, 50<<20)
	w.fn["FetchFunction"].limit(9 * time.Second) // six of which are for the work
	w.want(201, "POST", "/catalog/entries", map[string]string{"image_url": p.URL + "/known.img", "sha_url": p.URL + "/SHA256SUMS"})
	w.want(409, "POST", "/catalog/entries", map[string]string{"image_url": p.URL + "/known.img"})
	w.want(202, "POST", "/catalog/downloads", map[string]string{"name": "known.img"})
	job := w.ended("downloads", "known.img")
	if job.Status != "completed" || job.Attempt < 2 || job.SHA256 == nil || *job.SHA256 != sum {
		t.Fatalf("%+v", job)
	}
	t.Logf("%d MiB at 50 MiB/s, 9 s each: %d invocations of the job", size>>20, job.Attempt)
	r := w.served(sum)
	if got := w.want(206, "GET", r.header.Get("Location"), nil, "Range", "bytes=16-31"); len(got.body) != 16 || got.body[0] != 17 || got.body[15] != 32 {
		t.Errorf("%v: %v", got.status, got.body)
	}

	w.want(201, "POST", "/catalog/entries", map[string]string{"image_url": p.URL + "/unknown.img"})
	p.etag.Store(`"2"`) // replaced since it was added
	w.want(202, "POST", "/catalog/downloads", map[string]string{"name": "unknown.img"})
	w.running("unknown.img")
	w.want(204, "DELETE", "/catalog/downloads/unknown.img", nil)
	w.fn["FetchFunction"].limit(6 * time.Second) // four of which are for the work
	w.want(202, "POST", "/catalog/downloads", map[string]string{"name": "unknown.img"})
	if job := w.ended("downloads", "unknown.img"); job.Status != "completed" || job.Attempt < 2 || job.SHA256 == nil || *job.SHA256 != smallSum {
		t.Fatalf("%+v", job)
	}
	w.fn["FetchFunction"].limit(time.Minute)

	// Bytes without any source are removed with their entry.
	w.want(201, "POST", "/catalog/entries", map[string]string{"image_url": p.URL + "/little.img"})
	w.want(202, "POST", "/catalog/downloads", map[string]string{"name": "little.img"})
	little := w.ended("downloads", "little.img")
	w.served(*little.SHA256)
	stored := func(folder string) bool {
		_, err := os.Stat(filepath.Join(w.data, "imageroot-catalog-123456789012-us-east-1", folder, *little.SHA256))
		return err == nil
	}
	if !stored("blobs") || !stored("published") {
		t.Error("the bytes or their block map are not stored")
	}
	w.want(204, "DELETE", "/catalog/entries?src="+url.QueryEscape(p.URL+"/little.img"), nil)
	if stored("blobs") || stored("published") {
		t.Error("the bytes of a deleted entry, or their block map, are still there")
	}
	if r := w.want(200, "GET", "/catalog/entries", nil); !strings.Contains(string(r.body), "refresh the entry") {
		t.Errorf("the entry is not flagged: %v", r)
	}
	w.want(200, "POST", "/catalog/entries", map[string]any{"image_url": p.URL + "/unknown.img", "refresh": true})
	w.want(204, "DELETE", "/catalog/cache/"+sum, nil)
	w.want(202, "POST", "/catalog/downloads", map[string]string{"name": "known.img"})
	w.running("known.img")
	w.want(204, "DELETE", "/catalog/downloads/known.img", nil)
	w.ended("downloads", "known.img")
	w.want(204, "DELETE", "/catalog/entries?src="+url.QueryEscape(p.URL+"/unknown.img"), nil)
	w.want(204, "DELETE", "/catalog/entries?src="+url.QueryEscape(p.URL+"/known.img"), nil)
	// Changes by other functions are seen a little later.
	w.until("the catalog is empty", func() bool {
		return strings.TrimSpace(string(w.want(200, "GET", "/images", nil).body)) == "[]"
	})
}

// TestRefused: sources that a function could reach and must not.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	for _, host := range []string{"169.254.169.254", "10.1.2.3", "192.168.1.1", "[fd00::1]", "[fe80::1]"} {
		r := w.want(400, "POST", "/catalog/entries", map[string]string{"image_url": "http://" + host + "/x.img"})
		if !strings.Contains(string(r.body), "detail") {
			t.Errorf("%s: %v", host, r)
		}
	}
}

// TestManifest: each function that reads the manifest keeps a copy of a good
// one.
func TestManifest(t *testing.T) {
	w := newWorld(t)
	w.put("described.img", []byte("described"))
	described := "/catalog/images/" + hexSum([]byte("described"))
	w.until("the image is hashed", func() bool { return w.do("GET", described, nil).status == 200 })
	w.want(200, "PATCH", described, map[string]string{"title": "Described"})
	if r := w.want(200, "GET", "/catalog?q=described", nil); !strings.Contains(string(r.body), `"title":{"value":"Described","from":"operator"}`) {
		t.Errorf("%v", r)
	}
	const manifest = "version = 1\n[[images]]\nname = \"m.img\"\nsrc = \"https://example.com/m.img\"\n"
	snapshots := map[string]func(){
		"HashFunction": func() { // an event of the manifest has it read
			w.send("InspectionQueue", `{"image":"catalog.toml"}`)
			w.until("the hash function has looked", func() bool { return w.length("InspectionQueue") == 0 })
		},
		"FetchFunction":    func() { w.want(404, "POST", "/catalog/downloads", map[string]string{"name": "other.img"}) },
		"AddByURLFunction": func() { w.want(200, "GET", "/catalog/entries", nil) },
		"CatalogFunction":  func() { w.want(200, "GET", "/catalog", nil) },
	}
	bucket := func(kind string) string { return filepath.Join(w.data, "imageroot-"+kind+"-123456789012-us-east-1") }
	good := filepath.Join(bucket("catalog"), "manifest", "good")
	for id, look := range snapshots {
		// Only the hash function gets an event of a dropped file: of the
		// others, the first one to see it keeps the copy.
		if err := os.WriteFile(filepath.Join(bucket("images"), "catalog.toml"), []byte(manifest), 0o644); err != nil {
			t.Fatal(err)
		}
		w.until("the manifest is noticed and the copy kept", func() bool { _, err := os.Stat(good); return err == nil })
		w.until("the hash queue is empty", func() bool { return w.length("InspectionQueue") == 0 })
		if err := os.Remove(good); err != nil {
			t.Fatal(err)
		}
		w.fn[id].restart(nil)
		look()
		if _, err := os.Stat(good); err != nil {
			t.Errorf("%s kept no copy: %v", id, err)
		}
		if err := os.Remove(filepath.Join(bucket("images"), "catalog.toml")); err != nil {
			t.Fatal(err)
		}
		w.fn[id].restart(nil)
		w.until("the listing is made anew and the copy removed", func() bool {
			look()
			_, err := os.Stat(good)
			return err != nil
		})
	}
	w.want(200, "PUT", "/catalog.toml", []byte(manifest), "Content-Type", "application/toml")
	if r := w.want(200, "GET", "/catalog.toml", nil); !strings.Contains(string(r.body), "m.img") {
		t.Errorf("%v", r)
	}
	w.want(204, "DELETE", "/catalog.toml", nil)
}

// TestReconcile: objects without an event are found, and old debris is removed.
func TestReconcile(t *testing.T) {
	w := newWorld(t)
	w.want(200, "GET", "/healthz", nil)
	catalog := filepath.Join(w.data, "imageroot-catalog-123456789012-us-east-1")
	old := time.Now().Add(-9 * 24 * time.Hour)
	drop := func(key, body string) {
		t.Helper()
		path := filepath.Join(catalog, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	stamp := old.UTC().Format(time.RFC3339)
	ref := strings.Repeat("ab", 32)
	keys := map[string]string{
		"jobs/hash/gone.img":                 `{"nonce":"x","name":"gone.img","status":"completed","finished_at":"` + stamp + `"}`,
		"jobs/rename/gone.img":               `{"nonce":"x","name":"gone.img","new_name":"a.img","status":"completed","finished_at":"` + stamp + `"}`,
		"jobs/fetch/" + ref:                  `{"nonce":"x","name":"gone.img","ref":"` + ref + `","status":"failed","finished_at":"` + stamp + `"}`,
		"fetched/" + ref:                     `{"nonce":"x","src":"https://example.com/gone.img","sha256":"` + ref + `","size_bytes":28}`,
		"blobs/" + ref:                       "bytes that nothing stands for",
		"contents/" + ref:                    `{"nonce":"x","sha256":"` + ref + `","kind":"gzip"}`,
		"jobs/disk/" + ref:                   `{"nonce":"x","name":"gone.img","stage":"disk","sha256":"` + ref + `","status":"failed","finished_at":"` + stamp + `"}`,
		"jobs/check/" + ref:                  `{"nonce":"x","name":"gone.img","stage":"check","sha256":"` + ref + `","status":"failed","finished_at":"` + stamp + `"}`,
		"staging/" + ref:                     "half of a fetch",
		"disks/" + ref:                       "a disk that no record has",
		"digests/gone.img":                   `{"nonce":"x","name":"gone.img","sha256":"` + ref + `","by":"hash"}`,
		"uploads/" + ref[:32]:                `{"nonce":"x","id":"` + ref[:32] + `","name":"gone.img","size_bytes":9,"part_size":9,"status":"completed","created_at":"` + stamp + `"}`,
		"uploads/" + strings.Repeat("0", 32): fmt.Sprintf(`{"nonce":"x","id":%q,"name":"gone.img","size_bytes":9,"part_size":9,"status":"uploading","upload_id":"00000000-0000-4000-8000-000000000000","created_at":%q}`, strings.Repeat("0", 32), stamp),
	}
	// An old entry of the journal, an old checkpoint, and a file that the
	// checkpoint does not name.
	keys["journal/0000000000000001-0123456789abcdef"] = "an entry"
	keys["index/0123456789abcdef"] = "a file"
	drop("index/current", `{"nonce":"x","generation":1,"base":{"id":"0000000000000000"},"delta":{"id":"0000000000000001"},"until":"`+stamp+`","mark_at":"`+stamp+`","mark_until":"`+stamp+`"}`)
	for key, body := range keys {
		drop(key, body)
	}
	w.until("what is old is gone", func() bool {
		w.reconcile()
		for key := range keys {
			if _, err := os.Stat(filepath.Join(catalog, filepath.FromSlash(key))); err == nil {
				return false
			}
		}
		return true
	})
	if err := os.WriteFile(filepath.Join(w.data, "imageroot-images-123456789012-us-east-1", "dropped.img"), []byte("dropped"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.hashed("dropped.img", hexSum([]byte("dropped")))
}

// A listing that is too large for an answer of Lambda is an object in S3.
func TestLargeListing(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.data, fmt.Sprint(w.tpl.Properties("CatalogBucket")["BucketName"]), layout.EntryPrefix)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const entries = 2200
	long := strings.Repeat("0123456789abcdef", 125)
	for i := range entries {
		e := &entry.Entry{Meta: record.Meta{Nonce: rand.Text()}, Name: image.Name(fmt.Sprintf("%04d.img", i)), Format: "img", AddedAt: time.Now()}
		e.URL = "https://images.example.org/" + long + "/" + string(e.Name)
		if err := os.WriteFile(filepath.Join(dir, string(layout.RefOf(e.URL))), encode(t, e), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/images", "/catalog.toml"} {
		small := w.want(200, "GET", path, nil, "Accept-Encoding", "zstd")
		if small.header.Get("Content-Encoding") != "zstd" {
			t.Errorf("%v", small.header)
		}
		away := w.want(307, "GET", path, nil, "Accept-Encoding", "identity")
		whole := w.want(200, "GET", away.header.Get("Location"), nil)
		if n := strings.Count(string(whole.body), long); n != entries {
			t.Errorf("%s has %d of %d entries", path, n, entries)
		}
		if ct := whole.header.Get("Content-Type"); ct != w.want(200, "HEAD", path, nil).header.Get("Content-Type") {
			t.Errorf("%s in S3: %s", path, ct)
		}
		w.want(304, "GET", away.header.Get("Location"), nil, "If-None-Match", whole.header.Get("ETag"))
	}
}
