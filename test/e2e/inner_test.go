package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// TestPackedVirtual has the disk in a virtual image that is compressed: it is decompressed
// once and kept, /raw and the SHA-256 are of the guest's disk, and damage of either is found.
func TestPackedVirtual(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	raw := m.raw()
	const qcow2 = "qemu-img convert -c -O qcow2 raw y; "
	for name, pack := range map[string]string{
		"a.qcow2.gz": qcow2 + "gzip -1 -c y >x", "b.qcow2.xz": qcow2 + "xz -0 -c y >x", "c.qcow2.zst": qcow2 + "zstd -qc y >x",
		"packed.zip":  "qemu-img convert -O vmdk raw y.vmdk; zip -q y y.vmdk; mv y.zip x",
		"d.qcow2.bz2": qcow2 + "bzip2 -c y >x", "named.img.xz": "qemu-img convert -O vmdk raw y; xz -0 -c y >x",
	} {
		s.Put(t, name, m.make(pack))
		r := s.WaitRow(t, name, "checked inside", func(r row) bool { return r.RawSHA256 != "" })
		if r.RawSHA256 != sum(raw) || r.RawSize == nil || *r.RawSize != int64(len(raw)) || *r.Virtual != int64(len(raw)) {
			t.Errorf("%s: %+v", name, r)
		}
		if fits := name != "named.img.xz"; fits == (len(r.Warnings) > 0) {
			t.Errorf("%s: %q", name, r.Warnings)
		}
		if got := s.get(t, rawRoute(name), anonymous).Must(t, http.StatusOK).Body; sum(got) != sum(raw) {
			t.Errorf("%s: %d bytes, or wrong ones", name, len(got))
		}
		checkRanges(t, s, rawRoute(name), raw)
	}

	// Without the virtual image, its disk is not readable until it was decompressed again.
	r, _ := s.Row(t, "b.qcow2.xz")
	s.Do(t, http.MethodDelete, "/catalog/disks/"+r.SHA256, nil).Must(t, http.StatusNoContent)
	if err := sh(t, m.dir, "curl -fsS --retry 20 -o disk "+s.Pages+rawRoute("b.img")+"; cmp disk raw"); err != nil {
		t.Error(err)
	}

	const damage = "printf '\\377\\252\\0\\125' | dd of=%s bs=1 seek=750000 conv=notrunc status=none; "
	for name, c := range map[string]struct{ pack, says string }{
		"outside.qcow2.gz": {qcow2 + "gzip -1 -c y >x; " + strings.Replace(damage, "%s", "x", 1), "the gzip data is damaged"},
		"inside.qcow2.gz":  {qcow2 + "dd if=/dev/urandom of=y bs=100k seek=3 count=1 conv=notrunc status=none; gzip -1 -c y >x", "once decompressed, the qcow2 image is corrupt"},
		"backed.qcow2.gz":  {"qemu-img create -q -f qcow2 -b raw -F raw y; gzip -1 -c y >x", "backing file"},
	} {
		s.Put(t, name, m.make(c.pack))
		r := s.WaitRow(t, name, "found damaged", func(r row) bool { return len(r.Warnings) > 0 })
		if !strings.Contains(r.Warnings[0], c.says) || r.RawSHA256 != "" {
			t.Errorf("%s: %+v", name, r)
		}
		s.get(t, rawRoute(name), anonymous).Must(t, http.StatusUnprocessableEntity)
	}
}
