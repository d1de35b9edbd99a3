package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/client/exit"
	"imageroot/shared/config"
	"imageroot/test/need"
)

// A diskServer serves one disk, as docs/openapi.yaml says of /flash.sh and /raw.
type diskServer struct {
	*testing.T
	disk   []byte // that it sends
	sum    string // that it says
	image  []byte // that has the disk
	ranges string
	waits  atomic.Int32 // how often the disk is not ready yet
	cut    func(n int) int64
	asked  []string // ranges of /raw
	states string   // directory for what the command keeps
	url    string
}

func newDiskServer(t *testing.T, disk []byte) *diskServer {
	sum := sha256.Sum256(disk)
	s := &diskServer{T: t, disk: disk, sum: hex.EncodeToString(sum[:]), ranges: "yes", states: t.TempDir()}
	server := httptest.NewServer(s)
	s.url = server.URL
	t.Cleanup(server.Close)
	return s
}

func (s *diskServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/images/"):
		_, _ = w.Write(s.image)
	case r.URL.Path == "/flash.sh" && r.FormValue("name") != "a.img" && len(r.FormValue("name")) != 64:
		fmt.Fprint(w, "state fail\nreason there is no image of this name here\ncode not_found\n")
	case r.URL.Path == "/flash.sh" && s.waits.Add(-1) >= 0:
		fmt.Fprint(w, "state wait\nreason it is not hashed yet\n")
	case r.URL.Path == "/flash.sh":
		fmt.Fprintf(w, "state ready\nsize %d\nsha256 %s\npath raw/abc\nranges %s\n", len(s.disk), s.sum, s.ranges)
	case r.URL.Path == "/raw/abc":
		s.asked = append(s.asked, r.Header.Get("Range"))
		out := w
		if s.cut != nil {
			if n := s.cut(len(s.asked)); n >= 0 {
				out = &cutWriter{w, n}
				defer func() { _ = http.NewResponseController(w).Flush(); panic(http.ErrAbortHandler) }()
			}
		}
		if s.ranges != "yes" {
			r.Header.Del("Range")
		}
		http.ServeContent(out, r, "", time.Time{}, bytes.NewReader(s.disk))
	default:
		http.NotFound(w, r)
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int64
}

func (w *cutWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b[:min(int64(len(b)), w.left)])
	w.left -= int64(n)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return n, err
}

// run runs imageroot flash.
func (s *diskServer) run(ctx context.Context, args ...string) (out, log string, err error) {
	var stdout, stderr strings.Builder
	err = Run(ctx, append([]string{"flash", "--url", s.url}, args...), Program{
		Usage: func(io.Writer) {}, Environment: config.Client{StateDir: s.states}, Version: "test", Stdin: os.Stdin, Stdout: &stdout, Stderr: &stderr,
	})
	return stdout.String(), stderr.String(), err
}

func (s *diskServer) device(size int) string {
	path := filepath.Join(s.TempDir(), "device")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, size), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

func (s *diskServer) holds(path string, disk []byte) {
	s.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(got, disk) || len(bytes.Trim(got[len(disk):], "\xaa")) > 0 {
		s.Errorf("%s does not hold the disk: %v", path, err)
	}
}

func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i>>16 + i>>8 + i)
	}
	return b
}

func TestFlash(t *testing.T) {
	t.Parallel()
	s := newDiskServer(t, pattern(9<<20+5))
	s.waits.Store(1)
	path := s.device(10 << 20)
	out, log, err := s.run(t.Context(), "--yes", "a.img", path)
	if err != nil || !strings.Contains(out, "Verified") || !strings.Contains(out, s.sum) || !strings.Contains(log, "a regular file") {
		t.Errorf("%v %s %s", err, out, log)
	}
	s.holds(path, s.disk)
	if out, _, err := s.run(t.Context(), "--yes", "--json", "a.img", path); err != nil || !strings.HasPrefix(out, `{"name":"a.img",`) {
		t.Errorf("%v %s", err, out)
	}
	small := s.device(9 << 20)
	for _, c := range []struct {
		why  string
		code int
		args []string
	}{
		{"too small", exit.Failure, []string{"--yes", "a.img", small}},
		{"no image", exit.NotFound, []string{"--yes", "b.img", small}},
		{"does not exist", exit.Failure, []string{"--yes", "a.img", small + "x"}},
		{"neither a disk", exit.Failure, []string{"--yes", "a.img", "/dev/null"}},
		{"give an image and a device", exit.Usage, []string{"a.img"}},
	} {
		if _, _, err := s.run(t.Context(), c.args...); err == nil || !strings.Contains(err.Error(), c.why) || exit.Code(err) != c.code {
			t.Errorf("%q: %v, exit status %d", c.args, err, exit.Code(err))
		}
	}
	s.holds(small, nil)
	s.sum = strings.Repeat("0", 64)
	if _, _, err := s.run(t.Context(), "--yes", "a.img", path); exit.Code(err) != exit.Mismatch {
		t.Errorf("%v", err)
	}
}

