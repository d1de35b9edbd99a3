package e2e

import (
	"bytes"
	"context"
	endian "encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"imageroot/test/need"
)

// The firmware of Debian's package ovmf.
const (
	firmware  = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	variables = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// A machine is one that qemu emulates, without KVM.
type machine struct {
	t     *testing.T
	keys  io.Writer
	ended chan struct{}

	mu     sync.Mutex
	screen []byte // what the serial port has shown
	seen   int    // bytes of screen that see has passed
}

// startMachine starts a machine with a network card, whose network has this machine as
// 10.0.2.2. It is killed when the test ends.
func startMachine(t *testing.T, args ...string) *machine {
	t.Helper()
	need.Programs(t, "qemu-system-x86_64")
	const most = 10 * time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), most)
	args = append([]string{"-accel", "tcg", "-m", "512", "-nodefaults", "-nographic", "-monitor", "none", "-serial", "stdio", "-no-reboot"}, args...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m := &machine{t: t, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = m, m
	var err error
	if m.keys, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-m.ended
	})
	return m
}

// Write adds what the serial port shows.
func (m *machine) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.screen = append(m.screen, p...)
	return len(p), nil
}

// see waits until the serial port has shown words, after those that were seen before.
func (m *machine) see(words string) {
	m.t.Helper()
	eventually(m.t, 5*time.Minute, "the machine says "+words, func() error {
		ended := false
		select {
		case <-m.ended:
			ended = true
		default:
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if i := bytes.Index(m.screen[m.seen:], []byte(words)); i >= 0 {
			m.seen += i + len(words)
			return nil
		}
		err := fmt.Errorf("it has said: %s", bytes.ReplaceAll(m.screen, []byte("\x1b"), []byte("\n")))
		if ended {
			m.t.Fatalf("the machine has ended; %v", err)
		}
		return err
	})
}

// press presses keys.
func (m *machine) press(keys string) {
	m.t.Helper()
	if _, err := io.WriteString(m.keys, keys); err != nil {
		m.t.Fatal(err)
	}
}

const down, enter = "\x1b[B", "\r"

// network returns the arguments for a network card with Debian's iPXE in its ROM, to which
// DHCP gives a URL.
func (s *Server) network(path string) []string {
	return []string{"-netdev", "user,id=net,bootfile=" + s.forMachines(path), "-device", "e1000,netdev=net,bootindex=0"}
}

// forMachines returns the URL of a path as a machine reaches it.
func (s *Server) forMachines(path string) string {
	return strings.Replace(s.Pages, "127.0.0.1", "10.0.2.2", 1) + path
}

// biosDisk returns a disk whose boot code reads a sector in the middle of it by the BIOS, and
// writes the words in that to the serial port.
func biosDisk(words string) []byte {
	const sector = 4000
	disk := make([]byte, 16<<20) // iPXE boots nothing smaller than a cylinder of 8 MiB
	copy(disk, "\xfc"+           //           cld
		"\x31\xc0\x8e\xd8\x8e\xd0"+ // ax, ds, ss = 0
		"\xbc\x00\x7c"+ //             sp = 0x7c00
		"\xbe\x24\x7c"+ //             si = the packet below
		"\xb4\x42\xcd\x13"+ //         extended read of the drive in dl (int 0x13)
		"\x72\x0e"+ //                 if that failed, halt
		"\xbe\x00\x7e\xba\xf8\x03"+ // si = the sector that was read, dx = the first serial port
		"\xac\x84\xc0\x74\x03"+ //     next: al = the next byte; if that is 0, halt
		"\xee\xeb\xf8"+ //             out dx, al; to next
		"\xf4\xeb\xfd"+ //             halt
		"\x10\x00\x01\x00\x00\x7e\x00\x00"+ // one sector to 0x7e00
		string(endian.LittleEndian.AppendUint64(nil, sector)))
	copy(disk[510:], "\x55\xaa")
	copy(disk[sector*512:], words)
	return disk
}

// uefiDisk makes a disk with an EFI system partition, whose program writes words to the
// serial port.
func uefiDisk(t *testing.T, path, words string) {
	t.Helper()
	need.Programs(t, "sfdisk", "mkfs.vfat", "mmd", "mcopy")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "BOOTX64.EFI"), efiProgram(words), 0o600); err != nil {
		t.Fatal(err)
	}
	err := sh(t, dir, "truncate -s 8M disk; echo 'label: gpt\n,,U\n' | sfdisk -q disk; mkfs.vfat --offset 2048 disk 7100 >mkfs.out; "+
		"mmd -i disk@@1M ::EFI ::EFI/BOOT; mcopy -i disk@@1M BOOTX64.EFI ::EFI/BOOT/; mv disk '"+path+"'")
	if err != nil {
		t.Fatal(err)
	}
}

