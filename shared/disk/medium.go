package disk

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// medium adds what an installation or live medium says of itself.
func (i *inspection) medium(t *iso) {
	const what = "the ISO image"
	if b := i.stated(what, t, ".disk/info"); b != nil && i.diskInfo(string(b)) {
		return
	}
	for _, path := range liveSystems {
		n, err := walk(t, path)
		if err != nil || n.kind != file {
			i.unknown(path, err)
			continue
		}
		live, err := openSquash(t.content(n), i.xz)
		if err != nil {
			i.unknown(path, err)
			continue
		}
		if i.system(path, live) {
			return
		}
	}
	if b := i.stated(what, t, ".treeinfo"); b != nil && i.treeInfo(string(b)) {
		return
	}
	for _, v := range volumes {
		if m := v.form.FindStringSubmatch(t.volume); m != nil {
			i.add(what, Inside{System: v.system, Version: m[v.form.SubexpIndex("version")], Title: v.name + " " + m[v.form.SubexpIndex("version")], Architecture: rpmArchitectures[m[v.form.SubexpIndex("arch")]]})
			return
		}
	}
}

// stated returns the beginning of a file, or nil if it is not there.
func (i *inspection) stated(what string, t tree, path string) []byte {
	b, err := readFile(t, path, maxStated)
	i.unknown("/"+path+" of "+what, err)
	return b
}

const maxStated = 64 << 10

// liveSystems are where media have the root file system of what they start.
var liveSystems = []string{
	"casper/filesystem.squashfs", "casper/minimal.squashfs", "casper/ubuntu-server-minimal.squashfs", "live/filesystem.squashfs",
	"LiveOS/squashfs.img", "arch/x86_64/airootfs.sfs", "images/install.img",
}

// diskInfoForm is that of .disk/info, as debian-cd and Ubuntu write it:
//
//	Debian GNU/Linux 12.7.0 "Bookworm" - Official amd64 NETINST with firmware 20240831-10:38
//	Ubuntu-Server 24.04.1 LTS "Noble Numbat" - Release amd64 (20240827)
var diskInfoForm = regexp.MustCompile(`^((\D+) (\d[0-9.]*|testing|unstable)(?: LTS)?) "(\w+)[^"]*" - (?:[A-Za-z]+ )*?(amd64|arm64|armhf|armel|i386|riscv64|ppc64el|s390x|loong64)\b.*?\b(\d{8})\b`)

// diskInfoSystems are the IDs of the systems that have the file, by the name in it.
var diskInfoSystems = map[string]string{
	"Debian GNU/Linux": "debian", "Ubuntu": "ubuntu", "Kubuntu": "ubuntu", "Xubuntu": "ubuntu", "Lubuntu": "ubuntu", "Edubuntu": "ubuntu",
	"Linux Mint": "linuxmint", "Raspbian GNU/Linux": "raspbian",
}

func (i *inspection) diskInfo(s string) bool {
	line, _, _ := strings.Cut(s, "\n")
	m := diskInfoForm.FindStringSubmatch(clean(line))
	if m == nil {
		return false
	}
	system, _, _ := strings.Cut(m[2], "-") // and the edition
	if system = diskInfoSystems[system]; system == "" {
		return false
	}
	version := m[3]
	if strings.Trim(version, "0123456789.") != "" {
		version = "" // which one it will be is not known
	}
	i.add("/.disk/info", Inside{System: system, Version: version, Codename: strings.ToLower(m[4]), Title: m[1], Architecture: Architecture(m[5]), ReleaseDate: day(m[6])})
	return true
}

// families are the systems whose media have a .treeinfo
// (https://productmd.readthedocs.io/en/latest/treeinfo-1.2.html), by their family.
var families = map[string]string{
	"Fedora": "fedora", "Red Hat Enterprise Linux": "rhel", "CentOS Stream": "centos", "AlmaLinux": "almalinux", "Rocky Linux": "rocky", "Rocky": "rocky",
}

func (i *inspection) treeInfo(s string) bool {
	general, section := map[string]string{}, ""
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		name, value, _ := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case section == "[general]":
			general[strings.TrimSpace(name)] = clean(strings.TrimSpace(value))
		}
	}
	system := families[general["family"]]
	if system == "" {
		return false
	}
	in := Inside{System: system, Version: general["version"], Title: general["name"], Architecture: rpmArchitectures[general["arch"]]}
	if seconds, err := strconv.ParseFloat(general["timestamp"], 64); err == nil && seconds > 0 && seconds < 1<<32 {
		in.ReleaseDate = time.Unix(int64(seconds), 0).UTC().Format(time.DateOnly)
	}
	i.add("/.treeinfo", in)
	return true
}

// rpmArchitectures are the architectures by their names in RPM and Alpine.
var rpmArchitectures = map[string]Architecture{
	"x86_64": AMD64, "aarch64": ARM64, "i386": I386, "i686": I386, "x86": I386, "armhfp": ARMHF, "armv7": ARMHF, "armhf": ARMHF,
	"ppc64le": PPC64EL, "s390x": S390X, "riscv64": RISCV64, "loongarch64": Loong64,
}

// volumes are the systems that nothing but the name of the volume tells.
var volumes = []struct {
	form         *regexp.Regexp
	system, name string
}{
	{regexp.MustCompile(`^alpine-\S+ v?(?P<version>\d+\.\d\S*) (?P<arch>\w+)$`), "alpine", "Alpine Linux"},
	{regexp.MustCompile(`^Fedora-[\w-]*?-(?:(?P<arch>x86_64|aarch64|ppc64le|s390x)-)?(?P<version>\d\d)(?:-|$)`), "fedora", "Fedora Linux"},
}
