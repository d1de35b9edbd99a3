// Package visible makes invisible characters in text from others visible. A
// right-to-left override (U+202E) in a name makes "gmi.exe" look like "exe.img", and a
// zero-width space makes two names look equal.
package visible

import (
	"fmt"
	"strings"
	"unicode"
)

// Text returns s with each character that is invisible, or changes the display of
// others, replaced by its code point: "[U+202E]". These are control and format
// characters, separators and spaces other than U+0020, and private and unassigned
// characters. Line breaks and tabs are kept. Text(Text(s)) is Text(s).
func Text(s string) string {
	if strings.IndexFunc(s, Hidden) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if Hidden(r) {
			fmt.Fprintf(&b, "[%U]", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Hidden reports whether [Text] replaces r.
func Hidden(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r' }
