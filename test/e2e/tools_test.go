package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imageroot/test/runner"
)

// content returns bytes that compress badly and differ from those of every
// other seed in the first block.
func content(seed uint64, size int) []byte {
	key := sha256.Sum256(strconv.AppendUint(nil, seed, 10))
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b)
	if size >= 512 {
		copy(b[510:], "\x55\xaa") // a boot signature, so that it passes as a bootable disk
	}
	return b
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// structuredDigest formats a SHA-256 for Repr-Digest (RFC 9530).
func structuredDigest(sha256 string) string {
	b, err := hex.DecodeString(sha256)
	if err != nil {
		panic(err)
	}
	return "sha-256=:" + base64.StdEncoding.EncodeToString(b) + ":"
}

// run runs a program, which must succeed, and returns its output.
func run(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func tryRun(t testing.TB, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	return runner.Tool(ctx, t.TempDir(), env, name, args...)
}

// A curled is curl's report of a transfer.
type curled struct {
	Status   int
	Uploaded int64 // bytes of body sent
	Header   string
	Body     string // path of the file that holds the body
}

// curl runs curl with the operator's token. It ignores curl's exit status; the
// answer has the HTTP status.
func (s *Server) curl(t testing.TB, args ...string) curled {
	t.Helper()
	dir := t.TempDir()
	c := curled{Body: filepath.Join(dir, "body")}
	head := filepath.Join(dir, "head")
	base := []string{
		"-sS", "--path-as-is", "--max-time", "900", "-o", c.Body, "-D", head,
		"-H", "Authorization: Bearer " + s.Token, "-w", "%{http_code} %{size_upload}",
	}
	out, err := tryRun(t, nil, "curl", append(base, args...)...)
	fields := strings.Fields(out)
	if len(fields) < 2 {
		t.Fatalf("curl %q: %v: %s", args, err, out)
	}
	fields = fields[len(fields)-2:]
	if c.Status, err = strconv.Atoi(fields[0]); err != nil {
		t.Fatalf("curl %q: %s", args, out)
	}
	if c.Uploaded, err = strconv.ParseInt(fields[1], 10, 64); err != nil {
		t.Fatalf("curl %q: %s", args, out)
	}
	if b, err := os.ReadFile(head); err == nil {
		c.Header = string(b)
	}
	return c
}

func (c curled) Reply(t testing.TB) *Reply {
	t.Helper()
	b, err := os.ReadFile(c.Body)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	// Of several header blocks (100, then the answer) the last one counts.
	for line := range strings.Lines(c.Header) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			h.Set(k, strings.TrimSpace(v))
		}
	}
	return &Reply{c.Status, h, b, "curl"}
}

func (s *Server) awsEnv() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_DEFAULT_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=",
	}
}

// aws runs the AWS command line client against the server's S3 endpoint.
func (s *Server) aws(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, s.awsEnv(), "aws", append([]string{"--endpoint-url", s.S3}, args...)...)
}

// object is the S3 URL of an image.
func (s *Server) object(name string) string { return "s3://" + s.ImageBucket + "/" + name }

// awsPut copies content to a key of the image root with aws s3 cp.
func (s *Server) awsPut(t testing.TB, name string, content []byte) {
	t.Helper()
	s.aws(t, "s3", "cp", "--only-show-errors", tempFile(t, content), s.object(name))
}

// rclone runs rclone with a remote called gw.
func (s *Server) rclone(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, []string{
		"RCLONE_CONFIG_GW_TYPE=s3", "RCLONE_CONFIG_GW_PROVIDER=Other", "RCLONE_CONFIG_GW_ENDPOINT=" + s.S3,
		"RCLONE_CONFIG_GW_ACCESS_KEY_ID=" + s.AccessKey, "RCLONE_CONFIG_GW_SECRET_ACCESS_KEY=" + s.SecretKey,
		"RCLONE_CONFIG_GW_REGION=us-east-1",
	}, "rclone", args...)
}

// drop puts a file directly into the gateway's directory, as cp does.
func (s *Server) drop(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(s.Data, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.imagePath(name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// dropSparse puts a file of zeros of any size into the gateway's directory; it
// takes no disk space.
func (s *Server) dropSparse(t testing.TB, name string, size int64) {
	t.Helper()
	sparse(t, s.imagePath(name), size)
}

func sparse(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func tempFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sha256sum computes the reference for the binary's digests.
func sha256sum(t testing.TB, path string) string {
	t.Helper()
	out := run(t, nil, "sha256sum", "--", path)
	return strings.TrimPrefix(out, `\`)[:64]
}

// needsDisk fails the test if the disk has less free space than gib GiB.
func needsDisk(t testing.TB, gib int64) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(os.TempDir(), &st); err != nil {
		t.Fatal(err)
	}
	if free := int64(st.Bavail) * st.Bsize >> 30; free < gib {
		t.Fatalf("%s has %d GiB free, this test takes %d (set TMPDIR)", os.TempDir(), free, gib)
	}
}

// diskUse returns the number of bytes of disk that a directory takes.
func diskUse(t testing.TB, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // removed meanwhile
			}
			return err
		}
		if fi, err := d.Info(); err == nil {
			n += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A slowReader returns content in pieces. It waits for next before each piece
// except the first.
type slowReader struct {
	rest    []byte
	piece   int
	next    <-chan struct{}
	read    int // of the content
	waiting atomic.Bool
}

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	if r.read > 0 && r.read%r.piece == 0 {
		r.waiting.Store(true)
		<-r.next
	}
	n := copy(p[:min(len(p), r.piece-r.read%r.piece)], r.rest)
	r.rest, r.read = r.rest[n:], r.read+n
	return n, nil
}

// waitFirst waits until the first piece has been read.
func (r *slowReader) waitFirst(t testing.TB) {
	t.Helper()
	eventually(t, within, "the first piece of the body is read", func() error {
		if !r.waiting.Load() {
			return errors.New("not yet")
		}
		return nil
	})
}

// hostileNames are legal image names that break careless quoting.
func hostileNames() []string {
	names := []string{
		"with space.img", "plus+plus.img", "100%.img", "%41.img", "hash#tag.img", "what?.img", "a&b=c;d.img",
		"\u00fcml\u00e4ut.img", "u\u0308 decomposed.img", "rocket-\U0001F680.img", `quote"'<b>.img`, "$(id)`x`.img",
		"-rf.img", "a..b.img", "~tilde.img", "[x]{y}*.img", "semi:colon@at,comma.img", "UPPER.IMG",
		strings.Repeat("x", 251) + ".img",
		strings.Repeat("\u00fc", 125) + "x.img",
	}
	for _, n := range names {
		if len(n) > 255 {
			panic(fmt.Sprintf("%q is no legal name", n))
		}
	}
	return names
}
