package metadata

import (
	"slices"
	"strings"
	"time"

	"imageroot/shared/image"
)

// FromName returns what the name of an image says by the customs of publishers: the
// system, its version, the architecture and the date. It returns nil if that is nothing.
// Where two words contradict each other, as in "amd64-i386", neither counts.
func FromName(name image.Name) *Fields {
	lower := strings.ToLower(string(name))
	if format, ok := image.FormatOf(name); ok {
		lower = lower[:len(lower)-len(format)-1]
	}
	var array [48]string
	words := split(lower, array[:0])
	f := Fields{Architecture: architectureIn(words), ReleaseDate: dateIn(words)}
	f.System, f.Version = systemIn(words, f.Architecture)
	if f.Empty() {
		return nil
	}
	return &f
}

// split appends the words of a name in lower case to words: "fedora", "41", "1.4", "amd64"
// of "fedora-41-1.4.x86_64". A dot is part of a word if digits are on both sides.
func split(s string, words []string) []string {
	digit := func(i int) bool { return i >= 0 && i < len(s) && '0' <= s[i] && s[i] <= '9' }
	start := 0
	cut := func(end int) {
		if end > start && len(words) < cap(words) {
			words = append(words, s[start:end])
		}
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == 'x' && (i == start) && (strings.HasPrefix(s[i:], "x86_64") || strings.HasPrefix(s[i:], "x86-64")):
			i += len("x86_64") - 1
		case c == '.' && digit(i-1) && digit(i+1):
		case strings.IndexByte("-_+.,;~ ()[]@", c) >= 0:
			cut(i)
			start = i + 1
		}
	}
	cut(len(s))
	return words
}

// architectureIn returns the architecture that the words name.
func architectureIn(words []string) (found string) {
	for _, w := range words {
		a, ok := Architecture(w)
		if !ok || w == "386" {
			continue
		}
		if found != "" && found != a {
			return ""
		}
		found = a
	}
	return found
}

// dateIn returns the date that the words name: 2024-11-19, 2024.11.19 or 20241119, of which
// the last may begin a longer word.
func dateIn(words []string) (found string) {
	for i, w := range words {
		date := ""
		switch {
		case len(w) == 4 && i+2 < len(words) && len(words[i+1]) == 2 && len(words[i+2]) == 2:
			date = w + "-" + words[i+1] + "-" + words[i+2]
		case len(w) == 10 && w[4] == '.' && w[7] == '.':
			date = strings.ReplaceAll(w, ".", "-")
		case len(w) >= 8 && (len(w) == 8 || w[8] == '.' || w[8] == 't'):
			date = w[:4] + "-" + w[4:6] + "-" + w[6:8]
		}
		t, err := time.Parse(time.DateOnly, date)
		if err != nil || t.Year() < 2000 || t.Year() > 2099 {
			continue
		}
		if found != "" && found != date {
			return ""
		}
		found = date
	}
	return found
}

// systemIn returns the system that the words name, and its version.
func systemIn(words []string, architecture string) (id, version string) {
	var found *system
	for i, w := range words {
		letters := strings.TrimRight(w, "0123456789.") // of "centos7"
		s := systemAt(letters, words[i+1:])
		if s == nil || s == found {
			continue
		}
		if found != nil {
			return "", ""
		}
		if found = s; s.major[1] > 0 {
			version = s.versionIn(w[len(letters):], words[i+1:])
		}
	}
	codename := codenameIn(words, found)
	switch {
	case found == nil && codename == nil:
		return "", ""
	case found == nil:
		return codename.system, codename.version
	case found.id == raspios:
		// In 64 bits its os-release says that it is Debian.
		id = map[string]string{"arm64": "debian", "armhf": "raspbian"}[architecture]
	default:
		id = found.id
	}
	switch {
	case codename == nil || id == "":
	case codename.system != id && !(id == "raspbian" && codename.system == "debian"):
		return "", "" // a derivative may name what it is derived from
	case version == "":
		version = codename.version
	case version != codename.version && !strings.HasPrefix(version, codename.version+"."):
		version = ""
	}
	return id, version
}

// systemAt returns the system whose first word is word, if its other words follow, or nil.
func systemAt(word string, next []string) *system {
	for _, s := range systemsBy[word] {
		if len(next) >= len(s.words)-1 && slices.Equal(next[:len(s.words)-1], s.words[1:]) {
			return s
		}
	}
	return nil
}

// versionIn returns the version in the words after the system's, or in what follows it in
// the same word. Of "9" and "9.4" it is the longer one.
func (s *system) versionIn(same string, next []string) (found string) {
	for i := -1; i < len(next); i++ {
		v := same
		if i >= 0 {
			v = s.version(strings.TrimPrefix(next[i], "v"))
		} else if v = s.version(v); v == "" {
			continue
		}
		switch dots := strings.Count(v, ".") - strings.Count(found, "."); {
		case v == "" || v == found || strings.HasPrefix(found, v+"."):
		case found == "" || strings.HasPrefix(v, found+"."):
			found = v
		case dots >= 0:
			return "" // "22.04-to-24.04"; but the number of a DVD has fewer dots than a version
		}
	}
	return found
}

// version returns the beginning of a word that is a version of s, or "".
func (s *system) version(word string) string {
	end, part, parts := 0, 0, 0
	for i := 0; i <= len(word); i++ {
		switch {
		case i == len(word) || word[i] == '.':
			if parts == 0 && (part < s.major[0] || part > s.major[1]) || part == 0 {
				return ""
			}
			if parts++; parts <= s.parts[1] {
				end = i
			}
			part = 0
		case word[i] < '0' || word[i] > '9':
			return ""
		default:
			part++
		}
	}
	if parts < s.parts[0] {
		return ""
	}
	return word[:end]
}

// codenameIn returns the only codename in the words, or nil. Those that are words of
// English count only in the name of an image that Ubuntu publishes.
func codenameIn(words []string, of *system) (found *codename) {
	for _, w := range words {
		c, ok := codenames[w]
		if !ok || c.system == "ubuntu" && (of == nil || of.id != "ubuntu") && !slices.Contains(words, "cloudimg") {
			continue
		}
		if found != nil && *found != c {
			return nil
		}
		found = &c
	}
	return found
}
