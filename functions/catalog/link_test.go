package catalog

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// bucketLinks presigns URLs of the objects in a bucket.
type bucketLinks struct{ bucket string }

func (bucketLinks) PresignPut(context.Context, store.Key, string, bool) (string, error) {
	panic("not used")
}

func (bucketLinks) PresignPart(context.Context, store.Key, string, int32) (string, error) {
	panic("not used")
}

func (l bucketLinks) PresignGet(_ context.Context, key store.Key, h store.GetHeader) (string, error) {
	return "https://" + l.bucket + "/" + string(key) + "?type=" + url.QueryEscape(h.Type) + "&as=" + url.QueryEscape(h.Disposition), nil
}

func (l bucketLinks) PresignHead(_ context.Context, key store.Key) (string, error) {
	return "https://" + l.bucket + "/" + string(key) + "?head", nil
}

// newLinkedServer returns a server through which no bytes pass.
func newLinkedServer(t *testing.T) *rawServer {
	s := newRawServer(t, false)
	s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.f.ImageLinks, s.f.CatalogLinks = bucketLinks{"images"}, bucketLinks{"catalog"}
	return s
}

// leads checks that a request is redirected to an object under the name of a disk.
func (s *rawServer) leads(method, path, to, name string) {
	s.Helper()
	r := s.want(s.ask(method, path, "Range", "bytes=5-"), 307)
	if method == "HEAD" {
		name = "head"
	}
	if at := r.header.Get("Location"); !strings.HasPrefix(at, "https://"+to+"?") || !strings.HasSuffix(at, name) || r.header.Get("ETag") != "" {
		s.Errorf("%s %s leads to %s, %v; want %s, %s", method, path, at, r.header, to, name)
	}
}

// A plain image is its own disk, whether it is inspected or not.
func TestRawLinks(t *testing.T) {
	t.Parallel()
	s := newLinkedServer(t)
	disk := someDisk()[:1<<20]
	sha := s.hashed("known.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	s.put("new.img", disk[:1<<19])
	for _, method := range []string{"GET", "HEAD"} {
		s.leads(method, "/raw/known.img", "images/known.img", "filename%3Dknown.img")
		s.leads(method, "/raw/"+string(sha)+"/x.raw", "images/known.img", "filename%3Dx.raw")
		s.leads(method, "/raw/new.img", "images/new.img", "filename%3Dnew.img")
	}
	s.want(s.ask("GET", "/raw/none.img"), 404)
	s.put("page.img", []byte("<html><body>404"))
	s.want(s.ask("GET", "/raw/page.img"), 422)
}

// The disk in another image is an object of its own, which a request has made.
func TestRawLinksDisk(t *testing.T) {
	t.Parallel()
	s := newLinkedServer(t)
	raw := someDisk()
	for name, kind := range map[image.Name]content.Kind{"a.img.gz": content.Gzip, "b.qcow2": content.QCOW2} {
		size, old := int64(len(raw)), time.Now().Add(-time.Hour).UTC()
		rec := content.Record{
			Content: content.Content{Kind: kind}, Check: &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(raw)},
		}
		sha := s.hashed(name, []byte(name), rec)
		path := "/raw/" + string(image.DiskName(name))

		// Without disks, the machine unpacks it.
		s.f.MakeDisk, s.f.DisksMax = nil, 0
		s.want(s.ask("GET", path), 409, "makes no disks", "/images/"+string(sha)+"/"+string(name))
		s.f.DisksMax = 1 << 30
		s.want(s.ask("GET", path), 409, "POST /catalog/disks")
		s.want(s.ask("HEAD", path), 409)

		active, asked := true, 0
		s.f.MakeDisk = func(_ context.Context, of layout.SHA256, as image.Name) (bool, int64, error) {
			if asked++; of != sha || as != name {
				t.Errorf("asked for the disk of %s, %s", as, of)
			}
			return active, 4321, nil
		}
		for _, fields := range [][]string{nil, {"Range", "bytes=0-"}, {"Range", "bytes=5-9"}, {"Accept-Encoding", "zstd"}} {
			if r := s.want(s.ask("GET", path, fields...), 503, "4321 bytes", "try again"); r.header.Get("Retry-After") == "" {
				t.Errorf("%v", r.header)
			}
		}
		s.want(s.ask("HEAD", path), 503)
		active = false
		s.want(s.ask("GET", path), 409, "could not be made", "/dev/sdX")

		// There is a disk.
		rec.Disk = &content.Disk{SizeBytes: size, StoredBytes: size, MadeAt: old, UsedAt: old}
		rec.SHA256, rec.SizeBytes = sha, int64(len(name))
		_, tag, err := s.f.Catalog.ReadRecord(t.Context(), layout.ContentKey(sha))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := record.Swap(t.Context(), s.f.Catalog, layout.ContentKey(sha), &rec, tag); err != nil {
			t.Fatal(err)
		}
		active = true
		s.want(s.ask("GET", path), 503) // that was removed
		if _, err := s.f.Catalog.Put(t.Context(), layout.DiskKey(sha), bytes.NewReader(raw), size); err != nil {
			t.Fatal(err)
		}
		asked = 0
		for _, method := range []string{"GET", "HEAD"} {
			s.leads(method, path, "catalog/disks/"+string(sha), "filename%3D"+string(image.DiskName(name)))
		}
		if r := s.want(s.ask("GET", path), 307); r.header.Get("Repr-Digest") == "" || asked != 0 {
			t.Errorf("asked %d times, %v", asked, r.header)
		}
		now, _, err := record.Read[content.Record](t.Context(), s.f.Catalog, layout.ContentKey(sha))
		if err != nil || !now.Disk.UsedAt.After(old) {
			t.Errorf("the use was not recorded: %+v, %v", now.Disk, err)
		}
	}
	// An image that is not inspected yet will be.
	s.put("new.img.gz", gzipped(t, raw[:1<<20]))
	if r := s.want(s.ask("GET", "/raw/new.img"), http.StatusServiceUnavailable, "not inspected yet"); r.header.Get("Retry-After") == "" {
		t.Errorf("%v", r.header)
	}
}
