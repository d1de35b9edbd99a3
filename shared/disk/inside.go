// Package disk inspects a disk: its partition table, file systems, boot loaders, and the
// operating system in it. It reads what strangers have made, so each of its parsers reads
// a bounded number of bytes and takes nothing for granted. What it cannot read is unknown:
// it does not guess.
package disk

// Inside is what an inspection found in a disk. A field with its zero value is unknown,
// unless its comment says otherwise.
type Inside struct {
	// Inspector is the version of the inspection, see [Version].
	Inspector int `json:"inspector"`
	// Table is the kind of the partition table.
	Table Table `json:"table,omitempty"`
	// SectorBytes is the size of the sectors in which the partition table counts; 0 if
	// there is none.
	SectorBytes int `json:"sector_bytes,omitempty"`
	// Partitions are in the order of the table. A disk without a table, or an ISO 9660
	// image, has its file system as number 0.
	Partitions []Partition `json:"partitions,omitempty"`
	// Boot is what firmware may start.
	Boot []Boot `json:"boot,omitempty"`
	// System, Version, Codename and Title are ID, VERSION_ID, VERSION_CODENAME and
	// PRETTY_NAME of os-release(5), or those that an ISO 9660 image states of itself.
	System   string `json:"system,omitempty"`
	Version  string `json:"version,omitempty"`
	Codename string `json:"codename,omitempty"`
	Title    string `json:"title,omitempty"`
	// Architecture is of the programs of the system.
	Architecture Architecture `json:"architecture,omitempty"`
	// CloudInit reports whether cloud-init is installed; nil: unknown.
	CloudInit *bool `json:"cloud_init,omitempty"`
	// ReleaseDate is the day on which the image was made, as the image states it:
	// YYYY-MM-DD.
	ReleaseDate string `json:"release_date,omitempty"`
	// SBOM is the path of a file or a directory with a list of the software in the root file
	// system.
	SBOM string `json:"sbom,omitempty"`
	// Partial reports that the disk was read in order, as a [Stream] does, and that an
	// inspection of the expanded disk finds more.
	Partial bool `json:"partial,omitempty"`
	// Unknown are sentences about what could not be read.
	Unknown []string `json:"unknown,omitempty"`
}

// Version is the version of the inspection. It is incremented if an inspection may find
// more than before, so that contents that were inspected earlier are inspected again.
const Version = 1

// A Table is a kind of partition table.
type Table string

// The kinds of partition tables. ISO9660 is that of an ISO 9660 image, which may also have
// one of the others, for firmware that reads it from another medium than a CD.
const (
	GPT     Table = "gpt"
	MBR     Table = "mbr"
	ISO9660 Table = "iso9660"
	None    Table = "none"
)

// A Partition is a part of the disk.
type Partition struct {
	Number int `json:"number"`
	// Type is a GUID in upper case in a GUID partition table, and two lower case
	// hexadecimal digits in a master boot record.
	Type       string `json:"type,omitempty"`
	Label      string `json:"label,omitempty"` // in the table
	StartBytes int64  `json:"start_bytes"`
	SizeBytes  int64  `json:"size_bytes"`
	// Filesystem is the name by which blkid(8) calls what the partition holds: "ext4",
	// "vfat", "swap", "crypto_LUKS", "LVM2_member".
	Filesystem string `json:"filesystem,omitempty"`
	FSLabel    string `json:"fs_label,omitempty"`
}

// Boot is something that a kind of firmware starts. Arch is the one of its program.
type Boot struct {
	Kind BootKind     `json:"kind"`
	Arch Architecture `json:"arch,omitempty"`
}

// A BootKind is a kind of firmware, or of a boot loader that firmware finds.
type BootKind string

// The kinds of Boot.
const (
	BIOS        BootKind = "bios"
	EFI         BootKind = "efi"
	ElTorito    BootKind = "eltorito" // a CD with boot entries
	RaspberryPi BootKind = "raspberrypi"
	UBoot       BootKind = "uboot"
)

// An Architecture is one as Debian names it.
type Architecture string

// The architectures that an inspection tells apart.
const (
	AMD64   Architecture = "amd64"
	ARM64   Architecture = "arm64"
	ARMHF   Architecture = "armhf"
	ARMEL   Architecture = "armel"
	I386    Architecture = "i386"
	RISCV64 Architecture = "riscv64"
	PPC64EL Architecture = "ppc64el"
	S390X   Architecture = "s390x"
	Loong64 Architecture = "loong64"
)
