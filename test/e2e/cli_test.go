package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"imageroot/test/need"
)

// A shell runs commands of the binary as a person does who has their own home directory.
type shell struct {
	home string
	env  []string
}

// newShell returns a shell whose commands use the server at url.
func newShell(t testing.TB, url string, env ...string) *shell {
	home := t.TempDir()
	return &shell{home, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "IMAGEROOT_URL=" + url}, env...)}
}

// shell returns one with the API token.
func (s *Server) shell(t testing.TB) *shell { return newShell(t, s.Pages, "IMAGEROOT_TOKEN="+token) }

// A ran is what a command printed, and its exit status.
type ran struct {
	out, err string
	code     int
}

// command returns a command, which has no terminal.
func (sh *shell) command(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env, cmd.Dir = sh.env, sh.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

func (sh *shell) run(t testing.TB, stdin string, args ...string) ran {
	t.Helper()
	cmd := sh.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return ran{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that succeeds, and returns its output.
func (sh *shell) must(t testing.TB, args ...string) string {
	t.Helper()
	r := sh.run(t, "", args...)
	if r.code != 0 {
		t.Fatalf("imageroot %q: status %d\n%s%s", args, r.code, r.out, r.err)
	}
	return r.out
}

// fails runs a command that ends with a status and, on standard error, one line with words.
func (sh *shell) fails(t testing.TB, code int, words string, args ...string) ran {
	t.Helper()
	r := sh.run(t, "", args...)
	if r.code != code || !strings.Contains(r.err, words) || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "imageroot: ") {
		t.Errorf("imageroot %q: status %d, want %d and %q\n%s%s", args, r.code, code, words, r.out, r.err)
	}
	return r
}

// file writes a file in the home directory.
func (sh *shell) file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(sh.home, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// is checks the content of a file in the home directory.
func (sh *shell) is(t testing.TB, name string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(sh.home, name))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%s: %d bytes with %s, want %d with %s (%v)", name, len(got), sum(got), len(content), sum(content), err)
	}
}

// A wire is a proxy before a server that sees and damages what passes.
type wire struct {
	*httptest.Server
	mu    sync.Mutex
	sent  map[string]int64 // bytes of the body by path
	begun map[string]int   // requests with a body by path
	read  int64            // bytes of answers
	asked []http.Header    // of GET
	// up and down are called with all bytes of requests and of answers so far, and change
	// what passes. An error cuts the connection.
	up, down func(total int64, b []byte) error
}

func (s *Server) wire(t testing.TB) *wire {
	to, err := url.Parse(s.Pages)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{sent: map[string]int64{}, begun: map[string]int{}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(r *http.Response) error {
			if strings.HasPrefix(r.Request.URL.Path, "/images/") || strings.HasPrefix(r.Request.URL.Path, "/raw/") {
				r.Body = &tap{r.Body, func(b []byte) error {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.read += int64(len(b))
					if w.down != nil {
						return w.down(w.read, b)
					}
					return nil
				}}
			}
			return nil
		},
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		FlushInterval: -1,
	}
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		w.mu.Lock()
		if r.Method == http.MethodPut {
			w.begun[path]++
			r.Body = &tap{r.Body, func(b []byte) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.sent[path] += int64(len(b))
				if w.up != nil {
					return w.up(w.total(), b)
				}
				return nil
			}}
		}
		if r.Method == http.MethodGet {
			w.asked = append(w.asked, r.Header.Clone())
		}
		w.mu.Unlock()
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.Close)
	return w
}

// total returns how many bytes of bodies were sent.
func (w *wire) total() (n int64) {
	for _, sent := range w.sent {
		n += sent
	}
	return n
}

// now is total for callers without the lock.
func (w *wire) now() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total()
}

func (w *wire) set(up, down func(total int64, b []byte) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up, w.down = up, down
}

