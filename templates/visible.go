package templates

import (
	"bytes"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/text/unicode/bidi"

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

func isRightToLeft(r rune) bool {
	const hebrew = 0x590 // the first of them
	if r < hebrew {
		return false
	}
	p, _ := bidi.LookupRune(r)
	return p.Class() == bidi.R || p.Class() == bidi.AL
}
