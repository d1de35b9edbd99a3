package catalog

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
	"imageroot/test/need"
)

// someDisk returns random, compressible and zero bytes, of a length that is no multiple
// of a block.
func someDisk() []byte {
	b := make([]byte, 6<<20+12_288)
	random := rand.NewChaCha8([32]byte{7})
	_, _ = random.Read(b[:1<<20]) // never fails
	for n := range b[3<<19 : 4<<19] {
		b[3<<19+n] = byte(n >> 10)
	}
	letters := b[5<<19 : 9<<19] // compresses to about half
	_, _ = random.Read(letters)
	for n := range letters {
		letters[n] &= 15
	}
	_, _ = random.Read(b[5<<20+100 : 11<<19])
	return b
}

func sum(b []byte) layout.SHA256 {
	h := digest.New(false)
	_, _ = h.Write(b)
	return h.Sum256()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// qcow2Of returns the disk as a qcow2 image made by qemu-img.
func qcow2Of(t testing.TB, disk []byte, args ...string) []byte {
	t.Helper()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	from, to := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	if err := os.WriteFile(from, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"convert", "-f", "raw", "-O", "qcow2"}, append(args, from, to)...)
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	b, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// onDisk is a root whose objects can be read as files.
type onDisk struct {
	store.Root
	open atomic.Int32
}

type onDiskBody struct {
	io.ReadCloser
	root   *onDisk
	object *bytes.Reader
}

func (b onDiskBody) ReadObjectAt(p []byte, off int64) (int, error) { return b.object.ReadAt(p, off) }

func (b onDiskBody) ObjectExtent(off, limit int64) (int64, bool, error) {
	return limit - off, false, nil
}

func (b onDiskBody) ObjectOwnHoles() bool { return false }

func (b onDiskBody) ObjectSame() bool { return false }

func (b onDiskBody) Close() error {
	b.root.open.Add(-1)
	return b.ReadCloser.Close()
}

func (d *onDisk) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	body, info, err := d.Root.Get(ctx, key, r, ifMatch)
	if err != nil {
		return nil, info, err
	}
	whole, _, err := d.Root.Get(ctx, key, store.All, "")
	if err != nil {
		return nil, info, err
	}
	b, err := io.ReadAll(whole)
	d.open.Add(1)
	return onDiskBody{body, d, bytes.NewReader(b)}, info, err
}

// A rawServer serves the images that put stores.
type rawServer struct {
	*testing.T
	f      *Function
	images *faultstore.Root
	root   store.Root // the root of the function
	direct *onDisk    // or nil
	client *http.Client
	url    string
}

// newRawServer has its images in memory. They are read in chunks, or like files if
// direct is set.
func newRawServer(t *testing.T, direct bool) *rawServer {
	t.Helper()
	s := &rawServer{T: t, images: faultstore.New(memstore.New(), nil), client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	root := store.Root(s.images)
	if direct {
		s.direct = &onDisk{Root: root}
		root = s.direct
	}
	f, handler := newCatalog(t, root)
	s.f, s.root = f, f.Images
	server := httptest.NewServer(handler)
	s.url = server.URL
	t.Cleanup(func() {
		server.Close() // waits for the answers in progress
		if direct && s.direct.open.Load() != 0 {
			t.Errorf("%d objects were left open", s.direct.open.Load())
		}
	})
	return s
}

func (s *rawServer) put(name image.Name, b []byte) {
	s.Helper()
	if _, err := s.root.Put(s.Context(), layout.ImageKey(name), bytes.NewReader(b), int64(len(b))); err != nil {
		s.Fatal(err)
	}
	if _, err := s.f.Inventory.Snapshot(s.Context()); err != nil { // so that no answer has to read it
		s.Fatal(err)
	}
}

// A reply is an answer. err is the error that ended the reading of its body.
type reply struct {
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
	err     error
}

func (s *rawServer) ask(method, path string, fields ...string) *reply {
	s.Helper()
	r, err := http.NewRequestWithContext(s.Context(), method, s.url+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	res, err := s.client.Do(r)
	if err != nil {
		s.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return &reply{res.StatusCode, res.Header, res.Trailer, body, err}
}

func (s *rawServer) want(r *reply, status int, words ...string) *reply {
	s.Helper()
	if r.status != status || r.err != nil {
		s.Fatalf("status %d with %d bytes (%v), want %d; %.300q", r.status, len(r.body), r.err, status, r.body)
	}
	for _, w := range words {
		if !strings.Contains(string(r.body), w) {
			s.Errorf("%q does not mention %q", r.body, w)
		}
	}
	return r
}

func (s *rawServer) same(r *reply, want []byte) {
	s.Helper()
	if !bytes.Equal(r.body, want) {
		s.Errorf("%d bytes, %d wanted, or wrong ones", len(r.body), len(want))
	}
}

func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// both runs a test over a store that is read in chunks, and over one on disk.
func both(t *testing.T, test func(*testing.T, bool)) {
	for name, direct := range map[string]bool{"chunks": false, "disk": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, direct)
		})
	}
}

