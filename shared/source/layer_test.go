package source

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func layer(title string, size int64) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromString(title), Size: size}
	if title != "" {
		d.Annotations = map[string]string{ocispec.AnnotationTitle: title}
	}
	return d
}

func TestChooseLayer(t *testing.T) {
	empty := layer("", 2)
	empty.MediaType = ocispec.MediaTypeEmptyJSON
	undigested := layer("big.img", 900)
	undigested.Digest = "sha256:short"
	for _, tt := range []struct {
		name   string
		layers []ocispec.Descriptor
		want   string // title, or "!" and part of the error
	}{
		{"one", []ocispec.Descriptor{layer("x.img", 10)}, "x.img"},
		{"the largest", []ocispec.Descriptor{layer("a.img", 10), layer("b.img", 30), layer("c.img", 20)}, "b.img"},
		{"side files are larger", []ocispec.Descriptor{
			layer("x.img.sha256", 500), layer("X.IMG.SIG", 500), layer("x.img.asc", 500), layer("x.sbom", 500), layer("x.spdx.json", 500),
			layer("SHA256SUMS", 500), layer("x.img", 10), layer("README.md", 500), layer("x.intoto.jsonl", 500),
		}, "x.img"},
		{"without a title", []ocispec.Descriptor{layer("", 10), layer("x.json", 30)}, ""},
		{"paths", []ocispec.Descriptor{layer("out/dir/x.img", 10)}, "x.img"},
		{"paths of Windows", []ocispec.Descriptor{layer(`C:\out\x.img`, 10)}, "x.img"},
		{"no bytes", []ocispec.Descriptor{layer("zero.img", 0), layer("x.img", 1)}, "x.img"},
		{"no digest", []ocispec.Descriptor{undigested, layer("x.img", 1)}, "x.img"},
		{"side files only", []ocispec.Descriptor{layer("x.img.sha256", 64), layer("SHA256SUMS", 1)}, "!side files only"},
		{"nothing", []ocispec.Descriptor{empty}, "!no layer"},
		{"no layers", nil, "!no layer"},
	} {
		got, err := chooseLayer(tt.layers)
		if want, bad := strings.CutPrefix(tt.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: chose %+v, %v; want an error about %q", tt.name, got, err, want)
			}
		} else if err != nil || titleOf(got) != want {
			t.Errorf("%s: chose %q, %v; want %q", tt.name, titleOf(got), err, want)
		}
	}
}

func TestChoosePlatform(t *testing.T) {
	m := func(os, arch, variant string) ocispec.Descriptor {
		d := layer(os+arch+variant, 10)
		if os != "" {
			d.Platform = &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
		}
		return d
	}
	attestation := m("unknown", "unknown", "")
	note := m("linux", "amd64", "x")
	note.Annotations["vnd.docker.reference.type"] = "attestation-manifest"
	amd64 := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	v7 := ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	for _, tt := range []struct {
		name      string
		manifests []ocispec.Descriptor
		want      ocispec.Platform
		chosen    string // os+arch+variant, or "!" and part of the error
	}{
		{"the only one", []ocispec.Descriptor{m("linux", "riscv64", "")}, amd64, "linuxriscv64"},
		{"the only one, without a platform", []ocispec.Descriptor{m("", "", "p")}, amd64, "p"},
		{"the only one but attestations", []ocispec.Descriptor{attestation, m("linux", "arm64", ""), note}, amd64, "linuxarm64"},
		{"by platform", []ocispec.Descriptor{m("linux", "arm64", ""), m("linux", "amd64", ""), m("windows", "amd64", "")}, amd64, "linuxamd64"},
		{"by variant", []ocispec.Descriptor{m("linux", "arm", "v6"), m("linux", "arm", "v7")}, v7, "linuxarmv7"},
		{"none fits", []ocispec.Descriptor{m("linux", "arm64", ""), m("linux", "s390x", "")}, amd64, "!nothing for linux/amd64"},
		{"two fit", []ocispec.Descriptor{m("linux", "amd64", "v1"), m("linux", "amd64", "v2")}, amd64, "!2 images for linux/amd64"},
		{"attestations only", []ocispec.Descriptor{attestation, note}, amd64, "!no image"},
		{"nothing", nil, amd64, "!no image"},
	} {
		got, err := choosePlatform(tt.manifests, tt.want)
		if want, bad := strings.CutPrefix(tt.chosen, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: chose %+v, %v; want an error about %q", tt.name, got, err, want)
			}
		} else if err != nil || titleOf(got) != want {
			t.Errorf("%s: chose %q, %v; want %q", tt.name, titleOf(got), err, want)
		}
	}
	// What is offered is named, so that it can be asked for; but not without end.
	many := make([]ocispec.Descriptor, 50)
	for i := range many {
		many[i] = m("linux", "arm64", strings.Repeat("v", i+1))
	}
	_, err := choosePlatform(many, amd64)
	if err == nil || !strings.Contains(err.Error(), many[0].Digest.String()) || strings.Count(err.Error(), "sha256:") > 12 {
		t.Errorf("an index of fifty: %v", err)
	}
}

func TestFormatOf(t *testing.T) {
	at := func(offset int, magic string) []byte { return []byte(strings.Repeat("\x00", offset) + magic) }
	for _, tt := range []struct {
		name   string
		head   []byte
		format string
	}{
		{"qcow2", at(0, "QFI\xfb\x00\x00\x00\x03"), "qcow2"},
		{"iso", at(32769, "CD001"), "iso"},
		{"mbr", at(510, "\x55\xaa"), "img"},
		{"gpt", at(512, "EFI PART"), "img"},
		{"xz", at(0, "\xfd7zXZ\x00"), "img.xz"},
		{"tar", at(257, "ustar"), ""},
		{"text", []byte("hello"), ""},
		{"damaged gzip", at(0, "\x1f\x8b"), ""},
		{"nothing", nil, ""},
	} {
		format, reason := formatOf(tt.head)
		if string(format) != tt.format || (reason == "") != (tt.format != "") {
			t.Errorf("%s: %q, %q; want %q", tt.name, format, reason, tt.format)
		}
	}
}
