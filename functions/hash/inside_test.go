package hash

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/disk"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/reader"
	"imageroot/test/need"
)

// system returns the file system that a tool makes of the root directory of a system. With
// noise it is longer than what a stream of it keeps.
func system(t *testing.T, dir string, noisy bool, tool string, args ...string) []byte {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"etc/os-release": []byte("ID=debian\nVERSION_ID=13\n")}
	if noisy {
		files["a-noise"], files["z-noise"] = noise(1, 3*mib), noise(2, 9*mib)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(tool, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "fs"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is inside a disk is found out whatever it is packed in: at any offset, or while a check
// reads a compressed image. Records of earlier versions get it once.
func TestInside(t *testing.T) {
	need.Programs(t, "mkfs.ext4", "qemu-img")
	dir := t.TempDir()
	raw := system(t, dir, false, "mkfs.ext4", "-q", "-d", "root", "fs", "4M")
	if out, err := exec.Command("qemu-img", "convert", "-c", "-O", "qcow2", filepath.Join(dir, "fs"), filepath.Join(dir, "qcow2")).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	guest, err := os.ReadFile(filepath.Join(dir, "qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	zipped := packed(t, raw)
	want, err := disk.Inspect(bytes.NewReader(raw), int64(len(raw)), 100, nil)
	if err != nil || want.System != "debian" || want.Version != "13" {
		t.Fatalf("%+v %v", want, err)
	}
	for _, c := range []struct {
		name string
		data []byte
		want *disk.Inside
	}{
		{"plain", raw, &want},
		{"qcow2", guest, &want},
		{"gzip", zipped, &want},
		{"gzip that is cut short", zipped[:100], disk.Unread()},
		{"gzip in gzip", packed(t, zipped), &disk.Inside{Inspector: disk.Version}},
		{"text", []byte("no disk"), &disk.Inside{Inspector: disk.Version}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				p, checks := w.checking("a", w.catalog)
				sha := w.hashAndInspect(p, c.data)
				all := func() {
					t.Helper()
					if err := p.reconcileContents(t.Context()); err != nil {
						t.Fatal(err)
					}
					if len(checks.take()) > 0 {
						w.until(p, job.Check.Task(string(sha)))
					}
					if err := p.reconcileContents(t.Context()); err != nil {
						t.Fatal(err)
					}
					if len(p.inspections.take()) > 0 {
						w.until(p, queue.InspectContent(sha))
					}
					if got := w.known(sha).Inside; !reflect.DeepEqual(got, c.want) {
						t.Errorf("%+v\nwant %+v", got, c.want)
					}
				}
				all()
				before := w.known(sha).Check
				if _, _, err := record.Change(t.Context(), p.Catalog, layout.ContentKey(sha), func(rec *content.Record, _ bool) error {
					rec.Inside = nil
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				all()
				if now := w.known(sha).Check; !reflect.DeepEqual(now, before) {
					t.Errorf("the verdict was %+v and is %+v", before, now)
				}
				if err := p.reconcileContents(t.Context()); err != nil {
					t.Fatal(err)
				}
				if sent := append(p.inspections.take(), checks.take()...); len(sent) > 0 {
					t.Errorf("queued again: %v", sent)
				}
			})
		})
	}
}

// What a check could not find out in passing is found when the disk is there.
func TestInsideExpanded(t *testing.T) {
	need.Programs(t, "mksquashfs")
	raw := system(t, t.TempDir(), true, "mksquashfs", "root", "fs", "-quiet", "-no-progress", "-no-fragments")
	bubble(t, func(w *world) {
		p, _ := w.expanding("a", w.catalog, 64*mib)
		p.Jobs.Queues[job.Check] = new(sender)
		sha := w.hashAndInspect(p, packed(t, raw))
		w.until(p, job.Check.Task(string(sha)))
		if in := w.known(sha).Inside; in == nil || !in.Partial || in.System != "" || len(in.Unknown) != 1 {
			t.Fatalf("in passing: %+v", in)
		}
		p.inspections.take()
		w.expand(p, sha)
		if sent := p.inspections.take(); len(sent) != 1 {
			t.Fatalf("queued: %v", sent)
		}
		w.until(p, queue.InspectContent(sha))
		if in := w.known(sha).Inside; in == nil || in.Partial || in.System != "debian" || len(in.Unknown) > 0 {
			t.Errorf("of the disk: %+v", in)
		}
	})
}

// A run that is given up leaves nothing to do, also if an earlier version has checked the
// image.
func TestInsideGivenUp(t *testing.T) {
	bubble(t, func(w *world) {
		p, _ := w.checking("a", w.catalog)
		sha := w.hashAndInspect(p, packed(t, middling))
		w.until(p, job.Check.Task(string(sha)))
		w.change(sha, func(rec *content.Record) { rec.Inside = nil })
		if _, err := p.recordVerdict(t.Context(), sha, content.Check{Verdict: content.Cancelled}); err != nil {
			t.Fatal(err)
		}
		rec := w.known(sha)
		if rec.Check.Verdict != content.Good || rec.Pending() || rec.Inspectable() || !reflect.DeepEqual(rec.Inside, disk.Unread()) {
			t.Errorf("%+v", rec)
		}
	})
}

// A getter counts the requests for the bytes of an image.
type getter struct {
	store.Root
	n int
}

func (g *getter) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	g.n++
	return g.Root.Get(ctx, key, r, ifMatch)
}

// An inspection over a store that is not on this machine's disk takes few requests.
func TestInsideRequests(t *testing.T) {
	need.Programs(t, "mkfs.ext4")
	raw := system(t, t.TempDir(), false, "mkfs.ext4", "-q", "-d", "root", "fs", "64M")
	bubble(t, func(w *world) {
		p := w.process("a", w.catalog)
		at := p.imageAt(imageName, w.put(imageName, raw))
		root := &getter{Root: at.Root}
		at.Root = root
		rec, err := p.detect(t.Context(), at, content.Record{SHA256: sum256(raw)})
		if err != nil || rec.Inside == nil || rec.Inside.System != "debian" {
			t.Errorf("%+v %v", rec.Inside, err)
		}
		if root.n > 12 {
			t.Errorf("%d requests", root.n)
		}
	})
}

// localDisk has objects on this machine's disk. read is called for each read of one.
type localDisk struct {
	store.Root
	data []byte
	read func()
}

type localBody struct {
	store.Direct
	io.ReadCloser
	d localDisk
}

func (d localDisk) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	body, info, err := d.Root.Get(ctx, key, r, ifMatch)
	return localBody{nil, body, d}, info, err
}

func (b localBody) ReadObjectAt(p []byte, off int64) (int, error) {
	b.d.read()
	return bytes.NewReader(b.d.data).ReadAt(p, off)
}

// An inspection ends if its context does, whatever the disk makes it read.
func TestInsideEnds(t *testing.T) {
	need.Programs(t, "mkfs.ext4")
	raw := system(t, t.TempDir(), true, "mkfs.ext4", "-q", "-d", "root", "fs", "32M")
	root := memstore.New()
	version, err := root.Put(t.Context(), layout.ImageKey("a.img"), bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for last := 1; ; last++ {
		ctx, cancel := context.WithCancel(t.Context())
		reads := 0
		d := localDisk{root, raw, func() {
			if reads++; reads == last {
				cancel()
			}
		}}
		r, err := reader.Open(ctx, d, layout.ImageKey("a.img"), version)
		if err != nil {
			t.Fatal(err)
		}
		rec := content.Record{Content: content.Content{Kind: content.Unknown}}
		err = inspectAt(ctx, r, rec.Kind, &rec)
		cancel()
		if reads < last && err == nil && rec.Inside.System == "debian" {
			break // it had ended before
		}
		if reads > last || err != nil && !errors.Is(err, context.Canceled) || err == nil && reads != last {
			t.Fatalf("of %d reads, it did %d: %v %+v", last, reads, err, rec.Inside)
		}
	}
}
