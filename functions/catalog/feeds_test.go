package catalog

import (
	"fmt"
	"strings"
	"testing"

	"imageroot/functions/catalog/feed"
	"imageroot/shared/content"
)

// The checksum files name what can be downloaded, and sha256sum verifies it.
func TestChecksums(t *testing.T) {
	s := newRawServer(t, false)
	disk := []byte("the disk\x00")
	size, packed := int64(len(disk)), gzipped(t, disk)
	a := s.hashed("a.img", []byte("a\x00"), content.Record{Content: content.Content{Kind: content.MBR}})
	z := s.hashed("z.img.gz", packed, content.Record{
		Content: content.Content{Kind: content.Gzip},
		Check:   &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(disk)},
	})
	s.hashed("unchecked.img.gz", gzipped(t, []byte("unchecked\x00")), content.Record{Content: content.Content{Kind: content.Gzip}})
	spaced := s.hashed("with space.img", []byte("space\x00"), content.Record{Content: content.Content{Kind: content.MBR}})
	comma := s.hashed("a,b.img", []byte("comma\x00"), content.Record{Content: content.Content{Kind: content.MBR}})
	s.put("unhashed.img", []byte("unhashed\x00"))

	text := func(path string) string {
		t.Helper()
		r := s.want(s.ask("GET", path), 200)
		if head := s.want(s.ask("HEAD", path), 200); len(head.body) > 0 || r.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: %v, HEAD has %d bytes", path, r.header, len(head.body))
		}
		return string(r.body)
	}
	ofComma, ofA, ofZ := feed.Checksum(comma, "a,b.img"), feed.Checksum(a, "a.img"), feed.Checksum(z, "z.img.gz")
	for path, want := range map[string]string{
		"/images/SHA256SUMS":                          ofComma + ofA + feed.Checksum(sum(gzipped(t, []byte("unchecked\x00"))), "unchecked.img.gz") + ofZ,
		"/raw/SHA256SUMS":                             ofComma + ofA + feed.Checksum(sum(disk), "z.img"),
		"/images/" + string(z) + "/PULP_MANIFEST":     fmt.Sprintf("z.img.gz,%s,%d\n", z, len(packed)),
		"/images/" + string(comma) + "/PULP_MANIFEST": "",
		"/images/a.img.sha256":                        ofA,
		"/images/" + string(z) + "/z.img.gz.sha256":   ofZ,
		"/images/" + string(z) + "/other name.sha256": feed.Checksum(z, "other name"),
		"/images/" + string(z) + "/SHA256SUMS":        ofZ,
		"/raw/" + string(z) + "/SHA256SUMS":           feed.Checksum(sum(disk), "z.img"),
		"/images/" + string(z) + "/SHA512SUMS":        "",
		"/images/with space.img.sha256":               feed.Checksum(spaced, "with space.img"),
		"/raw/z.img.sha256":                           feed.Checksum(sum(disk), "z.img"),
		"/raw/" + string(z) + "/disk.img.sha256":      feed.Checksum(sum(disk), "disk.img"),
	} {
		got := text(strings.ReplaceAll(path, " ", "%20"))
		if got != want {
			t.Errorf("%s:\n%swant\n%s", path, got, want)
		}
	}
	for path, status := range map[string]int{
		"/images/" + strings.Repeat("0", 64) + "/SHA256SUMS": 404, "/images/" + string(z) + "/SHA256SUMS.gpg": 404, "/images/a.img/SHA256SUMS": 200,
		"/images/other.img.sha256": 404, "/images/.sha256": 404, "/raw/other.img.sha256": 404,
		"/images/unhashed.img.sha256": 503, "/raw/unhashed.img.sha256": 503, "/raw/unchecked.img.sha256": 503,
	} {
		s.want(s.ask("GET", path), status)
	}
	forged := s.ask("GET", fmt.Sprintf("/images/%s/x%%0A%s%%20%%20b.img.sha256", a, z))
	if strings.Contains(string(forged.body), "b.img") {
		t.Errorf("a name forges a line: %q", forged.body)
	}
	etag := s.ask("GET", "/images/SHA256SUMS").header.Get("Etag")
	s.want(s.ask("GET", "/images/SHA256SUMS", "If-None-Match", etag), 304)
}
