package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/pkg/xattr"

	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/test/need"
)

// uploadDir returns the directory in which versitygw keeps the uploads of a key.
func uploadDir(dir, bucket, key string) string {
	return filepath.Join(dir, bucket, ".sgwtmp", "multipart", fmt.Sprintf("%x", sha256.Sum256([]byte(key))))
}

func begin(t *testing.T, r *s3store.Root, key string, parts ...[]byte) (string, []store.Part) {
	t.Helper()
	id, err := r.CreateUpload(t.Context(), store.Key(key))
	if err != nil {
		t.Fatal(err)
	}
	done := make([]store.Part, len(parts))
	for i, data := range parts {
		if done[i], err = r.UploadPart(t.Context(), store.Key(key), id, int32(i+1), bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	return id, done
}

// TestPartsWithOneSum sends a part again with other bytes that have the same
// CRC64NVME. Completing the upload by the ETag of the first does not use the
// second.
func TestPartsWithOneSum(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	first := pattern(1, 1<<10)
	second := bytes.Clone(first)
	for i, b := range []byte{0x6b, 0x93, 0x97, 0x58, 0x53, 0x26, 0xd9, 0x34, 0x01} { // the polynomial: a multiple of it does not change a CRC
		second[i] ^= b
	}
	id, done := begin(t, r, "x.img", first)
	if _, err := r.UploadPart(t.Context(), "x.img", id, 1, bytes.NewReader(second), int64(len(second))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CompleteUpload(t.Context(), "x.img", id, done); err == nil {
		t.Error("an upload was completed with another part than was asked for")
	}
}

// TestPartSentAgain sends parts again, as clients do that lost the answer. The same
// bytes are the same part, in the part's file or in the assembly.
func TestPartSentAgain(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	for name, size := range map[string]int{"small.img": 1 << 10, "assembled.img": 6 << 20} {
		data := pattern(1, size)
		id, done := begin(t, r, name, data)
		for range 2 {
			again, err := r.UploadPart(t.Context(), store.Key(name), id, 1, bytes.NewReader(data), int64(size))
			if err != nil || again.ETag != done[0].ETag {
				t.Errorf("%s: sent again, the part is %+v, not %+v: %v", name, again, done[0], err)
			}
		}
		other, err := r.UploadPart(t.Context(), store.Key(name), id, 1, bytes.NewReader(data[1:]), int64(size-1))
		if err != nil || other.ETag == done[0].ETag {
			t.Errorf("%s: another part is %+v: %v", name, other, err)
		}
		if back, err := r.UploadPart(t.Context(), store.Key(name), id, 1, bytes.NewReader(data), int64(size)); err != nil {
			t.Error(err)
		} else if _, err := r.CompleteUpload(t.Context(), store.Key(name), id, []store.Part{back}); err != nil {
			t.Error(err)
		}
		if got, _ := get(t, r, name); !bytes.Equal(got, data) {
			t.Errorf("%s: the object is not what was sent", name)
		}
	}
}

// TestDeepManyParts completes an upload of more parts than versitygw's own
// attribute has room for. The parts are copies of one that was sent, with holes, so
// that their number matters and not their bytes.
func TestDeepManyParts(t *testing.T) {
	const parts, size = 1100, 5 << 20
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	id, done := begin(t, r, "many.img", make([]byte, size))
	first := filepath.Join(uploadDir(dir, "images", "many.img"), id, "1")
	attributes, err := xattr.List(first)
	if err != nil {
		t.Fatal(err)
	}
	// The bytes of the copies are in their own files.
	attributes = slices.DeleteFunc(attributes, func(name string) bool { return name == "user.imageroot-at" })
	for n := 2; n <= parts; n++ {
		path := filepath.Join(filepath.Dir(first), fmt.Sprint(n))
		write(t, path, "")
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		for _, name := range attributes {
			value, err := xattr.Get(first, name)
			if err != nil {
				t.Fatal(err)
			}
			if err := xattr.Set(path, name, value); err != nil {
				t.Fatal(err)
			}
		}
		done = append(done, store.Part{Number: int32(n), ETag: done[0].ETag, Size: size})
	}
	if listed, err := r.ListParts(t.Context(), "many.img", id); err != nil || len(listed) != parts {
		t.Fatalf("%d parts are listed (%v)", len(listed), err)
	}
	v, err := r.CompleteUpload(t.Context(), "many.img", id, done)
	if err != nil {
		t.Fatal(err)
	}
	if v.Size != parts*size {
		t.Errorf("the object has %d bytes", v.Size)
	}
	if now := version(t, g.Endpoint(), "images", "many.img"); !now.Equal(v) {
		t.Errorf("completed as %+v, is %+v", v, now)
	}
	c := raw(g.Endpoint())
	out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("images"), Key: aws.String("many.img"), PartNumber: aws.Int32(1099)})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if n, err := io.Copy(io.Discard, out.Body); err != nil || n != size || aws.ToInt32(out.PartsCount) != parts {
		t.Errorf("part 1099 has %d bytes (%v) and the object %d parts", n, err, aws.ToInt32(out.PartsCount))
	}
	if want := fmt.Sprintf("bytes %d-%d/%d", 1098*size, 1099*size-1, parts*size); aws.ToString(out.ContentRange) != want {
		t.Errorf("part 1099 is %s, want %s", aws.ToString(out.ContentRange), want)
	}
	body, _, err := r.Get(t.Context(), "many.img", store.Range{Offset: parts*size - 10, Length: -1}, v.ETag)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if data, err := io.ReadAll(body); err != nil || len(data) != 10 {
		t.Errorf("the last ten bytes are %d (%v)", len(data), err)
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// TestCompleteAgain: a repeated request gets the first answer. An upload that is
// unknown, aborted, or overwritten does not exist.
func TestCompleteAgain(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	id, parts := begin(t, r, "a.img", pattern(1, 5<<20), pattern(2, 100))
	v, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
	if err != nil || !again.Equal(v) {
		t.Errorf("the repeat: %+v (%v), the first: %+v", again, err, v)
	}
	unknown := "00000000-0000-0000-0000-000000000000"
	if _, err := r.CompleteUpload(t.Context(), "a.img", unknown, parts); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown upload: %v", err)
	}
	aborted, abortedParts := begin(t, r, "a.img", pattern(3, 100))
	if err := r.AbortUpload(t.Context(), "a.img", aborted); err != nil {
		t.Fatal(err)
	}
	if _, err := r.CompleteUpload(t.Context(), "a.img", aborted, abortedParts); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("aborted upload: %v", err)
	}
	for _, id := range []string{"../../../x", "..", "*", unknown[:35] + "/", strings.Repeat("a", 300)} {
		if _, err := r.CompleteUpload(t.Context(), "a.img", id, parts); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("upload %q: %v", id, err)
		}
		if _, err := r.UploadPart(t.Context(), "a.img", id, 1, strings.NewReader("x"), 1); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("part of upload %q: %v", id, err)
		}
	}
	if now := version(t, g.Endpoint(), "images", "a.img"); !now.Equal(v) {
		t.Errorf("the object went from %+v to %+v", v, now)
	}
	put(t, r, "a.img", []byte("later"))
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, parts); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("upload whose object was overwritten: %v", err)
	}
	if data, _ := get(t, r, "a.img"); string(data) != "later" {
		t.Errorf("the object holds %d other bytes", len(data))
	}
}

