package disk

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// parseOSRelease returns the variables of an os-release file
// (https://www.freedesktop.org/software/systemd/man/latest/os-release.html).
func parseOSRelease(b []byte) map[string]string {
	vars := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != "" {
			continue
		}
		vars[name] = clean(unquote(value))
	}
	return vars
}

// unquote returns the value of an assignment of a shell, which expands nothing.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '\'' && s[len(s)-1] == '\'' {
		return s[1 : len(s)-1]
	}
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

const maxText = 256 // bytes

// clean returns a text of a disk, or "" if it is too long or has what is not text.
func clean(s string) string {
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return ""
	}
	return strings.TrimSpace(s)
}

// identifier returns s if it may be an ID of os-release, else "".
func identifier(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return ""
	}
	return s
}

// day returns the day with which s begins, as YYYY-MM-DD, or "". s is of the form YYYYMMDD or
// YYYY-MM-DD, and what is after that is not a digit.
func day(s string) string {
	for _, form := range []string{"20060102", time.DateOnly} {
		if len(s) < len(form) || len(s) > len(form) && s[len(form)] >= '0' && s[len(form)] <= '9' {
			continue
		}
		if t, err := time.Parse(form, s[:len(form)]); err == nil && t.Year() >= 1990 && t.Year() < 2100 {
			return t.Format(time.DateOnly)
		}
	}
	return ""
}
