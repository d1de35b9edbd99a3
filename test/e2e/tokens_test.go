package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/need"
)

// token makes a token.
func (s *Server) token(t testing.TB, name, scope string) string {
	t.Helper()
	return strings.TrimSpace(s.shell(t).must(t, "token", "add", name, "--scope", scope))
}

// TestTokens sends tokens with the tools of machines, to a server that is closed to others.
// A revoked one is refused by each.
func TestTokens(t *testing.T) {
	t.Parallel()
	need.Programs(t, "curl", "wget", "python3", "nbdkit", "nbdcopy")
	s := Start(t, Options{Env: []string{"IMAGEROOT_PUBLIC_READ=false"}})
	other := Start(t, Options{Over: s, Env: []string{"IMAGEROOT_PUBLIC_READ=false"}})
	image := content(3, 3<<20)
	s.Put(t, "lab.img", image)
	other.WaitRow(t, "lab.img", "known", func(row) bool { return true })
	read, upload := s.token(t, "lab-7", "read"), s.token(t, "ci", "upload")
	dir := t.TempDir()
	host, _, _ := strings.Cut(strings.TrimPrefix(s.Pages, "http://"), ":")
	for name, text := range map[string]string{".netrc": "machine " + host + " login root password " + read + "\n", "lab.token": read} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	url := s.Pages + "/images/lab.img"
	tools := map[string]string{
		"curl":     "curl -sf --netrc-file .netrc -o got " + url,
		"wget":     "HOME=$PWD wget -q -O got " + url,
		"urllib":   `python3 -c 'import sys, urllib.request as r; m = r.HTTPPasswordMgrWithDefaultRealm(); m.add_password(None, sys.argv[1], "root", open("lab.token").read()); open("got", "wb").write(r.build_opener(r.HTTPBasicAuthHandler(m)).open(sys.argv[1]).read())' ` + url,
		"nbdkit":   "nbdkit -U - curl " + s.Pages + "/raw/lab.img user=root password=+lab.token --run 'nbdcopy \"$uri\" got'",
		"a bearer": "curl -sf -H \"Authorization: Bearer $(cat lab.token)\" -o got " + other.Pages + "/images/lab.img",
	}
	get := func(tool, command string) error {
		_ = os.Remove(filepath.Join(dir, "got"))
		if err := sh(t, dir, command); err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(dir, "got"))
		if err == nil && !bytes.Equal(got, image) {
			t.Errorf("%s got other bytes", tool)
		}
		return err
	}
	for tool, command := range tools {
		if err := get(tool, command); err != nil {
			t.Errorf("%s: %v", tool, err)
		}
	}
	if err := sh(t, dir, fmt.Sprintf("cp lab.token by-ci.img; curl -sf -u ci:%s -T by-ci.img %s/images/ && ! curl -sf -u lab:%s -T by-ci.img %s/images/", upload, other.Pages, read, s.Pages)); err != nil {
		t.Errorf("curl -T: %v", err)
	}
	if r := s.get(t, "/events?actor=token:ci").Must(t, http.StatusOK); !strings.Contains(string(r.Body), "by-ci.img") {
		t.Errorf("the activity does not name the token: %s", r.Body)
	}
	for _, name := range []string{"a b", "../x", "a\u202e", "<b>", strings.Repeat("x", 65)} {
		s.DoJSON(t, http.MethodPost, "/tokens", map[string]string{"name": name, "scope": "read"}).Must(t, http.StatusUnprocessableEntity)
	}

	// Of machines that upload a new name at the same time, to two processes, one succeeds.
	if err := sh(t, dir, fmt.Sprintf(`for i in $(seq 6); do
  head -c 3M /dev/urandom >up.$i
  for at in %s %s; do curl -s -o /dev/null -w '%%{http_code}\n' -u ci:%s -H 'If-None-Match: *' -T up.$i $at/images/new.img & done
done >codes; wait
test "$(sort codes | uniq -c | xargs)" = '1 201 11 412'`, s.Pages, other.Pages, upload)); err != nil {
		codes, _ := os.ReadFile(filepath.Join(dir, "codes"))
		t.Errorf("If-None-Match: %v\n%s", err, codes)
	}

	list := s.shell(t).must(t, "token", "ls")
	if !strings.Contains(list, "ci ") || !strings.Contains(list, "lab-7 ") || strings.Contains(list, read) {
		t.Errorf("%s", list)
	}
	as := newShell(t, s.Pages, "IMAGEROOT_TOKEN="+read)
	as.must(t, "ls")
	as.must(t, "pull", "lab.img")
	as.fails(t, 4, "scope", "rm", "--yes", "lab.img")
	s.shell(t).fails(t, 2, "the name of a token", "token", "add", "no name")
	s.shell(t).fails(t, 3, "no token of this name", "token", "rm", "other")
	s.shell(t).must(t, "token", "rm", "lab-7")
	eventually(t, within, "the revocation in the other process", func() error {
		if r := other.get(t, "/images", header("Authorization", "Bearer "+read)); r.Status != http.StatusUnauthorized {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	for tool, command := range tools {
		if err := get(tool, command); err == nil {
			t.Errorf("%s is let in by a token that was revoked", tool)
		}
	}
	// A browser is asked for no password by a dialog of its own.
	for agent, want := range map[string]int{"Mozilla/5.0 (X11; Linux x86_64)": 1, "Wget/1.21.3": 2} {
		if r := s.get(t, "/images/lab.img", anonymous, header("User-Agent", agent)).Must(t, http.StatusUnauthorized); len(r.Header.Values("WWW-Authenticate")) != want {
			t.Errorf("%s: %q", agent, r.Header.Values("WWW-Authenticate"))
		}
	}
}
