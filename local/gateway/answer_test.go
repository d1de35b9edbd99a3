package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"imageroot/local/gateway"
	"imageroot/shared/store"
)

// A key whose path is a directory, a pipe, or below a file is refused with a
// conflict by every operation that would write to it, before any bytes are sent. So
// is one whose obstacle appears later.
func TestOccupiedKeys(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	c, ctx := raw(g.Endpoint()), context.Background()
	put(t, r, "source.img", pattern(1, 1000))
	put(t, r, "file", pattern(2, 10))
	mkdir(t, dir, "images", "made.img")
	put(t, r, "put.img/b.img", pattern(3, 10))
	if err := syscall.Mkfifo(filepath.Join(dir, "images", "pipe.img"), 0o644); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"made.img": "ExistingObjectIsDirectory", "put.img": "ExistingObjectIsDirectory",
		"file/below.img": "ObjectParentIsFile", "file/deep/below.img": "ObjectParentIsFile", "file/": "ObjectParentIsFile",
		"pipe.img": "ExistingObjectIsSpecial", "pipe.img/below.img": "ObjectParentIsFile",
	} {
		errs := map[string]error{}
		_, errs["PutObject"] = c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("images"), Key: &key, Body: bytes.NewReader(nil)})
		_, errs["CopyObject"] = c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: aws.String("images"), Key: &key, CopySource: aws.String("images/source.img")})
		_, errs["CreateMultipartUpload"] = c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String("images"), Key: &key})
		for doing, err := range errs {
			if code(err) != want {
				t.Errorf("%s of %s: %v, want %s", doing, key, err, want)
			}
		}
		if _, err := r.CreateUpload(ctx, store.Key(key)); !errors.Is(err, store.ErrOccupied) {
			t.Errorf("the client makes of it: %v", err)
		}
	}

	// If the directory is created after the parts, the upload stays. It can be
	// completed once the directory is removed, or aborted.
	data := pattern(4, 1000)
	for _, end := range []string{"complete", "abort"} {
		id, err := r.CreateUpload(ctx, "late.img")
		if err != nil {
			t.Fatal(err)
		}
		part, err := r.UploadPart(ctx, "late.img", id, 1, bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		late := mkdir(t, dir, "images", "late.img")
		_, err = c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: aws.String("images"), Key: aws.String("late.img"), UploadId: &id,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{{PartNumber: aws.Int32(1), ETag: &part.ETag}}},
		})
		if code(err) != "ExistingObjectIsDirectory" {
			t.Errorf("complete: %v", err)
		}
		if end == "abort" {
			if err := r.AbortUpload(ctx, "late.img", id); err != nil {
				t.Error(err)
			}
			continue
		}
		if err := os.Remove(late); err != nil {
			t.Fatal(err)
		}
		if _, err := r.CompleteUpload(ctx, "late.img", id, []store.Part{part}); err != nil {
			t.Error(err)
		}
		if err := r.Delete(ctx, "late.img"); err != nil {
			t.Error(err)
		}
	}
	if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Each error of a file system has its own answer, with a status that distinguishes
// faults of the client from faults of the server.
func TestErrorsOfTheDisk(t *testing.T) {
	for err, want := range map[error]int{
		syscall.EISDIR: http.StatusConflict, syscall.ENOTDIR: http.StatusConflict,
		syscall.ENAMETOOLONG: http.StatusBadRequest, syscall.EFBIG: http.StatusBadRequest,
		syscall.ENOSPC: http.StatusInsufficientStorage, syscall.EDQUOT: http.StatusInsufficientStorage,
		syscall.EROFS: http.StatusServiceUnavailable, syscall.EACCES: http.StatusServiceUnavailable,
		syscall.EPERM: http.StatusServiceUnavailable, syscall.EIO: http.StatusServiceUnavailable,
		syscall.ESTALE: http.StatusServiceUnavailable, syscall.EMFILE: http.StatusServiceUnavailable,
		errors.New("anything else"): http.StatusInternalServerError,
	} {
		got := gateway.Answer(fmt.Errorf("write: %w", &fs.PathError{Op: "open", Path: "/data", Err: err}))
		if got.StatusCode() != want || got.BaseError().Description == "" {
			t.Errorf("%v: %d %+v, want %d", err, got.StatusCode(), got, want)
		}
	}
}
