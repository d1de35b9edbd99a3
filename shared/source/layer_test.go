package source

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

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

func part(d ocispec.Descriptor, n int, key string) ocispec.Descriptor {
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[key] = fmt.Sprint(n)
	d.Digest = digest.FromString(fmt.Sprint(titleOf(d), n))
	return d
}

// Parts of one disk are distinguished from several images.
func TestSplit(t *testing.T) {
	titled := func(size int64, titles ...string) (layers []ocispec.Descriptor) {
		for i, title := range titles {
			layers = append(layers, part(layer(title, size-int64(i/(len(titles)-1))), i, "n"))
		}
		return layers
	}
	typed := func(n int) ocispec.Descriptor {
		d := part(layer("", 10), n, "n")
		d.MediaType = fmt.Sprintf("application/vnd.oci.image.layer.v1.tar;part.number=%d;part.total=2", n)
		return d
	}
	again := layer("x.img", 10)
	for _, tt := range []struct {
		name   string
		layers []ocispec.Descriptor
		split  bool
	}{
		{"equal titles", titled(10, "disk.img", "disk.img", "disk.img"), true},
		{"one layer twice", []ocispec.Descriptor{again, again}, false},
		{"split(1)", titled(10, "x.img.aa", "x.img.ab"), true},
		{"split(1), after the name", titled(10, "x.imgaa", "x.imgab"), true},
		{"split -d", titled(10, "x.img.xz.00", "x.img.xz.01", "x.img.xz.02"), true},
		{"an archiver", titled(10, "x.raw.001", "x.raw.002"), true},
		{"parts", titled(10, "x.img.part1", "x.img.part2"), true},
		{"parts of so many", titled(10, "x.img.1of2", "x.img.2of2"), true},
		{"parts before the suffix", titled(10, "x-part-01.img", "x-part-02.img"), true},
		{"numbers before the suffix", titled(10, "x.0.img", "x.1.img", "x.2.img"), true},
		{"by annotations", []ocispec.Descriptor{part(layer("", 10), 0, "org.example.part.number"), part(layer("", 10), 1, "org.example.part.number")}, true},
		{"by media types", []ocispec.Descriptor{typed(1), typed(2)}, true},
		{"the only part", []ocispec.Descriptor{part(layer("x.img", 10), 1, "part.number")}, false},
		{"versions", []ocispec.Descriptor{layer("debian-11.img", 10), layer("debian-12.img", 10)}, false},
		{"versions of one digit", []ocispec.Descriptor{layer("x-1.img", 10), layer("x-2.img", 11)}, false},
		{"formats", []ocispec.Descriptor{layer("x.img", 10), layer("x.img.xz", 5), layer("x.qcow2", 7)}, false},
		{"side files of no known kind", []ocispec.Descriptor{layer("x.img", 10), layer("x.img.1", 5), layer("x.img.2", 5), layer("x.img.aux", 5)}, false},
	} {
		_, err := chooseLayer(tt.layers)
		if split := err != nil && strings.Contains(err.Error(), "split over"); split != tt.split || err != nil && !split {
			t.Errorf("%s: %v, want split %v", tt.name, err, tt.split)
		}
	}
}

// A layer without a title is named by its bytes. If there are several, the bytes of the
// first decide whether it is the beginning of a disk.
func TestUntitled(t *testing.T) {
	btrfs := append(make([]byte, 0x10040), "_BHRfS_M"...)
	disk := append(make([]byte, 510), "\x55\xaa and the rest of the disk"...)
	note := []byte("some text")
	for _, tt := range []struct {
		name   string
		blobs  [][]byte
		repo   string
		want   string // the image's name
		reason string // of the error, if there is one
	}{
		{"one", [][]byte{disk}, "disk.img", "disk.img", ""},
		{"two", [][]byte{disk, append(note, disk...)}, "disk.img", "", "split over 2 layers"},
		{"something else first", [][]byte{note, disk}, "disk.img", "disk.img", ""},
		{"a file system", [][]byte{btrfs}, "disk", "disk-" + digest.FromBytes(btrfs).Encoded()[:12] + ".img", ""},
		{"no image", [][]byte{note}, "disk", "", "and is text: push it with a title"},
	} {
		blobs := map[string][]byte{}
		var m manifest
		for _, b := range tt.blobs {
			d := digest.FromBytes(b)
			blobs[d.String()] = b
			m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(b))})
		}
		s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
			if b, ok := blobs[path.Base(r.URL.Path)]; ok {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
				return
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_ = json.NewEncoder(w).Encode(m)
		})
		r, err := s.Resolve(t.Context(), Location{URL: "oras://" + strings.TrimPrefix(s.url("/lab/"+tt.repo+":v1"), "http://")}, "")
		switch {
		case tt.reason == "" && (err != nil || string(r.Name) != tt.want):
			t.Errorf("%s: %+v, %v", tt.name, r, err)
		case tt.reason != "" && (is(err) != "unresolvable" || !strings.Contains(err.Error(), tt.reason)):
			t.Errorf("%s: %+v, %v, want %q", tt.name, r, err, tt.reason)
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
	// An architecture has several names, and the error shows how the choices differ.
	disk := func(arch, kind string) ocispec.Descriptor {
		d := m("linux", arch, kind)
		d.Annotations = map[string]string{"disktype": kind, "org.opencontainers.image.version": "5.3"}
		return d
	}
	for arch, other := range map[string]string{"amd64": "x86_64", "arm64": "aarch64"} {
		want := ocispec.Platform{OS: "linux", Architecture: arch}
		got, err := choosePlatform([]ocispec.Descriptor{disk("s390x", "qemu"), disk(other, "qemu")}, want)
		if err != nil || got.Platform.Architecture != other {
			t.Errorf("%s for %s: %+v, %v", other, arch, got, err)
		}
		_, err = choosePlatform([]ocispec.Descriptor{disk(other, "qemu"), disk(arch, "hyperv"), disk("s390x", "applehv")}, want)
		for _, word := range []string{"2 images", "disktype=qemu", "disktype=hyperv"} {
			if err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "5.3") || strings.Contains(err.Error(), "applehv") {
				t.Errorf("two images for %s: %v, want %q", arch, err, word)
			}
		}
	}
	// The error names the choices, up to a limit.
	many := make([]ocispec.Descriptor, 50)
	for i := range many {
		many[i] = m("linux", "arm64", strings.Repeat("v", i+1))
	}
	_, err := choosePlatform(many, amd64)
	if err == nil || !strings.Contains(err.Error(), many[0].Digest.String()) || strings.Count(err.Error(), "sha256:") > 12 {
		t.Errorf("an index of fifty: %v", err)
	}
}