// efiProgram returns a program of UEFI (PE32+ for x86-64) that writes words to the serial
// port and halts.
func efiProgram(words string) []byte {
	const alignment, at = 512, 0x1000
	code := "\xfc" + //                      cld
		"\x66\xba\xf8\x03" + //              dx = the first serial port
		"\x48\x8d\x35\x0b\x00\x00\x00" + //  rsi = the words, which follow the code
		"\xac\x84\xc0\x74\x03\xee\xeb\xf8" + // as in biosDisk
		"\xf4\xeb\xfd" + words
	le := endian.LittleEndian
	b := append(append([]byte("MZ"), make([]byte, 58)...), 64, 0, 0, 0)
	b = append(b, "PE\x00\x00\x64\x86\x01\x00"...)               // one section
	b = append(b, make([]byte, 12)...)                           //
	b = append(b, 160, 0, 0x22, 0)                               // size of what follows; an executable
	b = append(b, 0x0b, 0x02, 0, 0)                              // PE32+
	for _, n := range []uint32{alignment, 0, 0, at, at, at, 0} { // sizes, entry, base of the code, image base
		b = le.AppendUint32(b, n)
	}
	b = le.AppendUint32(b, at)
	b = le.AppendUint32(b, alignment)
	b = append(b, make([]byte, 16)...)
	for _, n := range []uint32{2 * at, alignment, 0, 10} { // size of the image and of the headers, checksum, an application
		b = le.AppendUint32(b, n)
	}
	for range 4 {
		b = le.AppendUint64(b, 1<<16)
	}
	b = append(le.AppendUint32(append(b, 0, 0, 0, 0), 6), make([]byte, 48)...)
	b = append(b, ".text\x00\x00\x00"...)
	for _, n := range []uint32{alignment, at, alignment, alignment, 0, 0, 0, 0xe0000020} {
		b = le.AppendUint32(b, n)
	}
	b = append(b, make([]byte, alignment-len(b))...)
	b = append(b, code...)
	return append(b, make([]byte, 2*alignment-len(b))...)
}

