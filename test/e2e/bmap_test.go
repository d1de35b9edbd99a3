package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"imageroot/test/need"
)

// bmaptool runs bmaptool as onto a block device: it would truncate a file.
const bmaptool = `bmaptool() { /usr/bin/python3 -c 'import sys; from bmaptools import CLI; CLI.open = lambda path, mode: open(path, "rb+"); sys.exit(CLI.main())' -q "$@"; }; `

// An extent is one that qemu-img map finds.
type extent struct {
	Start, Length int64
	Present       bool // false: unallocated
}

// TestBmap copies disks with bmaptool, which finds the block map beside the image by itself,
// onto what was written before.
func TestBmap(t *testing.T) {
	t.Parallel()
	need.Programs(t, "bmaptool", "qemu-img", "qemu-io")
	s, m := Start(t, Options{}), newMaker(t)
	raw := m.raw()
	const zeros = "; qemu-io -c 'write -z 5M 192k' x >out; cp x map.qcow2"
	for name, pack := range map[string]string{
		"holes.qcow2": "qemu-img convert -c -O qcow2 raw x" + zeros,
		"plain.img":   "cp raw x", "packed.img.gz": "gzip -1 -c raw >x",
	} {
		s.Put(t, name, m.make(pack))
		s.WaitRow(t, name, "checked", func(r row) bool { return r.RawSHA256 != "" })
	}
	out, err := exec.Command("qemu-img", "map", "--output=json", m.path("map.qcow2")).Output()
	var extents []extent
	if err == nil {
		err = json.Unmarshal(out, &extents)
	}
	if err != nil {
		t.Fatal(err)
	}
	holes := bytes.Clone(raw)
	for _, e := range extents {
		if !e.Present {
			copy(holes[e.Start:e.Start+e.Length], bytes.Repeat([]byte{0xff}, int(e.Length)))
		}
	}
	if !bytes.Equal(holes[5<<20:5<<20+192<<10], make([]byte, 192<<10)) || holes[7<<20] != 0xff {
		t.Fatal("qemu-img tells zeros from holes otherwise than expected")
	}
	for path, want := range map[string][]byte{
		"/raw/holes.img": holes, "/raw/holes.qcow2": holes, "/raw/plain.img": raw, "/images/plain.img": raw,
		"/raw/packed.img": raw, "/images/packed.img.gz": raw, "/images/holes.qcow2": nil,
	} {
		if disk, err := m.overwrite(s.Pages + path); want == nil && err == nil || want != nil && (err != nil || !bytes.Equal(disk, want)) {
			t.Errorf("%s: %v, and %d bytes, of which %d are 0xff", path, err, len(disk), bytes.Count(disk, []byte{0xff}))
		}
	}

	for damaged, part := range map[string]string{"/raw/holes.img": "line 3200000 ", "/raw/holes.img.bmap": " <"} {
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := s.Do(t, "GET", r.URL.Path, nil)
			if r.URL.Path == damaged {
				a.Body[bytes.Index(a.Body, []byte(part))] ^= 1
			}
			w.WriteHeader(a.Status)
			_, _ = w.Write(a.Body)
		}))
		defer front.Close()
		if _, err := m.overwrite(front.URL + "/raw/holes.img"); err == nil || !strings.Contains(err.Error(), "checksum mismatch") {
			t.Errorf("%s is damaged: %v", damaged, err)
		}
	}
}

// overwrite copies the image at a URL with bmaptool onto 8 MiB of 0xff, and returns them.
func (m *maker) overwrite(at string) ([]byte, error) {
	m.t.Helper()
	if err := os.WriteFile(m.path("disk"), bytes.Repeat([]byte{0xff}, 8<<20), 0o600); err != nil {
		m.t.Fatal(err)
	}
	err := sh(m.t, m.dir, bmaptool+"bmaptool copy '"+at+"' disk")
	disk, rerr := os.ReadFile(m.path("disk"))
	if rerr != nil {
		m.t.Fatal(rerr)
	}
	return disk, err
}

// holesOf returns a disk of which bmaptool has written all but the pages of zeros.
func holesOf(raw []byte) []byte {
	holes := bytes.Clone(raw)
	for at := 0; at < len(raw); at += 4096 {
		if page := holes[at : at+4096]; bytes.Count(page, []byte{0}) == 4096 {
			copy(page, bytes.Repeat([]byte{0xff}, 4096))
		}
	}
	return holes
}

// bmapServed waits until bmaptool writes what it should of the disk at path.
func (s *Server) bmapServed(t *testing.T, m *maker, path string, want []byte) {
	t.Helper()
	eventually(t, within, path+" has its block map", func() error {
		disk, err := m.overwrite(s.Pages + path)
		if err == nil && !bytes.Equal(disk, want) {
			err = fmt.Errorf("%d bytes are 0xff", bytes.Count(disk, []byte{0xff}))
		}
		return err
	})
}