// A manifest full of descriptors takes linear time: if each were compared with all
// others, this test would not end in time.
func TestManifestsThatAreFull(t *testing.T) {
	const most = maxManifestBytes / 160
	numbered := make([]ocispec.Descriptor, most)
	equal := make([]ocispec.Descriptor, most)
	for i := range most {
		numbered[i] = layer(fmt.Sprintf("%d.img.part1", i), 1)
		equal[i] = part(layer("x.img", 1), i, "alike")
		equal[i].Annotations["alike"] = "yes"
	}
	for name, layers := range map[string][]ocispec.Descriptor{"numbered": numbered, "equal": equal} {
		if d, err := chooseLayer(layers); err == nil {
			t.Errorf("%s: chose %+v of %d layers", name, d, most)
		}
	}
	if d, err := choosePlatform(equal, ocispec.Platform{OS: "linux", Architecture: "amd64"}); err == nil {
		t.Errorf("chose %+v of %d manifests", d, most)
	}
}

func TestFormatOf(t *testing.T) {
	at := func(offset int, magic string) []byte { return []byte(strings.Repeat("\x00", offset) + magic) }
	gzipped := func(data []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(data)
		_ = w.Close()
		return b.Bytes()
	}
	for _, tt := range []struct {
		name   string
		head   []byte
		format string
	}{
		{"qcow2", at(0, "QFI\xfb\x00\x00\x00\x03"), "qcow2"},
		{"iso", at(32769, "CD001"), "iso"},
		{"mbr", at(510, "\x55\xaa"), "img"},
		{"gpt", at(512, "EFI PART"+strings.Repeat("\x00", 92)), "img"},
		{"gpt of large sectors", at(4096, "EFI PART"+strings.Repeat("\x00", 92)), "img"},
		{"ext4", at(0x438, "\x53\xef"), "img"},
		{"xfs", at(0, "XFSB\x00\x00\x10\x00"), "img"},
		{"btrfs", at(0x10040, "_BHRfS_M"), "img"},
		{"udf", append(at(32769, "BEA01"), at(2043, "NSR03")...), "iso"},
		{"xz", at(0, "\xfd7zXZ\x00"), "img.xz"},
		{"zstd after a skippable frame", at(0, "\x50\x2a\x4d\x18"), "img.zst"},
		{"gzip", gzipped(at(510, "\x55\xaa")), "img.gz"},
		{"gzip of a tar", gzipped(append(at(257, "ustar"), make([]byte, 512)...)), ""},
		{"qcow of version 1", at(0, "QFI\xfb\x00\x00\x00\x01"), ""},
		{"tar", at(257, "ustar"), ""},
		{"zip", at(0, "PK\x03\x04\x00"), "zip"},
		{"zeros", make([]byte, 100_000), ""},
		{"text", []byte("hello"), ""},
		{"damaged gzip", at(0, "\x1f\x8b"), ""},
		{"nothing", nil, ""},
	} {
		format, what := formatOf(tt.head)
		if string(format) != tt.format || what == "" {
			t.Errorf("%s: %q, %q; want %q", tt.name, format, what, tt.format)
		}
	}
}

// What an artifact says about itself is said by its layer, its manifest and its index, in
// this order of precedence.
func TestAbout(t *testing.T) {
	blob := layer("x.img", 10)
	blob.Annotations["org.opencontainers.image.version"] = "of the layer"
	m := manifest{Layers: []ocispec.Descriptor{blob}, Annotations: map[string]string{
		"org.opencontainers.image.version": "of the manifest", "org.opencontainers.image.vendor": "of the manifest", ocispec.AnnotationTitle: "x.img",
	}}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	index := manifest{
		Manifests: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data)),
			Platform: &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, Annotations: map[string]string{"org.opencontainers.image.url": "of the index"},
		}},
		Annotations: map[string]string{ocispec.AnnotationTitle: "A title", "org.opencontainers.image.vendor": "of the index"},
	}
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		if strings.HasSuffix(r.URL.Path, "/v1") {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_ = json.NewEncoder(w).Encode(index)
			return
		}
		_, _ = w.Write(data)
	})
	r, err := s.Resolve(t.Context(), Location{URL: "oras://" + strings.TrimPrefix(s.url("/lab/x:v1"), "http://")}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"org.opencontainers.image.version": "of the layer", "org.opencontainers.image.vendor": "of the manifest",
		"org.opencontainers.image.url": "of the index", ocispec.AnnotationTitle: "A title",
	}
	if !maps.Equal(r.About.Annotations, want) || r.About.Architecture != "arm" || r.About.Variant != "v7" {
		t.Errorf("%+v", r.About)
	}
}
