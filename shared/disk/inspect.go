package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"imageroot/shared/guard"
)

// An Unpacker returns what is packed, or more than limit bytes of it. Its error says that
// what is packed is damaged or cannot be read.
type Unpacker func(packed []byte, limit int) ([]byte, error)

// ErrMethod is the error of an [Unpacker] for what is packed in a way that it does not know.
var ErrMethod error = fault("it is compressed in a way that is not read")

// Unread returns what is known of a disk that could not be read to its end.
func Unread() *Inside {
	return &Inside{Inspector: Version, Partial: true, Unknown: []string{"the image was not read to its end"}}
}

// Inspect inspects the disk of size bytes in r. It reads at most that many blocks of 64 KiB,
// and holds two MiB of them. xz unpacks the blocks of a squashfs; nil: those with xz are not
// read. The error is r's, except io.EOF: what was found before is returned with it.
func Inspect(r io.ReaderAt, size int64, reads int, xz Unpacker) (Inside, error) {
	s := &source{r: r, size: size, left: reads}
	in := inspect(s, xz)
	in.measure(size)
	return in, s.err
}

// An inspection is that of one disk.
type inspection struct {
	*source
	Inside
	disk    span
	xz      Unpacker
	systems []found
	// iso is true for an ISO 9660 image, extlinux if there is an extlinux.conf.
	iso, extlinux bool
}

// A found is what was found of a system.
type found struct {
	where string
	Inside
}

func inspect(s *source, xz Unpacker) Inside {
	i := &inspection{source: s, Inside: Inside{Inspector: Version}, disk: s.all(), xz: xz}
	if err := guard.Call(func() error { i.run(); return nil }); err != nil {
		i.Unknown = append(i.Unknown, "the inspection of what follows failed")
	}
	return i.Inside
}

func (i *inspection) run() {
	i.keepUBoot()
	magic, err := i.disk.bytes(16*isoSector+1, 5)
	i.iso = err == nil && string(magic) == "CD001"
	var parts []part
	i.Table, i.SectorBytes, parts = i.partitions()
	switch {
	case i.Table == "":
		return
	case i.iso:
		i.Table = ISO9660
	}
	if i.iso || i.Table == None {
		parts = append([]part{{span: i.disk}}, parts...)
	}
	order := make([]*part, len(parts))
	for n := range parts {
		order[n] = &parts[n]
	}
	slices.SortStableFunc(order, func(a, b *part) int { return cmp.Compare(a.StartBytes, b.StartBytes) })
	for n, p := range order {
		p.keep(0, partitionBytes)
		if n >= maxInspected {
			i.unknown(p.what(), errTooLarge)
			break
		}
	}
	for _, p := range order[:min(len(order), maxInspected)] {
		i.partition(p)
	}
	for _, p := range parts {
		i.Partitions = append(i.Partitions, p.Partition)
	}
	i.settle()
	i.uBoot()
	i.firmwareOf()
	i.byFirmware()
}

// what returns the name of a partition in a sentence.
func (p *part) what() string {
	if p.Number == 0 {
		return "the disk"
	}
	return fmt.Sprintf("partition %d", p.Number)
}

// partition inspects the file system of a partition.
func (i *inspection) partition(p *part) {
	switch p.Type {
	case "05", "0f", "85", "ee": // it has others in it
		return
	}
	fs, label, err := recognise(p.span)
	if err != nil {
		i.unknown(p.what(), err)
	}
	if fs == nil {
		return
	}
	p.Filesystem, p.FSLabel = fs.name, label
	switch {
	case fs.why != "":
		i.say("%s has %s: %s", p.what(), fs.name, fs.why)
		return
	case fs.open == nil || i.iso && p.Number > 0 && p.StartBytes == 0:
		return
	}
	t, err := fs.open(p.span, i.xz)
	if err != nil {
		i.unknown(p.what(), err)
		return
	}
	switch t := t.(type) {
	case *iso:
		i.medium(t)
	case *fat:
		i.raspberryPi(p.what(), t)
		i.uBootFiles(p.what(), t)
		i.efi(p.what(), t)
	default:
		i.system(p.what(), t)
		i.uBootFiles(p.what(), t)
	}
}

