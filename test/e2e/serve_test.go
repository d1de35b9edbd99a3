package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// checkServing tests all of HTTP for serving b at path (RFC 9110, RFC 9530),
// without credentials.
func checkServing(t *testing.T, s *Server, path string, b []byte) {
	t.Helper()
	t.Run("whole", func(t *testing.T) { checkWhole(t, s, path, b) })
	t.Run("ranges", func(t *testing.T) { checkRanges(t, s, path, b) })
	t.Run("several ranges", func(t *testing.T) { checkSeveralRanges(t, s, path, b) })
	t.Run("conditions", func(t *testing.T) { checkConditions(t, s, path, b) })
	t.Run("if range", func(t *testing.T) { checkIfRange(t, s, path, b) })
}

func checkWhole(t *testing.T, s *Server, path string, b []byte) {
	get := s.get(t, path, anonymous, header("Accept-Encoding", "gzip, zstd, br")).Must(t, 200)
	head := s.Do(t, http.MethodHead, path, nil, anonymous).Must(t, 200)
	if sum(get.Body) != sum(b) {
		t.Errorf("GET: %d bytes that are not the image", len(get.Body))
	}
	if len(head.Body) > 0 {
		t.Errorf("HEAD has a body of %d bytes", len(head.Body))
	}
	for method, r := range map[string]*Reply{"GET": get, "HEAD": head} {
		h := r.Header
		if h.Get("Content-Length") != strconv.Itoa(len(b)) {
			t.Errorf("%s: Content-Length is %q, want %d", method, h.Get("Content-Length"), len(b))
		}
		if h.Get("Accept-Ranges") != "bytes" {
			t.Errorf("%s: Accept-Ranges is %q", method, h.Get("Accept-Ranges"))
		}
		if e := h.Get("ETag"); len(e) < 3 || e[0] != '"' || e[len(e)-1] != '"' {
			t.Errorf("%s: ETag is %q, want a strong one", method, e)
		}
		if h.Get("Repr-Digest") != structuredDigest(sum(b)) {
			t.Errorf("%s: Repr-Digest is %q, want %q", method, h.Get("Repr-Digest"), structuredDigest(sum(b)))
		}
		if e := h.Get("Content-Encoding"); e != "" {
			t.Errorf("%s: Content-Encoding is %q: a client would undo what the image's format is", method, e)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options is %q", method, h.Get("X-Content-Type-Options"))
		}
		if mt, _, err := mime.ParseMediaType(h.Get("Content-Type")); err != nil || !strings.HasPrefix(mt, "application/") {
			t.Errorf("%s: Content-Type is %q (%v)", method, h.Get("Content-Type"), err)
		}
		if d, _, err := mime.ParseMediaType(h.Get("Content-Disposition")); err != nil || d != "attachment" {
			t.Errorf("%s: Content-Disposition is %q (%v), want an attachment", method, h.Get("Content-Disposition"), err)
		}
		if _, err := http.ParseTime(h.Get("Last-Modified")); err != nil {
			t.Errorf("%s: Last-Modified: %v", method, err)
		}
		if h.Get("X-Request-Id") == "" {
			t.Errorf("%s: no X-Request-Id", method)
		}
	}
	for _, name := range []string{"ETag", "Repr-Digest", "Content-Type", "Content-Disposition", "Last-Modified"} {
		if g, h := get.Header.Get(name), head.Header.Get(name); g != h {
			t.Errorf("%s is %q by GET and %q by HEAD", name, g, h)
		}
	}
}

