package metadata

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"imageroot/shared/visible"
)

// Limits of [Check].
const (
	MaxBytes  = 16 << 10 // of all fields, as JSON
	MaxLabels = 64
	// MaxDevices is the number of devices, maxDevice, maxLabel are the bytes of one and of
	// a label's value.
	MaxDevices, maxDevice, maxLabel = 64, 64, 256
)

// Architectures are the names of processor architectures, which are those of Debian.
var Architectures = []string{"amd64", "arm64", "armhf", "armel", "i386", "riscv64", "ppc64el", "s390x", "loong64"}

// aliases are other names of [Architectures].
var aliases = map[string]string{
	"x86_64": "amd64", "x86-64": "amd64", "x64": "amd64", "aarch64": "arm64", "armv8": "arm64", "armv7": "armhf", "armv7l": "armhf", "armv7hl": "armhf",
	"386": "i386", "i486": "i386", "i586": "i386", "i686": "i386", "ppc64le": "ppc64el", "loongarch64": "loong64",
}

// Architecture returns the name of an architecture, of which s may be another name, and
// false if it is unknown. Case is ignored.
func Architecture(s string) (string, bool) {
	s = strings.ToLower(s)
	if a, ok := aliases[s]; ok {
		return a, true
	}
	return s, slices.Contains(Architectures, s)
}

// InitFormats are those of Raspberry Pi Imager.
var InitFormats = []string{"systemd", "cloudinit", "cloudinit-rpi", "none"}

// A text is a field with one value.
type text struct {
	name string
	in   func(*Fields) *string
	of   func(*Merged) **Value[string]
	max  int // bytes
	// form returns what a value must be, unless it is that; nil: any text.
	form func(value string) string
}

var texts = []text{
	{"title", func(f *Fields) *string { return &f.Title }, func(m *Merged) **Value[string] { return &m.Title }, 256, nil},
	{"description", func(f *Fields) *string { return &f.Description }, func(m *Merged) **Value[string] { return &m.Description }, 4096, nil},
	{"system", func(f *Fields) *string { return &f.System }, func(m *Merged) **Value[string] { return &m.System }, 64, isSystem},
	{"version", func(f *Fields) *string { return &f.Version }, func(m *Merged) **Value[string] { return &m.Version }, 64, nil},
	{"architecture", func(f *Fields) *string { return &f.Architecture }, func(m *Merged) **Value[string] { return &m.Architecture }, 16, oneOf(Architectures)},
	{"release_date", func(f *Fields) *string { return &f.ReleaseDate }, func(m *Merged) **Value[string] { return &m.ReleaseDate }, 10, isDate},
	{"icon", func(f *Fields) *string { return &f.Icon }, func(m *Merged) **Value[string] { return &m.Icon }, 2048, isURL},
	{"init_format", func(f *Fields) *string { return &f.InitFormat }, func(m *Merged) **Value[string] { return &m.InitFormat }, 16, oneOf(InitFormats)},
	{"home_page", func(f *Fields) *string { return &f.HomePage }, func(m *Merged) **Value[string] { return &m.HomePage }, 2048, isURL},
}

// Keys returns the names of all fields in JSON and TOML.
func Keys() []string {
	var keys []string
	for _, t := range texts {
		keys = append(keys, t.name)
	}
	return append(keys, "devices", "labels")
}

var (
	systemForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`) // os-release(5), ID
	labelForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`)
)

func isSystem(s string) string {
	if systemForm.MatchString(s) {
		return ""
	}
	return `a name as in ID of /etc/os-release, like "debian"`
}

func isDate(s string) string {
	if _, err := time.Parse(time.DateOnly, s); err == nil {
		return ""
	}
	return "a date like 2026-11-28"
}

func isURL(s string) string {
	u, err := url.Parse(s)
	if err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && u.User == nil {
		return ""
	}
	return "an absolute http or https URL without a password"
}

func oneOf(known []string) func(string) string {
	return func(s string) string {
		if slices.Contains(known, s) {
			return ""
		}
		return "one of " + strings.Join(known, ", ")
	}
}

// An Error is the error of a field. Reason is a sentence for users.
type Error struct{ Field, Reason string }

func (e *Error) Error() string { return e.Field + " " + e.Reason }

func invalid(field, format string, args ...any) error {
	return &Error{field, fmt.Sprintf(format, args...)}
}

// Check returns an [*Error] if a field exceeds its limit, has not the form that it must
// have, or has characters that are not visible. It replaces other names of an architecture
// by the one in [Architectures].
func (f *Fields) Check() error {
	if a, ok := Architecture(f.Architecture); ok {
		f.Architecture = a
	}
	for _, t := range texts {
		if err := t.check(*t.in(f)); err != nil {
			return err
		}
	}
	if len(f.Devices) > MaxDevices {
		return invalid("devices", "has %d values, at most %d are allowed", len(f.Devices), MaxDevices)
	}
	for _, d := range f.Devices {
		if d == "" {
			return invalid("devices", "has an empty value")
		}
		if err := plain("devices", d, maxDevice); err != nil {
			return err
		}
	}
	if len(f.Labels) > MaxLabels {
		return invalid("labels", "has %d labels, at most %d are allowed", len(f.Labels), MaxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(f.Labels)) {
		if !labelForm.MatchString(key) {
			return invalid("labels", "has the key %+.100q, but a key is up to 63 letters, digits, dots, hyphens, underscores and slashes, and begins with a letter or digit", key)
		}
		if err := plain("labels."+key, f.Labels[key], maxLabel); err != nil {
			return err
		}
	}
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if len(data) > MaxBytes {
		return invalid("metadata", "of an image take %d bytes together, at most %d are allowed", len(data), MaxBytes)
	}
	return nil
}

// AddLabel adds a label, unless there is one with this key, or no label can have this key
// and value.
func (f *Fields) AddLabel(key, value string) {
	if _, ok := f.Labels[key]; ok || len(f.Labels) >= MaxLabels || !labelForm.MatchString(key) || plain(key, value, maxLabel) != nil {
		return
	}
	if f.Labels == nil {
		f.Labels = map[string]string{}
	}
	f.Labels[key] = value
}

func (t *text) check(value string) error {
	if value == "" {
		return nil
	}
	if t.name == "description" {
		value = strings.NewReplacer("\n", "", "\t", "").Replace(value)
	}
	if err := plain(t.name, value, t.max); err != nil {
		return err
	}
	if t.form != nil {
		if want := t.form(value); want != "" {
			return invalid(t.name, "must be %s, not %.100q", want, value)
		}
	}
	return nil
}

// plain checks a text of one line.
func plain(field, value string, most int) error {
	if len(value) > most {
		return invalid(field, "has %d bytes, at most %d are allowed", len(value), most)
	}
	if !utf8.ValidString(value) {
		return invalid(field, "is not UTF-8 text")
	}
	for _, r := range value {
		if visible.Hidden(r) || r == '\n' || r == '\t' || r == '\r' {
			return invalid(field, "has a character that is not visible: %U", r)
		}
	}
	return nil
}

// Clean returns the fields that are valid by themselves: those of strangers are left out
// rather than refused. It changes f, and returns nil if nothing is left.
func (f *Fields) Clean() *Fields {
	if a, ok := Architecture(f.Architecture); ok {
		f.Architecture = a
	}
	for _, t := range texts {
		if v := t.in(f); t.check(*v) != nil {
			*v = ""
		}
	}
	if f.Check() != nil {
		f.Devices, f.Labels = nil, nil
	}
	if f.Check() != nil || f.Empty() {
		return nil
	}
	return f
}
