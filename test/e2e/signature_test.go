package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/need"
)

// makeKey runs imageroot key in the data directory of a server, and returns what it prints.
func (s *Server) makeKey(t testing.TB) string {
	t.Helper()
	cmd := exec.Command(s.launch.Binary, append([]string{"key"}, s.launch.Args...)...)
	cmd.Env, cmd.Dir = s.launch.Env, s.launch.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("imageroot key: %v\n%s", err, out)
	}
	return string(out)
}

// startSigned returns a server with an image, and a directory with the image and all
// that signs it.
func startSigned(t testing.TB) (s *Server, dir string) {
	t.Helper()
	s, dir = Start(t, Options{}), t.TempDir()
	s.Put(t, "a.img", content(1, 100_000))
	for _, path := range []string{"/key.gpg", "/minisign.pub", "/images/SHA256SUMS.gpg", "/raw/SHA256SUMS.minisig"} {
		s.get(t, path).Problem(t, []int{http.StatusNotFound}, "imageroot key")
	}
	first := s.makeKey(t)
	if again := s.makeKey(t); strings.TrimPrefix(first, "Made the") != strings.TrimPrefix(again, "The") {
		t.Errorf("the second imageroot key prints another key: %s%s", first, again)
	}
	info, err := os.Stat(filepath.Join(s.Data, ".imageroot", "signing.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file of the key: %v, %v", info, err)
	}
	if err := sh(t, dir, "for f in key.gpg minisign.pub images/a.img images/SHA256SUMS images/SHA256SUMS.gpg images/SHA256SUMS.minisig; do curl -sSfO '"+s.Pages+"'/$f; done; "+
		"sha256sum --quiet -c SHA256SUMS"); err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(filepath.Join(dir, "minisign.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.Fields(string(public)); !strings.Contains(first, line[len(line)-1]) {
		t.Errorf("imageroot key does not print the key of minisign %q:\n%s", line, first)
	}
	return s, dir
}

// TestSignatures verifies the list of all images with gpgv and minisign, which refuse one in
// which a byte has changed.
func TestSignatures(t *testing.T) {
	t.Parallel()
	need.Programs(t, "curl", "gpgv", "minisign")
	s, dir := startSigned(t)
	const verifyGPG = "gpgv --quiet --keyring ./key.gpg SHA256SUMS.gpg SHA256SUMS"
	const verifyMinisign = "minisign -Vq -p minisign.pub -m SHA256SUMS -x SHA256SUMS.minisig"
	for _, verify := range []string{verifyGPG, verifyMinisign} {
		if err := sh(t, dir, verify); err != nil {
			t.Error(err)
		}
		if err := sh(t, dir, "cp SHA256SUMS good; printf 0 | dd of=SHA256SUMS bs=1 seek=3 conv=notrunc status=none; cmp -s good SHA256SUMS && printf 1 | dd of=SHA256SUMS bs=1 seek=3 conv=notrunc status=none; "+
			"if "+verify+"; then exit 1; fi; mv good SHA256SUMS"); err != nil {
			t.Errorf("a changed list: %v", err)
		}
	}
	// The checksum file of one image has its signature inside.
	if err := sh(t, dir, "curl -sSfO '"+s.Pages+"/images/a.img.sha256'; sha256sum --quiet -c a.img.sha256 2>/dev/null; "+
		"gpgv --quiet --keyring ./key.gpg a.img.sha256; sed -i 's/a.img$/b.img/' a.img.sha256; if gpgv --quiet --keyring ./key.gpg a.img.sha256; then exit 1; fi"); err != nil {
		t.Error(err)
	}
	// A later list is signed by the same key, also after a restart.
	s.Restart(t)
	s.Put(t, "b.img", content(2, 1000))
	sha := s.WaitRow(t, "b.img", "inspected", func(r row) bool { return r.RawSHA256 != "" }).SHA256
	for from, verify := range map[string]string{
		"raw/SHA256SUMS.gpg": verifyGPG, "images/SHA256SUMS.minisig": verifyMinisign,
		"images/" + sha + "/SHA256SUMS.gpg": verifyGPG, "raw/" + sha + "/SHA256SUMS.minisig": verifyMinisign,
	} {
		list, _, _ := strings.Cut(from, ".")
		if err := sh(t, dir, "curl -sSfO '"+s.Pages+"'/"+list+" -O '"+s.Pages+"'/"+from+"; grep -q b.img SHA256SUMS; "+verify); err != nil {
			t.Errorf("%s: %v", from, err)
		}
	}
	// No signature gives an image the name of another one.
	for _, forged := range []string{"images/" + sha + "/a.img.sha256", "raw/" + sha + "/a.img.sha256"} {
		if err := sh(t, dir, "curl -sSfO '"+s.Pages+"'/"+forged+"; grep -q 'a.img$' a.img.sha256; if gpgv --quiet --keyring ./key.gpg a.img.sha256; then exit 1; fi"); err != nil {
			t.Errorf("%s: %v", forged, err)
		}
	}
	if err := sh(t, dir, "curl -sSfO '"+s.Pages+"/images/"+sha+"/b.img.sha256'; gpgv --quiet --keyring ./key.gpg b.img.sha256"); err != nil {
		t.Error(err)
	}
	// A change of the catalog that the list does not show keeps its signature.
	tag := s.get(t, "/images/SHA256SUMS.gpg", anonymous).Must(t, 200).Header.Get("ETag")
	s.describe(t, sum(content(2, 1000)), map[string]any{"title": "Another"}).Must(t, 200)
	s.get(t, "/images/SHA256SUMS.gpg", anonymous, header("If-None-Match", tag)).Must(t, 304)
}

// TestDeepSystemdPull verifies an image by the signature of its list, as importctl does. The
// key is where systemd looks for it, in a mount namespace of the test.
func TestDeepSystemdPull(t *testing.T) {
	const pull = "/lib/systemd/systemd-pull"
	need.Programs(t, "curl", "gpg", "unshare", pull)
	need.Root(t)
	s, dir := startSigned(t)
	script := "unshare -m sh -ec 'mount --bind \"$1\" /usr/lib/systemd/import-pubring.gpg; " + pull +
		" raw --direct --verify=signature --settings=no --roothash=no --verity=no --sync=no \"$2\" \"$PWD/pulled\"' sh "
	from := s.Pages + "/images/a.img"
	if err := sh(t, dir, script+"key.gpg '"+from+"' && cmp pulled a.img"); err != nil {
		t.Error(err)
	}
	other := Start(t, Options{})
	other.makeKey(t)
	if err := sh(t, dir, "rm -f pulled; curl -sSf -o other.gpg '"+other.Pages+"/key.gpg'; "+script+"other.gpg '"+from+"'"); err == nil {
		t.Error("systemd-pull accepts the key of another server")
	}
}
