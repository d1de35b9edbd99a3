package e2e

import (
	"bytes"
	"encoding/json"
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
	write := func(at string) ([]byte, error) {
		if err := os.WriteFile(m.path("disk"), bytes.Repeat([]byte{0xff}, len(raw)), 0o600); err != nil {
			t.Fatal(err)
		}
		err := sh(t, m.dir, bmaptool+"bmaptool copy '"+at+"' disk")
		disk, rerr := os.ReadFile(m.path("disk"))
		if rerr != nil {
			t.Fatal(rerr)
		}
		return disk, err
	}
	for path, want := range map[string][]byte{
		"/raw/holes.img": holes, "/raw/holes.qcow2": holes, "/raw/plain.img": raw, "/images/plain.img": raw,
		"/raw/packed.img": raw, "/images/packed.img.gz": raw, "/images/holes.qcow2": nil,
	} {
		if disk, err := write(s.Pages + path); want == nil && err == nil || want != nil && (err != nil || !bytes.Equal(disk, want)) {
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
		if _, err := write(front.URL + "/raw/holes.img"); err == nil || !strings.Contains(err.Error(), "checksum mismatch") {
			t.Errorf("%s is damaged: %v", damaged, err)
		}
	}
}
