package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// mostSmall is the limit of a server's memory (its resident set, in MiB) with
// GOMEMLIMIT=100MiB. That limit is for the Go runtime; the resident set also
// has some 25 MiB of the program's own pages.
const mostSmall = 100

// TestDeepSmallMemory takes in an image of 8 GiB, assembles it from its parts,
// and hashes it again as a dropped file, in a hundredth of its size.
func TestDeepSmallMemory(t *testing.T) {
	needsPlainFiles(t)
	s := Start(t, Options{Env: []string{"GOMEMLIMIT=100MiB"}})
	const size, want = 8 << 30, "ebfb4ef19ae410f190327b5ebd312711263bc7579970e87d9c1e2d84e06b3c25"
	path := filepath.Join(t.TempDir(), "large")
	sparse(t, path, size)
	began := time.Now()
	var u uploaded
	s.curl(t, "-T", path, s.Pages+"/images/large.raw").Reply(t).Must(t, http.StatusCreated).JSON(t, &u)
	if u.SHA256 != want || u.SizeBytes != size {
		t.Errorf("answer %+v, want SHA-256 %s", u, want)
	}
	t.Logf("8 GiB uploaded in %v, peak %s", time.Since(began).Round(time.Second), s.peak(t))

	s.Do(t, http.MethodDelete, "/images/large.raw", nil).Must(t, http.StatusNoContent)

	began = time.Now()
	s.dropSparse(t, "dropped.raw", size)
	if j := s.WaitJobUntil(t, hashes, "dropped.raw", "done", func(j job) bool { return ended(j) }); j.SHA256 != want {
		t.Errorf("%+v, want SHA-256 %s", j, want)
	}
	t.Logf("8 GiB hashed in %v, peak %s", time.Since(began).Round(time.Second), s.peak(t))
	if mib := s.memory(t, "VmHWM"); mib > mostSmall && !raceEnabled { // the race detector multiplies memory
		t.Errorf("it held %d MiB, want %d at the most", mib, mostSmall)
	}
}

func (s *Server) peak(t *testing.T) string {
	return fmt.Sprintf("%d MiB (now %d, of which %d are files)", s.memory(t, "VmHWM"), s.memory(t, "VmRSS"), s.memory(t, "RssFile"))
}

// memory reads a field of the process's status (proc_pid_status(5)), in MiB.
func (s *Server) memory(t *testing.T, field string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no %s in\n%s", field, status)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}