func checkRanges(t *testing.T, s *Server, path string, b []byte) {
	n := len(b)
	etag := s.Do(t, http.MethodHead, path, nil, anonymous).Must(t, 200).Header.Get("ETag")
	for _, c := range []struct {
		spec     string
		from, to int // inclusive
	}{
		{"bytes=0-0", 0, 0},
		{"bytes=0-99", 0, 99},
		{"bytes=1000-1999", 1000, 1999},
		{"bytes=100-", 100, n - 1},
		{fmt.Sprintf("bytes=%d-", n-1), n - 1, n - 1},
		{fmt.Sprintf("bytes=0-%d", n-1), 0, n - 1},
		{fmt.Sprintf("bytes=10-%d", n+5000), 10, n - 1},
		{"bytes=5-9223372036854775807", 5, n - 1},
		{"bytes=-1", n - 1, n - 1},
		{"bytes=-500", n - 500, n - 1},
		{fmt.Sprintf("bytes=-%d", n), 0, n - 1},
		{fmt.Sprintf("bytes=-%d", n+1000), 0, n - 1},
	} {
		r := s.get(t, path, anonymous, header("Range", c.spec))
		if r.Status != http.StatusPartialContent {
			t.Errorf("%s: status %d, want 206", c.spec, r.Status)
			continue
		}
		if want := fmt.Sprintf("bytes %d-%d/%d", c.from, c.to, n); r.Header.Get("Content-Range") != want {
			t.Errorf("%s: Content-Range is %q, want %q", c.spec, r.Header.Get("Content-Range"), want)
		}
		if !bytes.Equal(r.Body, b[c.from:c.to+1]) {
			t.Errorf("%s: %d wrong bytes, want %d", c.spec, len(r.Body), c.to-c.from+1)
		}
		if r.Header.Get("ETag") != etag {
			t.Errorf("%s: ETag is %q, that of the whole is %q", c.spec, r.Header.Get("ETag"), etag)
		}
		// It is the digest of the representation, not of the range.
		if r.Header.Get("Repr-Digest") != structuredDigest(sum(b)) {
			t.Errorf("%s: Repr-Digest is %q", c.spec, r.Header.Get("Repr-Digest"))
		}
	}
	for _, spec := range []string{fmt.Sprintf("bytes=%d-", n), fmt.Sprintf("bytes=%d-%d", n+10, n+20), "bytes=9223372036854775800-"} {
		r := s.get(t, path, anonymous, header("Range", spec))
		r.Problem(t, []int{http.StatusRequestedRangeNotSatisfiable})
		if want := fmt.Sprintf("bytes */%d", n); r.Header.Get("Content-Range") != want {
			t.Errorf("%s: Content-Range is %q, want %q", spec, r.Header.Get("Content-Range"), want)
		}
	}
	// Invalid and unsatisfiable ranges.
	for _, spec := range []string{"bytes=-0", "bytes=", "bytes=abc", "bytes=5-2", "bytes=--5", "bytes=1-2-3", "bytes 0-5", "bytes=99999999999999999999999-"} {
		r := s.get(t, path, anonymous, header("Range", spec))
		switch r.Status {
		case http.StatusOK:
			if sum(r.Body) != sum(b) {
				t.Errorf("%s: 200 with wrong bytes", spec)
			}
		case http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable:
			r.Problem(t, []int{r.Status})
		default:
			t.Errorf("%s: %v", spec, r)
		}
	}
	if r := s.get(t, path, anonymous, header("Range", "lines=0-5")); r.Status != http.StatusOK || sum(r.Body) != sum(b) {
		t.Errorf("a unit that is unknown must be ignored: status %d", r.Status)
	}
	// Ranges are defined for GET only (RFC 9110 section 14.2).
	r := s.Do(t, http.MethodHead, path, nil, anonymous, header("Range", "bytes=0-9")).Must(t, 200)
	if r.Header.Get("Content-Length") != strconv.Itoa(n) {
		t.Errorf("HEAD with a range: Content-Length is %s, want %d", r.Header.Get("Content-Length"), n)
	}
}

// checkSeveralRanges allows several ranges to be refused, ignored or served, if
// the served bytes are right.
func checkSeveralRanges(t *testing.T, s *Server, path string, b []byte) {
	n := len(b)
	for _, c := range []struct {
		spec   string
		ranges [][2]int
	}{
		{"bytes=0-9,20-29", [][2]int{{0, 9}, {20, 29}}},
		{"bytes=500-999, -100", [][2]int{{500, 999}, {n - 100, n - 1}}},
		{fmt.Sprintf("bytes=0-9,%d-", n+1), [][2]int{{0, 9}}}, // the second is outside
	} {
		r := s.get(t, path, anonymous, header("Range", c.spec))
		switch r.Status {
		case http.StatusOK:
			if sum(r.Body) != sum(b) {
				t.Errorf("%s: 200 with wrong bytes", c.spec)
			}
		case http.StatusRequestedRangeNotSatisfiable:
			r.Problem(t, []int{r.Status})
		case http.StatusPartialContent:
			checkParts(t, c.spec, r, b, c.ranges)
		default:
			t.Errorf("%s: %v", c.spec, r)
		}
	}
	// Overlapping ranges must not make the answer larger than the image.
	r := s.get(t, path, anonymous, header("Range", "bytes="+strings.Repeat("0-,", 200)+"0-"))
	if len(r.Body) > 2*n+64<<10 {
		t.Errorf("the image of %d bytes is sent as %d bytes of overlapping ranges", n, len(r.Body))
	}
}

