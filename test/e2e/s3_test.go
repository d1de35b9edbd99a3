package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func TestS3Clients(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})

	one, many := content(1, 1<<20), content(2, 17<<20)
	s.awsPut(t, "one-part.img", one)
	s.awsPut(t, "many-parts.raw", many)
	s.rclone(t, "copyto", tempFile(t, content(3, 3<<20)), "gw:"+s.ImageBucket+"/by-rclone.iso")
	s.rclone(t, "copyto", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M",
		tempFile(t, content(4, 11<<20)), "gw:"+s.ImageBucket+"/by-rclone-in-parts.iso")
	for name, want := range map[string][]byte{
		"one-part.img": one, "many-parts.raw": many,
		"by-rclone.iso": content(3, 3<<20), "by-rclone-in-parts.iso": content(4, 11<<20),
	} {
		s.WaitHashed(t, name, sum(want))
		if got := s.get(t, "/images/"+sum(want)).Must(t, 200); sum(got.Body) != sum(want) {
			t.Errorf("%s: wrong bytes", name)
		}
		if _, ok := s.Listed(t, name); !ok {
			t.Errorf("%s is not in GET /images", name)
		}
	}

	t.Run("overwrite", func(t *testing.T) {
		s.s3Put(t, "one-part.img", content(5, 1<<20))
		s.WaitHashed(t, "one-part.img", sum(content(5, 1<<20)))
		s.get(t, "/images/"+sum(one)).Problem(t, []int{404})
	})
	t.Run("move", func(t *testing.T) {
		s.aws(t, "s3", "mv", "--only-show-errors", s.object("one-part.img"), s.object("moved.img"))
		s.WaitHashed(t, "moved.img", sum(content(5, 1<<20)))
		s.WaitGone(t, "one-part.img")
	})
	t.Run("delete", func(t *testing.T) {
		s.aws(t, "s3", "rm", "--only-show-errors", s.object("many-parts.raw"))
		s.WaitGone(t, "many-parts.raw")
		s.get(t, "/images/many-parts.raw").Problem(t, []int{404})
		s.get(t, "/images/"+sum(many)).Problem(t, []int{404})
		if _, found := s.Job(t, hashes, "many-parts.raw"); found {
			t.Log("the job of a deleted image is still listed, which is allowed")
		}
	})
	t.Run("what is no image", func(t *testing.T) {
		for _, key := range []string{"notes.txt", "root.tar.gz", "below/a.img"} {
			s.s3Put(t, key, content(6, 1000))
		}
		s.s3Put(t, "last.img", content(7, 1000))
		s.WaitHashed(t, "last.img", sum(content(7, 1000)))
		for _, r := range s.Rows(t) {
			for _, n := range r.Names {
				if strings.HasSuffix(n, ".txt") || strings.HasSuffix(n, ".gz") || strings.Contains(n, "a.img") {
					t.Errorf("%q is in the catalog", n)
				}
			}
		}
		others := map[string]string{"notes.txt": "must end in", "root.tar.gz": "extract it"}
		if *s3Endpoint == "" {
			if err := os.Symlink("last.img", s.imagePath("link.img")); err != nil {
				t.Fatal(err)
			}
			others["below"], others["link.img"] = "folder", "symbolic link"
		}
		eventually(t, within, "what is not an image is said", func() error {
			reasons := map[string]string{}
			for _, o := range s.catalog(t, nil).Others {
				reasons[o.Name] = o.Reason
			}
			for name, reason := range others {
				if !strings.Contains(reasons[name], reason) {
					return fmt.Errorf("%s: %q", name, reasons[name])
				}
				if lines := s.logged("not an image", "name="+name+" "); len(lines) != 1 {
					return fmt.Errorf("%s is logged %d times", name, len(lines))
				}
			}
			return nil
		})
		for _, path := range []string{"/images/notes.txt", "/images/below%2Fa.img", "/images/below/a.img"} {
			s.get(t, path).Problem(t, []int{400, 404})
		}
	})
	if *s3Endpoint != "" {
		return // keys and rights are up to that server
	}
	t.Run("the catalog is out of reach", func(t *testing.T) {
		c, catalog := s.uploader(), &s.CatalogBuck
		for what, try := range map[string]func() error{
			"listing": func() error {
				_, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: catalog})
				return err
			},
			"a read": func() error {
				_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: catalog, Key: aws.String("auth/session-key")})
				return err
			},
			"a copy": func() error {
				_, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{
					Bucket: &s.ImageBucket, Key: aws.String("taken.img"), CopySource: aws.String(s.CatalogBuck + "/auth/session-key"),
				})
				return err
			},
			"a write": func() error {
				_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: catalog, Key: aws.String("auth/password"), Body: strings.NewReader("{}")})
				return err
			},
			"a deletion": func() error {
				_, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: catalog, Key: aws.String("auth/password")})
				return err
			},
			"listing uploads": func() error {
				_, err := c.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: catalog})
				return err
			},
		} {
			if err := try(); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
				t.Errorf("with the key for uploads, %s: %v", what, err)
			}
		}
	})
	t.Run("wrong keys", func(t *testing.T) {
		if out, err := s3Client(s.S3, s.AccessKey, "wrong").ListBuckets(t.Context(), nil); err == nil {
			t.Errorf("listed with a wrong secret key: %+v", out)
		}
		// The uploader's keys are not the operator's.
		s.get(t, "/catalog", header("Authorization", "Bearer "+s.SecretKey)).Problem(t, []int{401})
		s.postLogin(t, s.SecretKey).Must(t, 401, 403)
	})
}

