package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imageroot/test/need"
)

// A disksPage is the answer of GET /catalog/disks.
type disksPage struct {
	Disks []struct {
		SHA256      string `json:"sha256"`
		SizeBytes   int64  `json:"size_bytes"`
		StoredBytes int64  `json:"stored_bytes"`
	} `json:"disks"`
	StoredBytes int64     `json:"stored_bytes"`
	Jobs        []diskJob `json:"jobs"`
}

type diskJob struct {
	Name         string `json:"name"`
	Status       string `json:"status"`
	BytesWritten int64  `json:"bytes_written"`
	Error        string `json:"error"`
	Attempt      int    `json:"attempt"`
}

func (s *Server) disks(t testing.TB) (p disksPage) {
	t.Helper()
	if err := json.Unmarshal(s.get(t, "/catalog/disks").Must(t, 200).Body, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// waitDisk waits until the job of an image's disk is as wanted.
func (s *Server) waitDisk(t testing.TB, name, what string, ok func(diskJob) bool) {
	t.Helper()
	eventually(t, within, "the disk of "+name+" is "+what, func() error {
		for _, j := range s.disks(t).Jobs {
			if j.Name == name && ok(j) {
				return nil
			}
		}
		return fmt.Errorf("%+v", s.disks(t).Jobs)
	})
}

func is(status string) func(diskJob) bool { return func(j diskJob) bool { return j.Status == status } }

func (s *Server) makeDisk(t testing.TB, name string) *Reply {
	t.Helper()
	return s.DoJSON(t, http.MethodPost, "/catalog/disks", map[string]any{"name": name})
}

// TestDiskCurlResumes resumes an interrupted flash of a compressed image with curl: the
// first request for the rest of it has the disk made.
func TestDiskCurlResumes(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	s.Put(t, "a.img.gz", m.make("gzip -1 -c raw >x"))
	at := cuttingProxy(t, s, 3_000_000) + rawRoute("a.img")
	if sh(t, m.dir, "curl -fsS -o disk "+at) == nil {
		t.Fatal("the download was not cut")
	}
	if err := sh(t, m.dir, "curl -fsS --retry 20 -C - -o disk "+at+"; cmp disk raw"); err != nil {
		t.Error(err)
	}
	p := s.disks(t)
	if len(p.Disks) != 1 || p.Disks[0].SizeBytes != 8<<20 {
		t.Fatalf("%+v", p)
	}
	r, _ := s.Row(t, "a.img.gz")
	t.Run("a sparse file", func(t *testing.T) {
		needsPlainFiles(t)
		path := filepath.Join(s.Data, s.CatalogBuck, "disks", r.SHA256)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, m.raw()) {
			t.Errorf("the file of the disk has %d bytes, %v", len(got), err)
		}
		if took, says := allocated(t, path), p.Disks[0].StoredBytes; says > 3<<20 || took > says+64<<10 {
			t.Errorf("the disk takes %d bytes, %d are announced", took, says)
		}
	})
	t.Run("as any other", func(t *testing.T) {
		checkRanges(t, s, rawRoute("a.img"), m.raw())
		checkSeveralRanges(t, s, rawRoute("a.img"), m.raw())
		checkConditions(t, s, rawRoute("a.img"), m.raw())
		checkIfRange(t, s, rawRoute("a.img"), m.raw())
	})

	// A disk goes with its image, and by itself.
	s.Do(t, http.MethodDelete, "/catalog/disks/"+r.SHA256, nil).Must(t, http.StatusNoContent)
	if left := s.objects(t, s.CatalogBuck, "disks/"); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	s.makeDisk(t, "a.img.gz").Must(t, http.StatusAccepted)
	s.waitDisk(t, "a.img.gz", "there", is("completed"))
	s.makeDisk(t, "a.img.gz").Must(t, http.StatusAccepted)
	s.waitDisk(t, "a.img.gz", "still there", is("completed"))
}

// allocated returns the bytes that a file takes on the disk.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestDeepDiskKilled kills the program while it makes a disk, at most five times: each run resumes the
// last one, so the disk may be complete before.
func TestDeepDiskKilled(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s, m := Start(t, Options{Env: []string{"IMAGEROOT_CHECK=false"}}), newMaker(t)
	// Eight members of gzip, each 8 MiB of the maker's image and 504 MiB of zeros.
	s.Put(t, "big.img.gz", m.make("cp raw b; truncate -s 512M b; gzip -1 -c b >y; for i in 1 2 3 4 5 6 7 8; do cat y; done >x; rm y"))
	s.makeDiskOf(t, "big.img.gz")
	for kills := range 5 {
		made := false
		s.waitDisk(t, "big.img.gz", "in the making again", func(j diskJob) bool {
			made = j.Status == "completed"
			return made || j.Status == "running" && j.Attempt > kills
		})
		if made && kills > 1 {
			break
		}
		s.Kill(t)
		s.start(t)
	}
	s.waitDisk(t, "big.img.gz", "made", is("completed"))
	r, _ := s.Row(t, "big.img.gz")
	path := filepath.Join(s.Data, s.CatalogBuck, "disks", r.SHA256)
	if err := sh(t, m.dir, "for i in 1 2 3 4 5 6 7 8; do cat b; done | cmp - "+path); err != nil {
		t.Error(err)
	}
	p := s.disks(t)
	if len(p.Disks) != 1 || p.Disks[0].SizeBytes != 4<<30 || allocated(t, path) > p.Disks[0].StoredBytes+1<<20 {
		t.Errorf("%+v; it takes %d bytes", p.Disks, allocated(t, path))
	}
	s.Restart(t) // which sweeps what the killed ones have left
	s.noHalves(t)
	eventually(t, within, "nothing else is on the disk", func() error {
		var took int64
		err := filepath.Walk(s.Data, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				took += allocated(t, path)
			}
			return nil
		})
		if most := p.Disks[0].StoredBytes + *r.SizeBytes + 16<<20; took > most {
			return fmt.Errorf("%d bytes are in use, want %d at most", took, most)
		}
		return err
	})
}