// TestBmapBeside puts block maps of bmaptool beside images, good and damaged ones.
func TestBmapBeside(t *testing.T) {
	t.Parallel()
	need.Programs(t, "bmaptool", "qemu-img")
	s, m := Start(t, Options{}), newMaker(t)
	raw := m.raw()
	published := m.make("cp --sparse=always raw sparse; bmaptool -q create sparse >x")
	holes := holesOf(raw)
	for name, pack := range map[string]string{"plain.img": "cp raw x", "packed.img.xz": "xz -0 -c raw >x", "guest.qcow2": "qemu-img convert -O qcow2 raw x"} {
		s.Put(t, name, m.make(pack))
		s.WaitRow(t, name, "checked", func(r row) bool { return r.RawSHA256 != "" })
	}
	served := func(path string, want []byte) { t.Helper(); s.bmapServed(t, m, path, want) }
	good := func(r row) bool { return len(r.Warnings) == 0 }
	bad := func(r row) bool {
		return len(r.Warnings) > 0 && strings.Contains(r.Warnings[0], ".bmap is not served: ")
	}
	for name, file := range map[string]string{"plain.img": "plain.img.bmap", "packed.img.xz": "packed.img.bmap", "guest.qcow2": "guest.qcow2.bmap"} {
		path := "/raw/" + strings.TrimSuffix(strings.Replace(name, "qcow2", "img", 1), ".xz")
		s.s3Put(t, file, published)
		served(path, holes)
		s.s3Put(t, file, bytes.Replace(published, []byte("<BlocksCount>"), []byte("<BlocksCount> "), 1))
		s.WaitRow(t, name, "the damage is found", bad)
		if _, err := m.overwrite(s.Pages + path); err != nil {
			t.Errorf("%s, after a damaged map: %v", path, err)
		}
	}
	// One of another disk is whole, but not of these bytes.
	other := m.make("cp sparse other; printf x | dd of=other bs=1 seek=3200000 conv=notrunc status=none; bmaptool -q create other >x")
	s.s3Put(t, "plain.img.bmap", other)
	s.WaitRow(t, "plain.img", "the map is of another disk", func(r row) bool { return bad(r) && strings.Contains(r.Warnings[0], "sha256") })
	served("/raw/plain.img", raw)
	s.s3Put(t, "plain.img.bmap", published)
	s.WaitRow(t, "plain.img", "the map is right again", good)
	served("/raw/plain.img", holes)
	s.rename(t, "plain.img", "renamed.raw").Must(t, http.StatusAccepted)
	s.isAt(t, "renamed.raw", "plain.img", raw)
	served("/raw/renamed.raw", holes)
	s.s3Delete(t, "renamed.raw.bmap")
	served("/raw/renamed.raw", raw)
}

// TestBmapFetched: the block map that a publisher has beside the URL of an image is fetched with
// the image, of an entry and of a row of the manifest.
func TestBmapFetched(t *testing.T) {
	t.Parallel()
	need.Programs(t, "bmaptool", "xz")
	s, m, p := Start(t, Options{}), newMaker(t), publish(t)
	raw := m.raw()
	published := m.make("cp --sparse=always raw sparse; bmaptool -q create sparse >x")
	holes := holesOf(raw)
	p.File("/a/good.wic.bmap", published)
	p.File("/b/rows.bmap", published)
	p.File("/a/bad.img.bmap", bytes.Replace(published, []byte("<BlocksCount>"), []byte("<BlocksCount> "), 1))
	s.AddEntry(t, p.File("/a/good.wic.xz", m.make("xz -0 -c raw >x")), "").Must(t, http.StatusCreated)
	s.AddEntry(t, p.File("/a/bad.img", append([]byte("other"), raw[5:]...)), "").Must(t, http.StatusCreated)
	s.putManifest(t, fmt.Sprintf("version = 1\n[[images]]\nname = \"rows.img\"\nsrc = %q\n", p.File("/b/rows.img", raw))).Must(t, http.StatusOK)
	for name, want := range map[string][]byte{"good.wic.xz": holes, "rows.img": holes, "bad.img": nil} {
		s.Fetch(t, name)
		path := "/raw/" + strings.TrimSuffix(name, ".xz")
		if want == nil {
			s.WaitRow(t, name, "the damage is found", func(r row) bool {
				return len(r.Warnings) > 0 && strings.Contains(r.Warnings[0], "the block map beside the source is not served: ")
			})
			if _, err := m.overwrite(s.Pages + path); err != nil {
				t.Errorf("%s, after a damaged map: %v", path, err)
			}
			continue
		}
		s.bmapServed(t, m, path, want)
		r, _ := s.Row(t, name)
		if page := s.get(t, "/ui/images/"+r.SHA256).Must(t, http.StatusOK); !bytes.Contains(page.Body, []byte("publisher&#39;s block map")) {
			t.Errorf("the page of %s does not say whose block map is served", name)
		}
	}
}

// TestBmapSparse: the holes of a file that another program has made are holes, and zeros that
// were uploaded are not.
func TestBmapSparse(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	need.Programs(t, "bmaptool", "fallocate")
	s, m := Start(t, Options{}), newMaker(t)
	if err := sh(t, m.dir, "cp --sparse=never raw x && fallocate -p -o 6M -l 1M x && mv x '"+s.imagePath("sparse.img")+"'"); err != nil {
		t.Fatal(err)
	}
	raw := m.raw()
	uploaded := append([]byte{1}, raw[1:]...)
	s.Put(t, "zeros.img", uploaded)
	holes := bytes.Clone(raw)
	copy(holes[6<<20:], bytes.Repeat([]byte{0xff}, 1<<20))
	s.WaitRow(t, "sparse.img", "hashed", func(r row) bool { return r.RawSHA256 != "" })
	for name, want := range map[string][]byte{"sparse.img": holes, "zeros.img": uploaded} {
		s.bmapServed(t, m, "/raw/"+name, want)
	}
}