// system adds the system in a root file system, or in that of its /usr. It reports whether
// there is one.
func (i *inspection) system(what string, t tree) bool {
	var b []byte
	for _, path := range []string{"etc/os-release", "usr/lib/os-release", "lib/os-release"} {
		if b = i.stated(what, t, path); b != nil {
			break
		}
	}
	vars := parseOSRelease(b)
	if vars["ID"] == "" && vars["NAME"] == "" {
		return false
	}
	in := Inside{System: identifier(vars["ID"]), Version: vars["VERSION_ID"], Codename: vars["VERSION_CODENAME"], Title: vars["PRETTY_NAME"]}
	in.ReleaseDate = cmp.Or(day(vars["IMAGE_VERSION"]), day(vars["BUILD_ID"]))
	if b := i.stated(what, t, "etc/rpi-issue"); b != nil {
		in.ReleaseDate = cmp.Or(day(strings.TrimPrefix(string(b), "Raspberry Pi reference ")), in.ReleaseDate)
	}
	if b := i.stated(what, t, "etc/cloud/build.info"); b != nil {
		_, serial, _ := strings.Cut(string(b), "serial: ")
		in.ReleaseDate = cmp.Or(day(serial), in.ReleaseDate)
	}
	in.Architecture = i.programs(what, t)
	cloudInit, err := has(t, "usr/bin/cloud-init", "bin/cloud-init", "usr/local/bin/cloud-init")
	if err == nil {
		in.CloudInit = &cloudInit
	}
	i.unknown("whether "+what+" has cloud-init", err)
	for _, path := range []string{"usr/share/sbom", "usr/local/share/sbom", "var/lib/db/sbom"} {
		switch ok, err := has(t, path); {
		case err != nil:
			i.unknown("/"+path+" of "+what, err)
		case ok:
			in.SBOM = "/" + path
		}
	}
	i.add(what, in)
	return true
}

// programs returns the architecture of the programs of a system.
func (i *inspection) programs(what string, t tree) Architecture {
	const headBytes = 64
	for _, path := range []string{"usr/bin/env", "bin/ls", "bin/sh", "bin/busybox", "sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd"} {
		b, err := readFile(t, path, headBytes)
		if arch := elfArchitecture(b); arch != "" {
			return arch
		}
		i.unknown("/"+path+" of "+what, err)
	}
	return ""
}

func (i *inspection) add(where string, in Inside) { i.systems = append(i.systems, found{where, in}) }

// settle takes over what was found of the system. Copies of one, as updates have them, are
// the same system.
func (i *inspection) settle() {
	if len(i.systems) == 0 {
		return
	}
	first := i.systems[0]
	for _, s := range i.systems[1:] {
		if s.System != first.System || s.Version != first.Version || s.Architecture != first.Architecture {
			i.say("%s has %s, and %s has %s: which of them starts is not known", first.where, first.name(), s.where, s.name())
			return
		}
	}
	i.System, i.Version, i.Codename, i.Title = first.System, first.Version, first.Codename, first.Title
	i.Architecture, i.CloudInit, i.ReleaseDate, i.SBOM = first.Architecture, first.CloudInit, first.ReleaseDate, first.SBOM
}

// name returns the name of a system in a sentence.
func (f *found) name() string {
	return strings.TrimSpace(cmp.Or(f.Title, f.System+" "+f.Version) + " " + string(f.Architecture))
}

// byFirmware takes the architecture of the EFI programs if that of others is not known. One of
// 32 bits may start a system of 64.
func (i *inspection) byFirmware() {
	if i.Architecture != "" || len(i.systems) > 1 {
		return
	}
	for _, b := range i.Boot {
		switch b.Arch {
		case AMD64, ARM64, RISCV64, Loong64:
			if i.Architecture != "" {
				i.Architecture = "" // for several
				return
			}
			i.Architecture = b.Arch
		}
	}
}

const maxUnknown = 16

// say adds a sentence about what is unknown.
func (i *inspection) say(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); len(i.Unknown) < maxUnknown && !slices.Contains(i.Unknown, s) {
		i.Unknown = append(i.Unknown, s)
	}
}

// unknown says that something cannot be read, if err is not about its absence. An error of
// the source is told by [Inspect].
func (i *inspection) unknown(what string, err error) {
	if f, ok := errors.AsType[fault](err); ok {
		i.say("%s cannot be read: %s", what, string(f))
	} else if errors.Is(err, errPassed) {
		i.Partial = true
	}
}

// measure adds the size of the disk.
func (in *Inside) measure(size int64) {
	for n := range in.Partitions {
		p := &in.Partitions[n]
		if p.Number == 0 {
			p.SizeBytes = size
		}
		if p.SizeBytes > size-p.StartBytes && len(in.Unknown) < maxUnknown {
			in.Unknown = append(in.Unknown, fmt.Sprintf("the disk of %d bytes ends before partition %d does", size, p.Number))
		}
	}
	if in.Partial {
		in.Unknown = append(in.Unknown, "a compressed disk is inspected while it passes once, and some of what was needed had passed: expanding it tells more")
	}
}
