package disk

import (
	"bytes"
	"errors"
	"slices"

	"imageroot/shared/boot"
)

// addBoot adds what firmware may start.
func (i *inspection) addBoot(kind BootKind, arch Architecture) {
	if b := (Boot{kind, arch}); !slices.Contains(i.Boot, b) {
		i.Boot = append(i.Boot, b)
	}
}

// efiPrograms are what firmware starts from a medium (UEFI specification, section 3.5.1.1).
var efiPrograms = []string{"BOOTX64.EFI", "BOOTIA32.EFI", "BOOTAA64.EFI", "BOOTARM.EFI", "BOOTRISCV64.EFI", "BOOTLOONGARCH64.EFI"}

// efi adds the EFI programs of a file system.
func (i *inspection) efi(what string, t tree) {
	const headBytes = 1024
	folder, err := walk(t, "EFI/BOOT")
	if errors.Is(err, errMissing) {
		return
	}
	for _, name := range efiPrograms {
		var n node
		var b []byte
		if err == nil {
			n, err = t.lookup(folder, name)
		}
		if err == nil && n.kind == file {
			b, err = t.read(n, headBytes)
		}
		switch arch := peArchitecture(b); {
		case errors.Is(err, errMissing):
			err = nil
		case err != nil:
			i.unknown("the EFI programs of "+what, err)
			return
		case arch != "":
			i.addBoot(EFI, arch)
		}
	}
}

// raspberryPi adds a Raspberry Pi if its files are in a file system.
func (i *inspection) raspberryPi(what string, t tree) {
	found, err := has(t, "config.txt")
	if err == nil && found {
		// The models from 5 on have their firmware in a memory of their own.
		found, err = has(t, "start.elf", "start4.elf", "bootcode.bin", "bcm2712-rpi-5-b.dtb", "kernel_2712.img")
	}
	i.unknown("the Raspberry Pi firmware of "+what, err)
	if found {
		i.addBoot(RaspberryPi, "")
	}
}

// uBootFiles adds U-Boot if there are files in a file system that it reads.
func (i *inspection) uBootFiles(what string, t tree) {
	script, err := has(t, "boot.scr", "boot/boot.scr")
	i.unknown("the U-Boot scripts of "+what, err)
	if script {
		i.addBoot(UBoot, "")
	}
	extlinux, err := has(t, "extlinux/extlinux.conf", "boot/extlinux/extlinux.conf")
	i.unknown("extlinux.conf of "+what, err)
	i.extlinux = i.extlinux || extlinux
}

// x86 reports whether the disk is for machines with a BIOS.
func (i *inspection) x86() bool {
	return i.Architecture == AMD64 || i.Architecture == I386
}

// uBootAt are where boards expect U-Boot, with what it has there: its documentation (doc/board)
// has the offsets. window is the number of bytes in which the mark is.
var uBootAt = []struct {
	off    int64
	window int
	magic  string
	mark   string
}{
	{8 << 10, 64, "", "eGON.BT0"}, // Allwinner
	{128 << 10, 64, "", "eGON.BT0"},
	{8 << 20, 4096, "\xd0\x0d\xfe\xed", "U-Boot"},   // Rockchip
	{40 << 10, 4096, "", "U-Boot"},                  // Allwinner: after SPL
	{69 << 10, 4096, "\x27\x05\x19\x56", "U-Boot"},  // i.MX 6
	{384 << 10, 4096, "\xd0\x0d\xfe\xed", "U-Boot"}, // i.MX 8M
}

func (i *inspection) keepUBoot() {
	for _, u := range uBootAt {
		i.disk.keep(u.off, int64(u.window))
	}
}

// uBoot adds a U-Boot outside file systems, or one that reads an extlinux.conf, which Syslinux
// reads on machines with a BIOS.
func (i *inspection) uBoot() {
	if i.extlinux && i.Architecture != "" && !i.x86() {
		i.addBoot(UBoot, "")
	}
	for _, u := range uBootAt {
		b, err := i.disk.upTo(u.off, u.window)
		if err != nil && !errors.Is(err, errEnd) {
			i.unknown("U-Boot", err)
			return
		}
		if bytes.HasPrefix(b, []byte(u.magic)) && bytes.Contains(b, []byte(u.mark)) {
			i.addBoot(UBoot, "")
			return
		}
	}
}

// firmwareOf adds what the boot code, the partition table and the boot catalog are for.
func (i *inspection) firmwareOf() {
	found, err := boot.Inspect(i.disk)
	if err != nil {
		i.unknown("the boot code", err)
		return
	}
	// The tool that makes a table may add code that no machine of this kind runs.
	if found.Code && (i.Architecture == "" || i.x86()) {
		i.addBoot(BIOS, "")
	}
	if found.CD.BIOS {
		i.addBoot(ElTorito, "")
	}
	if found.CD.UEFI {
		image := i.disk.sub(found.CDImage, i.disk.size)
		if t, err := openFAT(image); err != nil {
			i.unknown("the file system of the boot catalog", err)
		} else {
			i.efi("the boot catalog", t)
		}
	}
}
