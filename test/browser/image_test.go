package browser

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// systemDisk makes a disk with an EFI system partition and a root file system of Debian.
func systemDisk(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	script := exec.CommandContext(t.Context(), "sh", "-ec", `
PATH=$PATH:/usr/sbin:/sbin
mkdir -p root/etc root/usr/lib root/usr/bin
cat >root/usr/lib/os-release <<'END'
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
ID=debian
VERSION_ID="12"
VERSION_CODENAME=bookworm
END
ln -s ../usr/lib/os-release root/etc/os-release
truncate -s 64M disk
printf 'label: gpt\nsize=16M,type=U,name=boot\ntype=L,name=system\n' | sfdisk -q disk
truncate -s 40M fs
mkfs.ext4 -q -L rootfs -d root fs
dd if=fs of=disk bs=1M seek=17 conv=notrunc status=none`)
	script.Dir = dir
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestSameDisk tells images with the same title by the ends of their names.
func TestSameDisk(t *testing.T) {
	t.Parallel()
	s := start(t)
	disk := systemDisk(t)
	names := []string{"debian-12-generic-amd64-of-2026.img", "debian-12-generic-amd64-of-2027.img"}
	for i, name := range names {
		disk[len(disk)-1] = byte(i)
		s.call(t, "PUT", "/images/"+name, bytes.NewReader(disk))
	}
	p := open(t, s)
	p.login()
	for _, name := range names {
		p.until("the system in the row", row(name)+"?.textContent.includes('Debian 12')")
	}
	for _, width := range []int64{1280, 992, 375} {
		p.size(width, 900)
		for _, name := range names {
			in := row(name) + ".querySelector('.end')"
			seen := "(() => { const e = " + in + ".getBoundingClientRect(), cell = " + in + ".closest('td').getBoundingClientRect(); return e.width > 0 && e.left >= cell.left && e.right <= cell.right + 1; })()"
			if end := eval[string](p, in+".textContent"); name[len(name)-len(end):] != end || len(end) < len("2026.img") || !eval[bool](p, seen) {
				t.Errorf("at %d pixels, the row of %s does not show the end %q", width, name, end)
			}
			if text := eval[string](p, row(name)+".querySelector('.file').innerText"); text != name {
				t.Errorf("copied, the name is %q", text)
			}
		}
	}
}

// TestImagePage shows what is inside an image, and changes what is known about it.
func TestImagePage(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.call(t, "PUT", "/images/node.img", bytes.NewReader(systemDisk(t)))
	s.call(t, "PUT", "/images/other-arm64.img", bytes.NewReader(imageOf("other")))
	p := open(t, s)
	p.login()
	p.until("the system in the row", row("node.img")+"?.textContent.includes('Debian 12')")
	p.imagePage("node.img")
	p.mark()
	p.until("what it is", has("#about dl", "debian")+" && "+has("#about dl", "found inside"))
	p.until("the partitions", "document.querySelectorAll('#about rect').length === 2 && "+has("#about ol", "rootfs"))
	p.until("how to flash it", has("#about", "/flash.sh | sudo sh -s -- node.img /dev/sdX"))
	eval[bool](p, "(document.querySelectorAll('details').forEach(d => { d.open = true; }), true)")
	p.shots("image-inside")

	p.typeInto("#edit-title", "The nodes' system")
	p.typeInto("#edit-labels", "rack=7")
	p.clickOn("Save", "document.querySelector('#edit-fold button')")
	p.until("the title", has("#about h1", "The nodes' system"))
	p.until("the label", has("#about .chip", "rack=7"))
	if eval[string](p, "document.getElementById('edit-title').value") != "The nodes' system" {
		t.Error("the form has lost what was typed")
	}
	p.typeInto("#edit-release_date", "yesterday")
	p.allow(`network: .* 422 .*/catalog/images`)
	p.clickOn("Save", "document.querySelector('#edit-fold button')")
	p.until("a bad date is refused", "document.querySelector('#edit-fold .alert-danger')?.textContent.includes('release_date')")
	p.marked("editing")

	// Its label leads to the images that have it.
	p.clickOn("the label", "document.querySelector('#about .chip')")
	p.until("only this row", "document.querySelectorAll('#catalog tbody tr').length === 1 && "+row("node.img"))
	p.until("its title", row("node.img")+"?.textContent.includes(\"The nodes' system\")")
	p.typeInto("#q", "arm64")
	p.until("a search keeps the filter", has("#catalog", "Nothing matches"))
	p.clickOn("the filter", "[...document.querySelectorAll('.chip.on')].find(c => c.textContent.startsWith('label:'))")
	p.until("without the filter", "document.querySelectorAll('#catalog tbody tr').length === 1 && "+row("other-arm64.img"))

	// Without scripts, the form returns to the page.
	p.scripts(false)
	p.navigate("/ui/images/node.img")
	eval[bool](p, "(document.getElementById('edit-fold').open = true)")
	p.typeInto("#edit-version", "12.8")
	p.clickOn("Save", "document.querySelector('#edit-fold button')")
	p.until("the version", "location.pathname.startsWith('/ui/images/') && "+has("#about dl", "12.8"))
}