// For each format of image, /raw sends the same bytes.
func TestRaw(t *testing.T) {
	t.Parallel()
	disk := someDisk()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	images := map[image.Name][]byte{
		"a.img": disk, "b.img.gz": gzipped(t, disk), "c.raw.zst": encoder.EncodeAll(disk, nil),
		"d.qcow2": qcow2Of(t, disk), "e.img": qcow2Of(t, disk, "-c"), "f.qcow2": qcow2Of(t, disk, "-c", "-o", "cluster_size=2M"),
		"g.img": gzipped(t, disk), // unlike its name
	}
	saved := map[image.Name]image.Name{"b.img.gz": "b.img", "c.raw.zst": "c.raw", "d.qcow2": "d.img", "f.qcow2": "f.img"}
	both(t, func(t *testing.T, direct bool) {
		s := newRawServer(t, direct)
		for name, image := range images {
			s.put(name, image)
		}
		for name, image := range images {
			path := "/raw/" + string(name)
			r := s.want(s.ask("GET", path), 200)
			s.same(r, disk)
			head := s.want(s.ask("HEAD", path), 200)
			seekable := r.header.Get("Accept-Ranges") == "bytes"
			if zipped := strings.HasPrefix(string(image), "\x1f\x8b") || strings.HasSuffix(string(name), ".zst"); seekable == zipped {
				t.Errorf("%s: Accept-Ranges: %s", name, r.header.Get("Accept-Ranges"))
			}
			if length := r.header.Get("Content-Length"); seekable && length != strconv.Itoa(len(disk)) {
				t.Errorf("%s: Content-Length: %s", name, length)
			}
			if got := r.trailer.Get("Repr-Digest"); !seekable && got != digest.FormatReprDigest(sum(disk)) {
				t.Errorf("%s: Repr-Digest: %q in the trailer", name, got)
			}
			if want := `attachment; filename=` + string(cmp.Or(saved[name], name)); r.header.Get("Content-Disposition") != want {
				t.Errorf("%s: %s, want %s", name, r.header.Get("Content-Disposition"), want)
			}
			for _, h := range []http.Header{r.header, head.header} {
				for _, name := range []string{"X-Request-Id", "Date", "Trailer"} {
					h.Del(name)
				}
			}
			if !maps.EqualFunc(r.header, head.header, slices.Equal) {
				t.Errorf("%s: HEAD says %v, GET %v", name, head.header, r.header)
			}
			etag := r.header.Get("ETag")
			if etag == s.ask("HEAD", "/images/"+string(name)).header.Get("ETag") || r.header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s: ETag %s, Vary %s", name, etag, r.header.Get("Vary"))
			}
			if d := s.want(s.ask("HEAD", path+"/another.img.xz"), 200).header.Get("Content-Disposition"); d != "attachment; filename=another.img" {
				t.Errorf("%s: %s", name, d)
			}

			// In zstd it is another representation.
			z := s.want(s.ask("GET", path, "Accept-Encoding", "gzip, zstd"), 200)
			s.same(&reply{body: unzstd(t, z.body)}, disk)
			if z.header.Get("Content-Encoding") != "zstd" || z.header.Get("ETag") == etag || z.header.Get("Accept-Ranges") != "none" || z.header.Get("Repr-Digest") != "" {
				t.Errorf("%s in zstd: %v", name, z.header)
			}
			if len(z.body) > 4<<20 {
				t.Errorf("%s: %d bytes in zstd", name, len(z.body))
			}
			s.want(s.ask("HEAD", path, "Accept-Encoding", "zstd"), 200)

			for _, c := range []struct {
				status int
				fields []string
			}{
				{304, []string{"If-None-Match", etag}},
				{304, []string{"If-None-Match", z.header.Get("ETag"), "Accept-Encoding", "zstd"}},
				{304, []string{"If-Modified-Since", r.header.Get("Last-Modified")}},
				{412, []string{"If-Match", `"another"`}},
				{412, []string{"If-Match", z.header.Get("ETag")}},
				{200, []string{"If-Match", etag}},
				{200, []string{"If-None-Match", z.header.Get("ETag")}},
			} {
				for _, method := range []string{"GET", "HEAD"} {
					if method == "GET" && c.status == 200 {
						continue // as above
					}
					a := s.want(s.ask(method, path, c.fields...), c.status)
					if c.status == 304 && (len(a.body) > 0 || a.header.Get("ETag") != c.fields[1] && c.fields[0] == "If-None-Match") {
						t.Errorf("%s: 304 with %v", name, a.header)
					}
				}
			}
			part := s.ask("GET", path, "Range", "bytes=3145720-5242890", "If-Range", etag)
			switch {
			case seekable:
				s.same(s.want(part, 206), disk[3145720:5242891])
				s.same(s.want(s.ask("GET", path, "Range", "bytes=-10"), 206), disk[len(disk)-10:])
				s.want(s.ask("GET", path, "Range", "bytes=99999999-"), 416)
			default:
				s.same(s.want(part, 200), disk)
			}
		}
	})
}

