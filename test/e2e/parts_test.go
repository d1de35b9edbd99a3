package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

type (
	part struct {
		Number    int    `json:"number"`
		URL       string `json:"url"`
		SizeBytes int64  `json:"size_bytes"`
		Done      bool   `json:"done"`
	}
	resumable struct {
		ID       string `json:"id"`
		PartSize int64  `json:"part_size"`
		Status   string `json:"status"`
		SHA256   string `json:"sha256"`
		Error    string `json:"error"`
		Parts    []part `json:"parts"`
	}
)

func (s *Server) beginUpload(t *testing.T, name string, size int64) resumable {
	t.Helper()
	var u resumable
	s.DoJSON(t, http.MethodPost, "/uploads", map[string]any{"name": name, "size_bytes": size}).
		Must(t, http.StatusCreated).JSON(t, &u)
	var total int64
	for i, p := range u.Parts {
		if p.Number != i+1 || p.Done || p.URL == "" {
			t.Errorf("part %d is %+v", i+1, p)
		}
		total += p.SizeBytes
	}
	if u.ID == "" || total != size {
		t.Fatalf("POST /uploads: parts of %d bytes for a file of %d: %+v", total, size, u)
	}
	return u
}

// partPath returns a part's URL as a path of this server. The URL may be
// relative.
func (s *Server) partPath(p part) string { return strings.TrimPrefix(p.URL, s.Pages) }

func (s *Server) upload(t *testing.T, id string) resumable {
	t.Helper()
	var u resumable
	s.get(t, "/uploads/"+id).Must(t, 200).JSON(t, &u)
	return u
}

// finish completes an upload and waits for its end.
func (s *Server) finish(t *testing.T, id string) resumable {
	t.Helper()
	s.Do(t, http.MethodPost, "/uploads/"+id+"/complete", nil).Must(t, http.StatusAccepted)
	var u resumable
	eventually(t, within, "the upload is assembled", func() error {
		if u = s.upload(t, id); u.Status == "completed" || u.Status == "failed" {
			return nil
		}
		return fmt.Errorf("it is %+v", u)
	})
	return u
}

// of returns the slice of the whole file that a part carries.
func (p part) of(b []byte, partSize int64) []byte {
	off := int64(p.Number-1) * partSize
	return b[off : off+p.SizeBytes]
}

func TestUploadInParts(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	// The server sets the part size; there are three parts, the last one odd.
	probe := s.beginUpload(t, "probe.img", 1<<30)
	s.Do(t, http.MethodDelete, "/uploads/"+probe.ID, nil).Must(t, 204)
	s.get(t, "/uploads/"+probe.ID).Problem(t, []int{404})

	file := content(1, int(2*probe.PartSize)+12345)
	const name = "in parts \u00fc.img"
	u := s.beginUpload(t, name, int64(len(file)))
	if len(u.Parts) != 3 {
		t.Fatalf("%d parts of %d bytes for %d", len(u.Parts), u.PartSize, len(file))
	}
	put := func(n int, body []byte) *Reply {
		t.Helper()
		for _, p := range s.upload(t, u.ID).Parts {
			if p.Number == n {
				return s.Do(t, http.MethodPut, s.partPath(p), bytes.NewReader(body))
			}
		}
		t.Fatalf("no part %d", n)
		return nil
	}
	last, first, middle := u.Parts[2], u.Parts[0], u.Parts[1]
	put(3, last.of(file, u.PartSize)).Must(t, 200)
	put(1, content(66, int(first.SizeBytes))).Must(t, 200)
	put(1, first.of(file, u.PartSize)).Must(t, 200) // sent again: the later one replaces it
	s.get(t, imageRoute(name)).Problem(t, []int{404})
	if _, ok := s.Row(t, name); ok {
		t.Error("an upload that is not complete is in the catalog")
	}
	s.Do(t, http.MethodPost, "/uploads/"+u.ID+"/complete", nil).Problem(t, []int{400, 409, 422}, "2")
	put(2, middle.of(file, u.PartSize)[1:]).Problem(t, []int{400, 422})

	// The buckets are the only state: another process resumes it.
	s.Restart(t)
	for _, p := range s.upload(t, u.ID).Parts {
		if p.Done != (p.Number != 2) {
			t.Errorf("part %d after the restart: done is %v", p.Number, p.Done)
		}
	}
	put(2, middle.of(file, u.PartSize)).Must(t, 200)
	if got := s.upload(t, u.ID); got.Status != "uploading" {
		t.Errorf("status is %q, want uploading", got.Status)
	}
	if done := s.finish(t, u.ID); done.Status != "completed" || (done.SHA256 != "" && done.SHA256 != sum(file)) {
		t.Fatalf("%+v, want completed with SHA-256 %s", done, sum(file))
	}
	s.WaitHashed(t, name, sum(file))
	if got := s.get(t, imageRoute(name)).Must(t, 200); sum(got.Body) != sum(file) {
		t.Error("what is served is not what was uploaded")
	}
	again := s.Do(t, http.MethodPost, "/uploads/"+u.ID+"/complete", nil)
	if again.Status >= 500 {
		t.Errorf("completed twice: %v", again)
	}
	if got := s.get(t, imageRoute(name)).Must(t, 200); sum(got.Body) != sum(file) {
		t.Error("completing twice changed the image")
	}
}