func checkParts(t *testing.T, spec string, r *Reply, b []byte, ranges [][2]int) {
	t.Helper()
	mt, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && mt != "multipart/byteranges" && len(ranges) == 1 {
		want := fmt.Sprintf("bytes %d-%d/%d", ranges[0][0], ranges[0][1], len(b))
		if r.Header.Get("Content-Range") != want || !bytes.Equal(r.Body, b[ranges[0][0]:ranges[0][1]+1]) {
			t.Errorf("%s: Content-Range is %q, want %q, or wrong bytes", spec, r.Header.Get("Content-Range"), want)
		}
		return
	}
	if err != nil || mt != "multipart/byteranges" || r.Header.Get("Content-Range") != "" {
		t.Errorf("%s: 206 of Content-Type %q with Content-Range %q", spec, r.Header.Get("Content-Type"), r.Header.Get("Content-Range"))
		return
	}
	parts := multipart.NewReader(bytes.NewReader(r.Body), params["boundary"])
	for _, want := range ranges {
		p, err := parts.NextPart()
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			return
		}
		got, err := io.ReadAll(p)
		if cr := fmt.Sprintf("bytes %d-%d/%d", want[0], want[1], len(b)); err != nil || p.Header.Get("Content-Range") != cr || !bytes.Equal(got, b[want[0]:want[1]+1]) {
			t.Errorf("%s: part %q has wrong bytes, want %q (%v)", spec, p.Header.Get("Content-Range"), cr, err)
		}
	}
	if _, err := parts.NextPart(); !errors.Is(err, io.EOF) {
		t.Errorf("%s: more parts than ranges (%v)", spec, err)
	}
}

func checkConditions(t *testing.T, s *Server, path string, b []byte) {
	whole := s.Do(t, http.MethodHead, path, nil, anonymous).Must(t, 200)
	etag, modified := whole.Header.Get("ETag"), whole.Header.Get("Last-Modified")
	at, err := http.ParseTime(modified)
	if err != nil {
		t.Fatal(err)
	}
	before := at.Add(-time.Hour).Format(http.TimeFormat)
	const other = `"another-one"`
	type fields map[string]string
	for _, c := range []struct {
		fields fields
		want   int
	}{
		{fields{"If-None-Match": etag}, 304},
		{fields{"If-None-Match": "W/" + etag}, 304}, // compared weakly
		{fields{"If-None-Match": other + ", " + etag}, 304},
		{fields{"If-None-Match": `W/"x" ,` + "W/" + etag + " , " + other}, 304},
		{fields{"If-None-Match": "*"}, 304},
		{fields{"If-None-Match": other}, 200},
		{fields{"If-None-Match": other + `, W/"y"`}, 200},
		{fields{"If-None-Match": other, "If-Modified-Since": modified}, 200}, // the date is ignored then
		{fields{"If-None-Match": etag, "If-Modified-Since": before}, 304},
		{fields{"If-Modified-Since": modified}, 304},
		{fields{"If-Modified-Since": before}, 200},
		{fields{"If-Modified-Since": "yesterday"}, 200},
		{fields{"If-Match": etag}, 200},
		{fields{"If-Match": "*"}, 200},
		{fields{"If-Match": other + ", " + etag}, 200},
		{fields{"If-Match": other}, 412},
		{fields{"If-Match": "W/" + etag}, 412}, // compared strongly
		{fields{"If-Unmodified-Since": modified}, 200},
		{fields{"If-Unmodified-Since": before}, 412},
		{fields{"If-Match": etag, "If-Unmodified-Since": before}, 200},
		{fields{"If-None-Match": etag, "Range": "bytes=0-9"}, 304},
		{fields{"If-Match": other, "Range": "bytes=0-9"}, 412},
		{fields{"If-Match": etag, "Range": "bytes=0-9"}, 206},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if method == http.MethodHead && c.want == 206 {
				continue // HEAD ignores Range
			}
			mods := []mod{anonymous}
			for k, v := range c.fields {
				mods = append(mods, header(k, v))
			}
			r := s.Do(t, method, path, nil, mods...)
			if r.Status != c.want {
				t.Errorf("%s with %v: status %d, want %d", method, c.fields, r.Status, c.want)
				continue
			}
			switch r.Status {
			case http.StatusNotModified:
				if len(r.Body) > 0 || r.Header.Get("ETag") != etag {
					t.Errorf("%s with %v: 304 with %d bytes of body and ETag %q", method, c.fields, len(r.Body), r.Header.Get("ETag"))
				}
			case http.StatusPreconditionFailed:
				if method == http.MethodGet {
					r.Problem(t, []int{412})
				}
			case http.StatusOK:
				if method == http.MethodGet && sum(r.Body) != sum(b) {
					t.Errorf("GET with %v: wrong bytes", c.fields)
				}
			}
		}
	}
}