// What is written is compared with a SHA-256 that was given, whatever the server says.
func TestFlashGiven(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	disk := pattern(3 << 20)
	sum := func(b []byte) string {
		s := sha256.Sum256(b)
		return hex.EncodeToString(s[:])
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(disk); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	raw, cow := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "cow")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-c", "-O", "qcow2", raw, cow).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	guest, err := os.ReadFile(cow)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range [][]byte{disk, zipped.Bytes(), guest} {
		s := newDiskServer(t, disk)
		s.image = image
		path := s.device(len(disk))
		if out, _, err := s.run(t.Context(), "--yes", sum(image), path); err != nil || !strings.Contains(out, "given") {
			t.Errorf("%v %s", err, out)
		}
		s.holds(path, disk)
		// Another disk, with its SHA-256.
		lying := newDiskServer(t, pattern(2<<20))
		lying.image = image
		path = lying.device(len(disk))
		if _, _, err := lying.run(t.Context(), "--yes", sum(image), path); exit.Code(err) != exit.Mismatch {
			t.Errorf("another disk: %v", err)
		}
		lying.holds(path, nil)
		// Another image, with its disk.
		s.image = append(image[:len(image):len(image)], 0)
		if _, _, err := s.run(t.Context(), "--yes", sum(image[1:]), path); exit.Code(err) != exit.Mismatch {
			t.Errorf("another image: %v", err)
		}
		s.holds(path, nil)
		// Another disk with the SHA-256 that was given.
		lying.sum = sum(image)
		if _, _, err := lying.run(t.Context(), "--yes", sum(image), path); exit.Code(err) != exit.Mismatch {
			t.Errorf("a disk with a wrong SHA-256: %v", err)
		}
	}
}

func TestFlashResumes(t *testing.T) {
	t.Parallel()
	s := newDiskServer(t, pattern(20<<20))
	s.cut = func(n int) int64 { return []int64{5<<20 + 3, 100, -1}[min(n-1, 2)] }
	path := s.device(len(s.disk))
	if _, _, err := s.run(t.Context(), "--yes", "a.img", path); err != nil {
		t.Error(err)
	}
	s.holds(path, s.disk)
	if len(s.asked) != 3 || s.asked[0] != "" || s.asked[1] != fmt.Sprintf("bytes=%d-", 5<<20+3) {
		t.Errorf("%q", s.asked)
	}
	// From the beginning, if the server cannot send a part.
	s.asked, s.ranges = nil, "no"
	path = s.device(len(s.disk))
	if _, _, err := s.run(t.Context(), "--yes", "a.img", path); err != nil {
		t.Error(err)
	}
	s.holds(path, s.disk)
}

// A run that was ended is resumed by another one, if the device still has what it wrote.
func TestFlashResumesRun(t *testing.T) {
	t.Parallel()
	for _, damaged := range []bool{false, true} {
		s := newDiskServer(t, pattern(20<<20))
		path := s.device(len(s.disk))
		ctx, end := context.WithCancel(t.Context())
		s.cut = func(n int) int64 {
			if n == 2 {
				end() // while the answer to the first request is kept
				return 0
			}
			return map[bool]int64{true: 6 << 20, false: -1}[n == 1]
		}
		if _, _, err := s.run(ctx, "--yes", "a.img", path); exit.Code(err) != exit.Interrupted {
			t.Errorf("%v", err)
		}
		if damaged {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("x"), 1<<20)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		s.asked, s.cut = nil, nil
		_, log, err := s.run(t.Context(), "--yes", "a.img", path)
		if err != nil {
			t.Errorf("%v", err)
		}
		s.holds(path, s.disk)
		want := fmt.Sprintf("bytes=%d-", 6<<20)
		if damaged {
			want = ""
		}
		if len(s.asked) != 1 || s.asked[0] != want || log == "" {
			t.Errorf("damaged %v: %q %s", damaged, s.asked, log)
		}
		if kept, err := filepath.Glob(filepath.Join(s.states, "*", "*")); err != nil || len(kept) > 0 {
			t.Errorf("%q %v is kept", kept, err)
		}
	}
}
