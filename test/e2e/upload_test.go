package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestUpload(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.qcow2")
	run(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", disk, "10M")
	want := sha256sum(t, disk)

	c := s.curl(t, "-T", disk, s.Pages+"/images/disk.qcow2")
	var u uploaded
	c.Reply(t).Must(t, http.StatusCreated).JSON(t, &u)
	if u.Name != "disk.qcow2" || u.SHA256 != want || u.Format != "qcow2" || u.SizeBytes != c.Uploaded {
		t.Errorf("answer %+v, want SHA-256 %s, format qcow2, size %d", u, want, c.Uploaded)
	}
	// The digest record exists when the answer arrives, without a hash job.
	if r, ok := s.Row(t, "disk.qcow2"); !ok || r.SHA256 != want || r.HashState != "hashed" || !r.Cached {
		t.Errorf("catalog row after the upload: %+v", r)
	}
	l, ok := s.Listed(t, "disk.qcow2")
	if !ok || l.Ref == nil || *l.Ref != want[:12] || !l.Cached {
		t.Errorf("GET /images after the upload: %+v", l)
	}
	got := filepath.Join(dir, "got")
	run(t, nil, "curl", "-fsS", "-o", got, l.URL)
	if sha256sum(t, got) != want {
		t.Errorf("%s does not serve what was uploaded", l.URL)
	}
	fromS3 := filepath.Join(dir, "from-s3")
	s.aws(t, "s3", "cp", "--only-show-errors", s.object("disk.qcow2"), fromS3)
	if sha256sum(t, fromS3) != want {
		t.Error("aws s3 cp does not get what was uploaded")
	}

	t.Run("overwrite", func(t *testing.T) {
		next := content(7, 300_000)
		s.Put(t, "disk.qcow2", next)
		if got := s.get(t, "/images/disk.qcow2").Must(t, 200); sum(got.Body) != sum(next) {
			t.Error("the name does not serve the new bytes")
		}
		s.get(t, "/images/"+want).Problem(t, []int{404})
		s.WaitHashed(t, "disk.qcow2", sum(next))
	})
	t.Run("without a length", func(t *testing.T) {
		want := content(8, 3<<20)
		c := s.curl(t, "-H", "Transfer-Encoding: chunked", "-T", tempFile(t, want), s.Pages+"/images/chunked.img")
		var u uploaded
		c.Reply(t).Must(t, http.StatusCreated).JSON(t, &u)
		if u.SHA256 != sum(want) || u.SizeBytes != int64(len(want)) {
			t.Errorf("answer %+v, want SHA-256 %s", u, sum(want))
		}
	})
	t.Run("delete", func(t *testing.T) {
		s.Put(t, "doomed.img", content(9, 1000))
		s.Do(t, http.MethodDelete, "/images/doomed.img", nil).Must(t, http.StatusNoContent)
		s.get(t, "/images/doomed.img").Problem(t, []int{404})
		s.get(t, "/images/"+sum(content(9, 1000))).Problem(t, []int{404})
		s.WaitGone(t, "doomed.img")
		if _, ok := s.Listed(t, "doomed.img"); ok {
			t.Error("still in GET /images")
		}
		if left := s.objects(t, s.ImageBucket, "doomed"); len(left) > 0 {
			t.Errorf("still in the bucket: %q", left)
		}
		if again := s.Do(t, http.MethodDelete, "/images/doomed.img", nil); again.Status != 204 && again.Status != 404 {
			t.Errorf("deleted twice: %v", again)
		}
	})
}

func TestUploadFormats(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	formats := []string{"qcow2", "vmdk", "vhd", "vhdx", "vdi", "zip", "img", "raw", "iso", "wic"}
	for _, f := range []string{"img", "raw", "iso", "wic", "qcow2"} {
		for _, c := range []string{"zst", "xz", "gz", "bz2"} {
			formats = append(formats, f+"."+c)
		}
	}
	for i, f := range formats {
		for _, suffix := range []string{f, strings.ToUpper(f)} {
			name := fmt.Sprintf("v1.2-%d.%s", i, suffix)
			if u := s.Put(t, name, content(uint64(i), 512)); u.Format != f {
				t.Errorf("%s: format %q, want %q", name, u.Format, f)
			}
		}
	}
}

// putHead sends the head of a PUT with Expect: 100-continue, and returns the
// answer. The body is never sent, so a server that answers has decided before
// reading it.
func putHead(t *testing.T, s *Server, target string, lines ...string) *http.Response {
	t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.Pages, "http://"), within)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	head := append([]string{"PUT " + target + " HTTP/1.1", "Host: " + strings.TrimPrefix(s.Pages, "http://")}, lines...)
	if _, err := io.WriteString(conn, strings.Join(head, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPut})
	if err != nil {
		t.Fatalf("PUT %s: no answer before the body: %v", target, err)
	}
	return res
}