func checkIfRange(t *testing.T, s *Server, path string, b []byte) {
	whole := s.Do(t, http.MethodHead, path, nil, anonymous).Must(t, 200)
	etag := whole.Header.Get("ETag")
	at, err := http.ParseTime(whole.Header.Get("Last-Modified"))
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]int{
		etag:              206,
		`"another-one"`:   200,
		"W/" + etag:       200, // a weak one does not match
		`W/"another-one"`: 200,
		at.Add(-time.Hour).Format(http.TimeFormat): 200,
		at.Add(time.Hour).Format(http.TimeFormat):  200, // only the exact date matches
		"nonsense": 200,
	} {
		r := s.get(t, path, anonymous, header("Range", "bytes=100-199"), header("If-Range", value))
		right := r.Status == 206 && bytes.Equal(r.Body, b[100:200]) || r.Status == 200 && sum(r.Body) == sum(b)
		if r.Status != want || !right {
			t.Errorf("If-Range: %s: status %d with %d bytes, want %d", value, r.Status, len(r.Body), want)
		}
	}
}

func TestServeLocal(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const name = "serve me \u00fc+%.img"
	b := content(1, 100_000)
	s.Put(t, name, b)
	checkServing(t, s, "/images/"+sum(b), b)
	checkServing(t, s, imageRoute(name), b)
	checkServing(t, s, "/images/"+sum(b)+"/"+url.PathEscape(name), b)

	etag := s.Do(t, http.MethodHead, "/images/"+sum(b), nil, anonymous).Must(t, 200).Header.Get("ETag")
	for _, path := range []string{
		"/images/" + strings.ToUpper(sum(b)), "/images/" + strings.ToUpper(sum(b)) + "/" + url.PathEscape(name),
		"/images/" + sum(b) + "/another-name.raw", // only for clients that read the suffix
		imageRoute(name) + "/" + url.PathEscape(name), imageRoute(name) + "/another-name.raw",
	} {
		r := s.get(t, path, anonymous).Must(t, 200)
		if sum(r.Body) != sum(b) || r.Header.Get("ETag") != etag {
			t.Errorf("%s: ETag %q, want %q, or wrong bytes", path, r.Header.Get("ETag"), etag)
		}
	}
	t.Run("the ETag follows the content", func(t *testing.T) {
		s.Put(t, "twin.img", b)
		if r := s.Do(t, http.MethodHead, "/images/twin.img", nil, anonymous).Must(t, 200); r.Header.Get("ETag") != etag {
			t.Errorf("ETag %q of the same bytes under another name, want %q", r.Header.Get("ETag"), etag)
		}
		s.Put(t, "twin.img", content(2, 100_000))
		if r := s.get(t, "/images/twin.img", anonymous, header("If-None-Match", etag)).Must(t, 200); r.Header.Get("ETag") == etag {
			t.Error("other bytes have the same ETag")
		}
	})
	t.Run("a page in its name only", func(t *testing.T) {
		page := []byte("<html><script>alert(document.domain)</script></html>")
		s.Put(t, "page.img", page)
		for _, path := range []string{"/images/page.img", "/images/" + sum(page), "/images/" + sum(page) + "/page.html", "/images/page.img/page.html"} {
			r := s.get(t, path, anonymous)
			if r.Status == http.StatusNotFound {
				continue
			}
			mt, _, _ := mime.ParseMediaType(r.Must(t, 200).Header.Get("Content-Type"))
			if !strings.HasPrefix(mt, "application/") || strings.Contains(mt, "html") || r.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: a browser would show it: %v", path, r.Header)
			}
		}
	})
	t.Run("compressed formats stay as they are", func(t *testing.T) {
		for i, name := range []string{"c.img.gz", "c.img.xz", "c.img.zst", "c.img.bz2", "c.iso"} {
			c := content(uint64(30+i), 5000)
			s.Put(t, name, c)
			r := s.get(t, imageRoute(name), anonymous, header("Accept-Encoding", "gzip, zstd")).Must(t, 200)
			if sum(r.Body) != sum(c) || r.Header.Get("Content-Encoding") != "" {
				t.Errorf("%s: Content-Encoding %q, or wrong bytes", name, r.Header.Get("Content-Encoding"))
			}
		}
	})
	t.Run("an empty image", func(t *testing.T) {
		r := s.Do(t, http.MethodPut, "/images/empty.img", http.NoBody)
		if r.Status != http.StatusCreated {
			r.Problem(t, []int{400, 411, 422})
			return
		}
		r = s.get(t, "/images/empty.img", anonymous).Must(t, 200)
		if len(r.Body) != 0 || r.Header.Get("Content-Length") != "0" {
			t.Errorf("%v %v", r, r.Header)
		}
		r = s.get(t, "/images/empty.img", anonymous, header("Range", "bytes=0-"))
		if r.Status != http.StatusOK && r.Status != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("a range of nothing: %v", r)
		}
	})
}

