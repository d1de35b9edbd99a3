package source

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imageroot/shared/image"
)

// A manifest has the members that OCI's image manifests, artifact manifests (retired)
// and indexes share with Docker's manifests and manifest lists.
type manifest struct {
	Manifests []ocispec.Descriptor `json:"manifests"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Blobs     []ocispec.Descriptor `json:"blobs"`

	Annotations map[string]string `json:"annotations"`
}

// add adds annotations, which count more than those that a has.
func (a *About) add(annotations map[string]string) {
	if a.Annotations == nil {
		a.Annotations = map[string]string{}
	}
	for key, value := range annotations {
		if _, err := image.ParseName(value); key == ocispec.AnnotationTitle && err == nil {
			continue
		}
		a.Annotations[key] = value
	}
}

// titleOf returns the file name of a layer (its title annotation), or "".
func titleOf(d ocispec.Descriptor) string {
	title := d.Annotations[ocispec.AnnotationTitle]
	return title[strings.LastIndexAny(title, `/\`)+1:]
}

// sideSuffixes are the suffixes of files that accompany an image.
var sideSuffixes = []string{
	".sha1", ".sha256", ".sha512", ".sha256sum", ".sha512sum", ".md5", ".checksum",
	".sig", ".asc", ".gpg", ".minisig", ".pem", ".crt", ".cert", ".bundle", ".intoto.jsonl",
	".sbom", ".spdx", ".cdx", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml",
	".txt", ".md", ".html", ".log", ".manifest", ".packages", ".bmap",
}

func isSideFile(title string) bool {
	title = strings.ToLower(title)
	switch title {
	case "checksum", "checksums", "sha256sums", "sha512sums", "md5sums", "license", "readme":
		return true
	}
	return slices.ContainsFunc(sideSuffixes, func(s string) bool { return strings.HasSuffix(title, s) })
}

// candidates returns the layers that may be the image: one for each title and digest,
// without side files.
func candidates(layers []ocispec.Descriptor) []ocispec.Descriptor {
	type identity struct{ title, digest, part string }
	var all []ocispec.Descriptor
	seen := map[identity]bool{}
	for _, l := range layers {
		if l.MediaType == ocispec.MediaTypeEmptyJSON || l.Size <= 0 || l.Digest.Validate() != nil || isSideFile(titleOf(l)) {
			continue
		}
		id := identity{titleOf(l), l.Digest.String(), partNumber(l)}
		if id.title == "" || !seen[id] {
			seen[id] = true
			all = append(all, l)
		}
	}
	return all
}

// chooseLayer returns the largest layer that is not a side file. The text of the
// error continues a reference: "REF holds ...".
func chooseLayer(layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	candidates := candidates(layers)
	if len(candidates) == 0 {
		return ocispec.Descriptor{}, errors.New("holds no image: its manifest has no layer, or side files only")
	}
	if parts := splitParts(candidates); len(parts) > 1 {
		return ocispec.Descriptor{}, errSplit(parts)
	}
	return slices.MaxFunc(candidates, func(a, b ocispec.Descriptor) int { return cmp.Compare(a.Size, b.Size) }), nil
}

// choosePlatform returns the only manifest of an index, or the one for platform want.
// The text of the error continues a reference: "REF is an index ...".
func choosePlatform(manifests []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	var candidates, matches []ocispec.Descriptor
	want.Architecture = architecture(want.Architecture)
	for _, m := range manifests {
		if m.Digest.Validate() != nil || isAttestation(m) {
			continue
		}
		candidates = append(candidates, m)
		if p := m.Platform; p != nil && p.OS == want.OS && architecture(p.Architecture) == want.Architecture &&
			(want.Variant == "" || p.Variant == want.Variant) {
			matches = append(matches, m)
		}
	}
	among := matches
	if len(among) == 0 {
		among = candidates
	}
	const advice = "name the one you want by @sha256:DIGEST"
	const most = 10
	shown := among[:min(len(among), most)]
	var offered []string
	for _, m := range shown {
		offered = append(offered, strings.TrimSpace(platformName(m.Platform)+" "+annotationsOf(m, shown))+" ("+m.Digest.String()+")")
	}
	if len(among) > most {
		offered = append(offered, "...")
	}
	list := strings.Join(offered, ", ")
	switch {
	case len(candidates) == 0:
		return ocispec.Descriptor{}, errors.New("is an index that holds no image")
	case len(candidates) == 1:
		return candidates[0], nil
	case len(matches) == 1:
		return matches[0], nil
	case len(matches) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("is an index with nothing for %s; %s of %s", platformName(&want), advice, list)
	}
	return ocispec.Descriptor{}, fmt.Errorf("is an index with %d images for %s; %s of %s", len(matches), platformName(&want), advice, list)
}

// architecture returns Go's name of an architecture.
func architecture(name string) string {
	switch name = strings.ToLower(name); name {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return name
}

// annotationsOf lists the annotations of d that differ from those of another descriptor
// in all.
func annotationsOf(d ocispec.Descriptor, all []ocispec.Descriptor) string {
	var differ []string
	for _, key := range slices.Sorted(maps.Keys(d.Annotations)) {
		differs := func(o ocispec.Descriptor) bool { return o.Annotations[key] != d.Annotations[key] }
		if slices.ContainsFunc(all, differs) {
			differ = append(differ, fmt.Sprintf("%.60s=%.60s", key, d.Annotations[key]))
		}
	}
	const most = 3
	return strings.Join(differ[:min(len(differ), most)], " ")
}

// isAttestation reports whether a manifest describes another manifest of its index.
// Build tools add such attestations.
func isAttestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

func platformName(p *ocispec.Platform) string {
	if p == nil {
		return "no platform"
	}
	return path.Join(p.OS, p.Architecture, p.Variant)
}
