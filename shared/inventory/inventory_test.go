package inventory_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/disk"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/metadata"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

// A bench is an inventory of two roots that the tests write to directly.
type bench struct {
	*inventory.Inventory
	t               *testing.T
	images, catalog *faultstore.Root
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, images: faultstore.New(memstore.New(), nil), catalog: faultstore.New(memstore.New(), nil)}
	b.Inventory = b.restart()
	return b
}

// restart returns a new inventory over the same roots.
func (b *bench) restart() *inventory.Inventory {
	return inventory.New(inventory.Config{Images: b.images, Catalog: b.catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
}

func (b *bench) image(name image.Name, content string) store.Version {
	b.t.Helper()
	v, err := b.images.Put(b.t.Context(), layout.ImageKey(name), strings.NewReader(content), int64(len(content)))
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) record(key store.Key, v any) {
	b.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	written := strings.Replace(string(data), `"nonce":""`, `"nonce":"n"`, 1)
	if _, err := b.catalog.Put(b.t.Context(), key, strings.NewReader(written), int64(len(written))); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) hashed(name string, v store.Version, sha layout.SHA256) {
	b.t.Helper()
	b.record(layout.DigestKey(image.Name(name)), digest.Record{Name: image.Name(name), Version: v, SHA256: sha, By: digest.ByHash})
}

func (b *bench) snapshot() *inventory.Snapshot {
	b.t.Helper()
	if err := b.Reconcile(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	s, err := b.Snapshot(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// sha returns a digest that is easy to recognise.
func sha(c string) layout.SHA256 { return layout.SHA256(strings.Repeat(c, 64)) }

func src(name string) string { return "https://example.org/" + name }

// all returns all rows of a snapshot.
func all(s *inventory.Snapshot) (rows []inventory.Row) {
	for r := range s.Rows(nil) {
		rows = append(rows, *r)
	}
	return rows
}

// line formats a row: names|ref|format|size|sources|cached|state|warnings.
func line(r inventory.Row) string {
	ref, size := "-", "-"
	if r.Ref != nil {
		ref = (*r.Ref)[:1]
	}
	if r.SizeBytes != nil {
		size = fmt.Sprint(*r.SizeBytes)
	}
	var sources []string
	for _, s := range r.Sources {
		sources = append(sources, s.Kind+" "+s.Location)
	}
	return strings.Join([]string{
		strings.ReplaceAll(image.Join(r.Names), ", ", ","), ref, string(r.Format), size, strings.Join(sources, ","),
		fmt.Sprint(r.Cached), r.HashState, strings.Join(r.Warnings, ","),
	}, "|")
}

func (b *bench) rows(want ...string) *inventory.Snapshot {
	b.t.Helper()
	s := b.snapshot()
	var got []string
	for _, r := range all(s) {
		got = append(got, line(r))
		if r.Names == nil || r.Sources == nil || r.Warnings == nil {
			b.t.Errorf("a list of the row %q is nil, which JSON shows as null", line(r))
		}
		if (r.Ref == nil) != (r.SHA256 == nil) || r.Ref != nil && *r.Ref != string(r.Digest()[:12]) {
			b.t.Errorf("the row %q has another ref than its digest", line(r))
		}
	}
	if !reflect.DeepEqual(got, want) {
		b.t.Errorf("the rows are\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	return s
}

func (b *bench) manifest(images ...manifest.Image) {
	b.t.Helper()
	var data strings.Builder
	if err := manifest.Encode(&data, slices.Values(images)); err != nil {
		b.t.Fatal(err)
	}
	b.image(image.Name(layout.ManifestKey), data.String())
}

func bytes(n int64) *int64 { return &n }

func TestEmpty(t *testing.T) {
	b := newBench(t)
	s := b.rows()
	if s.Problem != "" || s.Len() != 0 {
		t.Errorf("an empty catalog: %+v", s)
	}
}

func TestLocal(t *testing.T) {
	b := newBench(t)
	v := b.image("b.img", "12345")
	b.image("A b+%41.qcow2", "1")
	b.image("b.img.sha256", "x") // a checksum list is no image,
	b.image("notes.txt", "x")    // nor is a text,
	b.image("dir/c.img", "x")    // nor an object below the top level
	s := b.rows(
		"A b+%41.qcow2|-|qcow2|1|local A b+%41.qcow2|true|unhashed|",
		"b.img|-|img|5|local b.img|true|unhashed|")
	if info, ok := s.Image("b.img"); !ok || !info.Equal(v) {
		t.Errorf("Image: %+v, %v", info, ok)
	}
	if _, ok := s.Image("c.img"); ok {
		t.Error("an image below the top level is there")
	}
	b.hashed("b.img", v, sha("b"))
	s = b.rows(
		"A b+%41.qcow2|-|qcow2|1|local A b+%41.qcow2|true|unhashed|",
		"b.img|b|img|5|local b.img|true|hashed|")
	row, ok := s.BySHA256(sha("b"))
	if !ok || row.Names[0] != "b.img" {
		t.Errorf("BySHA256: %+v, %v", row, ok)
	}
	if name, ok := row.Local(); !ok || name != "b.img" {
		t.Errorf("Local: %q, %v", name, ok)
	}
	if b.snapshot() != s {
		t.Error("without any change there is another snapshot")
	}
}

// A digest record applies to one version only.
func TestDigestOfAnotherVersion(t *testing.T) {
	b := newBench(t)
	v := b.image("x.img", "one")
	b.hashed("x.img", v, sha("a"))
	b.rows("x.img|a|img|3|local x.img|true|hashed|")
	b.image("x.img", "two")
	s := b.rows("x.img|-|img|3|local x.img|true|unhashed|")
	if _, ok := s.BySHA256(sha("a")); ok {
		t.Error("the digest of what was replaced is still served")
	}
	for name, other := range map[string]store.Version{
		"ETag":          {ETag: v.ETag + "0", Size: v.Size, LastModified: v.LastModified},
		"size":          {ETag: v.ETag, Size: v.Size + 1, LastModified: v.LastModified},
		"last modified": {ETag: v.ETag, Size: v.Size, LastModified: v.LastModified.Add(-time.Second)},
	} {
		b.image("y.img", "one")
		b.hashed("y.img", other, sha("a"))
		for _, r := range all(b.snapshot()) {
			if r.SHA256 != nil {
				t.Errorf("a record of another %s is believed: %s", name, line(r))
			}
		}
	}
	// An invalid digest does not count either.
	for _, bad := range []string{"", "abc", strings.Repeat("A", 64), strings.Repeat("z", 64)} {
		b.hashed("x.img", b.image("x.img", "two"), layout.SHA256(bad))
		b.record(layout.FetchedKey(layout.RefOf(src("f.img"))), entry.Fetched{Src: src("f.img"), SHA256: layout.SHA256(bad), SizeBytes: 1})
		b.record(layout.EntryKey(layout.RefOf(src("f.img"))), entry.Entry{URL: src("f.img"), Name: "f.img", Format: "img"})
		b.rows(
			"f.img|-|img|-|url https://example.org/f.img|false|unhashed|",
			"x.img|-|img|3|local x.img|true|unhashed|",
			"y.img|-|img|3|local y.img|true|unhashed|")
	}
}

func TestMerge(t *testing.T) {
	b := newBench(t)
	// One content: two local names, a manifest image, an entry, a blob.
	b.hashed("b.img", b.image("b.img", "12345"), sha("a"))
	b.hashed("a.img", b.image("a.img", "12345"), sha("a"))
	b.manifest(
		manifest.Image{Name: "m.img", Src: src("m.img"), SHA256: sha("a"), SizeBytes: bytes(5)},
		manifest.Image{Name: "alone.iso", Src: src("alone.iso")},
		manifest.Image{Name: "wrong.img", Src: src("wrong.img"), SHA256: sha("a"), SizeBytes: bytes(7)},
	)
	ref := layout.RefOf(src("e.img"))
	b.record(layout.EntryKey(ref), entry.Entry{URL: src("e.img"), Name: "e.img", Format: "img", SHA256: sha("a"), Changed: "it has changed"})
	s := b.rows(
		"a.img,b.img,m.img,wrong.img,e.img|a|img|5|local a.img,local b.img,manifest https://example.org/m.img,"+
			"manifest https://example.org/wrong.img,url https://example.org/e.img|true|hashed|"+
			"manifest https://example.org/wrong.img says 7 bytes, the image has 5,it has changed",
		"alone.iso|-|iso|-|manifest https://example.org/alone.iso|false|unhashed|")
	for _, name := range []string{"a.img", "b.img", "m.img", "e.img"} {
		if row, ok := s.ByName(image.Name(name)); !ok || row.Digest() != sha("a") {
			t.Errorf("ByName(%s): %+v, %v", name, row, ok)
		}
	}
	row, ok := s.BySource(ref)
	if !ok || row.Digest() != sha("a") {
		t.Errorf("BySource: %+v, %v", row, ok)
	}
	// Nothing was fetched, but the uploads were hashed.
	for _, p := range s.Publishers(row) {
		if p.Match == nil || !*p.Match {
			t.Errorf("%s is not verified by the upload: %+v", p.Location, p)
		}
	}
	if _, ok := s.ByName("A.IMG"); ok {
		t.Error("a name is found in another case")
	}
}

// A name is found in every Unicode normal form, its own first.
func TestSpellings(t *testing.T) {
	const composed, decomposed = "\u00fc.img.gz", "u\u0308.img.gz"
	for _, there := range []string{composed, decomposed} {
		b := newBench(t)
		b.image(image.Name(there), "one")
		for _, asked := range []string{composed, decomposed} {
			s := b.snapshot()
			if row, ok := s.ByName(image.Name(asked)); !ok || string(row.Names[0]) != there {
				t.Errorf("%+q is not found by %+q", there, asked)
			}
			if name, ok := s.Spelled(image.Name(asked)); !ok || string(name) != there {
				t.Errorf("%+q is spelled %+q, %v", asked, name, ok)
			}
			disk := image.Name(strings.TrimSuffix(asked, ".gz"))
			if names := s.ByDisk(disk); len(names) != 1 || string(names[0]) != there {
				t.Errorf("the disk in %+q is not found by %+q: %+q", there, disk, names)
			}
			if page, err := s.Query(inventory.Query{Text: asked}); err != nil || page.Total != 1 {
				t.Errorf("a search for %+q finds %d images, %v", asked, page.Total, err)
			}
		}
	}
	b := newBench(t)
	b.image(composed, "one")
	b.image(decomposed, "another")
	for _, name := range []string{composed, decomposed} {
		if row, ok := b.snapshot().ByName(image.Name(name)); !ok || row.Names[0] != image.Name(name) {
			t.Errorf("%+q is not found by its own name", name)
		}
	}
}

func TestSearchByDigest(t *testing.T) {
	b := newBench(t)
	b.hashed("a.img.gz", b.image("a.img.gz", "one"), sha("a"))
	b.hashed("b.img.gz", b.image("b.img.gz", "two"), sha("b"))
	b.record(layout.ContentKey(sha("a")), content.Record{
		SHA256: sha("a"), SizeBytes: 3, Content: content.Content{Kind: content.Gzip},
		Check: &content.Check{Verdict: content.Good, RawSizeBytes: bytes(9), RawSHA256: sha("c")},
	})
	for _, digest := range []string{string(sha("a")), string(sha("c")), strings.ToUpper(string(sha("c"))), string(sha("c")[:12])} {
		if page, err := b.snapshot().Query(inventory.Query{Text: digest}); err != nil || page.Total != 1 || page.Rows[0].Names[0] != "a.img.gz" {
			t.Errorf("a search for %s finds %d images, %v", digest, page.Total, err)
		}
	}
}

func TestFetched(t *testing.T) {
	b := newBench(t)
	ref := layout.RefOf(src("e.img"))
	b.record(layout.EntryKey(ref), entry.Entry{URL: src("e.img"), Name: "e.img", Format: "img"})
	b.rows("e.img|-|img|-|url https://example.org/e.img|false|unhashed|")
	// A fetch finds digest and size. The row is cached once the blob exists.
	b.record(layout.FetchedKey(ref), entry.Fetched{Src: src("e.img"), SHA256: sha("f"), SizeBytes: 9})
	s := b.rows("e.img|f|img|9|url https://example.org/e.img|false|hashed|")
	if all(s)[0].Blob {
		t.Error("a blob is there that is not")
	}
	b.record(layout.BlobKey(sha("f")), "bytes")
	s = b.rows("e.img|f|img|9|url https://example.org/e.img|true|hashed|")
	if !all(s)[0].Blob {
		t.Error("the blob is not there")
	}
	if _, ok := all(s)[0].Local(); ok {
		t.Error("what was fetched is local")
	}
	// The digest and size that the entry was added with stay.
	b.record(layout.EntryKey(ref), entry.Entry{URL: src("e.img"), Name: "e.img", Format: "img", SHA256: sha("e"), SizeBytes: bytes(8)})
	b.rows("e.img|e|img|8|url https://example.org/e.img|false|published|")
	// Bytes without a source have no row.
	if err := b.catalog.Delete(t.Context(), layout.EntryKey(ref)); err != nil {
		t.Fatal(err)
	}
	b.rows()
}

func TestByNamePrefersWhatIsHere(t *testing.T) {
	b := newBench(t)
	b.manifest(manifest.Image{Name: "x.img", Src: src("x.img"), SHA256: sha("0")})
	b.record(layout.EntryKey(layout.RefOf(src("2/x.img"))), entry.Entry{URL: src("2/x.img"), Name: "x.img", Format: "img", SHA256: sha("1")})
	is := func(want string) {
		t.Helper()
		row, ok := b.snapshot().ByName("x.img")
		if !ok || string(row.Digest()) != want {
			t.Errorf("x.img is %+v, want the digest %.1s", row, want)
		}
	}
	is(string(sha("0")))
	b.record(layout.BlobKey(sha("1")), "bytes")
	is(string(sha("1")))
	b.hashed("x.img", b.image("x.img", "local"), sha("2"))
	is(string(sha("2")))
	b.image("x.img", "not hashed yet")
	is("")
}

// The primary name of a content stays until it is removed, whatever names are added,
// and every process agrees on it.
func TestPrimaryName(t *testing.T) {
	b := newBench(t)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	hashed := func(name image.Name, after time.Duration) {
		v := b.image(name, "one")
		b.record(layout.DigestKey(name), digest.Record{Name: name, Version: v, SHA256: sha("a"), HashedAt: at.Add(after), By: digest.ByHash})
	}
	names := func(want string) {
		t.Helper()
		for range 2 {
			s := b.snapshot()
			if s.Len() != 1 || strings.ReplaceAll(image.Join(all(s)[0].Names), ", ", " ") != want || string(all(s)[0].Format) != strings.TrimPrefix(path.Ext(string(all(s)[0].Names[0])), ".") {
				t.Errorf("the rows are %v, want one of the names %q", all(s), want)
			}
			b.Inventory = b.restart()
		}
	}
	hashed("m.img", 0)
	names("m.img")
	hashed("z.img", time.Minute)
	hashed("a.raw", time.Hour) // sorts first
	names("m.img z.img a.raw")
	// An entry is no older than the record that gave its digest.
	ref := layout.RefOf(src("e.img"))
	b.record(layout.EntryKey(ref), entry.Entry{URL: src("e.img"), Name: "e.img", Format: "img", AddedAt: at.Add(-time.Hour)})
	b.record(layout.FetchedKey(ref), entry.Fetched{Src: src("e.img"), SHA256: sha("a"), SizeBytes: 3, At: at.Add(time.Second)})
	names("m.img e.img z.img a.raw")
	// A name in the manifest takes precedence.
	b.manifest(manifest.Image{Name: "chosen.iso", Src: src("c.iso"), SHA256: sha("a")})
	names("chosen.iso m.img e.img z.img a.raw")
	// The operator has the last word, while the image has that name.
	words := metadata.Record{SHA256: sha("a"), Words: metadata.Words{Name: "z.img"}}
	b.record(layout.MetadataKey(sha("a")), words)
	names("z.img chosen.iso m.img e.img a.raw")
	words.Name = "gone.img"
	b.record(layout.MetadataKey(sha("a")), words)
	names("chosen.iso m.img e.img z.img a.raw")
	for _, key := range []string{string(layout.ManifestKey), "m.img"} {
		if err := b.images.Delete(t.Context(), store.Key(key)); err != nil {
			t.Fatal(err)
		}
	}
	names("e.img z.img a.raw")
}

// An image is added when the first of its sources becomes known here, and a later fetch
// or hash does not move it.
func TestAdded(t *testing.T) {
	b := newBench(t)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	hashed := func(name, sum string, days int) {
		v := b.image(image.Name(name), name)
		b.record(layout.DigestKey(image.Name(name)), digest.Record{Name: image.Name(name), Version: v, SHA256: sha(sum), HashedAt: at.AddDate(0, 0, days), By: digest.ByHash})
	}
	hashed("second.img", "b", 2)
	hashed("again.img", "b", 9) // the same bytes
	hashed("fourth.img", "d", 4)
	b.image("last.img", "not hashed yet")
	b.manifest(manifest.Image{Name: "listed.img", Src: src("listed.img"), SHA256: sha("e")})
	ref := layout.RefOf(src("third.img"))
	b.record(layout.EntryKey(ref), entry.Entry{URL: src("third.img"), Name: "third.img", Format: "img", AddedAt: at.AddDate(0, 0, 3)})
	for _, fetched := range []bool{false, true} {
		if fetched {
			b.record(layout.FetchedKey(ref), entry.Fetched{Src: src("third.img"), SHA256: sha("c"), SizeBytes: 3, At: at.AddDate(0, 0, 8)})
		}
		for sort, want := range map[string]string{
			"added":  "listed.img second.img third.img fourth.img last.img",
			"-added": "last.img fourth.img third.img second.img listed.img",
		} {
			page, err := b.snapshot().Query(inventory.Query{Sort: sort})
			var names []string
			for _, r := range page.Rows {
				names = append(names, string(r.Names[0]))
			}
			if got := strings.Join(names, " "); err != nil || got != want {
				t.Errorf("fetched %v, %s: %q, %v, want %q", fetched, sort, got, err, want)
			}
		}
	}
}

// Metadata come from all origins, and queries select rows by them.
func TestMetadata(t *testing.T) {
	b := newBench(t)
	hashed := func(name image.Name, data, sum string) { b.hashed(string(name), b.image(name, data), sha(sum)) }
	hashed("Debian-12-arm64.img", "one", "a")
	hashed("disk.img.gz", "two", "b")
	hashed("same.qcow2", "three", "c")
	b.manifest(
		manifest.Image{Name: "listed.iso", Src: src("listed.iso"), SHA256: sha("d"), Fields: metadata.Fields{Title: "Listed", System: "ubuntu", Labels: map[string]string{"rack": "1"}}},
		manifest.Image{Name: "failed.img", Src: src("failed.img"), SHA256: sha("e")},
	)
	b.record(layout.EntryKey(layout.RefOf(src("listed.iso"))), entry.Entry{
		URL: src("listed.iso"), Name: "listed.iso", SHA256: sha("d"), Metadata: &metadata.Fields{Title: "Annotated", Description: "of a Registry"},
	})
	b.record(layout.FetchJobKey(layout.RefOf(src("failed.img"))), job.Job{Name: "failed.img", Src: src("failed.img"), Status: job.Failed, Error: "no route"})
	raw := &content.Check{Verdict: content.Good, RawSHA256: sha("a")}
	b.record(layout.ContentKey(sha("a")), content.Record{
		SHA256: sha("a"), Content: content.Content{Kind: content.GPT}, Inside: &disk.Inside{System: "debian", Version: "12.8", Title: "Debian GNU/Linux 12"},
	})
	b.record(layout.ContentKey(sha("b")), content.Record{SHA256: sha("b"), Content: content.Content{Kind: content.Gzip}, Check: raw})
	b.record(layout.ContentKey(sha("c")), content.Record{SHA256: sha("c"), Content: content.Content{Kind: content.QCOW2}, Check: raw})
	b.record(layout.MetadataKey(sha("b")), metadata.Record{SHA256: sha("b"), Words: metadata.Words{Fields: metadata.Fields{
		Title: "Packed", Architecture: "riscv64", Labels: map[string]string{"rack": "2", "row/a.b": ""},
	}}})
	b.record(layout.DiskJobKey(sha("c")), job.Job{Name: "same.qcow2", Stage: "disk", Status: job.Failed, Error: "no Room left"})
	for range 2 { // the second time, everything is read from the store
		s := b.snapshot()
		if row, _ := s.BySHA256(sha("c")); !slices.Equal(row.Warnings, []string{"making the disk failed: no Room left"}) {
			t.Errorf("the failure to make a disk is warned of as %q", row.Warnings)
		}
		for _, tt := range []struct {
			query inventory.Query
			want  string
		}{
			{inventory.Query{}, "Debian-12-arm64.img disk.img.gz failed.img listed.iso same.qcow2"},
			{inventory.Query{Filter: inventory.Filter{Architectures: []string{"AArch64", "riscv64", ""}}}, "Debian-12-arm64.img disk.img.gz"},
			{inventory.Query{Filter: inventory.Filter{Systems: []string{"Ubuntu"}}}, "listed.iso"},
			{inventory.Query{Filter: inventory.Filter{Systems: []string{"ubuntu", "debian"}}, Limit: 1, Sort: "-name"}, "listed.iso ..."},
			{inventory.Query{Filter: inventory.Filter{Labels: []string{"rack"}}}, "disk.img.gz listed.iso"},
			{inventory.Query{Filter: inventory.Filter{Labels: []string{"rack=2", "row/a.b="}}}, "disk.img.gz"},
			{inventory.Query{Filter: inventory.Filter{Labels: []string{"ack=2", "rack=", "2"}}}, ""},
			{inventory.Query{Filter: inventory.Filter{Formats: []string{"img", "ISO"}}}, "Debian-12-arm64.img failed.img listed.iso"},
			{inventory.Query{Filter: inventory.Filter{States: []string{inventory.Attention}}}, "failed.img same.qcow2"},
			{inventory.Query{Filter: inventory.Filter{States: []string{inventory.Available}}}, "failed.img listed.iso"},
			{inventory.Query{Filter: inventory.Filter{States: []string{inventory.Cached}, Labels: []string{"rack"}}, Text: "packed"}, "disk.img.gz"},
			{inventory.Query{Text: "gnu/linux"}, "Debian-12-arm64.img"},
			{inventory.Query{Text: "registry listed"}, "listed.iso"},
			{inventory.Query{Text: "annotated"}, ""}, // the manifest has another title
			{inventory.Query{Text: "gpt"}, "Debian-12-arm64.img"},
			{inventory.Query{Text: "room"}, "same.qcow2"},
			{inventory.Query{Text: "no route"}, "failed.img"},
			{inventory.Query{Text: "rack=1"}, "listed.iso"},
			{inventory.Query{Text: string(sha("a")[:20])}, "Debian-12-arm64.img disk.img.gz same.qcow2"},
		} {
			page, err := s.Query(tt.query)
			var names []string
			for _, r := range page.Rows {
				names = append(names, string(r.Names[0]))
			}
			if page.Next != "" {
				names = append(names, "...")
			}
			if got := strings.Join(names, " "); err != nil || got != tt.want {
				t.Errorf("%+v: %q, %v, want %q", tt.query, got, err, tt.want)
			}
		}
		for _, f := range []inventory.Filter{
			{Architectures: []string{"z80"}}, {Formats: []string{"tar"}}, {States: []string{"nonsense"}}, {Labels: slices.Repeat([]string{"a"}, inventory.MaxFilter+1)},
		} {
			if _, err := s.Query(inventory.Query{Filter: f}); err == nil {
				t.Errorf("%+v is valid", f)
			}
		}
		row, _ := s.ByName("disk.img.gz")
		if same := row.SameDisk; len(same) != 2 || same[0].Name != "Debian-12-arm64.img" || same[1].SHA256 != sha("c") {
			t.Errorf("the same disk is in %+v", same)
		}
		row, _ = s.ByName("Debian-12-arm64.img")
		if m := row.Metadata; m.Version.Value != "12.8" || m.Version.From != metadata.Inspection || m.Architecture.From != metadata.Name || m.Title.Get() != "Debian GNU/Linux 12" {
			t.Errorf("%+v", m)
		}
		said := s.Said(row.Head)
		if said.Title != "Debian GNU/Linux 12" || said.Architecture != "" {
			t.Errorf("%+v", said)
		}
		row, _ = s.ByName("listed.iso")
		if said := s.Said(row.Head); said.Description != "of a Registry" || said.Labels["rack"] != "1" {
			t.Errorf("%+v", said)
		}
		b.Inventory = b.restart()
	}
}

// A failed fetch shows in the row until the bytes are cached or another fetch begins.
func TestFailedFetch(t *testing.T) {
	b := newBench(t)
	ref := layout.RefOf(src("e.img"))
	b.record(layout.EntryKey(ref), entry.Entry{URL: src("e.img"), Name: "e.img", Format: "img", SHA256: sha("a"), SizeBytes: bytes(3)})
	const row = "e.img|a|img|3|url https://example.org/e.img|"
	b.rows(row + "false|published|")
	fetch := func(status job.Status) {
		b.record(layout.FetchJobKey(ref), job.Job{Name: "e.img", Src: src("e.img"), Status: status, Error: "the source has gone"})
	}
	fetch(job.Failed)
	if s := b.rows(row + "false|published|fetching https://example.org/e.img failed: the source has gone"); !all(s)[0].FetchFailed {
		t.Error("the row does not say that the fetch failed")
	}
	fetch(job.Running)
	b.rows(row + "false|published|")
	fetch(job.Failed)
	b.manifest(manifest.Image{Name: "e.img", Src: src("e.img"), SHA256: sha("a"), Format: "img", SizeBytes: bytes(3)})
	if w := all(b.snapshot())[0].Warnings; len(w) != 1 {
		t.Errorf("the failure of a URL in an entry and in the manifest is warned of as %q", w)
	}
	if err := b.images.Delete(t.Context(), layout.ManifestKey); err != nil {
		t.Fatal(err)
	}
	b.record(layout.BlobKey(sha("a")), "bytes")
	b.rows(row + "true|hashed|")
}

// An object that is not an image is listed with the reason, and logged once while it
// exists.
func TestOthers(t *testing.T) {
	b := newBench(t)
	var log strings.Builder
	hidden := []inventory.Other{{Name: "link.img", Reason: "a link"}}
	b.Inventory = inventory.New(inventory.Config{
		Images: b.images, Catalog: b.catalog, Now: time.Now, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Hidden: func() []inventory.Other { return hidden },
	})
	for _, name := range []string{"x.img", "x.img.sha256", string(layout.ManifestKey), "disk.tar.gz", "a.vma"} {
		b.image(image.Name(name), "version = 1")
	}
	names := func(want ...string) {
		t.Helper()
		var got []string
		for _, o := range b.snapshot().Others {
			got = append(got, o.Name)
			if o.Reason == "" {
				t.Errorf("%s: no reason", o.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("others are %q, want %q", got, want)
		}
	}
	names("a.vma", "disk.tar.gz", "link.img")
	b.image("y.img", "another")
	names("a.vma", "disk.tar.gz", "link.img")
	for _, name := range []string{"a.vma", "disk.tar.gz", "link.img"} {
		if n := strings.Count(log.String(), "name="+name); n != 1 {
			t.Errorf("%s is logged %d times:\n%s", name, n, log.String())
		}
	}
	hidden = nil
	names("a.vma", "disk.tar.gz")
}

func TestHashStates(t *testing.T) {
	for _, tt := range []struct {
		status         job.Status
		state, warning string
	}{
		{job.Queued, "queued", ""},
		{job.Running, "running", ""},
		{job.Failed, "failed", "hashing failed: the disk is broken"},
		{job.Cancelled, "unhashed", ""},
		{job.Completed, "unhashed", ""}, // of a previous version
	} {
		b := newBench(t)
		v := b.image("x.img", "one")
		j := job.Job{Name: "x.img", Status: tt.status}
		if tt.status == job.Failed {
			j.Error = "the disk is broken"
		}
		b.record(layout.HashJobKey("x.img"), j)
		b.rows("x.img|-|img|3|local x.img|true|" + tt.state + "|" + tt.warning)
		// A digest takes precedence over any job.
		b.hashed("x.img", v, sha("a"))
		b.rows("x.img|a|img|3|local x.img|true|hashed|")
		// A job without an image has no row.
		if err := b.images.Delete(t.Context(), "x.img"); err != nil {
			t.Fatal(err)
		}
		b.rows()
	}
}

func TestPublisherWarning(t *testing.T) {
	b := newBench(t)
	v := b.image("x.img", "one")
	b.record(layout.DigestKey("x.img"), digest.Record{
		Name: "x.img", Version: v, SHA256: sha("a"), By: digest.ByHash,
		Publishers: []digest.Publisher{{Algorithm: "sha256", Expected: string(sha("b")), Match: false}},
	})
	row := all(b.snapshot())[0]
	if len(row.Warnings) != 1 || !strings.Contains(row.Warnings[0], string(sha("b"))) {
		t.Errorf("an image that is not what its publisher says has the warnings %q", row.Warnings)
	}
	b.record(layout.DigestKey("x.img"), digest.Record{
		Name: "x.img", Version: v, SHA256: sha("a"), By: digest.ByHash,
		Publishers: []digest.Publisher{{Algorithm: "sha256", Expected: string(sha("a")), Match: true}},
	})
	b.rows("x.img|a|img|3|local x.img|true|hashed|")
}

func TestBadManifest(t *testing.T) {
	b := newBench(t)
	const good = "m.img|a|img|-|manifest https://example.org/m.img|false|published|"
	// The first manifest has an error: it has no rows, and the problem names the line.
	b.image(image.Name(layout.ManifestKey), "version = 1\n\nnonsense")
	if s := b.rows(); !strings.Contains(s.Problem, string(layout.ManifestKey)) || !strings.Contains(s.Problem, "line 3") {
		t.Errorf("the problem is %q", s.Problem)
	}
	b.manifest(manifest.Image{Name: "m.img", Src: src("m.img"), SHA256: sha("a")})
	if s := b.rows(good); s.Problem != "" {
		t.Errorf("a good manifest has the problem %q", s.Problem)
	}
	for _, bad := range []string{
		"version = 1\n\nnonsense",
		"",
		"version = 2",
		"version = 1\n[[images]]\nname = \"n.img\"\n",
		"version = 1\n#" + strings.Repeat("x", manifest.MaxBytes),
	} {
		b.image(image.Name(layout.ManifestKey), bad)
		s := b.rows(good)
		if !strings.Contains(s.Problem, "not in force") {
			t.Errorf("the problem of %.40q is %q", bad, s.Problem)
		}
		// The last good manifest survives a restart.
		b.Inventory = b.restart()
		if s := b.rows(good); !strings.Contains(s.Problem, "not in force") {
			t.Errorf("after a restart the problem of %.40q is %q", bad, s.Problem)
		}
	}
	b.manifest(manifest.Image{Name: "n.img", Src: src("n.img"), SHA256: sha("b")})
	if s := b.rows("n.img|b|img|-|manifest https://example.org/n.img|false|published|"); s.Problem != "" {
		t.Errorf("the fixed manifest has the problem %q", s.Problem)
	}
	// A removed manifest leaves no rows.
	if err := b.images.Delete(t.Context(), layout.ManifestKey); err != nil {
		t.Fatal(err)
	}
	if s := b.rows(); s.Problem != "" {
		t.Errorf("without a manifest the problem is %q", s.Problem)
	}
}

// TestErrors makes each call of a snapshot fail in turn. The snapshot fails or is
// right, and the next one is right.
func TestErrors(t *testing.T) {
	failed := 0
	for _, imageRoot := range []bool{true, false} {
		for n := 1; n <= 20; n++ {
			b := newBench(t)
			b.hashed("x.img", b.image("x.img", "one"), sha("a"))
			b.manifest(manifest.Image{Name: "m.img", Src: src("m.img"), SHA256: sha("b")})
			want := []string{
				"m.img|b|img|-|manifest https://example.org/m.img|false|published|",
				"x.img|a|img|3|local x.img|true|hashed|",
			}
			root := b.catalog
			if imageRoot {
				root = b.images
			}
			root.Reset(func(c faultstore.Call) faultstore.Fault {
				if c.N == n {
					return faultstore.Before
				}
				return faultstore.None
			})
			if s, err := b.Snapshot(t.Context()); err == nil && s.Len() != 2 {
				t.Errorf("call %d failed, and the snapshot has %d rows", n, s.Len())
			} else if err != nil {
				failed++
				if !errors.Is(err, faultstore.ErrInjected) {
					t.Errorf("call %d failed: %v", n, err)
				}
			}
			root.Reset(nil)
			if s := b.rows(want...); s.Problem != "" {
				t.Errorf("call %d failed once, and the problem is %q", n, s.Problem)
			}
		}
	}
	if failed < 8 {
		t.Errorf("%d failures were reported", failed)
	}
}

func TestJobsInOrder(t *testing.T) {
	b := newBench(t)
	at := func(s int) *time.Time {
		t := time.Date(2026, 1, 2, 3, 4, s, 0, time.UTC)
		return &t
	}
	for _, j := range []job.Job{
		{Name: "failed.img", Status: job.Failed, FinishedAt: at(1)},
		{Name: "done.img", Status: job.Completed, FinishedAt: at(5)},
		{Name: "second.img", Status: job.Queued, QueuedAt: *at(3)},
		{Name: "running.img", Status: job.Running, QueuedAt: *at(9)},
		{Name: "first.img", Status: job.Queued, QueuedAt: *at(2)},
		{Name: "cancelled.img", Status: job.Cancelled, FinishedAt: at(4)},
	} {
		b.record(layout.HashJobKey(j.Name), j)
		b.record(layout.FetchJobKey(layout.RefOf(string(j.Name))), j)
	}
	const want = "running.img first.img second.img done.img cancelled.img failed.img"
	hashes, err := b.Jobs(t.Context(), job.Hash, job.Check)
	fetches, err2 := b.Jobs(t.Context(), job.Fetch)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for kind, jobs := range map[string][]job.Job{"hash": hashes, "fetch": fetches} {
		var names []string
		for _, j := range jobs {
			names = append(names, string(j.Name))
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("the %s jobs are %s, want %s", kind, got, want)
		}
	}
	// The most recent ones, after changes.
	recent := func(ended int, want string, counts map[job.Status]int) {
		t.Helper()
		l, err := b.RecentJobs(t.Context(), ended, job.Hash, job.Check)
		var names []string
		for _, j := range l.Jobs {
			names = append(names, string(j.Name))
		}
		if got := strings.Join(names, " "); err != nil || got != want || !maps.Equal(l.Counts, counts) {
			t.Errorf("the %d most recent jobs are %s of %v, want %s of %v: %v", ended, got, l.Counts, want, counts, err)
		}
	}
	recent(1, "running.img first.img second.img done.img", map[job.Status]int{job.Running: 1, job.Queued: 2, job.Completed: 1, job.Cancelled: 1, job.Failed: 1})
	b.record(layout.HashJobKey("first.img"), job.Job{Name: "first.img", Status: job.Completed, FinishedAt: at(9)})
	b.record(layout.CheckJobKey(sha("a")), job.Job{Name: "checked.img", Status: job.Completed, FinishedAt: at(8)})
	b.TouchCatalog(layout.HashJobKey("first.img"))
	b.TouchCatalog(layout.CheckJobKey(sha("a")))
	recent(2, "running.img second.img first.img checked.img", map[job.Status]int{job.Running: 1, job.Queued: 1, job.Completed: 3, job.Cancelled: 1, job.Failed: 1})
	recent(0, "running.img second.img", map[job.Status]int{job.Running: 1, job.Queued: 1, job.Completed: 3, job.Cancelled: 1, job.Failed: 1})
}

// A write through an observed root is in the next snapshot.
func TestObserve(t *testing.T) {
	under := newBench(t)
	inv := inventory.New(inventory.Config{Images: under.images, Catalog: under.catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	images, catalog := inv.ObserveImages(under.images), inv.ObserveCatalog(under.catalog)
	count := func(want int, what string) {
		t.Helper()
		s, err := inv.Snapshot(t.Context())
		if err != nil || s.Len() != want {
			t.Fatalf("after %s: %v, %d rows, want %d", what, err, s.Len(), want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	count(0, "nothing")
	v, err := images.Put(ctx, "a.img", strings.NewReader("one"), 3)
	must(err)
	count(1, "Put")
	_, err = images.Move(ctx, "b.img", "a.img", v)
	must(err)
	count(2, "Move")
	id, err := images.CreateUpload(ctx, "c.img")
	must(err)
	p, err := images.UploadPart(ctx, "c.img", id, 1, strings.NewReader("one"), 3)
	must(err)
	_, err = images.CompleteUpload(ctx, "c.img", id, []store.Part{p})
	must(err)
	count(3, "CompleteUpload")
	must(images.Delete(ctx, "a.img"))
	count(2, "Delete")

	key := layout.EntryKey(layout.RefOf(src("e.img")))
	tag, err := catalog.CreateRecord(ctx, key, []byte(`{"nonce":"n","url":"https://example.org/e.img","name":"e.img","format":"img"}`))
	must(err)
	count(3, "CreateRecord")
	_, err = catalog.ReplaceRecord(ctx, key, []byte(`{"nonce":"n","url":"https://example.org/e.img","name":"f.img","format":"img"}`), tag)
	must(err)
	if s, err := inv.Snapshot(ctx); err != nil || all(s)[2].Names[0] != "f.img" {
		t.Errorf("after ReplaceRecord: %+v, %v", all(s), err)
	}
	must(catalog.Delete(ctx, key))
	count(2, "Delete of a record")
}
