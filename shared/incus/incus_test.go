package incus

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/layout"
)

// Other bytes would be another fingerprint of each image, for which all would be read again.
func TestTarballs(t *testing.T) {
	for architecture, sha256 := range map[string]layout.SHA256{
		"amd64":   "a5a7835fc6caa1647a99a08c73c54a96102129c7dfc8d93a3aaa676d4708915c",
		"arm64":   "3337bf13247bbbc71e139d003b6f8824e90443dc361ac41dece369d2b220af78",
		"ppc64el": "b872da1a8697deb6474993e5ff6a360c213ba3f5c60e49f4835b601e03a3c1df",
		"s390x":   "222df195e6ad4d0f5fc020861ee6b7a5a9e7f94471956c636a3d0dc5ba0b3de5",
	} {
		tarball := tarballs[architecture]
		if tarball.SHA256 != sha256 || Find(sha256) != tarball {
			t.Errorf("the SHA-256 for %s is %s", architecture, tarball.SHA256)
		}
	}
	r := tar.NewReader(bytes.NewReader(tarballs["amd64"].Bytes))
	h, err := r.Next()
	if err != nil || h.Name != "metadata.yaml" {
		t.Fatalf("%+v %v", h, err)
	}
	text, err := io.ReadAll(r)
	if err != nil || string(text) != "architecture: x86_64\ncreation_date: 946684800\n" {
		t.Errorf("%q %v", text, err)
	}
}

func TestMissing(t *testing.T) {
	amd64, arm64 := tarballs["amd64"], tarballs["arm64"]
	good := func(change func(*content.Record)) *content.Record {
		r := &content.Record{Content: content.Content{Kind: content.QCOW2}, Check: &content.Check{Verdict: content.Good}}
		change(r)
		return r
	}
	for what, tt := range map[string]struct {
		record *content.Record
		want   *Tarball
	}{
		"not computed":             {good(func(*content.Record) {}), amd64},
		"of another architecture":  {good(func(r *content.Record) { r.Fingerprint = &content.Fingerprint{Metadata: arm64.SHA256} }), amd64},
		"computed":                 {good(func(r *content.Record) { r.Fingerprint = &content.Fingerprint{Metadata: amd64.SHA256} }), nil},
		"given up":                 {good(func(r *content.Record) { r.Fingerprint = &content.Fingerprint{GivenUp: true} }), nil},
		"not checked":              {good(func(r *content.Record) { r.Check = nil }), nil},
		"damaged":                  {good(func(r *content.Record) { r.Check.Verdict = content.Damaged }), nil},
		"raw":                      {good(func(r *content.Record) { r.Kind = content.MBR }), nil},
		"another virtual image":    {good(func(r *content.Record) { r.Kind = content.VMDK }), nil},
		"compressed virtual image": {good(func(r *content.Record) { r.Kind, r.Inner = content.Gzip, content.QCOW2 }), nil},
	} {
		if got := Missing(tt.record, "amd64"); got != tt.want {
			t.Errorf("%s: %+v", what, got)
		}
		for _, unknown := range []string{"", "x86_64", "riscv64"} {
			if Missing(tt.record, unknown) != nil {
				t.Errorf("%s: a tarball for %q", what, unknown)
			}
		}
		_, _, known := Of(tt.record, "amd64")
		if known != (what == "computed") {
			t.Errorf("%s: known %v", what, known)
		}
	}
}
