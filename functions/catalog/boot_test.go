package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/boot"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/layout"
)

var (
	bios = content.Record{Content: content.Content{Kind: content.MBR}, Boot: &boot.Ways{BIOS: true}}
	uefi = content.Record{Content: content.Content{Kind: content.GPT}, Boot: &boot.Ways{UEFI: true}}
)

// lines returns the lines of a script.
func (s *rawServer) lines(path string) []string {
	s.Helper()
	r := s.want(s.ask("GET", path), 200)
	if !bytes.HasPrefix(r.body, []byte("#!ipxe\n")) || r.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		s.Errorf("%s: %v\n%s", path, r.header, r.body)
	}
	if head := s.want(s.ask("HEAD", path), 200); len(head.body) > 0 {
		s.Errorf("HEAD %s has a body", path)
	}
	return strings.Split(string(r.body), "\n")
}

// items returns the lines of a menu that offer images.
func items(lines []string) (items []string) {
	for _, l := range lines {
		_, item, ok := strings.Cut(l, "item -- ")
		if key, _, _ := strings.Cut(item, " "); ok && len(key) == 64 {
			items = append(items, l)
		}
	}
	return items
}

func TestBootMenu(t *testing.T) {
	s := newRawServer(t, false)
	gzip := content.Record{Content: content.Content{Kind: content.Gzip}, Boot: &boot.Ways{BIOS: true, UEFI: true}}
	b := s.hashed("b.img", []byte("b"), bios)
	u := s.hashed("U.img", []byte("u"), uefi)
	z := s.hashed("z.img.gz", []byte("z"), gzip)
	s.hashed("none.img", []byte("none"), content.Record{Content: content.Content{Kind: content.MBR}, Boot: &boot.Ways{}})
	s.hashed("old.img", []byte("old"), content.Record{Content: content.Content{Kind: content.MBR}})
	damaged := gzip
	damaged.Check = &content.Check{Verdict: content.Damaged, Reason: "it is damaged"}
	s.hashed("damaged.img.gz", []byte("damaged"), damaged)
	s.put("unhashed.img", []byte("unhashed"))

	want := func(got []string, want ...string) {
		t.Helper()
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%q, want %q", got, want)
		}
	}
	ofB := fmt.Sprintf("iseq ${platform} pcbios && item -- %s b.img (1 MiB) ||", b)
	ofU := fmt.Sprintf("iseq ${platform} efi && item -- %s U.img (1 MiB) ||", u)
	want(items(s.lines("/boot.ipxe")), ofB, ofU) // without disks
	s.f.MakeDisk = func(context.Context, layout.SHA256, image.Name) (bool, int64, error) {
		t.Error("the menu has a disk made")
		return false, 0, nil
	}
	want(items(s.lines("/boot.ipxe")), ofB, ofU, fmt.Sprintf("item -- %s z.img.gz - expanded first ||", z))
	want(items(s.lines("/boot.ipxe?q=u+IMG")), ofU)
	want(items(s.lines("/boot.ipxe?q=other")))
	want(items(s.lines("/boot.ipxe?page=2")))
	for _, query := range []string{"page=0", "page=x", "page=99999999999999999999", "q=" + strings.Repeat("x", 101)} {
		s.want(s.ask("GET", "/boot.ipxe?"+query), 400)
	}
}

// Of many images, a menu has a hundred.
func TestBootPages(t *testing.T) {
	s := newRawServer(t, false)
	for i := range 250 {
		s.hashed(image.Name(fmt.Sprintf("%03d.img", i)), []byte{byte(i), byte(i >> 8)}, bios)
	}
	path, seen := "/boot.ipxe?q=img", 0
	for path != "" {
		lines := s.lines(path)
		path = ""
		for _, item := range items(lines) {
			if !strings.Contains(item, fmt.Sprintf(" %03d.img ", seen)) {
				t.Fatalf("image %d: %s", seen, item)
			}
			seen++
		}
		for _, l := range lines {
			if strings.Contains(l, "iseq ${key} more") {
				_, path, _ = strings.Cut(strings.TrimSuffix(l, " ||"), "--autofree ")
				path = "/" + path
			}
		}
	}
	if seen != 250 {
		t.Errorf("%d images on all pages", seen)
	}
}

// Names and searches are only shown.
func TestBootHostile(t *testing.T) {
	s := newRawServer(t, false)
	hostile := []string{"${net0:mac}", "a && shell", "a || shell", "# comment", "--default x", "a\u2028b", "ü ' \" ` %41 +", ":label", "x$", strings.Repeat("long ", 19)}
	for i, h := range hostile {
		s.hashed(image.Name(h+".img"), []byte{byte(i)}, bios)
	}
	menu := s.lines("/boot.ipxe")
	if got := items(menu); len(got) != len(hostile) {
		t.Errorf("%d items: %q", len(got), got)
	}
	scripts := [][]string{menu}
	for i, h := range hostile {
		name := sum([]byte{byte(i)})
		scripts = append(scripts, s.lines("/boot/"+string(name)+".ipxe"), s.lines("/boot.ipxe?q="+escaped(h)), s.lines("/boot/"+escaped(h+".img")+".ipxe"))
	}
	for _, lines := range scripts {
		for _, l := range lines[1:] {
			text := l
			for _, known := range []string{"${platform}", "${key}", "${q:uristring}"} {
				text = strings.ReplaceAll(text, known, "")
			}
			commands := strings.Count(text, "&&") + strings.Count(text, "||")
			if strings.ContainsAny(text, "{}#`\\") || commands > 2 || strings.HasPrefix(text, "echo --") || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q", l)
			}
		}
	}
}

