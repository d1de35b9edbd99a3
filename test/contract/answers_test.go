package contract

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	inside "imageroot/shared/disk"
	"imageroot/shared/image"
	"imageroot/shared/incus"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/served"
	"imageroot/shared/signing"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/web"
)

// unseen lists what the file says and [TestAnswers] does not cause, with the
// reason.
var unseen = map[string]string{
	"HashJob.bytes_total null":             "the size is known when the job is queued; the file keeps clients from relying on it",
	"POST /catalog/disks 501":              "disks are turned on at the server of this test",
	"CacheCatalog.fetched_at":              "there is no manifest by URL at the server of this test",
	"CacheCatalog.last_error":              "the manifest of this test has no error",
	"Disk.name null":                       "an image was deleted, and the next reconciliation removes its disk",
	"PUT /images/{key} 408":                "it takes two minutes",
	"PUT /uploads/{id}/parts/{number} 408": "it takes two minutes",
}

// TestAnswers causes each answer of every operation.
func TestAnswers(t *testing.T) {
	s := newServer(t, load(t), newCoverage(), setup{publicRead: true})
	for _, section := range []struct {
		name string
		test func(*testing.T)
	}{
		{"server", s.testServer},
		{"images", s.testImages},
		{"serve", s.testServe},
		{"raw", s.testRaw},
		{"boot", s.testBoot},
		{"checksums", s.testChecksums},
		{"uploads", s.testUploads},
		{"entries", s.testEntries},
		{"downloads", s.testDownloads},
		{"renames", s.testRenames},
		{"hashes", s.testHashes},
		{"disks", s.testDisks},
		{"exports", s.testExports},
		{"withcache", s.testWithcache},
		{"manifest", s.testManifest},
		{"details", s.testDetails},
		{"catalog", s.testCatalog},
		{"events", s.testEvents},
		{"queries", s.testQueries},
		{"bodies", s.testBodies},
		{"origin", s.testOrigin},
		{"at AWS", s.testAtAWS},
		{"tokens", s.testTokens},
		{"access", s.testAccess},
		{"session", s.testSession},
	} {
		if !t.Run(section.name, section.test) {
			return
		}
	}
	missing := s.cover.missing(s.doc)
	for _, m := range missing {
		if unseen[m] == "" {
			t.Errorf("docs/openapi.yaml says %s, and no answer has shown it", m)
		}
	}
	for m := range unseen {
		if !slices.Contains(missing, m) {
			t.Errorf("%s is listed as not seen, and was", m)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// sample returns the path of an operation with values for its parameters.
func sample(op *operation) string {
	return strings.NewReplacer("{key}", "sample.img", "{name}", "sample.img", "{id}", zeros[:32], "{number}", "1", "{sha256}", zeros).Replace(op.path)
}

func (s *server) testServer(t *testing.T) {
	for _, path := range []string{"/healthz", "/readyz", "/version"} {
		s.do(t, request{method: "GET", target: path, status: 200, anonymous: true})
	}
	err := errUnready
	s.ready.Store(&err)
	if a := s.get(t, "/readyz", 503); strings.Contains(string(a.body), err.Error()) {
		t.Errorf("the inside shows: %s", a.body)
	}
	s.ready.Store(nil)
	s.get(t, "/metrics", 200)

	hook := request{method: "POST", target: "/hooks/minio", status: 404, body: "{}", header: map[string]string{"Content-Type": "application/json"}, anonymous: true}
	s.do(t, hook)
	s.hook.Token = "webhook-token-0123456789"
	hook.status = 403
	s.do(t, hook)
	hook.anonymous, hook.header["Authorization"], hook.status = true, "Bearer "+s.hook.Token, 204
	s.do(t, hook)
	hook.body, hook.status = strings.Repeat(" ", 1<<20+1), 413
	s.do(t, hook)
	hook.body, hook.status = "no JSON", 422
	s.do(t, hook)

	a := s.do(t, request{method: "GET", target: "/version", status: 200, header: map[string]string{"X-Request-Id": "mine-1.2_3"}})
	if got := a.header.Get("X-Request-Id"); got != "mine-1.2_3" {
		t.Errorf("the request ID is %q", got)
	}
	a = s.do(t, request{method: "GET", target: "/version", status: 200, header: map[string]string{"X-Request-Id": "not/mine"}})
	if got := a.header.Get("X-Request-Id"); got == "not/mine" {
		t.Errorf("the request ID is %q", got)
	}
}

var (
	labBytes  = strings.Repeat("lab ", 25_000)
	labSum    = sha256.Sum256([]byte(labBytes))
	labSHA256 = hex.EncodeToString(labSum[:])
	labBase64 = base64.StdEncoding.EncodeToString(labSum[:])
	octets    = map[string]string{"Content-Type": "application/octet-stream"}
)

func with(fields map[string]string, name, value string) map[string]string {
	h := map[string]string{name: value}
	for n, v := range fields {
		h[n] = v
	}
	return h
}

func (s *server) testImages(t *testing.T) {
	put := func(status int, name, body string, header map[string]string) *answer {
		t.Helper()
		return s.do(t, request{method: "PUT", target: "/images/" + name, status: status, header: header, body: body})
	}
	const pi = "Pi%20lab.img"
	digest := "sha-256=:" + labBase64 + ":"
	put(201, pi, labBytes, with(octets, "Repr-Digest", digest))
	put(201, pi, labBytes, with(octets, "Content-Digest", digest))
	a := put(201, pi, labBytes, with(octets, "x-amz-checksum-sha256", labBase64))
	if a.object["name"] != "Pi lab.img" || a.object["sha256"] != labSHA256 || a.header.Get("Location") != s.url+"/images/"+labSHA256 {
		t.Errorf("%v %s", a.header, a.body)
	}
	put(201, "new.img", "new", with(octets, "If-None-Match", "*"))
	put(412, "new.img", "other", with(octets, "If-None-Match", "*"))
	put(501, "new.img", "other", with(octets, "If-None-Match", `"x"`))
	s.send(t, "DELETE", "/images/new.img", 204, "")
	put(400, pi, "other", with(octets, "Repr-Digest", digest))
	put(400, pi, "other", with(octets, "Repr-Digest", "sha-256=nonsense"))
	put(400, pi, "other", with(octets, "Content-Range", "bytes 0-4/10"))
	s.cut(t, "PUT", "/images/"+pi, 10, 400)
	put(422, "notes.txt", "other", octets)
	put(422, "disk.tar.gz", "other", octets)
	s.free.Store(4)
	put(507, pi, "other", octets)
	s.free.Store(-1)
	s.images.small.Store(true)
	put(413, pi, "other", octets)
	s.images.small.Store(false)

	put(201, "other.raw", "other", octets)
	s.send(t, "DELETE", "/images/other.raw", 204, "")
	s.send(t, "DELETE", "/images/other.raw", 404, "")
	s.send(t, "DELETE", "/images/notes.txt", 404, "")
	// An image that is not hashed.
	for _, name := range []string{"dropped.iso", "dropped.tar"} {
		if _, err := s.images.Put(t.Context(), store.Key(name), strings.NewReader("dropped"), 7); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *server) testServe(t *testing.T) {
	quoted := `"` + labSHA256 + `"`
	past, future := time.Unix(0, 0).UTC().Format(http.TimeFormat), time.Now().UTC().Add(time.Hour).Format(http.TimeFormat)
	for _, path := range []string{"/images/" + labSHA256, "/images/" + labSHA256 + "/any%20name.img"} {
		do := func(method string, status int, fields ...string) *answer {
			t.Helper()
			q := request{method: method, target: path, status: status, anonymous: true, header: map[string]string{}}
			for i := 0; i < len(fields); i += 2 {
				q.header[fields[i]] = fields[i+1]
			}
			return s.do(t, q)
		}
		for _, method := range []string{"GET", "HEAD"} {
			a := do(method, 200)
			if a.header.Get("ETag") != quoted || a.header.Get("Repr-Digest") != "sha-256=:"+labBase64+":" || method == "GET" && string(a.body) != labBytes {
				t.Errorf("%s %s: %v", method, path, a.header)
			}
			do(method, 304, "If-None-Match", quoted)
			do(method, 304, "If-Modified-Since", future)
			do(method, 200, "If-Match", quoted)
			do(method, 200, "If-Unmodified-Since", future)
			do(method, 412, "If-Match", `"another"`)
			do(method, 412, "If-Unmodified-Since", past)
		}
		a := do("GET", 206, "Range", "bytes=4-7", "If-Range", quoted)
		if string(a.body) != "lab " || a.header.Get("Content-Range") != "bytes 4-7/100000" {
			t.Errorf("%v %q", a.header, a.body)
		}
		do("GET", 200, "Range", "bytes=4-7", "If-Range", `"another"`)
		do("GET", 200, "Range", "lines=4-7")
		do("GET", 206, "Range", "bytes=0-1,4-7")
		if a := do("GET", 416, "Range", "bytes=100000-"); a.header.Get("Content-Range") != "bytes */100000" {
			t.Errorf("%v", a.header)
		}
		if a := do("GET", 416, "Range", "bytes=nonsense"); a.header.Get("Content-Range") != "" {
			t.Errorf("%v", a.header)
		}
		s.images.moving.Store(true)
		do("GET", 409)
		do("HEAD", 409)
		s.images.moving.Store(false)
	}
	// Ranges are defined for GET only, so the file does not name them for
	// others.
	r, err := http.NewRequestWithContext(t.Context(), "HEAD", s.url+"/images/"+labSHA256, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=4-7")
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("HEAD with a range: %d", resp.StatusCode)
	}
	s.get(t, "/images/"+strings.ToUpper(labSHA256), 200)
	s.get(t, "/images/Pi%20lab.img", 200)
	if a := s.get(t, "/images/dropped.iso", 200); a.header.Get("Repr-Digest") != "" || a.header.Get("ETag") == "" {
		t.Errorf("an image that is not hashed: %v", a.header)
	}
	if a := s.get(t, "/images/Pi%20lab.img/as%20this.img", 200); a.header.Get("Content-Disposition") != `attachment; filename="as this.img"` {
		t.Errorf("%v", a.header)
	}
	if a := s.get(t, "/images/Pi%20lab.img/no-image-name", 200); a.header.Get("Content-Disposition") != `attachment; filename="Pi lab.img"` {
		t.Errorf("%v", a.header)
	}
	for _, op := range s.doc.operations() {
		if strings.HasPrefix(op.path, "/images/{key}") && !op.unsafe() {
			s.do(t, request{method: op.method, target: sample(op), status: 404})
		}
	}
}

func (s *server) testRaw(t *testing.T) {
	disk := strings.Repeat("disk\x00", 20_000)
	var zipped strings.Builder
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write([]byte(disk)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"plain.img": disk, "zipped.img.gz": zipped.String(), "page.img": "<html>404"} {
		s.do(t, request{method: "PUT", target: "/images/" + name, status: 201, header: octets, body: body})
		defer s.send(t, "DELETE", "/images/"+name, 204, "")
	}
	for _, as := range []string{"", "/x"} {
		for _, name := range []string{"plain.img", "zipped.img.gz"} {
			for _, method := range []string{"GET", "HEAD"} {
				ask := func(status int, fields ...string) *answer {
					t.Helper()
					q := request{method: method, target: "/raw/" + name + as, status: status, anonymous: true, header: map[string]string{}}
					for i := 0; i < len(fields); i += 2 {
						q.header[fields[i]] = fields[i+1]
					}
					return s.do(t, q)
				}
				a := ask(200)
				if method == "GET" && string(a.body) != disk {
					t.Errorf("%s: %d bytes", name, len(a.body))
				}
				etag, past := a.header.Get("ETag"), time.Unix(0, 0).UTC().Format(http.TimeFormat)
				ask(200, "Accept-Encoding", "zstd")
				ask(304, "If-None-Match", etag)
				ask(200, "If-Match", etag, "If-Modified-Since", past)
				ask(412, "If-Match", `"another"`)
				ask(412, "If-Unmodified-Since", past)
				ask(200, "If-Unmodified-Since", a.header.Get("Last-Modified"))
				s.images.moving.Store(true)
				ask(409)
				s.images.moving.Store(false)
				if method == "GET" && name == "plain.img" {
					ask(206, "Range", "bytes=5-9", "If-Range", etag)
					ask(206, "Range", "bytes=5-9,15-19")
					ask(416, "Range", "bytes=100000-")
				}
			}
		}
	}
	for _, op := range s.doc.operations() {
		if strings.HasPrefix(op.path, "/raw/{key}") {
			s.do(t, request{method: op.method, target: sample(op), status: 404})
			s.do(t, request{method: op.method, target: strings.Replace(strings.Replace(op.path, "{key}", "page.img", 1), "{name}", "x", 1), status: 422})
		}
	}
}

func (s *server) testChecksums(t *testing.T) {
	signatures := []string{"/images/SHA256SUMS.gpg", "/images/SHA256SUMS.minisig", "/raw/SHA256SUMS.gpg", "/raw/SHA256SUMS.minisig"}
	for _, path := range append(signatures, "/key.gpg", "/minisign.pub") {
		s.get(t, path, 404)
	}
	key, err := signing.New("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.key.Store(key)
	defer s.key.Store(nil)
	s.get(t, "/key.gpg", 200)
	s.get(t, "/minisign.pub", 200)
	for _, path := range append(signatures, "/images/SHA256SUMS", "/images/SHA512SUMS", "/images/PULP_MANIFEST", "/raw/SHA256SUMS", "/os_list.json", "/streams/v1/index.json", "/streams/v1/images.json") {
		a := s.get(t, path, 200)
		s.do(t, request{method: "GET", target: path, status: 304, header: map[string]string{"If-None-Match": a.header.Get("ETag")}})
		s.do(t, request{method: "GET", target: path, status: 200, header: map[string]string{"Accept-Encoding": "gzip"}})
	}
}

func (s *server) testBoot(t *testing.T) {
	disk := make([]byte, 1<<20)
	copy(disk, "\xeb\xfe")
	copy(disk[510:], "\x55\xaa")
	const name = "boots.img"
	s.do(t, request{method: "PUT", target: "/images/" + name, status: 201, header: octets, body: string(disk)})
	if err := s.hasher.Handle(t.Context(), queue.InspectImage(name).Encode()); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"", "?q=boots", "?page=1"} {
		if a := s.get(t, "/boot.ipxe"+query, 200); !strings.HasPrefix(string(a.body), "#!ipxe\n") || !strings.Contains(string(a.body), " boots.img ") {
			t.Errorf("%s", a.body)
		}
	}
	for query, want := range map[string]string{"": "#!/bin/sh\n", "?name=" + name: "state ready\nsize 1048576\n", "?name=other.img": "state fail\n"} {
		if a := s.get(t, "/flash.sh"+query, 200); !strings.HasPrefix(string(a.body), want) {
			t.Errorf("%s: %s", query, a.body)
		}
	}
	s.get(t, "/flash.sh?name=boots.img&from=x", 400)
	s.get(t, "/boot.ipxe?page=0", 400)
	s.get(t, "/boot.ipxe?q="+strings.Repeat("x", 101), 400)
	if a := s.get(t, "/boot/"+name+".ipxe", 200); !strings.Contains(string(a.body), "sanboot ../raw/") {
		t.Errorf("%s", a.body)
	}
	s.get(t, "/boot/other.img.ipxe", 404)
	s.get(t, "/boot/"+name, 404)
	s.images.moving.Store(true)
	s.get(t, "/boot/"+name+".ipxe", 409)
	s.images.moving.Store(false)
	s.send(t, "DELETE", "/images/"+name, 204, "")

	// UEFI HTTP boot knows disks by their media type.
	disk[446+4], disk[446+12] = 0xef, 1
	cd := make([]byte, 40<<10)
	copy(cd[16*2048:], "\x01CD001")
	copy(cd[17*2048:], "\x00CD001\x01EL TORITO SPECIFICATION")
	cd[17*2048+0x47] = 19
	copy(cd[19*2048:], "\x01\xef")
	copy(cd[19*2048+30:], "\x55\xaa\x88")
	for name, b := range map[string][]byte{"efi.img": disk, "efi.iso": cd} {
		s.do(t, request{method: "PUT", target: "/images/" + name, status: 201, header: octets, body: string(b)})
		if err := s.hasher.Handle(t.Context(), queue.InspectImage(image.Name(name)).Encode()); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/images/" + name, "/images/" + name + "/x", "/raw/" + name, "/raw/" + name + "/x"} {
			for _, method := range []string{"GET", "HEAD"} {
				a := s.do(t, request{method: method, target: path, status: 200})
				if got, want := a.header.Get("Content-Type"), "application/vnd.efi-"+name[len("efi."):]; got != want {
					t.Errorf("%s %s: %s, want %s", method, path, got, want)
				}
			}
			s.do(t, request{method: "GET", target: path, status: 206, header: map[string]string{"Range": "bytes=0-9"}})
		}
		s.send(t, "DELETE", "/images/"+name, 204, "")
	}
}

func (s *server) testUploads(t *testing.T) {
	const body = "0123456789"
	sum := sha256.Sum256([]byte(body))
	begin := func(name string) (path string) {
		t.Helper()
		a := s.send(t, "POST", "/uploads", 201, `{"name": "`+name+`", "size_bytes": 10, "sha256": "`+hex.EncodeToString(sum[:])+`"}`)
		return "/uploads/" + text(a.object, "id")
	}
	part := func(url string, status int, body string, header map[string]string) *answer {
		t.Helper()
		return s.do(t, request{method: "PUT", target: url, status: status, body: body, header: header})
	}
	on := func(target string, status int, body, condition string) *answer {
		t.Helper()
		return s.do(t, request{method: "POST", target: target, status: status, body: body, header: map[string]string{"Content-Type": "application/json", "If-None-Match": condition}})
	}
	u := "/uploads/" + text(on("/uploads", 201, `{"name": "raced.raw", "size_bytes": 10}`, "*").object, "id")
	part(u+"/parts/1", 200, body, octets)
	s.do(t, request{method: "PUT", target: "/images/raced.raw", status: 201, body: "first", header: octets})
	on("/uploads", 501, `{"name": "lab.raw", "size_bytes": 10}`, `"x"`)
	on("/uploads", 412, `{"name": "raced.raw", "size_bytes": 10}`, "*")
	on(u+"/complete", 501, "{}", `"x"`)
	on(u+"/complete", 412, "{}", "*")
	if a := s.send(t, "POST", u+"/complete", 412, ""); a.object["code"] != "precondition" {
		t.Errorf("%s", a.body)
	}
	if a := s.get(t, u, 200); a.object["status"] != "uploading" || a.object["create"] != true {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/images/raced.raw", 204, "")
	on(u+"/complete", 202, "{}", "*")
	s.assemblies.work(t, s.uploader.Handle)
	s.send(t, "DELETE", "/images/raced.raw", 204, "")
	s.send(t, "DELETE", u, 204, "")
	u = begin("lab.raw")
	a := s.get(t, u, 200)
	url1 := text(a.at(t, "parts.0").(object), "url")
	if url1 != u+"/parts/1" || a.at(t, "parts.0.done") != false {
		t.Errorf("%s", a.body)
	}
	s.send(t, "POST", u+"/complete", 409, "")
	part(url1, 422, "short", octets)
	part(url1, 400, body, with(octets, "Repr-Digest", "sha-256=:"+labBase64+":"))
	part(u+"/parts/2", 404, body, octets)
	part("/uploads/"+zeros[:32]+"/parts/1", 404, body, octets)
	s.cut(t, "PUT", url1, 10, 400)
	if a := part(url1, 200, body, octets); a.object["done"] != true || a.object["url"] != url1 {
		t.Errorf("%s", a.body)
	}
	a = s.get(t, u, 200)
	if a.at(t, "parts.0.done") != true || a.at(t, "hashed.sha256") != hex.EncodeToString(sum[:]) {
		t.Errorf("%s", a.body)
	}
	etag := text(a.at(t, "parts.0").(object), "etag")
	s.send(t, "POST", u+"/complete", 400, `{"sha256": "`+zeros+`"}`)
	s.send(t, "POST", u+"/complete", 422, `{"sha256": "none"}`)
	s.send(t, "POST", u+"/complete", 422, `{"etags": []}`)
	s.send(t, "POST", u+"/complete", 409, `{"etags": ["another"]}`)
	if a := s.get(t, "/uploads", 200); a.at(t, "uploads.0.parts") != nil {
		t.Errorf("the list has parts: %s", a.body)
	}
	if a := s.send(t, "POST", u+"/complete", 202, `{"replace": false, "etags": ["`+etag+`"], "sha256": "`+hex.EncodeToString(sum[:])+`"}`); a.object["status"] != "completing" || a.object["parts"] != nil {
		t.Errorf("%s", a.body)
	}
	part(url1, 409, body, octets)
	s.assemblies.work(t, s.uploader.Handle)
	if a := s.get(t, u, 200); a.object["status"] != "completed" || a.object["sha256"] != hex.EncodeToString(sum[:]) {
		t.Errorf("%s", a.body)
	}
	if a := s.send(t, "POST", u+"/complete", 202, ""); a.object["status"] != "completed" {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", u, 204, "")
	s.get(t, u, 404)
	s.send(t, "DELETE", u, 404, "")
	s.send(t, "POST", u+"/complete", 404, "")

	// An upload whose parts are lost while it waits for its assembly.
	u = begin("lost.raw")
	part(u+"/parts/1", 200, body, octets)
	s.form(t, u+"/complete", 202, url.Values{"sha256": {hex.EncodeToString(sum[:])}, "replace": {"true"}})
	for p, err := range s.images.PendingUploads(t.Context(), "lost.raw") {
		if err != nil {
			t.Fatal(err)
		}
		if err := s.images.AbortUpload(t.Context(), p.Key, p.ID); err != nil {
			t.Fatal(err)
		}
	}
	s.send(t, "DELETE", u, 409, "")
	// So much later that no other process can still be working on it.
	s.uploader.Now = func() time.Time { return time.Now().Add(24 * time.Hour) }
	s.assemblies.work(t, s.uploader.Handle)
	s.uploader.Now = time.Now
	if a := s.get(t, u, 200); a.object["status"] != "failed" {
		t.Errorf("%s", a.body)
	}

	a = s.form(t, "/uploads", 201, url.Values{"name": {"form.img"}, "size_bytes": {"10"}})
	s.send(t, "DELETE", "/uploads/"+text(a.object, "id"), 204, "")

	request := s.doc.follow(object{"$ref": "#/components/schemas/UploadRequest"})
	most := child(child(request, "properties"), "size_bytes")["maximum"].(int)
	a = s.send(t, "POST", "/uploads", 201, fmt.Sprintf(`{"name": "most.img", "size_bytes": %d}`, most))
	s.send(t, "DELETE", "/uploads/"+text(a.object, "id"), 204, "")
	s.send(t, "POST", "/uploads", 413, fmt.Sprintf(`{"name": "most.img", "size_bytes": %d}`, most+1))
	for _, body := range []string{`{"name": "x.txt", "size_bytes": 1}`, `{"name": "x.img"}`, `{"name": "x.img", "size_bytes": 0}`, `{"name": 1, "size_bytes": 1}`} {
		s.send(t, "POST", "/uploads", 422, body)
	}
	s.free.Store(4)
	s.send(t, "POST", "/uploads", 507, `{"name": "x.img", "size_bytes": 5}`)
	s.free.Store(-1)
}

// A publisher is a web server with images.
type publisher struct {
	url string
	// changed: /changed.img is another image than before; gone: /gone.img does
	// not exist any more.
	changed, gone atomic.Bool
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	p := &publisher{}
	serve := func(etag string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", etag)
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(labBytes))
		}
	}
	sum512 := sha512.Sum512([]byte(labBytes))
	mux := http.NewServeMux()
	mux.Handle("/lab.img", serve(`"1"`))
	mux.Handle("/deb.qcow2", serve(`"1"`))
	mux.HandleFunc("/SHA256SUMS", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%s *lab.img\n", labSHA256) })
	mux.HandleFunc("/SHA512SUMS", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%x  deb.qcow2\n", sum512) })
	mux.HandleFunc("/changed.img", func(w http.ResponseWriter, r *http.Request) {
		serve(map[bool]string{false: `"1"`, true: `"2"`}[p.changed.Load()])(w, r)
	})
	mux.HandleFunc("/gone.img", func(w http.ResponseWriter, r *http.Request) {
		if p.gone.Load() {
			http.NotFound(w, r)
			return
		}
		serve(`"1"`)(w, r)
	})
	// An image of unknown size that never ends.
	mux.HandleFunc("/endless.img", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("begin"))
		_ = http.NewResponseController(w).Flush()
		if r.Method == http.MethodGet {
			<-r.Context().Done()
		}
	})
	h := httptest.NewServer(mux)
	t.Cleanup(h.Close)
	p.url = h.URL
	return p
}

func quote(fields ...string) string {
	var b strings.Builder
	for i := 0; i < len(fields); i += 2 {
		fmt.Fprintf(&b, ", %q: %q", fields[i], fields[i+1])
	}
	return "{" + strings.TrimPrefix(b.String(), ", ") + "}"
}

func (s *server) testEntries(t *testing.T) {
	p := newPublisher(t)
	add := func(status int, fields ...string) *answer {
		t.Helper()
		return s.send(t, "POST", "/catalog/entries", status, quote(fields...))
	}
	lab := p.url + "/lab.img"
	if a := add(201, "image_url", lab, "sha_url", p.url+"/SHA256SUMS"); a.object["sha256"] != labSHA256 || a.object["src"] != lab {
		t.Errorf("%s", a.body)
	}
	add(409, "image_url", lab)
	s.send(t, "POST", "/catalog/entries", 200, `{"image_url": "`+lab+`", "refresh": true}`)
	s.form(t, "/catalog/entries", 200, url.Values{"image_url": {lab}, "sha_url": {""}, "sha256": {labSHA256}, "refresh": {"true"}})
	s.send(t, "POST", "/catalog/entries", 200, `{"image_url": "`+lab+`", "refresh": true, "sha256": "`+labSHA256+`"}`)
	if a := add(201, "image_url", p.url+"/deb.qcow2", "sha_url", p.url+"/SHA512SUMS"); a.object["sha512"] == nil || a.object["sha256"] != nil {
		t.Errorf("%s", a.body)
	}
	if a := add(201, "image_url", p.url+"/endless.img", "name", "endless.img"); a.object["size_bytes"] != nil {
		t.Errorf("%s", a.body)
	}
	add(400, "image_url", p.url+"/nothing.img")
	add(400, "image_url", p.url+"/gone.img", "sha_url", p.url+"/SHA256SUMS")
	add(400, "image_url", "http://169.254.169.254/x.img")
	add(422, "image_url", "ftp://example.org/x.img")
	add(422, "image_url", "")
	add(422)

	describe := func(status int, fields ...string) *answer {
		t.Helper()
		return s.send(t, "POST", "/catalog/sources", status, quote(fields...))
	}
	if a := describe(200, "image_url", lab); a.object["sha_url"] != p.url+"/SHA256SUMS" || a.object["sha256"] != labSHA256 || a.object["known"] != true {
		t.Errorf("%s", a.body)
	}
	s.form(t, "/catalog/sources", 200, url.Values{"image_url": {p.url + "/endless.img"}})
	if a := describe(200, "image_url", p.url+"/deb.qcow2"); a.object["sha512"] == nil {
		t.Errorf("%s", a.body)
	}
	describe(400, "image_url", p.url+"/nothing.img")
	describe(422, "image_url", "ftp://example.org/x.img")
	describe(422)
	s.send(t, "POST", "/catalog/entries", 400, `{"image_url": "`+lab+`", "refresh": true, "sha256": "`+strings.Repeat("a", 64)+`"}`)
	add(422, "image_url", lab, "sha256", "abc")

	// A fetch detects that its source has changed.
	changed := p.url + "/changed.img"
	add(201, "image_url", changed)
	p.changed.Store(true)
	s.send(t, "POST", "/catalog/downloads", 202, quote("src", changed))
	s.fetches.work(t, s.fetcher.Handle)
	if a := s.get(t, "/catalog/entries", 200); a.at(t, "entries.0.warning") == nil || a.at(t, "entries.0.name") != "changed.img" {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/catalog/entries?src="+url.QueryEscape(changed), 204, "")
	s.send(t, "DELETE", "/catalog/entries?src="+url.QueryEscape(changed), 404, "")
	s.send(t, "DELETE", "/catalog/entries", 422, "")
	for _, path := range []string{"/lab.img", "/deb.qcow2", "/endless.img"} {
		s.send(t, "DELETE", "/catalog/entries?src="+url.QueryEscape(p.url+path), 204, "")
	}
}

func (s *server) testDownloads(t *testing.T) {
	p := newPublisher(t)
	s.send(t, "DELETE", "/images/Pi%20lab.img", 204, "")      // the same bytes
	s.send(t, "DELETE", "/catalog/cache/"+labSHA256, 204, "") // of a removed entry
	enqueue := func(status int, fields ...string) *answer {
		t.Helper()
		return s.send(t, "POST", "/catalog/downloads", status, quote(fields...))
	}
	s.send(t, "POST", "/catalog/entries", 201, quote("image_url", p.url+"/lab.img", "sha_url", p.url+"/SHA256SUMS"))
	s.send(t, "POST", "/catalog/entries", 201, quote("image_url", p.url+"/gone.img"))
	s.send(t, "POST", "/catalog/entries", 201, quote("image_url", p.url+"/endless.img"))

	if a := enqueue(202, "name", "lab.img"); a.object["status"] != "queued" {
		t.Errorf("%s", a.body)
	}
	s.form(t, "/catalog/downloads", 202, url.Values{"name": {"lab.img"}})
	s.fetches.work(t, s.fetcher.Handle)
	if a := enqueue(202, "ref", labSHA256[:12]); a.object["status"] != "completed" || a.object["sha256"] != labSHA256 {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/catalog/cache/"+strings.ToUpper(labSHA256), 204, "")
	s.send(t, "DELETE", "/catalog/cache/"+labSHA256, 404, "")
	s.send(t, "DELETE", "/catalog/cache/nonsense", 422, "")

	p.gone.Store(true)
	enqueue(202, "src", p.url+"/gone.img")
	s.fetches.work(t, s.fetcher.Handle)
	if a := s.get(t, "/catalog/downloads", 200); a.at(t, "downloads.0.status") != "failed" || a.at(t, "downloads.0.error") == nil {
		t.Errorf("%s", a.body)
	}

	enqueue(202, "name", "endless.img")
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.fetches.work(t, s.fetcher.Handle)
	}()
	s.until(t, "/catalog/downloads", "downloads.0.status", "running")
	s.send(t, "DELETE", "/catalog/downloads/endless.img?src="+url.QueryEscape(p.url+"/endless.img"), 204, "")
	<-done
	if a := s.get(t, "/catalog/downloads", 200); a.at(t, "downloads.0.status") != "cancelled" || a.at(t, "downloads.0.bytes_total") != nil {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/catalog/downloads/endless.img", 204, "") // which has ended
	s.send(t, "DELETE", "/catalog/downloads/nothing.img", 404, "")

	enqueue(404, "name", "nothing.img")
	enqueue(404, "ref", zeros[:12])
	enqueue(409, "name", "dropped.iso")
	enqueue(422, "src", "ftp://example.org/x.img")
	enqueue(422)
}

// until repeats a request until the answer has the wanted value.
func (s *server) until(t *testing.T, target, path string, want any) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		a := s.get(t, target, 200)
		if a.at(t, path) == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s did not become %v: %s", path, want, a.body)
		}
	}
}

func (s *server) testHashes(t *testing.T) {
	enqueue := func(status int, fields ...string) *answer {
		t.Helper()
		return s.send(t, "POST", "/catalog/hashes", status, quote(fields...))
	}
	if a := enqueue(202, "name", "dropped.iso"); a.object["status"] != "queued" {
		t.Errorf("%s", a.body)
	}
	if a := s.get(t, "/catalog?q=dropped", 200); a.at(t, "images.0.hash_state") != "queued" || a.at(t, "images.0.sha256") != nil {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/catalog/hashes/dropped.iso", 204, "")
	if a := s.get(t, "/catalog/hashes", 200); a.at(t, "hashes.0.status") != "cancelled" {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/catalog/hashes/dropped.iso", 204, "") // which has ended
	s.form(t, "/catalog/hashes", 202, url.Values{"name": {"dropped.iso"}})
	s.hashes.work(t, s.hasher.Handle)
	if a := enqueue(202, "name", "dropped.iso"); a.object["status"] != "completed" || a.object["sha256"] == nil {
		t.Errorf("%s", a.body)
	}

	if _, err := s.images.Put(t.Context(), "brief.img", strings.NewReader("brief"), 5); err != nil {
		t.Fatal(err)
	}
	enqueue(202, "name", "brief.img")
	if err := s.images.Delete(t.Context(), "brief.img"); err != nil {
		t.Fatal(err)
	}
	s.hashes.work(t, s.hasher.Handle)
	if a := s.get(t, "/catalog/hashes", 200); a.at(t, "hashes.0.status") != "failed" || a.at(t, "hashes.0.error") == nil {
		t.Errorf("%s", a.body)
	}
	enqueue(404, "name", "brief.img")
	enqueue(422, "name", "notes.txt")
	s.send(t, "DELETE", "/catalog/hashes/nothing.img", 404, "")
	s.testChecks(t)
}

// testChecks has a truncated image checked.
func (s *server) testChecks(t *testing.T) {
	const name = "short.img.gz"
	if _, err := s.images.Put(t.Context(), name, strings.NewReader("\x1f\x8b\x08\x00\x00"), 5); err != nil {
		t.Fatal(err)
	}
	s.send(t, "POST", "/catalog/hashes", 202, quote("name", name))
	s.hashes.work(t, s.hasher.Handle)
	if a := s.get(t, "/catalog/hashes", 200); a.at(t, "hashes.0.stage") != "check" || a.at(t, "hashes.0.status") != "queued" {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/catalog/hashes/"+name, 204, "")
	if a := s.get(t, "/catalog?q="+name, 200); a.at(t, "images.0.content") != "gzip" || a.at(t, "images.0.hash_state") != "hashed" || a.at(t, "images.0.raw_sha256") != nil {
		t.Errorf("%s", a.body)
	}
	s.send(t, "POST", "/catalog/hashes", 202, quote("name", name))
	s.checks.work(t, s.hasher.Handle)
	if a := s.get(t, "/catalog/hashes", 200); a.at(t, "hashes.0.stage") != "check" || a.at(t, "hashes.0.status") != "failed" || a.at(t, "hashes.0.error") == nil {
		t.Errorf("%s", a.body)
	}
	if a := s.get(t, "/catalog?q="+name, 200); len(a.at(t, "images.0.warnings").([]any)) != 1 {
		t.Errorf("%s", a.body)
	}
	// A disk gets this one unchanged.
	if _, err := s.images.Put(t.Context(), "whole.img", strings.NewReader("\x00\x01"), 2); err != nil {
		t.Fatal(err)
	}
	s.send(t, "POST", "/catalog/hashes", 202, quote("name", "whole.img"))
	s.hashes.work(t, s.hasher.Handle)
	if a := s.get(t, "/catalog?q=whole.img", 200); a.at(t, "images.0.raw_sha256") != a.at(t, "images.0.sha256") ||
		a.at(t, "images.0.raw_size_bytes") != a.at(t, "images.0.size_bytes") || a.at(t, "images.0.virtual_size_bytes") == nil {
		t.Errorf("%s", a.body)
	}
}

func (s *server) testDisks(t *testing.T) {
	const name = "packed.img.gz"
	disk := bytes.Repeat([]byte("\x00\x01\x02"), 1000)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(disk); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.images.Put(t.Context(), name, &packed, -1); err != nil {
		t.Fatal(err)
	}
	post := func(status int, fields ...string) *answer {
		t.Helper()
		return s.send(t, "POST", "/catalog/disks", status, quote(fields...))
	}
	part := func(status int) *answer {
		t.Helper()
		return s.do(t, request{method: http.MethodGet, target: "/raw/packed.img", status: status, header: map[string]string{"Range": "bytes=5-"}})
	}
	post(409, "name", name)
	s.send(t, "POST", "/catalog/hashes", 202, quote("name", name))
	s.hashes.work(t, s.hasher.Handle)
	if a := part(503); a.header.Get("Retry-After") == "" {
		t.Errorf("%v", a.header)
	}
	sha, _ := post(202, "name", name).object["sha256"].(string)
	if a := s.get(t, "/catalog/disks", 200); a.at(t, "jobs.0.status") != "queued" || a.at(t, "jobs.0.name") != name {
		t.Errorf("%s", a.body)
	}
	s.disks.work(t, s.hasher.Handle)
	if a := post(202, "sha256", sha); a.object["status"] != "completed" {
		t.Errorf("%s", a.body)
	}
	s.form(t, "/catalog/disks", 202, url.Values{"name": {name}})
	if a := s.get(t, "/catalog/disks", 200); a.at(t, "disks.0.name") != name || fmt.Sprint(a.at(t, "disks.0.size_bytes")) != "3000" || a.at(t, "stored_bytes") == nil {
		t.Errorf("%s", a.body)
	}
	if a := part(206); !bytes.Equal(a.body, disk[5:]) {
		t.Errorf("%d bytes, %d wanted, or wrong ones", len(a.body), len(disk)-5)
	}
	s.send(t, "DELETE", "/catalog/disks/"+sha, 204, "")
	s.send(t, "DELETE", "/catalog/disks/"+sha, 404, "")
	post(404, "name", "nothing.img")
	post(422, "name", "whole.img")

	if _, err := s.images.Put(t.Context(), "cut.img.gz", strings.NewReader("\x1f\x8b\x08\x00\x00\x00"), 6); err != nil {
		t.Fatal(err)
	}
	s.send(t, "POST", "/catalog/hashes", 202, quote("name", "cut.img.gz"))
	s.hashes.work(t, s.hasher.Handle)
	post(202, "name", "cut.img.gz")
	s.disks.work(t, s.hasher.Handle)
	if a := s.get(t, "/catalog/disks", 200); a.at(t, "jobs.0.status") != "failed" || a.at(t, "jobs.0.error") == nil {
		t.Errorf("%s", a.body)
	}
}

func (s *server) testRenames(t *testing.T) {
	post := func(status int, name, to string) *answer {
		t.Helper()
		return s.send(t, "POST", "/images/"+name+"/rename", status, quote("name", to))
	}
	for _, name := range []string{"before.img", "other.img"} {
		s.do(t, request{method: "PUT", target: "/images/" + name, header: octets, body: name, status: 201})
	}
	post(404, "nothing.img", "after.img")
	post(409, "before.img", "other.img")
	post(422, "before.img", "after.txt")
	if a := post(202, "before.img", "after.img"); a.object["status"] != "queued" {
		t.Errorf("%s", a.body)
	}
	post(409, "before.img", "third.img")
	s.renames.work(t, s.uploader.Handle)
	if a := post(202, "before.img", "after.img"); a.object["status"] != "completed" || a.object["sha256"] == nil {
		t.Errorf("%s", a.body)
	}
	if a := s.get(t, "/catalog/renames", 200); a.at(t, "renames.0.status") != "completed" {
		t.Errorf("%s", a.body)
	}
	s.form(t, "/images/after.img/rename", 202, url.Values{"name": {"before.img"}})
	s.send(t, "DELETE", "/catalog/renames/after.img", 204, "")
	s.send(t, "DELETE", "/catalog/renames/nothing.img", 404, "")
	post(202, "after.img", "before.img")
	s.send(t, "DELETE", "/images/after.img", 204, "")
	s.renames.work(t, s.uploader.Handle)
	if a := s.get(t, "/catalog/renames", 200); a.at(t, "renames.0.status") != "failed" || a.at(t, "renames.0.error") == nil {
		t.Errorf("%s", a.body)
	}
}

func (s *server) testExports(t *testing.T) {
	const route = "/nbdmux/exports"
	s.do(t, request{method: "GET", target: "/nbdmux/healthz", status: 200, anonymous: true})
	post := func(status int, name, src string) *answer {
		t.Helper()
		return s.send(t, "POST", route, status, quote("name", name, "src_url", src))
	}
	is := func(name, status string) {
		t.Helper()
		var all []object
		a := s.do(t, request{method: "GET", target: route, status: 200, anonymous: true})
		if err := json.Unmarshal(a.body, &all); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(x object) bool { return x["name"] == name })
		if i < 0 || all[i]["status"] != status {
			t.Errorf("%s, where %s is not %s", a.body, name, status)
		}
	}
	p := newPublisher(t)
	post(400, "../lab", p.url+"/lab.img")
	post(400, "lab", "")
	post(400, "lab", p.url+"/nothing.img")
	post(422, "lab", "ftp://images.example.org/lab.img")
	s.send(t, "POST", route, 200, `{"name": "lab", "src_url": "`+p.url+`/lab.img", "format": "img", "readonly": true}`)
	is("lab", "queued")
	s.fetches.work(t, s.fetcher.Handle)
	is("lab", "fetching") // it waits for its inspection

	if _, err := s.images.Put(t.Context(), "unhashed.img", strings.NewReader("new"), 3); err != nil {
		t.Fatal(err)
	}
	post(409, "own", s.url+"/images/unhashed.img")
	s.send(t, "DELETE", "/images/unhashed.img", 204, "")
	post(200, "own", s.url+"/images/packed.img.gz")
	is("own", "decompressing")
	s.disks.work(t, s.hasher.Handle)
	is("own", "ready")
	s.form(t, route, 200, url.Values{"name": {"own"}, "src_url": {s.url + "/images/packed.img.gz"}, "readonly": {"false"}})
	s.send(t, "DELETE", "/images/packed.img.gz", 204, "")
	is("own", "failed")
	s.exports.Port = 0
	is("own", "failed")
	post(501, "own", s.url+"/images/packed.img.gz")
	s.send(t, "DELETE", route+"/own", 204, "")
	s.send(t, "DELETE", route+"/own", 404, "")
}

func (s *server) testWithcache(t *testing.T) {
	get := func(status int, target string, header ...string) *answer {
		t.Helper()
		q := request{method: "GET", target: "/withcache/" + target, status: status, anonymous: true, header: map[string]string{}}
		for i := 0; i < len(header); i += 2 {
			q.header[header[i]] = header[i+1]
		}
		return s.do(t, q)
	}
	by := func(src string) string { return "b/" + base64.RawURLEncoding.EncodeToString([]byte(src)) + "/x.img" }
	get(200, "healthz")
	catalog := get(200, "catalog")
	get(200, "catalog", "Accept-Encoding", "gzip")
	get(304, "catalog", "If-None-Match", catalog.header.Get("ETag"))
	src := text(catalog.at(t, "entries.0").(object), "src")
	whole := get(200, by(src))
	get(206, by(src), "Range", "bytes=0-0", "If-Range", whole.header.Get("ETag"), "If-Match", whole.header.Get("ETag"))
	get(304, by(src), "If-None-Match", whole.header.Get("ETag"))
	get(412, by(src), "If-Match", `"other"`)
	get(416, by(src), "Range", "bytes=1000000000-")
	get(200, "blob?url="+url.QueryEscape(src))
	get(400, "blob")
	get(404, "blob?url=https://images.example.org/missing.img")
	get(400, "b/%20/x.img")
	get(404, by("https://images.example.org/missing.img"))

	const entries = "/withcache/catalog/entries"
	p := newPublisher(t)
	post := func(status int, target, body string) *answer {
		t.Helper()
		return s.send(t, "POST", target, status, body)
	}
	whoever := `, "arch": "x86_64", "description": "a lab", "netboot_ref": "boot", "resolved_src": "` + p.url + `/lab.img", "format": "img", "size_bytes": 7`
	post(201, entries, `{"name": "A lab (x86_64)", "src": "`+p.url+`/lab.img"`+whoever+`}`)
	post(409, entries, `{"name": "A lab (x86_64)", "src": "`+p.url+`/other.img"}`)
	post(400, entries, `{"name": "x", "src": "`+p.url+`/lab.img", "notes": "none"}`)
	post(400, entries, `{"name": "x", "src": "`+p.url+`/nothing.img"}`)
	post(422, entries, `{"name": "x", "src": "ftp://images.example.org/x.img"}`)
	download := entries + "/A%20lab%20(x86_64)/download"
	if a := post(202, download, ""); a.object["status"] != "queued" || a.object["name"] != "A lab (x86_64)" {
		t.Errorf("%s", a.body)
	}
	s.fetches.work(t, s.fetcher.Handle)
	if a := get(200, "catalog"); !strings.Contains(string(a.body), `"netboot_ref":"boot"`) {
		t.Errorf("%s", a.body)
	}
	if a := post(202, download, ""); a.object["status"] != "completed" {
		t.Errorf("%s", a.body)
	}
	post(202, download+"?force=1", "")
	post(404, entries+"/none/download", "")
	s.send(t, "DELETE", entries, 400, "")
	s.send(t, "DELETE", entries+"?name=none", 404, "")
	s.send(t, "DELETE", entries+"?name="+url.QueryEscape(text(catalog.at(t, "entries.0").(object), "name")), 409, "")
	s.send(t, "DELETE", entries+"?name=A%20lab%20(x86_64)", 204, "")
	post(201, entries, `{"name": "pinned", "src": "`+p.url+`/lab.img", "sha256": "`+strings.Repeat("a", 64)+`"}`)
	s.send(t, "DELETE", entries+"?name=pinned", 204, "")
	s.form(t, entries, 201, url.Values{"name": {"by form"}, "src": {p.url + "/lab.img"}, "sha256": {strings.Repeat("a", 64)}})
	s.send(t, "DELETE", entries+"?name=by+form", 204, "")
	const misses = "/withcache/misses"
	post(202, misses, `{"src": "`+p.url+`/lab.img"}`)
	s.form(t, misses, 202, url.Values{"src": {p.url + "/lab.img"}})
	post(400, misses, `{}`)
	post(422, misses, `{"src": "x"}`)
	s.fetches.work(t, s.fetcher.Handle)
	s.send(t, "DELETE", "/catalog/entries?src="+p.url+"/lab.img", 204, "")
}

func (s *server) testManifest(t *testing.T) {
	put := func(status int, body string) *answer {
		t.Helper()
		return s.do(t, request{
			method: "PUT", target: "/catalog.toml", status: status, body: body,
			header: map[string]string{"Content-Type": "application/toml"},
		})
	}
	// The example of the file is a manifest.
	op := s.doc.ops["PUT /catalog.toml"]
	example := text(child(child(op.body, "content"), "application/toml"), "example")
	if a := put(200, example); fmt.Sprint(a.object["images"]) != "1" {
		t.Errorf("%s", a.body)
	}
	if a := put(422, "version = 1\n\n[[images]]\nname = 'x.txt'\n"); !strings.HasPrefix(text(a.object, "detail"), "line ") {
		t.Errorf("%s", a.body)
	}
	put(413, strings.Repeat("#", 1<<20+2))
	s.cut(t, "PUT", "/catalog.toml", 10, 400)
	a := s.do(t, request{method: "GET", target: "/catalog.toml", status: 200, anonymous: true})
	if !strings.Contains(string(a.body), "debian-13.qcow2") {
		t.Errorf("%s", a.body)
	}
	put(200, string(a.body)) // the export can be imported
	s.send(t, "DELETE", "/catalog.toml", 204, "")
	s.send(t, "DELETE", "/catalog.toml", 404, "")
	put(200, example)
}

// testDetails tests what is known about one image, and what the operator says about it.
func (s *server) testDetails(t *testing.T) {
	// Two wrappers of one disk, of which one was inspected.
	disk := strings.Repeat("\x00details", 100)
	for name, body := range map[string]string{"debian-12-amd64.img": disk, "wrapped.img.gz": "\x1f\x8b\x08details"} {
		s.do(t, request{method: "PUT", target: "/images/" + name, status: 201, header: octets, body: body})
		for _, algorithm := range []string{"sha256", "sha512"} {
			list := "no digest"
			if algorithm == "sha256" {
				list = sha256Of(body)
			}
			if _, err := s.images.Put(t.Context(), layout.SidecarKey(image.Name(name), algorithm), strings.NewReader(list), int64(len(list))); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the digest with its sidecars, then the content
			if err := s.hasher.Handle(t.Context(), queue.InspectImage(image.Name(name)).Encode()); err != nil {
				t.Fatal(err)
			}
		}
	}
	plain, wrapped := sha256Of(disk), sha256Of("\x1f\x8b\x08details")
	for _, what := range []string{served.Image, served.Disk} {
		s.served.Add(layout.SHA256(plain), served.Delivery{To: "192.0.2.17", What: what, Token: "lab-7", Link: what == served.Disk})
	}
	for _, sum := range []string{plain, wrapped} {
		_, _, err := record.Change(t.Context(), s.catalog, layout.ContentKey(layout.SHA256(sum)), func(c *content.Record, _ bool) error {
			c.SHA256, c.SizeBytes, c.Kind = layout.SHA256(sum), 1, content.MBR
			if sum == wrapped {
				c.Kind = content.Gzip
				c.Check = &content.Check{Verdict: content.Good, RawSHA256: layout.SHA256(plain)}
			} else {
				c.Inside = &inside.Inside{Title: "Debian GNU/Linux 12 (bookworm)", System: "debian", Architecture: inside.AMD64}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	target := "/catalog/images/" + plain
	a := s.get(t, target, 200)
	unsaid := a.header.Get("ETag")
	s.get(t, "/catalog/images/"+strings.ToUpper(wrapped), 200)
	s.get(t, "/catalog/images/"+labSHA256, 200)
	s.get(t, "/catalog/images/nonsense", 404)
	patch := func(status int, body string, fields ...string) *answer {
		t.Helper()
		q := request{method: "PATCH", target: target, status: status, body: body, header: map[string]string{"Content-Type": "application/merge-patch+json"}}
		for i := 0; i < len(fields); i += 2 {
			q.header[fields[i]] = fields[i+1]
		}
		return s.do(t, q)
	}
	const all = `{"title": "Lab", "description": "Two\nlines", "system": "debian", "version": "12", "architecture": "x86_64", "release_date": "2026-11-02",
		"icon": "https://example.org/i.svg", "devices": ["pi5-64bit"], "init_format": "cloudinit", "home_page": "https://example.org/",
		"labels": {"rack": "3", "old": null}, "name": "debian-12-amd64.img"}`
	a = patch(200, all, "If-Match", unsaid)
	if a.header.Get("ETag") == unsaid || !strings.Contains(string(a.body), `"architecture":{"value":"amd64","from":"operator"}`) {
		t.Errorf("%v %s", a.header, a.body)
	}
	patch(412, all, "If-Match", unsaid)
	if a := s.get(t, "/os_list.json", 200); !strings.Contains(string(a.body), `"name":"Lab"`) {
		t.Errorf("%s", a.body)
	}
	s.testSimplestreams(t, layout.SHA256(plain))
	s.send(t, "PATCH", target, 200, `{"title": null}`)
	s.do(t, request{
		method: "PATCH", target: target, status: 200, body: url.Values{"version": {""}, "labels": {"row=2"}}.Encode(),
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
	})
	patch(400, `{"name": "another.img"}`)
	for _, bad := range []string{`{"colour": "red"}`, `{"title": 5}`, `{"title": "\u202e"}`, `{"architecture": "z80"}`, `[]`, `null`} {
		patch(422, bad)
	}
	s.send(t, "PATCH", "/catalog/images/"+zeros, 404, "{}")
	const newer = `{"schema": 99, "nonce": "x"}`
	if _, err := s.catalog.Put(t.Context(), layout.MetadataKey(layout.SHA256(wrapped)), strings.NewReader(newer), int64(len(newer))); err != nil {
		t.Fatal(err)
	}
	s.send(t, "PATCH", "/catalog/images/"+wrapped, 409, `{"title": "x"}`)
}

// testSimplestreams makes a content of amd64 one that Incus starts, for a while.
func (s *server) testSimplestreams(t *testing.T, sha256 layout.SHA256) {
	change := func(change func(*content.Record)) {
		t.Helper()
		_, _, err := record.Change(t.Context(), s.catalog, layout.ContentKey(sha256), func(c *content.Record, _ bool) error {
			change(c)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var tarball *incus.Tarball
	change(func(c *content.Record) {
		c.Kind, c.Check = content.QCOW2, &content.Check{Verdict: content.Good}
		tarball = incus.Missing(c, "amd64")
		c.Fingerprint = &content.Fingerprint{Metadata: tarball.SHA256, SHA256: sha256}
	})
	for _, path := range []string{"/streams/v1/index.json", "/streams/v1/images.json"} {
		if a := s.get(t, path, 200); !strings.Contains(string(a.body), string(sha256)) {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	s.get(t, "/streams/v1/metadata/"+string(tarball.SHA256)+"/metadata.tar", 200)
	s.get(t, "/streams/v1/metadata/"+zeros+"/metadata.tar", 404)
	change(func(c *content.Record) { c.Kind, c.Check, c.Fingerprint = content.MBR, nil, nil })
}

func sha256Of(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (s *server) testCatalog(t *testing.T) {
	if _, err := s.images.Put(t.Context(), "unhashed.raw", strings.NewReader("unhashed"), 8); err != nil {
		t.Fatal(err)
	}
	a := s.get(t, "/catalog?limit=1&sort=-size&q=", 200)
	next := text(a.object, "next")
	if next == "" || fmt.Sprint(a.object["total"]) == "1" {
		t.Fatalf("%s", a.body)
	}
	s.get(t, "/catalog?limit=1&sort=-size&cursor="+next, 200)
	s.get(t, "/catalog?sort=name&cursor="+next, 400)
	if a := s.get(t, "/catalog?q=DROPPED+iso", 200); fmt.Sprint(a.object["total"]) != "1" {
		t.Errorf("%s", a.body)
	}
	// What testDetails has said.
	for _, filter := range []string{"arch=amd64&arch=arm64&format=img", "os=Debian&os=other&format=img", "label=row", "label=row%3D2&state=cached", "format=img&state=attention&q=pi5+cloudinit"} {
		if a := s.get(t, "/catalog?"+filter, 200); fmt.Sprint(a.object["total"]) != "1" {
			t.Errorf("%s: %s", filter, a.body)
		}
	}
	for _, target := range []string{"/images", "/catalog.toml"} {
		for _, coding := range []string{"", "gzip", "zstd"} {
			q := request{method: "GET", target: target, status: 200, anonymous: true, header: map[string]string{"Accept-Encoding": coding}}
			a := s.do(t, q)
			if a.header.Get("Content-Encoding") != coding {
				t.Errorf("%s in %q: %v", target, coding, a.header)
			}
			q.status, q.header["If-None-Match"] = 304, a.header.Get("ETag")
			s.do(t, q)
		}
	}
	// A bad manifest that is written by S3 is a warning.
	if _, err := s.images.Put(t.Context(), layout.ManifestKey, strings.NewReader("nonsense"), 8); err != nil {
		t.Fatal(err)
	}
	if a := s.get(t, "/catalog", 200); len(list(a.object, "warnings")) != 1 {
		t.Errorf("%s", a.body)
	}
}

func (s *server) testEvents(t *testing.T) {
	fallback := child(s.doc.ops["GET /events"].param("query", "limit"), "schema")["default"].(int)
	for range fallback + 1 {
		s.activity.Add(t.Context(), activity.Event{
			Kind: activity.ImageHashed, SubjectKind: activity.SubjectImage, SubjectID: "many.img", Actor: activity.System, Summary: "hashed many.img",
		})
	}
	a := s.get(t, "/events?subject_id=many.img", 200)
	if n := len(list(a.object, "events")); n != fallback {
		t.Errorf("%d events, and docs/openapi.yaml says %d", n, fallback)
	}
	next := text(a.object, "next")
	a = s.get(t, "/events?subject_id=many.img&before="+next, 200)
	if n := len(list(a.object, "events")); n != 1 || a.object["next"] != nil {
		t.Errorf("%s", a.body)
	}
	s.get(t, "/events?before=2026-01-02T03:04:05Z", 200)
	s.get(t, "/events?before=yesterday", 400)
	s.get(t, "/events?source_ip=127.0.0.1", 200)
	s.get(t, "/events?source_ip=localhost", 400)
	for _, failed := range []string{"true", "false"} {
		a := s.get(t, "/events?failed="+failed, 200)
		for _, e := range list(a.object, "events") {
			if strings.HasSuffix(text(e.(object), "kind"), "failed") != (failed == "true") {
				t.Errorf("failed=%s: %v", failed, e)
			}
		}
	}
	s.get(t, "/events?failed=perhaps", 400)
	// So far, events of every kind have happened except those of sessions.
	for _, kind := range activity.Kinds() {
		a := s.get(t, "/events?limit=1&kind="+kind, 200)
		if len(list(a.object, "events")) == 0 && !strings.HasPrefix(kind, "auth.") {
			t.Errorf("nothing was %s", kind)
		}
	}
}

// testQueries tests the limits and the lists of values of query parameters.
func (s *server) testQueries(t *testing.T) {
	for _, op := range s.doc.operations() {
		for _, p := range op.params {
			if text(p, "in") != "query" {
				continue
			}
			target, schema := op.path+"?"+text(p, "name")+"=", s.doc.follow(p["schema"])
			for _, v := range list(schema, "enum") {
				s.get(t, target+url.QueryEscape(fmt.Sprint(v)), 200)
			}
			if schema["enum"] != nil {
				s.get(t, target+"nonsense", 400)
			}
			if low, ok := schema["minimum"].(int); ok {
				s.get(t, target+strconv.Itoa(low), 200)
				s.get(t, target+strconv.Itoa(low-1), 400)
			}
			if high, ok := schema["maximum"].(int); ok {
				s.get(t, target+strconv.Itoa(high), 200)
				s.get(t, target+strconv.Itoa(high+1), 400)
			}
		}
	}
}

// testBodies tests the rules for every JSON body.
func (s *server) testBodies(t *testing.T) {
	tested := 0
	for _, op := range s.doc.operations() {
		if child(op.body, "content")["application/json"] == nil || op.id == "POST /hooks/minio" { // from servers, with their own token
			continue
		}
		tested++
		if child(op.body, "content")["application/x-www-form-urlencoded"] == nil {
			t.Errorf("%s takes no form", op.id)
		}
		path := sample(op)
		s.send(t, op.method, path, 422, "{")
		limit := web.MaxBody
		if op.id == "POST /uploads/{id}/complete" {
			limit = 1 << 20 // it has ETags of 10,000 parts
		}
		s.send(t, op.method, path, 413, `{"pad": "`+strings.Repeat("x", limit)+`"}`)
		s.do(t, request{method: op.method, target: path, status: 415, body: "{}", header: map[string]string{"Content-Type": "text/plain"}})
	}
	if tested == 0 {
		t.Error("there are none")
	}
}

// testOrigin tests that pages of other sites can change nothing.
func (s *server) testOrigin(t *testing.T) {
	for _, op := range s.doc.operations() {
		if op.unsafe() {
			s.do(t, request{method: op.method, target: sample(op), status: 403, header: map[string]string{"Sec-Fetch-Site": "cross-site"}})
		}
	}
}

// testAtAWS tests a server with presigned URLs. test/lambda tests where those
// lead.
func (s *server) testAtAWS(t *testing.T) {
	client, err := s3store.Open(t.Context(), s3store.Config{Region: "us-east-1", AccessKey: "KEY", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	aws := newServer(t, s.doc, s.cover, setup{publicRead: true, links: client.Root("images", "")})
	leads := func(a *answer) {
		t.Helper()
		if to := a.header.Get("Location"); !strings.HasPrefix(to, "https://images.s3.us-east-1.amazonaws.com/lab.img?") {
			t.Errorf("it leads to %s", to)
		}
	}
	for name, data := range map[store.Key]string{"lab.img": "\x00lab", "packed.img.gz": "\x1f\x8b\x08packed"} {
		if _, err := aws.images.Put(t.Context(), name, strings.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	for _, target := range []string{"/images/lab.img", "/images/lab.img/lab.img", "/raw/lab.img", "/raw/lab.img/lab.img"} {
		leads(aws.get(t, target, 307))
		leads(aws.do(t, request{method: "HEAD", target: target, status: 307}))
	}
	for _, target := range []string{"/raw/packed.img", "/raw/packed.img/packed.img"} {
		aws.get(t, target, 503)
		aws.do(t, request{method: "HEAD", target: target, status: 503})
	}
	leads(aws.do(t, request{method: "PUT", target: "/images/lab.img", status: 307}))
	leads(aws.do(t, request{
		method: "PUT", target: "/images/lab.img", status: 307, header: map[string]string{"x-amz-checksum-sha256": labBase64},
	}))
	aws.do(t, request{
		method: "PUT", target: "/images/lab.img", status: 501, header: map[string]string{"Repr-Digest": "sha-256=:" + labBase64 + ":"},
	})
	aws.cut(t, "PUT", "/images/lab.img", store.MaxPutBytes+1, 413)

	aws.do(t, request{
		method: "PUT", target: "/catalog.toml", status: 200, header: map[string]string{"Content-Type": "application/toml"},
		body: "version = 1\n[[images]]\nname = 'far.img'\nsrc = 'https://images.example.org/" + strings.Repeat("far/", 25) + "far.img'\n",
	})
	for _, target := range []string{"/images", "/catalog.toml"} {
		if to := aws.get(t, target, 307).header.Get("Location"); !strings.HasPrefix(to, "https://images.s3.us-east-1.amazonaws.com/listings/") {
			t.Errorf("%s leads to %s", target, to)
		}
	}

	a := aws.send(t, "POST", "/uploads", 201, `{"name": "lab.img", "size_bytes": 3}`)
	if to, _ := a.at(t, "parts.0.url").(string); !strings.HasPrefix(to, "https://images.s3.us-east-1.amazonaws.com/lab.img?") {
		t.Errorf("the part goes to %q", to)
	}
	u := "/uploads/" + text(a.object, "id")
	leads(aws.do(t, request{method: "PUT", target: u + "/parts/1", status: 307}))
	aws.do(t, request{method: "PUT", target: u + "/parts/1", status: 501, header: map[string]string{"Repr-Digest": "sha-256=:" + labBase64 + ":"}})
	aws.send(t, "POST", u+"/complete", 501, `{"sha256": "`+zeros+`"}`)
	aws.send(t, "POST", "/uploads", 501, `{"name": "lab.raw", "size_bytes": 10, "sha256": "`+zeros+`"}`)
}

// testAccess tests that each operation requires the access that the file says.
func (s *server) testAccess(t *testing.T) {
	private := newServer(t, s.doc, s.cover, setup{})
	for _, op := range s.doc.operations() {
		access := accessOf(t, s.doc, op)
		q := request{method: op.method, target: sample(op), status: 401, anonymous: true}
		if access >= web.Read {
			s.do(t, q)
			q.header = map[string]string{"Authorization": "Bearer another"}
			s.do(t, q)
		}
		if access >= web.Open {
			private.do(t, q)
		}
	}
	// A token is admitted to what its scope includes, and to nothing else.
	for _, scope := range []struct {
		name   string
		access web.Access
	}{{"read", web.Read}, {"upload", web.Upload}, {"operate", web.Operator}} {
		token := text(private.send(t, "POST", "/tokens", 201, quote("name", scope.name, "scope", scope.name)).object, "token")
		for _, op := range s.doc.operations() {
			q := request{method: op.method, target: sample(op), status: 403, anonymous: true, header: map[string]string{"Authorization": "Bearer " + token}}
			if access := accessOf(t, s.doc, op); access > scope.access {
				private.do(t, q)
			} else if status := private.status(t, q); status == 401 || status == 403 && op.path != "/hooks/minio" {
				t.Errorf("%s with a token to %s: %d", op.id, scope.name, status)
			}
		}
	}
	for _, op := range s.doc.operations() {
		if op.unsafe() || accessOf(t, s.doc, op) >= web.Read {
			continue
		}
		r, err := http.NewRequestWithContext(t.Context(), op.method, s.url+sample(op), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 401 {
			t.Errorf("%s is not open", op.id)
		}
	}
}

// status sends a request, and returns the status of its answer.
func (s *server) status(t *testing.T, q request) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), q.method, s.url+q.target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range q.header {
		r.Header.Set(name, value)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (s *server) testTokens(t *testing.T) {
	s.get(t, "/tokens", 200)
	a := s.send(t, "POST", "/tokens", 201, quote("name", "ci", "scope", "upload"))
	token := text(a.object, "token")
	s.send(t, "POST", "/tokens", 409, quote("name", "CI", "scope", "upload"))
	s.send(t, "POST", "/tokens", 422, quote("name", "no name", "scope", "upload"))
	s.form(t, "/tokens", 201, url.Values{"name": {"lab"}, "scope": {"read"}})
	as := map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("anyone:"+token))}
	s.do(t, request{method: "PUT", target: "/images/by-token.img", status: 201, anonymous: true, header: with(as, "Content-Type", "application/octet-stream"), body: "bytes"})
	s.auth.Flush(t.Context())
	if a := s.get(t, "/tokens", 200); a.at(t, "tokens.0.name") != "ci" || a.at(t, "tokens.0.last_used_at") == nil || a.at(t, "tokens.1.last_used_at") != nil {
		t.Errorf("%s", a.body)
	}
	if a := s.get(t, "/events?actor=token:ci", 200); a.at(t, "events.0.kind") != activity.ImageUploaded || a.at(t, "events.0.actor") != "token:ci" {
		t.Errorf("%s", a.body)
	}
	s.send(t, "DELETE", "/images/by-token.img", 204, "")
	s.send(t, "DELETE", "/tokens/ci", 204, "")
	s.send(t, "DELETE", "/tokens/ci", 404, "")
	s.do(t, request{method: "GET", target: "/catalog", status: 401, anonymous: true, header: as})
}

func (s *server) testSession(t *testing.T) {
	login := func(status int, body string) *answer {
		t.Helper()
		return s.do(t, request{
			method: "POST", target: "/ui/login", status: status, body: body, anonymous: true,
			header: map[string]string{"Content-Type": "application/json"},
		})
	}
	login(204, quote("password", password, "next", "/ui/events"))
	s.do(t, request{
		method: "POST", target: "/ui/login", status: 204, anonymous: true, body: url.Values{"password": {password}}.Encode(),
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
	})
	cookie, _, _ := strings.Cut(login(204, quote("password", password)).header.Get("Set-Cookie"), ";")
	scheme := child(child(child(s.doc.root, "components"), "securitySchemes"), "sessionCookie")
	if name, _, _ := strings.Cut(cookie, "="); name != text(scheme, "name") || text(scheme, "in") != "cookie" {
		t.Errorf("the cookie is %s", cookie)
	}
	as := func(method, target string, status int) {
		t.Helper()
		s.do(t, request{method: method, target: target, status: status, anonymous: true, header: map[string]string{"Cookie": cookie}})
	}
	as("GET", "/catalog", 200)
	as("POST", "/ui/logout", 303)
	as("GET", "/catalog", 401)
	for range 5 {
		login(401, quote("password", "wrong"))
	}
	login(429, quote("password", "wrong"))
	login(204, quote("password", password))
}