// An image without a disk is refused before a byte is sent, with the remedy. HEAD
// refuses it, too.
func TestRawRefused(t *testing.T) {
	t.Parallel()
	disk := someDisk()
	plain := qcow2Of(t, disk)
	both(t, func(t *testing.T, direct bool) {
		s := newRawServer(t, direct)
		for name, c := range map[string]struct {
			image []byte
			words []string
		}{
			"page.img":        {[]byte("<!DOCTYPE html><title>Not found</title>"), []string{"web page"}},
			"note.iso":        {[]byte("404 Not Found\n"), []string{"text and no image"}},
			"newer.qcow2":     {append([]byte("QFI\xfb\x00\x00\x00\x04"), plain[8:]...), []string{"version 4"}},
			"cut.qcow2":       {plain[:len(plain)-2<<20], []string{"cut short"}},
			"inside.img.gz":   {gzipped(t, plain), []string{"qcow2 image", "decompress it"}},
			"twice.img.gz":    {gzipped(t, gzipped(t, disk)), []string{"a gzip file", "decompress it"}},
			"page.img.gz":     {gzipped(t, []byte("<html>404")), []string{"decompressed", "web page"}},
			"void.img.gz":     {gzipped(t, nil), []string{"nothing in"}},
			"empty.img":       {nil, []string{"empty"}},
			"vm.img":          {[]byte("KDMV\x01\x00\x00\x00\x03"), []string{"VMDK"}},
			"damaged.img.gz":  {append(gzipped(t, nil)[:10], 0xff, 0xff, 0xff), []string{"damaged"}},
			"cut.img.gz":      {gzipped(t, disk)[:15], []string{"cut short"}},
			"cut.img.zst":     {[]byte("\x28\xb5\x2f\xfd"), []string{"cut short"}},
			"window.img.zst":  {[]byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"), []string{"--long=27"}},
			"nothing.img.zst": {[]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00ab"), []string{"cut short"}},
		} {
			s.put(image.Name(name), c.image)
			for _, fields := range [][]string{nil, {"Accept-Encoding", "zstd"}} {
				r := s.want(s.ask("GET", "/raw/"+name, fields...), 422, c.words...)
				if r.header.Get("ETag")+r.header.Get("Content-Encoding")+r.header.Get("Trailer") != "" {
					t.Errorf("%s: %v", name, r.header)
				}
				s.want(s.ask("HEAD", "/raw/"+name, fields...), 422)
			}
		}
		s.want(s.ask("GET", "/raw/none.img"), 404)
	})
}

// An error after the head breaks the connection, so that no client mistakes half a
// disk for a whole one.
func TestRawCut(t *testing.T) {
	t.Parallel()
	disk := someDisk()
	plain, zipped := qcow2Of(t, disk), gzipped(t, disk)
	damaged := bytes.Clone(zipped)
	damaged[len(damaged)/2] ^= 0xff
	packed := qcow2Of(t, disk, "-c")
	for n := range 100_000 {
		packed[len(packed)-1<<20+n] ^= 0xff
	}
	both(t, func(t *testing.T, direct bool) {
		s := newRawServer(t, direct)
		for name, c := range map[string]struct {
			image  []byte
			fields []string
		}{
			"cut.img.gz":      {zipped[:len(zipped)-1<<20], nil},
			"sum.img.gz":      {append(zipped[:len(zipped)-8:len(zipped)-8], 0, 0, 0, 0, 0, 0, 0, 0), nil},
			"damaged.img.gz":  {damaged, nil},
			"damaged.qcow2":   {packed, nil},
			"cut.qcow2":       {plain[:len(plain)-300_000], []string{"Range", "bytes=1048576-"}}, // the tables are not checked for a range
			"zstd-cut.img.gz": {zipped[:len(zipped)-1<<20], []string{"Accept-Encoding", "zstd"}},
			"zstd.qcow2":      {packed, []string{"Accept-Encoding", "zstd"}},
		} {
			s.put(image.Name(name), c.image)
			r := s.ask("GET", "/raw/"+name, c.fields...)
			if r.status >= 300 || r.err == nil {
				t.Errorf("%s: status %d, %d bytes, no error", name, r.status, len(r.body))
			}
			if r.trailer.Get("Repr-Digest") != "" {
				t.Errorf("%s: a digest of what was cut: %v", name, r.trailer)
			}
			// Damage in gzip may be found at its checksum only.
			if c.fields == nil && name != "damaged.img.gz" && !bytes.HasPrefix(disk, r.body) {
				t.Errorf("%s: wrong bytes before the cut", name)
			}
		}
	})
}

// Replacing an object while it is sent breaks the connection, even if the old one
// was read completely.
func TestRawReplaced(t *testing.T) {
	t.Parallel()
	disk := someDisk()
	for name, image := range map[image.Name][]byte{"a.img": disk, "b.img.gz": gzipped(t, disk), "c.qcow2": qcow2Of(t, disk)} {
		for _, fields := range [][]string{nil, {"Accept-Encoding", "zstd"}} {
			t.Run(fmt.Sprint(name, fields), func(t *testing.T) {
				t.Parallel()
				s := newRawServer(t, true)
				s.put(name, image)
				var heads atomic.Int32
				s.images.Reset(func(c faultstore.Call) faultstore.Fault {
					// The version is read before the first byte, and again before the last.
					if c.Op == "Head" && c.Key == layout.ImageKey(name) && heads.Add(1) > 1 {
						return faultstore.Before
					}
					return faultstore.None
				})
				if r := s.ask("GET", "/raw/"+string(name), fields...); r.status != 200 || r.err == nil {
					t.Errorf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
				}
				if heads.Load() < 2 {
					t.Error("the version was not read again")
				}
			})
		}
	}
}

// learn writes the content record of an image's bytes.
func learn(t *testing.T, f *Function, name image.Name, rec content.Record) {
	t.Helper()
	info, err := f.Images.Head(t.Context(), layout.ImageKey(name))
	if err != nil {
		t.Fatal(err)
	}
	rec.SHA256, rec.SizeBytes = sum([]byte(name)), info.Size // any digest
	d := digest.Record{Name: name, Version: info.Version, SHA256: rec.SHA256, By: digest.ByHash}
	if _, err := record.Swap(t.Context(), f.Catalog, layout.DigestKey(name), &d, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := record.Swap(t.Context(), f.Catalog, layout.ContentKey(rec.SHA256), &rec, ""); err != nil {
		t.Fatal(err)
	}
}

// An image that is known to be unusable is refused before a disk is half written,
// and is not listed with a disk. The content record, not the name, decides which
// command unpacks it.
func TestRawKnown(t *testing.T) {
	t.Parallel()
	check := func(v content.Verdict) *content.Check {
		return &content.Check{Verdict: v, Reason: "because of the " + string(v)}
	}
	for _, tt := range []struct {
		name  image.Name
		rec   content.Record
		here  int    // status
		there string // the error of a server through which no bytes pass; "": it redirects
	}{
		{"cut.img", content.Record{Content: content.Content{Kind: content.Gzip}, Check: check(content.Truncated)}, 422, "because of the truncated"},
		{"bad.img", content.Record{Content: content.Content{Kind: content.Zstd}, Check: check(content.Damaged)}, 422, "because of the damaged"},
		{"window.img.zst", content.Record{Content: content.Content{Kind: content.Zstd}, Check: check(content.Refused)}, 422, "because of the refused"},
		{"tar.img.gz", content.Record{Content: content.Content{Kind: content.Gzip}, Check: &content.Check{Verdict: content.Good, NoDisk: "it is a tar"}}, 422, "it is a tar"},
		{"page.img", content.Record{Content: content.Content{Kind: content.HTML, What: "a web page"}}, 422, "web page"},
		{"good.img", content.Record{Content: content.Content{Kind: content.MBR}}, 200, ""},
		{"tired.img.gz", content.Record{Content: content.Content{Kind: content.MBR}, Check: check(content.Unchecked)}, 200, ""},
		{"ubuntu.img", content.Record{Content: content.Content{Kind: content.QCOW2}}, 200, "qemu-img convert"},
		{"zipped.img", content.Record{Content: content.Content{Kind: content.XZ}}, 200, "' | xz -d | dd of="},
	} {
		for _, linked := range []bool{false, true} {
			f, handler := newCatalog(t, memstore.New())
			status := tt.here
			if linked {
				f.ImageLinks = bucketLinks{"images"}
				switch {
				case tt.there == "":
					status = 307
				case status == 200:
					status = 409
				}
			}
			if _, err := f.Images.Put(t.Context(), layout.ImageKey(tt.name), bytes.NewReader(make([]byte, 1000)), 1000); err != nil {
				t.Fatal(err)
			}
			learn(t, f, tt.name, tt.rec)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("GET", "/raw/"+string(tt.name), nil))
			if w.Code != status || status >= 400 && !strings.Contains(w.Body.String(), tt.there) {
				t.Errorf("%s, linked %v: %d %s, want %d, %q", tt.name, linked, w.Code, w.Body, status, tt.there)
			}
			w = httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("GET", "/images", nil))
			if listed := strings.Contains(w.Body.String(), `"raw_url":"http`); listed != (status < 400) {
				t.Errorf("%s, linked %v: listed with a raw_url: %v", tt.name, linked, listed)
			}
		}
	}
}

// An image for which there is no memory is refused.
func TestRawMemory(t *testing.T) {
	s := newRawServer(t, false)
	s.put("x.img.gz", gzipped(t, someDisk()))
	others := func(n int64) *place {
		l := s.f.places.enter("192.0.2.1", time.Now, func() {})
		if err := l.grow(t.Context(), n-placeBytes); err != nil {
			t.Fatalf("something is being unpacked: %v", err)
		}
		return l
	}
	m := others(maxPlaces - placeBytes + 1)
	r := s.want(s.ask("GET", "/raw/x.img.gz"), http.StatusServiceUnavailable, "memory")
	if r.header.Get("Retry-After") == "" {
		t.Error("nothing says when to try again")
	}
	m.leave()
	m = others(maxPlaces - 2*placeBytes)
	for range 2 { // the first answer returns its memory
		s.same(s.want(s.ask("GET", "/raw/x.img.gz"), http.StatusOK), someDisk())
	}
	// A later frame may need more memory than the first.
	s.put("grows.img.zst", slices.Concat(zstdOf(t, someDisk()[:1000], zstd.WithWindowSize(1<<20)), zstdOf(t, someDisk(), zstd.WithWindowSize(32<<20))))
	s.want(s.ask("GET", "/raw/grows.img.zst"), http.StatusServiceUnavailable, "memory")
	m.leave()
	s.same(s.want(s.ask("GET", "/raw/grows.img.zst"), http.StatusOK), append(someDisk()[:1000:1000], someDisk()...))
	others(maxPlaces).leave() // all memory was returned
}

// Memory to decompress faster is a third of the total, and does not count as an
// address's.
func TestRawSpare(t *testing.T) {
	var p places
	enter := func(from string) *place {
		l := p.enter(from, time.Now, func() {})
		if err := l.grow(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := enter("192.0.2.1"), enter("192.0.2.1")
	if a.spare(maxPlaces/3+1) || !a.spare(maxPlaces/3) || !a.spare(maxPlaces/3) || b.spare(1) {
		t.Error("the memory is not a third of the total")
	}
	if err := b.grow(t.Context(), maxPlaces/2-2*placeBytes); err != nil {
		t.Error(err)
	}
	if err := a.grow(t.Context(), 1); err == nil {
		t.Error("an address has more than its half")
	}
	b.leave()
	if err := a.grow(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if c := enter("192.0.2.2"); !c.spare(maxPlaces / 4) {
		t.Error("the memory was not returned")
	}
}

// A placeTest has clients of /raw that read at a given pace, with its own clock.
type placeTest struct {
	t   *testing.T
	p   places
	now time.Time
	cut map[*place]bool
}

func newPlaceTest(t *testing.T) *placeTest {
	return &placeTest{t: t, now: time.Now(), cut: map[*place]bool{}}
}

func (p *placeTest) enter(from string) (l *place, err error) {
	l = p.p.enter(from, func() time.Time { return p.now }, func() { p.cut[l] = true; l.leave() })
	return l, l.grow(p.t.Context(), 0)
}

// fill takes all places that a network can get.
func (p *placeTest) fill(from string) (all []*place) {
	for {
		l, err := p.enter(from)
		if err != nil {
			return all
		}
		l.writing.Store(p.now.UnixNano())
		all = append(all, l)
		p.now = p.now.Add(time.Millisecond)
	}
}

// read reads n bytes as a client within d.
func (p *placeTest) read(l *place, n int, d time.Duration) {
	_, _ = l.writer(writerFunc(func(b []byte) (int, error) {
		p.now = p.now.Add(time.Duration(float64(d) * float64(len(b)) / float64(n)))
		return len(b), nil
	}), false).Write(make([]byte, n))
}

// Clients that do not read do not block other clients, of the same address or of
// others.
func TestRawPlaces(t *testing.T) {
	p := newPlaceTest(t)
	slow := p.fill("192.0.2.1")
	if len(slow) != maxPlaces/placeBytes/2 {
		t.Errorf("one address has %d places of %d", len(slow), maxPlaces/placeBytes)
	}
	reading, err := p.enter("192.0.2.2")
	if err != nil {
		t.Fatalf("another address: %v", err)
	}
	p.now = p.now.Add(time.Hour)
	if len(p.cut) > 0 {
		t.Error("a client was cut off though there is room")
	}
	if _, err := p.enter("192.0.2.1"); err != nil || !p.cut[slow[0]] || len(p.cut) != 1 {
		t.Errorf("a client waits for one that does not read: %v, %d cut off", err, len(p.cut))
	}
	if p.cut[reading] {
		t.Error("a client that reads was cut off")
	}
}

// If two networks have all places, a third gets some of them, at any rate of
// reading. They do not get those back.
func TestRawPlacesOfTwoNetworks(t *testing.T) {
	p := newPlaceTest(t)
	a, b := p.fill("192.0.2.1"), p.fill("192.0.2.2")
	for _, l := range slices.Concat(a, b) {
		l.writing.Store(0)
		p.read(l, 64<<20, 8*time.Second)
	}
	p.read(a[3], 1<<20, 2*time.Second)
	good, err := p.enter("192.0.2.3")
	if err != nil || !p.cut[a[3]] || len(p.cut) != 1 {
		t.Fatalf("a third network waits for two: %v, %d cut off", err, len(p.cut))
	}
	p.read(good, 2<<20, 1500*time.Millisecond) // the rate of a small computer on Wi-Fi
	for range 3 {
		_, _ = p.enter("192.0.2.1")
		_, _ = p.enter("192.0.2.2")
		_, _ = p.enter("192.0.2.4")
	}
	if p.cut[good] {
		t.Error("a client gave way to networks that have more")
	}
}

// If each of many networks has a place, slow clients lose theirs within seconds. A
// client that keeps the pace may pause for a flush of its disk. No client is cut
// off while no other one waits.
func TestRawPlacesOfManyNetworks(t *testing.T) {
	p := newPlaceTest(t)
	pi, err := p.enter("198.51.100.1")
	if err != nil {
		t.Fatal(err)
	}
	p.read(pi, 256<<10, 100*time.Second)
	p.read(pi, 128<<20, 64*time.Second)
	slow := map[*place]bool{}
	for n := 1; ; n++ {
		l, err := p.enter(fmt.Sprintf("192.0.2.%d", n))
		if err != nil {
			break
		}
		slow[l] = true
	}
	if len(slow)+1 != maxPlaces/placeBytes || len(p.cut) > 0 {
		t.Errorf("%d places of %d; %d cut off", len(slow)+1, maxPlaces/placeBytes, len(p.cut))
	}
	for l := range slow {
		l.writing.Store(p.now.UnixNano())
	}
	pi.writing.Store(p.now.UnixNano())
	p.now = p.now.Add(firstPatience + time.Millisecond)
	for n := range len(slow) {
		if _, err := p.enter(fmt.Sprintf("203.0.113.%d", n)); err != nil {
			t.Errorf("a client waits for one that does not read: %v", err)
		}
	}
	p.now = p.now.Add(mostPatience - firstPatience - time.Second)
	_, _ = p.enter("203.0.113.200")
	if p.cut[pi] || len(p.cut) != len(slow) {
		t.Errorf("the client that kept the pace was cut off: %v; %d others were", p.cut[pi], len(p.cut))
	}
}

// A client that reads a little now and then, in small writes, keeps its place no
// longer than one that does not read.
func TestRawPlacesOfTricklingClients(t *testing.T) {
	p := newPlaceTest(t)
	slow, err := p.enter("192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.grow(t.Context(), maxPlaces-placeBytes); err != nil {
		t.Fatal(err)
	}
	var others []error
	for range 6 {
		p.read(slow, 1<<10, firstPatience/4)
		if !p.cut[slow] {
			other, err := p.enter("192.0.2.2")
			others = append(others, err)
			other.leave()
		}
	}
	if !p.cut[slow] || !errors.Is(others[0], errNoPlace) || others[len(others)-1] != nil {
		t.Errorf("cut off: %v; others: %v", p.cut[slow], others)
	}
}

type writerFunc func([]byte) (int, error)

func (writerFunc) Header() http.Header           { return nil }
func (writerFunc) WriteHeader(int)               {}
func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// zstdOf returns data in a zstd frame without a content size.
func zstdOf(t *testing.T, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, options...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Flush(); err != nil { // without it, a short frame would have its size
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRawRequests(t *testing.T) {
	t.Parallel()
	s := newRawServer(t, false)
	disk := someDisk()
	for name, image := range map[image.Name][]byte{"plain.qcow2": qcow2Of(t, disk), "packed.qcow2": qcow2Of(t, disk, "-c"), "tiny.qcow2": qcow2Of(t, disk, "-o", "cluster_size=512")} {
		s.put(name, image)
		s.want(s.ask("HEAD", "/raw/"+string(name)), 200)
		s.images.Reset(nil)
		s.same(s.want(s.ask("GET", "/raw/"+string(name)), 200), disk)
		gets := 0
		for _, c := range s.images.Calls() {
			if c.Op == "Get" {
				gets++
			}
		}
		if most := len(image)/1<<20 + 2; gets > most {
			t.Errorf("%s: %d requests for %d bytes, want %d at the most", name, gets, len(image), most)
		}
	}
	// An error of the store is not reported as a fault of the image.
	s.images.Reset(func(c faultstore.Call) faultstore.Fault {
		if c.Op == "Get" && c.N > 4 {
			return faultstore.Before
		}
		return faultstore.None
	})
	if r := s.ask("GET", "/raw/plain.qcow2"); r.status != 200 || r.err == nil {
		t.Errorf("status %d, %d bytes, %v", r.status, len(r.body), r.err)
	}
}

// Zeros take few bytes of an encoded answer.
func TestRawZeros(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "vast.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "64G").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := newRawServer(t, true)
	s.put("vast.qcow2", image)
	r := s.want(s.ask("GET", "/raw/vast.qcow2", "Accept-Encoding", "zstd"), 200)
	d, err := zstd.NewReader(bytes.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	size := int64(0)
	var h zstd.Header
	for rest := r.body; len(rest) > 0; size += int64(h.FrameContentSize) {
		if err := h.Decode(rest); err != nil || !h.HasFCS || h.WindowSize > 8<<20 {
			t.Fatalf("a frame of %+v: %v", h, err)
		}
		next := bytes.Index(rest[4:], []byte("\x28\xb5\x2f\xfd"))
		if next < 0 {
			next = len(rest) - 4
		}
		rest = rest[4+next:]
	}
	if size != 64<<30 || len(r.body) > 20<<20 {
		t.Errorf("%d bytes stand for %d", len(r.body), size)
	}
	s.want(s.ask("GET", "/raw/vast.qcow2", "Range", "bytes=68719476726-"), 206)
}

// Clients that decompress by the suffix of a URL get the disk in an image under a
// name without such a suffix.
func TestRawByDiskName(t *testing.T) {
	t.Parallel()
	s := newRawServer(t, true)
	disks := map[string][]byte{}
	for n, name := range []string{"a b.img.gz", "both.img.gz", "both.raw.gz", "two.img.gz", "two.qcow2", "same.raw"} {
		disks[name] = bytes.Repeat([]byte{0, byte(n)}, 4<<10)
	}
	for name, disk := range disks {
		switch path.Ext(name) {
		case ".gz":
			s.put(image.Name(name), gzipped(t, disk))
		case ".qcow2":
			s.put(image.Name(name), qcow2Of(t, disk))
		default:
			s.put(image.Name(name), disk)
		}
	}
	for path, name := range map[string]string{
		"a%20b.img": "a b.img.gz", "a%20b.img.gz": "a b.img.gz", "a%20b.img.gz/c.img.xz": "a b.img.gz",
		"both.img": "both.img.gz", "both.raw": "both.raw.gz", "two.qcow2": "two.qcow2", "same.raw": "same.raw",
	} {
		r := s.want(s.ask("GET", "/raw/"+path), 200)
		s.same(r, disks[name])
		file := image.DiskName(image.Name(name))
		if strings.Contains(path, "/") {
			file = "c.img"
		}
		if _, p, err := mime.ParseMediaType(r.header.Get("Content-Disposition")); err != nil || p["filename"] != string(file) {
			t.Errorf("%s is to be saved as %q, want %q (%v)", path, p["filename"], file, err)
		}
		s.want(s.ask("HEAD", "/raw/"+path), 200)
	}
	s.want(s.ask("GET", "/raw/two.img"), 409, "two.img.gz, two.qcow2")
	s.want(s.ask("GET", "/raw/a%20b.raw"), 404)
	s.want(s.ask("GET", "/images/a%20b.img"), 404)
	s.put("two.img", disks["same.raw"])
	s.same(s.want(s.ask("GET", "/raw/two.img"), 200), disks["same.raw"])
}

// The listing and warnings name a disk by a path without the suffix of a
// compression. It leads to no other image.
func TestRawPaths(t *testing.T) {
	t.Parallel()
	f, handler := newCatalog(t, memstore.New())
	gzip := content.Record{Content: content.Content{Kind: content.Gzip, What: "a gzip file"}}
	for name, rec := range map[string]content.Record{
		"free.img.xz": gzip, "taken.img.xz": gzip, "taken.img": {Content: content.Content{Kind: content.MBR}},
		"page.img":  {Content: content.Content{Kind: content.HTML, What: "a web page"}},
		"bad.qcow2": {Content: content.Content{Kind: content.QCOW2, What: "a qcow2 image", Unreadable: "the qcow2 image is corrupt"}},
	} {
		if _, err := f.Images.Put(t.Context(), store.Key(name), strings.NewReader(name), int64(len(name))); err != nil {
			t.Fatal(err)
		}
		learn(t, f, image.Name(name), rec)
	}
	byDigest := func(name, disk string) string { return string("/raw/"+sum([]byte(name))+"/") + disk }
	want := map[string]string{
		"free.img.xz": byDigest("free.img.xz", "free.img"), "taken.img.xz": byDigest("taken.img.xz", "taken.img"),
		"taken.img": byDigest("taken.img", "taken.img"), "page.img": "", "bad.qcow2": "",
	}
	get := func(path string) *bytes.Buffer {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Body
	}
	var list []listed
	if err := json.Unmarshal(get("/images").Bytes(), &list); err != nil || len(list) != len(want) {
		t.Fatal(list, err)
	}
	for _, l := range list {
		raw := ""
		if l.RawURL != nil {
			raw = strings.TrimPrefix(*l.RawURL, "http://example.com")
		}
		if raw != want[string(l.Name)] {
			t.Errorf("%s is listed with the raw URL %q, want %q", l.Name, raw, want[string(l.Name)])
		}
	}
	rows := get("/catalog").String()
	for _, path := range []string{"/raw/free.img", want["taken.img.xz"]} {
		if !strings.Contains(rows, "take it from "+path+", or") {
			t.Errorf("no warning says to take an image from %s", path)
		}
	}
	f.ImageLinks = bucketLinks{"images"}
	if _, err := f.Images.Put(t.Context(), "another.img", strings.NewReader("x"), 1); err != nil { // so that the listing is made again
		t.Fatal(err)
	}
	if body := get("/images").String(); strings.Count(body, "/raw/") != 1 || !strings.Contains(body, want["taken.img"]) {
		t.Errorf("URLs of disks that are not served: %s", body)
	}
}

// ordered yields results in the order of the tasks and stops at an error. When it
// returns, no task is running.
func TestOrdered(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int32
	failed := errors.New("failed")
	tasks := func(fail int) iter.Seq[func() (int, error)] {
		return func(yield func(func() (int, error)) bool) {
			for n := range 100 {
				if !yield(func() (int, error) {
					now := running.Add(1)
					defer running.Add(-1)
					for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
					}
					if n == fail {
						return 0, failed
					}
					return n, nil
				}) {
					return
				}
			}
		}
	}
	for _, c := range []struct{ fail, stop, want int }{{-1, -1, 100}, {7, -1, 7}, {-1, 5, 5}} {
		n := 0
		for v, err := range ordered(tasks(c.fail)) {
			if err != nil {
				if !errors.Is(err, failed) || c.fail < 0 {
					t.Error(err)
				}
				continue
			}
			if v != n {
				t.Errorf("result %d is %d", n, v)
			}
			if n == c.stop {
				break
			}
			n++
		}
		if n != c.want || running.Load() != 0 {
			t.Errorf("%+v: %d results, %d running", c, n, running.Load())
		}
	}
	if most.Load() > aheadBlocks {
		t.Errorf("%d at once", most.Load())
	}
}
