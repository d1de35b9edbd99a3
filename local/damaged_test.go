package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

// A lab is an S3 server over which runners are started, one after another.
type lab struct {
	*testing.T
	endpoint        string
	origin          string // the server of c.img
	images, catalog store.Root
}

const labPassword = "correct horse battery"

func newLab(t *testing.T) *lab {
	const access, secret = "LABTEST123456789012", "lab-test-secret-0123456789abcdefghi"
	// Each runner would limit the memory of this process as if it were the only one.
	before := debug.SetMemoryLimit(1 << 30)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	g, err := gateway.Start(t.Context(), gateway.Config{
		Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: access, SecretKey: secret,
		Exempt: func(netip.Addr) bool { return true }, // all runners have one address
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	t.Setenv("AWS_ACCESS_KEY_ID", access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	client, err := s3store.Open(t.Context(), s3store.Config{Endpoint: "http://" + g.Addr(), Region: "us-east-1", AccessKey: access, SecretKey: secret})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t, "http://" + g.Addr(), "", client.Root("images", ""), client.Root("catalog", "")}
}

// A running is a runner of a lab, with the session of its operator.
type running struct {
	*lab
	server *server
	log    *logged
	cookie *http.Cookie
	stop   func()
}

// A logged is the log of a runner.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// open opens a runner over the lab's S3 server, with additional arguments.
func (l *lab) open(args ...string) (*server, *logged, error) {
	l.Helper()
	cfg, err := config.Load(append([]string{"--s3-endpoint", l.endpoint, "--listen", "127.0.0.1:0", "--events", "off"}, args...), l.Output())
	if err != nil {
		l.Fatal(err)
	}
	log := &logged{}
	s, err := start(l.Context(), cfg, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	return s, log, err
}

// run runs a runner and logs in.
func (l *lab) run() *running {
	l.Helper()
	r := &running{lab: l}
	var err error
	if r.server, r.log, err = l.open("--password", labPassword, "--allow-net", "loopback", "--nbd-listen", "127.0.0.1:0"); err != nil {
		l.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.Context())
	served := make(chan error, 1)
	go func() { served <- r.server.serve(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil && err != http.ErrServerClosed { //nolint:errorlint // as net/http returns it
			l.Error(err)
		}
	})
	l.Cleanup(r.stop)
	res := r.send(http.MethodPost, "/ui/login", "application/x-www-form-urlencoded", url.Values{"password": {labPassword}}.Encode())
	if len(res.Result().Cookies()) == 0 {
		l.Fatalf("log-in: %d %s", res.Code, res.Body)
	}
	r.cookie = res.Result().Cookies()[0]
	return r
}

func (r *running) send(method, target, contentType, body string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.cookie != nil {
		req.AddCookie(r.cookie)
	}
	w := httptest.NewRecorder()
	r.server.http.Handler.ServeHTTP(w, req)
	return w
}

// token reads the rows with a token. It fails the test unless the answer has the status want.
func (r *running) token(want int, token string) {
	r.Helper()
	req := httptest.NewRequest(http.MethodGet, "/catalog", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	r.server.http.Handler.ServeHTTP(w, req)
	if w.Code != want {
		r.Errorf("with the token: %d, want %d: %s", w.Code, want, w.Body)
	}
}

// do sends a request. It fails the test unless the answer has the status want.
func (r *running) do(want int, method, target, body string) string {
	r.Helper()
	kind := ""
	if method == http.MethodPost {
		kind = "application/json"
	}
	res := r.send(method, target, kind, body)
	if res.Code != want {
		r.Errorf("%s %s: %d, want %d: %.300s", method, target, res.Code, want, res.Body)
	}
	return res.Body.String()
}

// until waits for a condition.
func (r *running) until(what string, cond func() bool) {
	r.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("%s: not within a minute; the catalog is\n%s\nand the log\n%s", what, r.do(200, http.MethodGet, "/catalog", ""), r.log)
		}
	}
}

// row returns the row of the catalog with that name.
func (r *running) row(name string) (row struct {
	Names     []string `json:"names"`
	Cached    bool     `json:"cached"`
	HashState string   `json:"hash_state"`
	RawSHA256 *string  `json:"raw_sha256"`
},
) {
	var list struct{ Images []json.RawMessage }
	if err := json.Unmarshal([]byte(r.do(200, http.MethodGet, "/catalog", "")), &list); err != nil {
		r.Fatal(err)
	}
	for _, raw := range list.Images {
		if strings.Contains(string(raw), `"`+name+`"`) {
			_ = json.Unmarshal(raw, &row) // a row that does not decode has no names
		}
	}
	return row
}

// readServed has the record of deliveries read, once the catalog knows its content again: the
// record that was damaged before may be that of its digest.
func (r *running) readServed(kinds map[string]store.Key) {
	r.send(http.MethodGet, "/catalog/images/"+path.Base(string(kinds[layout.ServedPrefix])), "", "")
}

// records returns one key of each kind of record in docs/records.md, by the prefix
// of its key.
func (l *lab) records() map[string]store.Key {
	page, err := os.ReadFile("../docs/records.md")
	if err != nil {
		l.Fatal(err)
	}
	found := map[string]store.Key{}
	for _, prefix := range []string{
		layout.DigestPrefix, layout.EntryPrefix, layout.ExportPrefix, layout.FetchedPrefix, layout.ContentPrefix, layout.MetadataPrefix, layout.ServedPrefix, layout.UploadPrefix, layout.HashJobPrefix,
		layout.CheckJobPrefix, layout.DiskJobPrefix, layout.FetchJobPrefix, layout.RenameJobPrefix, layout.EventPrefix, "manifest/", "auth/", layout.ProbePrefix,
	} {
		for info, err := range l.catalog.List(l.Context(), prefix, "") {
			if err != nil {
				l.Fatal(err)
			}
			kind := prefix
			if prefix == "auth/" || prefix == "manifest/" || prefix == layout.ProbePrefix {
				kind = string(info.Key) // its own kind
			}
			found[kind] = info.Key
			if !regexp.MustCompile(`(?m)^## (.*, )?` + kind).Match(page) {
				l.Errorf("docs/records.md has no section of %s", kind)
			}
		}
	}
	for _, heading := range regexp.MustCompile(`(?m)^## (.+/.+)$`).FindAllStringSubmatch(string(page), -1) {
		for key := range strings.SplitSeq(heading[1], ", ") {
			kind := strings.TrimRight(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-")
			if strings.HasPrefix(kind, layout.IndexPrefix) || kind == layout.JournalPrefix {
				continue // derived from the records: the tests of shared/index damage it
			}
			if found[kind] == "" {
				l.Errorf("there is no record of the kind %s", kind)
			}
		}
	}
	return found
}

// fill makes a record of each kind. It returns their content, and their keys by
// kind. disk has the bytes of other.img.
func (l *lab) fill() (disk []byte, whole map[string][]byte, kinds map[string]store.Key) {
	t := l.T
	disk = make([]byte, 64<<10)
	copy(disk[510:], "\x55\xaa")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(disk)
	_ = z.Close()
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(disk[:32<<10]))
	}))
	t.Cleanup(origin.Close)
	l.origin = origin.URL

	l.run().stop() // creates the buckets
	if _, err := l.images.Put(t.Context(), "b.img", bytes.NewReader(disk[1:]), int64(len(disk)-1)); err != nil {
		t.Fatal(err)
	}
	r := l.run()
	r.do(201, http.MethodPut, "/images/other.img", string(disk))
	r.do(201, http.MethodPut, "/images/a.img.gz", packed.String())
	r.do(200, http.MethodPut, "/catalog.toml", "version = 1\n")
	r.do(201, http.MethodPost, "/catalog/entries", fmt.Sprintf(`{"image_url": %q}`, l.origin+"/c.img"))
	r.do(202, http.MethodPost, "/catalog/downloads", `{"name": "c.img"}`)
	r.do(200, http.MethodPost, "/nbdmux/exports", fmt.Sprintf(`{"name": "c", "src_url": %q}`, l.origin+"/c.img"))
	r.do(201, http.MethodPost, "/uploads", `{"name": "d.img", "size_bytes": 10}`)
	r.until("the end of the jobs", func() bool {
		return r.row("a.img.gz").RawSHA256 != nil && r.row("b.img").HashState == "hashed" && r.row("c.img").Cached
	})
	r.do(202, http.MethodPost, "/catalog/disks", `{"name": "a.img.gz"}`)
	r.until("a disk", func() bool {
		return strings.Contains(r.do(200, http.MethodGet, "/catalog/disks", ""), `"stored_bytes":65536`)
	})
	r.do(202, http.MethodPost, "/images/b.img/rename", `{"name": "c.qcow2"}`)
	moved := func(to, from string) func() bool {
		return func() bool {
			jobs := r.do(200, http.MethodGet, "/catalog/renames", "")
			return r.row(to).HashState == "hashed" && len(r.row(from).Names) == 0 &&
				!strings.Contains(jobs, `"queued"`) && !strings.Contains(jobs, `"running"`)
		}
	}
	r.until("another name", moved("c.qcow2", "b.img"))
	r.do(202, http.MethodPost, "/images/c.qcow2/rename", `{"name": "b.img"}`)
	r.until("the first name", moved("b.img", "c.qcow2"))
	sum := sha256.Sum256(disk)
	r.do(200, http.MethodPatch, "/catalog/images/"+hex.EncodeToString(sum[:]), `{"title": "Other"}`)
	r.do(200, http.MethodGet, "/images/other.img", "") // its delivery is recorded at the end
	token := regexp.MustCompile(`imageroot_[\w-]+`).FindString(r.do(201, http.MethodPost, "/tokens", `{"name": "ci", "scope": "read"}`))
	r.token(200, token) // its use is recorded at the end
	r.send(http.MethodPost, "/ui/logout", "", "")
	r.stop()

	kinds = l.records()
	whole = map[string][]byte{}
	for _, key := range kinds {
		data, _, err := l.catalog.ReadRecord(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		whole[string(key)] = data
	}
	return disk, whole, kinds
}

