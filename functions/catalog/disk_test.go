package catalog

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store/memstore"
)

// hashed stores an image with its records, and returns its SHA-256.
func (s *rawServer) hashed(name image.Name, b []byte, rec content.Record) layout.SHA256 {
	s.Helper()
	s.put(name, b)
	info, err := s.f.Images.Head(s.Context(), layout.ImageKey(name))
	if err != nil {
		s.Fatal(err)
	}
	rec.SHA256, rec.SizeBytes = sum(b), info.Size
	d := digest.Record{Name: name, Version: info.Version, SHA256: rec.SHA256, By: digest.ByHash}
	if _, err := record.Swap(s.Context(), s.f.Catalog, layout.DigestKey(name), &d, ""); err != nil {
		s.Fatal(err)
	}
	if _, err := record.Swap(s.Context(), s.f.Catalog, layout.ContentKey(rec.SHA256), &rec, ""); err != nil {
		s.Fatal(err)
	}
	return rec.SHA256
}

// The disk of a compressed image is served in ranges. Those who have begun with the stream
// can go on with it.
func TestRawDisk(t *testing.T) {
	both(t, func(t *testing.T, direct bool) {
		s, raw := newRawServer(t, direct), someDisk()
		size, old := int64(len(raw)), time.Now().Add(-time.Hour).UTC()
		packed := gzipped(t, raw)
		sha := s.hashed("x.img.gz", packed, content.Record{
			Content: content.Content{Kind: content.Gzip}, Check: &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(raw)},
			Disk: &content.Disk{SizeBytes: size, StoredBytes: size, MadeAt: old, UsedAt: old},
		})
		// The record knows of a disk that is not there.
		stream := s.want(s.ask("GET", "/raw/x.img"), 200)
		s.same(stream, raw)
		if stream.header.Get("Accept-Ranges") != "none" {
			t.Errorf("%v", stream.header)
		}
		if _, err := s.f.Catalog.Put(t.Context(), layout.DiskKey(sha), bytes.NewReader(raw), size); err != nil {
			t.Fatal(err)
		}
		whole := s.want(s.ask("GET", "/raw/x.img"), 200)
		s.same(whole, raw)
		for _, field := range []string{"ETag", "Repr-Digest", "Content-Length", "Content-Disposition", "Content-Type"} {
			if whole.header.Get(field) != stream.header.Get(field) {
				t.Errorf("%s is %q of the disk and %q of the stream", field, whole.header.Get(field), stream.header.Get(field))
			}
		}
		part := s.want(s.ask("GET", "/raw/"+string(sha)+"/x.img", "Range", "bytes=5000000-", "If-Range", stream.header.Get("ETag")), 206)
		s.same(part, raw[5_000_000:])
		s.same(s.want(s.ask("GET", "/raw/x.img.gz", "Range", "bytes=-100"), 206), raw[len(raw)-100:])
		s.same(s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=10-19", "If-Range", `"other"`), 200), raw)
		s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=99999999-"), 416)
		if head := s.want(s.ask("HEAD", "/raw/x.img"), 200); head.header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("HEAD: %v", head.header)
		}
		s.same(&reply{body: unzstd(t, s.want(s.ask("GET", "/raw/x.img", "Accept-Encoding", "zstd"), 200).body)}, raw)
		// Bytes of the image itself are as before.
		s.same(s.want(s.ask("GET", "/images/x.img.gz"), 200), packed)

		rec, _, err := record.Read[content.Record](t.Context(), s.f.Catalog, layout.ContentKey(sha))
		if err != nil || !rec.Disk.UsedAt.After(old) {
			t.Errorf("the use was not recorded: %+v, %v", rec.Disk, err)
		}
	})
}

// A disk stays in use while a client reads it.
func TestDiskInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := newCatalog(t, memstore.New())
		sha := sum([]byte("x"))
		for _, before := range []time.Duration{0, time.Minute, time.Hour} { // when it was used last
			used := time.Now().Add(-before).UTC()
			rec := content.Record{
				SHA256: sha, SizeBytes: 1, Content: content.Content{Kind: content.Gzip}, Disk: &content.Disk{SizeBytes: 1, MadeAt: used, UsedAt: used},
			}
			_, tag, err := f.Catalog.ReadRecord(t.Context(), layout.ContentKey(sha))
			if err != nil && !notFound(err) {
				t.Fatal(err)
			}
			if _, err := record.Swap(t.Context(), f.Catalog, layout.ContentKey(sha), &rec, tag); err != nil {
				t.Fatal(err)
			}
			end := f.use(t.Context(), &object{sha256: sha, known: &rec})
			inUse := func() bool {
				now, _, err := record.Read[content.Record](t.Context(), f.Catalog, layout.ContentKey(sha))
				if err != nil {
					t.Fatal(err)
				}
				return now.Disk.InUse(time.Now())
			}
			for minute := range 60 {
				if !inUse() {
					t.Fatalf("used %v before: not in use after %d minutes", before, minute)
				}
				time.Sleep(time.Minute)
			}
			end()
			time.Sleep(time.Hour)
			if inUse() {
				t.Errorf("used %v before: in use although nobody reads it", before)
			}
		}
	})
}

// A request of a part of the disk of a compressed image has the disk made, and is told so.
func TestRawMakesDisk(t *testing.T) {
	s, raw := newRawServer(t, false), someDisk()
	sha := s.hashed("x.img.gz", gzipped(t, raw), content.Record{Content: content.Content{Kind: content.Gzip}})
	s.put("new.img.gz", gzipped(t, raw[:1<<20])) // its digest is not known
	active, asked, failure := true, 0, error(nil)
	s.f.MakeDisk = func(_ context.Context, sha256 layout.SHA256, name image.Name) (bool, int64, error) {
		if asked++; sha256 != sha || name != "x.img.gz" {
			t.Errorf("asked for the disk of %s, %s", name, sha256)
		}
		return active, 4321, failure
	}
	for _, fields := range [][]string{nil, {"Range", "bytes=0-"}, {"Range", "seconds=1-2"}, {"Range", "bytes=-0"}} {
		s.same(s.want(s.ask("GET", "/raw/x.img", fields...), 200), raw)
	}
	s.same(s.want(s.ask("GET", "/raw/new.img", "Range", "bytes=5-"), 200), raw[:1<<20])
	s.want(s.ask("HEAD", "/raw/x.img", "Range", "bytes=5-"), 200)
	if asked != 0 {
		t.Errorf("asked %d times for a disk that nobody needs", asked)
	}
	s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=5-", "Accept-Encoding", "zstd"), 200)
	r := s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=0-511"), 503, "4321 bytes", "try again")
	if r.header.Get("Retry-After") == "" || asked != 1 {
		t.Errorf("asked %d times, %v", asked, r.header)
	}
	// If it cannot be made, there is the stream.
	active = false
	s.same(s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=5-"), 200), raw)
	failure = errors.New("the store is down")
	s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=5-"), 500)
	s.f.MakeDisk = nil
	s.same(s.want(s.ask("GET", "/raw/x.img", "Range", "bytes=5-"), 200), raw)
}
