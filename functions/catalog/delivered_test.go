package catalog

import (
	"fmt"
	"net/http/httptest"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/served"
	"imageroot/shared/store/memstore"
	"imageroot/shared/web"
)

// Who got an image last: with a whole answer, or the last part of it.
func TestDelivered(t *testing.T) {
	s := newRawServer(t, false)
	disk := pattern(200 << 10)
	size := int64(len(disk))
	sha := s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	packed := s.hashed("z.img.gz", gzipped(t, disk), content.Record{
		Content: content.Content{Kind: content.Gzip}, Check: &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(disk)},
	})
	qcow := qcow2Of(t, disk)
	q := s.hashed("q.qcow2", qcow, content.Record{Content: content.Content{Kind: content.QCOW2}})
	handler := web.Handler(web.Config{Auth: everybody{}, PublicRead: true, Metric: s.f.Metric, Log: s.f.Log}, s.f.Routes())
	for _, c := range []struct {
		path, ranged, coding, want string
	}{
		{"/images/a.img", "", "", "[image]"},
		{"/images/z.img.gz", "", "", "[image]"},
		{"/raw/a.img", "", "", "[disk]"},
		{"/raw/a.img", "", "zstd", "[disk]"},
		{"/raw/z.img", "", "", "[disk]"},
		{"/raw/z.img", "", "zstd", "[disk]"},
		{"/raw/q.img", "", "", "[disk]"},
		{"/raw/q.img", "", "zstd", "[disk]"},
		{"/raw/a.img", "bytes=0-", "", "[disk]"},
		{"/raw/a.img", "bytes=100000-", "", "[disk]"},
		{"/raw/a.img", "bytes=-70000", "", "[disk]"},
		{"/raw/q.img", fmt.Sprintf("bytes=100000-%d", size-1), "", "[disk]"},
		{"/raw/a.img", "bytes=0-100000", "", "[]"},
		{"/raw/a.img", "bytes=-512", "", "[]"}, // a look at the end
		{"/raw/a.img", "bytes=0-1,100000-", "", "[]"},
		{"/raw/a.img", "bytes=900000-", "", "[]"},
		{"/raw/a.img.sha256", "", "", "[]"},
	} {
		for _, method := range []string{"HEAD", "GET"} {
			s.f.Served = &served.Log{Root: memstore.New(), Now: s.f.Now, Log: s.f.Log}
			r := httptest.NewRequestWithContext(s.Context(), method, c.path, nil)
			for name, value := range map[string]string{"Range": c.ranged, "Accept-Encoding": c.coding} {
				if value != "" {
					r.Header.Set(name, value)
				}
			}
			handler.ServeHTTP(httptest.NewRecorder(), r) // and returns once the answer is noted
			got := []string{}
			for _, key := range []string{string(sha), string(packed), string(q)} {
				d, err := s.f.Describe(s.Context(), key)
				if err != nil {
					t.Fatal(err)
				}
				for _, one := range d.Served {
					if one.To != "192.0.2.1" || one.Link {
						t.Errorf("%+v", one)
					}
					got = append(got, one.What)
				}
			}
			want := c.want
			if method == "HEAD" {
				want = "[]"
			}
			if fmt.Sprint(got) != want {
				t.Errorf("%s %s %s%s: %v, want %s", method, c.path, c.ranged, c.coding, got, want)
			}
		}
	}
}
