package inventory

import (
	"maps"
	"slices"
	"strings"
	"unique"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
)

// facts are what a query selects rows by beside their names. Most rows share theirs with
// many others, so each is in memory once.
type facts struct {
	system, architecture string
	labels               string // "\nKEY=VALUE\n...", sorted
	// text is what a search finds and the text of the head lacks: metadata, the kind of
	// the content, warnings.
	text string
	said said
}

// said are values that are not from the name of the image.
type said struct {
	title, system, version, architecture, date string
	more                                       bool // there are others
}

// Said returns the metadata of the row that are not from its name: see [metadata.Merged].
func (s *Snapshot) Said(h *Head) metadata.Fields {
	f := h.facts.Value().said
	if f.more {
		return s.Row(h).Metadata.Said()
	}
	return metadata.Fields{Title: f.title, System: f.system, Version: f.version, Architecture: f.architecture, ReleaseDate: f.date}
}

// factsOf returns the facts of a row. text is that of its head.
func factsOf(r *Row, text string) unique.Handle[facts] {
	m := &r.Metadata
	of := m.Said()
	f := facts{system: m.System.Get(), architecture: m.Architecture.Get(), said: said{of.Title, of.System, of.Version, of.Architecture, of.ReleaseDate, false}}
	of.Title, of.System, of.Version, of.Architecture, of.ReleaseDate = "", "", "", "", ""
	f.said.more = !of.Empty()
	labels := m.Labels.Get()
	if len(labels) > 0 {
		f.labels = "\n"
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			f.labels += key + "=" + labels[key] + "\n"
		}
	}
	var more strings.Builder
	add := func(s string) {
		if s = fold(s); s != "" && !strings.Contains(text, s) {
			more.WriteString(s + "\n")
		}
	}
	for _, s := range []string{
		m.Title.Get(), m.Description.Get(), f.system, m.Version.Get(), f.architecture, m.ReleaseDate.Get(), m.HomePage.Get(), m.InitFormat.Get(),
		f.labels,
	} {
		add(s)
	}
	if r.Content != nil {
		add(string(*r.Content))
	}
	for _, s := range slices.Concat(m.Devices.Get(), r.Warnings) {
		add(s)
	}
	f.text = more.String()
	return unique.Make(f)
}

// A SameDisk is another content with the disk of a row.
type SameDisk struct {
	Name   image.Name    `json:"name"` // the primary one
	SHA256 layout.SHA256 `json:"sha256"`
}

// MaxSameDisk limits [Row.SameDisk].
const MaxSameDisk = 20

// sameDisk returns [Row.SameDisk] of a head, the one that is its own disk first.
func (s *Snapshot) sameDisk(h *Head) []SameDisk {
	same := []SameDisk{}
	if h.RawSHA256 == "" || h.NoDisk {
		return same
	}
	add := func(o *Head) {
		if o != nil && o != h && !o.NoDisk && o.RawSHA256 == h.RawSHA256 && len(same) < MaxSameDisk {
			same = append(same, SameDisk{o.Name, o.SHA256})
		}
	}
	add(s.headOf(h.RawSHA256))
	for o := range s.byRaw.From(func(o *Head) int { return strings.Compare(string(o.RawSHA256), string(h.RawSHA256)) }) {
		if o.RawSHA256 != h.RawSHA256 || len(same) == MaxSameDisk {
			break
		}
		add(o)
	}
	return same
}
