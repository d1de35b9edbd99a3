package hash

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imageroot/shared/boot"
	"imageroot/shared/content"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/test/need"
)

// An inspection finds out which firmware can start a disk, whatever it is packed in. Records
// of earlier versions get it once.
func TestBoot(t *testing.T) {
	need.Programs(t, "qemu-img")
	disk := make([]byte, 3*mib)
	copy(disk, "\xeb\xfe")
	copy(disk[510:], "\x55\xaa")
	disk[446+4], disk[446+12] = 0xef, 1 // a partition
	dir := t.TempDir()
	raw, guest := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(raw, disk, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-c", "-O", "qcow2", raw, guest).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	qcow2, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	both, none := boot.Ways{BIOS: true, UEFI: true}, boot.Ways{}
	zipped := packed(t, disk)
	for _, c := range []struct {
		name string
		data []byte
		want boot.Ways
	}{
		{"plain", disk, both},
		{"gzip", zipped, both},
		{"gzip that is cut short", zipped[:len(zipped)-20], both},
		{"gzip that is damaged at once", append(bytes.Clone(zipped[:12]), 0xff, 0xff, 0xff), none},
		{"qcow2", qcow2, both},
		{"qcow2 that is damaged", append(bytes.Clone(qcow2[:100]), bytes.Repeat([]byte{0xff}, 1000)...), none},
		{"gzip in gzip", packed(t, zipped), none},
		{"text", []byte("no disk"), none},
		{"a program", append([]byte("\x7fELF"), disk[4:]...), none},
		{"nothing", nil, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				p, _ := w.checking("a", w.catalog)
				sha := w.hashAndInspect(p, c.data)
				rec := w.known(sha)
				if rec == nil || rec.Boot == nil || *rec.Boot != c.want {
					t.Fatalf("%+v, want %+v", rec, c.want)
				}
				p.inspections.take()

				older := *rec
				older.Boot = nil
				_, tag, err := w.catalog.ReadRecord(t.Context(), layout.ContentKey(sha))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := record.Swap(t.Context(), p.Catalog, layout.ContentKey(sha), &older, tag); err != nil {
					t.Fatal(err)
				}
				for _, want := range []int{1, 0} {
					if err := p.reconcileContents(t.Context()); err != nil {
						t.Fatal(err)
					}
					if sent := p.inspections.take(); len(sent) != want {
						t.Fatalf("queued: %v, want %d", sent, want)
					}
					w.until(p, queue.InspectContent(sha))
				}
				now := w.known(sha)
				if now.Boot == nil || *now.Boot != c.want || now.Kind != rec.Kind || !now.SniffedAt.Equal(rec.SniffedAt) {
					t.Errorf("%+v after an upgrade, before %+v", now, rec)
				}
			})
		})
	}
}

// What a store does not give is not taken for a disk that does not boot.
func TestBootUnreadable(t *testing.T) {
	for kind, data := range map[content.Kind][]byte{content.MBR: middling, content.Gzip: packed(t, middling)} {
		bubble(t, func(w *world) {
			p := w.process("a", w.catalog)
			at := p.imageAt(imageName, w.put(imageName, data))
			at.Info.Size++ // not the version that is there
			if found, err := p.detect(t.Context(), at, content.Record{Content: content.Content{Kind: kind}}); err == nil {
				t.Errorf("%s: %+v", kind, found)
			}
		})
	}
}
