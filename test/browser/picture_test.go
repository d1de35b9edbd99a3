package browser

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

var picture = flag.String("picture", "", "file for the README's picture of the page (WebP); default: among the screenshots")

// TestPicture takes the README's picture, of the catalog of a lab: its own
// images beside a manifest of publishers' images.
func TestPicture(t *testing.T) {
	s := start(t)
	dir := t.TempDir()
	script := exec.CommandContext(t.Context(), "sh", "-ec", `
disk() { head -c "$1" /dev/urandom >"$2" && printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\100\0\0' | dd of="$2" bs=1 seek=446 conv=notrunc status=none && printf '\125\252' | dd of="$2" bs=1 seek=510 conv=notrunc status=none; }
disk 96M raw && truncate -s 3G raw && qemu-img convert -O qcow2 raw debian-13-genericcloud-amd64.qcow2
disk 12M raw && truncate -s 120M raw && gzip -1 -c raw >openwrt-24.10.1-rpi-5-ext4-factory.img.gz
disk 70M raw && truncate -s 4G raw && zstd -q -1 -c raw >ci-runner-2026-11.img.zst
mkdir iso && head -c 60M /dev/urandom >iso/modloop && genisoimage -quiet -R -V ALPINE -o alpine-virt-3.22.0-x86_64.iso iso
rm raw`)
	script.Dir = dir
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	images, err := filepath.Glob(filepath.Join(dir, "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range images {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		s.call(t, "PUT", "/images/"+filepath.Base(path), f)
		_ = f.Close()
	}
	var manifest bytes.Buffer
	manifest.WriteString("version = 1\n")
	for i, m := range []struct {
		src  string
		size int
	}{
		{"https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img", 624951296},
		{"https://github.com/home-assistant/operating-system/releases/download/16.1/haos_rpi5-64-16.1.img.xz", 261500000},
		{"https://cdimage.debian.org/cdimage/release/13.1.0/amd64/iso-cd/debian-13.1.0-amd64-netinst.iso", 821035008},
	} {
		fmt.Fprintf(&manifest, "[[images]]\nname = %q\nsrc = %q\nsha256 = %q\nsize_bytes = %d\n", filepath.Base(m.src), m.src, digestOf(fmt.Sprint(i)), m.size)
	}
	s.call(t, "PUT", "/catalog.toml", &manifest)

	p := open(t, s)
	p.login()
	p.size(1280, 1120)
	p.until("all rows", "document.querySelectorAll('#catalog tbody tr').length >= 7")
	p.until("every check has ended", "!document.body.textContent.match(/queued|running/)")
	shot, err := chromedp.Call(p.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: "webp", Quality: new(int64(25))})
	if err != nil {
		t.Fatal(err)
	}
	if len(shot.Data) > 60<<10 {
		t.Errorf("the picture has %d bytes, and a README's page is to load fast", len(shot.Data))
	}
	to := *picture
	if to == "" {
		to = filepath.Join(*screenshots, "readme.webp")
	}
	if err := os.WriteFile(to, shot.Data, 0o644); err != nil {
		t.Fatal(err)
	}
}
