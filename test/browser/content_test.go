package browser

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestContent shows the content of an image: the size of its disk, its faults, and that
// its disk can be expanded.
func TestContent(t *testing.T) {
	t.Parallel()
	s := start(t)
	put := func(name string, data []byte) { s.call(t, "PUT", "/images/"+name, bytes.NewReader(data)) }
	qcow2 := filepath.Join(t.TempDir(), "x.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", qcow2, "3584M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	cloud, err := os.ReadFile(qcow2)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(imageOf("lab.img")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	put("noble-server-cloudimg-amd64.img", cloud)
	put("good.qcow2", append(bytes.Clone(cloud), 0)) // another content
	put("lab.img.gz", packed.Bytes())
	put("short.img.gz", packed.Bytes()[:packed.Len()/2])
	put("debian-12-netinst.iso", []byte("<!DOCTYPE html><title>404 Not Found</title>"))

	p := open(t, s)
	p.login()
	cell := func(name, column string) string {
		return row(name) + "?.querySelector('[data-label=" + column + "]')?.textContent"
	}
	warned := func(name, s string) string {
		return fmt.Sprintf("[...%s?.querySelectorAll('.warning') ?? []].some(w => w.textContent.includes('Warning:') && w.textContent.includes(%s))", row(name), js(s))
	}
	p.until("the qcow2 called img", warned("noble-server-cloudimg-amd64.img", "named .img, but it is a qcow2 image"))
	p.until("its disk", cell("noble-server-cloudimg-amd64.img", "Disk")+" === '3.5 GiB'")
	p.until("the disk of another", cell("good.qcow2", "Disk")+" === '3.5 GiB'")
	p.until("what was counted", cell("lab.img.gz", "Disk")+" === '24.0 MiB'")
	p.until("the cut one", warned("short.img.gz", fmt.Sprintf("ends at byte %d", packed.Len()/2)))
	p.until("the page", warned("debian-12-netinst.iso", "this is a web page"))
	for _, name := range []string{"good.qcow2", "lab.img.gz"} {
		if eval[bool](p, "!!"+row(name)+".querySelector('.warning')") {
			t.Errorf("%s is warned of", name)
		}
	}
	p.until("the failed check", "[...document.querySelectorAll('#failures .job')].some(j => j.dataset.name === 'short.img.gz' && j.dataset.stage === 'check' && j.dataset.status === 'failed')")
	p.until("the activity", has("#recent", "check of short.img.gz failed"))
	p.until("the failures are counted", "document.title.startsWith('(1) ')")
	p.imagePage("good.qcow2")
	p.until("what it is", has("#about", "a qcow2 image"))
	p.shots("image")
	p.navigate("/ui/images")
	p.imagePage("noble-server-cloudimg-amd64.img")
	p.clickOn("Rename to", "document.querySelector('#about [id$=-fit]')")
	p.until("the fitting name", has("#sources-title + ul strong", "noble-server-cloudimg-amd64.qcow2"))
	p.until("no button and no warning", "!document.querySelector('#about [id$=-fit]') && !document.querySelector('#about .alert-warning')")
	p.until("the activity", has("#about", "renamed noble-server-cloudimg-amd64.img to noble-server-cloudimg-amd64.qcow2"))
	eval[bool](p, "(document.querySelector('#about [id$=-rename]').open = true, document.querySelector('#about [id$=-name]').value = 'noble.qcow2', true)")
	p.clickOn("Rename", "document.querySelector('#about [id$=-rename] button')")
	p.until("the new name", has("#sources-title + ul strong", "noble.qcow2"))
	p.navigate("/ui/images")
	p.imagePage("lab.img.gz")
	p.clickOn("Make disk", "document.querySelector('#about [id$=-disk]')")
	p.until("the disk", has("#about", "any part of it can be read"))
	p.until("no button", "!document.querySelector('#about [id$=-disk]')")
	p.navigate("/ui/images")
	p.until("the disk", has("#disks", "1 expanded disk takes"))
	p.until("the activity", has("#recent", "made the disk of lab.img.gz"))
	eval[bool](p, "(document.querySelectorAll('details').forEach(d => { d.open = true; }), true)")
	if twice := eval[[]string](p, "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) !== i)"); len(twice) > 0 {
		t.Errorf("ids that are there twice: %q", twice)
	}
	p.shots("images-content")
	p.clickOn("Remove", "document.querySelector('[aria-label=\"Remove the disk of lab.img.gz\"]')")
	p.until("no disk", "!document.querySelector('#disks-fold')")

	// What was not found good can be checked again, together with others.
	p.clickOn("its box", row("short.img.gz")+"?.querySelector('.pick input')")
	p.clickOn("another box", row("lab.img.gz")+"?.querySelector('.pick input')")
	p.until("only one needs a check", "document.getElementById('batch-hash')?.textContent === 'Check (1)'")
	p.click("#batch-hash")
	p.until("it is queued", has("#status", "1 queued."))

	// A failure stays until it is dismissed.
	p.clickOn("Dismiss", "document.querySelector('#failures [aria-label=\"Dismiss the failure of short.img.gz\"]')")
	p.until("it is gone", "![...document.querySelectorAll('#failures section .job')].some(j => j.dataset.name === 'short.img.gz')")
}
