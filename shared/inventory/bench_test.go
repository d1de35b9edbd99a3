package inventory_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// large is a catalog for benchmarks.
type large struct {
	tb              testing.TB
	images, catalog store.Root
}

func (l *large) put(root store.Root, key store.Key, data string) store.Version {
	l.tb.Helper()
	v, err := root.Put(l.tb.Context(), key, strings.NewReader(data), int64(len(data)))
	if err != nil {
		l.tb.Fatal(err)
	}
	return v
}

func (l *large) record(key store.Key, v any) {
	l.tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		l.tb.Fatal(err)
	}
	l.put(l.catalog, key, string(data))
}

func meta(i int) record.Meta {
	return record.Meta{Format: record.Format{Schema: 1}, Nonce: fmt.Sprintf("NONCE%021d", i)}
}

// image adds the i-th image, with its digest and its content.
func (l *large) image(i int) {
	name := image.Name(fmt.Sprintf("Debian-12-generic-%06d.img", i))
	sum := layout.SHA256(fmt.Sprintf("%08x%056x", uint32(i)*2654435761, i))
	at := time.Unix(1_700_000_000+int64(i), 0).UTC()
	v := l.put(l.images, layout.ImageKey(name), fmt.Sprint("image ", i))
	l.record(layout.DigestKey(name), digest.Record{Meta: meta(i), Name: name, Version: v, SHA256: sum, HashedAt: at, By: digest.ByHash})
	l.record(layout.ContentKey(sum), content.Record{
		Meta: meta(i), SHA256: sum, SizeBytes: v.Size, SniffedAt: at,
		Content: content.Content{Kind: content.MBR, What: "a disk with an MBR partition table", VirtualSize: &v.Size},
	})
}

// newLarge returns a catalog of n images. One in a hundred is an entry, another one is
// in the manifest, and the rest are in the image root.
func newLarge(tb testing.TB, n int) *large {
	l := &large{tb, memstore.New(), memstore.New()}
	var listed []manifest.Image
	for i := range n {
		switch i % 100 {
		case 50:
			url := fmt.Sprintf("https://downloads.example.org/releases/%d/entry-%06d.img.xz", i, i)
			size := int64(i)
			l.record(layout.EntryKey(layout.RefOf(url)), entry.Entry{Meta: meta(i), URL: url, Name: image.Name(fmt.Sprintf("entry-%06d.img.xz", i)), Format: "img.xz", SizeBytes: &size})
		case 51:
			listed = append(listed, manifest.Image{
				Name: image.Name(fmt.Sprintf("other-%06d.iso", i)), Src: fmt.Sprintf("https://example.org/other-%06d.iso", i), SHA256: layout.SHA256(fmt.Sprintf("%064x", i)),
			})
		default:
			l.image(i)
		}
	}
	var data strings.Builder
	if err := manifest.Encode(&data, slices.Values(listed)); err != nil {
		tb.Fatal(err)
	}
	l.put(l.images, layout.ManifestKey, data.String())
	return l
}

// open returns an inventory whose index is loaded.
func (l *large) open() *inventory.Inventory {
	l.tb.Helper()
	inv := inventory.New(inventory.Config{Images: l.images, Catalog: l.catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if _, err := inv.Jobs(l.tb.Context(), job.Check); err != nil {
		l.tb.Fatal(err)
	}
	return inv
}

func (l *large) snapshot(inv *inventory.Inventory) *inventory.Snapshot {
	l.tb.Helper()
	s, err := inv.Snapshot(l.tb.Context())
	if err != nil {
		l.tb.Fatal(err)
	}
	return s
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkCatalog measures a catalog of several sizes: making its snapshot, changing
// it, and reading it. The bytes of heap are those of the index and of the snapshot.
func BenchmarkCatalog(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkCatalog(b, newLarge(b, n), n) })
	}
}

func benchmarkCatalog(b *testing.B, l *large, n int) {
	mib := func(b *testing.B, from, to uint64, name string) {
		b.ReportMetric((float64(to)-float64(from))/(1<<20), name+"-MiB")
	}
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			before := liveHeap()
			inv := l.open()
			loaded := liveHeap()
			b.StartTimer()
			s := l.snapshot(inv)
			b.StopTimer()
			after := liveHeap()
			mib(b, before, loaded, "index")
			mib(b, loaded, after, "snapshot")
			runtime.KeepAlive(s)
			runtime.KeepAlive(inv)
			b.StartTimer()
		}
	})
	inv := l.open()
	s := l.snapshot(inv)
	size, name := 0, image.Name("Debian-12-generic-000007.img")
	b.Run("changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			size++
			l.put(l.images, layout.ImageKey(name), fmt.Sprint("changed ", size))
			inv.TouchImage(layout.ImageKey(name))
			b.StartTimer()
			s = l.snapshot(inv)
		}
	})
	next := ""
	for _, sort := range []string{"name", "-size"} {
		for range n / 200 {
			page, err := s.Query(inventory.Query{Sort: sort, Cursor: next})
			if err != nil {
				b.Fatal(err)
			}
			next = page.Next
		}
		b.Run("deep/"+sort, func(b *testing.B) {
			query(b, s, inventory.Query{Sort: sort, Cursor: next})
		})
		next = ""
	}
	for _, f := range inventory.Sorts() {
		for _, sort := range []string{f, "-" + f} {
			b.Run("sort/"+sort, func(b *testing.B) { query(b, s, inventory.Query{Sort: sort}) })
		}
	}
	for what, text := range map[string]string{"common": "generic", "rare": "000042", "none": "no such image", "digest": "00000000"} {
		b.Run("search/"+what, func(b *testing.B) { query(b, s, inventory.Query{Text: text}) })
		b.Run("search-size/"+what, func(b *testing.B) { query(b, s, inventory.Query{Text: text, Sort: "-size"}) })
	}
	for what, f := range map[string]inventory.Filter{
		"arch": {Architectures: []string{"arm64", "amd64"}}, "os": {Systems: []string{"debian"}}, "label": {Labels: []string{"rack=3", "row"}},
		"state": {States: []string{inventory.Attention}}, "all": {Systems: []string{"debian"}, Formats: []string{"img", "iso"}, States: []string{inventory.Cached}},
	} {
		b.Run("filter/"+what, func(b *testing.B) { query(b, s, inventory.Query{Filter: f}) })
		b.Run("filter-size-search/"+what, func(b *testing.B) { query(b, s, inventory.Query{Filter: f, Text: "generic", Sort: "-size"}) })
	}
	page, err := s.Query(inventory.Query{Sort: "-name"})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("rows", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for range s.Rows(nil) {
			}
		}
	})
	ref := string(page.Rows[len(page.Rows)-1].Digest()[:16])
	b.Run("byref", func(b *testing.B) {
		for b.Loop() {
			if _, ok := s.ByRef(ref); !ok {
				b.Fatal("not found")
			}
		}
	})
}

func query(b *testing.B, s *inventory.Snapshot, q inventory.Query) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Query(q); err != nil {
			b.Fatal(err)
		}
	}
}
