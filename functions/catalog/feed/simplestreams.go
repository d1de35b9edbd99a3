package feed

import (
	"cmp"
	"encoding/json"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/incus"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/web"
)

// tarballPath is that of a tarball of metadata. TarballRoute is its route.
const (
	tarballPath  = "streams/v1/metadata/SHA256/metadata.tar"
	TarballRoute = "/streams/v1/metadata/{sha256}/metadata.tar"
)

const diskItem = "disk.qcow2"

// A product is one image in a list of simplestreams, version 1, as Incus and LXD read it
// (shared/simplestreams/products.go). All paths are relative to the URL of the server. Incus
// gives an alias that several images have to the one with the latest version.
type product struct {
	Aliases      string                    `json:"aliases"` // separated by commas
	Architecture string                    `json:"arch"`
	System       string                    `json:"os"`
	Release      string                    `json:"release"`
	ReleaseTitle string                    `json:"release_title"`
	Version      string                    `json:"version,omitempty"`
	Versions     map[string]productVersion `json:"versions"` // by YYYYMMDD
}

type productVersion struct {
	Items map[string]streamFile `json:"items"`
	Label string                `json:"label,omitempty"`
}

type streamFile struct {
	Type        string        `json:"ftype"`
	Path        string        `json:"path"`
	SHA256      layout.SHA256 `json:"sha256"`
	Size        int64         `json:"size"`
	Fingerprint layout.SHA256 `json:"combined_disk-kvm-img_sha256,omitempty"`
}

// virtualMachines yields the rows that Incus can start, with the tarball and the fingerprint.
func virtualMachines(s *inventory.Snapshot) iter.Seq2[*inventory.Row, productVersion] {
	return func(yield func(*inventory.Row, productVersion) bool) {
		for row := range s.Rows(func(h *inventory.Head) bool { return h.Cached && h.Virtual && !h.NoDisk }) {
			tarball, fingerprint, ok := incus.Of(row.Known, row.Metadata.Architecture.Get())
			if !ok {
				continue
			}
			// Incus wants the first type of the tarball, LXD the second.
			items := map[string]streamFile{diskItem: {Type: "disk-kvm.img", SHA256: row.Digest(), Size: row.Known.SizeBytes}}
			for _, name := range []string{"incus.tar.xz", "lxd.tar.xz"} {
				path := strings.Replace(tarballPath, "SHA256", string(tarball.SHA256), 1)
				items[name] = streamFile{name, path, tarball.SHA256, tarball.Size(), fingerprint}
			}
			if !yield(row, productVersion{Items: items, Label: row.Metadata.Title.Get()}) {
				return
			}
		}
	}
}

// encodeStreams writes the index of simplestreams: one list of images.
func encodeStreams(to io.Writer, s *inventory.Snapshot, _ Server) error {
	const head = `{"format":"index:1.0","index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json","format":"products:1.0","products":[`
	return web.WriteList(to, head, func(yield func(layout.SHA256) bool) {
		for row := range virtualMachines(s) {
			if !yield(row.Digest()) {
				return
			}
		}
	}, "]}}}\n")
}

// encodeImages writes the list of images of simplestreams.
func encodeImages(to io.Writer, s *inventory.Snapshot, on Server) error {
	const head = `{"content_id":"images","datatype":"image-downloads","format":"products:1.0","products":{`
	next := head
	for row, version := range virtualMachines(s) {
		data, err := json.Marshal(productOf(row, version, on))
		if err != nil {
			return err
		}
		if _, err := io.WriteString(to, next+`"`+string(row.Digest())+`":`+string(data)); err != nil {
			return err
		}
		next = ",\n"
	}
	end := "}}\n"
	if next == head {
		end = head + end
	}
	_, err := io.WriteString(to, end)
	return err
}

func productOf(row *inventory.Row, version productVersion, on Server) product {
	m := &row.Metadata
	disk := version.Items[diskItem]
	if disk.Path = on.ImagePath(row.Head)[1:]; strings.Contains(disk.Path, "%") {
		disk.Path = "images/" + string(row.Digest()) // LXD 5.0 would escape the path once more
	}
	version.Items[diskItem] = disk
	date, err := time.Parse(time.DateOnly, m.ReleaseDate.Get())
	if err != nil {
		date = cmp.Or(row.Added, row.Known.SniffedAt).UTC()
	}
	return product{
		Aliases: strings.Join(aliases(row), ","), Architecture: m.Architecture.Get(), System: cmp.Or(m.System.Get(), string(row.Names[0])),
		Release: m.Version.Get(), ReleaseTitle: m.Version.Get(), Version: m.Version.Get(),
		Versions: map[string]productVersion{date.Format("20060102"): version},
	}
}

// aliases returns the names of an image without their suffixes, and its system and version as
// the image servers of Incus and LXD name them: "debian/12".
func aliases(row *inventory.Row) (all []string) {
	for _, n := range row.Names {
		if format, ok := image.FormatOf(n); ok {
			n = n[:len(n)-len("."+format)]
		}
		all = append(all, string(n))
	}
	if m := &row.Metadata; m.System != nil && m.Version != nil {
		all = append(all, m.System.Value+"/"+m.Version.Value)
	}
	return slices.DeleteFunc(all, func(alias string) bool { return strings.Contains(alias, ",") })
}
