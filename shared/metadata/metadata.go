// Package metadata says what an image is beside its bytes: its title, system, version,
// architecture and so on. Metadata belong to the bytes with one SHA-256, under all their
// names. A [Record] has the words of the operator; [Merge] combines them with those of the
// manifest, of a registry, of the inspection and of the name.
package metadata

import (
	"errors"
	"maps"
	"time"

	"imageroot/shared/disk"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
)

// Fields are what one [Origin] says. A field with its zero value is unknown. [Check] has
// the limits.
type Fields struct {
	Title       string `json:"title,omitempty" toml:"title,omitempty"`
	Description string `json:"description,omitempty" toml:"description,omitempty"` // may have several lines
	// System and Version are as ID and VERSION_ID of os-release(5): "debian", "12".
	System  string `json:"system,omitempty" toml:"system,omitempty"`
	Version string `json:"version,omitempty" toml:"version,omitempty"`
	// Architecture is one of [Architectures].
	Architecture string   `json:"architecture,omitempty" toml:"architecture,omitempty"`
	ReleaseDate  string   `json:"release_date,omitempty" toml:"release_date,omitempty"` // YYYY-MM-DD
	Icon         string   `json:"icon,omitempty" toml:"icon,omitempty"`                 // a URL
	Devices      []string `json:"devices,omitempty" toml:"devices,omitempty"`           // as Raspberry Pi Imager tags them: "pi5-64bit"
	// InitFormat is how the system takes its configuration at the first start, one of
	// [InitFormats].
	InitFormat string            `json:"init_format,omitempty" toml:"init_format,omitempty"`
	HomePage   string            `json:"home_page,omitempty" toml:"home_page,omitempty"` // a URL
	Labels     map[string]string `json:"labels,omitempty" toml:"labels,inline,omitempty"`
}

// A Record has what the operator says about the bytes with one SHA-256. It stays if no
// image has these bytes any more, so that they are described when they come back.
type Record struct {
	record.Meta
	SHA256 layout.SHA256 `json:"sha256"` // of the bytes, lower case hex
	Words
	ChangedAt time.Time `json:"changed_at"` // UTC
}

// Words are what an operator can say about a content.
type Words struct {
	Fields
	// Name is the primary name that the operator chose; empty: the one known longest.
	Name image.Name `json:"name,omitempty"`
}

// Validate implements record.Validator.
func (r *Record) Validate() error {
	if !r.SHA256.Valid() {
		return errors.New("a metadata record has a SHA-256")
	}
	return nil
}

// An Origin is who says something about an image.
type Origin string

// The origins in their order of precedence.
const (
	Operator   Origin = "operator"
	Manifest   Origin = "manifest"
	Annotation Origin = "annotation" // of an artifact in an OCI registry
	Inspection Origin = "inspection" // of the disk
	Name       Origin = "name"       // of the image
)

// A Source is what one origin says.
type Source struct {
	From   Origin
	Fields *Fields // nil: nothing
}

// A Value is a value and the origin that it has been taken from.
type Value[T any] struct {
	Value T      `json:"value"`
	From  Origin `json:"from"`
}

// Get returns the value, or the zero value if v is nil.
func (v *Value[T]) Get() (value T) {
	if v != nil {
		value = v.Value
	}
	return value
}

// Merged is what all origins say together. A field is nil if none knows it.
type Merged struct {
	Title        *Value[string]   `json:"title,omitempty"`
	Description  *Value[string]   `json:"description,omitempty"`
	System       *Value[string]   `json:"system,omitempty"`
	Version      *Value[string]   `json:"version,omitempty"`
	Architecture *Value[string]   `json:"architecture,omitempty"`
	ReleaseDate  *Value[string]   `json:"release_date,omitempty"`
	Icon         *Value[string]   `json:"icon,omitempty"`
	Devices      *Value[[]string] `json:"devices,omitempty"`
	InitFormat   *Value[string]   `json:"init_format,omitempty"`
	HomePage     *Value[string]   `json:"home_page,omitempty"`
	// Labels has the labels of all origins: of two with the same key, the one whose origin
	// comes first. From is the first origin that has any.
	Labels *Value[map[string]string] `json:"labels,omitempty"`
	// Name is the primary name, if the operator has chosen it.
	Name *Value[image.Name] `json:"name,omitempty"`
}

// Merge takes each field from the first source that has it. The sources are in their order
// of precedence. A version is taken only from a source that names the same system, if it
// names one: the version of another system means nothing.
func Merge(sources ...Source) (m Merged) {
	for _, s := range sources {
		f := s.Fields
		if f == nil {
			continue
		}
		sameSystem := f.System == "" || m.System == nil || m.System.Value == f.System
		for _, t := range texts {
			if to, v := t.of(&m), *t.in(f); *to == nil && v != "" && (sameSystem || t.name != "version") {
				*to = &Value[string]{v, s.From}
			}
		}
		if m.Devices == nil && len(f.Devices) > 0 {
			m.Devices = &Value[[]string]{f.Devices, s.From}
		}
		if len(f.Labels) > 0 {
			all := &Value[map[string]string]{maps.Clone(f.Labels), s.From}
			if m.Labels != nil {
				all.From = m.Labels.From
				maps.Copy(all.Value, m.Labels.Value)
			}
			m.Labels = all
		}
	}
	return m
}

// Said returns the values that are not from the name of the image: another catalog does not
// find them out by itself.
func (m *Merged) Said() (f Fields) {
	for _, t := range texts {
		if v := *t.of(m); v != nil && v.From != Name {
			*t.in(&f) = v.Value
		}
	}
	f.Devices, f.Labels = m.Devices.Get(), m.Labels.Get()
	return f
}

// FromInside returns what an inspection says, or nil if it says nothing.
func FromInside(in *disk.Inside) *Fields {
	if in == nil || in.System+in.Version+in.Title+string(in.Architecture)+in.ReleaseDate == "" {
		return nil
	}
	f := Fields{Title: in.Title, System: in.System, Version: in.Version, Architecture: string(in.Architecture), ReleaseDate: in.ReleaseDate}
	return f.Clean()
}

// Text returns a field with one value by its name in JSON, and false if there is no such
// field.
func (f *Fields) Text(name string) (*string, bool) {
	for _, t := range texts {
		if t.name == name {
			return t.in(f), true
		}
	}
	return nil, false
}

// Empty reports whether f says nothing.
func (f *Fields) Empty() bool {
	for _, t := range texts {
		if *t.in(f) != "" {
			return false
		}
	}
	return len(f.Devices)+len(f.Labels) == 0
}