func TestServeBlob(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 100_000)
	s.AddEntry(t, p.File("/dist/fetched \u00fc.qcow2", b), "").Must(t, http.StatusCreated)
	s.Fetch(t, "fetched \u00fc.qcow2")
	s.WaitRow(t, "fetched \u00fc.qcow2", "cached", func(r row) bool { return r.Cached })
	checkServing(t, s, "/images/"+sum(b), b)
	checkServing(t, s, imageRoute("fetched \u00fc.qcow2"), b)
}

// TestServeUnhashed serves a file that is not hashed yet by its name, with
// ranges beyond 32 bits, and without a digest.
func TestServeUnhashed(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	s.dropSparse(t, "vast.raw", vast)
	s.WaitJob(t, hashes, "vast.raw", "running")
	head := s.Do(t, http.MethodHead, "/images/vast.raw", nil, anonymous).Must(t, 200)
	etag := head.Header.Get("ETag")
	if head.Header.Get("Content-Length") != strconv.Itoa(vast) || etag == "" || head.Header.Get("Repr-Digest") != "" {
		t.Errorf("HEAD: %v", head.Header)
	}
	for spec, want := range map[string]string{
		"bytes=-10":                   fmt.Sprintf("bytes %d-%d/%d", vast-10, vast-1, vast),
		"bytes=4294967290-4294967299": fmt.Sprintf("bytes 4294967290-4294967299/%d", vast),
	} {
		r := s.get(t, "/images/vast.raw", anonymous, header("Range", spec)).Must(t, 206)
		if r.Header.Get("Content-Range") != want || !bytes.Equal(r.Body, make([]byte, 10)) {
			t.Errorf("%s: Content-Range %q, want %q; body %q", spec, r.Header.Get("Content-Range"), want, r.Body)
		}
	}
	res, err := s.send(t.Context(), http.MethodGet, "/images/vast.raw", nil, anonymous, header("Range", fmt.Sprintf("bytes=%d-", 1<<37)))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 206 || res.ContentLength != vast-1<<37 {
		t.Errorf("second half: status %d, %d bytes", res.StatusCode, res.ContentLength)
	}
	s.get(t, "/images/vast.raw", anonymous, header("If-None-Match", etag)).Must(t, 304)

	// After an edit in place it is another representation, at once.
	f, err := os.OpenFile(s.imagePath("vast.raw"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("edited"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r := s.get(t, "/images/vast.raw", anonymous, header("If-None-Match", etag), header("Range", "bytes=0-5")).Must(t, 206)
	if string(r.Body) != "edited" || r.Header.Get("ETag") == etag {
		t.Errorf("after the edit: %q with ETag %s", r.Body, r.Header.Get("ETag"))
	}
	s.get(t, "/images/vast.raw", anonymous, header("If-Match", etag), header("Range", "bytes=0-5")).Problem(t, []int{412})
	s.Cancel(t, hashes, "vast.raw")
}

func TestServeContentDisposition(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	for i, name := range hostileNames() {
		b := content(uint64(i), 1000+i)
		s.Put(t, name, b)
		for _, path := range []string{imageRoute(name), "/images/" + sum(b), "/images/" + sum(b) + "/" + url.PathEscape(name)} {
			field := s.Do(t, http.MethodHead, path, nil, anonymous).Must(t, 200).Header.Get("Content-Disposition")
			for _, c := range []byte(field) {
				if c < ' ' || c > '~' {
					t.Errorf("%q: byte %#x in Content-Disposition %q", name, c, field)
				}
			}
			kind, params, err := mime.ParseMediaType(field)
			if err != nil || kind != "attachment" || params["filename"] != name {
				t.Errorf("%q: Content-Disposition %q is read as %q %q (%v)", name, field, kind, params["filename"], err)
			}
		}
	}
}

func TestServeNothing(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	b := content(1, 10_000)
	s.Put(t, "there.img", b)
	s.s3Put(t, "there.img.asc", []byte("a signature"))
	remote := content(2, 10_000)
	sums := p.File("/sums", []byte(sum(remote)+"  remote.img\n"))
	s.AddEntry(t, p.File("/remote.img", remote), sums).Must(t, http.StatusCreated)
	for _, path := range []string{
		"/images/nothing.img", "/images/" + sum([]byte("nothing")), "/images/" + sum([]byte("nothing")) + "/there.img",
		"/images/" + sum(b)[:12], "/images/" + sum(b)[:63], "/images/" + sum(b) + "0", // neither a digest nor a name
		"/images/there", "/images/THERE.IMG.", "/images/remote.img", "/images/" + sum(remote), // known, but not cached
		"/images/there.img.asc", "/images/catalog.toml", "/images/%2e%2e", "/images/..%2fimages%2fthere.img",
		"/images/" + sum(b) + "/a/b", "/images/%00", "/images/" + strings.Repeat("0", 64),
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := s.Do(t, method, path, nil, anonymous)
			if r.Status != http.StatusNotFound && r.Status != http.StatusBadRequest {
				t.Errorf("%s %s: status %d", method, path, r.Status)
				continue
			}
			if method == http.MethodGet {
				r.Problem(t, []int{400, 404})
			} else if len(r.Body) > 0 {
				t.Errorf("HEAD %s: a body", path)
			}
		}
	}
	// A problem has no field that would make a client cache it for the image.
	r := s.get(t, "/images/nothing.img", anonymous, header("If-None-Match", "*"), header("Range", "bytes=0-9"))
	r.Problem(t, []int{404})
	for _, name := range []string{"ETag", "Repr-Digest", "Content-Disposition", "Content-Range"} {
		if v := r.Header.Get(name); v != "" {
			t.Errorf("404 with %s: %s", name, v)
		}
	}
}

// cuttingProxy forwards connections to the pages and closes the first one after
// so many bytes of the answer.
func cuttingProxy(t *testing.T, s *Server, after int64) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for first := true; ; first = false {
			down, err := l.Accept()
			if err != nil {
				return
			}
			limit := int64(1 << 62)
			if first {
				limit = after
			}
			serving.Go(func() {
				defer func() { _ = down.Close() }()
				up, err := net.Dial("tcp", strings.TrimPrefix(s.Pages, "http://"))
				if err != nil {
					return
				}
				defer func() { _ = up.Close() }()
				serving.Go(func() {
					_, _ = io.Copy(up, down)
					_ = up.Close()
				})
				_, _ = io.CopyN(down, up, limit)
			})
		}
	})
	return "http://" + l.Addr().String()
}

