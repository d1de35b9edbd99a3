package web

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

type failing struct{}

func (failing) MarshalJSON() ([]byte, error) { return nil, errors.New("no") }

func TestWriteList(t *testing.T) {
	for want, items := range map[string][]any{
		`{"a":[]}`:               {},
		`{"a":["x"]}`:            {"x"},
		"{\"a\":[1,\nnull,\n2]}": {1, nil, 2},
	} {
		var b strings.Builder
		if err := WriteList(&b, `{"a":[`, slices.Values(items), "]}"); err != nil || b.String() != want {
			t.Errorf("%q, %v, want %q", b.String(), err, want)
		}
	}
	if err := WriteList(new(strings.Builder), "[", slices.Values([]any{1, failing{}}), "]"); err == nil {
		t.Error("no error")
	}
}