// reads are the requests that must succeed even if one record is damaged or newer. They
// read all records: events that a filter does not select are read, too.
var reads = []string{
	"/readyz", "/images", "/catalog.toml", "/images/other.img", "/catalog", "/catalog/entries", "/catalog/hashes", "/catalog/disks", "/catalog/downloads",
	"/catalog/renames", "/nbdmux/exports", "/uploads", "/tokens", "/events?subject_id=none", "/ui/images", "/ui/events",
}

// TestNewerRecords writes a record of each kind as a newer version would. The
// program names the record in its log, does not change it on any request, and
// otherwise works.
func TestNewerRecords(t *testing.T) {
	l := newLab(t)
	disk, whole, kinds := l.fill()
	for kind, key := range kinds {
		if kind == string(layout.GoodManifestKey) {
			continue // a copy of the operator's manifest
		}
		t.Run(strings.ReplaceAll(kind, "/", " "), func(t *testing.T) {
			l := &lab{t, l.endpoint, l.origin, l.images, l.catalog}
			newer := bytes.Replace(whole[string(key)], []byte(`"schema":1,`), []byte(`"name":{"is":"another type"},"schema":99,`), 1)
			put := func(data []byte) {
				if _, err := l.catalog.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
					t.Fatal(err)
				}
			}
			put(newer)
			defer put(whole[string(key)])
			named := func(text string) bool {
				return strings.Contains(text, string(key)) && strings.Contains(text, "version 99") && strings.Contains(text, "knows version 1")
			}
			if strings.HasPrefix(string(key), "auth/") {
				if s, _, err := l.open("--password", labPassword); err == nil || !named(err.Error()) {
					t.Errorf("the start: %v, %v", s, err)
				}
			} else {
				r := l.run()
				for _, path := range reads {
					r.do(200, http.MethodGet, path, "")
				}
				r.do(201, http.MethodPut, "/images/new.img", string(disk[:100]))
				r.until("a digest", func() bool { return r.row("new.img").HashState == "hashed" })
				r.until("a line with the key and its versions", func() bool {
					r.readServed(kinds)
					return named(r.log.String())
				})
				c := `"image_url": "` + l.origin + `/c.img"`
				for _, req := range [][]string{ // with any answer
					{http.MethodPut, "/images/b.img", string(disk[1:])},
					{http.MethodPost, "/catalog/hashes", `{"name": "a.img.gz"}`},
					{http.MethodDelete, "/catalog/hashes/a.img.gz", ""},
					{http.MethodPost, "/catalog/disks", `{"name": "a.img.gz"}`},
					{http.MethodDelete, "/catalog/disks/" + path.Base(string(kinds[layout.DiskJobPrefix])), ""},
					{http.MethodPost, "/catalog/entries", `{"refresh": true, ` + c + `}`},
					{http.MethodPost, "/catalog/downloads", `{"name": "c.img"}`},
					{http.MethodPost, "/nbdmux/exports", fmt.Sprintf(`{"name": "c", "src_url": %q}`, l.origin+"/c.img")},
					{http.MethodDelete, "/nbdmux/exports/c", ""},
					{http.MethodPatch, "/catalog/images/" + path.Base(string(kinds[layout.MetadataPrefix])), `{"title": "Another"}`},
					{http.MethodPost, "/images/new.img/rename", `{"name": "newer.img"}`},
					{http.MethodDelete, "/catalog/renames/b.img", ""},
					{http.MethodDelete, "/uploads/" + path.Base(string(kinds[layout.UploadPrefix])), ""},
				} {
					r.send(req[0], req[1], "application/json", req[2])
				}
				r.stop()
			}
			if now, _, err := l.catalog.ReadRecord(t.Context(), key); err != nil || !bytes.Equal(now, newer) {
				t.Errorf("the record became %s (%v)", now, err)
			}
		})
	}
}