func TestUploadInPartsRefuses(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	for _, v := range []map[string]any{
		{"name": "root.tar.gz", "size_bytes": 1000},
		{"name": "../x.img", "size_bytes": 1000},
		{"name": "x.img", "size_bytes": -1},
		{"name": "x.img", "size_bytes": "many"},
		{"name": "x.img"},
		{"size_bytes": 1000},
	} {
		s.DoJSON(t, http.MethodPost, "/uploads", v).Problem(t, []int{400, 422})
	}
	s.DoJSON(t, http.MethodPost, "/uploads", map[string]any{"name": "x.img", "size_bytes": int64(1) << 50}).
		Problem(t, []int{413, 507})
	s.DoJSON(t, http.MethodPost, "/uploads", map[string]any{"name": "x.img", "size_bytes": 1000}, anonymous).
		Problem(t, []int{401})
	for _, id := range []string{"0", strings.Repeat("0", 32), "..%2F..%2Fauth%2Fpassword", strings.Repeat("z", 300)} {
		s.get(t, "/uploads/"+id).Problem(t, []int{404, 400})
		s.Do(t, http.MethodPost, "/uploads/"+id+"/complete", nil).Problem(t, []int{404, 400})
	}
	u := s.beginUpload(t, "x.img", 1000)
	s.Do(t, http.MethodPut, s.partPath(u.Parts[0]), bytes.NewReader(content(1, 1000)), anonymous).Problem(t, []int{401})
}

// TestUploadInPartsAbandoned abandons an upload, which leaves the old image and
// no debris.
func TestUploadInPartsAbandoned(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	old := content(1, 1000)
	s.Put(t, "x.img", old)
	before := diskUse(t, s.Data)
	size := int64(40 << 20)
	u := s.beginUpload(t, "x.img", size)
	b := content(2, int(size))
	s.Do(t, http.MethodPut, s.partPath(u.Parts[0]), bytes.NewReader(u.Parts[0].of(b, u.PartSize))).Must(t, 200)
	s.Do(t, http.MethodDelete, "/uploads/"+u.ID, nil).Must(t, 204)
	if got := s.get(t, "/images/x.img").Must(t, 200); sum(got.Body) != sum(old) {
		t.Error("the old object is not what it was")
	}
	eventually(t, within, "the part is gone from the disk", func() error {
		if diskUse(t, s.Data) > before+(1<<20) {
			return errors.New("still there")
		}
		return nil
	})
}
