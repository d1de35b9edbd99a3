package disk_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/disk"
	"imageroot/shared/guest"
	"imageroot/test/need"
)

// debs returns the paths of Debian packages of an architecture, from the mirror that apt uses.
func (l *lab) debs(arch string, names ...string) []string {
	l.t.Helper()
	l.write(arch+"/status", nil)
	for _, dir := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(l.path(arch+"/"+dir), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
	apt := func(args ...string) []byte {
		for _, option := range []string{
			"APT::Architecture=" + arch, "APT::Architectures=" + arch, "APT::Sandbox::User=root", "Acquire::Languages=none",
			"Acquire::http::Timeout=20", "Acquire::Retries=2", "Dir::State::status=" + l.path(arch+"/status"),
			"Dir::State::lists=" + l.path(arch+"/lists"), "Dir::Cache=" + l.path(arch+"/cache"),
		} {
			args = append([]string{"-o", option}, args...)
		}
		cmd := exec.CommandContext(l.t.Context(), "apt-get", args...)
		cmd.Dir = l.path(arch + "/debs")
		out, err := cmd.CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		return out
	}
	said := append(apt("update", "-q"), apt(append([]string{"download", "-q"}, names...)...)...)
	debs, err := filepath.Glob(l.path(arch + "/debs/*.deb"))
	if err != nil || len(debs) != len(names) {
		l.t.Fatalf("this test needs packages of Debian for %s from the mirror in /etc/apt, and got %d of %d: %v\n%s", arch, len(debs), len(names), err, said)
	}
	return debs
}

// TestDeepDebian inspects disks made of Debian's packages, as debootstrap makes them.
func TestDeepDebian(t *testing.T) {
	need.Programs(t, "apt-get", "dpkg-deb", "tar", "qemu-img")
	for arch, c := range map[string]struct {
		packages   string // beside those of every system
		loader, at string // EFI program, and its place in the EFI system partition
		bios       string // boot code
		cloud      bool
		boot       []disk.Boot
		table      string
	}{
		"amd64": {
			packages: "grub-pc-bin grub-efi-amd64-bin", loader: "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi", at: "EFI/BOOT/BOOTX64.EFI",
			bios: "usr/lib/grub/i386-pc/boot.img", boot: []disk.Boot{{Kind: disk.EFI, Arch: disk.AMD64}, {Kind: disk.BIOS}},
			table: "start=34,size=2014,type=21686148-6449-6E6F-744E-656564454649\n",
		},
		"arm64": {
			packages: "systemd-boot-efi cloud-init", loader: "usr/lib/systemd/boot/efi/systemd-bootaa64.efi", at: "EFI/BOOT/BOOTAA64.EFI",
			cloud: true, boot: []disk.Boot{{Kind: disk.EFI, Arch: disk.ARM64}},
		},
	} {
		t.Run(arch, func(t *testing.T) {
			l := newLab(t)
			for _, dir := range []string{"bin", "sbin", "lib"} { // as debootstrap does
				if err := os.MkdirAll(l.path("root/usr/"+dir), 0o755); err != nil {
					t.Fatal(err)
				}
				l.link("usr/"+dir, "root/"+dir)
			}
			common := "base-files base-passwd bash coreutils dash debianutils dpkg libc6 libc-bin perl-base sed tar systemd systemd-sysv udev util-linux"
			for _, deb := range l.debs(arch, strings.Fields(common+" "+c.packages)...) {
				l.run("", "sh", "-ec", "dpkg-deb --fsys-tarfile '"+deb+"' | tar -C root -x --keep-directory-symlink --no-same-owner")
			}
			l.ext("rootfs", "ext4", 200*mib, "root")
			l.fat("esp", 40*mib, map[string][]byte{c.at: l.read(l.path("root/" + c.loader))}, "-F", "32", "-s", "1")
			raw := l.disk("disk", 248*mib, "label: gpt\nfirst-lba: 34\n"+c.table+"start=2048,size=40M,type=U\nstart=42M,size=200M,type=L\n", map[int64]string{mib: "esp", 42 * mib: "rootfs"})
			if c.bios != "" {
				copy(raw[:440], l.read(l.path("root/"+c.bios)))
			}
			l.write("disk", raw)
			// What a shell says of the system.
			said, err := exec.CommandContext(t.Context(), "sh", "-ec", `. "$1" && echo "$ID|$VERSION_ID|$VERSION_CODENAME|$PRETTY_NAME"`, "-", l.path("root/usr/lib/os-release")).Output()
			if err != nil {
				t.Fatal(err)
			}
			release := strings.Split(strings.TrimSpace(string(said)), "|")
			check := func(how string, in disk.Inside, err error) {
				t.Helper()
				got := []string{in.System, in.Version, in.Codename, in.Title}
				if err != nil || strings.Join(got, "|") != strings.Join(release, "|") || string(in.Architecture) != arch || in.CloudInit == nil || *in.CloudInit != c.cloud || len(in.Unknown) > 0 && !in.Partial {
					t.Errorf("%s: %v, want %q for %s, cloud-init %v\n%s", how, err, release, arch, c.cloud, text(in))
				}
				if !slices.Equal(in.Boot, c.boot) {
					t.Errorf("%s: %s boots by %v, want %v", how, arch, in.Boot, c.boot)
				}
			}
			in, err := disk.Inspect(bytes.NewReader(raw), int64(len(raw)), reads, xz)
			check("raw", in, err)
			check("stream", streamed(raw, mib), nil)
			l.run("", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk", "qcow2")
			packed := l.read(l.path("qcow2"))
			guest, err := guest.Open(guest.QCOW2, bytes.NewReader(packed), int64(len(packed)))
			if err != nil {
				t.Fatal(err)
			}
			in, err = disk.Inspect(guest, guest.Size(), reads, xz)
			check("qcow2", in, err)
		})
	}
}
