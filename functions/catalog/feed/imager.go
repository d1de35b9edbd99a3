package feed

import (
	"cmp"
	"io"
	"strings"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/web"
)

// An imagerSystem is an operating system in the list of Raspberry Pi Imager, as its
// doc/json-schema/os-list-schema.json describes it.
type imagerSystem struct {
	Name           string        `json:"name"`
	Description    string        `json:"description"`
	Icon           string        `json:"icon"`
	URL            string        `json:"url"`
	ExtractSize    int64         `json:"extract_size"`
	ExtractSHA256  layout.SHA256 `json:"extract_sha256"`
	DownloadSize   int64         `json:"image_download_size"`
	DownloadSHA256 layout.SHA256 `json:"image_download_sha256"`
	ReleaseDate    string        `json:"release_date"`
	Devices        []string      `json:"devices"`
	InitFormat     string        `json:"init_format,omitempty"`
	HomePage       string        `json:"website,omitempty"`
}

// encodeImager writes the list of Raspberry Pi Imager: the images whose disk has a known
// SHA-256, without which Imager does not verify what it wrote.
func encodeImager(to io.Writer, s *inventory.Snapshot, on Server) error {
	return web.WriteList(to, `{"os_list":[`, func(yield func(imagerSystem) bool) {
		for row := range s.Rows(func(h *inventory.Head) bool { return h.RawSHA256 != "" && on.RawPath(h) != "" }) {
			if row.RawSizeBytes == nil || row.SizeBytes == nil || !row.Head.Disk && row.Known.Inner != "" {
				continue // Imager does not wait for a disk to be made
			}
			if !yield(imagerEntry(row, on)) {
				return
			}
		}
	}, "]}\n")
}

func imagerEntry(row *inventory.Row, on Server) imagerSystem {
	m := &row.Metadata
	name := string(row.Names[0])
	about := m.System.Get()
	for _, word := range []string{m.Version.Get(), m.Architecture.Get()} {
		about = strings.TrimSpace(about + " " + word)
	}
	e := imagerSystem{
		Name: cmp.Or(m.Title.Get(), name), Description: cmp.Or(m.Description.Get(), about, name),
		Icon: cmp.Or(m.Icon.Get(), on.URL+"/static/icon.svg"),
		URL:  on.URL + on.ImagePath(row.Head), ExtractSize: *row.RawSizeBytes, ExtractSHA256: *row.RawSHA256,
		DownloadSize: *row.SizeBytes, DownloadSHA256: row.Digest(),
		ReleaseDate: m.ReleaseDate.Get(), Devices: m.Devices.Get(), InitFormat: m.InitFormat.Get(), HomePage: m.HomePage.Get(),
	}
	if !readByImager(row) {
		e.URL, e.DownloadSize, e.DownloadSHA256 = on.URL+on.RawPath(row.Head), e.ExtractSize, e.ExtractSHA256
	}
	if e.ReleaseDate == "" && !row.Added.IsZero() {
		e.ReleaseDate = row.Added.UTC().Format(time.DateOnly)
	}
	if e.Devices == nil {
		e.Devices = []string{} // they fit no filter; without the member, Imager's schema is not met
	}
	return e
}

// readByImager reports whether Raspberry Pi Imager, and balenaEtcher, which decides by the
// name, read the disk in the bytes of an image. Etcher reads no zstd, Imager since 1.7. Of a ZIP
// archive, Imager takes the first file.
func readByImager(row *inventory.Row) bool {
	if row.Content == nil || *row.Content == content.Zstd || *row.Content == content.Zip || row.Content.Virtual() || row.Known.Inner != "" {
		return false
	}
	c, _ := row.Format.Compression()
	return c.Name == "" && !row.Content.Compressed() || c.Name == string(*row.Content)
}