// TestDeepDiskWithoutRoom makes a disk that does not fit: the job fails with both sizes, and the
// disk that is in use stays.
func TestDeepDiskWithoutRoom(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	need.Programs(t, "zstd")
	s, m := Start(t, Options{Data: filepath.Join(smallDisk(t, 600), "data")}), newMaker(t)
	s.Put(t, "small.img.gz", m.make("gzip -1 -c raw >x"))
	s.makeDiskOf(t, "small.img.gz")
	s.waitDisk(t, "small.img.gz", "made", is("completed"))
	// 32 MiB of noise, thirty times.
	if err := os.WriteFile(m.path("noise"), content(9, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Put(t, "large.img.zst", m.make("for i in 1 2 3 4 5 6 7 8 9 10; do cat noise noise noise; done | zstd -q --long=27 -1 -c >x"))
	s.WaitRow(t, "large.img.zst", "checked", func(r row) bool { return r.RawSHA256 != "" })
	s.makeDiskOf(t, "large.img.zst")
	s.waitDisk(t, "large.img.zst", "given up", is("failed"))
	for _, j := range s.disks(t).Jobs {
		if j.Name == "large.img.zst" && (!strings.Contains(j.Error, fmt.Sprintf("the disk of %d bytes", 30*32<<20)) || !strings.Contains(j.Error, "bytes free")) {
			t.Errorf("%+v", j)
		}
	}
	if p := s.disks(t); len(p.Disks) != 1 || p.StoredBytes > 4<<20 {
		t.Errorf("%+v", p)
	}
	s.noHalves(t)
	s.Put(t, "more.img", content(10, 100<<20)) // there is room again
	// Those who cannot have the disk have the stream.
	if got := s.get(t, rawRoute("large.img"), header("Range", "bytes=5-")).Must(t, 200); got.Header.Get("Accept-Ranges") != "none" {
		t.Errorf("%v", got.Header)
	}
}

// makeDiskOf makes the disk of an image once that is hashed and inspected.
func (s *Server) makeDiskOf(t testing.TB, name string) {
	t.Helper()
	s.WaitRow(t, name, "inspected", func(r row) bool { return r.Content != "" })
	s.makeDisk(t, name).Must(t, http.StatusAccepted)
}