// TestCompleteAtOnce completes one upload many times concurrently, through two
// processes. All answers name the same object, once it exists.
func TestCompleteAtOnce(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	endpoints := []string{g.Endpoint(), startChild(t, dir).endpoint}
	r := root(t, g.Endpoint(), "images")
	id, parts := begin(t, r, "a.img", pattern(1, 16<<20), pattern(2, 100))
	var wg sync.WaitGroup
	versions := make([]store.Version, 8)
	for i := range versions {
		wg.Go(func() {
			v, err := client(t, endpoints[i%2]).Root("images", "").CompleteUpload(context.Background(), "a.img", id, parts)
			if err != nil {
				t.Error(err)
			}
			versions[i] = v
		})
	}
	wg.Wait()
	for _, v := range versions[1:] {
		if !v.Equal(versions[0]) {
			t.Errorf("the answers are %+v and %+v", versions[0], v)
		}
	}
	if data, _ := get(t, r, "a.img"); !bytes.Equal(data, append(pattern(1, 16<<20), pattern(2, 100)...)) {
		t.Error("the object holds other bytes")
	}
}

// TestKilledComplete starts after a kill during a completion, before and after the
// object existed.
func TestKilledComplete(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	id, parts := begin(t, r, "a.img", pattern(1, 5<<20), pattern(2, 100))
	leave := func() {
		t.Helper()
		path := filepath.Join(uploadDir(dir, "images", "a.img"), id)
		if err := os.Rename(path, path+".0123456789abcdef-2.inprogress"); err != nil {
			t.Fatal(err)
		}
	}
	leave()
	// No process holds it, so no new start is needed.
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, parts[:1]); err != nil {
		t.Errorf("the retry in the same process: %v", err)
	}

	id, parts = begin(t, r, "a.img", pattern(3, 5<<20), pattern(4, 100))
	leave()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = start(t, dir)
	r = root(t, g.Endpoint(), "images")
	listed, err := r.ListParts(t.Context(), "a.img", id)
	if err != nil || len(listed) != 2 {
		t.Errorf("after the start %d parts are listed (%v)", len(listed), err)
	}
	v, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
	if err != nil {
		t.Fatal(err)
	}

	// Killed between publishing the object and removing the parts.
	path := filepath.Join(uploadDir(dir, "images", "a.img"), id+".0123456789abcdef-2.inprogress")
	mkdir(t, path)
	write(t, filepath.Join(path, "2"), "left over")
	if err := xattr.Set(filepath.Dir(path), "user.objname", []byte("a.img")); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = start(t, dir)
	r = root(t, g.Endpoint(), "images")
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if again, err := r.CompleteUpload(t.Context(), "a.img", id, parts); err != nil || !again.Equal(v) {
		t.Errorf("the retry: %+v (%v), want %+v", again, err, v)
	}
}

