package metadata

import (
	"strings"
	"testing"

	"imageroot/shared/image"
)

// Names as publishers give them, and what they say: system, version, architecture, date.
func TestFromName(t *testing.T) {
	for name, want := range map[image.Name]string{
		"ubuntu-24.04.1-live-server-amd64.iso":             "ubuntu 24.04.1 amd64 -",
		"noble-server-cloudimg-amd64.img":                  "ubuntu 24.04 amd64 -",
		"ubuntu-22.04-server-cloudimg-arm64.img":           "ubuntu 22.04 arm64 -",
		"ubuntu-24.04-preinstalled-server-riscv64.img.xz":  "ubuntu 24.04 riscv64 -",
		"ubuntu-noble.img":                                 "ubuntu 24.04 - -",
		"debian-12-genericcloud-amd64.qcow2":               "debian 12 amd64 -",
		"debian-12-genericcloud-amd64-20241110-1927.qcow2": "debian 12 amd64 2024-11-10",
		"debian-12.8.0-amd64-netinst.iso":                  "debian 12.8.0 amd64 -",
		"debian-12.8.0-amd64-DVD-1.iso":                    "debian 12.8.0 amd64 -",
		"debian-live-12.8.0-amd64-gnome+nonfree.iso":       "debian 12.8.0 amd64 -",
		"debian12.img":                                                  "debian 12 - -",
		"Debian-12-generic-000042.img":                                  "debian 12 - -",
		"20231001_bookworm_rpi.img.xz":                                  "debian 12 - 2023-10-01",
		"2024-11-19-raspios-bookworm-arm64-lite.img.xz":                 "debian 12 arm64 2024-11-19",
		"2024-11-19-raspios-bookworm-armhf.img.xz":                      "raspbian 12 armhf 2024-11-19",
		"2020-02-13-raspbian-buster-lite.img":                           "raspbian 10 - 2020-02-13",
		"raspios-lite.img":                                              "- - - -",
		"Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2":                 "fedora 41 amd64 -",
		"Fedora-Server-dvd-aarch64-41-1.4.iso":                          "fedora 41 arm64 -",
		"fedora-coreos-41.20241109.3.0-metal.x86_64.raw.xz":             "fedora 41 amd64 -",
		"openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2":              "opensuse-leap 15.6 amd64 -",
		"openSUSE-Tumbleweed-Minimal-VM.aarch64-Cloud.qcow2":            "opensuse-tumbleweed - arm64 -",
		"openSUSE-Tumbleweed-DVD-x86_64-Snapshot20241119-Media.iso":     "opensuse-tumbleweed - amd64 -",
		"alpine-standard-3.20.3-x86_64.iso":                             "alpine 3.20.3 amd64 -",
		"alpine-rpi-3.20.3-aarch64.img.gz":                              "alpine 3.20.3 arm64 -",
		"nocloud_alpine-3.20.3-x86_64-bios-cloudinit-r0.qcow2":          "alpine 3.20.3 amd64 -",
		"AlmaLinux-9-GenericCloud-9.4-20240507.x86_64.qcow2":            "almalinux 9.4 amd64 2024-05-07",
		"AlmaLinux-9-latest-x86_64-dvd.iso":                             "almalinux 9 amd64 -",
		"Rocky-9-GenericCloud-Base.latest.x86_64.qcow2":                 "rocky 9 amd64 -",
		"Rocky-9-GenericCloud-Base-9.4-20240609.0.x86_64.qcow2":         "rocky 9.4 amd64 2024-06-09",
		"CentOS-Stream-GenericCloud-9-20240318.0.x86_64.qcow2":          "centos 9 amd64 2024-03-18",
		"CentOS-7-x86_64-GenericCloud.qcow2":                            "centos 7 amd64 -",
		"rhel-9.4-x86_64-kvm.qcow2":                                     "rhel 9.4 amd64 -",
		"archlinux-2024.11.01-x86_64.iso":                               "arch - amd64 2024-11-01",
		"Arch-Linux-x86_64-cloudimg-20241115.279438.qcow2":              "arch - amd64 2024-11-15",
		"FreeBSD-14.1-RELEASE-amd64.qcow2":                              "freebsd 14.1 amd64 -",
		"FreeBSD-14.1-RELEASE-arm64-aarch64-RPI.img.xz":                 "freebsd 14.1 arm64 -",
		"NetBSD-10.0-amd64.iso":                                         "netbsd 10.0 amd64 -",
		"kali-linux-2024.3-installer-amd64.iso":                         "kali 2024.3 amd64 -",
		"nixos-minimal-24.05.5518.ecbc1ca8ffd6-x86_64-linux.iso":        "nixos 24.05 amd64 -",
		"haos_generic-x86-64-13.2.img.xz":                               "haos 13.2 amd64 -",
		"haos_rpi5-64-13.2.img.xz":                                      "haos 13.2 - -",
		"openwrt-23.05.5-x86-64-generic-ext4-combined.img.gz":           "openwrt 23.05.5 amd64 -",
		"openwrt-23.05.5-bcm27xx-bcm2711-rpi-4-squashfs-factory.img.gz": "openwrt 23.05.5 - -",
		"LibreELEC-RPi5.aarch64-12.0.1.img.gz":                          "libreelec 12.0 arm64 -",
		"cirros-0.6.2-x86_64-disk.img":                                  "cirros 0.6.2 amd64 -",
		"linuxmint-22-cinnamon-64bit.iso":                               "linuxmint 22 - -",
		"pop-os_22.04_amd64_intel_41.iso":                               "pop 22.04 amd64 -",
		"void-live-x86_64-20240314-base.iso":                            "void - amd64 2024-03-14",
		"Armbian_24.11.1_Rpi4b_bookworm_current_6.6.60_minimal.img.xz":  "debian 12 - -",

		// Nothing is guessed.
		"debian-12-amd64-i386-netinst.iso": "debian 12 - -",
		"ubuntu-22.04-to-24.04.img":        "ubuntu - - -",
		"debian-and-ubuntu.img":            "- - - -",
		"debian-11-bookworm.img":           "debian - - -",
		"ubuntu-bookworm.img":              "- - - -",
		"kali-linux-2024.3-bookworm.iso":   "- - - -",
		"2024-11-19-and-20241120.img":      "- - - -",
		"20249919.img":                     "- - - -",
		"noble.img":                        "- - - -",
		"focal-point.img":                  "- - - -",
		"disk.img":                         "- - - -",
		"arch.img":                         "- - - -",
		"void.img":                         "- - - -",
		"386.img":                          "- - - -",
		"ubuntu\u0130-24.04.img":           "- - - -",
		"12345678.img":                     "- - - -",
		"alpinelinux.img":                  "- - - -",
		"Fedora-KDE-1.4.img":               "fedora - - -",
	} {
		var f Fields
		if found := FromName(name); found != nil {
			f = *found
		}
		or := func(s string) string {
			if s == "" {
				return "-"
			}
			return s
		}
		got := strings.Join([]string{or(f.System), or(f.Version), or(f.Architecture), or(f.ReleaseDate)}, " ")
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if err := f.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFromName(f *testing.F) {
	f.Add("2024-11-19-raspios-bookworm-arm64-lite.img.xz")
	f.Add("x86_64.debian12.8.v-_.img")
	f.Fuzz(func(t *testing.T, name string) {
		if found := FromName(image.Name(name)); found != nil {
			if err := found.Check(); err != nil {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}

func BenchmarkFromName(b *testing.B) {
	for b.Loop() {
		FromName("AlmaLinux-9-GenericCloud-9.4-20240507.x86_64.qcow2")
	}
}