func TestUploadRefusedBeforeTheBody(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	auth := "Authorization: Bearer " + token
	names := map[string]string{ // escaped name to a word of the reason
		"root.tar.gz":                     "extract",
		"root.TGZ":                        "extract",
		"disk.img.tar.xz":                 "extract",
		"disk.vma":                        ".qcow2",
		"disk":                            ".qcow2",
		".img":                            "dot",
		".hidden.img":                     "dot",
		"a%5Cb.img":                       "segment",
		"..%2Fa.img":                      "",
		"a%2Fb.img":                       "",
		"a%00b.img":                       "",
		"a%0Ab.img":                       "control",
		"a%7Fb.img":                       "control",
		"a%EF%BF%BEb.img":                 "U+FFFE",
		"%FF%FE.img":                      "UTF-8",
		strings.Repeat("y", 252) + ".img": "255",
	}
	for name, word := range names {
		t.Run(name[:min(len(name), 30)], func(t *testing.T) {
			res := putHead(t, s, "/images/"+name, auth, "Content-Length: 1000000", "Expect: 100-continue")
			body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<16))
			r := &Reply{res.StatusCode, res.Header, body, "PUT " + name}
			r.Problem(t, []int{400, 422, 415}, word)
		})
	}
	t.Run("no credentials", func(t *testing.T) {
		res := putHead(t, s, "/images/a.img", "Content-Length: 1000000", "Expect: 100-continue")
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("status %d, want 401", res.StatusCode)
		}
	})
	if *s3Endpoint == "" { // another server's disk is not known
		t.Run("more than the disk holds", func(t *testing.T) {
			res := putHead(t, s, "/images/huge.img", auth, "Content-Length: 1125899906842624", "Expect: 100-continue")
			if res.StatusCode != 507 && res.StatusCode != 413 {
				t.Errorf("status %d, want 507 or 413", res.StatusCode)
			}
		})
	}
	t.Run("curl sends nothing of a tarball", func(t *testing.T) {
		tarball := tempFile(t, content(1, 20<<20))
		c := s.curl(t, "-H", "Expect: 100-continue", "--expect100-timeout", "180", "-T", tarball, s.Pages+"/images/root.tar.gz")
		c.Reply(t).Problem(t, []int{400, 415, 422}, "extract")
		if c.Uploaded != 0 {
			t.Errorf("curl sent %d bytes", c.Uploaded)
		}
	})
	if rows := s.Rows(t); len(rows) != 0 {
		t.Errorf("what was refused is in the catalog: %+v", rows)
	}
}