func TestS3Names(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	want := map[string]string{}
	dir := t.TempDir()
	for i, name := range hostileNames() {
		b := content(uint64(500+i), 1000+i)
		want[name] = sum(b)
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Both clients encode the names, in one run each.
	s.aws(t, "s3", "cp", "--only-show-errors", "--recursive", dir, s.object(""))
	checkNames(t, s, want)
	s.aws(t, "s3", "rm", "--only-show-errors", "--recursive", s.object(""))
	for name := range want {
		s.WaitGone(t, name)
	}
	// With this provider, rclone requests encoded listings.
	minio := "gw,provider=Minio:" + s.ImageBucket
	s.rclone(t, "sync", dir, minio)
	checkNames(t, s, want)
	if out := s.rclone(t, "sync", "--verbose", dir, minio); strings.Contains(out, "Copied") || strings.Contains(out, "Deleted") {
		t.Errorf("a second sync is not without work:\n%s", out)
	}
}

func TestDroppedFile(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	b := content(1, 2<<20)
	s.drop(t, "dropped.img", b)
	s.WaitHashed(t, "dropped.img", sum(b))
	if got := s.get(t, "/images/"+sum(b)).Must(t, 200); sum(got.Body) != sum(b) {
		t.Error("wrong bytes")
	}

	t.Run("edited in place", func(t *testing.T) {
		edited := append([]byte(nil), b...)
		edited[1<<20] ^= 0xff
		f, err := os.OpenFile(s.imagePath("dropped.img"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(edited[1<<20:1<<20+1], 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		// From now on the old digest is wrong.
		if r := s.get(t, "/images/"+sum(b)); r.Status == 200 && sum(r.Body) != sum(b) {
			t.Error("new bytes under the old SHA-256")
		}
		s.WaitHashed(t, "dropped.img", sum(edited))
		s.get(t, "/images/"+sum(b)).Problem(t, []int{404})
	})
	t.Run("renamed over", func(t *testing.T) {
		next := content(2, 1<<20)
		s.drop(t, "next.tmp", next)
		if err := os.Rename(s.imagePath("next.tmp"), s.imagePath("dropped.img")); err != nil {
			t.Fatal(err)
		}
		s.WaitHashed(t, "dropped.img", sum(next))
	})
	t.Run("removed", func(t *testing.T) {
		if err := os.Remove(s.imagePath("dropped.img")); err != nil {
			t.Fatal(err)
		}
		s.WaitGone(t, "dropped.img")
	})
	t.Run("names", func(t *testing.T) {
		want := map[string]string{}
		for i, name := range hostileNames() {
			b := content(uint64(900+i), 1000+i)
			s.drop(t, name, b)
			want[name] = sum(b)
		}
		checkNames(t, s, want)
	})
}

// TestDroppedFileGrows leaves a file alone that is still being copied in. Each
// write sets a time a little in the future, since a busy machine could take
// longer between two writes than the time that a file must be unchanged.
func TestDroppedFileGrows(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	b := content(1, 40*100_000)
	f, err := os.Create(s.imagePath("growing.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	setTime := func(ahead time.Duration) {
		t.Helper()
		at := time.Now().Add(ahead)
		if err := os.Chtimes(f.Name(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for piece := range 40 { // 10 s: many times the time that a file must be unchanged
		if _, err := f.Write(b[piece*100_000 : (piece+1)*100_000]); err != nil {
			t.Fatal(err)
		}
		setTime(20 * time.Second)
		if r, found := s.Row(t, "growing.img"); found && (r.SHA256 != "" || r.HashState == "hashed") {
			t.Fatalf("hashed while it grows, after %d pieces: %+v", piece+1, r)
		}
		if l, found := s.Listed(t, "growing.img"); found {
			t.Fatalf("offered to flash clients while it grows: %+v", l)
		}
		<-tick.C
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	setTime(0)
	s.WaitHashed(t, "growing.img", sum(b))
}

// TestDroppedTraps puts files into the directory that are no images, some of
// them hostile.
func TestDroppedTraps(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	outside := filepath.Join(t.TempDir(), "outside.img")
	if err := os.WriteFile(outside, content(1, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, s.imagePath("link.img")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", s.imagePath("passwd.img")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(s.imagePath("pipe.img"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.imagePath("dir.img"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.drop(t, "dir.img/inner.img", content(2, 1000))
	s.drop(t, ".hidden.img", content(3, 1000))
	s.drop(t, "honest.img", content(4, 1000))
	s.WaitHashed(t, "honest.img", sum(content(4, 1000)))
	for _, r := range s.Rows(t) {
		if len(r.Names) != 1 || r.Names[0] != "honest.img" {
			t.Errorf("in the catalog: %+v", r)
		}
	}
	for _, name := range []string{"link.img", "passwd.img", "pipe.img", "dir.img", ".hidden.img"} {
		s.get(t, imageRoute(name)).Problem(t, []int{400, 404})
		got, err := s.s3Get(t, name)
		if err == nil && name != ".hidden.img" && name != "dir.img" {
			t.Errorf("S3 serves %s: %.100q", name, got)
		}
		if bytes.Contains(got, []byte("root:")) {
			t.Errorf("S3 serves /etc/passwd as %s", name)
		}
	}
	for _, r := range s.Rows(t) {
		if len(r.Names) != 1 || r.Names[0] != "honest.img" {
			t.Errorf("in the catalog: %+v", r)
		}
	}
}

// TestDeletedWhileHashed deletes an image while it is hashed: its record is
// removed, and the worker continues.
func TestDeletedWhileHashed(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	s.dropSparse(t, "brief.raw", 64<<30)
	s.WaitJob(t, hashes, "brief.raw", "running")
	s.Do(t, http.MethodDelete, "/images/brief.raw", nil).Must(t, 204)
	s.WaitGone(t, "brief.raw")
	s.s3Put(t, "after.img", content(1, 1000))
	s.WaitHashed(t, "after.img", sum(content(1, 1000)))
	if j, found := s.Job(t, hashes, "brief.raw"); found && !ended(j) {
		t.Errorf("the job of a deleted image: %+v", j)
	}
}

// TestDeepS3Thousand uploads more than a thousand parts, of the least size, more
// than one extended attribute of ext4 can describe.
func TestDeepS3Thousand(t *testing.T) {
	needsDisk(t, 7)
	s := Start(t, Options{})
	const size = 1025 * (5 << 20)
	path := filepath.Join(t.TempDir(), "thousand")
	sparse(t, path, size)
	want := sha256sum(t, path)
	begin := time.Now()
	config := tempFile(t, []byte("[default]\ns3 =\n  multipart_chunksize = 5MB\n"))
	run(t, append(s.awsEnv(), "AWS_CONFIG_FILE="+config), "aws", "--endpoint-url", s.S3,
		"s3", "cp", "--only-show-errors", path, s.object("thousand.raw"))
	t.Logf("aws s3 cp of 5 GiB: %v", time.Since(begin).Round(time.Second))
	eventually(t, 3*within, "5 GiB hashed", func() error {
		r, ok := s.Row(t, "thousand.raw")
		if !ok {
			return errors.New("not in the catalog")
		}
		if r.SHA256 != want {
			return fmt.Errorf("it is %+v", r)
		}
		return nil
	})
	t.Logf("hashed after %v", time.Since(begin).Round(time.Second))
	s.aws(t, "s3", "rm", "--only-show-errors", s.object("thousand.raw"))
	s.WaitGone(t, "thousand.raw")
}
