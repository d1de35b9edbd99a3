package catalog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

func TestOpenDisk(t *testing.T) {
	f, _ := newCatalog(t, memstore.New())
	data := bytes.Repeat([]byte("\x00123456789abcdef"), 3<<16) // several chunks
	put := func(name image.Name, data []byte) {
		t.Helper()
		if _, err := f.Images.Put(t.Context(), layout.ImageKey(name), bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	put("a.img", data)
	put("packed.img", append([]byte("\x1f\x8b\x08"), data...))
	put("packed.img.gz", data[:10])
	learn(t, f, "a.img", content.Record{Content: content.Content{Kind: content.MBR}})
	learn(t, f, "packed.img", content.Record{Content: content.Content{Kind: content.Gzip}})
	var names []image.Name
	for name, err := range f.DiskNames(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if !slices.Equal(names, []image.Name{"a.img"}) {
		t.Errorf("the disks are %q", names)
	}
	sha := string(sum([]byte("a.img")))
	for _, key := range []string{"a.img", sha, sha[:12], strings.ToUpper(sha)} {
		disk, err := f.OpenDisk(t.Context(), key)
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		if got, err := io.ReadAll(io.NewSectionReader(disk, 0, disk.Size())); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
		if n, zeros, err := disk.Extent(5, 1000); n != 995 || zeros || err != nil {
			t.Errorf("an extent of %d, zero: %v, %v", n, zeros, err)
		}
		disk.Close()
	}
	for key, want := range map[string]problem.Code{
		"packed.img": problem.Conflict, "b.img": problem.NotFound, "": problem.NotFound, sha[:11]: problem.NotFound, "../a.img": problem.NotFound,
	} {
		if _, err := f.OpenDisk(t.Context(), key); problem.From(err).Code != want {
			t.Errorf("%q: %v", key, err)
		}
	}
	if len(f.disks.all) != 0 || f.disks.held != 0 {
		t.Errorf("%d disks of %d bytes are open yet", len(f.disks.all), f.disks.held)
	}

	disk, err := f.OpenDisk(t.Context(), "a.img")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	put("a.img", data[1:])
	if _, err := disk.ReadAt(make([]byte, 10), 1<<20); !errors.Is(err, store.ErrChanged) {
		t.Errorf("a replaced image: %v", err)
	}
}

// TestDiskOfRemoteFile tests that the bytes of a file that is edited in place, while it
// is read from another runner, are not served.
func TestDiskOfRemoteFile(t *testing.T) {
	edited := &editedRoot{Root: memstore.New()}
	f, _ := newCatalog(t, edited)
	if _, err := f.Images.Put(t.Context(), "a.img", strings.NewReader(strings.Repeat("\x00", 3<<20)), 3<<20); err != nil {
		t.Fatal(err)
	}
	disk, err := f.OpenDisk(t.Context(), "a.img")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	edited.changed = true
	if n, err := disk.ReadAt(make([]byte, 10), 1<<20); n != 0 || !errors.Is(err, store.ErrChanged) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// An editedRoot serves the bytes of an object whose version is another one afterwards.
type editedRoot struct {
	store.Root
	changed bool
}

func (r *editedRoot) Head(ctx context.Context, key store.Key) (store.Info, error) {
	info, err := r.Root.Head(ctx, key)
	if r.changed {
		info.ETag += "-edited"
	}
	return info, err
}

func TestOpenDisksAreLimited(t *testing.T) {
	f, _ := newCatalog(t, memstore.New())
	for i := range openBytes/chunkedBytes + 1 {
		name := image.Name(strings.Repeat("x", i+1) + ".img")
		if _, err := f.Images.Put(t.Context(), layout.ImageKey(name), strings.NewReader("\x00\x00\x00\x00"), 4); err != nil {
			t.Fatal(err)
		}
		disk, err := f.OpenDisk(t.Context(), string(name))
		if i == openBytes/chunkedBytes {
			if problem.From(err).Code != problem.Unavailable {
				t.Errorf("disk %d: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		again, err := f.OpenDisk(t.Context(), string(name))
		if err != nil {
			t.Errorf("the same disk again: %v", err)
			continue
		}
		defer again.Close()
	}
}