// run runs a command while up and down apply, which may signal it, and returns its output.
func (w *wire) run(t testing.TB, cmd *exec.Cmd, up, down func(total int64, b []byte) error) string {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	w.mu.Lock() // they are called under it, so after the start
	w.up, w.down = up, down
	err := cmd.Start()
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	w.set(nil, nil)
	return out.String()
}

// A tap passes the bytes that are read to see.
type tap struct {
	io.ReadCloser
	see func(b []byte) error
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if serr := t.see(b[:n]); serr != nil {
		return 0, serr
	}
	return n, err
}

// uploadPart is the size of the parts of an upload.
const uploadPart = 16 << 20

// TestPushKilled kills an upload three times.
func TestPushKilled(t *testing.T) {
	t.Parallel()
	testPushKilled(t, 5*uploadPart+123)
}

// TestDeepPushKilled does the same with 4 GiB.
func TestDeepPushKilled(t *testing.T) {
	needsDisk(t, 6)
	testPushKilled(t, 4<<30)
}

func testPushKilled(t *testing.T, size int64) {
	s := Start(t, Options{})
	w := s.wire(t)
	sh := newShell(t, w.URL, "IMAGEROOT_TOKEN="+token)
	path := filepath.Join(sh.home, "lab.img")
	sparse(t, path, size)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at, block := int64(0), content(7, 1<<20); at < size; at += uploadPart {
		block[0]++
		if _, err := f.WriteAt(block[:min(int64(len(block)), size-at)], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for kill := int64(1); kill <= 3; kill++ {
		cmd := sh.command("push", "lab.img")
		// In the middle of a part, just before its end, and just after its beginning.
		at := size*kill/4/uploadPart*uploadPart + []int64{0, uploadPart / 2, uploadPart - 1, 1}[kill] + (kill-1)*uploadPart
		out := w.run(t, cmd, func(total int64, _ []byte) error {
			if total >= at {
				_ = cmd.Process.Kill()
				return io.ErrUnexpectedEOF
			}
			return nil
		}, nil)
		if cmd.ProcessState.Success() || strings.Contains(out, "SHA-256") {
			t.Fatalf("it was to be killed after %d bytes: %s", at, out)
		}
	}
	out := sh.must(t, "push", "lab.img")
	want := sha256sum(t, path)
	if !strings.Contains(out, want) {
		t.Errorf("it said %q, the file has %s", out, want)
	}
	s.WaitHashed(t, "lab.img", want)
	w.mu.Lock()
	defer w.mu.Unlock()
	again := 0
	for path, n := range w.begun {
		if n > 1 {
			again++
			t.Logf("%s was sent %d times", path, n)
		}
	}
	if over := w.total() - size; again > 3 || over > 3*uploadPart {
		t.Errorf("%d parts were sent again, and %d bytes more than the file has", again, over)
	}
	if left, err := filepath.Glob(filepath.Join(sh.home, ".local/state/imageroot/uploads/*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q %v", left, err)
	}
}

// TestPushResumes tests that an upload resumes after the connection was cut, on a machine that
// has lost what it knew of the upload, and not with another file.
func TestPushResumes(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	w := s.wire(t)
	sh := newShell(t, w.URL, "IMAGEROOT_TOKEN="+token)
	data := content(1, 3*uploadPart)
	sh.file(t, "a.img", data)
	cut := false // under the lock
	w.set(func(total int64, _ []byte) error {
		if total > uploadPart*3/2 && !cut {
			cut = true
			return io.ErrUnexpectedEOF
		}
		return nil
	}, nil)
	if out := sh.must(t, "push", "a.img"); !strings.Contains(out, sum(data)) || !cut {
		t.Errorf("%s, cut: %v", out, cut)
	}

	killAt := func(name string, at int64) {
		t.Helper()
		cmd := sh.command("push", name)
		before := w.now()
		out := w.run(t, cmd, func(total int64, _ []byte) error {
			if total-before >= at {
				_ = cmd.Process.Kill()
				return io.ErrUnexpectedEOF
			}
			return nil
		}, nil)
		if cmd.ProcessState.Success() {
			t.Fatalf("it was to be killed: %s", out)
		}
	}
	data[0]++
	sh.file(t, "b.img", data)
	killAt("b.img", uploadPart*3/2)
	if err := os.RemoveAll(filepath.Join(sh.home, ".local")); err != nil {
		t.Fatal(err)
	}
	before := w.now()
	if out := sh.must(t, "push", "b.img"); !strings.Contains(out, sum(data)) {
		t.Errorf("%s", out)
	}
	if sent := w.now() - before; sent != 2*uploadPart {
		t.Errorf("%d bytes were sent to resume after the first part", sent)
	}

	data[0]++
	sh.file(t, "c.img", data)
	killAt("c.img", uploadPart*3/2)
	data[1]++
	sh.file(t, "c.img", data)
	before = w.now()
	if out := sh.must(t, "push", "c.img"); !strings.Contains(out, sum(data)) {
		t.Errorf("%s", out)
	}
	if sent := w.now() - before; sent != int64(len(data)) {
		t.Errorf("%d bytes were sent of a file that has changed", sent)
	}
	s.WaitHashed(t, "c.img", sum(data))
	// Bytes that are damaged on the way are found.
	data[0]++
	sh.file(t, "d.img", data)
	w.set(func(_ int64, b []byte) error {
		if len(b) > 0 {
			b[0] ^= 1
		}
		return nil
	}, nil)
	sh.fails(t, 5, "other bytes", "push", "d.img")
	if _, ok := s.Row(t, "d.img"); ok {
		t.Error("damaged bytes are an image")
	}
}

// TestPushRefused tests that nothing is sent that the server would not keep.
func TestPushRefused(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	w := s.wire(t)
	sh := newShell(t, w.URL, "IMAGEROOT_TOKEN="+token)
	data := content(1, 100_000)
	sh.file(t, "a.img", data)
	sh.file(t, "b.img", data[1:])
	sh.file(t, "a.tar.gz", data)
	sh.file(t, "a.txt", data)
	sh.file(t, "empty.img", nil)
	sh.must(t, "push", "a.img")
	sent := w.now()
	if out := sh.must(t, "push", "a.img"); !strings.Contains(out, "already") {
		t.Errorf("the same again: %s", out)
	}
	sh.fails(t, 1, "--force", "push", "--name", "a.img", "b.img")
	sh.fails(t, 2, "tarball", "push", "a.tar.gz")
	sh.fails(t, 2, ".qcow2", "push", "a.txt")
	sh.fails(t, 1, "empty", "push", "empty.img")
	sh.fails(t, 1, "directory", "push", ".")
	sh.fails(t, 1, "no such file", "push", "none.img")
	sparse(t, filepath.Join(sh.home, "vast.img"), 1<<42)
	if needsRoom := *s3Endpoint == ""; needsRoom {
		sh.fails(t, 1, "", "push", "vast.img")
	}
	if w.now() != sent {
		t.Errorf("%d bytes were sent", w.now()-sent)
	}
	r := sh.run(t, "", "push", "--json", "--force", "--name", "a.img", "b.img")
	var docs []uploaded
	if err := json.Unmarshal([]byte(r.out), &docs); err != nil || len(docs) != 1 || docs[0].SHA256 != sum(data[1:]) || docs[0].Name != "a.img" {
		t.Errorf("%+v: %v", r, err)
	}
	if r := sh.run(t, string(data), "push", "--name", "stdin.img", "-"); r.code != 0 || !strings.Contains(r.out, sum(data)) {
		t.Errorf("standard input: %+v", r)
	}
	if r := sh.run(t, string(data), "push", "-"); r.code != 2 {
		t.Errorf("standard input without a name: %+v", r)
	}
}

// TestPushAtOnce pushes other images under one new name at the same time, to two processes:
// one gets it, and --force replaces that.
func TestPushAtOnce(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	wires := []*wire{s.wire(t), Start(t, Options{Over: s}).wire(t)}
	shells, runs := make([]*shell, 4), make([]ran, 4)
	image := func(i int) []byte { return content(uint64(20+i), 1<<20) }
	var wg sync.WaitGroup
	for i := range shells {
		shells[i] = newShell(t, wires[i%2].URL, "IMAGEROOT_TOKEN="+token)
		shells[i].file(t, "lab.img", image(i))
		wg.Go(func() { runs[i] = shells[i].run(t, "", "push", "lab.img") })
	}
	wg.Wait()
	won, lost := -1, -1
	for i, r := range runs {
		switch {
		case r.code == 0 && won < 0:
			won = i
		case r.code == 1 && strings.Contains(r.err, "lab.img"):
			lost = i
		default:
			t.Errorf("push %d, after %d: %+v", i, won, r)
		}
	}
	if won < 0 || lost < 0 {
		t.Fatalf("no push succeeded: %+v", runs)
	}
	shells[won].must(t, "pull", "--output", "got.img", "lab.img")
	shells[won].is(t, "got.img", image(won))
	if out := shells[won].must(t, "push", "lab.img"); !strings.Contains(out, "already") {
		t.Errorf("the same again: %s", out)
	}
	shells[lost].must(t, "push", "--force", "lab.img")
	shells[lost].must(t, "pull", "--output", "got.img", "lab.img")
	shells[lost].is(t, "got.img", image(lost))
}

// TestPull downloads images over connections that break, and with wrong bytes.
func TestPull(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	w := s.wire(t)
	sh := newShell(t, w.URL) // without credentials
	data := content(1, 20<<20)
	clear(data[5<<20 : 15<<20])
	s.Put(t, "a.img", data)
	half := int64(len(data)) / 2
	w.set(nil, func(total int64, _ []byte) error {
		if total > half {
			w.down = nil
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	if out := sh.must(t, "pull", "a.img"); !strings.Contains(out, sum(data)) {
		t.Errorf("it said %q", out)
	}
	sh.is(t, "a.img", data)
	w.mu.Lock()
	read, last := w.read, w.asked[len(w.asked)-1]
	w.mu.Unlock()
	if over := read - int64(len(data)); over > 2<<20 {
		t.Errorf("%d bytes more than the image has were read", over)
	}
	if last.Get("Range") == "" || last.Get("If-Range") == "" {
		t.Errorf("the second request had %v", last)
	}
	if *s3Endpoint == "" {
		if used := diskUse(t, sh.home); used > 12<<20 {
			t.Errorf("with 10 MiB of zeros, 20 MiB take %d bytes", used)
		}
	}
	// Killed and run again.
	cmd := sh.command("pull", "a.img", "-o", "k.img")
	before := read
	out := w.run(t, cmd, nil, func(total int64, _ []byte) error {
		if total-before > half {
			_ = cmd.Process.Kill()
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	if cmd.ProcessState.Success() {
		t.Fatalf("it was to be killed: %s", out)
	}
	sh.must(t, "pull", "a.img", "-o", "k.img")
	sh.is(t, "k.img", data)
	// By the beginning of the digest: that needs the catalog.
	op := s.shell(t)
	op.must(t, "pull", sum(data)[:8], "-o", "ref.img")
	op.is(t, "ref.img", data)
	sh.must(t, "pull", sum(data), "-o", ".", "--force")
	if r := sh.run(t, "", "pull", "a.img", "-o", "-"); r.out != string(data) {
		t.Errorf("standard output has %d bytes: %s", len(r.out), r.err)
	}
	sh.fails(t, 1, "exists", "pull", "a.img")
	sh.fails(t, 3, "no image", "pull", "none.img")
	// Wrong bytes never get the name.
	w.set(nil, func(total int64, b []byte) error {
		if len(b) > 0 {
			b[len(b)-1] ^= 1
		}
		return nil
	})
	sh.fails(t, 5, "SHA-256", "pull", "a.img", "-o", "w.img")
	if left, err := filepath.Glob(filepath.Join(sh.home, "w.img*")); err != nil || len(left) > 0 {
		t.Errorf("wrong bytes are in %q %v", left, err)
	}
	// Ctrl-C.
	cmd = sh.command("pull", "a.img", "-o", "c.img")
	out = w.run(t, cmd, nil, func(int64, []byte) error { return cmd.Process.Signal(syscall.SIGINT) })
	if cmd.ProcessState.ExitCode() != 130 || !strings.Contains(out, "resumes") {
		t.Errorf("Ctrl-C: %v %s", cmd.ProcessState, out)
	}
}

// TestPullRaw downloads the disk of a compressed image.
func TestPullRaw(t *testing.T) {
	t.Parallel()
	need.Programs(t, "zstd")
	s := Start(t, Options{})
	sh := s.shell(t)
	disk := content(1, 3<<20)
	packed := tempFile(t, disk)
	run(t, nil, "zstd", "-q", packed)
	sh.must(t, "push", "--name", "a.img.zst", packed+".zst")
	s.WaitRow(t, "a.img.zst", "its disk is known", func(r row) bool { return r.RawSHA256 != "" })
	sh.must(t, "pull", "--raw", "a.img.zst")
	sh.is(t, "a.img", disk)
}

// TestCommands tests what the other commands do, and what they print.
func TestCommands(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	sh := s.shell(t)
	data := content(1, 1<<20)
	p := publish(t)
	src := p.File("/a.img", data)
	list := p.File("/SHA256SUMS", fmt.Appendf(nil, "%s  a.img\n", sum(data)))
	sh.must(t, "add", src, "--sha-url", list)
	sh.fails(t, 1, "already", "add", src)
	if out := sh.must(t, "ls"); !regexp.MustCompile(`(?m)^a\.img .*available`).MatchString(out) {
		t.Errorf("ls:\n%s", out)
	}
	if out := sh.must(t, "fetch", "a.img"); !strings.Contains(out, sum(data)) {
		t.Errorf("fetch: %s", out)
	}
	var doc struct {
		Images []row
		Total  int
	}
	if err := json.Unmarshal([]byte(sh.must(t, "ls", "--json", "a.img")), &doc); err != nil || doc.Total != 1 || !doc.Images[0].Cached {
		t.Errorf("%+v %v", doc, err)
	}
	var one row
	if err := json.Unmarshal([]byte(sh.must(t, "show", "--json", sum(data)[:6])), &one); err != nil || one.Names[0] != "a.img" {
		t.Errorf("%+v %v", one, err)
	}
	if out := sh.must(t, "show", "a.img"); !strings.Contains(out, sum(data)) || !strings.Contains(out, src) {
		t.Errorf("show:\n%s", out)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(data); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	sh.file(t, "same.img.gz", zipped.Bytes())
	sh.must(t, "push", "same.img.gz")
	s.WaitRow(t, "same.img.gz", "its disk is known", func(r row) bool { return r.RawSHA256 == sum(data) })
	sh.must(t, "pull", "same.img.gz", "-o", "got.img.gz")
	for name, words := range map[string]string{"a.img": `Same disk +same\.img\.gz \(`, "same.img.gz": `(?s)Same disk +a\.img \(.*Check +good.*Served to +(127\.0\.0\.1|::1) image \(`} {
		if out := sh.must(t, "show", name); !regexp.MustCompile(words).MatchString(out) {
			t.Errorf("show lacks %s:\n%s", words, out)
		}
	}
	var details struct {
		Check  struct{ Verdict string }
		Served []struct{ To string }
	}
	if err := json.Unmarshal([]byte(sh.must(t, "show", "--json", "same.img.gz")), &details); err != nil || details.Check.Verdict != "good" || len(details.Served) != 1 {
		t.Errorf("%+v %v", details, err)
	}
	sh.must(t, "rm", "--yes", "same.img.gz")
	sh.must(t, "label", "a.img", "room=lab", "owner=ada", "--title", "Lab machines", "--architecture", "x86_64")
	if out := sh.must(t, "label", "a.img", "owner-"); strings.Contains(out, "ada") || !strings.Contains(out, "room=lab (operator)") || !strings.Contains(out, "Lab machines (operator)") {
		t.Errorf("label: %s", out)
	}
	for args, found := range map[string]bool{"--label room=lab": true, "--label room=hall": false, "--arch amd64": true, "--arch arm64": false, "--os debian": false} {
		r := sh.run(t, "", append([]string{"ls", "-q"}, strings.Fields(args)...)...)
		if strings.Contains(r.out, "a.img") != found {
			t.Errorf("ls %s: %+v", args, r)
		}
	}
	for _, wrong := range [][]string{
		{"failed, cached", "ls", "--state", "nonsense"},
		{"name, size", "ls", "--sort", "nonsense"},
		{"amd64, arm64", "ls", "--arch", "vax"},
		{"qcow2", "ls", "--format", "ova"},
		{"amd64, arm64", "label", "a.img", "--architecture", "vax"},
		{"cloudinit", "label", "a.img", "--init-format", "sysv"},
		{"2026-", "label", "a.img", "--release-date", "today"},
		{"a.img", "label", "a.img", "--name", "other.img"},
		{"64 hexadecimal digits", "add", src, "--sha256", "abc"},
		{"http", "add", "gopher://example.org/a.img"},
	} {
		sh.fails(t, 2, wrong[0], wrong[1:]...)
	}
	sh.fails(t, 2, "KEY=VALUE", "label", "a.img", "room")
	given := p.File("/given.img", data[1:])
	sh.fails(t, 1, "failed", "add", "--fetch", given, "--sha256", sum(data[2:]))
	sh.must(t, "rm", "--yes", "given.img")
	if out := sh.must(t, "add", "--fetch", given, "--sha256", sum(data[1:])); !strings.Contains(out, sum(data[1:])) {
		t.Errorf("add --fetch: %s", out)
	}
	// The catalog has the URL: add fetches it, unless the command gives another digest.
	sh.must(t, "rm", "--cached", "--yes", "given.img")
	sh.fails(t, 1, "--refresh", "add", "--fetch", given, "--sha256", sum(data))
	if r := sh.run(t, "", "add", "--fetch", given); r.code != 0 || !strings.Contains(r.out, sum(data[1:])) || !strings.Contains(r.err, "already") {
		t.Errorf("add --fetch again: %+v", r)
	}
	sh.must(t, "rm", "--yes", "given.img")
	// There is no terminal.
	sh.fails(t, 2, "--yes", "rm", "a.img")
	sh.must(t, "rm", "--cached", "--yes", "a.img")
	sh.must(t, "rm", "--yes", "a.img")
	sh.fails(t, 3, "none.img", "rm", "--yes", "none.img")
	if out := sh.must(t, "ls", "-q"); out != "" {
		t.Errorf("left: %s", out)
	}
	// Two images whose digests begin alike, and a name with two contents.
	sh.file(t, "b.img", data)
	sh.must(t, "push", "b.img")
	sh.must(t, "push", "--name", "c.img", "b.img")
	sh.must(t, "rm", "-y", "c.img")
	if _, ok := s.Row(t, "b.img"); !ok {
		t.Error("the other name of the bytes is removed, too")
	}
	t.Run("terminal", func(t *testing.T) {
		need.Programs(t, "script")
		ask := func(answer string) string {
			cmd := exec.Command("script", "-qec", binary+" rm b.img", "/dev/null")
			cmd.Env, cmd.Stdin = sh.env, strings.NewReader(answer)
			out, _ := cmd.CombinedOutput()
			return string(out)
		}
		if out := ask("n\n"); !strings.Contains(out, "nothing is removed") {
			t.Errorf("no: %s", out)
		}
		if out := ask("y\n"); !strings.Contains(out, "removed the uploaded image b.img") {
			t.Errorf("yes: %s", out)
		}
		s.WaitGone(t, "b.img")
	})
}

// TestCommandLine tests what is said of wrong command lines, and the help.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	sh := newShell(t, "http://127.0.0.1:9")
	sh.fails(t, 2, "did you mean show", "shwo")
	sh.fails(t, 2, "--nonsense", "ls", "--nonsense")
	sh.fails(t, 2, "one image", "pull")
	sh.fails(t, 2, "one image", "show", "a", "b")
	sh.fails(t, 2, "URL", "ls", "--url", "ftp://x")
	sh.fails(t, 1, "cannot reach http://127.0.0.1:9", "ls")
	sh.fails(t, 2, "no such file", "ls", "--token-file", "none")
	sh.fails(t, 2, "before the flags", "--listen", ":0", "ls")
	sh.fails(t, 2, "bash, zsh, fish", "completion", "tcsh")
	sh.fails(t, 2, "did you mean show", "help", "shwo")
	sh.fails(t, 2, "-nonsense", "doctor", "--nonsense")
	sh.fails(t, 2, "from 1 to 32", "push", "--parallel", "99", "a.img")
	if out := sh.must(t, "--help"); !strings.Contains(out, "--s3-listen") || !strings.Contains(out, "push ") {
		t.Errorf("--help:\n%s", out)
	}
	commands := regexp.MustCompile(`(?m)^  ([a-z]+) `).FindAllStringSubmatch(sh.must(t, "--help"), -1)
	if len(commands) < 12 {
		t.Errorf("the commands are %q", commands)
	}
	for _, c := range commands {
		if name := c[1]; name != "imageroot" && name != "help" && name != "doctor" && name != "key" {
			if out := sh.must(t, name, "--help"); !strings.Contains(out, "Examples:") {
				t.Errorf("the help of %s has no example", name)
			}
		}
	}
}

// TestHostileNames sends names that break careless programs through all commands.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	sh := s.shell(t)
	names := append(hostileNames(), "gpj\u202egmi.img", "zero\u200bwidth.img")
	for i, name := range names {
		sh.file(t, name, content(uint64(i), 1000))
	}
	sh.must(t, append([]string{"push", "--"}, names...)...)
	for i, name := range names {
		sh.must(t, "pull", "--force", "--", name)
		sh.is(t, name, content(uint64(i), 1000))
	}
	if out := sh.must(t, "show", "--", names[0]); !strings.Contains(out, names[0]) {
		t.Errorf("show: %s", out)
	}
	got := strings.Split(strings.TrimSuffix(sh.must(t, "ls", "-q"), "\n"), "\n")
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("ls -q has\n%q, want\n%q", got, names)
	}
	if out := sh.must(t, "ls"); strings.ContainsAny(out, "\u202e\u200b") || !strings.Contains(out, "[U+202E]") {
		t.Errorf("hidden characters are printed:\n%q", out)
	}
	for _, name := range names[:3] {
		sh.must(t, "rm", "--yes", "--", name)
	}
}

// TestLogin tests where credentials come from, where they are kept, and where they go.
func TestLogin(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	sh := newShell(t, "")
	sh.fails(t, 4, "imageroot login "+s.Pages, "ls", "--url", s.Pages)
	if r := sh.run(t, "wrong password\n", "login", s.Pages); r.code != 4 {
		t.Errorf("a wrong password: %+v", r)
	}
	for _, word := range []string{password, token} {
		if r := sh.run(t, word+"\n", "login", s.Pages+"/"); r.code != 0 || r.out != "" {
			t.Errorf("login: %+v", r)
		}
		sh.must(t, "ls")
	}
	config := filepath.Join(sh.home, ".config/imageroot/config.toml")
	info, err := os.Stat(config)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	// Another server does not get them, nor where the server redirects.
	var got []string
	var mu sync.Mutex
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Header.Get("Authorization")+r.Header.Get("Cookie"))
		http.Error(w, "", http.StatusUnauthorized)
	}))
	t.Cleanup(other.Close)
	sh.run(t, "", "ls", "--url", other.URL)
	ofOne := newShell(t, s.Pages, "IMAGEROOT_TOKEN="+token)
	if r := ofOne.run(t, "", "ls", "--url", other.URL); r.code != 4 || !strings.Contains(r.err, "not sent to "+other.URL) {
		t.Errorf("the token of another server: %+v", r)
	}
	ofOne.must(t, "ls", "--url", s.Pages+"/")
	newShell(t, "", "IMAGEROOT_TOKEN="+token).must(t, "ls", "--url", s.Pages)
	redirecting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			t.Errorf("the server itself got %q", r.Header.Get("Authorization"))
		}
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(redirecting.Close)
	withToken := newShell(t, redirecting.URL, "IMAGEROOT_TOKEN="+token)
	withToken.fails(t, 4, "redirects to "+other.URL, "ls")
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 3 || strings.Join(got, "") != "" {
		t.Errorf("another server got %q", got)
	}
	if err := os.Chmod(config, 0o640); err != nil {
		t.Fatal(err)
	}
	sh.fails(t, 2, "chmod 600", "ls")
	file := newShell(t, s.Pages)
	file.fails(t, 4, "none of this server's", "ls", "--token-file", file.file(t, "wrong", []byte("wrong-token-0123456789\n")))
	file.must(t, "ls", "--token-file", file.file(t, "token", []byte(token+"\n")))
}

// TestHostileServer tests that a server cannot choose what a client writes or shows.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	data := content(1, 1000)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/images/"):
			w.Header().Set("Content-Disposition", `attachment; filename="../../evil.img"`)
			w.Header().Set("Repr-Digest", structuredDigest(sum(data)))
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			if r.Method != http.MethodHead {
				_, _ = w.Write(data)
			}
		case r.URL.Path == "/catalog" && r.URL.Query().Get("q") == "problem":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"code": "invalid", "detail": "a\u001b[2Jb\u202ec"}`)
		case r.URL.Path == "/catalog":
			_, _ = io.WriteString(w, `{"images": [{"names": ["a\u001b[2J\nimageroot: b.img`+"\u009b2J"+`"], "sources": [], "warnings": []}], "total": 1, "next": null}`)
		default:
			_, _ = io.WriteString(w, "<html>")
		}
	}))
	t.Cleanup(evil.Close)
	sh := newShell(t, evil.URL)
	sh.fails(t, 2, "-o", "pull", sum(data))
	sh.must(t, "pull", sum(data), "-o", "fine.img")
	sh.is(t, "fine.img", data)
	sh.fails(t, 5, "SHA-256", "pull", sum(data[1:]), "-o", "other.img")
	if _, err := os.Stat(filepath.Join(sh.home, "other.img")); !os.IsNotExist(err) {
		t.Errorf("other bytes than those with the SHA-256 are there: %v", err)
	}
	for _, args := range [][]string{{"ls"}, {"ls", "-q"}} {
		if out := sh.must(t, args...); strings.ContainsRune(out, '\x1b') || strings.Count(out, "\n") > 2 {
			t.Errorf("%q: %q", args, out)
		}
	}
	if out := sh.must(t, "ls", "--json"); !json.Valid([]byte(out)) || !strings.Contains(out, `\u009b2J`) || strings.ContainsRune(out, '\u009b') {
		t.Errorf("as JSON: %q", out)
	}
	sh.fails(t, 2, "[U+001B][2Jb[U+202E]c", "ls", "problem")
	// A port that nothing serves, and a server that is no imageroot.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	sh.fails(t, 3, "not an answer of imageroot", "ls", "--url", web.URL)
}