func TestUploadPartCopy(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	data := pattern(1, 6<<20)
	put(t, r, "a+b c.img", data)
	c := raw(g.Endpoint())
	id, _ := begin(t, r, "copy.img")
	var parts []store.Part
	for i, rg := range []string{"bytes=0-5242879", "bytes=5242880-6291455"} {
		out, err := c.UploadPartCopy(t.Context(), &s3.UploadPartCopyInput{
			Bucket: aws.String("images"), Key: aws.String("copy.img"), UploadId: &id, PartNumber: aws.Int32(int32(i + 1)),
			CopySource: aws.String("images/a%2Bb%20c.img"), CopySourceRange: &rg,
		})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, store.Part{Number: int32(i + 1), ETag: strings.Trim(*out.CopyPartResult.ETag, `"`), Size: []int64{5 << 20, 1 << 20}[i]})
	}
	if _, err := r.CompleteUpload(t.Context(), "copy.img", id, parts); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, r, "copy.img"); !bytes.Equal(got, data) {
		t.Error("the copy holds other bytes")
	}
}

func TestCopyKeepsWhatBelongsToTheObject(t *testing.T) {
	g := start(t, t.TempDir())
	root(t, g.Endpoint(), "images")
	root(t, g.Endpoint(), "catalog")
	c := raw(g.Endpoint())
	_, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String("images"), Key: aws.String("a.img"), Body: strings.NewReader("data"),
		ContentType: aws.String("application/x-disk"), Metadata: map[string]string{"note": "n"}, Tagging: aws.String("k=v%20w"),
	})
	if err != nil {
		t.Fatal(err)
	}
	copyTo := func(bucket, key string, edit func(*s3.CopyObjectInput)) *s3.HeadObjectOutput {
		t.Helper()
		in := &s3.CopyObjectInput{Bucket: &bucket, Key: &key, CopySource: aws.String("images/a.img")}
		edit(in)
		if _, err := c.CopyObject(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return head
	}
	head := copyTo("catalog", "b.img", func(*s3.CopyObjectInput) {})
	if *head.ContentType != "application/x-disk" || head.Metadata["note"] != "n" || aws.ToInt64(head.ContentLength) != 4 {
		t.Errorf("the copy has %+v", head)
	}
	tags, err := c.GetObjectTagging(t.Context(), &s3.GetObjectTaggingInput{Bucket: aws.String("catalog"), Key: aws.String("b.img")})
	if err != nil || len(tags.TagSet) != 1 || *tags.TagSet[0].Value != "v w" {
		t.Errorf("the copy's tags are %+v (%v)", tags, err)
	}
	head = copyTo("images", "a.img", func(in *s3.CopyObjectInput) {
		in.MetadataDirective, in.ContentType, in.Metadata = "REPLACE", aws.String("text/plain"), map[string]string{"other": "o"}
	})
	if *head.ContentType != "text/plain" || head.Metadata["note"] != "" || head.Metadata["other"] != "o" {
		t.Errorf("the object copied onto itself has %+v", head)
	}
	_, err = c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: aws.String("images"), Key: aws.String("a.img"), CopySource: aws.String("images/a.img")})
	if code(err) != "InvalidRequest" {
		t.Errorf("copy onto itself: %v", err)
	}
}