func TestServeCurlResumes(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	b := content(1, 20<<20)
	s.Put(t, "large.img", b)
	at := cuttingProxy(t, s, 7<<20) + "/images/" + sum(b) + "/large.img"
	got := filepath.Join(t.TempDir(), "got")
	if out, err := tryRun(t, nil, "curl", "-sS", "-f", "-o", got, at); err == nil {
		t.Fatalf("the download was not cut: %s", out)
	}
	fi, err := os.Stat(got)
	if err != nil || fi.Size() == 0 || fi.Size() >= int64(len(b)) {
		t.Fatalf("cut download: %v, %v", fi, err)
	}
	rest := strings.TrimSpace(run(t, nil, "curl", "-sS", "-f", "-C", "-", "-o", got, "-w", "%{size_download}", at))
	if want := strconv.FormatInt(int64(len(b))-fi.Size(), 10); rest != want {
		t.Errorf("the second curl took %s bytes, want the %s that were missing", rest, want)
	}
	if sha256sum(t, got) != sum(b) {
		t.Error("the resumed download is not the image")
	}

	// A client of RFC 6249 takes the rest from another server with the same bytes.
	p := publish(t)
	p.File("/pub/a b.img", b)
	s.putManifest(t, fmt.Sprintf("version = 1\n[[images]]\nname = \"large.img\"\nsrc = \"http://publisher.example/pub/a%%20b.img\"\nsha256 = %q\n", sum(b))).Must(t, http.StatusOK)
	if err := os.Truncate(got, 7<<20); err != nil {
		t.Fatal(err)
	}
	link := run(t, nil, "curl", "-sS", "-f", "-I", "-o", os.DevNull, "-w", "%header{link}", at)
	mirror, ok := strings.CutSuffix(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">; rel=duplicate")
	if !ok {
		t.Fatalf("Link: %q", link)
	}
	run(t, nil, "curl", "-sS", "-f", "-C", "-", "-o", got, "--connect-to", "publisher.example:80:"+p.Listener.Addr().String(), mirror)
	if sha256sum(t, got) != sum(b) {
		t.Error("the download that the mirror has completed is not the image")
	}
}

