package web

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
)

// maxLogged is the maximum length of a logged value in bytes. Clients choose paths,
// names and the text that errors quote.
const maxLogged = 1000

// CutAttr cuts values over 1000 bytes, except stacks. It is for ReplaceAttr of
// [slog.HandlerOptions].
func CutAttr(_ []string, a slog.Attr) slog.Attr {
	var s string
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		s = v.String()
	case slog.KindAny:
		switch v := v.Any().(type) {
		case error:
			s = v.Error()
		case fmt.Stringer:
			s = v.String()
		default:
			if v := reflect.ValueOf(v); v.Kind() == reflect.String {
				s = v.String()
			}
		}
	}
	if len(s) <= maxLogged || a.Key == "stack" {
		return a
	}
	return slog.String(a.Key, fmt.Sprintf("%s... (%d bytes)", strings.ToValidUTF8(s[:maxLogged], ""), len(s)))
}
