package metadata

// raspios stands for Raspberry Pi OS, which has the ID of the system that it is built from.
const raspios = "raspios"

// A system is a row of the table of systems.
type system struct {
	id    string   // as ID in os-release(5)
	words []string // in names of its images, one after another
	// A version has this number of digits before the first dot, from the first to the
	// second, and this number of parts between dots; what follows is no part of it. Zero:
	// images have no version, or one that is not in os-release.
	major, parts [2]int
}

var systems = []*system{
	{"almalinux", []string{"almalinux"}, [2]int{1, 2}, [2]int{1, 2}},
	{"alpine", []string{"alpine"}, [2]int{1, 1}, [2]int{2, 3}},
	{"arch", []string{"archlinux"}, [2]int{}, [2]int{}},
	{"arch", []string{"arch", "linux"}, [2]int{}, [2]int{}},
	{"centos", []string{"centos"}, [2]int{1, 2}, [2]int{1, 1}},
	{"cirros", []string{"cirros"}, [2]int{1, 1}, [2]int{2, 3}},
	{"debian", []string{"debian"}, [2]int{1, 2}, [2]int{1, 3}},
	{"fedora", []string{"fedora"}, [2]int{2, 2}, [2]int{1, 1}},
	{"flatcar", []string{"flatcar"}, [2]int{}, [2]int{}},
	{"freebsd", []string{"freebsd"}, [2]int{1, 2}, [2]int{2, 2}},
	{"gentoo", []string{"gentoo"}, [2]int{}, [2]int{}},
	{"haos", []string{"haos"}, [2]int{1, 2}, [2]int{2, 2}},
	{"kali", []string{"kali", "linux"}, [2]int{4, 4}, [2]int{2, 2}},
	{"libreelec", []string{"libreelec"}, [2]int{1, 2}, [2]int{2, 2}},
	{"linuxmint", []string{"linuxmint"}, [2]int{2, 2}, [2]int{1, 2}},
	{"netbsd", []string{"netbsd"}, [2]int{1, 2}, [2]int{2, 2}},
	{"nixos", []string{"nixos"}, [2]int{2, 2}, [2]int{2, 2}},
	{"openbsd", []string{"openbsd"}, [2]int{1, 1}, [2]int{2, 2}},
	{"opensuse-leap", []string{"opensuse", "leap"}, [2]int{2, 2}, [2]int{2, 2}},
	{"opensuse-microos", []string{"opensuse", "microos"}, [2]int{}, [2]int{}},
	{"opensuse-tumbleweed", []string{"opensuse", "tumbleweed"}, [2]int{}, [2]int{}},
	{"openwrt", []string{"openwrt"}, [2]int{2, 2}, [2]int{2, 3}},
	{"pop", []string{"pop", "os"}, [2]int{2, 2}, [2]int{2, 2}},
	{raspios, []string{"raspios"}, [2]int{}, [2]int{}},
	{"raspbian", []string{"raspbian"}, [2]int{}, [2]int{}},
	{"rhel", []string{"rhel"}, [2]int{1, 2}, [2]int{1, 2}},
	{"rocky", []string{"rocky"}, [2]int{1, 2}, [2]int{1, 2}},
	{"ubuntu", []string{"ubuntu"}, [2]int{2, 2}, [2]int{2, 3}},
	{"void", []string{"void", "live"}, [2]int{}, [2]int{}},
}

// systemsBy has the systems by their first word.
var systemsBy = func() map[string][]*system {
	by := map[string][]*system{}
	for _, s := range systems {
		by[s.words[0]] = append(by[s.words[0]], s)
	}
	return by
}()

// A codename is that of a version of a system.
type codename struct{ system, version string }

var codenames = map[string]codename{
	"stretch": {"debian", "9"}, "buster": {"debian", "10"}, "bullseye": {"debian", "11"}, "bookworm": {"debian", "12"},
	"trixie": {"debian", "13"}, "forky": {"debian", "14"},
	"bionic": {"ubuntu", "18.04"}, "focal": {"ubuntu", "20.04"}, "jammy": {"ubuntu", "22.04"}, "noble": {"ubuntu", "24.04"},
	"oracular": {"ubuntu", "24.10"}, "plucky": {"ubuntu", "25.04"}, "questing": {"ubuntu", "25.10"}, "resolute": {"ubuntu", "26.04"},
}
