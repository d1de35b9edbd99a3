package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func TestHashJobs(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	s.putSlow(t, "vast-1.raw")
	size := s.putSlow(t, "vast-2.raw")
	s.WaitRow(t, "vast-1.raw", "seen", nil)
	s.WaitRow(t, "vast-2.raw", "seen", nil)

	var first, second string
	eventually(t, within, "one job running, one queued", func() error {
		jobs, most := s.Jobs(t, hashes)
		if most != 1 {
			t.Fatalf("max_parallel is %d, want 1", most)
		}
		first, second = "", ""
		for _, j := range jobs {
			switch j.Status {
			case "running":
				if first != "" {
					t.Fatalf("two jobs are running: %+v", jobs)
				}
				first = j.Name
			case "queued":
				second = j.Name
			}
		}
		if first == "" || second == "" {
			return fmt.Errorf("jobs %+v", jobs)
		}
		return nil
	})
	j := s.WaitJobUntil(t, hashes, first, "progress", func(j job) bool { return j.Status == "running" && j.BytesHashed > 0 })
	if j.BytesTotal == nil || *j.BytesTotal != size || j.BytesHashed > size || j.StartedAt == nil || j.FinishedAt != nil || j.SHA256 != "" {
		t.Errorf("running job %+v", j)
	}
	s.WaitJobUntil(t, hashes, first, "more progress", func(k job) bool { return k.BytesHashed > j.BytesHashed })
	if r, _ := s.Row(t, first); r.HashState != "running" || r.SHA256 != "" {
		t.Errorf("row of what is being hashed: %+v", r)
	}
	if r, _ := s.Row(t, second); r.HashState != "queued" {
		t.Errorf("row of what is queued: %+v", r)
	}
	// A second request returns the same job.
	var again job
	s.Enqueue(t, hashes, "name", first).Must(t, http.StatusAccepted, http.StatusOK).JSON(t, &again)
	if again.Name != first || again.Status != "running" {
		t.Errorf("enqueued again: %+v", again)
	}

	// Without a digest it is not listed, but served by its name.
	if l, ok := s.Listed(t, first); ok {
		t.Errorf("an unhashed local file is offered to flash clients: %+v", l)
	}
	res := s.Do(t, http.MethodHead, imageRoute(first), nil).Must(t, 200)
	if d := res.Header.Get("Repr-Digest"); d != "" {
		t.Errorf("Repr-Digest of an unhashed file: %s", d)
	}

	s.Cancel(t, hashes, first).Must(t, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	if j := s.WaitJob(t, hashes, first, "cancelled"); j.FinishedAt == nil {
		t.Errorf("cancelled job %+v", j)
	}
	if r, _ := s.Row(t, first); r.SHA256 != "" {
		t.Errorf("a cancelled hash has a result: %+v", r)
	}
	// The worker is free, so the second one runs. It is cancelled while queued
	// or running.
	s.WaitJob(t, hashes, second, "running")
	s.Cancel(t, hashes, second).Must(t, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	s.WaitJob(t, hashes, second, "cancelled")

	// A cancelled job can be requested again.
	s.Enqueue(t, hashes, "name", first).Must(t, http.StatusAccepted)
	s.WaitJob(t, hashes, first, "running")
	s.Cancel(t, hashes, first)
	s.WaitJob(t, hashes, first, "cancelled")

	s.s3Put(t, "small.img", content(1, 1000))
	s.WaitHashed(t, "small.img", sum(content(1, 1000)))
	done := s.WaitJob(t, hashes, "small.img", "completed")
	if done.SHA256 != sum(content(1, 1000)) || done.BytesHashed != 1000 || done.FinishedAt == nil || done.Ref == "" {
		t.Errorf("completed job %+v", done)
	}
	var same job
	s.Enqueue(t, hashes, "name", "small.img").Must(t, http.StatusAccepted, http.StatusOK).JSON(t, &same)
	if same.Status != "completed" || same.SHA256 != done.SHA256 {
		t.Errorf("enqueued when done: %+v", same)
	}
	s.WaitEvent(t, "image.hashed", "small.img")
}

func TestHashCancelQueued(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	s.putSlow(t, "busy.raw")
	s.WaitJob(t, hashes, "busy.raw", "running")
	s.s3Put(t, "queued.img", content(1, 1000))
	s.WaitJob(t, hashes, "queued.img", "queued")
	s.Cancel(t, hashes, "queued.img").Must(t, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	s.WaitJob(t, hashes, "queued.img", "cancelled")
	s.Cancel(t, hashes, "busy.raw")
	s.WaitJob(t, hashes, "busy.raw", "cancelled")
}

func TestHashRefuses(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	s.Enqueue(t, hashes, "name", "nothing.img").Problem(t, []int{404})
	s.Enqueue(t, hashes, "name", "../x.img").Problem(t, []int{400, 404, 422})
	s.DoJSON(t, http.MethodPost, "/catalog/hashes", map[string]any{}).Problem(t, []int{400, 422})
	s.Cancel(t, hashes, "nothing.img").Problem(t, []int{404})
}

func TestHashWorkers(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Args: []string{"--hash-workers", "2"}})
	s.putSlow(t, "a.raw")
	s.putSlow(t, "b.raw")
	eventually(t, within, "two jobs running at once", func() error {
		jobs, most := s.Jobs(t, hashes)
		if most != 2 {
			t.Fatalf("max_parallel is %d, want 2", most)
		}
		n := 0
		for _, j := range jobs {
			if j.Status == "running" {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%d running: %+v", n, jobs)
		}
		return nil
	})
	// With both jobs running, Ctrl-C still stops the server.
	s.Stop(t)
}

func TestHashFindsWhatWasThere(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	data := filepath.Join(t.TempDir(), "data")
	// Before the first start: a directory that a user has made and filled.
	if err := os.MkdirAll(filepath.Join(data, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	early := content(1, 50_000)
	if err := os.WriteFile(filepath.Join(data, "images", "early.img"), early, 0o644); err != nil {
		t.Fatal(err)
	}
	s := Start(t, Options{Data: data})
	s.WaitHashed(t, "early.img", sum(early))
	s.Put(t, "removed.img", content(2, 1000))
	s.Put(t, "replaced.img", content(3, 1000))

	s.Stop(t)
	s.drop(t, "meanwhile.img", content(4, 60_000))
	s.drop(t, "replaced.img", content(5, 1000)) // of the same size
	if err := os.Remove(s.imagePath("removed.img")); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	s.WaitHashed(t, "meanwhile.img", sum(content(4, 60_000)))
	s.WaitHashed(t, "replaced.img", sum(content(5, 1000)))
	s.WaitHashed(t, "early.img", sum(early))
	s.WaitGone(t, "removed.img")
	s.get(t, "/images/"+sum(content(3, 1000))).Problem(t, []int{404})
}

// TestHashOverwrittenMeanwhile overwrites an image while it is hashed: the
// published digest is that of the new bytes.
func TestHashOverwrittenMeanwhile(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	s.dropSparse(t, "a.raw", 32<<30)
	s.WaitJobUntil(t, hashes, "a.raw", "under way", func(j job) bool { return j.Status == "running" && j.BytesHashed > 0 })
	b := content(1, 100_000)
	s.Put(t, "a.raw", b)
	s.WaitHashed(t, "a.raw", sum(b))
	eventually(t, within, "no job is left running", func() error {
		if j, found := s.Job(t, hashes, "a.raw"); found && !ended(j) {
			return fmt.Errorf("%+v", j)
		}
		return nil
	})
	if r, ok := s.Row(t, "a.raw"); !ok || r.SHA256 != sum(b) {
		t.Errorf("row %+v, want SHA-256 %s", r, sum(b))
	}
}

// TestHashSidecars compares the sidecars of an image with its bytes.
func TestHashSidecars(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	b := content(1, 10_000)
	said := func(name, text string) { t.Helper(); s.s3Put(t, name, []byte(text)) }
	none := func(r row) bool { return len(r.Warnings) == 0 && r.SHA256 == sum(b) }
	some := func(r row) bool { return len(r.Warnings) > 0 && r.SHA256 == sum(b) }

	said("before.img.sha256", sum(b)+"  before.img\n")
	s.Put(t, "before.img", b)
	s.WaitRow(t, "before.img", "no warning", none)
	said("before.img.sha256", sum([]byte("forged"))+"  before.img\n")
	s.WaitRow(t, "before.img", "a mismatch", some)
	said("before.img.sha256", sum(b)+"  before.img\n")
	s.WaitRow(t, "before.img", "no warning any more", none)
	said("before.img.sha512", digest("sha512", []byte("forged"))+"  before.img\n")
	s.WaitRow(t, "before.img", "a mismatch of the SHA-512", some)
	s.s3Delete(t, "before.img.sha512")
	s.WaitRow(t, "before.img", "no warning after the SHA-512 went", none)
	for _, r := range s.Rows(t) {
		for _, n := range r.Names {
			if n != "before.img" {
				t.Errorf("a checksum file is listed as an image: %q", n)
			}
		}
	}
}