// TestDamagedRecords damages a record of each kind in every way. The program
// starts, logs the record and the remedy, keeps the bytes that the record may have
// named, and otherwise works.
func TestDamagedRecords(t *testing.T) {
	l := newLab(t)
	disk, whole, kinds := l.fill()
	for kind, key := range kinds {
		data := whole[string(key)]
		garbled := bytes.Clone(data)
		for i := range garbled {
			garbled[i] ^= byte(0x80 + i)
		}
		another := whole[string(kinds[layout.HashJobPrefix])]
		if strings.HasPrefix(kind, "jobs/") {
			another = whole[string(kinds[layout.EntryPrefix])]
		}
		for how, bad := range map[string][]byte{
			"cut": data[:len(data)/2], "garbled": garbled, "emptied": {}, "of another kind": another,
		} {
			t.Run(strings.ReplaceAll(kind, "/", " ")+" "+how, func(t *testing.T) {
				l := &lab{t, l.endpoint, l.origin, l.images, l.catalog}
				if _, err := l.catalog.Put(t.Context(), key, bytes.NewReader(bad), int64(len(bad))); err != nil {
					t.Fatal(err)
				}
				r := l.run()
				for _, path := range reads {
					r.do(200, http.MethodGet, path, "")
				}
				r.do(201, http.MethodPut, "/images/new.img", string(disk[:100]))
				r.until("the repair", func() bool {
					return r.row("a.img.gz").RawSHA256 != nil && r.row("b.img").HashState == "hashed" && r.row("other.img").HashState == "hashed"
				})
				if kind != string(layout.GoodManifestKey) {
					r.until("a line with the key", func() bool {
						r.readServed(kinds)
						line := r.log.String()
						return strings.Contains(line, string(key)) && strings.Contains(line, "remedy=")
					})
				}
				blobs := 0
				for range l.catalog.List(t.Context(), layout.BlobPrefix, "") {
					blobs++
				}
				if blobs != 1 {
					t.Errorf("of the fetched bytes %d are there", blobs)
				}
				r.stop()
				if _, err := l.catalog.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
