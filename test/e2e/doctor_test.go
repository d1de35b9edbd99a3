package e2e

import (
	"context"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// doctor runs imageroot doctor over the setup of a server, running or not.
func (s *Server) doctor(t *testing.T) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	at := func(url string) string { return url[strings.LastIndex(url, "/")+1:] }
	args := slices.Concat([]string{"doctor"}, s.launch.Args, []string{"--listen", at(s.Pages), "--s3-listen", at(s.S3)})
	cmd := exec.CommandContext(ctx, s.launch.Binary, args...)
	cmd.Env, cmd.Dir = s.launch.Env, s.launch.Dir
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// TestDoctor finds nothing wrong with a running server, does not disturb it,
// and finds what keeps another one from starting.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	want := content(1, 100_000)
	s.Put(t, "there.img", want)
	s.WaitHashed(t, "there.img", sum(want))
	before := len(s.Log())
	for range 3 {
		out, err := s.doctor(t)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		for _, row := range []string{"ok    pages       imageroot ", "ok    s3 ", " events "} {
			if !strings.Contains(out, row) {
				t.Errorf("no %q in\n%s", row, out)
			}
		}
	}
	if log := s.Log()[before:]; strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("it disturbs:\n%s", log)
	}
	if rows := s.Rows(t); len(rows) != 1 || rows[0].SHA256 != sum(want) {
		t.Errorf("the catalog has %+v", rows)
	}
	s.get(t, "/images/there.img", anonymous).Must(t, http.StatusOK)

	s.Stop(t)
	if out, err := s.doctor(t); err != nil || !strings.Contains(out, "can be listened on") {
		t.Errorf("of a server that does not run: %v\n%s", err, out)
	}
	s.launch.Args = append(s.launch.Args, "--hash-workers", "0")
	if out, err := s.doctor(t); err == nil || !strings.Contains(out, "hash-workers") {
		t.Errorf("of a setting that is none: %v\n%s", err, out)
	}
}
