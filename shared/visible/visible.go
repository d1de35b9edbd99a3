// Package visible makes invisible characters in text from others visible. A
// right-to-left override (U+202E) in a name makes "gmi.exe" look like "exe.img", and a
// zero-width space makes two names look equal.
package visible

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
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

// Line returns Text(s) on one line: line breaks and tabs are "␤".
func Line(s string) string { return breaks.Replace(Text(s)) }

var breaks = strings.NewReplacer("\n", "␤", "\r", "␤", "\t", "␤")

// JSON returns a JSON text with the characters that [Text] replaces, which are in its strings
// only, as escapes of JSON. It is equal in meaning.
func JSON(text []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(text) { // of invalid UTF-8, a decoder makes U+FFFD, too
		switch r1, r2 := utf16.EncodeRune(r); {
		case !Hidden(r):
			b.WriteRune(r)
		case r1 != utf8.RuneError:
			fmt.Fprintf(&b, `\u%04x\u%04x`, r1, r2)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

// Hidden reports whether [Text] replaces r.
func Hidden(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\r' }