// TestFull: a write that does not fit is refused before it is sent.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	var disk disk
	g := start(t, dir, disk.under)
	r := root(t, g.Endpoint(), "images")
	put(t, r, "a.img", []byte("old"))
	id, _ := begin(t, r, "mp.img")
	full, parts := begin(t, r, "full.img", pattern(1, 5<<20), pattern(2, 4<<20))
	disk.set(65 << 20)

	for _, write := range []func(body io.Reader, size int64) error{
		func(body io.Reader, size int64) error {
			_, err := r.Put(t.Context(), "a.img", body, size)
			return err
		},
		func(body io.Reader, size int64) error {
			_, err := r.UploadPart(t.Context(), "mp.img", id, 1, body, size)
			return err
		},
	} {
		sent := &counter{}
		if err := write(sent, 2<<30); !errors.Is(err, store.ErrFull) {
			t.Errorf("what does not fit: %v", err)
		}
		if sent.n > 64<<20 {
			t.Errorf("%d bytes were sent", sent.n)
		}
	}
	if _, err := r.CompleteUpload(t.Context(), "full.img", full, parts); !errors.Is(err, store.ErrFull) {
		t.Errorf("completing what does not fit: %v", err)
	}
	if data, _ := get(t, r, "a.img"); string(data) != "old" {
		t.Errorf("the old object holds %q", data)
	}
	// Records may use the reserve.
	disk.set(2 << 20)
	if _, err := r.CreateRecord(t.Context(), "records/a", make([]byte, 1<<20)); err != nil {
		t.Errorf("a record in the reserve: %v", err)
	}
	disk.set(1 << 40)
	if _, err := r.CompleteUpload(t.Context(), "full.img", full, parts); err != nil {
		t.Errorf("completing once there is room: %v", err)
	}
}

// A counter is an endless body that counts the bytes read.
type counter struct{ n int64 }

func (c *counter) Read(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// TestDeepDiskRunsFull fills a real file system in the middle of uploads.
func TestDeepDiskRunsFull(t *testing.T) {
	dir := need.Mount(t, "tmpfs", "size=96m")
	var disk disk
	g := start(t, dir, disk.under)
	r := root(t, g.Endpoint(), "images")
	put(t, r, "a.img", []byte("old"))
	disk.set(1 << 40) // as if others filled the disk after the check
	const size = 128 << 20
	if _, err := r.Put(t.Context(), "a.img", io.LimitReader(&counter{}, size), size); !errors.Is(err, store.ErrFull) {
		t.Errorf("PUT: %v", err)
	}
	id, _ := begin(t, r, "mp.img")
	if _, err := r.UploadPart(t.Context(), "mp.img", id, 1, io.LimitReader(&counter{}, size), size); !errors.Is(err, store.ErrFull) {
		t.Errorf("part: %v", err)
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	id, parts := begin(t, r, "mp.img", make([]byte, 5<<20), make([]byte, 50<<20))
	if _, err := r.CompleteUpload(t.Context(), "mp.img", id, parts); !errors.Is(err, store.ErrFull) {
		t.Errorf("completing: %v", err)
	}
	if data, _ := get(t, r, "a.img"); string(data) != "old" {
		t.Errorf("the old object holds %d other bytes", len(data))
	}
	if got := keys(t, r); len(got) != 1 {
		t.Errorf("listed %q", got)
	}
	if listed, err := r.ListParts(t.Context(), "mp.img", id); err != nil || len(listed) != 2 {
		t.Errorf("after the failure %d parts are there (%v)", len(listed), err)
	}
}
