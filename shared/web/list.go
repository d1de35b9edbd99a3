package web

import (
	"encoding/json"
	"io"
	"iter"
)

// WriteList writes a JSON document with a list, one item in each Write: the text before the
// items, the items, and the text after them.
func WriteList[T any](to io.Writer, before string, items iter.Seq[T], after string) error {
	next := before
	for item := range items {
		data, err := json.Marshal(item)
		if err != nil {
			return err
		}
		if _, err := to.Write(append([]byte(next), data...)); err != nil {
			return err
		}
		next, before = ",\n", ""
	}
	_, err := io.WriteString(to, before+after)
	return err
}
