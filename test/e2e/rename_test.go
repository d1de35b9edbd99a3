package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// rename asks for another name of an image and returns the answer.
func (s *Server) rename(t testing.TB, name, next string) *Reply {
	t.Helper()
	return s.DoJSON(t, http.MethodPost, imageRoute(name)+"/rename", map[string]any{"name": next})
}

// renames returns the jobs that rename images.
func (s *Server) renames(t testing.TB) []job {
	t.Helper()
	var l struct {
		Renames []job `json:"renames"`
	}
	s.get(t, "/catalog/renames").Must(t, http.StatusOK).JSON(t, &l)
	return l.Renames
}

// renamesEnded waits until no image is being renamed.
func (s *Server) renamesEnded(t testing.TB) {
	t.Helper()
	eventually(t, within, "the renames have ended", func() error {
		for _, j := range s.renames(t) {
			if !ended(j) {
				return fmt.Errorf("%+v", j)
			}
		}
		return nil
	})
}

// isAt checks, when no image is being renamed, that an image has one name, with these bytes, and not the other.
func (s *Server) isAt(t testing.TB, name, not string, data []byte) {
	t.Helper()
	s.renamesEnded(t)
	s.WaitHashed(t, name, sum(data))
	s.WaitGone(t, not)
	if got := s.get(t, imageRoute(name)).Must(t, http.StatusOK).Body; !bytes.Equal(got, data) {
		t.Errorf("%s has %d bytes with the SHA-256 %s, want %d with %s", name, len(got), sum(got), len(data), sum(data))
	}
	if keys := s.objects(t, s.ImageBucket, ""); !slices.Contains(keys, name) || slices.Contains(keys, not) {
		t.Errorf("the bucket has %q", keys)
	}
}

// TestRename: what is known about an image stays, and its bytes are not hashed again.
func TestRename(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	const before, after = "lab disk+ü 50%.img", "lab disk.qcow2"
	data := content(1, 3<<20)
	s.Put(t, before, data)
	s.Put(t, "other.img", content(2, 1000))
	s.s3Put(t, before+".sha256", []byte(sum(data)+"  "+before+"\n"))
	s.WaitRow(t, before, "with its sidecar", nil)
	s.describe(t, sum(data), map[string]any{"title": "The lab", "name": before}).Must(t, http.StatusOK)

	s.rename(t, "none.img", after).Must(t, http.StatusNotFound)
	s.rename(t, before, "other.img").Must(t, http.StatusConflict)
	s.rename(t, before, "lab.txt").Must(t, http.StatusUnprocessableEntity)
	s.rename(t, before, before).Must(t, http.StatusAccepted)
	s.isAt(t, before, after, data)

	s.rename(t, before, after).Must(t, http.StatusAccepted)
	s.isAt(t, after, before, data)
	s.rename(t, before, after).Must(t, http.StatusAccepted) // whose answer was lost
	if d, _ := s.described(t, sum(data)); d.Metadata["name"].Value != after {
		t.Errorf("the primary name is %+v", d.Metadata["name"])
	}
	eventually(t, within, "the sidecar has the new name", func() error {
		if keys := s.objects(t, s.ImageBucket, ""); !slices.Contains(keys, after+".sha256") || slices.Contains(keys, before+".sha256") {
			return fmt.Errorf("the bucket has %q", keys)
		}
		return nil
	})
	if e := s.WaitEvent(t, "image.renamed", after); e.Actor != "operator" || e.SourceIP == "" {
		t.Errorf("the event is %+v", e)
	}
	if j, found := s.Job(t, "hashes", after); found {
		t.Errorf("it was hashed again: %+v", j)
	}
	s.isAt(t, "other.img", "none.img", content(2, 1000))

	sh := s.shell(t)
	if out := sh.must(t, "mv", after, before); !strings.Contains(out, "renamed to "+before) {
		t.Errorf("imageroot mv prints %q", out)
	}
	s.isAt(t, before, after, data)
	if out := sh.must(t, "mv", "--json", before, after); !strings.Contains(out, `"status": "completed"`) && !strings.Contains(out, `"status":"completed"`) {
		t.Errorf("imageroot mv --json prints %q", out)
	}
	if r := sh.run(t, "", "mv", after, "other.img"); r.code == 0 || !strings.Contains(r.err, "other.img") {
		t.Errorf("imageroot mv to a name that is taken: status %d, %s", r.code, r.err)
	}
}

// TestRenameOfAFile: a file that was copied into the directory keeps its digest, too.
func TestRenameOfAFile(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	data := content(3, 1<<20)
	if err := os.WriteFile(s.imagePath("dropped.img"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	s.WaitHashed(t, "dropped.img", sum(data))
	file, err := os.Stat(s.imagePath("dropped.img"))
	if err != nil {
		t.Fatal(err)
	}
	s.rename(t, "dropped.img", "renamed.raw").Must(t, http.StatusAccepted)
	s.isAt(t, "renamed.raw", "dropped.img", data)
	if now, err := os.Stat(s.imagePath("renamed.raw")); err != nil || !os.SameFile(file, now) {
		t.Errorf("it is not the same file: %v", err)
	}
	s.Restart(t) // which compares the directory with the records
	s.isAt(t, "renamed.raw", "dropped.img", data)
	if j, found := s.Job(t, "hashes", "renamed.raw"); found {
		t.Errorf("it was hashed again: %+v", j)
	}
}

// TestRenameKilled: a server that is killed while it renames has the image under one of the
// names, or both, and finishes the job when it runs again.
func TestRenameKilled(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	data := content(4, 8<<20)
	names := [2]string{"one.img", "two.raw"}
	s.Put(t, names[0], data)
	for range 2 {
		asked := time.Now()
		s.rename(t, names[0], names[1]).Must(t, http.StatusAccepted)
		s.Kill(t)
		s.start(t)
		eventually(t, within, "that rename has ended", func() error {
			for _, j := range s.renames(t) {
				if j.Name == names[0] && j.FinishedAt != nil && j.FinishedAt.After(asked) {
					return nil
				}
			}
			return errors.New("not yet")
		})
		if keys := s.objects(t, s.ImageBucket, ""); !slices.Contains(keys, names[0]) && !slices.Contains(keys, names[1]) {
			t.Fatalf("the image is lost; the bucket has %q", keys)
		}
		s.isAt(t, names[1], names[0], data)
		names[0], names[1] = names[1], names[0]
	}
}

// TestRenameRace: of several images that are renamed to one name, one gets it, and the
// others keep theirs.
func TestRenameRace(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	images := map[string][]byte{}
	var wg sync.WaitGroup
	for i := range 6 {
		images[fmt.Sprintf("image%d.img", i)] = content(uint64(10+i), 10_000)
	}
	for name, data := range images {
		s.Put(t, name, data)
	}
	for name := range images {
		wg.Go(func() { s.rename(t, name, "one.img") })
	}
	wg.Wait()
	s.renamesEnded(t)
	won := 0
	one := s.get(t, imageRoute("one.img")).Must(t, http.StatusOK).Body
	for name, data := range images {
		if bytes.Equal(one, data) {
			won++
			s.isAt(t, "one.img", name, data)
		} else {
			s.isAt(t, name, "none.img", data)
		}
	}
	if won != 1 {
		t.Errorf("%d images have the name", won)
	}
	if events := s.Events(t, url.Values{"kind": {"image.renamed"}}); len(events) != 1 {
		t.Errorf("the events are %+v", events)
	}
}