// TestServeFlash flashes a disk with curl | zstd -d | dd.
func TestServeFlash(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	run(t, nil, "qemu-img", "create", "-q", "-f", "raw", disk, "16M")
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, off := range []int64{0, 5 << 20, 15 << 20} {
		if _, err := f.WriteAt(content(uint64(i), 1<<20), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want := sha256sum(t, disk)
	for suffix, c := range map[string]struct{ compress, expand string }{
		"zst": {"zstd -q -k -T1 disk.raw -o disk.img.zst", "zstd -dc"},
		"xz":  {"xz -0 -c disk.raw > disk.img.xz", "xz -dc"},
		"gz":  {"gzip -1 -c disk.raw > disk.img.gz", "gzip -dc"},
	} {
		t.Run(suffix, func(t *testing.T) {
			name := "disk.img." + suffix
			run(t, nil, "bash", "-euc", "cd "+dir+"; "+c.compress)
			s.curl(t, "-T", filepath.Join(dir, name), s.Pages+"/images/"+name).Reply(t).Must(t, http.StatusCreated)
			l, ok := s.Listed(t, name)
			if !ok {
				t.Fatalf("%s is not in GET /images", name)
			}
			target := filepath.Join(dir, "flashed."+suffix)
			run(t, []string{"URL=" + l.URL, "TARGET=" + target}, "bash", "-euo", "pipefail", "-c",
				`curl -fsS "$URL" | `+c.expand+` | dd of="$TARGET" bs=1M iflag=fullblock conv=fsync status=none`)
			if sha256sum(t, target) != want {
				t.Error("what was flashed is not the disk")
			}
		})
	}
	t.Run("qcow2", func(t *testing.T) {
		q := filepath.Join(dir, "disk.qcow2")
		run(t, nil, "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", disk, q)
		s.curl(t, "-T", q, s.Pages+"/images/disk.qcow2").Reply(t).Must(t, http.StatusCreated)
		got := filepath.Join(dir, "got.qcow2")
		run(t, nil, "curl", "-fsS", "-o", got, s.Pages+"/images/disk.qcow2")
		run(t, nil, "qemu-img", "check", "-q", got)
		run(t, nil, "qemu-img", "compare", "-q", disk, got)
	})
}

// getAround begins a GET, reads some of the answer, calls happen, and reads the
// rest. If another S3 server replaces nothing while it is read (MinIO), it
// reads on while happen runs.
func getAround(t *testing.T, s *Server, path string, some int, happen func()) ([]byte, error) {
	t.Helper()
	res, err := s.send(t.Context(), http.MethodGet, path, nil, anonymous)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	got := make([]byte, some)
	if _, err := io.ReadFull(res.Body, got); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var patience <-chan time.Time
	if *s3Endpoint != "" {
		patience = time.After(3 * time.Second)
	}
	happened, rest := make(chan struct{}), make(chan []byte, 1)
	go func() {
		select {
		case <-happened:
		case <-patience:
		}
		var b []byte
		b, err = io.ReadAll(res.Body)
		rest <- b
	}()
	happen()
	close(happened)
	return append(got, <-rest...), err
}

// The system resets the connections of a process that is killed while it sends images,
// since programs that write disks may ignore that an answer has ended early.
func TestServeKilled(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	s.Put(t, "big.img", make([]byte, 64<<20)) // more than the system holds of a connection
	var broken []io.Reader
	for _, ask := range []string{"/images/big.img HTTP/1.1", "/raw/big.img HTTP/1.1", "/raw/big.img HTTP/1.0"} {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.Pages, "http://"), within)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(within))
		if _, err := fmt.Fprintf(conn, "GET %s\r\nHost: localhost\r\n\r\n", ask); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
			t.Fatal(err)
		}
		broken = append(broken, conn)
	}
	s.Kill(t)
	for i, conn := range broken {
		if n, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("answer %d: %d more bytes, then %v, want a reset", i, n, err)
		}
	}
}