func TestUploadChecksums(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	old, next := content(1, 200_000), content(2, 250_000)
	b64 := func(sha256 string) string {
		return strings.TrimSuffix(strings.TrimPrefix(structuredDigest(sha256), "sha-256=:"), ":")
	}
	h512 := sha512.Sum512(next)
	right := map[string]mod{
		"Repr-Digest":           header("Repr-Digest", structuredDigest(sum(next))),
		"Content-Digest":        header("Content-Digest", structuredDigest(sum(next))),
		"x-amz-checksum-sha256": header("X-Amz-Checksum-Sha256", b64(sum(next))),
		"one of several":        header("Repr-Digest", "unixsum=:AAAA:, "+structuredDigest(sum(next))),
		"SHA-512 as well": header("Repr-Digest", "sha-512=:"+base64.StdEncoding.EncodeToString(h512[:])+":, "+
			structuredDigest(sum(next))),
	}
	for name, m := range right {
		t.Run("right "+name, func(t *testing.T) {
			s.Put(t, "right.img", old)
			s.Put(t, "right.img", next, m)
		})
	}
	wrong := map[string]mod{
		"Repr-Digest":           header("Repr-Digest", structuredDigest(sum(old))),
		"Content-Digest":        header("Content-Digest", structuredDigest(sum(old))),
		"x-amz-checksum-sha256": header("X-Amz-Checksum-Sha256", b64(sum(old))),
		"one of several":        header("Repr-Digest", "unixsum=:AAAA:, "+structuredDigest(sum(old))),
		"malformed":             header("Repr-Digest", "sha-256=nonsense"),
		"Content-MD5":           header("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA=="),
		"x-amz-checksum-crc32":  header("X-Amz-Checksum-Crc32", "AAAAAA=="),
		"malformed amz":         header("X-Amz-Checksum-Sha256", "nonsense"),
	}
	s.Put(t, "kept.img", old)
	for name, m := range wrong {
		t.Run("wrong "+name, func(t *testing.T) {
			s.Do(t, http.MethodPut, "/images/kept.img", bytes.NewReader(next), m).Problem(t, []int{400})
			if got := s.get(t, "/images/kept.img").Must(t, 200); sum(got.Body) != sum(old) {
				t.Error("the old object is not what it was")
			}
			s.Do(t, http.MethodPut, "/images/fresh.img", bytes.NewReader(next), m).Problem(t, []int{400})
			s.get(t, "/images/fresh.img").Problem(t, []int{404})
		})
	}
	s.WaitHashed(t, "kept.img", sum(old))
	s.get(t, "/images/"+sum(old)).Must(t, 200)
}

func TestUploadNames(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	want := map[string]string{}
	for i, name := range hostileNames() {
		b := content(uint64(100+i), 2000+i)
		want[name] = s.Put(t, name, b).SHA256
	}
	checkNames(t, s, want)
	s.Restart(t)
	checkNames(t, s, want)
	for name := range want {
		s.Do(t, http.MethodDelete, imageRoute(name), nil).Must(t, http.StatusNoContent)
	}
	if rows := s.Rows(t); len(rows) != 0 {
		t.Errorf("deleted names are still in the catalog: %+v", rows)
	}
}

// checkNames checks the names of images in every place that shows them.
func checkNames(t *testing.T, s *Server, want map[string]string) {
	t.Helper()
	for name, sha := range want {
		s.WaitHashed(t, name, sha)
	}
	listing := map[string]listed{}
	for _, l := range s.Listing(t) {
		listing[l.Name] = l
	}
	manifest := map[string]manifestImage{}
	for _, m := range s.Manifest(t).Images {
		manifest[m.Name] = m
	}
	for name, sha := range want {
		if got := s.get(t, imageRoute(name), anonymous).Must(t, 200); sum(got.Body) != sha {
			t.Errorf("GET by name %q: wrong bytes", name)
		}
		if got := s.get(t, "/images/"+sha+"/"+url.PathEscape(name), anonymous).Must(t, 200); sum(got.Body) != sha {
			t.Errorf("GET by SHA-256 and name %q: wrong bytes", name)
		}
		l, ok := listing[name]
		if !ok {
			t.Errorf("GET /images does not list %q", name)
			continue
		}
		// A flash client uses the URL unchanged.
		body := filepath.Join(t.TempDir(), "body")
		run(t, nil, "curl", "-fsS", "--globoff", "-o", body, l.URL)
		if b, err := os.ReadFile(body); err != nil || sum(b) != sha {
			t.Errorf("%q: %s serves wrong bytes (%v)", name, l.URL, err)
		}
		u, err := url.Parse(l.URL)
		if err != nil {
			t.Errorf("%q: url %q: %v", name, l.URL, err)
		} else if !strings.HasSuffix(u.Path, "/"+sha+"/"+name) {
			t.Errorf("%q: url %q, want /images/%s/NAME", name, l.URL, sha)
		}
		if m, ok := manifest[name]; !ok || m.SHA256 != sha {
			t.Errorf("catalog.toml: %q is %+v, want SHA-256 %s", name, m, sha)
		}
	}
}

