// Package visible writes text from others so that a person sees all of it. A
// right-to-left override (U+202E) in a name makes "gmi.exe" look like "exe.img",
// a zero-width space makes two names look equal.
package visible

import (
	"fmt"
	"strings"
	"unicode"
)

// Text returns s with each character that is not seen, or that changes how
// others are seen, written as its code point: "[U+202E]". These are the control
// and format characters, separators and spaces other than U+0020, private and
// unassigned characters. Line breaks and tabs stay. Text(Text(s)) is Text(s).
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

// Hidden reports whether [Text] writes r as its code point.
func Hidden(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r' }
