package lambda_test

import (
	"bytes"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/test/need"
)

// gzipped returns data in gzip.
func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// someDisk returns a disk of several parts of a multipart upload.
func someDisk() []byte {
	disk := make([]byte, 40<<20+512)
	_, _ = pattern{}.ReadAt(disk[:30<<20], 0)
	return disk
}

// disks returns what GET /catalog/disks answers.
func (w *world) disks() (d struct {
	Disks []struct{ SHA256 string }
	Jobs  []jobView
},
) {
	w.t.Helper()
	return as[struct {
		Disks []struct{ SHA256 string }
		Jobs  []jobView
	}](w.t, w.want(200, "GET", "/catalog/disks", nil).body)
}

// raw waits until a part of a disk is served, and returns it.
func (w *world) raw(path, part string) []byte {
	w.t.Helper()
	var r reply
	w.until(path+" is served", func() bool {
		r = w.do("GET", path, nil, "Authorization", "", "Range", part)
		if r.status != 307 && (r.status != 503 || r.header.Get("Retry-After") == "") {
			w.t.Fatalf("%s: %v", path, r)
		}
		return r.status == 307
	})
	return w.want(206, "GET", r.header.Get("Location"), nil, "Range", part).body
}

// TestDisk: the first request of the disk in a compressed image has it made, and those
// after it are redirected to the disk in S3.
func TestDisk(t *testing.T) {
	need.Programs(t, "curl", "qemu-img")
	w := newWorld(t)
	disk := someDisk()
	packed := gzipped(t, disk)
	sum := hexSum(packed)
	w.put("packed.img.gz", packed)
	w.served(sum)
	w.send("HashJobQueue", `{"disk":"`+sum+`"}`) // of no job
	if got := w.raw("/raw/packed.img", "bytes=31457000-31457999"); !bytes.Equal(got, disk[31457000:31458000]) {
		t.Error("a part of the disk has other bytes")
	}
	r := w.want(307, "HEAD", "/raw/"+sum+"/x.img", nil, "Authorization", "")
	if r = w.want(200, "HEAD", r.header.Get("Location"), nil); r.header.Get("Content-Length") != "41943552" {
		t.Errorf("HEAD: %v", r.header)
	}
	r = w.want(307, "GET", "/raw/"+sum, nil)
	if r.header.Get("Repr-Digest") == "" {
		t.Errorf("without a digest: %v", r.header)
	}
	if r = w.want(200, "GET", r.header.Get("Location"), nil); !bytes.Equal(r.body, disk) || !strings.Contains(r.header.Get("Content-Disposition"), "packed.img") || strings.Contains(r.header.Get("Content-Disposition"), ".gz") {
		t.Errorf("%d bytes, %v", len(r.body), r.header)
	}
	if list := string(w.want(200, "GET", "/images", nil).body); !strings.Contains(list, "/raw/"+sum+"/packed.img") {
		t.Errorf("the listing does not name the disk: %s", list)
	}
	for range 3 {
		w.send("HashJobQueue", `{"disk":"`+sum+`"}`)
	}
	w.until("all messages are gone", func() bool { return w.length("HashJobQueue") == 0 })
	if d := w.disks(); len(d.Disks) != 1 || d.Disks[0].SHA256 != sum || len(d.Jobs) != 1 || d.Jobs[0].Status != "completed" || d.Jobs[0].Attempt != 1 {
		t.Errorf("%+v", d)
	}

	// Its use is recorded, so that it is not removed.
	change := func(change func(d *content.Disk) error) content.Record {
		rec, _, err := record.Change(t.Context(), w.catalog, layout.ContentKey(layout.SHA256(sum)), func(rec *content.Record, _ bool) error { return change(rec.Disk) })
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	long := change(func(d *content.Disk) error { d.UsedAt = d.UsedAt.Add(-24 * time.Hour); return nil }).Disk.UsedAt
	w.reconcile() // finds what no function has written
	w.until("the use of the disk is recorded", func() bool {
		w.want(307, "GET", "/raw/"+sum, nil)
		return change(func(*content.Disk) error { return record.ErrKeep }).Disk.UsedAt.After(long)
	})

	// A disk that was removed is gone from S3, too, and curl waits for another one, from
	// which it takes the rest.
	gone := w.want(307, "GET", "/raw/"+sum, nil).header.Get("Location")
	w.want(204, "DELETE", "/catalog/disks/"+sum, nil)
	w.want(404, "GET", gone, nil)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, disk[:11<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	w.until("another function knows that the disk is gone", func() bool { return w.do("GET", "/raw/"+sum, nil).status == 503 })
	if out, err := exec.CommandContext(t.Context(), "curl", "-fsSL", "--retry", "50", "-C", "-", "-o", path, w.api.URL+"/raw/packed.img").CombinedOutput(); err != nil {
		t.Errorf("curl: %v: %s", err, out)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("curl has resumed to %d other bytes, %v", len(got), err)
	}

	// A plain image is its own disk. The disk in a qcow2 image is not its bytes.
	plain := disk[:1<<20]
	w.put("plain.img", plain)
	w.served(hexSum(plain))
	if got := w.raw("/raw/plain.img", "bytes=4000-4999"); !bytes.Equal(got, plain[4000:5000]) {
		t.Error("a part of the plain image has other bytes")
	}
	raw, qcow2 := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "qcow2")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-c", "-O", "qcow2", raw, qcow2).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image, err := os.ReadFile(qcow2)
	if err != nil {
		t.Fatal(err)
	}
	w.put("guest.qcow2", image)
	w.served(hexSum(image))
	if got := w.raw("/raw/guest.img", "bytes=31457000-31457999"); !bytes.Equal(got, disk[31457000:31458000]) {
		t.Error("a part of the guest's disk has other bytes")
	}
	if r := w.want(200, "GET", "/raw/guest.img.bmap", nil); !bytes.Contains(r.body, []byte("<MappedBlocksCount> 7680 <")) {
		t.Errorf("the block map of a disk with holes: %s", r.body)
	}
}

// TestKilledDisk: what a function that was killed has left of a disk is removed.
func TestKilledDisk(t *testing.T) {
	w := newWorld(t)
	key := layout.DiskKey(layout.SHA256(hexSum(nil)))
	if _, err := w.catalog.CreateUpload(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	w.reconcile()
	for u, err := range w.catalog.PendingUploads(t.Context(), "") {
		t.Errorf("%+v, %v", u, err)
	}
}