// TestServeDuringOverwrite overwrites an image during a download, which ends
// whole or ends early, and never continues with other bytes.
func TestServeDuringOverwrite(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const name, size = "moving.img", 32 << 20
	old, next := content(1, size), content(2, size)
	ways := map[string]func(t *testing.T, b []byte){
		"PUT":       func(t *testing.T, b []byte) { s.Put(t, name, b) },
		"aws s3 cp": func(t *testing.T, b []byte) { s.awsPut(t, name, b) },
		"delete":    func(t *testing.T, _ []byte) { s.Do(t, http.MethodDelete, imageRoute(name), nil).Must(t, 204) },
	}
	if *s3Endpoint == "" {
		ways["mv"] = func(t *testing.T, b []byte) {
			s.drop(t, "moving.tmp", b)
			if err := os.Rename(s.imagePath("moving.tmp"), s.imagePath(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(t *testing.T, b []byte) {
		f, err := os.OpenFile(s.imagePath(name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if *s3Endpoint == "" {
		t.Run("edited in place", func(t *testing.T) {
			s.Put(t, name, old)
			got, err := getAround(t, s, imageRoute(name), size/3, func() { edit(t, next) })
			// Bytes that were sent already cannot be recalled, but the last
			// block can be held back.
			if err == nil && sum(got) != sum(old) {
				t.Errorf("a whole answer that is not the old image")
			}
		})
	}
	for how, overwrite := range ways {
		t.Run(how, func(t *testing.T) {
			for _, path := range []string{imageRoute(name), "/images/" + sum(old)} {
				s.Put(t, name, old)
				got, err := getAround(t, s, path, size/3, func() { overwrite(t, next) })
				switch {
				case err == nil && sum(got) != sum(old):
					t.Errorf("%s: a whole answer that is not the old image", path)
				case !bytes.HasPrefix(old, got):
					t.Errorf("%s: %d bytes that are not the beginning of the old image", path, len(got))
				}
			}
		})
	}
}

// TestServeRangesDuringOverwrites requests ranges during overwrites: each range
// belongs to the version of its ETag, so a client that compares ETags never
// joins two versions.
func TestServeRangesDuringOverwrites(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const name, size, rounds = "versions.img", 1 << 20, 12
	versions := make([][]byte, 3)
	for i := range versions {
		versions[i] = content(uint64(i), size)
	}
	s.Put(t, name, versions[0])
	// from returns the version that the bytes at an offset belong to.
	from := func(off int, b []byte) int {
		for i, v := range versions {
			if bytes.Equal(v[off:off+len(b)], b) {
				return i
			}
		}
		return -1
	}
	var stop atomic.Bool
	var seen sync.Map // ETag to version
	var readers sync.WaitGroup
	for reader := range 3 {
		readers.Go(func() {
			for i := reader; !stop.Load(); i++ {
				off := i * 7919 % (size - 5000)
				r, err := s.try(http.MethodGet, imageRoute(name), nil, anonymous, header("Range", fmt.Sprintf("bytes=%d-%d", off, off+4999)))
				if err != nil || r.Status == http.StatusNotFound || r.Status == http.StatusConflict {
					continue // interrupted by an overwrite
				}
				v := -1
				if r.Status == http.StatusPartialContent && len(r.Body) == 5000 {
					v = from(off, r.Body)
				}
				if v < 0 {
					t.Errorf("%v: bytes of no version", r)
					return
				}
				if d := r.Header.Get("Repr-Digest"); d != "" && d != structuredDigest(sum(versions[v])) {
					t.Errorf("Repr-Digest %s with bytes of %s", d, sum(versions[v]))
					return
				}
				if other, loaded := seen.LoadOrStore(r.Header.Get("ETag"), v); loaded && other != v {
					t.Errorf("ETag %s was that of version %d and is that of %d", r.Header.Get("ETag"), other, v)
					return
				}
			}
		})
	}
	for i := range rounds {
		v := (i + 1) % len(versions)
		if i%3 == 2 {
			s.s3Put(t, name, versions[v])
		} else {
			s.Put(t, name, versions[v])
		}
	}
	stop.Store(true)
	readers.Wait()
}
