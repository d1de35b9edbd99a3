package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sys/unix"

	"imageroot/local/gateway"
	"imageroot/shared/store"
)

// An insider sends parts from within the process.
type insider struct {
	*gateway.Gateway
	bucket string
}

func (i insider) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error) {
	etag, err := i.PutPart(ctx, i.bucket, string(key), id, n, body, size)
	return store.Part{Number: n, ETag: etag, Size: size}, err
}

// A gate is a body that stops before its last bytes until it is opened.
type gate struct {
	data    []byte
	reached chan struct{} // closed when all but the last byte was read
	open    chan struct{}
}

func newGate(data []byte) *gate {
	return &gate{data: data, reached: make(chan struct{}), open: make(chan struct{})}
}

func (g *gate) Read(p []byte) (int, error) {
	switch {
	case len(g.data) == 0:
		return 0, io.EOF
	case len(g.data) == 1:
		close(g.reached)
		<-g.open
	default:
		p = p[:min(len(p), len(g.data)-1)]
	}
	n := copy(p, g.data)
	g.data = g.data[n:]
	return n, nil
}

// What is written from within the process looks to S3 clients like what they write.
func TestWithinLikeS3(t *testing.T) {
	dir := t.TempDir()
	var events recorder
	g := start(t, dir, events.watch("images"))
	r := root(t, g.Endpoint(), "images")
	data := pattern(1, 3*mib)
	put(t, r, "network.img", data)
	for name, size := range map[string]int64{"known.img": int64(len(data)), "unknown.img": -1} {
		etag, err := g.Put(t.Context(), "images", name, bytes.NewReader(data), size, false)
		if err != nil {
			t.Fatal(err)
		}
		if got, v := get(t, r, name); !bytes.Equal(got, data) || v.ETag != etag {
			t.Errorf("%s has %d bytes and the version %+v, want the ETag %s", name, len(got), v, etag)
		}
		events.await(t, 1, gateway.Event{Bucket: "images", Key: name})
		if got, want := sum(t, g, name), sum(t, g, "network.img"); got != want {
			t.Errorf("the checksum of %s is %s, want %s", name, got, want)
		}
	}

	id, err := r.CreateUpload(t.Context(), "parts.img")
	if err != nil {
		t.Fatal(err)
	}
	parts := []sent{{1, pattern(2, 16*mib)}, {2, pattern(3, 16*mib)}, {3, pattern(4, 1000)}}
	all := send(t, insider{g, "images"}, "parts.img", id, parts...)
	listed, err := r.ListParts(t.Context(), "parts.img", id)
	if err != nil || len(listed) != len(parts) {
		t.Fatalf("%d parts are listed (%v)", len(listed), err)
	}
	var want []byte
	for i, p := range listed {
		if !p.Equal(all[p.Number]) {
			t.Errorf("part %+v is listed as %+v", all[p.Number], p)
		}
		want = append(want, parts[i].data...)
	}
	path := assembly(dir, "images", "parts.img", id)
	for _, n := range []string{"1", "2"} {
		if _, used := inode(t, filepath.Join(filepath.Dir(path), n)); used > 64<<10 {
			t.Errorf("part %s has %d bytes on the disk beside the object", n, used)
		}
	}
	into, _ := inode(t, path)
	if _, err := r.CompleteUpload(t.Context(), "parts.img", id, listed); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, r, "parts.img"); !bytes.Equal(got, want) {
		t.Errorf("the object has %d bytes of %d, others", len(got), len(want))
	}
	if is, _ := inode(t, filepath.Join(dir, "images", "parts.img")); is != into {
		t.Error("the object is not the file that the parts were written to")
	}
	put(t, r, "whole.img", want)
	if got, want := sum(t, g, "parts.img"), sum(t, g, "whole.img"); got != want {
		t.Errorf("the checksum of the parts is %s, that of the whole %s", got, want)
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// Zeros of an object take no room on the disk, wherever they are.
func TestHoles(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	some, hole := pattern(1, 64<<10), make([]byte, mib)
	for name, data := range map[string][]byte{
		"begin.img": slices.Concat(hole, some), "middle.img": slices.Concat(some, hole, some[:5000]),
		"end.img": slices.Concat(some, hole), "odd.img": slices.Concat(some[:777], hole, some, hole[:100]), "all.img": hole,
	} {
		for _, size := range []int64{-1, int64(len(data))} {
			if _, err := g.Put(t.Context(), "images", name, bytes.NewReader(data), size, false); err != nil {
				t.Fatal(err)
			}
			if got, _ := get(t, r, name); !bytes.Equal(got, data) {
				t.Errorf("%s has %d bytes of %d, others", name, len(got), len(data))
			}
			if _, used := inode(t, filepath.Join(dir, "images", name)); used > 256<<10 {
				t.Errorf("%s takes %d bytes on the disk", name, used)
			}
			put(t, r, "network.img", data)
			if got, want := sum(t, g, name), sum(t, g, "network.img"); got != want {
				t.Errorf("the checksum of %s is %s, want %s", name, got, want)
			}
		}
	}
}

// A large image does not stay in the page cache, from which it would push all else; a small one
// does.
func TestEvicted(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type == unix.TMPFS_MAGIC {
		t.Skipf("files in %s are in memory (%v): set TMPDIR to a directory on a disk", dir, err)
	}
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	for name, data := range map[string][]byte{"large": pattern(1, 64*mib), "small": pattern(2, 8*mib+777)} {
		id, err := r.CreateUpload(t.Context(), store.Key(name))
		if err != nil {
			t.Fatal(err)
		}
		send(t, insider{g, "images"}, name, id, sent{1, data})
		if _, err := g.Put(t.Context(), "images", name, bytes.NewReader(data), -1, false); err != nil {
			t.Fatal(err)
		}
		for what, path := range map[string]string{"part": assembly(dir, "images", name, id), "object": filepath.Join(dir, "images", name)} {
			n := resident(t, path)
			if name == "large" && n > mib || name == "small" && n < int64(len(data)) {
				t.Errorf("%d bytes of the %s %s are in the page cache", n, name, what)
			}
		}
		if got, _ := get(t, r, name); !bytes.Equal(got, data) {
			t.Errorf("the object has %d bytes of %d, others", len(got), len(data))
		}
	}
}

// resident returns the number of bytes of a file in the page cache, in whole pages.
func resident(t *testing.T, path string) (n int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	pages := make([]byte, (len(data)+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	if err := unix.Munmap(data); err != nil {
		t.Fatal(err)
	}
	for _, in := range pages {
		n += int64(in&1) * int64(page)
	}
	return n
}

// sum returns the CRC-64 of an image.
func sum(t *testing.T, g *gateway.Gateway, key string) string {
	t.Helper()
	bucket := "images"
	out, err := raw(g.Endpoint()).HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		t.Fatal(err)
	}
	if out.ChecksumCRC64NVME == nil {
		t.Fatalf("%s has no checksum", key)
	}
	return *out.ChecksumCRC64NVME
}

// An upload that is completed or aborted while the program writes a part of it to the
// assembly does not get that part, and its object never changes.
func TestEndedWhileWritten(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	first, second := pattern(1, 8*mib), pattern(2, 8*mib)
	for _, abort := range []bool{false, true} {
		for _, n := range []int32{1, 3} { // the number of a part that was sent, or of another
			key := fmt.Sprint(abort, n, ".img")
			id, err := r.CreateUpload(t.Context(), store.Key(key))
			if err != nil {
				t.Fatal(err)
			}
			in := insider{g, "images"}
			late, result := newGate(pattern(3, 8*mib)), make(chan error, 1)
			go func() {
				_, err := in.UploadPart(context.Background(), store.Key(key), id, n, late, 8*mib)
				result <- err
			}()
			<-late.reached
			parts := send(t, in, key, id, sent{1, first}, sent{2, second})
			if abort {
				err = r.AbortUpload(t.Context(), store.Key(key), id)
			} else {
				_, err = r.CompleteUpload(t.Context(), store.Key(key), id, []store.Part{parts[1], parts[2]})
			}
			if err != nil {
				t.Fatal(err)
			}
			close(late.open)
			if code, _ := gateway.Fault(<-result); code != "NoSuchUpload" {
				t.Errorf("%s: the late part: %q", key, code)
			}
			if !abort {
				if got, _ := get(t, r, key); !bytes.Equal(got, slices.Concat(first, second)) {
					t.Errorf("%s: the object has %d bytes, others", key, len(got))
				}
			}
		}
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// Of two writers of one part, the last one to end wins.
func TestPartWrittenTwice(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	id, err := r.CreateUpload(t.Context(), "a.img")
	if err != nil {
		t.Fatal(err)
	}
	in := insider{g, "images"}
	slow, result := newGate(pattern(1, 8*mib)), make(chan store.Part, 1)
	go func() {
		p, err := in.UploadPart(context.Background(), "a.img", id, 1, slow, 8*mib)
		if err != nil {
			t.Error(err)
		}
		result <- p
	}()
	<-slow.reached
	send(t, in, "a.img", id, sent{1, pattern(2, 8*mib)})
	send(t, r, "a.img", id, sent{1, pattern(3, 8*mib)})
	close(slow.open)
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, []store.Part{<-result}); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, r, "a.img"); !bytes.Equal(got, pattern(1, 8*mib)) {
		t.Errorf("the object has %d bytes, others", len(got))
	}
}

// A write that fails returns the error of its body, or of the disk, and takes no
// space.
func TestFailedWithin(t *testing.T) {
	dir := t.TempDir()
	var disk disk
	g := start(t, dir, disk.under)
	r := root(t, g.Endpoint(), "images")
	put(t, r, "a.img", []byte("old"))
	const size = 64 * mib
	broken := errors.New("broken")
	breaks := func() io.Reader {
		return io.MultiReader(io.LimitReader(&counter{}, size/2), readerFunc(func([]byte) (int, error) { return 0, broken }))
	}
	fills := func() io.Reader {
		return io.MultiReader(io.LimitReader(&counter{}, size/2), readerFunc(func([]byte) (int, error) {
			disk.set(mib) // as if others had filled it
			return 0, io.EOF
		}), io.LimitReader(&counter{}, size/2))
	}
	id, err := r.CreateUpload(t.Context(), "parts.img")
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(io.Reader) error{
		"object": func(body io.Reader) error {
			_, err := g.Put(t.Context(), "images", "a.img", body, size, false)
			return err
		},
		"object of unknown size": func(body io.Reader) error {
			_, err := g.Put(t.Context(), "images", "a.img", body, -1, false)
			return err
		},
		"part": func(body io.Reader) error {
			_, err := g.PutPart(t.Context(), "images", "parts.img", id, 1, body, size)
			return err
		},
	} {
		if err := write(breaks()); !errors.Is(err, broken) {
			t.Errorf("%s, of a body that breaks: %v", name, err)
		}
		if code, status := gateway.Fault(write(fills())); status != http.StatusInsufficientStorage {
			t.Errorf("%s, when the disk is full: %q", name, code)
		}
		disk.set(1 << 40)
	}
	if data, _ := get(t, r, "a.img"); string(data) != "old" {
		t.Errorf("the old object holds %d bytes", len(data))
	}
	if listed, err := r.ListParts(t.Context(), "parts.img", id); err != nil || len(listed) > 0 {
		t.Errorf("%+v is listed (%v)", listed, err)
	}
	var used int64
	for _, path := range debris(t, filepath.Join(dir, "images")) {
		_, n := inode(t, filepath.Join(dir, "images", path))
		used += n
	}
	if used > 64<<10 {
		t.Errorf("%d bytes are left on the disk", used)
	}
	if err := r.AbortUpload(t.Context(), "parts.img", id); err != nil {
		t.Fatal(err)
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "images", "parts.img")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the object of an aborted upload: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (r readerFunc) Read(p []byte) (int, error) { return r(p) }
