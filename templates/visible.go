package templates

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/text/unicode/bidi"
	"golang.org/x/text/unicode/norm"

	"imageroot/shared/image"
	"imageroot/shared/visible"
)

// exact are the attributes for programs, not for people.
var exact = map[string]bool{"value": true, "data-copy": true, "data-batch": true}

// textOnly are the elements whose content is text without markup.
var textOnly = map[string]bool{"title": true, "option": true}

// showAll returns a page whose texts are those of [visible.Text]. Text with
// right-to-left letters is isolated, so that it moves nothing around it.
func showAll(page []byte) []byte {
	if !bytes.ContainsFunc(page, func(r rune) bool { return visible.Hidden(r) || isRightToLeft(r) }) {
		return page
	}
	var b bytes.Buffer
	within := ""
	for z := html.NewTokenizer(bytes.NewReader(page)); ; {
		kind := z.Next()
		raw := string(z.Raw()) // Token changes it
		switch kind {
		case html.ErrorToken:
			b.WriteString(raw)
			return b.Bytes()
		case html.StartTagToken, html.SelfClosingTagToken:
			token := z.Token()
			within = token.Data
			if visible.Text(raw) != raw {
				for i, a := range token.Attr {
					if !exact[a.Key] {
						token.Attr[i].Val = visible.Text(a.Val)
					}
				}
				raw = token.String()
			}
		case html.EndTagToken:
			within = ""
		case html.TextToken:
			isolate := !textOnly[within] && strings.ContainsFunc(raw, isRightToLeft)
			if raw = visible.Text(raw); isolate {
				raw = `<bdi dir="ltr">` + raw + `</bdi>`
			}
		}
		b.WriteString(raw)
	}
}

// A cut is a name in two parts. Where there is no room for both, the first one is shortened.
type cut struct{ Start, End string }

// cutOf cuts a name before its last characters, in which names of images differ: the
// version and the suffix. A name with right-to-left letters stays whole, since its parts
// would change places.
func cutOf(name image.Name) cut {
	const end = 14 // characters
	s := string(name)
	if strings.ContainsFunc(s, isRightToLeft) {
		return cut{Start: s}
	}
	at := len(s)
	for n := 0; at > 0 && (n < end || !norm.NFC.PropertiesString(s[at:]).BoundaryBefore()); n++ {
		_, size := utf8.DecodeLastRuneInString(s[:at])
		at -= size
	}
	return cut{s[:at], s[at:]}
}

func isRightToLeft(r rune) bool {
	const hebrew = 0x590 // the first of them
	if r < hebrew {
		return false
	}
	p, _ := bidi.LookupRune(r)
	return p.Class() == bidi.R || p.Class() == bidi.AL
}
