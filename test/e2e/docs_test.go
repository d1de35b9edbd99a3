package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var pasteable = regexp.MustCompile("(?ms)^```sh test\n(.*?)^```$")

// TestGuides runs the blocks of the guides that are marked "sh test", on one
// server, page after page, with publishers and devices of the test.
func TestGuides(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	dir := t.TempDir()
	pub := publish(t)
	s := Start(t, Options{Data: filepath.Join(dir, "data")})
	if err := sh(t, dir, `mkdir tmp; truncate -s 16M raw
printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\100\0\0' | dd of=raw bs=1 seek=446 conv=notrunc status=none; printf '\125\252' | dd of=raw bs=1 seek=510 conv=notrunc status=none
qemu-img convert -O qcow2 raw debian-12.qcow2; cp raw other; printf other | dd of=other bs=1 seek=1048576 conv=notrunc status=none
xz -0 -c raw >os.img.xz; zstd -q -c other >ci-runner.img.zst`); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s.Put(t, "ci-runner.img.zst", read("ci-runner.img.zst"))
	const pi = "2025-05-13-raspios-bookworm-arm64-lite.img.xz"
	at := "/raspios_lite_arm64/images/raspios_lite_arm64-2025-05-13/" + pi
	pub.File(at, read("os.img.xz"))
	pub.File(at+".sha256", []byte(sum(read("os.img.xz"))+"  "+pi+"\n"))
	noble := content(7, 1<<20)
	pub.File("/noble/current/noble-server-cloudimg-amd64.img", noble)
	pub.File("/noble/current/SHA256SUMS", []byte(sum(noble)+" *noble-server-cloudimg-amd64.img\n"))
	here := strings.NewReplacer(
		"http://localhost:8080", s.Pages, "http://pi:8080", s.Pages, "http://localhost:9000", s.S3,
		"https://cloud-images.ubuntu.com", pub.URL, "https://downloads.raspberrypi.com", pub.URL,
		"IR7QXK4M2ZBN5TWHDR3A", s3AccessKey, "5T4PWQ...", s3SecretKey,
		"/dev/sdX", filepath.Join(dir, "sdX"), "/var/tmp", filepath.Join(dir, "tmp"), "sudo ", "",
	)
	settled := func() error {
		for _, kind := range []string{hashes, downloads} {
			if jobs, _ := s.Jobs(t, kind); !slices.ContainsFunc(jobs, func(j job) bool { return !ended(j) }) {
				continue
			}
			return fmt.Errorf("%s run", kind)
		}
		for _, r := range s.Rows(t) {
			packed := r.Format == "qcow2" || strings.HasPrefix(r.Format, "img.")
			if r.HashState != "hashed" || packed && r.RawSHA256 == "" {
				return fmt.Errorf("%+v", r)
			}
		}
		return nil
	}
	flashed := map[string][]byte{"get-images-out": read("other"), "flash": read("raw"), "raspberry-pi": read("raw"), "bmaptool": read("raw")} // by the page's last line
	for _, page := range []string{"put-images-in", "get-images-out", "flash", "raspberry-pi", "bmaptool", "incus", "proxmox", "maas", "boot", "machines", "troubleshooting"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", page+".md"))
		if err != nil {
			t.Fatal(err)
		}
		blocks := pasteable.FindAllStringSubmatch(string(text), -1)
		if len(blocks) == 0 {
			t.Errorf("%s has no lines to run", page)
		}
		// A reader continues with the next block when the server has finished
		// its work.
		for i := range blocks {
			cmd := exec.CommandContext(t.Context(), "bash", "-ec", here.Replace(blocks[i][1]))
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "IMAGEROOT_TOKEN="+token)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s, block %d: %v\n%s%s", page, i+1, err, blocks[i][1], out)
			}
			eventually(t, within, page+" is settled", settled)
		}
		_ = os.Remove(filepath.Join(dir, "debian-12.qcow2")) // curl -C - continues what it finds
		if want := flashed[page]; want != nil && sum(read("sdX")) != sum(want) {
			t.Errorf("%s: what was flashed is not the disk", page)
		}
	}
	for _, name := range []string{"debian-12.qcow2", "noble-server-cloudimg-amd64.img", pi} {
		if r, ok := s.Row(t, name); !ok || !r.Cached {
			t.Errorf("%s is not in the catalog with its bytes: %+v", name, r)
		}
	}
}

// TestReadmeStart compares the output of a start in the README with a real one.
func TestReadmeStart(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	labels := func(text string) (all []string) {
		for _, m := range regexp.MustCompile(`(?m)^  (\S+(?: \S+)?)  +\S`).FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		return all
	}
	_, shown, _ := strings.Cut(string(readme), "$ go run ./local\n")
	shown, _, _ = strings.Cut(shown, "```")
	if got, want := labels(shown), labels(Start(t, Options{Bare: true}).Stdout()); len(want) < 5 || !slices.Equal(got, want) {
		t.Errorf("the README shows %q, and a start prints %q", got, want)
	}
}