// bootVariables makes a file with the variables of a UEFI firmware that boots a URL: those
// that OVMF ships, and an entry as a user makes one in the menu of a firmware (UEFI
// specification, sections 3.1.3 and 10.3.4.23; EDK II, AuthenticatedVariableFormat.h).
func bootVariables(t *testing.T, path, url string) {
	t.Helper()
	b, err := os.ReadFile(variables)
	if err != nil {
		t.Fatalf("make deps installs it: %v", err)
	}
	const storeHeader, header = 28, 60
	le := endian.LittleEndian
	at := int(le.Uint16(b[0x30:])) + storeHeader
	for le.Uint16(b[at:]) == 0x55aa {
		at += (header + int(le.Uint32(b[at+36:])+le.Uint32(b[at+40:])) + 3) &^ 3
	}
	utf := func(s string) (b []byte) {
		for _, c := range utf16.Encode([]rune(s + "\x00")) {
			b = le.AppendUint16(b, c)
		}
		return b
	}
	add := func(name string, data []byte) {
		v := make([]byte, header-16)
		le.PutUint16(v, 0x55aa)
		v[2], v[4] = 0x3f, 7 // it exists, is kept, and programs may read it
		le.PutUint32(v[36:], uint32(len(utf(name))))
		le.PutUint32(v[40:], uint32(len(data)))
		v = append(v, "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"...) // of the specification's variables
		v = append(append(v, utf(name)...), data...)
		copy(b[at:], v)
		at += (len(v) + 3) &^ 3
	}
	device := append(le.AppendUint16([]byte{3, 24}, uint16(4+len(url))), url+"\x7f\xff\x04\x00"...)
	option := le.AppendUint16([]byte{1, 0, 0, 0}, uint16(len(device)))
	add("Boot0000", append(append(option, utf("net")...), device...))
	add("BootOrder", []byte{0, 0})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// uefi returns the arguments for a machine with UEFI whose variables are in a file.
func uefi(file string) []string {
	return []string{
		"-machine", "q35", "-drive", "if=pflash,format=raw,readonly=on,file=" + firmware, "-drive", "if=pflash,format=raw,file=" + file,
	}
}

// bootable starts a server with images, and waits until its menu has all of them.
func bootable(t *testing.T, names ...string) (*Server, *maker) {
	t.Helper()
	needsPlainFiles(t)
	s, m := Start(t, Options{}), newMaker(t)
	for _, name := range names {
		if strings.HasPrefix(name, "uefi") {
			uefiDisk(t, m.path("raw"), "WORDS OF "+name+"\r\n")
		} else if err := os.WriteFile(m.path("raw"), biosDisk("WORDS OF "+name+"\r\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		pack := map[string]string{".zst": "zstd -qc raw >x", ".qcow2": "qemu-img convert -c -f raw -O qcow2 raw x"}[filepath.Ext(name)]
		if pack == "" {
			pack = "cp raw x"
		}
		s.Put(t, name, m.make(pack))
	}
	eventually(t, within, "all images are in the menu", func() error {
		menu := string(s.get(t, "/boot.ipxe").Must(t, 200).Body)
		for _, name := range names {
			if !strings.Contains(menu, " "+name+" ") {
				return fmt.Errorf("%s is not in %s", name, menu)
			}
		}
		return nil
	})
	return s, m
}

// TestDeepBootBIOS boots machines without disks, by the menu and by the script of an image.
func TestDeepBootBIOS(t *testing.T) {
	s, _ := bootable(t, "a.img.zst", "b.qcow2", "c.img")
	t.Run("a compressed image by the menu", func(t *testing.T) {
		m := startMachine(t, s.network("/boot.ipxe")...)
		m.see("images that can boot: 3")
		m.see("next device of this machine")
		m.press(enter)
		m.see("its disk is being made")
		m.see("Booting a.img.zst")
		m.see("WORDS OF a.img.zst")
	})
	t.Run("a qcow2 image by a search", func(t *testing.T) {
		m := startMachine(t, s.network("/boot.ipxe")...)
		m.see("next device of this machine")
		m.press(strings.Repeat(down, 3) + enter)
		m.see("Part of the name")
		m.press("QCOW" + enter)
		m.see("images that can boot: 1")
		m.see("next device of this machine")
		m.press(enter)
		m.see("WORDS OF b.qcow2")
	})
	t.Run("a plain image by its name", func(t *testing.T) {
		m := startMachine(t, s.network("/boot/c.img.ipxe")...)
		m.see("WORDS OF c.img")
	})
	t.Run("an image that is not there", func(t *testing.T) {
		m := startMachine(t, s.network("/boot/d.img.ipxe")...)
		m.see("No such file or directory")
	})
}

// TestDeepBootUEFI boots machines with UEFI: over iPXE, and by the HTTP boot of the firmware
// itself, which gets the whole disk.
func TestDeepBootUEFI(t *testing.T) {
	s, _ := bootable(t, "uefi.qcow2", "uefi.img.zst")
	t.Run("by iPXE", func(t *testing.T) {
		vars := filepath.Join(t.TempDir(), "vars")
		bootVariables(t, vars, s.forMachines("/none"))
		m := startMachine(t, append(uefi(vars), s.network("/boot.ipxe")...)...)
		m.see("images that can boot: 2")
		m.see("next device of this machine")
		m.press(enter)
		m.see("WORDS OF uefi")
	})
	for _, name := range []string{"uefi.qcow2", "uefi.img.zst"} {
		t.Run("by HTTP boot of "+name, func(t *testing.T) {
			r, _ := s.Row(t, name)
			vars := filepath.Join(t.TempDir(), "vars")
			bootVariables(t, vars, s.forMachines("/raw/"+r.SHA256)) // which has no suffix
			m := startMachine(t, append(uefi(vars), "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=")...)
			m.see("WORDS OF " + name)
		})
	}
}