func TestUploadCutLeavesNoDebris(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	s.Put(t, "old.img", content(1, 100_000))
	before := diskUse(t, s.Data)
	for _, framing := range []string{"Content-Length: 33554432", "Transfer-Encoding: chunked"} {
		for _, name := range []string{"old.img", "new.img"} {
			cutUpload(t, s, name, framing, 24<<20)
		}
	}
	eventually(t, within, "what was sent is gone from the disk", func() error {
		if now := diskUse(t, s.Data); now > before+(2<<20) {
			return fmt.Errorf("%d bytes were used before, now %d", before, now)
		}
		return nil
	})
	if got := s.get(t, "/images/old.img").Must(t, 200); sum(got.Body) != sum(content(1, 100_000)) {
		t.Error("the old object is not what it was")
	}
	s.get(t, "/images/new.img").Problem(t, []int{404})
	s.WaitEvent(t, "image.upload_failed", "new.img")
}

// cutUpload begins an upload, sends size bytes of its body and resets the
// connection.
func cutUpload(t *testing.T, s *Server, name, framing string, size int) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.Pages, "http://"), within)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(conn)
	fmt.Fprintf(w, "PUT %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", imageRoute(name), token, framing)
	if strings.HasPrefix(framing, "Transfer-Encoding") {
		fmt.Fprintf(w, "%x\r\n", size+1000)
	}
	_, _ = w.Write(content(99, size))
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
}

// TestDeepUploadHuge uploads a body of more than the 5 GiB of one S3 PUT, with
// and without a length.
func TestDeepUploadHuge(t *testing.T) {
	s := Start(t, Options{})
	const size = 5<<30 + 123<<20 + 7
	path := filepath.Join(t.TempDir(), "huge")
	sparse(t, path, size)
	want := sha256sum(t, path)
	for _, extra := range [][]string{nil, {"-H", "Transfer-Encoding: chunked"}} {
		begin := time.Now()
		c := s.curl(t, append(extra, "-T", path, s.Pages+"/images/huge.raw")...)
		var u uploaded
		c.Reply(t).Must(t, http.StatusCreated).JSON(t, &u)
		if u.SHA256 != want || u.SizeBytes != size {
			t.Errorf("answer %+v, want SHA-256 %s", u, want)
		}
		t.Logf("%v %d bytes in %v", extra, int64(size), time.Since(begin).Round(time.Second))
		s.WaitHashed(t, "huge.raw", want)
		res := s.Do(t, http.MethodHead, "/images/"+want, nil).Must(t, 200)
		if got := res.Header.Get("Content-Length"); got != fmt.Sprint(int64(size)) {
			t.Errorf("Content-Length is %s", got)
		}
		s.Do(t, http.MethodDelete, "/images/huge.raw", nil).Must(t, 204)
	}
}

// TestDeepUploadSlow uploads for longer than the timeouts of typical servers.
func TestDeepUploadSlow(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const pieces, pause = 75, time.Second
	next := make(chan struct{})
	go func() {
		defer close(next)
		for range pieces {
			time.Sleep(pause)
			next <- struct{}{}
		}
	}()
	b := content(1, pieces*1000)
	r := s.Do(t, http.MethodPut, "/images/slow.img", &slowReader{rest: b, piece: 1000, next: next})
	var u uploaded
	r.Must(t, http.StatusCreated).JSON(t, &u)
	if u.SHA256 != sum(b) {
		t.Errorf("SHA-256 %s, want %s", u.SHA256, sum(b))
	}
}