func escaped(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// Firmware knows a disk by its media type.
func TestBootMediaTypes(t *testing.T) {
	const other, img, iso = "application/octet-stream", "application/vnd.efi-img", "application/vnd.efi-iso"
	s := newRawServer(t, false)
	s.hashed("bios.img", []byte("bios\x00"), bios)
	s.hashed("uefi.img", []byte("uefi\x00"), uefi)
	s.hashed("cd.iso", []byte("cd\x00"), content.Record{Content: content.Content{Kind: content.ISO9660}, Boot: uefi.Boot})
	packed := content.Record{Content: content.Content{Kind: content.Gzip}, Boot: uefi.Boot}
	s.hashed("packed.img.gz", gzipped(t, []byte("packed\x00")), packed)
	s.hashed("packed.iso.gz", gzipped(t, []byte("packed iso\x00")), packed)
	s.put("new.img", []byte("new\x00"))
	for path, want := range map[string]string{
		"/images/bios.img": other, "/raw/bios.img": other,
		"/images/uefi.img": img, "/raw/uefi.img": img,
		"/images/cd.iso": iso, "/raw/cd.iso": iso, "/raw/cd.iso/x.img": iso,
		"/images/packed.img.gz": other, "/raw/packed.img": img,
		"/images/packed.iso.gz": other, "/raw/packed.iso": iso,
		"/images/new.img": other, "/raw/new.img": other,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			r := s.want(s.ask(method, path), 200)
			if got := r.header.Get("Content-Type"); got != want || !strings.HasPrefix(r.header.Get("Content-Disposition"), "attachment") {
				t.Errorf("%s %s: %s, want %s", method, path, got, want)
			}
		}
	}
}

func TestBootImage(t *testing.T) {
	s := newRawServer(t, false)
	sha := s.hashed("b.img", []byte("b"), bios)
	boots := "sanboot ../raw/" + string(sha) + " || goto failed"
	for _, key := range []string{"b.img", string(sha), string(sha[:12])} {
		if !slices.Contains(s.lines("/boot/"+key+".ipxe"), boots) {
			t.Errorf("%s does not boot", key)
		}
	}
	for _, path := range []string{"/boot/b.img", "/boot/other.img.ipxe", "/boot/.ipxe"} {
		s.want(s.ask("GET", path), 404)
	}
	s.put("unhashed.img", []byte("unhashed"))
	if lines := s.lines("/boot/unhashed.img.ipxe"); !slices.Contains(lines, "sleep 5") || !slices.Contains(lines, "chain --replace --autofree unhashed.img.ipxe || goto failed") {
		t.Errorf("%q", lines)
	}

	raw := []byte("the disk")
	packed, size, now := gzipped(t, raw), int64(len(raw)), time.Now().UTC()
	disk := s.hashed("z.img.gz", packed, content.Record{
		Content: content.Content{Kind: content.Gzip}, Boot: &boot.Ways{BIOS: true},
		Check: &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(raw)},
		Disk:  &content.Disk{SizeBytes: size, StoredBytes: size, MadeAt: now, UsedAt: now},
	})
	active, asked, failure := true, 0, error(nil)
	says := func(want string) {
		t.Helper()
		if lines := s.lines("/boot/z.img.ipxe"); !strings.Contains(strings.Join(lines, "\n"), want) {
			t.Errorf("%q, want %q", lines, want)
		}
	}
	says("does not make it")
	s.f.MakeDisk = func(_ context.Context, sha layout.SHA256, _ image.Name) (bool, int64, error) {
		if asked++; sha != disk {
			t.Errorf("asked for the disk of %s", sha)
		}
		return active, 3 << 20, failure
	}
	says("3 MiB are written of 1")
	active = false
	says("failed to")
	if asked != 2 { // not for HEAD
		t.Errorf("asked %d times for a disk", asked)
	}
	failure = errors.New("the store is down")
	s.want(s.ask("GET", "/boot/z.img.ipxe"), 500)
	if _, err := s.f.Catalog.Put(t.Context(), layout.DiskKey(disk), bytes.NewReader(raw), size); err != nil {
		t.Fatal(err)
	}
	says("sanboot ../raw/" + string(disk))
}

// On AWS, /raw leads to objects, and a qcow2 image needs a disk, too.
func TestBootLinks(t *testing.T) {
	s := newLinkedServer(t)
	s.hashed("plain.img", []byte("plain\x00"), uefi)
	s.hashed("guest.qcow2", []byte("guest\x00"), content.Record{Content: content.Content{Kind: content.QCOW2}, Boot: bios.Boot})
	if got := items(s.lines("/boot.ipxe")); len(got) != 1 || !strings.Contains(got[0], " plain.img ") {
		t.Errorf("%q", got)
	}
	s.f.MakeDisk = func(context.Context, layout.SHA256, image.Name) (bool, int64, error) { return true, 0, nil }
	if got := items(s.lines("/boot.ipxe")); len(got) != 2 || !strings.Contains(got[0], "expanded first") {
		t.Errorf("%q", got)
	}
	if lines := s.lines("/boot/guest.qcow2.ipxe"); !slices.Contains(lines, "sleep 5") {
		t.Errorf("%q", lines)
	}
	if lines := s.lines("/boot/plain.img.ipxe"); !strings.Contains(lines[2], "sanboot ../raw/") {
		t.Errorf("%q", lines)
	}
	for _, path := range []string{"/raw/plain.img", "/images/plain.img"} {
		if at := s.want(s.ask("GET", path), 307).header.Get("Location"); !strings.Contains(at, "?type=application%2Fvnd.efi-img&") {
			t.Errorf("%s leads to %s", path, at)
		}
	}
}
